//! `Mapping`, a range of a file in this process's address space: how it is created, and its operations.
//!
//! ```text
//!   File::map --> reserve address space --> Area, unresolved --> map the first pieces of storage --> Mapping
//!   drop      --> leave the service's list --> stop observing --> unmap
//! ```

use std::ops::Range;
use std::sync::Arc;

use pmem::{Durability, MapMode};

use crate::alloc::Run;
use crate::data::notify::Stores;
use crate::data::{FileHandle, bounce_buffer};
use crate::engine::{Engine, InodeWrite, MappingObserver, WriteGuards};
use crate::error::{Error, Result};
use crate::mmap::address_space::area::{self, Area};
use crate::mmap::address_space::steps;
use crate::mmap::fault::answer;
use crate::mmap::fault::service::{Entry, MapMechanism, Service};
use crate::mmap::kernel::userfault;
use crate::units::{FRAME_SIZE, PAGE_SIZE};

/// Limit on pieces of storage that are mapped at creation. Pieces beyond it are mapped at the first access.
const AT_ONCE: usize = 1000;

/// Options for mapping a range.
///
/// ```
/// use pagestone::mmap::{MapMechanism, MapOptions};
/// let options = MapOptions::shared().mechanism(MapMechanism::Signals);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MapOptions {
    write: bool,
    private: bool,
    mechanism: Option<MapMechanism>,
}

impl MapOptions {
    /// Loads only.
    pub fn read_only() -> MapOptions {
        MapOptions::default()
    }
    /// Loads and stores; stores reach the file.
    pub fn shared() -> MapOptions {
        MapOptions { write: true, ..MapOptions::default() }
    }
    /// Loads and stores; stores never reach the file.
    pub fn private() -> MapOptions {
        MapOptions { write: true, private: true, ..MapOptions::default() }
    }

    /// Resolves faults by this mechanism. By default the mapping uses the best one available.
    #[must_use]
    pub fn mechanism(mut self, mechanism: MapMechanism) -> MapOptions {
        self.mechanism = Some(mechanism);
        self
    }

    /// Whether stores reach the file.
    pub(crate) fn stores_reach_file(&self) -> bool {
        self.write && !self.private
    }

    fn mode(&self) -> MapMode {
        match (self.write, self.private) {
            (true, false) => MapMode::Write,
            (true, true) => MapMode::Private,
            (false, _) => MapMode::Read,
        }
    }
}

/// A range of a file in this process's address space, unmapped on drop. `Send + Sync`.
///
/// Its pages are the pool's pages: there is no copy. A store is visible to every other mapping and reader at once.
/// [`Mapping::flush`] and [`Mapping::drain`] make it durable. The file exists while it is mapped, even without a
/// name.
///
/// Other threads and processes may store to the same bytes at any time, so the library never makes a reference to
/// them: bytes are copied in and out, words are atomic. A page may also be removed from a mapping. The methods then
/// return [`Error::Revoked`] (it was punched or truncated away) or [`Error::BeyondEnd`]. An access through a raw
/// pointer ([`Mapping::as_ptr`]) is SIGBUS, as with any mapped file.
#[derive(Debug)]
pub struct Mapping {
    pub(in crate::mmap) area: Arc<Area>,
    pub(in crate::mmap) file: FileHandle,
    pub(in crate::mmap) service: &'static Service,
    /// The whole range of address space that was reserved.
    taken: Range<usize>,
    /// First byte, as an offset in the file.
    pub(in crate::mmap) offset: u64,
    pub(in crate::mmap) len: u64,
    _bounce: bounce_buffer::Guard,
}

impl FileHandle {
    /// See [`File::map`](crate::File::map).
    pub(crate) fn map(&self, range: Range<u64>, options: &MapOptions) -> Result<Mapping> {
        self.map_as(range, options, false)
    }

