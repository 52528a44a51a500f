//! Failure-atomic mappings: stores stay in private copies until a commit writes all of them to the file.
//!
//! ```text
//!   store     the kernel copies the page; the file keeps the old one
//!   commit    find the copies (pagemap.rs)
//!             --> File::write_atomic: all of them, durable and visible at once, or none
//!             --> drop the copies; the next access maps the file's new pages
//!   discard   drop the copies
//! ```
//!
//! A commit costs time in proportion to the pages changed, plus a scan of the page tables that are present.

use std::ops::{Deref, Range};

use pmem::{Durability, fault_tolerant};

use crate::data::{FileHandle, Reach};
use crate::error::{Error, Result};
use crate::mmap::MapOptions;
use crate::mmap::Mapping;
use crate::mmap::kernel::pagemap;
use crate::units::PAGE_SIZE;

/// A mapping whose stores reach the file at [`AtomicMapping::commit`], all of them or none, however many they are.
/// Loads and stores are those of [`Mapping`]. A commit needs exclusive access to the mapping.
///
/// If it is dropped without a commit, or the system crashes, the file is unchanged. Whole pages are committed: if
/// the file's page has changed since this mapping stored to it, the commit fails with [`Error::Conflict`].
#[derive(Debug)]
pub struct AtomicMapping {
    mapping: Mapping,
    /// Pieces that commits have mapped singly since everything was unmapped last.
    pieces: usize,
}

/// Limit on pieces that commits map singly. Beyond it, everything is unmapped instead.
const MAX_PIECES: usize = 1000;
/// Limit on pages that are pinned for a mapping. Beyond it, everything is unmapped.
const MAX_PINNED: u64 = 256;

impl FileHandle {
    /// See [`File::map_atomic`](crate::File::map_atomic).
    pub(crate) fn map_atomic(&self, range: Range<u64>) -> Result<AtomicMapping> {
        if self.engine().alloc.region.describe().read_only {
            return Err(Error::ReadOnly);
        }
        self.map_as(range, &MapOptions::private(), true).map(|mapping| AtomicMapping { mapping, pieces: 0 })
    }
}

impl Deref for AtomicMapping {
    type Target = Mapping;
    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}

impl AtomicMapping {
    /// Writes all stores since the last commit to the file, durable on return. Returns the number of pages written.
    /// Readers of the file and other mappings see all of them or none. Stores beyond the end that the file has at
    /// the commit are dropped: a commit does not undo a truncate.
    ///
    /// No stores through a raw pointer may be in progress.
    ///
    /// # Errors
    /// [`Error::NoSpace`] and errors of the media: the file is unchanged. The stores are kept, for another attempt
    /// or [`AtomicMapping::discard`].
    ///
    /// [`Error::Conflict`]: another commit or another call (write, punch, zero) has changed a page after this
    /// mapping stored to it. The file is unchanged and the stores are kept, but another attempt fails too: discard,
    /// and repeat the stores on the file's new contents. Stores through shared mappings are not calls and are not
    /// detected: the commit overwrites them.
    ///
    /// On an ordinary file the last step is a sync. If only that fails, the file has the stores, their durability
    /// is unknown, and the pool takes no more changes.
    pub fn commit(&mut self) -> Result<u64> {
        let pages = self.changed()?;
        let (file, area) = (&self.mapping.file, &self.mapping.area);
        let size = file.attr()?.size;
        let mut parts = Vec::with_capacity(pages.len());
        for range in &pages {
            let (at, end) = (range.start * PAGE_SIZE, (range.end * PAGE_SIZE).min(size));
            if at < end {
                parts.push((at, self.copy(range.start, (end - at) as usize)?));
            }
        }
        let parts: Vec<(u64, &[u8])> = parts.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        let engine = file.engine();
        if parts.is_empty() {
            let lock = self.mapping.lock();
            let held = lock.as_ref().ok_or(Error::Forked)?.of(area.ino);
            area.check_conflict(held, &pages, engine.alloc.inode(file.ino())?.size)?;
        }
        let replace = || {
            engine.replace_atomic(file.ino(), &parts, |held, rec| {
                area.check_conflict(held, &pages, rec.size)?;
                Ok(Reach::StaysWithin)
            })
        };
        match replace() {
            // Perhaps by this mapping, for its own pages. No thread stores to it during a commit.
            Err(Error::Pinned) if self.release_pins()? => replace()?,
            done => done?,
        }
        let syncs = engine.alloc.region.describe().durability == Durability::AtSync;
        // The file has the stores, whatever fails from here on.
        let shown = self.map_committed(&pages);
        self.mapping.area.forget_changes();
        if syncs {
            self.mapping.file.sync()?;
        }
        shown?;
        Ok(pages.iter().map(|range| range.end - range.start).sum())
    }

