//! A mapped range of bytes that other threads and processes may store to, read without making a reference to it.
//!
//! ```text
//!   |  mapped: len  |  address space reserved: room - len  |
//!   base            `-- extend() maps more of the file here
//! ```
//!
//! Words are read with single load instructions, so a race returns an old or a new word and is not undefined
//! behaviour. Longer runs are copied out. A [`PageRef`] is one page whose bounds were checked at construction. A
//! fault becomes an error (`fault_tolerant`).

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

use super::MapMode;
use super::fault_tolerant::{self, table};
use crate::{HUGE_PAGE_SIZE, PAGE_SIZE};

/// Minimum of address space to reserve for a range.
const MIN_ROOM: u64 = 256 << 30;
/// Limit on the address space to reserve for the ranges of one pool, of 128 TiB.
pub(crate) const MAX_ROOM: u64 = 64 << 40;
/// Why a range cannot be extended.
const NO_ROOM: &str = "no address space was set aside for so much: close the pool, and grow it then";

/// An owned `mmap` of a pool, unmapped on drop.
#[derive(Debug)]
pub struct MappedRange {
    base: NonNull<u8>,
    /// Bytes mapped. Grows, never shrinks.
    len: AtomicUsize,
    /// Address space of this range in bytes, including what is mapped.
    room: usize,
}

// SAFETY: the range is plain memory, valid until drop. Every access goes through atomics or raw copies; no
// reference into it is ever returned.
unsafe impl Send for MappedRange {}
// SAFETY: as above.
unsafe impl Sync for MappedRange {}

/// How a file is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Stores reach the file.
    Shared,
    /// Stores reach the file, and its block allocation is durable when a page is (`MAP_SYNC`).
    SharedSync,
    /// Stores stay in private pages of this process.
    Private,
    /// No stores.
    ReadOnly,
    /// No stores, and rejected where `SharedSync` would be.
    ReadOnlySync,
}

