//! Many pages at once, or none of them.
//!
//! ```text
//!   few      fresh pages filled, one fence, one record: in place of the old ones
//!
//!   many     T [new]            an orphan is filled, record by record; a crash leaves no more than that
//!            F [new] -- X [old]          one record: the file takes its map, on top of its own as a base
//!            F [old with new]            what is new moves into the base (`push_down`, merge.rs); T and X are gone
//! ```
//!
//! The cost is that of the pages written, twice their descriptors included; the file's size does not matter.

use std::ops::Range;

use pmem::Part;
use smallvec::SmallVec;

use crate::alloc::{Stop, TxResult};
use crate::attr::{FileType, Time};
use crate::data::read;
use crate::data::truncate::grow;
use crate::data::write::{Parts, check_end};
use crate::data::write_plan::{Take, write_in_tx};
use crate::engine::{Engine, InodeWrite, OrphansWrite};
use crate::error::{Error, Result};
use crate::extent::MAX_LEN;
use crate::extent::clone::freeze_as_base;
use crate::extent::extent_map::{self, in_tx};
use crate::extent::orphans::{add_orphan, remove_orphan};
use crate::extent::resolve::ChainRead;
use crate::layout::{InodeRec, ORPHANS};
use crate::txn::{Durable, Fresh, Tx};
use crate::units::{Ino, PAGE_SIZE};

/// Stretches that one record replaces at most.
const FEW: usize = 6;
/// Bytes that one record replaces at most.
const FEW_BYTES: usize = 4 << 20;
/// Bytes of a long stretch that one record puts into the orphan.
const STEP: usize = 8 << 20;

/// A stretch of whole pages.
struct Stretch<'b> {
    offset: u64,
    bytes: std::borrow::Cow<'b, [u8]>,
}

impl Stretch<'_> {
    fn first(&self) -> u64 {
        self.offset / PAGE_SIZE
    }
    fn end(&self) -> u64 {
        self.first() + (self.bytes.len() as u64).div_ceil(PAGE_SIZE)
    }
}

/// How far an atomic write reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// The file grows if need be.
    Lengthens,
    /// What lies behind the end of the file is dropped.
    StaysWithin,
}

/// The pages that parts lie in, in order; neighbours as one.
fn pages_of(parts: &[(u64, &[u8])]) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::with_capacity(parts.len());
    for (offset, bytes) in parts {
        let pages = offset / PAGE_SIZE..(offset + bytes.len() as u64).div_ceil(PAGE_SIZE);
        match out.last_mut() {
            Some(last) if last.end >= pages.start => last.end = last.end.max(pages.end),
            _ => out.push(pages),
        }
    }
    out
}

/// How many of `len` bytes at `offset` lie in front of `end`.
fn room(offset: u64, end: u64, len: usize) -> usize {
    end.saturating_sub(offset).min(len as u64) as usize
}

/// What is left to be done once the locks are gone.
enum After {
    Nothing,
    /// The base is only the file's.
    Merge(Ino),
    /// The file is as it was; the orphan is of no use.
    GiveBack(Ino, Error),
}

impl Engine {
    /// Writes all `parts` (offset and bytes, in order, without overlap) at once, or nothing.
    pub(crate) fn write_atomic(&self, ino: Ino, parts: &[(u64, &[u8])]) -> Result<()> {
        self.replace_atomic(ino, parts, |_, _| Ok(Reach::Lengthens))
    }

