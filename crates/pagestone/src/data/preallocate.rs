//! Storage ahead of writes, zeros in place of bytes, and holes: the modes of fallocate.
//!
//! ```text
//!   allocate     absent pages get storage that reads as before
//!   zero_range   absent and shared pages get storage; all of the range reads as zeros
//!   punch        whole pages become holes; the parts of pages at both ends are zeroed
//! ```

use pmem::Part;
use smallvec::SmallVec;

use crate::alloc::TxResult;
use crate::attr::Time;
use crate::backing::Contents;
use crate::data::partial_pages::copy_up;
use crate::data::truncate::{grow, regular};
use crate::data::write::{Parts, zero_owned};
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Result};
use crate::extent::MAX_LEN;
use crate::extent::extent_map::{self, in_tx};
use crate::extent::resolve::{Span, cover_with_void};
use crate::layout::InodeRec;
use crate::txn::{Fresh, Tx};
use crate::units::{FRAME_SIZE, Ino, PAGE_SIZE, PAGES_PER_FRAME};

/// Pages that one transaction allocates at most.
const STEP: u64 = 16 * PAGES_PER_FRAME;
/// Bytes of contents that one transaction copies or reads at most, besides the last run.
pub(crate) const MEMORY: u64 = 4 * FRAME_SIZE;

impl Engine {
    /// Storage, zeroed where there was none, for `[offset, offset + len)`.
    pub(crate) fn allocate(&self, ino: Ino, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.provide(ino, offset, len, keep_size, false)
    }

    /// Makes the range read as zeros and keeps, or takes, storage for it.
    pub(crate) fn zero_range(&self, ino: Ino, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.provide(ino, offset, len, keep_size, true)
    }