impl MappedRange {
    /// New zeroed memory of this process.
    pub fn anonymous(len: u64) -> io::Result<MappedRange> {
        let size = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let ptr = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, prot, flags)? };
        Self::adopt(ptr, size)
    }

    /// Maps the first `len` bytes of `file`.
    pub fn file(file: BorrowedFd<'_>, len: u64, share: Share) -> io::Result<MappedRange> {
        let size = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let ptr = unsafe { Self::map_file(std::ptr::null_mut(), size, file, 0, share, MapFlags::empty())? };
        Self::adopt(ptr, size)
    }

    /// As [`MappedRange::file`], with address space reserved after it for [`MappedRange::extend`]: 64 times the
    /// length, at least 256 GiB, at most `most`; for `least` bytes if that is more. The range begins at a multiple of
    /// `align`, a power of two. If so much address space is not available, only that of the range is taken; if that is not
    /// available with the alignment either, the range begins where the system puts it.
    pub fn file_with_room(
        file: BorrowedFd<'_>,
        len: u64,
        (least, most): (u64, u64),
        align: u64,
        share: Share,
    ) -> io::Result<MappedRange> {
        let align = align.max(HUGE_PAGE_SIZE);
        // Whole units: what is mapped by huge pages ends at a multiple of them.
        let least = least.checked_next_multiple_of(align).unwrap_or(least);
        let room = len.saturating_mul(64).clamp(MIN_ROOM.max(len), most.max(len).max(MIN_ROOM)).max(least);
        let reserved = Reserved::new(room.max(len), align);
        match reserved.or_else(|| Reserved::new(len, align)) {
            Some(reserved) => reserved.map(file, len, share),
            None => Self::file(file, len, share),
        }
    }

    /// Whether [`MappedRange::extend`] has address space for so many bytes.
    ///
    /// # Errors
    /// `Unsupported` if not so much was set aside.
    pub fn check_room(&self, len: u64) -> io::Result<()> {
        match len <= self.room() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::Unsupported, NO_ROOM)),
        }
    }

    /// Maps more of the file, up to its byte `len`. The file must be long enough. `file` and `share` must be those
    /// of the range.
    ///
    /// # Errors
    /// `Unsupported` if not enough address space was reserved.
    pub fn extend(&self, file: BorrowedFd<'_>, len: u64, share: Share) -> io::Result<()> {
        let old = self.len.load(Ordering::Acquire);
        self.check_room(len)?;
        let new = len as usize;
        if new <= old {
            return Ok(());
        }
        let at = self.base.as_ptr().wrapping_add(old).cast();
        // SAFETY: the addresses belong to this range, are not mapped yet, and nobody has a reference into them.
        let mapped = unsafe { Self::map_file(at, new - old, file, old as u64, share, MapFlags::FIXED) };
        if let Err(e) = mapped {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            // What was set aside may have been unmapped: it is set aside again before somebody else gets it.
            // SAFETY: as above.
            let _ = unsafe { rustix::mm::mmap_anonymous(at, new - old, ProtFlags::empty(), flags) };
            return Err(e);
        }
        self.len.store(new, Ordering::Release);
        Ok(())
    }

    /// Limit on the length of the range at its present base.
    pub fn room(&self) -> u64 {
        self.room as u64
    }

    /// # Safety
    /// With [`MapFlags::FIXED`], `to .. to + size` is address space of the caller, and no reference into it exists.
    unsafe fn map_file(
        to: *mut core::ffi::c_void,
        size: usize,
        file: BorrowedFd<'_>,
        at: u64,
        share: Share,
        fixed: MapFlags,
    ) -> io::Result<*mut core::ffi::c_void> {
        let prot = match share {
            Share::ReadOnly | Share::ReadOnlySync => ProtFlags::READ,
            _ => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = match share {
            Share::Shared | Share::ReadOnly => MapFlags::SHARED,
            Share::SharedSync | Share::ReadOnlySync => MapFlags::SHARED_VALIDATE | MapFlags::SYNC,
            Share::Private => MapFlags::PRIVATE | MapFlags::NORESERVE,
        };
        // SAFETY: the caller guarantees it.
        Ok(unsafe { rustix::mm::mmap(to, size, prot, flags | fixed, file, at)? })
    }

    /// Maps `len` bytes of `file`, starting at its byte `at`, at the address `to`, in place of the existing
    /// mapping.
    ///
    /// # Safety
    /// As [`super::Media::map_at`].
    pub(super) unsafe fn map_at(
        file: BorrowedFd<'_>,
        at: u64,
        len: u64,
        to: *mut u8,
        how: MapMode,
        sync: bool,
    ) -> io::Result<()> {
        let (prot, flags) = match how {
            MapMode::Read => (ProtFlags::READ, MapFlags::SHARED),
            MapMode::Write if sync => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED_VALIDATE | MapFlags::SYNC),
            MapMode::Write => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            MapMode::Private => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE),
        };
        let size = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: the caller owns the address range and has no reference into it.
        unsafe { rustix::mm::mmap(to.cast(), size, prot, flags | MapFlags::FIXED, file, at)? };
        Ok(())
    }

    fn adopt(ptr: *mut core::ffi::c_void, len: usize) -> io::Result<MappedRange> {
        let base = NonNull::new(ptr.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(MappedRange { base, len: AtomicUsize::new(len), room: len })
    }

    /// Bytes mapped.
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire) as u64
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `at .. at + len` lies inside.
    pub fn contains(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len())
    }

    /// The address of the byte `at`, for assembly and system calls; `None` outside the mapping.
    pub fn addr(&self, at: u64, len: u64) -> Option<*mut u8> {
        // SAFETY: the range was checked to lie inside the mapping.
        self.contains(at, len).then(|| unsafe { self.base.as_ptr().add(at as usize) })
    }

    /// The page starting at byte `at` (a multiple of 4 KiB); `None` outside the mapping.
    pub fn page(&self, at: u64) -> Option<PageRef<'_>> {
        if !at.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        self.addr(at, PAGE_SIZE).map(|ptr| PageRef { ptr, life: PhantomData })
    }

    /// The addresses mapped.
    pub(super) fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.base.as_ptr().addr();
        start..start + self.len() as usize
    }

    /// The byte at this address; `None` outside the mapping.
    pub(super) fn byte_at(&self, addr: usize) -> Option<u64> {
        self.addresses().contains(&addr).then(|| (addr - self.base.as_ptr().addr()) as u64)
    }

    /// Copies bytes out. Returns false outside the mapping, with `buf` unchanged; or after a fault, with a part
    /// copied.
    #[must_use]
    pub fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        let Some(from) = self.addr(at, buf.len() as u64) else { return false };
        // SAFETY: the source is mapped for this length and `buf` is exclusive memory outside it.
        noted(unsafe { fault_tolerant::copy(buf.as_mut_ptr(), from, buf.len()) })
    }

    /// Stores bytes with ordinary stores. Returns false outside the mapping, with nothing stored; or after a fault,
    /// with a part stored.
    #[must_use]
    pub fn write(&self, at: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.addr(at, bytes.len() as u64) else { return false };
        // SAFETY: the target is mapped for this length and no reference into it exists.
        noted(unsafe { fault_tolerant::copy(to, bytes.as_ptr(), bytes.len()) })
    }

    /// Stores zeros with ordinary stores. Returns as [`MappedRange::write`].
    #[must_use]
    pub fn zero(&self, at: u64, len: u64) -> bool {
        let Some(to) = self.addr(at, len) else { return false };
        // SAFETY: as in `write`.
        noted(unsafe { fault_tolerant::fill(to, 0, len as usize) })
    }

    /// Whether a byte of each page in the range can be read.
    pub(super) fn reaches(&self, at: u64, len: u64) -> bool {
        let Some(from) = self.addr(at, len) else { return false };
        if len == 0 {
            return true;
        }
        let before = fault_tolerant::mine();
        let (page, within) = (PAGE_SIZE as usize, from.addr() % PAGE_SIZE as usize);
        for start in (0..within + len as usize).step_by(page) {
            let byte = from.wrapping_add(start.saturating_sub(within));
            // SAFETY: the aligned word with this byte lies in the mapping, whose ends are aligned.
            unsafe { table::load_u64(byte.map_addr(|addr| addr & !7).cast()) };
        }
        fault_tolerant::well_since(before)
    }

    /// Makes a range inaccessible, as a failure of the memory would. For tests.
    pub fn forbid(&self, at: u64, len: u64) {
        self.protect(at, len, rustix::mm::MprotectFlags::empty());
    }

    /// Undoes [`MappedRange::forbid`].
    pub fn allow(&self, at: u64, len: u64) {
        self.protect(at, len, rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE);
    }

    fn protect(&self, at: u64, len: u64, rights: rustix::mm::MprotectFlags) {
        let Some(from) = self.addr(at, len) else { return };
        // SAFETY: the range belongs to this value; all accesses to it continue after a fault.
        let done = unsafe { rustix::mm::mprotect(from.cast(), len as usize, rights) };
        debug_assert!(done.is_ok(), "whole pages of a mapping of ours");
    }

    /// Drops this process's private copies of whole pages of a [`Share::Private`] mapping. The next read returns
    /// the file's bytes.
    pub(super) fn drop_private(&self, at: u64, len: u64) -> io::Result<()> {
        let Some(from) = self.addr(at, len) else { return Err(io::ErrorKind::InvalidInput.into()) };
        // SAFETY: the range is mapped from a file; its pages stay readable, from the file.
        unsafe { rustix::mm::madvise(from.cast(), len as usize, Advice::LinuxDontNeed)? };
        Ok(())
    }

    /// Requests huge pages. A kernel without them ignores it.
    pub(super) fn advise_huge(&self) {
        // SAFETY: changes no byte, only how the kernel backs the range.
        let _ = unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len() as usize, Advice::LinuxHugepage) };
    }

    /// Disables readahead: accesses are random. A kernel without support ignores it.
    pub(super) fn advise_random(&self) {
        // SAFETY: changes no byte, only how much the kernel reads at a fault.
        let _ = unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len() as usize, Advice::Random) };
    }

    /// Replaces the range by a private copy. Readers see the mapping or the copy, nothing in between. `at` and
    /// `len` must be multiples of the page size of the mapping.
    pub(super) fn privatize(&self, at: u64, len: u64) -> io::Result<()> {
        let Some(place) = self.addr(at, len) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let copy = MappedRange::anonymous(len)?;
        // SAFETY: source and target are mapped for this length and lie apart.
        unsafe { std::ptr::copy_nonoverlapping(place, copy.base.as_ptr(), len as usize) };
        // SAFETY: the target range belongs to this mapping, which keeps its address and length;
        // all readers use raw copies and relaxed loads, to which the bytes stay the same.
        unsafe {
            let (from, size) = (copy.base.as_ptr().cast(), copy.room);
            rustix::mm::mremap_fixed(from, size, size, MremapFlags::MAYMOVE, place.cast())?;
        }
        // The address range of the copy has moved: it must not be unmapped a second time.
        std::mem::forget(copy);
        Ok(())
    }
}

