//! Inode pages that lie elsewhere than their inodes' numbers say: the pool was shrunk below them.
//!
//! ```text
//!   inode number --> page P  --- the table has P ---> page R      else page P itself
//! ```
//!
//! A number must keep its meaning: names, handles and mounts remember it. Pools that were never shrunk have no table,
//! and pay one load. A word of a table is changed by one store of eight bytes, with every inode locked; who looks without
//! a lock finds the old page or the new one, and both hold the records.

use std::sync::atomic::Ordering;

use super::Allocator;
use crate::error::Result;
use crate::layout::{FORWARD_LEVELS, ForwardEntry, InodeRec, PoolState, ROOT_INODES, forward_index};
use crate::units::{Ino, PageNo};

impl Allocator {
    /// The page that holds the records of the inodes numbered as if they lay on `page`.
    pub(crate) fn inode_page(&self, page: PageNo) -> Result<PageNo> {
        if self.forward_root.load(Ordering::Acquire) == 0 || page == ROOT_INODES {
            return Ok(page);
        }
        Ok(self.forwarded_to(page)?.unwrap_or(page))
    }

    /// Where the table sends the inodes of `page`, if it has them.
    pub(crate) fn forwarded_to(&self, page: PageNo) -> Result<Option<PageNo>> {
        let mut table = PageNo(self.forward_root.load(Ordering::Acquire));
        if table.0 == 0 {
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

    /// Where the record of an inode lies, in pool bytes.
    pub(crate) fn inode_at(&self, ino: Ino) -> Result<u64> {
        Ok(self.inode_page(ino.page())?.byte() + ino.slot() as u64 * InodeRec::SIZE)
    }

    /// The number of the page whose inodes lie on `page`: their records say it.
    pub(crate) fn number_of_inode_page(&self, page: PageNo) -> Result<PageNo> {
        let view = self.page(page)?;
        let places = (0..Ino::SLOTS_PER_PAGE as usize).map(|slot| view.u64(slot * InodeRec::SIZE as usize + 8));
        let numbers = places.filter(|&place| place != 0).map(|place| Ino(place).page());
        // A page that no inode has used yet was not moved.
        Ok(numbers.into_iter().find(|&number| self.inode_page(number).is_ok_and(|at| at == page)).unwrap_or(page))
    }

    /// What changes of the layout, as it is now.
    pub(crate) fn state(&self) -> PoolState {
        *self.state.lock()
    }

    /// A record with this state is applied.
    pub(crate) fn set_state(&self, state: PoolState) {
        *self.state.lock() = state;
        self.frames.store(state.frames, Ordering::Release);
        self.forward_root.store(state.forward_root().unwrap_or_default().0, Ordering::Release);
    }
}
