//! Length and allocation: truncate, fallocate's modes, and where data and holes are.

use pmem::Part;
use smallvec::SmallVec;

use crate::alloc::{Allocator, TxResult};
use crate::attr::{Extent, Kind, Time};
use crate::backing::Contents;
use crate::data::read::{Place, stretches};
use crate::data::write::{Parts, zero_owned};
use crate::engine::{Engine, InodeWrite, OpenInode};
use crate::error::{Error, Result};
use crate::extent::MAX_LEN;
use crate::extent::extent_map::{self, Map, in_tx};
use crate::extent::resolve::{Span, cover_with_void, page_below};
use crate::layout::InodeRec;
use crate::txn::{Fresh, Tx};
use crate::units::{FRAME_SIZE, Ino, PAGE_SIZE, PAGES_PER_FRAME};

/// Bytes behind the end that one transaction zeros at most.
const ZEROED: u64 = 8 << 20;
/// Pages that one transaction allocates at most.
const STEP: u64 = 16 * PAGES_PER_FRAME;
/// Bytes of contents that one transaction copies or reads at most, besides the last run.
pub(crate) const MEMORY: u64 = 4 * FRAME_SIZE;

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
    fn zero_behind_end(&self, held: InodeWrite<'_>, from: u64, to: u64) -> Result<()> {
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

    /// First offset from `offset` on that is data, or (`data` false) a hole.
    pub(crate) fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        let _lock = self.locks.read(ino);
        let rec = self.alloc.inode(ino)?;
        if offset >= rec.size {
            return Err(Error::NoData);
        }
        let _chain = self.chain(&rec);
        let map = Map { nodes: &self.alloc, alloc: &self.alloc, rec: &rec };
        let mut at = offset;
        while at < rec.size {
            let page = at / PAGE_SIZE;
            let span = map.span(page)?;
            if data != span.is_hole() {
                return Ok(at);
            }
            at = page.saturating_add(span.pages()).saturating_mul(PAGE_SIZE);
        }
        if data { Err(Error::NoData) } else { Ok(rec.size) }
    }

    /// The runs with storage in a range, up to the end of the file.
    pub(crate) fn extents(&self, ino: Ino, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let _lock = self.locks.read(ino);
        let rec = self.alloc.inode(ino)?;
        let chain = self.chain(&rec);
        let end = offset.saturating_add(len).min(rec.size);
        let mut out = Vec::new();
        stretches(&self.alloc, &chain, &rec, offset, end, |s| {
            let shared = matches!(s.place, Place::Shared(_));
            out.extend(s.pool().map(|pool| Extent { offset: s.offset, pool, len: s.len, shared }));
            Ok(())
        })?;
        Ok(out)
    }
}

fn end_of(offset: u64, len: u64) -> Result<u64> {
    if len == 0 {
        return Err(Error::Invalid("a range of no bytes"));
    }
    offset.checked_add(len).filter(|&end| end <= MAX_LEN).ok_or(Error::FileTooLarge)
}

pub(crate) fn regular(tx: &Tx<'_>, ino: Ino) -> Result<InodeRec> {
    let rec = tx.inode(ino)?;
    match rec.kind() {
        Some(Kind::File) => Ok(rec),
        Some(Kind::Dir) => Err(Error::IsDirectory),
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

/// Gives storage to the pages in which `[from, to)` begins or ends in the middle, where a base or a backing has bytes
/// of them.
fn copy_up(tx: &mut Tx<'_>, rec: &mut InodeRec, from: u64, to: u64) -> TxResult<()> {
    for at in [from, to] {
        if from >= to || at.is_multiple_of(PAGE_SIZE) {
            continue;
        }
        let contents = page_below(tx, rec, at / PAGE_SIZE)?;
        if contents.is_zeros() {
            continue;
        }
        let f = tx.reserve_data(rec.owner(), at / PAGE_SIZE, 1, false)?;
        let part = contents.part(f.run.page.byte(), 0..PAGE_SIZE);
        for durable in tx.fill(smallvec::smallvec![f], &[part])? {
            extent_map::insert(tx, rec, durable)?;
        }
    }
    Ok(())
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
