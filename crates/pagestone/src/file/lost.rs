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

use super::chain::Span;
use super::gather::move_into_one;
use super::map::Map;
use super::space::regular;
use crate::error::{Error, Result};
use crate::pool::Inner;
use crate::units::{Ino, PAGES_PER_FRAME};

impl Inner {
    /// Runs `change`, which gives back some of these file pages. If no table would have a place in frames of which
    /// only lost pages are given back, it gets one, and `change` runs again. The caller holds the locks of the inode
    /// and of its chain.
    pub(super) fn giving_back<R>(
        &self,
        ino: Ino,
        pages: Range<u64>,
        mut change: impl FnMut() -> Result<R>,
    ) -> Result<R> {
        match change() {
            Err(Error::Pinned) if self.frames.region.lost_pages() > 0 && self.cut_up(ino, pages)? => change(),
            done => done,
        }
    }

    /// Moves a page out of each whole frame with lost pages; whether there was such a frame.
    fn cut_up(&self, ino: Ino, pages: Range<u64>) -> Result<bool> {
        let moved = self.to_move(ino, pages)?;
        for &page in &moved {
            // Whoever shows the page waits for the lock at the next touch, and finds its new place.
            self.opens.watchers(ino).iter().try_for_each(|w| w.leave(page..page + 1))?;
            self.frames.transact(false, |tx| {
                let mut rec = regular(tx, ino)?;
                move_into_one(tx, &mut rec, page..page + 1, false)?;
                tx.put_inode(&rec)
            })?;
        }
        Ok(!moved.is_empty())
    }

    /// A file page that is well of each such frame.
    fn to_move(&self, ino: Ino, pages: Range<u64>) -> Result<Vec<u64>> {
        let rec = self.frames.inode(ino)?;
        let map = Map { nodes: &self.frames, frames: &self.frames, rec: &rec };
        let (mut page, mut moved) = (pages.start, Vec::new());
        while page < pages.end {
            let span = map.span(page)?;
            let behind = page.saturating_add(span.pages());
            if let Span::Data(run) = span {
                let mut at = run.page;
                while page < behind.min(pages.end) {
                    if let Some(well) = self.frames.well_page_of(at.frame())? {
                        moved.push(page + well.index_in_frame() as u64 - at.index_in_frame() as u64);
                    }
                    let rest = PAGES_PER_FRAME - at.index_in_frame() as u64;
                    (page, at) = (page + rest, at.plus(rest));
                }
            }
            page = behind;
        }
        Ok(moved)
    }
}