/// Address space that nothing is mapped in yet.
struct Reserved {
    base: *mut core::ffi::c_void,
    size: usize,
}

impl Reserved {
    /// Takes so many bytes from a multiple of `align` on. `None` if they are not available.
    fn new(size: u64, align: u64) -> Option<Reserved> {
        let (size, align) = (usize::try_from(size).ok()?, usize::try_from(align).ok()?);
        // The system maps whole pages.
        let size = size.checked_next_multiple_of(PAGE_SIZE as usize)?;
        let taken = size.checked_add(align)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let aside = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), taken, ProtFlags::empty(), flags) };
        let aside = aside.ok()?;
        let skip = aside.addr().next_multiple_of(align) - aside.addr();
        let base = aside.wrapping_byte_add(skip);
        // Unmap the unaligned parts before and after the range.
        for (from, len) in [(aside, skip), (base.wrapping_byte_add(size), align - skip)] {
            if len > 0 {
                // SAFETY: the range was just reserved and nothing refers to it.
                let _ = unsafe { rustix::mm::munmap(from, len) };
            }
        }
        Some(Reserved { base, size })
    }

    /// Maps the first `len` bytes of `file` at the beginning.
    fn map(self, file: BorrowedFd<'_>, len: u64, share: Share) -> io::Result<MappedRange> {
        // SAFETY: the range was reserved by this value; no reference into it exists.
        let mapped = unsafe { MappedRange::map_file(self.base, len as usize, file, 0, share, MapFlags::FIXED) };
        if let Err(e) = mapped {
            // SAFETY: as above.
            let _ = unsafe { rustix::mm::munmap(self.base, self.size) };
            return Err(e);
        }
        let mut range = MappedRange::adopt(self.base, len as usize)?;
        range.room = self.size;
        Ok(range)
    }
}

