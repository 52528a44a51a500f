//! The system calls that mappings are built from: address space, and userfaultfd by its ioctls.
//!
//! ```text
//!   scratch:  mmap --> register --> (write-protect)        the address is not public yet
//!                          |
//!                       mremap: replaces the target in one step and moves the registration
//!                          v
//!   target:   at every moment either registered or backed by storage: no store is lost
//! ```
//!
//! `UFFD_FEATURE_EVENT_REMAP` makes the registration move with the range. In return `mremap` blocks until the fault
//! reader has read the event. So the fault reader never calls `mremap`.

use std::ffi::{CStr, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

use crate::units::FRAME_SIZE;

const API: u64 = 0xAA;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_EVENT_REMAP: u64 = 1 << 2;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const IOC_NEW: u64 = 0xaa00;
const IOC_API: u64 = 0xc018_aa3f;
const IOC_REGISTER: u64 = 0xc020_aa00;
const IOC_UNREGISTER: u64 = 0x8010_aa01;
const IOC_WAKE: u64 = 0x8010_aa02;
const IOC_WRITEPROTECT: u64 = 0xc018_aa06;
const MODE_MISSING: u64 = 1;
const MODE_WP: u64 = 2;
const EVENT_PAGEFAULT: u8 = 0x12;
const FLAG_WRITE: u64 = 1;
const FLAG_WP: u64 = 2;

/// One page fault as the kernel reports it.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmap) struct Fault {
    /// The address, rounded down to its page.
    pub(in crate::mmap) addr: usize,
    /// The access is a store.
    pub(in crate::mmap) write: bool,
    /// The page is mapped read-only: a store to a write-protected hole.
    pub(in crate::mmap) protected: bool,
}

/// A userfaultfd.
#[derive(Debug)]
pub(in crate::mmap) struct Userfault(OwnedFd);

impl Userfault {
    /// A userfaultfd that also reports faults of the kernel.
    ///
    /// # Errors
    /// The kernel's error if userfaultfd is not available or not permitted.
    pub(in crate::mmap) fn new() -> io::Result<Userfault> {
        let uffd = Userfault(Self::from_device().or_else(|_| Self::from_syscall())?);
        let features = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_EVENT_REMAP | FEATURE_WP_UNPOPULATED;
        uffd.ioctl(IOC_API, &mut [API, features, 0])?;
        Ok(uffd)
    }

    fn from_device() -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/userfaultfd", flags, Mode::empty())?;
        // SAFETY: the ioctl takes flags by value and returns a new descriptor.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW as _, libc::O_CLOEXEC) };
        adopt(libc::c_long::from(fd))
    }

    fn from_syscall() -> io::Result<OwnedFd> {
        // SAFETY: the call takes flags by value and returns a new descriptor.
        adopt(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })
    }

    fn ioctl<const N: usize>(&self, request: u64, words: &mut [u64; N]) -> io::Result<()> {
        loop {
            // SAFETY: each request reads and writes its own structure of at most N words.
            let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, words.as_mut_ptr()) };
            match result {
                0.. => return Ok(()),
                _ => match io::Error::last_os_error() {
                    e if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
                    e => return Err(e),
                },
            }
        }
    }

    fn register(&self, at: usize, len: usize, mode: u64) -> io::Result<()> {
        self.ioctl(IOC_REGISTER, &mut [at as u64, len as u64, mode, 0])
    }

    /// Wakes all threads that wait for a page of the range; they retry the access.
    pub(in crate::mmap) fn wake(&self, range: Range<usize>) {
        let words = &mut [range.start as u64, range.len() as u64];
        // If the range is not registered, no thread waits.
        let _ = self.ioctl(IOC_WAKE, words);
    }

    /// Waits for faults. Other events are discarded.
    pub(in crate::mmap) fn read(&self, faults: &mut Vec<Fault>) -> io::Result<()> {
        let mut messages = [[0u64; 4]; 16];
        let len = std::mem::size_of_val(&messages);
        // SAFETY: the kernel writes whole messages of 32 bytes into the array.
        let n = unsafe { libc::read(self.0.as_raw_fd(), messages.as_mut_ptr().cast(), len) };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        faults.clear();
        faults.extend(messages[..n / 32].iter().filter(|m| m[0].to_le_bytes()[0] == EVENT_PAGEFAULT).map(|m| Fault {
            addr: m[2] as usize & !4095,
            write: m[1] & FLAG_WRITE != 0,
            protected: m[1] & FLAG_WP != 0,
        }));
        Ok(())
    }

    /// Makes the range unresolved: the first access to a page is a fault.
    pub(in crate::mmap) fn map_lazy(&self, range: Range<usize>) -> io::Result<()> {
        let scratch = ScratchRange::like(range.clone())?;
        let (at, len) = (scratch.at, range.len());
        self.register(at, len, MODE_MISSING)?;
        scratch.move_to(range.start)
    }

    /// Blocks stores to present pages until [`Userfault::allow_stores`]. Loads continue.
    ///
    /// # Errors
    /// The kernel supports it for anonymous memory, tmpfs and hugetlbfs, not for other files.
    pub(in crate::mmap) fn block_stores(&self, range: Range<usize>) -> io::Result<()> {
        self.register(range.start, range.len(), MODE_WP)?;
        self.ioctl(IOC_WRITEPROTECT, &mut [range.start as u64, range.len() as u64, 1])
    }

    /// Undoes [`Userfault::block_stores`] for these pages, which must not have been remapped since.
    pub(in crate::mmap) fn allow_stores(&self, range: Range<usize>) {
        let (at, len) = (range.start as u64, range.len() as u64);
        // Neither call fails for registered memory. In unregistered memory no thread waits.
        let _ = self.ioctl(IOC_WRITEPROTECT, &mut [at, len, 0]);
        let _ = self.ioctl(IOC_UNREGISTER, &mut [at, len]);
    }

    /// Maps the zero page over the range. The first store to a page is a fault.
    pub(in crate::mmap) fn map_zero_page(&self, range: Range<usize>) -> io::Result<()> {
        let scratch = ScratchRange::like(range.clone())?;
        let (at, len) = (scratch.at, range.len());
        self.register(at, len, MODE_WP)?;
        if huge_zero_page() && len as u64 >= FRAME_SIZE {
            scratch.fill_with_huge_zeros();
        }
        self.ioctl(IOC_WRITEPROTECT, &mut [at as u64, len as u64, 1])?;
        scratch.move_to(range.start)
    }
}

