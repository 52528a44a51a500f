//! Changes of a file's bytes in a transaction of the caller: nothing that the file has is stored to before the record.
//!
//! ```text
//!   committed length            |
//!   file      [ live ][ live ][ live ]....        live: never in place
//!   write          [ fresh ][ fresh ]             filled and fenced now, in the map with the record
//!   again              [ fresh ]                  a page of this transaction: in place
//!   longer                            [0000]      behind the committed length: in place, it means nothing
//! ```
//!
//! A file that was shortened and grows again within one transaction has its last page made anew: behind the new end, up
//! to the committed length, the old page is live.

use pmem::Part;
use smallvec::SmallVec;

use crate::alloc::{Stop, TxResult};
use crate::data::shadow_commit::put_in_place_of;
use crate::data::truncate::{forget_base_from, grow};
use crate::data::write::{Parts, check_end};
use crate::error::{Error, Result};
use crate::extent::MAX_LEN;
use crate::extent::extent_map::{self, in_tx};
use crate::extent::resolve::Span;
use crate::layout::InodeRec;
use crate::txn::{Fresh, Tx};
use crate::units::{PAGE_SIZE, PAGES_PER_FRAME};

/// What of a record each step of a write leaves to the rest.
const ROOM: u64 = 24 << 10;

/// How long a file is on the media, before the transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    /// Its length; 0 for a file of the transaction.
    pub(crate) len: u64,
    /// Up to here, what the file has behind its end is zeros already ([`crate::engine::Engine::zero_before_growing`]).
    pub(crate) zeroed: u64,
}

/// Writes `bytes` at `offset`. The caller stages `rec`.
///
/// Stops with [`Stop::RecordFull`] if one record does not name all places.
pub(crate) fn write_aside(
    tx: &mut Tx<'_>,
    rec: &mut InodeRec,
    committed: Committed,
    offset: u64,
    bytes: &[u8],
) -> TxResult<()> {
    check_end(offset, bytes.len())?;
    if bytes.is_empty() {
        return Ok(());
    }
    lengthen(tx, rec, committed, offset)?;
    let end = offset + bytes.len() as u64;
    let pages = WholePages::read(tx, rec, offset, bytes)?;
    let (mut page, last) = (offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
    let (mut fresh, mut parts): (SmallVec<[Fresh; 4]>, _) = (SmallVec::new(), Parts::new());
    let mut replaced: SmallVec<[std::ops::Range<u64>; 4]> = SmallVec::new();
    while page < last {
        let span = in_tx(tx, rec).span(page)?;
        if let Span::Own(run) = span
            && let Some(of_this) = tx.pages_of_this(run.page)
        {
            let stop = last.min(page + of_this.min(run.pages));
            pages.parts(page..stop, run.page.byte(), &mut parts);
            page = stop;
            continue;
        }
        if !tx.has_room(ROOM) {
            return Err(Stop::RecordFull);
        }
        let want = not_of_this(tx, rec, page, last)? - page;
        // Large writes take whole, aligned frames, which take little room in the record.
        let in_front = page.next_multiple_of(PAGES_PER_FRAME) - page;
        let want = if in_front > 0 && want >= in_front + PAGES_PER_FRAME { in_front } else { want };
        let whole = in_front == 0 && want >= PAGES_PER_FRAME;
        let f = tx.reserve_data(rec.owner(), page, want, whole)?;
        let stop = page + f.run.pages;
        pages.parts(page..stop, f.run.page.byte(), &mut parts);
        replaced.push(page..stop);
        fresh.push(f);
        page = stop;
    }
    let durable = tx.fill(fresh, &parts)?;
    put_in_place_of(tx, rec, replaced.into_iter(), durable)?;
    rec.size = rec.size.max(end);
    Ok(())
}

/// Sets the length. The caller stages `rec`. Stops as [`write_aside`] does.
pub(crate) fn set_len_aside(tx: &mut Tx<'_>, rec: &mut InodeRec, committed: Committed, len: u64) -> TxResult<()> {
    if len > MAX_LEN {
        return Err(Error::FileTooLarge.into());
    }
    lengthen(tx, rec, committed, len)?;
    if len < rec.size {
        let first = len.div_ceil(PAGE_SIZE);
        forget_base_from(tx, rec, first)?;
        if extent_map::remove(tx, rec, first, u64::MAX)?.is_some() {
            return Err(Stop::RecordFull);
        }
        rec.size = len;
    }
    Ok(())
}

/// The file is `to` long at least; what lies between reads as zeros.
fn lengthen(tx: &mut Tx<'_>, rec: &mut InodeRec, committed: Committed, to: u64) -> TxResult<()> {
    if to <= rec.size {
        return Ok(());
    }
    if rec.size < committed.len && !rec.size.is_multiple_of(PAGE_SIZE) {
        let page = rec.size / PAGE_SIZE;
        let whole = page_as_seen(tx, rec, page)?;
        let f = tx.reserve_data(rec.owner(), page, 1, false)?;
        let part = Part::Bytes { at: f.run.page.byte(), bytes: &whole };
        let durable = tx.fill(smallvec::smallvec![f], &[part])?;
        put_in_place_of(tx, rec, std::iter::once(page..page + 1), durable)?;
    } else {
        grow(tx, rec, to, committed.zeroed)?;
    }
    rec.size = to;
    Ok(())
}

/// The first page from `page` on, `last` at the latest, that is of this transaction.
fn not_of_this(tx: &Tx<'_>, rec: &InodeRec, page: u64, last: u64) -> Result<u64> {
    let mut at = page;
    while at < last {
        let span = in_tx(tx, rec).span(at)?;
        match span {
            Span::Own(run) if tx.pages_of_this(run.page).is_some() => return Ok(at),
            // A run of the map may go on into pages of this transaction.
            Span::Own(run) => {
                let of_this = (1..run.pages.min(last - at)).find(|&i| tx.pages_of_this(run.page.plus(i)).is_some());
                match of_this {
                    Some(i) => return Ok(at + i),
                    None => at = at.saturating_add(run.pages),
                }
            }
            span => at = at.saturating_add(span.pages()),
        }
    }
    Ok(last)
}

/// A page as it reads now; zeros behind the end of the file.
fn page_as_seen(tx: &Tx<'_>, rec: &InodeRec, page: u64) -> Result<Vec<u8>> {
    let mut whole = vec![0; PAGE_SIZE as usize];
    let seen = rec.size.saturating_sub(page.saturating_mul(PAGE_SIZE)).min(PAGE_SIZE) as usize;
    in_tx(tx, rec).span(page)?.read(tx.alloc(), page, &mut whole[..seen])?;
    Ok(whole)
}

/// Bytes to be written, with what the file has around them in their first and last page.
struct WholePages<'b> {
    offset: u64,
    bytes: &'b [u8],
    /// Pages that the bytes cover in part, as they will be.
    partly: SmallVec<[(u64, Vec<u8>); 2]>,
}

