//! Extents of a file, pinned: they stay where they are, and are not reused, while somebody outside the engine reads them.
//!
//! ```text
//!   file      [ a ][ b ].....[ c ]            extents of one list, however long each is; a gap is a hole
//!   pins        x    x         x              dropped with the list
//! ```

use std::ops::Deref;
use std::sync::atomic::AtomicBool;

use pmem::Transfer;
use pmem::direct::{DirectFile, Direction};

use crate::alloc::Run;
use crate::attr::Extent;
use crate::data::read::{Source, Stretch, stretches};
use crate::engine::EngineRef;
use crate::error::{Error, Result};
use crate::units::{Ino, PAGE_SIZE, PageNo};

/// The extents of a file's range, in order; what lies between two of them reads as zeros. The storage is not reused while this
/// exists; no lock is held.
///
/// A writer that overwrites in place changes what is read here. A file that must not change meanwhile is a clone that nobody
/// has open.
#[derive(Debug)]
#[must_use = "the storage is valid only while this exists"]
pub struct PinnedExtents {
    engine: EngineRef,
    extents: Vec<Extent>,
    pinned: Vec<Run>,
}

impl PinnedExtents {
    /// The extents of `[offset, end)`, as far as the file reaches.
    pub(crate) fn of(engine: &EngineRef, ino: Ino, offset: u64, end: u64) -> Result<PinnedExtents> {
        let lock = engine.locks.read(ino);
        let rec = engine.alloc.inode(lock.held().ino())?;
        let chain = engine.chain(&rec);
        let mut list = PinnedExtents { engine: engine.clone(), extents: Vec::new(), pinned: Vec::new() };
        stretches(&engine.alloc, &chain, &rec, offset, end.min(rec.size), |s| list.push(&s))?;
        Ok(list)
    }

    fn push(&mut self, s: &Stretch) -> Result<()> {
        let (pool, shared) = match s.source {
            Source::Own(at) => (at, false),
            Source::Shared(at) => (at, true),
            Source::Absent(answer) if answer.is_zeros() => return Ok(()),
            Source::Absent(_) => return Err(Error::NotSupported("the extents of a file with a backing")),
        };
        let alloc = &self.engine.alloc;
        if let Some(lost) = alloc.region.first_lost(pool, s.len) {
            return Err(s.lost(Error::Lost(lost)));
        }
        let first = PageNo(pool / PAGE_SIZE);
        let run = Run { page: first, pages: (pool + s.len).div_ceil(PAGE_SIZE) - first.0 };
        alloc.pin(run);
        self.pinned.push(run);
        self.extents.push(Extent { offset: s.offset, pool, len: s.len, shared });
        Ok(())
    }

    /// Writes the extents to a file or device, each byte at its offset in this file plus `shift`. Nothing is copied, and the
    /// page cache is not used as far as the target allows that. Returns when no byte is in flight. Waits for the target.
    ///
    /// # Errors
    /// [`Error::Media`] with what the system says, also of the kind `Interrupted` after `cancel` is set; [`Error::Lost`].
    pub fn write_to(&self, to: &DirectFile, shift: u64, cancel: &AtomicBool) -> Result<()> {
        let transfer = |e: &Extent| Transfer { at: e.pool, len: e.len, offset: e.offset + shift };
        let transfers: Vec<Transfer> = self.extents.iter().map(transfer).collect();
        Ok(self.engine.alloc.region.transfer(to, Direction::Write, &transfers, cancel)?)
    }
}

impl Deref for PinnedExtents {
    type Target = [Extent];
    fn deref(&self) -> &[Extent] {
        &self.extents
    }
}

impl Drop for PinnedExtents {
    fn drop(&mut self) {
        self.pinned.iter().for_each(|&run| self.engine.alloc.unpin(run));
    }
}
