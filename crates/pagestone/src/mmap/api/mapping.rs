//! A range of a file in this process's address space: how it is made, and what a program may do with it.

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

/// Pieces of storage that are mapped when the mapping is made; of a file in more pieces, the rest
/// is mapped as it is touched.
const AT_ONCE: usize = 1000;

/// How a range is mapped.
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

    /// Answers faults this way. Without it the mapping takes the best that the system allows.
    #[must_use]
    pub fn mechanism(mut self, mechanism: MapMechanism) -> MapOptions {
        self.mechanism = Some(mechanism);
        self
    }

    /// Whether stores reach the file.
    pub(crate) fn stores_reach_file(&self) -> bool {
        self.write && !self.private
    }

    fn lend(&self) -> MapMode {
        match (self.write, self.private) {
            (true, false) => MapMode::Write,
            (true, true) => MapMode::Private,
            (false, _) => MapMode::Read,
        }
    }
}

/// A range of a file in this process's address space; unmapped when dropped. `Send + Sync`.
///
/// Its pages are the pool's: there is no copy, a store is visible to every other mapping and
/// reader at once, and durable as [`Mapping::flush`] and [`Mapping::drain`] say. The file stays
/// while it is mapped, also when its last name goes.
///
/// Others may store to the same bytes at any time, so no reference to them is ever made: bytes are
/// copied in and out, words are atomic. A page may also go away under a mapping: the methods then
/// answer [`Error::Revoked`] (it was punched or truncated away) or [`Error::BeyondEnd`]; a raw
/// pointer ([`Mapping::as_ptr`]) meets SIGBUS there, as with any mapped file.
#[derive(Debug)]
pub struct Mapping {
    pub(in crate::mmap) area: Arc<Area>,
    pub(in crate::mmap) file: FileHandle,
    pub(in crate::mmap) service: &'static Service,
    /// All address space that was taken.
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

    /// As [`FileHandle::map`]; `atomic`: what is stored there is committed or forgotten, not kept.
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
        let lend = options.lend();
        if lend == MapMode::Write && engine.alloc.region.describe().read_only {
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
        let area = Arc::new(Area::new(self, shown.start, pages, area::How { lend, atomic, mechanism }));
        let (offset, len) = (range.start, range.end - range.start);
        let mapping = Mapping { area, file: self.clone(), service, taken, offset, len, _bounce: bounce };
        mapping.start(engine)?;
        Ok(mapping)
    }
}

impl Mapping {
    pub(in crate::mmap) fn start(&self, engine: &Engine) -> Result<()> {
        self.service.keep_few();
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

    /// The file's lock; a child has no use for it, and only its own mapping to change.
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

    /// Address of the first byte, for system calls and foreign code that load; valid while the mapping is.
    ///
    /// Others may store to the bytes, and pages may go away (SIGBUS, EFAULT): make no references.
    pub fn as_ptr(&self) -> *const u8 {
        self.first_byte().cast_const()
    }

    /// As [`Mapping::as_ptr`], for stores, which have to be [flushed](Mapping::flush) like those of the methods.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for a mapping without stores: one to this address would end the process (SIGSEGV).
    pub fn as_mut_ptr(&self) -> Result<*mut u8> {
        match self.area.lend {
            MapMode::Read => Err(Error::ReadOnly),
            MapMode::Write | MapMode::Private => Ok(self.first_byte()),
        }
    }

    pub(in crate::mmap) fn first_byte(&self) -> *mut u8 {
        (self.area.base + (self.offset - self.area.first * PAGE_SIZE) as usize) as *mut u8
    }

    /// How its faults are answered.
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

    /// Pages of the range (bytes of the mapping) that were punched or truncated away are the
    /// file's again, as it is now; so are those that could not be given storage. Until then they
    /// are [`Error::Revoked`].
    pub fn refresh(&self, range: Range<u64>) -> Result<()> {
        let pages = self.pages(range)?;
        let _lock = self.lock();
        self.area.refresh(pages)
    }

    /// Takes storage for the holes in the range now, so that later stores there neither wait nor
    /// fail. Pages behind the end of the file are left out.
    pub fn populate(&self, range: Range<u64>) -> Result<()> {
        let pages = self.pages(range)?;
        if self.area.lend != MapMode::Write {
            return Err(Error::Invalid("storage is for a shared mapping with stores"));
        }
        let engine = self.file.engine();
        let lock = engine.locks.write(&[self.area.ino]);
        let held = lock.of(self.area.ino);
        let rec = engine.alloc.inode(self.area.ino)?;
        let end = pages.end.min(rec.size.div_ceil(PAGE_SIZE)).max(pages.start);
        self.give_storage(held, pages.start..end, Stores::Follow)?;
        self.area.install(held, engine, &engine.alloc.inode(self.area.ino)?, pages);
        Ok(())
    }

    /// Storage for these pages of the file, which lie in front of its end, where it can be mapped.
    fn give_storage(&self, held: InodeWrite<'_>, pages: Range<u64>, stores: Stores) -> Result<()> {
        let engine = self.file.engine();
        if self.area.map_alignment > 1 {
            let mut chunks = self.area.whole(pages).step_by(self.area.map_alignment as usize);
            chunks.try_for_each(|first| engine.make_contiguous(held, first, true))
        } else {
            engine.materialize(held, pages, stores)
        }
    }

    /// Storage for those of these file pages that a backing answers with anything but zeros.
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
        absent()?.into_iter().try_for_each(|pages| self.give_storage(lock.of(ino), pages, Stores::No))
    }

