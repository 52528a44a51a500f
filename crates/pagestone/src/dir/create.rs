//! New names: for new inodes, and for old ones.

use super::live_directory;
use super::names::{self, Name};
use crate::alloc::TxResult;
use crate::attr::{Attr, FileType, NewNode, Time};
use crate::data::write_plan::{Take, write_in_tx};
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Result};
use crate::layout::InodeRec;
use crate::txn::Tx;
use crate::units::Ino;

/// Most hard links of an inode.
const MAX_LINKS: u32 = 1 << 30;

impl Engine {
    pub(crate) fn create(&self, dir: Ino, name: &Name<'_>, node: &NewNode<'_>) -> Result<Attr> {
        check_target(node)?;
        let _lock = self.locks.write(&[dir]);
        self.alloc.transact(false, |tx| {
            let made = self.create_in_tx(tx, dir, name, |tx, parent, now| new_inode(tx, parent, node, now))?;
            tx.note_request(Some(made.ino()))?;
            Ok(made.attr()?)
        })
    }

    /// Gives the inode that `make` makes, and has staged, a name.
    pub(crate) fn create_in_tx(
        &self,
        tx: &mut Tx<'_>,
        dir: Ino,
        name: &Name<'_>,
        make: impl FnOnce(&mut Tx<'_>, &InodeRec, Time) -> TxResult<InodeRec>,
    ) -> TxResult<InodeRec> {
        let mut parent = live_directory(tx, dir)?;
        let key = names::free_key(self, tx, &parent, name)?;
        let now = Time::now();
        let rec = make(tx, &parent, now)?;
        let kind = rec.kind().ok_or(Error::Stale(rec.ino().0))?;
        names::add(tx, &mut parent, key, name, rec.ino(), kind)?;
        if kind == FileType::Dir {
            parent.nlink = checked_links(parent.nlink)?;
        }
        parent.touch(now);
        tx.put_inode(&parent)?;
        Ok(rec)
    }

    pub(super) fn link(&self, dir: Ino, name: &Name<'_>, ino: Ino) -> Result<Attr> {
        let locks = self.locks.write(&[dir, ino]);
        self.alloc.transact(false, |tx| {
            let rec = self.link_in_tx(tx, (locks.of(dir), name), locks.of(ino))?;
            tx.note_request(None)?;
            Ok(self.attr_of(&rec)?)
        })
    }

    /// Gives an inode another name.
    pub(crate) fn link_in_tx(
        &self,
        tx: &mut Tx<'_>,
        (dir, name): (InodeWrite<'_>, &Name<'_>),
        inode: InodeWrite<'_>,
    ) -> TxResult<InodeRec> {
        let ino = inode.ino();
        let mut parent = live_directory(tx, dir.ino())?;
        let free = names::free_key(self, tx, &parent, name)?;
        let mut rec = tx.inode(ino)?;
        let kind = rec.kind().ok_or(Error::Stale(ino.0))?;
        match kind {
            FileType::Dir => return Err(Error::IsDirectory.into()),
            _ if rec.nlink == 0 => return Err(Error::NotFound.into()),
            _ => {}
        }
        let now = Time::now();
        names::add(tx, &mut parent, free, name, ino, kind)?;
        parent.touch(now);
        tx.put_inode(&parent)?;
        rec.nlink = checked_links(rec.nlink)?;
        rec.set_ctime(now);
        tx.put_inode(&rec)?;
        Ok(rec)
    }
}

/// Gives an inode that has no name one, whatever its kind and link count: for `check`.
pub(crate) fn name_again(engine: &Engine, dir: Ino, name: &Name<'_>, ino: Ino) -> Result<()> {
    let _lock = engine.locks.write(&[dir, ino]);
    engine.alloc.transact(false, |tx| {
        let mut parent = live_directory(tx, dir)?;
        let mut rec = tx.inode(ino)?;
        let kind = rec.kind().ok_or(Error::Stale(ino.0))?;
        let free = names::free_key(engine, tx, &parent, name)?;
        names::add(tx, &mut parent, free, name, ino, kind)?;
        if kind == FileType::Dir {
            parent.nlink = checked_links(parent.nlink)?;
            rec.parent = dir.0;
        } else {
            rec.nlink = 1;
        }
        tx.put_inode(&parent)?;
        tx.put_inode(&rec)
    })
}

/// Refuses a symbolic link whose target has no bytes or too many.
pub(crate) fn check_target(node: &NewNode<'_>) -> Result<()> {
    match node.target.len() {
        _ if node.kind != FileType::Symlink => Ok(()),
        0 => Err(Error::NotFound),
        1..=4095 => Ok(()),
        _ => Err(Error::NameTooLong),
    }
}

/// One link more.
pub(super) fn checked_links(links: u32) -> Result<u32> {
    if links >= MAX_LINKS { Err(Error::TooManyLinks) } else { Ok(links + 1) }
}

/// Makes an inode without a name, in the directory `parent` if it is one itself.
pub(crate) fn new_inode(tx: &mut Tx<'_>, parent: &InodeRec, node: &NewNode<'_>, now: Time) -> TxResult<InodeRec> {
    let ino = tx.new_ino()?;
    let mut rec = InodeRec::new(ino, node.kind, node.perm, now);
    (rec.uid, rec.gid, rec.rdev) = (node.uid, node.gid, node.rdev);
    match node.kind {
        FileType::Dir => rec.parent = parent.ino().0,
        FileType::Symlink if node.target.len() <= InodeRec::INLINE_TARGET => {
            rec.size = node.target.len() as u64;
            rec.set_inline_target(node.target);
        }
        FileType::Symlink => {
            write_in_tx(tx, &mut rec, 0, node.target, 0, Take::Exactly)?;
        }
        _ => {}
    }
    tx.put_inode(&rec)?;
    Ok(rec)
}
