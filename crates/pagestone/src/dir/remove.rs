//! Names that go, and with the last one the inode.
//!
//! ```text
//!   lock the directory ---> find the name ---> lock what it means, if that is free
//!          ^                                          | somebody has it
//!          +----- all of them at once, in order ------+
//! ```

use smallvec::SmallVec;

use super::descent::check_parent;
use super::live_directory;
use super::names::{self, Name};
use crate::alloc::TxResult;
use crate::attr::{FileType, Time};
use crate::btree::{self, TreeId};
use crate::engine::{Engine, WriteGuards};
use crate::error::{Error, Result};
use crate::extent;
use crate::layout::{InodeRec, ORPHANS};
use crate::txn::Tx;
use crate::units::Ino;

/// Inodes whose locks an operation on names takes.
pub(crate) type Inos = SmallVec<[Ino; 6]>;

/// How far a removal came.
pub(crate) enum Removal {
    /// The name is gone.
    Done,
    /// The name is gone, and this inode is an orphan now.
    Orphaned(Ino),
    /// Nothing has happened: these locks are needed from the beginning.
    Wants(Inos),
}

impl Engine {
    /// Whether losing a name may make `ino` an orphan, so that the index has to be locked.
    pub(super) fn may_be_orphaned(&self, ino: Ino) -> bool {
        let Ok(rec) = self.alloc.inode(ino) else { return false };
        self.opens.is_open(ino) || !extent::is_small(&rec)
    }

    pub(super) fn remove(&self, dir: Ino, name: &Name<'_>, is_dir: bool) -> Result<()> {
        let mut inos = Inos::from_slice(&[dir]);
        loop {
            let mut locks = self.locks.write(&inos);
            let removal = self.alloc.transact(true, |tx| {
                let removal = self.remove_in_tx(tx, &mut locks, dir, name, is_dir)?;
                if !matches!(removal, Removal::Wants(_)) {
                    tx.note_request(None)?;
                }
                Ok(removal)
            })?;
            drop(locks);
            match removal {
                Removal::Done => return Ok(()),
                Removal::Orphaned(ino) => {
                    self.reclaim_beside(ino);
                    return Ok(());
                }
                Removal::Wants(all) => inos = all,
            }
        }
    }

    /// `locks` has the directory's, so the name keeps its meaning while that is locked, too.
    pub(crate) fn remove_in_tx(
        &self,
        tx: &mut Tx<'_>,
        locks: &mut WriteGuards<'_>,
        dir: Ino,
        name: &Name<'_>,
        is_dir: bool,
    ) -> TxResult<Removal> {
        let mut parent = live_directory(tx, locks.of(dir).ino())?;
        let (found, spot) = names::find_spot(self, tx, &parent, name)?.ok_or(Error::NotFound)?;
        match (found.kind, is_dir) {
            (FileType::Dir, false) => return Err(Error::IsDirectory.into()),
            (FileType::Dir, true) | (_, false) => {}
            (_, true) => return Err(Error::NotDirectory.into()),
        }
        if !locks.try_also(found.ino) {
            return Ok(Removal::Wants(Inos::from_slice(&[dir, found.ino])));
        }
        let rec = tx.inode(found.ino)?;
        if rec.kind() == Some(FileType::Dir) {
            // By a damaged name, a directory would go that has its own name elsewhere.
            check_parent(&rec, dir)?;
        }
        // Nobody opens it while it is locked.
        let open = self.opens.is_open(found.ino);
        if (open || !extent::is_small(&rec)) && !locks.try_also(ORPHANS) {
            return Ok(Removal::Wants(Inos::from_slice(&[dir, found.ino, ORPHANS])));
        }
        let now = Time::now();
        names::take(tx, &mut parent, &found, spot)?;
        if is_dir {
            parent.nlink = parent.nlink.saturating_sub(1);
        }
        parent.touch(now);
        tx.put_inode(&parent)?;
        let orphaned = self.lose_name(tx, locks, rec, open, now)?;
        Ok(if orphaned { Removal::Orphaned(found.ino) } else { Removal::Done })
    }

    /// The inode has one name less. Returns whether it is an orphan now.
    pub(super) fn lose_name(
        &self,
        tx: &mut Tx<'_>,
        locks: &WriteGuards<'_>,
        mut rec: InodeRec,
        open: bool,
        now: Time,
    ) -> TxResult<bool> {
        let ino = locks.of(rec.ino()).ino();
        if rec.kind() == Some(FileType::Dir) {
            if rec.size > 0 {
                return Err(Error::NotEmpty.into());
            }
            // What is left of a directory that once had names is one node without entries.
            let left =
                btree::destroy_leaf(tx, TreeId::map(ino.place()), rec.map(), |_, _, _| Err(Error::NotEmpty.into()))?;
            rec.set_map(left);
            rec.nlink = 0;
        } else {
            rec.nlink = rec.nlink.saturating_sub(1);
        }
        rec.set_ctime(now);
        if rec.nlink > 0 {
            tx.put_inode(&rec)?;
            return Ok(false);
        }
        extent::drop_inode(tx, locks.orphans_if_held(), rec, open)
    }
}

/// Takes out a name that leads nowhere: for `check`.
pub(crate) fn forget_name(engine: &Engine, dir: Ino, name: &Name<'_>) -> Result<()> {
    let _lock = engine.locks.write(&[dir]);
    engine.alloc.transact(true, |tx| {
        let mut parent = live_directory(tx, dir)?;
        let found = names::find(engine, tx, &parent, name)?.ok_or(Error::NotFound)?;
        names::take(tx, &mut parent, &found, None)?;
        tx.put_inode(&parent)
    })
}