    /// As [`FileHandle::map`]. `atomic`: stores are committed or discarded.
    pub(in crate::mmap) fn map_as(&self, range: Range<u64>, options: &MapOptions, atomic: bool) -> Result<Mapping> {
        let engine = self.engine();
        engine.alloc.check_process()?;
        let end = range.end.checked_next_multiple_of(PAGE_SIZE).filter(|&end| end <= i64::MAX as u64);
        let Some(end) = end.filter(|_| range.start < range.end) else {
            return Err(Error::Invalid("a mapping is of at least one byte, at offsets that a file can have"));
        };
        if engine.alloc.region.map_alignment().is_none() {
            return Err(Error::NotSupported("these media cannot be mapped"));
        }
        let mode = options.mode();
        if mode == MapMode::Write && engine.alloc.region.describe().read_only {
            return Err(Error::ReadOnly);
        }
        let service = Service::get().map_err(Error::mapping)?;
        let mechanism = service.mechanism(options.mechanism)?;
        let map_alignment = engine.alloc.region.map_alignment().unwrap_or(PAGE_SIZE);
        let pages =
            range.start / map_alignment * map_alignment / PAGE_SIZE..end.next_multiple_of(map_alignment) / PAGE_SIZE;
        let within = (pages.start * PAGE_SIZE % FRAME_SIZE) as usize;
        let bytes = usize::try_from((pages.end - pages.start) * PAGE_SIZE)
            .map_err(|_| Error::Invalid("longer than an address space"))?;
        let (shown, taken) = userfault::reserve(bytes, within).map_err(Error::mapping)?;
        let bounce = bounce_buffer::Guard::new(shown.clone());
        let area = Arc::new(Area::new(self, shown.start, pages, area::Settings { mode, atomic, mechanism }));
        let (offset, len) = (range.start, range.end - range.start);
        let mapping = Mapping { area, file: self.clone(), service, taken, offset, len, _bounce: bounce };
        mapping.start(engine)?;
        Ok(mapping)
    }
}

impl Mapping {
    pub(in crate::mmap) fn start(&self, engine: &Engine) -> Result<()> {
        self.service.trim_windows();
        self.service.add(Entry { area: self.area.clone(), file: self.file.clone() });
        let lock = engine.locks.write(&[self.area.ino]);
        let held = lock.of(self.area.ino);
        self.area.start().map_err(Error::mapping)?;
        engine.zero_tail(held)?;
        let rec = engine.alloc.inode(self.area.ino)?;
        let observer: Arc<dyn MappingObserver> = self.area.clone();
        engine.opens.watch(held, self.file.opened(), observer);
        let pieces = self.area.install_first(held, engine, &rec, AT_ONCE);
        self.service.note_window(&self.area, self.area.range(), pieces);
        Ok(())
    }