    /// Maps the file's new pages in place of the committed copies, so that the next store to one of them causes no
    /// fault of this library. If there are many, or many were mapped before, everything becomes unresolved instead:
    /// each piece may become a kernel mapping.
    fn map_committed(&mut self, pages: &[Range<u64>]) -> Result<()> {
        self.pieces += pages.len();
        if self.pieces > MAX_PIECES || self.mapping.area.pinned() > MAX_PINNED && self.can_unpin() {
            return self.discard();
        }
        let (area, engine) = (&self.mapping.area, self.mapping.file.engine());
        let lock = self.mapping.lock();
        let held = lock.as_ref().ok_or(Error::Forked)?.of(area.ino);
        let rec = engine.alloc.inode(area.ino)?;
        for range in pages {
            area.install(held, engine, &rec, range.clone());
            self.mapping.service.note_window(area, range.clone(), 2);
        }
        Ok(())
    }

    /// Discards all stores since the last commit: the mapping shows the file as it is.
    pub fn discard(&mut self) -> Result<()> {
        let lock = self.mapping.lock();
        self.mapping.area.take_down(self.mapping.area.range(), true).map_err(Error::mapping)?;
        self.mapping.area.forget_changes();
        // In a child nothing is pinned, and threads that do not exist there may hold locks.
        if lock.is_some() && self.can_unpin() {
            self.mapping.area.unpin(self.mapping.file.engine());
        }
        self.pieces = 0;
        Ok(())
    }

    fn release_pins(&self) -> Result<bool> {
        let lock = self.mapping.lock();
        let held = lock.as_ref().ok_or(Error::Forked)?.of(self.mapping.area.ino);
        Ok(self.mapping.area.release_pins(held, self.mapping.file.engine()))
    }

    /// Whether no child may still map the pinned pages.
    fn can_unpin(&self) -> bool {
        self.mapping.area.links.lock().is_empty()
    }

    /// File pages that were stored to since the last commit.
    fn changed(&self) -> Result<Vec<Range<u64>>> {
        let area = &self.mapping.area;
        let here = area.addr(&area.range());
        let pages_of = |found: Vec<Range<usize>>| {
            let pages = |range: Range<usize>| (area.page_at(range.start), range.len() as u64 / PAGE_SIZE);
            found.into_iter().map(pages).map(|(first, count)| first..first + count).collect()
        };
        if let Some(found) = pagemap::private_copies(here.clone(), area.dax).map_err(Error::mapping)? {
            return Ok(pages_of(found));
        }
        // The kernel does not distinguish copies from pages that were only read.
        let perhaps: Vec<Range<u64>> = pages_of(pagemap::maybe_private(here).map_err(Error::mapping)?);
        let differs = |page| self.differs(page).map(|differs| differs.then_some(page..page + 1)).transpose();
        perhaps.into_iter().flatten().filter_map(differs).collect()
    }

    /// Whether a page differs from the file's.
    fn differs(&self, page: u64) -> Result<bool> {
        let mut there = vec![0; PAGE_SIZE as usize];
        let len = self.mapping.file.read_at(&mut there, page * PAGE_SIZE)?;
        Ok(self.copy(page, len)? != there[..len])
    }

    /// Bytes of the mapping, starting at a file page.
    fn copy(&self, page: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let from = self.mapping.area.addr(&(page..page + 1)).start as *const u8;
        // SAFETY: the buffer is valid and exclusive; the source lies in this mapping, and no thread stores to it
        // during a commit.
        self.mapping.retry_faults(false, || unsafe { fault_tolerant::copy(bytes.as_mut_ptr(), from, len) })?;
        Ok(bytes)
    }
}
