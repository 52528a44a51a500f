//! Peers that use the system directly: shared mappings, msync, and libpmem2 if it is installed. The C boundary of
//! this crate.
//!
//! ```text
//!   Plain     mmap of a file: load, store, msync, how much of it is in memory
//!   Pmem2     the same through libpmem2, which is loaded at run time
//!   LikePmem  a tmpfs file stored to as persistent memory would be
//!   countdown a loop of known length
//! ```

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use pmem::{Description, MapMode, Media, Part, Persister, Views};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// A shared mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Plain {
    at: NonNull<u8>,
    len: usize,
}

impl Plain {
    pub(crate) fn map(file: &File, len: u64) -> Result<Plain> {
        let len = usize::try_from(len)?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let at = unsafe { mmap(null_mut(), len, prot, flags, file.as_fd(), 0) }?;
        Ok(Plain { at: NonNull::new(at.cast()).context("mmap answers no address")?, len })
    }

    fn inside(&self, at: u64, len: usize) -> usize {
        let at = at as usize;
        assert!(at <= self.len && len <= self.len - at, "inside the mapping");
        at
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        let at = self.inside(at, 8);
        assert!(at.is_multiple_of(8), "an aligned word");
        // SAFETY: inside the mapping, aligned, and valid for its lifetime; all other stores there are atomic as
        // well.
        unsafe { AtomicU64::from_ptr(self.at.add(at).cast().as_ptr()) }
    }

    pub(crate) fn load(&self, at: u64) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }

    pub(crate) fn store(&self, at: u64, value: u64) {
        self.word(at).store(value, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) {
        let at = self.inside(at, buf.len());
        // SAFETY: inside the mapping; nothing else in this process uses it.
        unsafe { self.at.add(at).copy_to_nonoverlapping(NonNull::from(&mut *buf).cast(), buf.len()) }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let at = self.inside(at, bytes.len());
        // SAFETY: as above.
        unsafe { self.at.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) }
    }

    /// The page with the byte `at` is durable on return.
    pub(crate) fn msync(&self, at: u64) -> Result<()> {
        let page = self.inside(at & !4095, 4096);
        // SAFETY: inside the mapping.
        Ok(unsafe { msync(self.at.add(page).as_ptr().cast(), 4096, MsyncFlags::SYNC) }?)
    }

    /// Bytes of it that are in memory, for whatever reason.
    pub(crate) fn resident(&self) -> Result<u64> {
        let mut pages = vec![0u8; self.len.div_ceil(4096)];
        // SAFETY: the range is the mapping's, and `pages` has a byte for each of its pages.
        if unsafe { libc::mincore(self.at.as_ptr().cast(), self.len, pages.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(pages.iter().filter(|&&page| page & 1 == 1).count() as u64 * 4096)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value, and no reference into it exists any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

type Persist = unsafe extern "C" fn(*const c_void, usize);

/// A file mapped by libpmem2, with flushes by cache line, as on persistent memory.
pub(crate) struct Pmem2 {
    plain: Plain,
    persist: Persist,
    _library: libloading::Library,
}

impl Pmem2 {
    /// Fails if the library is not installed.
    pub(crate) fn map(file: &File, len: u64) -> Result<Pmem2> {
        // SAFETY: only types, of the functions as the library's header has them.
        type New = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
        type FromFd = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
        type Granularity = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
        type MapNew = unsafe extern "C" fn(*mut *mut c_void, *const c_void, *mut c_void) -> c_int;
        type Address = unsafe extern "C" fn(*mut c_void) -> *mut u8;
        type GetPersist = unsafe extern "C" fn(*mut c_void) -> Persist;
        const CACHE_LINE: c_int = 1;

        // The library assumes page granularity for a tmpfs file; this is its switch for tests and benchmarks.
        // SAFETY: nothing else in this process reads or changes the environment at this moment.
        unsafe { std::env::set_var("PMEM2_FORCE_GRANULARITY", "CACHE_LINE") };
        // SAFETY: the library's constructors only query the processor.
        let library = unsafe { libloading::Library::new("libpmem2.so.1") }?;
        let (mut config, mut source, mut map) = (null_mut(), null_mut(), null_mut());
        // SAFETY: names and types are those of libpmem2.h; the functions get what they returned, in the order that
        // the manual requires.
        let (at, persist) = unsafe {
            let wrong = library.get::<New>(b"pmem2_config_new")?(&mut config)
                | library.get::<Granularity>(b"pmem2_config_set_required_store_granularity")?(config, CACHE_LINE)
                | library.get::<FromFd>(b"pmem2_source_from_fd")?(&mut source, file.as_raw_fd());
            if wrong != 0 || library.get::<MapNew>(b"pmem2_map_new")?(&mut map, config, source) != 0 {
                bail!("libpmem2 does not map the file");
            }
            let at = library.get::<Address>(b"pmem2_map_get_address")?(map);
            (at, library.get::<GetPersist>(b"pmem2_get_persist_fn")?(map))
        };
        let plain = Plain { at: NonNull::new(at).context("libpmem2 answers no address")?, len: usize::try_from(len)? };
        Ok(Pmem2 { plain, persist, _library: library })
    }

    /// Stores a word and makes it durable.
    pub(crate) fn store(&self, at: u64, value: u64) {
        self.plain.store(at, value);
        // SAFETY: the word lies inside the mapping.
        unsafe { (self.persist)(self.plain.word(at).as_ptr().cast_const().cast(), 8) }
    }
}

/// A tmpfs file that is stored to as if it were memory beneath volatile caches, with the method that the machine's
/// persistent memory would get. So measurements on tmpfs are representative.
#[derive(Debug)]
pub(crate) struct LikePmem {
    below: Arc<dyn Media>,
    persister: Persister,
    description: Description,
}

impl LikePmem {
    pub(crate) fn new(below: Arc<dyn Media>, persister: Persister) -> LikePmem {
        let granularity = pmem::Granularity::CacheLine;
        let description = Description { method: persister.method(), granularity, ..below.describe().clone() };
        LikePmem { below, persister, description }
    }
}

impl Media for LikePmem {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn views(&self) -> Views<'_> {
        self.below.views()
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        self.persister.persist(self.below.views().data, parts)
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        self.below.store(at, bytes);
    }
    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        self.persister.flush(self.below.views().meta, at, len);
        Ok(())
    }
    fn fence(&self) {
        self.persister.fence();
    }
    fn sync(&self) -> io::Result<()> {
        self.persister.fence();
        Ok(())
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.below.reserve(at, len)
    }
    fn map_alignment(&self) -> Option<u64> {
        self.below.map_alignment()
    }
    fn prepare_for_mapping(&self, at: u64, len: u64) -> io::Result<()> {
        self.below.prepare_for_mapping(at, len)
    }
    unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> io::Result<()> {
        // SAFETY: the caller guarantees it.
        unsafe { self.below.map_at(at, len, to, how) }
    }
}

/// Executes two instructions `n` times.
pub(crate) fn countdown(n: u64) {
    // SAFETY: decrements a register; accesses neither memory nor the stack.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("2:", "dec {n}", "jnz 2b", n = inout(reg) n.max(1) => _, options(nomem, nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("2:", "subs {n}, {n}, #1", "b.ne 2b", n = inout(reg) n.max(1) => _, options(nomem, nostack));
    }
}
