//! Failure-atomic mappings: stores stay in private copies until a commit makes all of them the file's.
//!
//! ```text
//!   store     the kernel copies the page; the file has the old one
//!   commit    which pages are copies?  (pages.rs)
//!             --> File::write_atomic: all of them, durable and visible at once, or none
//!             --> the copies go; the next touch maps the file's new pages
//!   discard   the copies go
//! ```
//!
//! The cost is that of the pages changed; finding them costs a look at the page tables that are there.

use std::ops::{Deref, Range};

use pmem::{Durability, fault_tolerant};

use crate::data::{FileHandle, Reach};
use crate::error::{Error, Result};
use crate::mmap::MapOptions;
use crate::mmap::Mapping;
use crate::mmap::kernel::pagemap;
use crate::units::PAGE_SIZE;

/// A mapping whose stores reach the file at [`AtomicMapping::commit`], however many, all of them or
/// none. Loads and stores are those of [`Mapping`]; a commit has the mapping for itself.
///
/// Dropped without commit, or after a crash, the file is as it was. Pages are committed whole: where somebody else has
/// changed a page since this mapping stored to it, its commit is [`Error::Conflict`].
#[derive(Debug)]
pub struct AtomicMapping {
    mapping: Mapping,
    /// Pieces that commits have mapped one by one since everything was taken down last.
    pieces: usize,
}

/// Pieces that commits map one by one, before everything is taken down.
const MOST_PIECES: usize = 1000;
/// Pages that are pinned for a mapping, before everything is taken down.
const MOST_PINNED: u64 = 256;

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
    /// Makes all stores since the last commit the file's, durable on return; returns how many pages that were.
    /// Readers of the file and other mappings see all of them or none. Stores behind the end that the file has at the
    /// commit are dropped: what a truncate has cut off stays so.
    ///
    /// Stores through a raw pointer must not go on meanwhile.
    ///
    /// # Errors
    /// [`Error::NoSpace`] and whatever the media say: the file is as it was, and the stores are
    /// still here, for another try or [`AtomicMapping::discard`].
    ///
    /// [`Error::Conflict`]: another commit or any other call (write, punch, zero) has changed a page after this mapping
    /// had stored to it. As before, but only a discard helps: the stores are to be made again on what the file has
    /// now. Stores through shared mappings are no calls, and go unnoticed: they are overwritten.
    ///
    /// On an ordinary file the last step is a sync. If only that fails, the stores are the file's, and not known to be
    /// durable; the pool takes no more changes then.
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
            // By this mapping perhaps, to show them: nobody stores to it now.
            Err(Error::Pinned) if self.release_pins()? => replace()?,
            done => done?,
        }
        let syncs = engine.alloc.region.describe().durability == Durability::AtSync;
        // The stores are the file's, whatever fails from here on.
        let shown = self.show_committed(&pages);
        self.mapping.area.forget_changes();
        if syncs {
            self.mapping.file.sync()?;
        }
        shown?;
        Ok(pages.iter().map(|range| range.end - range.start).sum())
    }

    /// Maps the file's new pages in place of the copies that were committed, so that the next store to one of them is
    /// no fault of ours. Where they are many, or have been, everything waits for its next touch instead: each piece
    /// may be a mapping of its own to the kernel.
    fn show_committed(&mut self, pages: &[Range<u64>]) -> Result<()> {
        self.pieces += pages.len();
        if self.pieces > MOST_PIECES || self.mapping.area.pinned() > MOST_PINNED && self.can_unpin() {
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

    /// Forgets all stores since the last commit: the mapping shows the file as it is.
    pub fn discard(&mut self) -> Result<()> {
        let lock = self.mapping.lock();
        self.mapping.area.take_down(self.mapping.area.range(), true).map_err(Error::mapping)?;
        self.mapping.area.forget_changes();
        // In a child nothing is pinned, and locks may be held by threads that it does not have.
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

    /// Whether no child may go on showing what is pinned.
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
        let perhaps: Vec<Range<u64>> = pages_of(pagemap::perhaps_private(here).map_err(Error::mapping)?);
        let differs = |page| self.differs(page).map(|differs| differs.then_some(page..page + 1)).transpose();
        perhaps.into_iter().flatten().filter_map(differs).collect()
    }

    /// Whether a page is other here than in the file.
    fn differs(&self, page: u64) -> Result<bool> {
        let mut there = vec![0; PAGE_SIZE as usize];
        let len = self.mapping.file.read_at(&mut there, page * PAGE_SIZE)?;
        Ok(self.copy(page, len)? != there[..len])
    }

    /// Bytes of the mapping from a file page on.
    fn copy(&self, page: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let from = self.mapping.area.addr(&(page..page + 1)).start as *const u8;
        // SAFETY: the buffer is valid and exclusive; the source lies in this mapping, which nobody
        // stores to during a commit.
        self.mapping.until_reached(false, || unsafe { fault_tolerant::copy(bytes.as_mut_ptr(), from, len) })?;
        Ok(bytes)
    }
}