    /// Keeps the pages of the range (bytes of the mapping) from reuse until the pin is dropped, also
    /// if they are punched or truncated away meanwhile: for transfers by the kernel or a device
    /// that go on in the background. Holes of a shared mapping with stores get storage first, and so does
    /// what a backing answers with anything but zeros, in any mapping; pages behind the end of the file are left out.
    pub fn pin(&self, range: Range<u64>) -> Result<Pin> {
        let pages = self.pages(range.clone())?;
        match self.area.lend {
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

    /// Starts making stores to the range (bytes of the mapping) durable; [`Mapping::drain`] ends
    /// it. On DAX media this writes cache lines back and is never a system call; with caches
    /// inside the power-fail domain, and on memory, there is nothing to do. On an ordinary file
    /// the drain does it all.
    ///
    /// Each thread drains what it has flushed itself; see [`Mapping::persist`] for both in one.
    pub fn flush(&self, range: Range<u64>) -> Result<()> {
        let (start, end) = (range.start, range.end);
        self.pages(range)?;
        if self.area.lend != MapMode::Write {
            return Ok(());
        }
        self.file.opened().touch();
        self.file.flush_stored(self.offset + start, end - start)
    }

    /// What this thread has flushed before is durable on return (as far as the pool's media promise anything): a fence
    /// on DAX media, a sync of the file on ordinary files. What another thread has flushed is not waited for: the
    /// processor orders write-backs by the fences of the thread that started them.
    pub fn drain(&self) -> Result<()> {
        let engine = self.file.engine();
        match engine.alloc.region.describe().durability {
            Durability::AtFence => {
                engine.alloc.region.fence();
                Ok(())
            }
            // Whatever else there may be is durable at a sync.
            _ => self.file.sync(),
        }
    }

    /// Stores to the range (bytes of the mapping) are durable on return, whichever thread made them: a flush and a drain.
    pub fn persist(&self, range: Range<u64>) -> Result<()> {
        self.flush(range)?;
        self.drain()
    }

    /// Something could not be reached at `addr`: why, or `Ok` if it is worth another try.
    pub(in crate::mmap) fn recover(&self, addr: usize, write: bool, tries: u32) -> Result<()> {
        let engine = self.file.engine();
        let error = |code| Err(Error::system("reaching memory")(std::io::Error::from_raw_os_error(code)));
        if !self.area.addr(&self.area.range()).contains(&addr) {
            // The caller's own side of the copy.
            return error(libc::EFAULT);
        }
        let page = self.area.page_at(addr);
        if tries > 100 {
            // Nothing of ours is wrong there: the memory itself is, as the file will say.
            self.file.read_at(&mut [0; PAGE_SIZE as usize], page * PAGE_SIZE)?;
            // Unless the kernel had no huge page for a private copy: it has no other way to say so.
            let copy = write && self.area.lend == MapMode::Private && self.area.map_alignment > 1;
            return error(if copy { libc::ENOMEM } else { libc::EFAULT });
        }
        let lock = self.lock();
        if let Some(e) = self.area.why(page) {
            return Err(e);
        }
        if self.area.mechanism() == MapMechanism::Signals {
            let held = lock.as_ref().ok_or(Error::Forked)?.of(self.area.ino);
            answer::answer_here(held, engine, &self.area, page, write)?;
        }
        Ok(())
    }
}

/// Keeps pages of a mapping from reuse; see [`Mapping::pin`]. Outlives the mapping if need be.
#[derive(Debug)]
pub struct Pin {
    file: FileHandle,
    runs: Vec<Run>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let frames = &self.file.engine().alloc;
        // A child's pins are the parent's: it must not wait for a thread that it does not have.
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
            // Before it leaves the other list: a child may ask for it at any moment.
            self.service.retire(Entry { area: self.area.clone(), file: self.file.clone() });
        }
        // Off the list while the addresses are still ours: nobody else can have the same.
        self.service.remove(&self.area);
        self.area.give_back(engine, self.taken.clone());
        if here {
            self.service.drop_retired();
        }
    }
}
