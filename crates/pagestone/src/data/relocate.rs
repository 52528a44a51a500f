//! Moving a chunk of a file, 2 MiB of it at a multiple of 2 MiB, into one whole frame, where nothing
//! smaller can be mapped.
//!
//! ```text
//!   chunk   [data][hole][ shared ][data]            in pages, anywhere
//!              |     |       |      |   copied, one fence
//!   frame   [data][0000][   data  ][data]           one record: the new frame in, the pages out
//! ```

use std::ops::Range;

use pmem::Part;

use crate::alloc::{Allocator, Stop, TxResult};
use crate::data::truncate::regular;
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Result};
use crate::extent::extent_map::{self, Map, in_tx};
use crate::extent::resolve::{ChainRead, Span};
use crate::layout::InodeRec;
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE, PAGES_PER_FRAME};

impl Engine {
    /// Makes the chunk that begins at the file page `first` one whole frame, unless it is that, or
    /// (without `holes`) is all hole, which a mapping can show without storage. Mappings are kept from its pages first.
    ///
    /// # Errors
    /// [`Error::NoSpace`] without a free frame; [`Error::NotSupported`] for a chunk that lies in so
    /// many frames that one record cannot name them.
    pub(crate) fn make_contiguous(&self, held: InodeWrite<'_>, first: u64, holes: bool) -> Result<()> {
        let ino = held.ino();
        let rec = self.alloc.inode(ino)?;
        let chunk = {
            let chain = self.chain(&rec);
            look(&self.alloc, &chain, &rec, first)?
        };
        let needed = match chunk {
            Chunk::Whole => false,
            Chunk::Hole => holes,
            Chunk::Pieces => true,
        };
        if !needed {
            return Ok(());
        }
        // Whoever shows the chunk waits for the lock at the next touch, and finds the frame.
        self.opens
            .observers(ino)
            .iter()
            .try_for_each(|w| w.unmap_for_relocation(held, first..first + PAGES_PER_FRAME))?;
        let chain = self.chain(&rec);
        // One record names few places: many pieces become fewer and longer ones first.
        let mut pieces = u64::MAX;
        loop {
            let all = first..first + PAGES_PER_FRAME;
            let moved = self.alloc.attempt(false, |tx| {
                let mut rec = regular(tx, ino)?;
                let moved = move_into_one(tx, &mut rec, all.clone(), true)?;
                tx.put_inode(&rec)?;
                Ok(moved)
            });
            match moved {
                Err(Stop::RecordFull) => {}
                moved => return Ok(moved.map(drop)?),
            }
            let before = std::mem::replace(&mut pieces, self.shorten(&chain, ino, all)?);
            if pieces >= before {
                return Err(Error::NotSupported("2 MiB of a file in too many pieces to be mapped here"));
            }
        }
    }

    /// Moves the pages of the chunk into fewer runs, a few at a time; returns how many are left.
    fn shorten(&self, _chain: &ChainRead<'_>, ino: Ino, all: Range<u64>) -> Result<u64> {
        let mut page = all.start;
        let mut pieces = 0;
        while page < all.end {
            page = self.alloc.transact(false, |tx| {
                let mut rec = regular(tx, ino)?;
                let mut end = page;
                for _ in 0..FEW {
                    end = end.saturating_add(in_tx(tx, &rec).span(end)?.pages()).min(all.end);
                }
                let reached = move_into_one(tx, &mut rec, page..end, false)?;
                tx.put_inode(&rec)?;
                Ok(reached)
            })?;
            pieces += 1;
        }
        Ok(pieces)
    }
}

/// Runs and holes that one record moves, whatever they are.
const FEW: usize = 8;

enum Chunk {
    Whole,
    Hole,
    Pieces,
}

fn look(alloc: &Allocator, chain: &ChainRead<'_>, rec: &InodeRec, first: u64) -> Result<Chunk> {
    debug_assert!(chain.covers(rec));
    let map = Map { nodes: alloc, alloc, rec };
    let mut page = first;
    loop {
        match map.span(page)? {
            Span::Own(run) if page == first => {
                let aligned = run.page.0.is_multiple_of(PAGES_PER_FRAME) && run.pages >= PAGES_PER_FRAME;
                return Ok(if aligned { Chunk::Whole } else { Chunk::Pieces });
            }
            span if span.is_hole() => page = page.saturating_add(span.pages()),
            _ => return Ok(Chunk::Pieces),
        }
        if page >= first + PAGES_PER_FRAME {
            return Ok(Chunk::Hole);
        }
    }
}

