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

use std::ops::Range;

use pmem::Part;
use smallvec::SmallVec;

use crate::alloc::{Run, TxResult};
use crate::attr::Time;
use crate::backing::Contents;
use crate::data::preallocate::free_pages_in;
use crate::data::read::{Place, Stretch};
use crate::engine::{Engine, InodeWrite, OpenInode};
use crate::error::{Error, Result};
use crate::extent::MAX_LEN;
use crate::extent::extent_map::{self, in_tx};
use crate::extent::resolve::{Span, page_below};
use crate::layout::InodeRec;
use crate::txn::{Fresh, Tx};
use crate::units::{Ino, PAGE_SIZE, PAGES_PER_FRAME};

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
            match s.place {
                // The long way gives whole pages new storage.
                Place::Own(at) if self.alloc.region.first_lost(at, s.len).is_some() => needs_storage = true,
                Place::Own(at) => parts.push(Part::Bytes { at, bytes: within(bytes, offset, &s) }),
                Place::Shared(_) | Place::Absent(_) => needs_storage = true,
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

/// What one transaction has written.
pub(crate) struct Written {
    /// Bytes: all of them, or up to the end of a page.
    pub(crate) len: u64,
    /// Pages beyond the end of the file that were taken ahead of need.
    ahead: Option<Range<u64>>,
}

/// How many pages a write takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Take {
    /// Those it writes to.
    Exactly,
    /// A whole frame, too, where a file grows into its next one.
    Ahead,
}

