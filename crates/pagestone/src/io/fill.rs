//! Bytes of a file or device into storage behind the end of a file, which then reaches over them.
//!
//! ```text
//!   locked     storage for the range, behind the end: it means nothing      one record, or a few
//!   unlocked   the bytes, straight into it; fenced                          pinned meanwhile
//!   locked     the same storage still? one record: the length               else refused, nothing has happened
//! ```
//!
//! So a slow source is waited for without a lock and outside transactions, and a crash leaves the file as it was or with
//! all of the range.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use pmem::Transfer;
use pmem::direct::{DirectFile, Direction};
use smallvec::SmallVec;

use crate::alloc::Run;
use crate::attr::Time;
use crate::data::truncate::regular;
use crate::data::write::check_end;
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Result};
use crate::extent::extent_map::{self, Map, in_tx};
use crate::extent::resolve::Span;
use crate::txn::{Fresh, Tx};
use crate::units::{Ino, PAGE_SIZE, PAGES_PER_FRAME};

/// What of a record the reservation of one run leaves to the rest.
const ROOM: u64 = 16 << 10;

/// Bytes of a file or device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'s> {
    pub(crate) file: &'s DirectFile,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Pages that are kept from reuse.
struct Pinned<'e> {
    engine: &'e Engine,
    runs: Vec<Run>,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.runs.iter().for_each(|&run| self.engine.alloc.unpin(run));
    }
}

impl Engine {
    /// Lets the file, whose end lies between two pages, go on with bytes of a source. One record that counts, or none.
    pub(crate) fn extend_from(&self, ino: Ino, source: Source<'_>, cancel: &AtomicBool) -> Result<()> {
        if source.len == 0 {
            return Ok(());
        }
        let (start, pages, storage) = self.storage_behind_end(ino, source.len)?;
        let mut at = source.offset;
        let end = at + source.len;
        let transfers = storage.runs.iter().map(|run| {
            let len = (run.pages * PAGE_SIZE).min(end - at);
            at += len;
            Transfer { at: run.page.byte(), len, offset: at - len }
        });
        self.alloc.region.transfer(source.file, Direction::Read, &transfers.collect::<Vec<_>>(), cancel)?;
        let lock = self.locks.write(&[ino]);
        let held = lock.of(ino);
        if self.alloc.inode(ino)?.size != start || self.own_runs(held, pages.clone())? != storage.runs {
            return Err(Error::Busy);
        }
        let observers = self.opens.observers(ino);
        self.alloc.transact(false, |tx| {
            let mut rec = regular(tx, ino)?;
            rec.size = start + source.len;
            rec.touch(Time::now());
            tx.publish_data();
            tx.put_inode(&rec)
        })?;
        self.notify_mappings(held, &observers, start, pages)
    }

    /// Storage for so many bytes behind the end of the file: the end, its pages, and where they lie.
    fn storage_behind_end(&self, ino: Ino, len: u64) -> Result<(u64, Range<u64>, Pinned<'_>)> {
        let lock = self.locks.write(&[ino]);
        let held = lock.of(ino);
        let start = self.alloc.inode(ino)?.size;
        if !start.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Invalid("a file that ends within a page cannot go on from here"));
        }
        check_end(start, usize::try_from(len).map_err(|_| Error::FileTooLarge)?)?;
        let pages = start / PAGE_SIZE..(start + len).div_ceil(PAGE_SIZE);
        self.opens.claim_ahead(ino, &pages);
        let mut page = pages.start;
        while page < pages.end {
            page = self.alloc.transact(false, |tx| take_pages(tx, ino, page, pages.end))?;
        }
        let runs = self.own_runs(held, pages.clone())?;
        runs.iter().try_for_each(|run| self.alloc.region.reserve(run.page.byte(), run.pages * PAGE_SIZE))?;
        runs.iter().for_each(|&run| self.alloc.pin(run));
        Ok((start, pages, Pinned { engine: self, runs }))
    }

    /// Where pages of a file lie that it has itself, as far as it has them.
    fn own_runs(&self, held: InodeWrite<'_>, pages: Range<u64>) -> Result<Vec<Run>> {
        let rec = self.alloc.inode(held.ino())?;
        let map = Map { nodes: &self.alloc, alloc: &self.alloc, rec: &rec };
        let (mut runs, mut page) = (Vec::new(), pages.start);
        while page < pages.end {
            let Span::Own(run) = map.span(page)? else { break };
            let run = run.first(pages.end - page);
            page += run.pages;
            runs.push(run);
        }
        Ok(runs)
    }
}

/// Storage for the pages `[page, stop)`, which lie behind the end, as many as one record takes; returns how far. What it holds
/// means nothing.
fn take_pages(tx: &mut Tx<'_>, ino: Ino, mut page: u64, stop: u64) -> crate::alloc::TxResult<u64> {
    let mut rec = regular(tx, ino)?;
    let mut fresh: SmallVec<[Fresh; 4]> = SmallVec::new();
    while page < stop && tx.has_room(ROOM) {
        let span = in_tx(tx, &rec).span(page)?;
        if let Span::Own(run) = span {
            page += run.pages.min(stop - page);
            continue;
        }
        let want = span.pages().min(stop - page);
        let whole = want >= PAGES_PER_FRAME && page.is_multiple_of(PAGES_PER_FRAME);
        let f = tx.reserve_data(rec.owner(), page, want, whole)?;
        page += f.run.pages;
        fresh.push(f);
    }
    for durable in tx.fill(fresh, &[])? {
        extent_map::insert(tx, &mut rec, durable)?;
    }
    tx.put_inode(&rec)?;
    Ok(page)
}