/// Moves these pages into one run, a frame if `whole`, or as many of them as there is a run for;
/// returns how far it came. [`Stop::RecordFull`] if they lie in too many places for a record.
pub(crate) fn move_into_one(tx: &mut Tx<'_>, rec: &mut InodeRec, pages: Range<u64>, whole: bool) -> TxResult<u64> {
    let first = pages.start;
    let fresh = tx.reserve_data(rec.owner(), first, pages.end - first, whole)?;
    if whole && (fresh.run.pages != PAGES_PER_FRAME || fresh.run.page.index_in_frame() != 0) {
        return Err(Stop::NoSpace);
    }
    let end = first + fresh.run.pages;
    let mut bytes = vec![0; (fresh.run.pages * PAGE_SIZE) as usize];
    let mut page = first;
    while page < end {
        let span = in_tx(tx, rec).span(page)?;
        let pages = span.pages().min(end - page);
        if !span.is_hole() {
            // Behind the end of a file nothing counts. A base has no end: a merge moves runs behind its old one into it.
            let size = if rec.is_base() { u64::MAX } else { rec.size };
            let seen = size.saturating_sub(page * PAGE_SIZE).min(pages * PAGE_SIZE) as usize;
            let at = ((page - first) * PAGE_SIZE) as usize;
            span.read(tx.alloc(), page, &mut bytes[at..at + seen])?;
        }
        page += pages;
    }
    let before = in_tx(tx, rec).borrowed_in(first, end)?;
    if extent_map::remove(tx, rec, first, end)?.is_some() {
        return Err(Stop::RecordFull);
    }
    let after = in_tx(tx, rec).borrowed_in(first, end)?;
    rec.set_borrowed((rec.borrowed() + after).saturating_sub(before));
    let part = Part::Bytes { at: fresh.run.page.byte(), bytes: &bytes };
    for durable in tx.fill(smallvec::smallvec![fresh], &[part])? {
        extent_map::insert(tx, rec, durable)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::attr::{FileType, NewNode};
    use crate::pool::{CreateOptions, Pool};
    use pmem::Memory;

    /// Fails if the answer of a backing is left out of the frame, or an absent chunk is taken for one hole.
    #[test]
    fn a_relocated_chunk_has_what_the_backing_answers_between_its_extents() -> Result<()> {
        let pool = Pool::create_on(Arc::new(Memory::new(64 << 20).map_err(Error::Media)?), &CreateOptions::default())?;
        let new = |name: &[u8]| -> Result<_> {
            let file = pool.node(pool.root().create(name, &NewNode::new(FileType::File, 0o600))?.ino)?.open()?;
            file.set_len(3 * PAGES_PER_FRAME * PAGE_SIZE + 10)?;
            Ok(file)
        };
        let (file, sparse) = (new(b"backed")?, new(b"sparse")?);
        file.set_backing(2)?;
        // So many pieces that they are moved into fewer ones first.
        (0..PAGES_PER_FRAME / 2).try_for_each(|i| file.write_all_at(&[1; 7], 2 * i * PAGE_SIZE + 5))?;
        file.punch_hole(9 * PAGE_SIZE..9 * PAGE_SIZE + PAGE_SIZE)?;
        let all = || -> Result<Vec<u8>> {
            let mut bytes = vec![0; file.attr()?.size as usize];
            file.read_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let before = all()?;
        assert!(before[PAGES_PER_FRAME as usize * PAGE_SIZE as usize..].iter().all(|&byte| byte != 0));
        let engine = pool.engine();
        for first in (0..4).map(|chunk| chunk * PAGES_PER_FRAME) {
            engine.make_contiguous(engine.locks.write(&[file.ino()]).of(file.ino()), first, false)?;
            engine.make_contiguous(engine.locks.write(&[sparse.ino()]).of(sparse.ino()), first, false)?;
        }
        assert!(all()? == before, "the same bytes");
        let storage: Vec<u64> = file.extents(..)?.iter().map(|x| x.offset / PAGE_SIZE % PAGES_PER_FRAME).collect();
        assert!(!storage.is_empty() && storage.iter().all(|&page| page == 0), "whole frames: {storage:?}");
        assert!(file.extents(..)?.iter().map(|x| x.len).sum::<u64>() == before.len() as u64);
        assert!(sparse.extents(..)?.is_empty(), "a chunk that is all hole needs no frame");
        Ok(())
    }
}
