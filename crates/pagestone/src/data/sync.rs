//! Making things durable, and what the close of a file leaves to do.
//!
//! ```text
//!   sync of a file   its stores through mappings, its times --> the journal --> merges that waited for it
//!   sync of a pool   the same of every open file
//!   close            the last handle: stores, times, what was taken ahead of need, an unnamed file's storage
//! ```

use crate::engine::{Engine, OpenInode};
use crate::error::{Error, Result};
use crate::units::Ino;

impl Engine {
    pub(crate) fn sync_all(&self) -> Result<()> {
        self.alloc.check_process()?;
        if self.alloc.region.describe().read_only {
            return Ok(());
        }
        // One file whose record is lost must not keep the others from being durable.
        let mut settled = Ok(());
        for ino in if self.stores_need_flush() { self.opens.all_stored() } else { Vec::new() } {
            match self.persist_stored(ino) {
                Ok(()) | Err(Error::Stale(_)) => {}
                Err(e) => settled = settled.and(Err(e)),
            }
        }
        for ino in self.opens.all_touched() {
            match self.write_pending_times(ino) {
                Ok(()) | Err(Error::Stale(_)) => {}
                Err(e) => settled = settled.and(Err(e)),
            }
        }
        settled.and(self.sync_and_merge())
    }

    /// Makes durable what was done so far, and merges the bases that wait for that.
    fn sync_and_merge(&self) -> Result<()> {
        let merges = self.take_merges();
        let synced = self.alloc.journal.sync();
        match &synced {
            Ok(()) => self.merge_bases(&merges),
            Err(_) => self.merge_later(&merges),
        }
        synced
    }

    pub(crate) fn sync_inode(&self, ino: Ino) -> Result<()> {
        self.alloc.check_process()?;
        if self.alloc.region.describe().read_only {
            return Ok(());
        }
        let settled = self.persist_stored(ino).and(self.write_pending_times(ino));
        settled.and(self.sync_and_merge())
    }

    /// A handle of a file has gone. Errors of what the last one leaves to do are noted: nobody waits for them.
    pub(crate) fn close_file(&self, ino: Ino, open: &OpenInode) {
        if self.alloc.check_process().is_err() {
            return;
        }
        if self.alloc.region.describe().read_only {
            self.opens.close(ino);
            return;
        }
        let last = self.opens.close_unless_pending(ino).unwrap_or_else(|| {
            // Nobody opens it, and nobody else closes it, while it is locked: one handle finds that it is the last.
            let lock = self.locks.write(&[ino]);
            let held = lock.of(ino);
            if self.opens.is_last(held) {
                self.failures.note("stores through mappings of a file at its close", self.persist_stored_locked(held));
                self.failures.note("times of a file at its close", self.write_pending_times_locked(held));
                self.failures.note("giving back what was taken ahead", self.trim_locked(held, open));
            }
            self.opens.close(ino)
        });
        if last {
            let unnamed = {
                let _lock = self.locks.read(ino);
                self.alloc.inode(ino).is_ok_and(|rec| rec.nlink == 0)
            };
            if unnamed {
                self.reclaim_beside(ino);
            }
        }
    }
}