/// Notes a fault. Returns whether there was none.
fn noted(reached: fault_tolerant::Reached) -> bool {
    reached.inspect_err(|&addr| fault_tolerant::note(addr)).is_ok()
}

impl Drop for MappedRange {
    fn drop(&mut self) {
        // SAFETY: the range belongs to this value and nothing borrowed from it can outlive it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.room) };
    }
}

/// One page of bytes, on the media or staged in DRAM, read word by word.
///
/// Offsets are bytes within the page. They are reduced modulo 4 KiB and to the word's alignment, so an offset from
/// a hostile image never reads outside the page.
#[derive(Clone, Copy)]
pub struct PageRef<'a> {
    ptr: *const u8,
    life: PhantomData<&'a u8>,
}

// SAFETY: only single loads and raw copies go through the pointer.
unsafe impl Send for PageRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for PageRef<'_> {}

/// A page in DRAM with the alignment that word loads need.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct PageBuf(pub [u8; PAGE_SIZE as usize]);

impl PageBuf {
    /// A page of zeros.
    pub const fn zeroed() -> PageBuf {
        PageBuf([0; PAGE_SIZE as usize])
    }
    /// A view of the page.
    pub fn view(&self) -> PageRef<'_> {
        PageRef { ptr: self.0.as_ptr(), life: PhantomData }
    }
}

