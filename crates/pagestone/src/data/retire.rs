//! Giving back a page that the media have lost, out of a whole frame.
//!
//! ```text
//!   frame   [ data ][ lost ][ data ] ...      whole: one owner, and no table of pages
//!              |  moved to other storage
//!   frame   [table ][ lost ][ data ] ...      split: the lost page can be retired by itself
//! ```
//!
//! Where other pages are given back with it, one of them becomes the table, and there is nothing to do.

use std::ops::Range;

use crate::alloc::{Allocator, Run, Stop, TxResult};
use crate::data::relocate::move_into_one;
use crate::data::truncate::regular;
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Place, Result};
use crate::extent::extent_map::Map;
use crate::extent::resolve::{ChainRead, Span};
use crate::units::{Ino, PAGES_PER_FRAME, PageNo};

/// How often a page that was to be moved may turn out to be lost, too.
const TRIES: usize = 8;

impl Engine {
    /// Runs `change`, which gives back some of these file pages. If no table would have a place in frames of which
    /// only lost pages are given back, it gets one, and `change` runs again.
    /// `change` runs with the chain locked.
    pub(crate) fn with_lost_page_evacuated<R>(
        &self,
        held: InodeWrite<'_>,
        pages: Range<u64>,
        mut change: impl FnMut() -> TxResult<R>,
    ) -> TxResult<R> {
        for _ in 0..TRIES {
            let done = {
                let _chain = self.chain_of(held)?;
                change()
            };
            match done {
                Err(Stop::Pinned) if self.make_place_for_table(held, pages.clone())? => {}
                done => return done,
            }
        }
        let _chain = self.chain_of(held)?;
        change()
    }

    /// No page of a whole frame that is given back in part could hold the frame's table: tries to change that. The chain
    /// is not locked. Whether there is something new to try.
    pub(crate) fn make_place_for_table(&self, held: InodeWrite<'_>, pages: Range<u64>) -> TxResult<bool> {
        let moved = self.alloc.region.lost_pages() > 0 && self.evacuate_one_page(held, pages)?;
        // A private mapping may have pinned them only to show them.
        Ok(moved || self.unpin_mapped(held))
    }

    /// Has mappings unpin pages that they pinned only to map them; true if any did.
    pub(crate) fn unpin_mapped(&self, held: InodeWrite<'_>) -> bool {
        self.opens.observers(held.ino()).iter().filter(|w| w.unpin(held, self)).count() > 0
    }

    /// Moves a page out of each whole frame that has lost pages among these; whether there was such a frame.
    fn evacuate_one_page(&self, held: InodeWrite<'_>, pages: Range<u64>) -> Result<bool> {
        let ino = held.ino();
        let moved = {
            let chain = self.chain_of(held)?;
            self.to_move(&chain, ino, pages)?
        };
        for &page in &moved {
            // Whoever shows the page waits for the lock at the next touch, and finds its new place; or keeps a copy of
            // his own.
            let replaced = page..page + 1;
            self.opens.observers(ino).iter().try_for_each(|w| w.unmap_for_relocation(held, replaced.clone()))?;
            let _chain = self.chain_of(held)?;
            let done = self.alloc.attempt(true, |tx| {
                let mut rec = regular(tx, ino)?;
                move_into_one(tx, &mut rec, replaced.clone(), false)?;
                tx.put_inode(&rec)
            });
            match done {
                // Another page is chosen then.
                Err(Stop::LostPage(_)) => return Ok(true),
                done => done?,
            }
        }
        Ok(!moved.is_empty())
    }

    /// A file page that is well of each such frame.
    fn to_move(&self, chain: &ChainRead<'_>, ino: Ino, pages: Range<u64>) -> Result<Vec<u64>> {
        let rec = self.alloc.inode(ino)?;
        debug_assert!(chain.covers(&rec));
        let map = Map { nodes: &self.alloc, alloc: &self.alloc, rec: &rec };
        let (mut page, mut moved) = (pages.start, Vec::new());
        while page < pages.end {
            let span = map.span(page)?;
            let behind = page.saturating_add(span.pages());
            if let Span::Own(run) = span {
                let mut at = run.page;
                while page < behind.min(pages.end) {
                    let rest = PAGES_PER_FRAME - at.index_in_frame() as u64;
                    let part = Run { page: at, pages: rest.min(pages.end - page) };
                    if let Some(well) = self.alloc.healthy_page_for_table(part)? {
                        moved.push(page_of(&map, well, (page, at))?);
                    }
                    (page, at) = (page + rest, at.plus(rest));
                }
            }
            page = behind;
        }
        Ok(moved)
    }
}

/// The file page that lies at `well`, in the frame of `known`, which is a file page and where it lies.
fn page_of(map: &Map<'_, Allocator>, well: PageNo, (page, at): (u64, PageNo)) -> Result<u64> {
    let there = (page + well.index_in_frame() as u64).checked_sub(at.index_in_frame() as u64);
    match there.map(|there| map.span(there)).transpose()? {
        Some(Span::Own(run)) if run.page == well => Ok(there.unwrap_or_default()),
        _ => Err(Error::corrupt(Place::Page(well), "a page of a whole frame that is not where its file has it")),
    }
}