impl<'b> WholePages<'b> {
    fn read(tx: &Tx<'_>, rec: &InodeRec, offset: u64, bytes: &'b [u8]) -> Result<WholePages<'b>> {
        let end = offset + bytes.len() as u64;
        let mut partly: SmallVec<[(u64, Vec<u8>); 2]> = SmallVec::new();
        for at in [offset, end] {
            let page = at / PAGE_SIZE;
            if at.is_multiple_of(PAGE_SIZE) || partly.iter().any(|(known, _)| *known == page) {
                continue;
            }
            let mut whole = page_as_seen(tx, rec, page)?;
            let (from, to) = (offset.max(page * PAGE_SIZE), end.min((page + 1) * PAGE_SIZE));
            let within = (from - page * PAGE_SIZE) as usize;
            whole[within..within + (to - from) as usize]
                .copy_from_slice(&bytes[(from - offset) as usize..(to - offset) as usize]);
            partly.push((page, whole));
        }
        Ok(WholePages { offset, bytes, partly })
    }

    /// The parts that define these pages, the first of which lies at the pool byte `at`.
    fn parts<'s>(&'s self, pages: std::ops::Range<u64>, at: u64, parts: &mut Parts<'s>) {
        let mut middle = pages.clone();
        for (page, whole) in &self.partly {
            if pages.contains(page) {
                parts.push(Part::Bytes { at: at + (page - pages.start) * PAGE_SIZE, bytes: whole });
                if *page == middle.start { middle.start += 1 } else { middle.end = middle.end.min(*page) }
            }
        }
        if middle.start < middle.end {
            let from = (middle.start * PAGE_SIZE - self.offset) as usize;
            let len = ((middle.end - middle.start) * PAGE_SIZE) as usize;
            let bytes = &self.bytes[from..from + len];
            parts.push(Part::Bytes { at: at + (middle.start - pages.start) * PAGE_SIZE, bytes });
        }
    }
}