    /// As [`Engine::write_atomic`]; `allow` decides whether, and how far, with the inode locked.
    pub(crate) fn replace_atomic<'b>(
        &self,
        ino: Ino,
        parts: &[(u64, &'b [u8])],
        allow: impl Fn(InodeWrite<'_>, &InodeRec) -> Result<Reach>,
    ) -> Result<()> {
        if parts.iter().all(|(_, bytes)| bytes.is_empty()) {
            return self.kind(ino).map(drop);
        }
        let mut end = 0;
        for &(offset, bytes) in parts {
            if offset < end {
                return Err(Error::Invalid("parts in order of their offsets, without overlap"));
            }
            check_end(offset, bytes.len())?;
            end = offset + bytes.len() as u64;
        }
        let after = loop {
            let base = self.peek(ino)?.base;
            let mut inos: SmallVec<[Ino; 3]> = smallvec::smallvec![ino, ORPHANS];
            inos.extend((base != 0).then_some(Ino(base)));
            let locks = self.locks.write(&inos);
            let held = locks.of(ino);
            let rec = self.alloc.inode(ino)?;
            if rec.base == base {
                let within = match allow(held, &rec)? {
                    Reach::Lengthens => u64::MAX,
                    Reach::StaysWithin => rec.size,
                };
                let cut = |&(offset, bytes): &(u64, &'b [u8])| (offset, &bytes[..room(offset, within, bytes.len())]);
                let parts: SmallVec<[_; 8]> = parts.iter().map(cut).filter(|(_, bytes)| !bytes.is_empty()).collect();
                if parts.is_empty() {
                    return Ok(());
                }
                let end = end.min(within);
                // What is replaced is read before: nobody may store to it meanwhile, nor see it after.
                let observers = self.opens.observers(ino);
                let replaced = pages_of(&parts);
                observers.iter().try_for_each(|w| w.freeze(held, self, &rec, Some(&replaced)))?;
                let after = self.write_atomic_locked((held, locks.orphans()), &parts, end)?;
                if !matches!(after, After::GiveBack(..)) {
                    observers.iter().for_each(|w| w.changed(held.shared(), &replaced));
                }
                let first = replaced.first().map_or(0, |pages| pages.start);
                self.notify_mappings(held, &observers, rec.size, first..end.div_ceil(PAGE_SIZE).max(first))?;
                break after;
            }
        };
        if let After::GiveBack(orphan, error) = after {
            // If that fails too, the next open does it.
            self.reclaim_beside(orphan);
            return Err(error);
        }
        self.opens.clear_touched(ino);
        if let After::Merge(base) = after {
            self.merge_bases(&[base]);
        }
        Ok(())
    }

    /// The parts as whole pages, with what the file has around them.
    fn whole_pages<'b>(
        &self,
        chain: &ChainRead<'_>,
        rec: &InodeRec,
        parts: &[(u64, &'b [u8])],
    ) -> Result<Vec<Stretch<'b>>> {
        let mut out: Vec<Stretch<'b>> = Vec::with_capacity(parts.len());
        for &(offset, bytes) in parts.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            let end = offset + bytes.len() as u64;
            if offset.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE) {
                out.push(Stretch { offset, bytes: bytes.into() });
                continue;
            }
            let from = offset / PAGE_SIZE * PAGE_SIZE;
            let to = end.next_multiple_of(PAGE_SIZE).min(MAX_LEN);
            let joins = out.last().is_some_and(|last| last.end() * PAGE_SIZE > from);
            // Two parts in one page: the second adds to what the first has made of it.
            let (first, mut whole) = match out.pop_if(|_| joins) {
                Some(last) => (last.offset, last.bytes.into_owned()),
                None => (from, Vec::new()),
            };
            let known = first + whole.len() as u64;
            whole.resize((to - first) as usize, 0);
            read::read(&self.alloc, chain, rec, known, &mut whole[(known - first) as usize..])?;
            whole[(offset - first) as usize..][..bytes.len()].copy_from_slice(bytes);
            out.push(Stretch { offset: first, bytes: whole.into() });
        }
        Ok(out)
    }

    fn write_atomic_locked(
        &self,
        (held, orphans): (InodeWrite<'_>, OrphansWrite<'_>),
        parts: &[(u64, &[u8])],
        end: u64,
    ) -> Result<After> {
        let ino = held.ino();
        let rec = self.alloc.inode(ino)?;
        let stretches = {
            let chain = self.chain(&rec);
            self.whole_pages(&chain, &rec, parts)?
        };
        let bytes: usize = stretches.iter().map(|s| s.bytes.len()).sum();
        if bytes == 0 {
            return Ok(After::Nothing);
        }
        let zeroed = self.zero_before_growing(held, rec.size, end)?;
        if stretches.len() <= FEW && bytes <= FEW_BYTES {
            let pages = stretches[0].offset / PAGE_SIZE..stretches[stretches.len() - 1].end();
            let mut replaced = |tx: &mut Tx<'_>| replace(tx, ino, &stretches, (end, zeroed));
            match self.with_lost_page_evacuated(held, pages, || self.alloc.attempt(false, &mut replaced)) {
                // Free space lies in so many pieces that it is not one record after all.
                Err(Stop::RecordFull) => {}
                done => return Ok(done.map(|()| After::Nothing)?),
            }
        }
        let _chain = self.chain(&rec);
        let orphan = self.alloc.transact(false, |tx| {
            let mut rec = InodeRec::new(tx.new_ino()?, FileType::File, 0, Time::now());
            rec.nlink = 0;
            tx.put_inode(&rec)?;
            add_orphan(tx, orphans, rec.ino())?;
            Ok(rec.ino())
        })?;
        let taken = self
            .fill_orphan(orphan, &stretches)
            .and_then(|()| self.alloc.transact(false, |tx| take_map(tx, orphans, (ino, orphan), (end, zeroed))));
        Ok(match taken {
            Ok(base) => base.map_or(After::Nothing, After::Merge),
            Err(error) => After::GiveBack(orphan, error),
        })
    }

    fn fill_orphan(&self, orphan: Ino, stretches: &[Stretch<'_>]) -> Result<()> {
        let (mut at, mut within) = (0, 0usize);
        while at < stretches.len() {
            (at, within) = self.alloc.transact(false, |tx| {
                let mut rec = tx.inode(orphan)?;
                let (mut at, mut within, mut filled) = (at, within, 0);
                while at < stretches.len() && filled < STEP && (filled == 0 || tx.has_room(48 << 10)) {
                    let s = &stretches[at];
                    let bytes = &s.bytes[within..][..(s.bytes.len() - within).min(STEP)];
                    // All that the orphan has hides what the file has there: not a page more than is written.
                    let written = write_in_tx(tx, &mut rec, s.offset + within as u64, bytes, 0, Take::Exactly)?.len;
                    (within, filled) = (within + written as usize, filled + written as usize);
                    if within == s.bytes.len() {
                        (at, within) = (at + 1, 0);
                    }
                }
                tx.put_inode(&rec)?;
                Ok((at, within))
            })?;
        }
        Ok(())
    }
}

/// The length after a write up to `end`, and what lies before it made to read as zeros.
fn lengthen(tx: &mut Tx<'_>, rec: &mut InodeRec, end: u64, zeroed: u64) -> TxResult<u64> {
    if end > rec.size {
        grow(tx, rec, end, zeroed)?;
    }
    Ok(rec.size.max(end))
}

/// Puts fresh pages in the place of the old ones; [`Stop::RecordFull`] if one record is too short.
fn replace(tx: &mut Tx<'_>, ino: Ino, stretches: &[Stretch<'_>], (end, zeroed): (u64, u64)) -> TxResult<()> {
    let mut rec = tx.inode(ino)?;
    let size = lengthen(tx, &mut rec, end, zeroed)?;
    let mut fresh: SmallVec<[Fresh; 4]> = SmallVec::new();
    let mut parts = Parts::new();
    for s in stretches {
        let mut page = s.first();
        while page < s.end() {
            if !tx.has_room(24 << 10) {
                return Err(Stop::RecordFull);
            }
            let f = tx.reserve_data(rec.owner(), page, s.end() - page, false)?;
            let bytes = &s.bytes[((page - s.first()) * PAGE_SIZE) as usize..];
            let bytes = &bytes[..bytes.len().min((f.run.pages * PAGE_SIZE) as usize)];
            parts.push(Part::Bytes { at: f.run.page.byte(), bytes });
            page += f.run.pages;
            fresh.push(f);
        }
    }
    let durable = tx.fill(fresh, &parts)?;
    put_in_place_of(tx, &mut rec, stretches.iter().map(|s| s.first()..s.end()), durable)?;
    if !tx.has_room(0) {
        return Err(Stop::RecordFull);
    }
    rec.size = size;
    rec.touch(Time::now());
    tx.put_inode(&rec)
}

/// Puts `durable` into the map in place of what the file has in `pages`, which it covers; the old pages are given back.
/// [`Stop::RecordFull`] if one record is too short. The caller stages `rec`.
pub(crate) fn put_in_place_of(
    tx: &mut Tx<'_>,
    rec: &mut InodeRec,
    pages: impl Iterator<Item = Range<u64>>,
    durable: SmallVec<[Durable; 4]>,
) -> TxResult<()> {
    for pages in pages {
        // What was own and hid the base is replaced by what is own and hides it.
        let borrowed = rec.borrowed().saturating_sub(in_tx(tx, rec).borrowed_in(pages.start, pages.end)?);
        if extent_map::remove(tx, rec, pages.start, pages.end)?.is_some() {
            return Err(Stop::RecordFull);
        }
        rec.set_borrowed(borrowed);
    }
    let borrowed = rec.borrowed();
    for run in durable {
        extent_map::insert(tx, rec, run)?;
        rec.set_borrowed(borrowed);
    }
    Ok(())
}

/// Lets the file have the orphan's map, on top of its own. Returns the base that its own has become.
fn take_map(
    tx: &mut Tx<'_>,
    orphans: OrphansWrite<'_>,
    (ino, orphan): (Ino, Ino),
    (end, zeroed): (u64, u64),
) -> TxResult<Option<Ino>> {
    let (mut rec, new) = (tx.inode(ino)?, tx.inode(orphan)?);
    // Before the map goes below: what was allocated behind the old end is inside the file now.
    rec.size = lengthen(tx, &mut rec, end, zeroed)?;
    let own = in_tx(tx, &rec).at_or_after(0)?.is_some();
    if own {
        freeze_as_base(tx, &mut rec)?;
        add_orphan(tx, orphans, Ino(rec.base))?;
    }
    let (mut page, mut hidden) = (0, 0);
    while let Some(m) = in_tx(tx, &new).first_after(page)? {
        hidden += in_tx(tx, &rec).borrowed_in(m.file_page, m.end())?;
        page = m.end();
    }
    let borrowed = rec.borrowed().saturating_sub(hidden);
    rec.adopt_map(&new);
    rec.set_borrowed(borrowed);
    rec.touch(Time::now());
    tx.put_inode(&rec)?;
    tx.free_ino(orphan)?;
    remove_orphan(tx, orphans, orphan)?;
    Ok(own.then_some(Ino(rec.base)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests end at the first surprise
mod tests {
    use std::sync::Arc;

    use super::Reach;
    use crate::attr::{FileType, NewNode};
    use crate::{CreateOptions, PAGE_SIZE, Pool};
    use pmem::Memory;

    /// Fails if a commit whose mapping has seen a longer file makes it that long again.
    #[test]
    fn what_lies_behind_the_end_under_the_lock_is_dropped() {
        let pool = Pool::create_on(Arc::new(Memory::new(16 << 20).unwrap()), &CreateOptions::default()).unwrap();
        let ino = pool.root().create(b"f", &NewNode::new(FileType::File, 0o644)).unwrap().ino;
        let file = pool.node(ino).unwrap().open().unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        let page = [2; 3 * PAGE_SIZE as usize];
        let parts: [(u64, &[u8]); 2] = [(4096, &page), (10 * PAGE_SIZE, &page)];
        pool.engine().replace_atomic(ino, &parts, |_, _| Ok(Reach::StaysWithin)).unwrap();
        let mut bytes = [0; 10_000];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 5000);
        assert!(bytes[..4096].iter().all(|&b| b == 1) && bytes[4096..5000].iter().all(|&b| b == 2));
        pool.engine().replace_atomic(ino, &parts[1..], |_, _| Ok(Reach::StaysWithin)).unwrap();
        assert_eq!(file.attr().unwrap().size, 5000);
    }
}