/// Writes within a transaction: storage in place, holes into fresh pages, all before the record.
/// Stops early where free space lies in so many pieces that the record would grow too long. Up to `zeroed` what the
/// file owns behind its end is zeros already.
pub(crate) fn write_in_tx(
    tx: &mut Tx<'_>,
    rec: &mut InodeRec,
    offset: u64,
    bytes: &[u8],
    zeroed: u64,
    take: Take,
) -> TxResult<Written> {
    let mut end = offset + bytes.len() as u64;
    let around = Around::read(tx, rec, offset, end)?;
    // What goes in place is stored last: a write that finds no room must not have changed a byte.
    let (mut parts, mut own) = (Parts::new(), Parts::new());
    let mut fresh: SmallVec<[Fresh; 4]> = SmallVec::new();
    let mut ahead = None;
    if offset > rec.size {
        zero_owned(tx, rec, rec.size.max(zeroed), offset, &mut parts)?;
        around.old_end(tx, rec, &mut fresh, &mut parts)?;
    }
    let (mut page, last) = (offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
    while page < last {
        let span = in_tx(tx, rec).span(page)?;
        if let Span::Own(run) = span {
            let run = run.first(last - page);
            let Some(run) = part_before_lost(tx, run) else {
                unmap_lost_page(tx, rec, page, (offset, end))?;
                continue;
            };
            let stop = page + run.pages;
            let (from, to) = (offset.max(page * PAGE_SIZE), end.min(stop * PAGE_SIZE));
            let at = run.page.byte() + (from - page * PAGE_SIZE);
            // Nobody sees what lies behind the old end until the record: it goes with the fresh pages.
            let list = if from < rec.size { &mut own } else { &mut parts };
            list.push(Part::Bytes { at, bytes: &bytes[(from - offset) as usize..(to - offset) as usize] });
            // What lies behind the old end, in front of what is written, was zeroed above;
            // behind the write it stays behind the end.
            page = stop;
            continue;
        }
        if !fresh.is_empty() && !tx.has_room(8 << 10) {
            end = page * PAGE_SIZE;
            break;
        }
        let want = span.pages().min(last - page);
        let whole = takes_whole_frame(rec, page, span, want, end, take);
        let f = tx.reserve_data(rec.owner(), page, want, whole)?;
        let stop = (page + f.run.pages).min(last);
        ahead = (stop < page + f.run.pages).then_some(stop..page + f.run.pages).or(ahead);
        around.define(&f, stop, offset, bytes, rec.size.max(end), &mut parts);
        page = stop;
        fresh.push(f);
    }
    if fresh.is_empty() {
        // Nothing is left that could be refused: all of it with one fence.
        own.append(&mut parts);
    }
    for durable in tx.fill(fresh, &parts)? {
        extent_map::insert(tx, rec, durable)?;
    }
    tx.fill(SmallVec::new(), &own)?;
    rec.size = rec.size.max(end);
    Ok(Written { len: end - offset, ahead })
}

/// The part of a run, which is not empty, in front of its first lost page.
fn part_before_lost(tx: &Tx<'_>, run: Run) -> Option<Run> {
    match tx.alloc().region.first_lost(run.page.byte(), run.pages * PAGE_SIZE) {
        None => Some(run),
        Some(at) => Some(run.first((at - run.page.byte()) / PAGE_SIZE)).filter(|run| run.pages > 0),
    }
}

/// Takes a lost page out of the map, so that a write that covers all that the file has there gives it
/// other storage.
fn unmap_lost_page(tx: &mut Tx<'_>, rec: &mut InodeRec, page: u64, (from, to): (u64, u64)) -> TxResult<()> {
    let (start, end) = (page * PAGE_SIZE, ((page + 1) * PAGE_SIZE).min(rec.size));
    if from > start || to < end {
        return Err(Error::DataLost(start).into());
    }
    free_pages_in(tx, rec, page, page + 1).map(drop)
}

/// Whether absent or shared pages get a whole frame: the write covers it, or it is appended to a file that has
/// outgrown its first frame, so that big files lie in whole, aligned frames.
fn takes_whole_frame(rec: &InodeRec, page: u64, span: Span, want: u64, end: u64, take: Take) -> bool {
    let aligned = page.is_multiple_of(PAGES_PER_FRAME) && span.pages() >= PAGES_PER_FRAME;
    let free = take == Take::Ahead && span.is_hole() && page > 0;
    let appends = free && page * PAGE_SIZE >= rec.size / PAGE_SIZE * PAGE_SIZE && end >= rec.size;
    aligned && (want >= PAGES_PER_FRAME || (appends && page * PAGE_SIZE <= rec.size.next_multiple_of(PAGE_SIZE)))
}

/// Pages without storage that a write reaches only in part: what the file has there.
struct Around {
    head: Contents,
    tail: Contents,
    /// The page with the old end of the file, if the write begins behind it and the page is no hole.
    old_end: Option<(u64, Contents)>,
}

impl Around {
    fn read(tx: &Tx<'_>, rec: &InodeRec, offset: u64, end: u64) -> Result<Around> {
        let partly = |at: u64| match at.is_multiple_of(PAGE_SIZE) {
            true => Ok(Contents::default()),
            false => page_below(tx, rec, at / PAGE_SIZE),
        };
        let old = rec.size / PAGE_SIZE;
        let old_end = if old < offset / PAGE_SIZE { partly(rec.size)? } else { Contents::default() };
        let old_end = (!old_end.is_zeros()).then_some((old, old_end));
        Ok(Around { head: partly(offset)?, tail: partly(end)?, old_end })
    }

    /// Makes the page with the old end the file's own before the length passes it.
    fn old_end<'b>(
        &'b self,
        tx: &mut Tx<'_>,
        rec: &InodeRec,
        fresh: &mut SmallVec<[Fresh; 4]>,
        parts: &mut Parts<'b>,
    ) -> TxResult<()> {
        if let Some((page, contents)) = &self.old_end {
            let f = tx.reserve_data(rec.owner(), *page, 1, false)?;
            parts.push(contents.part(f.run.page.byte(), 0..PAGE_SIZE));
            fresh.push(f);
        }
        Ok(())
    }

    /// The parts that give fresh pages their contents up to page `stop`: the bytes written, and around
    /// them what the file had there; zeros behind them as far as the file reaches.
    fn define<'b>(&'b self, f: &Fresh, stop: u64, offset: u64, bytes: &'b [u8], len: u64, parts: &mut Parts<'b>) {
        let page = f.file_page;
        let end = offset + bytes.len() as u64;
        let at = |byte: u64| f.run.page.byte() + (byte - page * PAGE_SIZE);
        let (first, behind) = (page * PAGE_SIZE, stop * PAGE_SIZE);
        let (from, mut to) = (offset.max(first), end.min(behind));
        if from > first {
            parts.push(self.head.part(at(first), 0..from - first));
        }
        parts.push(Part::Bytes { at: at(from), bytes: &bytes[(from - offset) as usize..(to - offset) as usize] });
        if to == end && !self.tail.is_zeros() {
            parts.push(self.tail.part(at(to), to % PAGE_SIZE..PAGE_SIZE));
            to = to.next_multiple_of(PAGE_SIZE);
        }
        let reach = len.min((page + f.run.pages) * PAGE_SIZE).max(behind);
        if to < reach {
            parts.push(Part::Zero { at: at(to), len: reach - to });
        }
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