    /// The lock of the file's inode. `None` in a child, which changes only its own mapping.
    pub(in crate::mmap) fn lock(&self) -> Option<WriteGuards<'_>> {
        let engine = self.file.engine();
        engine.alloc.check_process().is_ok().then(|| engine.locks.write(&[self.area.ino]))
    }

    /// Bytes mapped.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Offset in the file of the first byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The file that is mapped.
    pub(crate) fn handle(&self) -> &FileHandle {
        &self.file
    }

    /// Address of the first byte, for system calls and foreign code that load. Valid for the lifetime of the
    /// mapping.
    ///
    /// Other threads and processes may store to the bytes, and pages may become inaccessible (SIGBUS, EFAULT): do
    /// not make references to them.
    pub fn as_ptr(&self) -> *const u8 {
        self.first_byte().cast_const()
    }

    /// As [`Mapping::as_ptr`], for stores. They have to be [flushed](Mapping::flush) like those of the methods.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for a mapping without stores: a store to this address would be SIGSEGV.
    pub fn as_mut_ptr(&self) -> Result<*mut u8> {
        match self.area.mode {
            MapMode::Read => Err(Error::ReadOnly),
            MapMode::Write | MapMode::Private => Ok(self.first_byte()),
        }
    }

    pub(in crate::mmap) fn first_byte(&self) -> *mut u8 {
        (self.area.base + (self.offset - self.area.first * PAGE_SIZE) as usize) as *mut u8
    }

    /// The mechanism that resolves its faults.
    pub fn mechanism(&self) -> MapMechanism {
        self.area.mechanism()
    }

    /// File pages of a range of the mapping.
    pub(in crate::mmap) fn pages(&self, range: Range<u64>) -> Result<Range<u64>> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::Invalid("a range outside the mapping"));
        }
        let (start, end) = (self.offset + range.start, self.offset + range.end);
        Ok(start / PAGE_SIZE..end.div_ceil(PAGE_SIZE).max(start / PAGE_SIZE))
    }

    /// Maps the pages of the range (in bytes of the mapping) as the file has them now. This ends [`Error::Revoked`]
    /// for pages that were punched or truncated away, and for pages that could not be allocated.
    pub fn refresh(&self, range: Range<u64>) -> Result<()> {
        let pages = self.pages(range)?;
        let _lock = self.lock();
        self.area.refresh(pages)
    }

    /// Allocates storage for the holes in the range now, so that later stores there neither block nor fail. Pages
    /// beyond the end of the file are skipped.
    pub fn populate(&self, range: Range<u64>) -> Result<()> {
        let pages = self.pages(range)?;
        if self.area.mode != MapMode::Write {
            return Err(Error::Invalid("storage is for a shared mapping with stores"));
        }
        let engine = self.file.engine();
        let lock = engine.locks.write(&[self.area.ino]);
        let held = lock.of(self.area.ino);
        let rec = engine.alloc.inode(self.area.ino)?;
        let end = pages.end.min(rec.size.div_ceil(PAGE_SIZE)).max(pages.start);
        self.allocate(held, pages.start..end, Stores::Follow)?;
        self.area.install(held, engine, &engine.alloc.inode(self.area.ino)?, pages);
        Ok(())
    }

    /// Allocates storage for these file pages, which lie before the end, where the media can map it.
    fn allocate(&self, held: InodeWrite<'_>, pages: Range<u64>, stores: Stores) -> Result<()> {
        let engine = self.file.engine();
        if self.area.map_alignment > 1 {
            let mut chunks = self.area.whole(pages).step_by(self.area.map_alignment as usize);
            chunks.try_for_each(|first| engine.make_contiguous(held, first, true))
        } else {
            engine.materialize(held, pages, stores)
        }
    }

    /// Allocates storage for those of these file pages that a backing reads as anything but zeros.
    fn fill_absent(&self, pages: Range<u64>) -> Result<()> {
        let (engine, ino) = (self.file.engine(), self.area.ino);
        let absent = || -> Result<Vec<Range<u64>>> {
            let rec = engine.alloc.inode(ino)?;
            let end = pages.end.min(rec.size.div_ceil(PAGE_SIZE)).max(pages.start);
            let spans = steps::spans(engine, &rec, pages.start..end, usize::MAX)?.into_iter();
            Ok(spans.filter(|(_, span)| span.needs_storage()).map(|(pages, _)| pages).collect())
        };
        let there_are = {
            let _lock = engine.locks.read(ino);
            !absent()?.is_empty()
        };
        if !there_are {
            return Ok(());
        }
        let lock = engine.locks.write(&[ino]);
        absent()?.into_iter().try_for_each(|pages| self.allocate(lock.of(ino), pages, Stores::No))
    }

    /// Keeps the pages of the range (in bytes of the mapping) from reuse until the pin is dropped, even if they are
    /// punched or truncated away meanwhile. For transfers by the kernel or a device that continue in the
    /// background. In a shared mapping with stores, holes get storage first. In any mapping, absent pages that a
    /// backing reads as anything but zeros get storage. Pages beyond the end of the file are skipped.
    pub fn pin(&self, range: Range<u64>) -> Result<Pin> {
        let pages = self.pages(range.clone())?;
        match self.area.mode {
            MapMode::Write => self.populate(range)?,
            MapMode::Read | MapMode::Private => self.fill_absent(pages.clone())?,
        }
        let engine = self.file.engine();
        let _lock = engine.locks.read(self.area.ino);
        let rec = engine.alloc.inode(self.area.ino)?;
        let end = pages.end.min(rec.size.div_ceil(PAGE_SIZE)).max(pages.start);
        let runs: Vec<Run> = steps::runs(engine, &rec, pages.start..end)?;
        runs.iter().for_each(|&run| engine.alloc.pin(run));
        Ok(Pin { file: self.file.clone(), runs })
    }

    /// Starts making stores to the range (in bytes of the mapping) durable; [`Mapping::drain`] completes it. On DAX
    /// media this writes cache lines back, without a system call. If the caches are inside the power-fail domain,
    /// and on memory, there is nothing to do. On an ordinary file the drain does all the work.
    ///
    /// Each thread has to drain its own flushes. [`Mapping::persist`] does both.
    pub fn flush(&self, range: Range<u64>) -> Result<()> {
        let (start, end) = (range.start, range.end);
        self.pages(range)?;
        if self.area.mode != MapMode::Write {
            return Ok(());
        }
        self.file.opened().touch();
        self.file.flush_stored(self.offset + start, end - start)
    }

    /// Waits until what this thread has flushed is durable (as far as the pool's media support it): a fence on DAX
    /// media, a sync of the file on ordinary files. It does not wait for flushes of other threads: the processor
    /// orders write-backs by the fences of the thread that issued them.
    pub fn drain(&self) -> Result<()> {
        let engine = self.file.engine();
        match engine.alloc.region.describe().durability {
            Durability::AtFence => {
                engine.alloc.region.fence();
                Ok(())
            }
            // All other media are durable at a sync.
            _ => self.file.sync(),
        }
    }

    /// Makes stores to the range (in bytes of the mapping) durable, whichever thread made them: a flush and a
    /// drain.
    pub fn persist(&self, range: Range<u64>) -> Result<()> {
        self.flush(range)?;
        self.drain()
    }

    /// An access at `addr` has faulted: returns the reason, or `Ok` if the access should be retried.
    pub(in crate::mmap) fn recover(&self, addr: usize, write: bool, tries: u32) -> Result<()> {
        let engine = self.file.engine();
        let error = |code| Err(Error::system("reaching memory")(std::io::Error::from_raw_os_error(code)));
        if !self.area.addr(&self.area.range()).contains(&addr) {
            // The caller's buffer.
            return error(libc::EFAULT);
        }
        let page = self.area.page_at(addr);
        if tries > 100 {
            // No error of the mapping: the memory itself has failed. A read of the file reports it.
            self.file.read_at(&mut [0; PAGE_SIZE as usize], page * PAGE_SIZE)?;
            // Except if the kernel had no huge page for a private copy: it reports that in the same way.
            let copy = write && self.area.mode == MapMode::Private && self.area.map_alignment > 1;
            return error(if copy { libc::ENOMEM } else { libc::EFAULT });
        }
        let lock = self.lock();
        if let Some(e) = self.area.take_error(page) {
            return Err(e);
        }
        if self.area.mechanism() == MapMechanism::Signals {
            let held = lock.as_ref().ok_or(Error::Forked)?.of(self.area.ino);
            answer::resolve_here(held, engine, &self.area, page, write)?;
        }
        Ok(())
    }
}

/// Keeps pages of a mapping from reuse; see [`Mapping::pin`]. May outlive the mapping.
#[derive(Debug)]
pub struct Pin {
    file: FileHandle,
    runs: Vec<Run>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let frames = &self.file.engine().alloc;
        // A child's pins belong to the parent. A child must not wait for a thread that does not exist in it.
        if frames.check_process().is_ok() {
            self.runs.iter().for_each(|&run| frames.unpin(run));
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let engine = self.file.engine();
        let here = engine.alloc.check_process().is_ok();
        if here {
            // Before it leaves the list: a child may request it at any moment.
            self.service.retire(Entry { area: self.area.clone(), file: self.file.clone() });
        }
        // Remove it from the list before unmapping: until then no other mapping can get these addresses.
        self.service.remove(&self.area);
        self.area.give_back(engine, self.taken.clone());
        if here {
            self.service.drop_retired();
        }
    }
}
