//! Stores through mappings, and when they become durable with their file.
//!
//! ```text
//!   Mapping::flush        a range: its cache lines, as they lie at this moment
//!   File::sync_all, Pool::sync, the last close     all that mappings could have stored to since
//! ```
//!
//! Only where the processor's cache is lost at a power cut and nothing else writes it back
//! ([`Granularity::CacheLine`]): elsewhere there is nothing to do, or the sync of the media does it.

use pmem::Granularity;

use crate::data::read::stretches;
use crate::engine::{Engine, InodeRead, InodeWrite};
use crate::error::Result;
use crate::layout::InodeRec;
use crate::units::{Ino, PAGE_SIZE};

impl Engine {
    /// Whether a store through a mapping stays in the processor's cache until it is flushed.
    pub(crate) fn stores_need_flush(&self) -> bool {
        self.alloc.region.describe().granularity == Granularity::CacheLine
    }

    /// Writes cache lines of storage in `[offset, offset + len)` back: durable after this thread's next fence.
    pub(crate) fn flush_stored(&self, ino: Ino, offset: u64, len: u64) -> Result<()> {
        if !self.stores_need_flush() {
            return Ok(());
        }
        let lock = self.locks.read(ino);
        self.flush_range(lock.held(), &self.alloc.inode(ino)?, offset, offset.saturating_add(len))
    }

    /// Makes everything durable that was stored through mappings of the file before.
    pub(crate) fn persist_stored(&self, ino: Ino) -> Result<()> {
        if !self.stores_need_flush() || !self.opens.has_stored(ino) {
            return Ok(());
        }
        // Exclusive: whoever is flushing them has fenced when this is locked.
        let lock = self.locks.write(&[ino]);
        self.persist_stored_locked(lock.of(ino))
    }

    /// As [`Engine::persist_stored`]; takes the lock of the chain itself.
    pub(crate) fn persist_stored_locked(&self, held: InodeWrite<'_>) -> Result<()> {
        let Some((open, stored)) = self.opens.begin_flush(held) else { return Ok(()) };
        let flushed = self.alloc.inode(held.ino()).and_then(|rec| {
            stored.iter().try_for_each(|pages| {
                let (from, end) = (pages.start.saturating_mul(PAGE_SIZE), pages.end.saturating_mul(PAGE_SIZE));
                self.flush_range(held.shared(), &rec, from, end)
            })
        });
        self.alloc.region.fence();
        open.end_flush(if flushed.is_ok() { Vec::new() } else { stored });
        flushed
    }

    /// What is borrowed counts: it may have been stored to before it was shared.
    fn flush_range(&self, held: InodeRead<'_>, rec: &InodeRec, from: u64, end: u64) -> Result<()> {
        debug_assert_eq!(held.ino(), rec.ino());
        let chain = self.chain(rec);
        stretches(&self.alloc, &chain, rec, from, end, |s| match s.pool() {
            Some(at) => Ok(self.alloc.region.flush(at, s.len)?),
            None => Ok(()),
        })
        .map(drop)
    }
}
