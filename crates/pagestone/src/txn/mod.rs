//! Transactions: a set of small metadata changes that happens wholly or not at all.
//!
//! ```text
//!   attempt   take a lane --> f stages changes in a Tx --> commit: one record, one fence, applied in place
//!      ^                              | stop
//!      |   NoSpace: a checkpoint, then f again;  LostPage: f again, the page is known now
//!      `------------------------------'
//! ```
//!
//! `f` runs with a lane held and may run more than once. It must not wait for an inode, a mapping or a backing: the
//! caller locks inodes before. It must not touch memory of the program, which may be a mapping whose fault needs a lock.
//! It must change nothing in DRAM but through the transaction. The caller may hold locks of any rank before `Marks`.

mod forward;
mod request;
mod tx;

pub use request::{DoneRequest, Request};
pub(crate) use tx::{Durable, Fresh, Tx};

use crate::alloc::{Allocator, Run, Stop, TxResult};
use crate::error::{Error, Result};
use crate::journal::Lane;
use crate::layout::PageUse;
use crate::lock::MutexGuard;
use crate::units::PageNo;

impl Allocator {
    /// Runs `f` as one transaction, as [`Allocator::attempt`] does, for a caller that has no answer to what stops it.
    pub(crate) fn transact<R>(&self, deleting: bool, f: impl FnMut(&mut Tx<'_>) -> TxResult<R>) -> Result<R> {
        Ok(self.attempt(deleting, f)?)
    }

    /// Runs `f` as one transaction. If space is only waiting for a checkpoint, does that and runs
    /// `f` again; likewise if a page turns out to be lost, which `f` knows then. So `f` must not change anything in
    /// DRAM but through the transaction.
    ///
    /// `deleting` operations may use the last pages.
    pub(crate) fn attempt<R>(&self, deleting: bool, mut f: impl FnMut(&mut Tx<'_>) -> TxResult<R>) -> TxResult<R> {
        let mut waits = 0;
        loop {
            let lost = self.region.lost_pages();
            let mut tx = Tx::new(self, self.begin()?, deleting);
            match f(&mut tx) {
                Ok(value) => {
                    let empty = tx.commit()?;
                    drop(tx); // and with it the lane: what follows takes one
                    for page in empty {
                        self.release_inode_page(page);
                    }
                    return Ok(value);
                }
                // What is free in all is enough, but waits for a checkpoint, or for other lanes to
                // end what they are at (a checkpoint waits for them). Afterwards somebody else may
                // be quicker than we are.
                Err(Stop::NoSpace) if !tx.is_exhausted() && waits < 16 => {
                    drop(tx);
                    waits += 1;
                    self.checkpoint()?;
                }
                // A page that was free is not handed out again; one that is written over gets new storage. Each time
                // there is one more that is known.
                Err(Stop::LostPage(_)) if self.region.lost_pages() > lost => {}
                Err(stop) => return Err(stop),
            }
        }
    }

    fn begin(&self) -> Result<MutexGuard<'_, Lane>> {
        self.check_process()?;
        if self.region.describe().read_only {
            return Err(Error::ReadOnly);
        }
        loop {
            if let Some(lane) = self.journal.begin()? {
                return Ok(lane);
            }
            self.checkpoint()?;
        }
    }

    /// Gives back a page without inodes. If that fails the page stays, empty: what led here has
    /// happened all the same.
    pub(super) fn release_inode_page(&self, page: PageNo) {
        let Ok(at) = self.inode_page(page) else { return self.drop_inode_page(page) };
        // Before and after: once it is free its page, or its number, may become a file's.
        [page, at].into_iter().for_each(|page| self.forget_inode_page(page));
        let released = match at == page {
            true => self.transact(true, |tx| {
                tx.free(Run { page, pages: 1 }, PageUse::Inodes, 0);
                Ok(())
            }),
            false => {
                let change = self.change_layout();
                self.transact(true, |tx| {
                    tx.free(Run { page: at, pages: 1 }, PageUse::Inodes, 0);
                    tx.forward(&change, page, None)
                })
            }
        };
        if released.is_ok() {
            [page, at].into_iter().for_each(|page| self.forget_inode_page(page));
        }
        self.drop_inode_page(page);
    }
}