impl PageRef<'_> {
    /// The 16-bit word at `at`.
    pub fn u16(&self, at: usize) -> u16 {
        // SAFETY: the masked offset lies inside the page and is aligned; the page outlives self.
        unsafe { table::load_u16(self.ptr.add(at & 4094).cast()) }
    }
    /// The 32-bit word at `at`.
    pub fn u32(&self, at: usize) -> u32 {
        // SAFETY: as in `u16`.
        unsafe { table::load_u32(self.ptr.add(at & 4092).cast()) }
    }
    /// The 64-bit word at `at`.
    pub fn u64(&self, at: usize) -> u64 {
        // SAFETY: as in `u16`.
        unsafe { table::load_u64(self.ptr.add(at & 4088).cast()) }
    }
    /// Copies bytes out. The part of `buf` that lies beyond the page, or is unreadable, stays unchanged.
    pub fn bytes(&self, at: usize, buf: &mut [u8]) {
        let at = at.min(PAGE_SIZE as usize);
        let len = buf.len().min(PAGE_SIZE as usize - at);
        // SAFETY: at + len was bounded by the page size, and `buf` is exclusive memory.
        noted(unsafe { fault_tolerant::copy(buf.as_mut_ptr(), self.ptr.add(at), len) });
    }
    /// Whether the bytes at `at` equal `bytes`; false if they would extend beyond the page.
    pub fn is(&self, at: usize, bytes: &[u8]) -> bool {
        let mut chunk = [0; 64];
        at + bytes.len() <= PAGE_SIZE as usize
            && bytes.chunks(64).enumerate().all(|(i, want)| {
                self.bytes(at + i * 64, &mut chunk[..want.len()]);
                chunk[..want.len()] == *want
            })
    }
    /// Copies the whole page out.
    pub fn copy_to(&self, page: &mut PageBuf) {
        self.bytes(0, &mut page.0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// Guard: a range that is as long as the room for it is aligned, too.
    #[test]
    #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn a_range_without_room_behind_it_is_aligned() {
        const ALIGN: u64 = 1 << 30;
        let path = std::env::temp_dir().join(format!("pagestone-range-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // No bytes are stored. A filesystem may refuse the length all the same.
        if let Err(e) = file.set_len(MIN_ROOM) {
            println!("skipped: no sparse file of {MIN_ROOM} bytes: {e}");
            return;
        }
        let ranges: Vec<MappedRange> = (0..4)
            .map(|_| MappedRange::file_with_room(file.as_fd(), MIN_ROOM, (0, 0), ALIGN, Share::Shared).unwrap())
            .collect();
        for range in &ranges {
            assert_eq!((range.addresses().start as u64 % ALIGN, range.room()), (0, MIN_ROOM));
        }
        let small = MappedRange::file_with_room(file.as_fd(), 5 << 20, (0, MAX_ROOM), ALIGN, Share::Shared).unwrap();
        assert_eq!((small.addresses().start as u64 % ALIGN, small.len()), (0, 5 << 20));
        assert!(small.room() >= MIN_ROOM);
    }
}
