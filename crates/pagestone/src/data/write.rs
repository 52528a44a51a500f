//! Writing.
//!
//! ```text
//!   all of it over storage, inside the file      shared lock, stream, one fence: no transaction
//!   otherwise                                    exclusive lock:
//!       absent, shared   fresh pages, filled from the backing or the base where the        \
//!                        write does not reach                                              |  one fence
//!       behind the end   in place                                                         /
//!       old pages     stream in place, and a fence, once it is sure that the rest has room
//!       then one record: new runs, length, times
//! ```
//!
//! Bytes that are overwritten in place are not atomic beyond 8 bytes, as on any filesystem; what
//! is appended or fills a hole appears with its record or not at all.

use pmem::Part;
use smallvec::SmallVec;

use crate::attr::Time;
use crate::data::read::{Source, Stretch};
use crate::data::write_plan::{Take, write_in_tx};
use crate::engine::{Engine, InodeWrite, OpenInode};
use crate::error::{Error, Result};
use crate::extent::MAX_LEN;
use crate::extent::extent_map::in_tx;
use crate::layout::InodeRec;
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE};

/// Bytes that one transaction writes at most.
const STEP: u64 = 8 << 20;

/// Parts of one persist call.
pub(crate) type Parts<'b> = SmallVec<[Part<'b>; 8]>;

/// Where a write goes.
pub(crate) enum Target {
    /// At this offset.
    At(u64),
    /// At the end, wherever that is once the lock is held.
    End,
}

impl Engine {
    /// Writes all of `bytes`; returns the offset they went to.
    pub(crate) fn write(&self, ino: Ino, open: &OpenInode, target: Target, bytes: &[u8]) -> Result<u64> {
        if let Target::At(offset) = target {
            check_end(offset, bytes.len())?;
            if bytes.is_empty() || self.overwrite(ino, open, offset, bytes)? {
                return Ok(offset);
            }
        }
        let lock = self.locks.write(&[ino]);
        let held = lock.of(ino);
        let old_len = self.alloc.inode(ino)?.size;
        let start = match target {
            Target::At(offset) => offset,
            Target::End => old_len,
        };
        check_end(start, bytes.len())?;
        if bytes.is_empty() {
            return Ok(start);
        }
        let observers = self.opens.observers(ino);
        let written = self.write_locked(held, open, start, bytes);
        // Also after a failure: the steps before it have happened. A page with the old end may be
        // the file's own only now.
        let (first, end) = (start.min(old_len) / PAGE_SIZE, start + bytes.len() as u64);
        if first < start / PAGE_SIZE {
            self.notify_mappings(held, &observers, old_len, first..first + 1)?;
        }
        let pages = start / PAGE_SIZE..end.div_ceil(PAGE_SIZE);
        observers.iter().for_each(|w| w.changed(held.shared(), std::slice::from_ref(&pages)));
        self.notify_mappings(held, &observers, old_len, pages)?;
        written.map(|()| start)
    }

    fn write_locked(&self, held: InodeWrite<'_>, open: &OpenInode, start: u64, bytes: &[u8]) -> Result<()> {
        let ino = held.ino();
        let old_len = self.alloc.inode(ino)?.size;
        let zeroed = self.zero_before_growing(held, old_len, start)?;
        let mut done = 0u64;
        while done < bytes.len() as u64 {
            let offset = start + done;
            let len = (STEP - offset % STEP).min(bytes.len() as u64 - done);
            let part = &bytes[done as usize..(done + len) as usize];
            let pages = offset / PAGE_SIZE..(offset + len).div_ceil(PAGE_SIZE);
            let mut write = |tx: &mut Tx<'_>| {
                let mut rec = tx.inode(ino)?;
                let written = write_in_tx(tx, &mut rec, offset, part, zeroed, Take::Ahead)?;
                rec.touch(Time::now());
                tx.put_inode(&rec)?;
                Ok(written)
            };
            let written = self.with_lost_page_evacuated(held, pages, || self.alloc.attempt(false, &mut write))?;
            written.ahead.into_iter().for_each(|pages| open.note_ahead(held, pages));
            done += written.len;
        }
        open.clear_touched();
        Ok(())
    }

    /// The quick way: everything lies over storage and inside the file.
    fn overwrite(&self, ino: Ino, open: &OpenInode, offset: u64, bytes: &[u8]) -> Result<bool> {
        let len = bytes.len() as u64;
        let lock = self.locks.read(ino);
        let mut parts = Parts::new();
        let mut needs_storage = false;
        let reached = self.open_stretches(&lock, open, (offset, len), |s| {
            match s.source {
                // The long way gives whole pages new storage.
                Source::Own(at) if self.alloc.region.first_lost(at, s.len).is_some() => needs_storage = true,
                Source::Own(at) => parts.push(Part::Bytes { at, bytes: within(bytes, offset, &s) }),
                Source::Shared(_) | Source::Absent(_) => needs_storage = true,
            }
            Ok(())
        })?;
        if needs_storage || reached < offset + len {
            return Ok(false);
        }
        self.alloc.journal.check_latch()?;
        match self.alloc.region.persist(&parts).map_err(Error::from) {
            Err(Error::Lost(_)) => return Ok(false),
            done => done?,
        }
        open.touch();
        open.notify_changed(lock.held(), offset / PAGE_SIZE..(offset + len).div_ceil(PAGE_SIZE));
        Ok(true)
    }
}

fn within<'b>(bytes: &'b [u8], offset: u64, s: &Stretch) -> &'b [u8] {
    &bytes[(s.offset - offset) as usize..][..s.len as usize]
}

pub(crate) fn check_end(offset: u64, len: usize) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= MAX_LEN => Ok(()),
        _ => Err(Error::FileTooLarge),
    }
}

/// Parts that zero what the file owns in `[from, to)`.
pub(crate) fn zero_owned(tx: &Tx<'_>, rec: &InodeRec, from: u64, to: u64, parts: &mut Parts<'_>) -> Result<()> {
    let map = in_tx(tx, rec);
    let mut at = from;
    while at < to {
        let Some(m) = map.first_after(at / PAGE_SIZE)? else { break };
        if m.is_void() {
            at = m.end().saturating_mul(PAGE_SIZE);
            continue;
        }
        let start = at.max(m.file_page * PAGE_SIZE);
        let stop = to.min(m.end().saturating_mul(PAGE_SIZE));
        if start >= stop {
            break;
        }
        let pool = m.run.page.byte() + (start - m.file_page * PAGE_SIZE);
        parts.push(Part::Zero { at: pool, len: stop - start });
        at = stop;
    }
    Ok(())
}
