//! The length of a file.
//!
//! ```text
//!   shorter   one record: the new length, and extents behind it from the back; more records until none is left
//!   longer    bytes of the file's own pages behind the old end are zeroed; one record: the new length
//! ```

use smallvec::SmallVec;

use crate::alloc::{Allocator, TxResult};
use crate::attr::{FileType, Time};
use crate::data::partial_pages::copy_up;
use crate::data::write::{Parts, zero_owned};
use crate::engine::{Engine, InodeWrite, OpenInode};
use crate::error::{Error, Result};
use crate::extent::MAX_LEN;
use crate::extent::extent_map::{self, Map, in_tx};
use crate::layout::InodeRec;
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE};

/// Bytes behind the end that one transaction zeros at most.
const ZEROED: u64 = 8 << 20;

impl Engine {
    /// Sets the length.
    pub(crate) fn set_len_locked(&self, held: InodeWrite<'_>, len: u64, now: Time) -> Result<()> {
        let ino = held.ino();
        if len > MAX_LEN {
            return Err(Error::FileTooLarge);
        }
        let observers = self.opens.observers(ino);
        if observers.is_empty() {
            return self.set_len_unwatched(held, len, now);
        }
        let (old, first) = (self.alloc.inode(ino)?.size, len.div_ceil(PAGE_SIZE));
        if len < old {
            self.with_invalidated(held, &observers, first..u64::MAX, || self.set_len_unwatched(held, len, now))?;
            observers.iter().for_each(|w| w.shortened(held, len));
        } else {
            self.set_len_unwatched(held, len, now)?;
        }
        self.notify_mappings(held, &observers, old, 0..0)
    }

    fn set_len_unwatched(&self, held: InodeWrite<'_>, len: u64, now: Time) -> Result<()> {
        let ino = held.ino();
        let first = len.div_ceil(PAGE_SIZE);
        let mut to = Some(u64::MAX);
        // The first record sets the length; what is freed by later ones lies behind the end.
        let old_len = self.alloc.inode(ino)?.size;
        let shorter = len <= old_len;
        let zeroed = self.zero_before_growing(held, old_len, len)?;
        if shorter {
            self.opens.claim_ahead(ino, &(first..u64::MAX));
        }
        while let Some(end) = to {
            let mut cut = |tx: &mut Tx<'_>| {
                let mut rec = regular(tx, ino)?;
                if len > rec.size {
                    grow(tx, &mut rec, len, zeroed)?;
                }
                let shrinks = len < rec.size || end != u64::MAX;
                forget_base_from(tx, &mut rec, first)?;
                rec.size = len;
                rec.touch(now);
                let rest = if shrinks { extent_map::remove(tx, &mut rec, first, end)? } else { None };
                tx.put_inode(&rec)?;
                Ok(rest)
            };
            to = self.with_lost_page_evacuated(held, first..end, || self.alloc.attempt(shorter, &mut cut))?;
        }
        Ok(())
    }

    /// Zeros what the file owns from its end on, in records of a few MiB, so that no lane is held for as long as it
    /// takes to zero all that was allocated behind the end. The last few MiB before `to` are left to the record that
    /// lets the length pass them; returns where they begin. The length stays.
    pub(crate) fn zero_before_growing(&self, held: InodeWrite<'_>, len: u64, to: u64) -> Result<u64> {
        let mut from = len;
        loop {
            let rec = self.alloc.inode(held.ino())?;
            let map = Map { nodes: &self.alloc, alloc: &self.alloc, rec: &rec };
            let stop = after_owned(&map, from, to, ZEROED)?;
            if stop >= to {
                return Ok(from);
            }
            self.zero_behind_end(held, from, stop)?;
            from = stop;
        }
    }

    /// Zeros what the file owns in `[from, to)`, which lies behind its end.
    pub(super) fn zero_behind_end(&self, held: InodeWrite<'_>, from: u64, to: u64) -> Result<()> {
        self.alloc.transact(true, |tx| {
            let mut rec = regular(tx, held.ino())?;
            zero(tx, &rec, from, to)?;
            // A record that says that data has changed: the one that sets the length counts only after it.
            rec.touch(Time::now());
            tx.put_inode(&rec)
        })
    }

    /// Gives back pages behind the end that were taken ahead of need, and nothing that somebody has asked for. A
    /// mapping may show the pages around the end that can only be mapped with it: they stay.
    pub(crate) fn trim_locked(&self, held: InodeWrite<'_>, open: &OpenInode) -> Result<()> {
        let (ino, ahead) = (held.ino(), open.take_ahead(held));
        let step = self.alloc.region.map_alignment().map_or(1, |bytes| bytes / PAGE_SIZE);
        let end = self.alloc.inode(ino)?.size.div_ceil(PAGE_SIZE);
        let first = end.next_multiple_of(step).max(ahead.start);
        if first >= ahead.end {
            return Ok(());
        }
        self.alloc.transact(true, |tx| {
            let mut rec = regular(tx, ino)?;
            extent_map::remove(tx, &mut rec, first, ahead.end)?;
            tx.put_inode(&rec)
        })
    }
}

pub(crate) fn regular(tx: &Tx<'_>, ino: Ino) -> Result<InodeRec> {
    let rec = tx.inode(ino)?;
    match rec.kind() {
        Some(FileType::File) => Ok(rec),
        Some(FileType::Dir) => Err(Error::IsDirectory),
        _ => Err(Error::Invalid("not a regular file")),
    }
}

/// Zeros what the file has between its end and `len`, before the length passes it; up to `zeroed` that was done
/// before ([`Engine::zero_before_growing`]).
pub(crate) fn grow(tx: &mut Tx<'_>, rec: &mut InodeRec, len: u64, zeroed: u64) -> TxResult<()> {
    copy_up(tx, rec, rec.size, len.min(rec.size.next_multiple_of(PAGE_SIZE)))?;
    zero(tx, rec, rec.size.max(zeroed), len)
}

/// Where the file, from `from` on, has had `most` bytes of its own; `to` at the latest.
fn after_owned(map: &Map<'_, Allocator>, from: u64, to: u64, mut most: u64) -> Result<u64> {
    let mut at = from;
    while at < to {
        let Some(m) = map.first_after(at / PAGE_SIZE)? else { break };
        let start = at.max(m.file_page * PAGE_SIZE);
        let stop = to.min(m.end().saturating_mul(PAGE_SIZE)).max(start);
        if !m.is_void() {
            if stop - start > most {
                return Ok(start + most);
            }
            most -= stop - start;
        }
        at = stop;
    }
    Ok(to)
}

/// Zeros what the file owns in `[from, to)`.
fn zero(tx: &mut Tx<'_>, rec: &InodeRec, from: u64, to: u64) -> TxResult<()> {
    let mut parts = Parts::new();
    zero_owned(tx, rec, from, to, &mut parts)?;
    tx.fill(SmallVec::new(), &parts).map(drop)
}

/// From `first` on neither the base nor the backing answers any more.
pub(crate) fn forget_base_from(tx: &mut Tx<'_>, rec: &mut InodeRec, first: u64) -> TxResult<()> {
    if first < rec.base_pages {
        let gone = if first == 0 { rec.borrowed() } else { in_tx(tx, rec).borrowed_in(first, rec.base_pages)? };
        rec.set_borrowed(rec.borrowed().saturating_sub(gone));
        rec.base_pages = first;
    }
    Ok(())
}
