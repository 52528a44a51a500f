//! What one transaction writes to a file: each part of the bytes with its place, before anything is stored.
//!
//! ```text
//!   old end     offset                    end
//!      |  zeros   | head| own  |  absent  |own|tail|          own: in place, stored last
//!      '----------'     '------'----------'---'               absent, shared: fresh pages, filled around the bytes
//! ```

use std::ops::Range;

use pmem::Part;
use smallvec::SmallVec;

use crate::alloc::{Run, TxResult};
use crate::backing::Contents;
use crate::data::preallocate::free_pages_in;
use crate::data::write::{Parts, zero_owned};
use crate::error::{Error, Result};
use crate::extent::extent_map::{self, in_tx};
use crate::extent::resolve::{Span, page_below};
use crate::layout::InodeRec;
use crate::txn::{Fresh, Tx};
use crate::units::{PAGE_SIZE, PAGES_PER_FRAME};

/// What one transaction has written.
pub(crate) struct Written {
    /// Bytes: all of them, or up to the end of a page.
    pub(crate) len: u64,
    /// Pages beyond the end of the file that were taken ahead of need.
    pub(super) ahead: Option<Range<u64>>,
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
    let around = Around::read(tx, rec, offset, offset + bytes.len() as u64)?;
    let mut plan = WritePlan::new(&around, offset, bytes);
    if offset > rec.size {
        plan.pass_old_end(tx, rec, zeroed)?;
    }
    plan.find_storage(tx, rec, take)?;
    plan.carry_out(tx, rec)
}

/// Where the bytes of one transaction go. Nothing is stored before it is complete: a write that finds no room must not
/// have changed a byte.
struct WritePlan<'b> {
    around: &'b Around,
    offset: u64,
    bytes: &'b [u8],
    /// The end of what is written; less than `bytes` reach if the record would grow too long.
    end: u64,
    /// Stored first: what nobody can see before the record.
    unseen: Parts<'b>,
    /// Stored last: what is overwritten in place.
    in_place: Parts<'b>,
    fresh: SmallVec<[Fresh; 4]>,
    ahead: Option<Range<u64>>,
}

impl<'b> WritePlan<'b> {
    fn new(around: &'b Around, offset: u64, bytes: &'b [u8]) -> WritePlan<'b> {
        let end = offset + bytes.len() as u64;
        let (unseen, in_place, fresh) = (Parts::new(), Parts::new(), SmallVec::new());
        WritePlan { around, offset, bytes, end, unseen, in_place, fresh, ahead: None }
    }

    /// What the file owns between its old end and the write becomes zeros, and the page with the old end its own.
    fn pass_old_end(&mut self, tx: &mut Tx<'_>, rec: &InodeRec, zeroed: u64) -> TxResult<()> {
        zero_owned(tx, rec, rec.size.max(zeroed), self.offset, &mut self.unseen)?;
        if let Some((page, contents)) = &self.around.old_end {
            let f = tx.reserve_data(rec.owner(), *page, 1, false)?;
            self.unseen.push(contents.part(f.run.page.byte(), 0..PAGE_SIZE));
            self.fresh.push(f);
        }
        Ok(())
    }

    /// Finds storage for every page: the file's own, or fresh pages.
    fn find_storage(&mut self, tx: &mut Tx<'_>, rec: &mut InodeRec, take: Take) -> TxResult<()> {
        let (mut page, last) = (self.offset / PAGE_SIZE, self.end.div_ceil(PAGE_SIZE));
        while page < last {
            let span = in_tx(tx, rec).span(page)?;
            if let Span::Own(run) = span {
                match part_before_lost(tx, run.first(last - page)) {
                    Some(run) => page = self.store_in_place(rec, page, run),
                    None => unmap_lost_page(tx, rec, page, (self.offset, self.end))?,
                }
                continue;
            }
            if !self.fresh.is_empty() && !tx.has_room(8 << 10) {
                self.end = page * PAGE_SIZE;
                break;
            }
            page = self.take_pages(tx, rec, (page, last), span, take)?;
        }
        Ok(())
    }

    /// The bytes of the pages from `page` on that lie on `run`; returns the page behind them.
    fn store_in_place(&mut self, rec: &InodeRec, page: u64, run: Run) -> u64 {
        let stop = page + run.pages;
        let (from, to) = (self.offset.max(page * PAGE_SIZE), self.end.min(stop * PAGE_SIZE));
        let at = run.page.byte() + (from - page * PAGE_SIZE);
        let bytes = &self.bytes[(from - self.offset) as usize..(to - self.offset) as usize];
        // Nobody sees what lies behind the old end until the record: it goes with the fresh pages. What lies between
        // the old end and the write is zeroed; what lies behind the write stays behind the end.
        let list = if from < rec.size { &mut self.in_place } else { &mut self.unseen };
        list.push(Part::Bytes { at, bytes });
        stop
    }

    /// Fresh pages for those of `page .. last` that `span` has no storage for; returns the page behind them.
    fn take_pages(
        &mut self,
        tx: &mut Tx<'_>,
        rec: &InodeRec,
        (page, last): (u64, u64),
        span: Span,
        take: Take,
    ) -> TxResult<u64> {
        let want = span.pages().min(last - page);
        let whole = takes_whole_frame(rec, page, span, want, self.end, take);
        let f = tx.reserve_data(rec.owner(), page, want, whole)?;
        let stop = (page + f.run.pages).min(last);
        if stop < page + f.run.pages {
            self.ahead = Some(stop..page + f.run.pages);
        }
        self.around.define(&f, stop, (self.offset, self.bytes), rec.size.max(self.end), &mut self.unseen);
        self.fresh.push(f);
        Ok(stop)
    }

    /// Stores the parts, and lets the record have the fresh pages and the new length.
    fn carry_out(mut self, tx: &mut Tx<'_>, rec: &mut InodeRec) -> TxResult<Written> {
        if self.fresh.is_empty() {
            // Nothing is left that could be refused: all of it with one fence.
            self.in_place.append(&mut self.unseen);
        }
        for durable in tx.fill(self.fresh, &self.unseen)? {
            extent_map::insert(tx, rec, durable)?;
        }
        tx.fill(SmallVec::new(), &self.in_place)?;
        rec.size = rec.size.max(self.end);
        Ok(Written { len: self.end - self.offset, ahead: self.ahead })
    }
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

    /// The parts that give fresh pages their contents up to page `stop`: the bytes written, and around
    /// them what the file had there; zeros behind them as far as the file reaches.
    fn define<'b>(&'b self, f: &Fresh, stop: u64, (offset, bytes): (u64, &'b [u8]), len: u64, parts: &mut Parts<'b>) {
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
