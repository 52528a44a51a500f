//! The forwarding table of inode pages: where an inode page is after the pool was shrunk below its original page.
//!
//! ```text
//!   inode number --> page P  --- entry for P in the table ---> page R      no entry: page P itself
//! ```
//!
//! An inode number stays valid when its page moves, because names, handles and mounts keep it. A pool that was
//! never shrunk has no table, and one whose pages are all where their numbers say has an empty one: a lookup costs one
//! load then. One 8-byte store changes an entry, while all inodes are
//! locked. A reader without a lock finds the old page or the new one, and both hold the records.

use std::sync::atomic::Ordering;

use super::Allocator;
use crate::error::Result;
use crate::layout::{FORWARD_LEVELS, ForwardEntry, InodeRec, PoolState, ROOT_INODES, forward_index};
use crate::lock::MutexGuard;
use crate::units::{Ino, PageNo};

/// The right to change the state of the layout and the forwarding table, from before a transaction begins until it is
/// applied: each change starts from what the last one left.
#[derive(Debug)]
pub(crate) struct LayoutChange<'a>(#[allow(dead_code)] MutexGuard<'a, ()>);

impl Allocator {
    /// Waits for the right to change the layout.
    pub(crate) fn change_layout(&self) -> LayoutChange<'_> {
        LayoutChange(self.layout.lock())
    }

    /// Whether an inode page may lie elsewhere than its inodes' numbers say.
    pub(crate) fn forwards(&self) -> bool {
        self.forward_root.load(Ordering::Acquire) != 0
    }

    /// The page with the records of the inodes whose numbers name `page`.
    pub(crate) fn inode_page(&self, page: PageNo) -> Result<PageNo> {
        if self.forward_root.load(Ordering::Acquire) == 0 || page == ROOT_INODES {
            return Ok(page);
        }
        Ok(self.forwarded_to(page)?.unwrap_or(page))
    }

    /// The page that the table maps `page` to, if it has an entry.
    pub(crate) fn forwarded_to(&self, page: PageNo) -> Result<Option<PageNo>> {
        let mut table = PageNo(self.forward_root.load(Ordering::Acquire));
        // A number of a damaged structure may have more bits than the table has levels for.
        if table.0 == 0 || page.0 >> (9 * FORWARD_LEVELS) != 0 {
            return Ok(None);
        }
        for level in (0..FORWARD_LEVELS).rev() {
            let index = forward_index(page, level);
            match ForwardEntry(self.page(table)?.u64(index * 8)).parse(table, index)? {
                None => return Ok(None),
                Some(next) => table = next,
            }
        }
        Ok(Some(table))
    }

    /// Where the record of an inode is, as a pool byte.
    pub(crate) fn inode_at(&self, ino: Ino) -> Result<u64> {
        Ok(self.inode_page(ino.page())?.byte() + ino.slot() as u64 * InodeRec::SIZE)
    }

    /// The page that the numbers of the inodes stored on `page` name. The records contain their numbers.
    pub(crate) fn number_of_inode_page(&self, page: PageNo) -> Result<PageNo> {
        let view = self.page(page)?;
        let places = (0..Ino::SLOTS_PER_PAGE as usize).map(|slot| view.u64(slot * InodeRec::SIZE as usize + 8));
        let numbers = places.filter(|&place| place != 0).map(|place| Ino(place).page());
        // A page that no inode has used yet was not moved.
        Ok(numbers.into_iter().find(|&number| self.inode_page(number).is_ok_and(|at| at == page)).unwrap_or(page))
    }

    /// The current values of the layout's variable fields.
    pub(crate) fn state(&self) -> PoolState {
        *self.state.lock()
    }

    /// Called after a record with this state was applied.
    pub(crate) fn set_state(&self, state: PoolState) {
        *self.state.lock() = state;
        self.frames.store(state.frames, Ordering::Release);
        self.forward_root.store(state.active_root().unwrap_or_default().0, Ordering::Release);
    }
}