    /// Storage for a range, in one record as long as that is enough; with `zeros` for what is there, too.
    fn provide(&self, ino: Ino, offset: u64, len: u64, keep_size: bool, zeros: bool) -> Result<()> {
        let end = end_of(offset, len)?;
        let lock = self.locks.write(&[ino]);
        let held = lock.of(ino);
        let observers = self.opens.observers(ino);
        let old_len = self.alloc.inode(ino)?.size;
        self.opens.claim_ahead(ino, &(offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE)));
        let provided = self.provide_locked(held, offset, end, keep_size, zeros);
        // Also after a failure: the steps before it have happened.
        let pages = offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE);
        if zeros {
            observers.iter().for_each(|w| w.changed(held.shared(), std::slice::from_ref(&pages)));
        }
        self.notify_mappings(held, &observers, old_len, pages).and(provided)
    }

    fn provide_locked(&self, held: InodeWrite<'_>, offset: u64, end: u64, keep_size: bool, zeros: bool) -> Result<()> {
        let ino = held.ino();
        let _chain = self.chain_of(held)?;
        let enough = {
            let (free, kept) = self.alloc.space();
            let rec = self.alloc.inode(ino)?;
            (end - offset) / PAGE_SIZE <= free.saturating_sub(kept) + rec.pages + rec.borrowed()
        };
        if !enough {
            return Err(Error::NoSpace);
        }
        let old_len = self.alloc.inode(ino)?.size;
        let mut zeroed = old_len;
        if !keep_size && end > old_len {
            // All of it, before this call allocates more: that is zeroed as it is allocated.
            let from = self.zero_before_growing(held, old_len, end)?;
            self.zero_behind_end(held, from, end)?;
            zeroed = end;
        }
        let (mut page, last) = (offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        while page < last {
            let stop = last.min((page / STEP + 1) * STEP);
            page = self.alloc.transact(false, |tx| {
                let mut rec = regular(tx, ino)?;
                let grows = !keep_size && end > rec.size && stop == last;
                let within = end.min(rec.size);
                if zeros {
                    copy_up(tx, &mut rec, offset, end)?;
                }
                if grows {
                    grow(tx, &mut rec, end, zeroed)?;
                }
                let zeros = zeros.then_some((offset, within));
                let reached = allocate_pages(tx, &mut rec, page, stop, zeros)?;
                if reached == last {
                    rec.size = if grows { end } else { rec.size };
                    rec.touch(Time::now());
                }
                tx.put_inode(&rec)?;
                Ok(reached)
            })?;
        }
        Ok(())
    }

    /// Takes the storage of `[offset, offset + len)` away; whole pages become holes, parts zeros.
    pub(crate) fn punch(&self, ino: Ino, offset: u64, len: u64) -> Result<()> {
        let end = end_of(offset, len)?;
        let lock = self.locks.write(&[ino]);
        let held = lock.of(ino);
        let observers = self.opens.observers(ino);
        let old_len = self.alloc.inode(ino)?.size;
        let (first, last) = (offset.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
        let whole = first..last.max(first);
        let punched = self.with_invalidated(held, &observers, whole, || self.punch_locked(held, offset, end));
        // Pages that are zeroed in part: those that were borrowed are the file's own now.
        let (head, tail) = (offset / PAGE_SIZE..first.max(offset / PAGE_SIZE), last..end.div_ceil(PAGE_SIZE));
        for part in [&head, &tail] {
            observers.iter().for_each(|w| w.changed(held.shared(), std::slice::from_ref(part)));
        }
        // They may be zeroed even if the rest has failed.
        punched?;
        self.notify_mappings(held, &observers, old_len, head)?;
        self.notify_mappings(held, &observers, old_len, tail)
    }

    fn punch_locked(&self, held: InodeWrite<'_>, offset: u64, end: u64) -> Result<()> {
        let ino = held.ino();
        let (first, last) = (offset.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
        let mut to = Some(last);
        while let Some(stop) = to {
            let mut punch = |tx: &mut Tx<'_>| {
                let mut rec = regular(tx, ino)?;
                let mut parts = Parts::new();
                // Behind the end of the file nothing has to be zero, and what is there may be inside
                // the file again after a power cut that undoes an unsynced truncate.
                let within = end.min(rec.size);
                copy_up(tx, &mut rec, offset, within)?;
                zero_owned(tx, &rec, offset, within.min(first * PAGE_SIZE), &mut parts)?;
                if last >= first {
                    zero_owned(tx, &rec, offset.max(last * PAGE_SIZE), within, &mut parts)?;
                }
                tx.fill(SmallVec::new(), &parts)?;
                let rest = if stop > first { free_pages_in(tx, &mut rec, first, stop)? } else { None };
                rec.touch(Time::now());
                tx.put_inode(&rec)?;
                Ok(rest)
            };
            to = self.with_lost_page_evacuated(held, first..stop, || self.alloc.attempt(true, &mut punch))?;
        }
        Ok(())
    }
}

fn end_of(offset: u64, len: u64) -> Result<u64> {
    if len == 0 {
        return Err(Error::Invalid("a range of no bytes"));
    }
    offset.checked_add(len).filter(|&end| end <= MAX_LEN).ok_or(Error::FileTooLarge)
}

/// Makes holes of the pages in `[first, stop)`, from the back; returns how far it came if not all.
pub(crate) fn free_pages_in(tx: &mut Tx<'_>, rec: &mut InodeRec, first: u64, stop: u64) -> TxResult<Option<u64>> {
    let before = in_tx(tx, rec).borrowed_in(first, stop)?;
    let rest = extent_map::remove(tx, rec, first, stop)?;
    let reached = rest.unwrap_or(first);
    cover_with_void(tx, rec, reached, stop)?;
    let after = in_tx(tx, rec).borrowed_in(first, reached)?;
    rec.set_borrowed(rec.borrowed().saturating_sub(before.saturating_sub(after)));
    Ok(rest)
}

/// Storage for what is absent in `[page, stop)`, as many pages as one record takes; returns how far. They read as before.
/// With `zeros` also for what is shared, and all of it reads as zeros in that range of bytes.
fn allocate_pages(
    tx: &mut Tx<'_>,
    rec: &mut InodeRec,
    mut page: u64,
    stop: u64,
    zeros: Option<(u64, u64)>,
) -> TxResult<u64> {
    let mut fresh: SmallVec<[Fresh; 4]> = SmallVec::new();
    let (mut contents, mut memory): (SmallVec<[Contents; 4]>, u64) = (SmallVec::new(), 0);
    let mut parts = Parts::new();
    while page < stop && tx.has_room(16 << 10) && memory < MEMORY {
        match in_tx(tx, rec).span(page)? {
            Span::Own(run) => {
                let behind = page + run.pages.min(stop - page);
                if let Some((from, to)) = zeros {
                    let (from, to) = (from.max(page * PAGE_SIZE), to.min(behind * PAGE_SIZE));
                    let at = run.page.byte() + from.saturating_sub(page * PAGE_SIZE);
                    parts.extend((from < to).then(|| Part::Zero { at, len: to - from }));
                }
                page = behind;
            }
            Span::Shared(run) if zeros.is_none() => page += run.pages.min(stop - page),
            span => {
                let most = if zeros.is_none() && span.needs_storage() { PAGES_PER_FRAME } else { u64::MAX };
                let want = span.pages().min(stop - page).min(most);
                let whole = want >= PAGES_PER_FRAME && page.is_multiple_of(PAGES_PER_FRAME);
                let f = tx.reserve_data(rec.owner(), page, want, whole)?;
                let begins = match zeros {
                    None => span.contents(tx.alloc(), page, f.run.pages, rec.size)?,
                    Some(_) => Contents::default(),
                };
                memory += begins.memory();
                contents.push(begins);
                page += f.run.pages;
                fresh.push(f);
            }
        }
    }
    parts.extend(fresh.iter().zip(&contents).map(|(f, c)| c.part(f.run.page.byte(), 0..f.run.pages * PAGE_SIZE)));
    for durable in tx.fill(fresh, &parts)? {
        extent_map::insert(tx, rec, durable)?;
    }
    Ok(page)
}