fn adopt(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: a new descriptor that nothing else refers to.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the kernel can map a huge zero page at a read of untouched 2 MiB.
fn huge_zero_page() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let is = |name: &str, good: fn(&str) -> bool| {
            let path = format!("/sys/kernel/mm/transparent_hugepage/{name}");
            std::fs::read_to_string(path).is_ok_and(|text| good(text.trim()))
        };
        is("use_zero_page", |text| text == "1") && is("enabled", |text| !text.contains("[never]"))
    })
}

/// Anonymous address space that is being prepared. Unmapped on drop unless it was moved.
struct ScratchRange {
    whole: Range<usize>,
    at: usize,
    len: usize,
}

impl ScratchRange {
    /// As long as `range`, with the same alignment within 2 MiB. Not inherited by a child: no fault reader would
    /// see the child's stores to it.
    fn like(range: Range<usize>) -> io::Result<ScratchRange> {
        let (frame, len) = (FRAME_SIZE as usize, range.len());
        let slack = if len >= frame { frame } else { 0 };
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len + slack, prot, flags)? } as usize;
        let shift = if slack == 0 { 0 } else { range.start.wrapping_sub(base) & (frame - 1) };
        let scratch = ScratchRange { whole: base..base + len + slack, at: base + shift, len };
        // SAFETY: the range was just mapped and holds nothing.
        unsafe { rustix::mm::madvise(scratch.at as *mut _, len, Advice::LinuxDontFork)? };
        Ok(scratch)
    }

    fn fill_with_huge_zeros(&self) {
        let at = self.at as *mut core::ffi::c_void;
        // SAFETY: the range belongs to this value and stays zeros. A kernel that does not support it maps zero
        // pages at each fault.
        unsafe {
            let _ = rustix::mm::madvise(at, self.len, Advice::LinuxHugepage);
            let _ = rustix::mm::madvise(at, self.len, Advice::LinuxPopulateRead);
        }
    }

    fn move_to(mut self, target: usize) -> io::Result<()> {
        let (at, len) = (self.at as *mut core::ffi::c_void, self.len);
        // SAFETY: the source belongs to this value; the target is address space of a mapping, to which no reference
        // exists.
        unsafe { rustix::mm::mremap_fixed(at, len, len, MremapFlags::MAYMOVE, target as *mut _)? };
        self.release();
        Ok(())
    }

    /// Unmaps what surrounds the piece that was moved.
    fn release(&mut self) {
        let (first, behind) = (self.whole.start..self.at, self.at + self.len..self.whole.end);
        for rest in [first, behind] {
            unmap(rest);
        }
        self.whole = 0..0;
    }
}

