//! Moving pages of inodes, and the tables that say where these lie.
//!
//! ```text
//!   all inodes locked:   copy the page --> one record: copy owned, table leads to it, page freed
//! ```
//!
//! The numbers of the inodes stay. Nobody stages a record of an inode without a lock, so none is changed meanwhile.

use super::shrink::Shrink;
use crate::alloc::Run;
use crate::error::Result;
use crate::layout::PageUse;
use crate::units::{FrameNo, PageNo};

/// Pages that are moved while all inodes stay locked.
const AT_ONCE: usize = 16;

impl Shrink<'_, '_> {
    /// Moves every inode page, and every forwarding table, that lies behind the new end.
    pub(super) fn move_inode_pages(&mut self) -> Result<()> {
        for frame in self.engine.alloc.used_frames_from(FrameNo(self.limit.frames())) {
            let pages = self.inode_pages_in(frame);
            let pages = self.readable(pages)?.unwrap_or_default();
            for some in pages.chunks(AT_ONCE) {
                self.move_some(some)?;
                self.step(some.len() as u64)?;
            }
        }
        let leaves = self.leaves();
        loop {
            let moved = {
                let _locks = self.engine.locks.write_all();
                let change = self.engine.alloc.change_layout();
                self.engine.alloc.transact(true, |tx| tx.relocate_forward_table(&change, &leaves))?
            };
            if !moved {
                return Ok(());
            }
            self.step(1)?;
        }
    }

    fn move_some(&self, pages: &[PageNo]) -> Result<()> {
        let alloc = &self.engine.alloc;
        let _locks = self.engine.locks.write_all();
        for &page in pages {
            // The last inode may have gone, and the page with it, before everybody was stopped.
            if !self.inode_pages_in(page.frame())?.contains(&page) {
                continue;
            }
            let number = alloc.number_of_inode_page(page)?;
            let change = alloc.change_layout();
            let copy = alloc.transact(true, |tx| {
                let copy = tx.copy_inode_page(page, number)?;
                tx.free(Run { page, pages: 1 }, PageUse::Inodes, 0);
                tx.forward(&change, number, Some(copy).filter(|&copy| copy != number))?;
                Ok(copy)
            })?;
            alloc.forget_inode_page(page);
            // A reader without a lock may have found the copy an inode page before it found the table, and have taken it for
            // the page of the inodes that it would have without the table.
            alloc.forget_inode_page(copy);
        }
        Ok(())
    }
}