impl Drop for ScratchRange {
    fn drop(&mut self) {
        unmap(self.whole.clone());
    }
}

/// Enters the pages of a shared mapping into the page tables, writable. Where the kernel does not support it
/// (before Linux 5.14), or a page is inaccessible, the first access does it.
pub(in crate::mmap) fn populate(range: Range<usize>) {
    // SAFETY: changes no byte, only the kernel's page tables for a mapping of this library.
    let _ = unsafe { rustix::mm::madvise(range.start as *mut _, range.len(), Advice::LinuxPopulateWrite) };
}

/// Unmaps address scratch.
pub(in crate::mmap) fn unmap(range: Range<usize>) {
    if !range.is_empty() {
        // SAFETY: callers own the range, and nothing borrowed from it outlives them.
        let _ = unsafe { rustix::mm::munmap(range.start as *mut _, range.len()) };
    }
}

/// Reserves address space for `len` bytes whose first byte lies `within` bytes after a multiple of 2 MiB. Returns
/// that range, and the whole range that was reserved. Nothing in it is accessible yet.
pub(in crate::mmap) fn reserve(len: usize, within: usize) -> io::Result<(Range<usize>, Range<usize>)> {
    let frame = FRAME_SIZE as usize;
    let size = len.checked_add(2 * frame).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::empty(), flags)? } as usize;
    let start = base.next_multiple_of(frame) + within;
    Ok((start..start + len, base..base + size))
}

/// Makes the range inaccessible: an access is SIGBUS, by the kernel EFAULT, as beyond the end of any mapped file.
pub(in crate::mmap) fn map_poison(range: Range<usize>, offset: u64) -> io::Result<()> {
    static NOTHING: OnceLock<OwnedFd> = OnceLock::new();
    let file = match NOTHING.get() {
        Some(file) => file,
        None => {
            let file = rustix::fs::memfd_create("pagestone-nothing", MemfdFlags::CLOEXEC)?;
            NOTHING.get_or_init(|| file)
        }
    };
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
    // SAFETY: address space of a mapping, to which no reference exists.
    unsafe { rustix::mm::mmap(range.start as *mut _, range.len(), prot, flags, file.as_fd(), offset)? };
    Ok(())
}

/// Maps plain zeroed memory over the range, read-only or (for a private mapping) writable.
pub(in crate::mmap) fn map_zeros(range: Range<usize>, writable: bool) -> io::Result<()> {
    let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: as in `map_poison`.
    unsafe { rustix::mm::mmap_anonymous(range.start as *mut _, range.len(), prot, flags)? };
    if writable {
        // A store copies one page, not the 2 MiB around it. A kernel without huge pages rejects the call.
        // SAFETY: changes no byte, only how the kernel backs the range.
        let _ = unsafe { rustix::mm::madvise(range.start as *mut _, range.len(), Advice::LinuxNoHugepage) };
    }
    Ok(())
}

/// Starts a detached thread.
///
/// Not by the standard library: its threads take a process-wide lock when they start and end. A child that is
/// forked at such a moment would find that lock held forever.
pub(in crate::mmap) fn spawn(name: &'static CStr, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    type Start = (&'static CStr, Box<dyn FnOnce() + Send>);
    extern "C" fn begin(start: *mut c_void) -> *mut c_void {
        // SAFETY: the box was passed to this thread alone.
        let (name, run) = *unsafe { Box::from_raw(start.cast::<Start>()) };
        // SAFETY: names the calling thread.
        unsafe { libc::pthread_setname_np(libc::pthread_self(), name.as_ptr()) };
        // A panic is reported and ends this thread alone. In a debug build it ends the process: other threads would
        // wait for this one forever.
        if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() && cfg!(debug_assertions) {
            std::process::abort();
        }
        std::ptr::null_mut()
    }
    let start: *mut Start = Box::into_raw(Box::new((name, Box::new(run))));
    let mut thread = MaybeUninit::uninit();
    // SAFETY: `begin` has the required type and takes ownership of the box.
    match unsafe { libc::pthread_create(thread.as_mut_ptr(), std::ptr::null(), begin, start.cast()) } {
        0 => {
            // SAFETY: the call has initialized it, and the thread is never joined.
            unsafe { libc::pthread_detach(thread.assume_init()) };
            Ok(())
        }
        code => {
            // SAFETY: no thread took ownership of it.
            drop(unsafe { Box::from_raw(start) });
            Err(io::Error::from_raw_os_error(code))
        }
    }
}
