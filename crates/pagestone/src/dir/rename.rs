//! Names that move.
//!
//! ```text
//!   replace     from: name gone      to: name -> moved inode, what it meant before loses a name
//!   exchange    from: name -> b      to: name -> a
//!   whiteout    from: name -> a character device 0, 0, which hides a name in a lower layer
//! ```
//!
//! A directory that moves takes its parent's link count along and learns its new parent. It must
//! not move below itself: renames between directories hold one lock while the ancestors are
//! looked at, so they cannot change meanwhile.

use super::create::{checked_links, new_inode};
use super::live_directory;
use super::names::{self, Found, Name};
use super::remove::Inos;
use crate::alloc::TxResult;
use crate::attr::{FileType, NewNode, RenameMode, Time};
use crate::engine::{Engine, WriteGuards};
use crate::error::{Error, Place, Result};
use crate::layout::{ORPHANS, ROOT};
use crate::lock::MutexGuard;
use crate::txn::Tx;
use crate::units::Ino;

/// A name and its directory.
pub(crate) type NameIn<'a> = (Ino, &'a Name<'a>);

/// Deepest directory tree that a rename follows upwards; more is damage.
const MAX_DEPTH: u32 = 1 << 20;

/// One rename, with what its names were found to mean.
struct Move<'a> {
    from: NameIn<'a>,
    to: NameIn<'a>,
    a: Found,
    b: Option<Found>,
    mode: RenameMode,
    leave: Leave,
}

/// A rename in a transaction of the caller: the places, and what their names mean there.
pub(crate) struct RenameIn<'a> {
    pub(crate) from: NameIn<'a>,
    pub(crate) to: NameIn<'a>,
    pub(crate) a: Found,
    pub(crate) b: Option<Found>,
    pub(crate) mode: RenameMode,
}

/// What a rename leaves at the old name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leave {
    /// Nothing.
    Nothing,
    /// A whiteout.
    Whiteout,
}

impl Engine {
    pub(super) fn rename(&self, from: NameIn<'_>, to: NameIn<'_>, mode: RenameMode, leave: Leave) -> Result<()> {
        let ancestors = (from.0 != to.0).then(|| self.renames.lock());
        self.rename_beside(ancestors.as_ref(), from, to, mode, leave)
    }

    /// As [`Engine::rename`], for whoever holds [`Engine::renames`] already. Between two directories it is needed.
    pub(super) fn rename_beside(
        &self,
        ancestors: Option<&MutexGuard<'_, ()>>,
        from: NameIn<'_>,
        to: NameIn<'_>,
        mode: RenameMode,
        leave: Leave,
    ) -> Result<()> {
        debug_assert!(ancestors.is_some() || from.0 == to.0, "the ancestors of a directory may change");
        loop {
            let a = self.find(from.0, from.1)?.ok_or(Error::NotFound)?;
            let b = self.find(to.0, to.1)?;
            let m = Move { from, to, a, b, mode, leave };
            self.check_ancestors(&m)?;
            let mut inos = Inos::from_slice(&[from.0, to.0, a.ino]);
            inos.extend(b.map(|b| b.ino));
            let orphanable = b.is_some_and(|b| self.may_be_orphaned(b.ino));
            if orphanable {
                inos.push(ORPHANS);
            }
            let moved = {
                let locks = self.locks.write(&inos);
                if b.is_some_and(|b| self.may_be_orphaned(b.ino)) && !orphanable {
                    continue;
                }
                // A whiteout takes space: it must not take what is kept for freeing some.
                self.alloc.transact(leave == Leave::Nothing, |tx| {
                    let moved = self.rename_in_tx(tx, &locks, &m)?;
                    if moved.is_some() {
                        tx.note_request(None)?;
                    }
                    Ok(moved)
                })?
            };
            match (moved, b) {
                (None, _) => {} // a name means something else by now
                (Some(true), Some(b)) => {
                    self.reclaim_beside(b.ino);
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    /// Refuses to move a directory below itself.
    fn check_ancestors(&self, m: &Move<'_>) -> Result<()> {
        check_ancestors(m, |dir| self.parent(dir))
    }

    /// Whether a directory is this one, or lies beneath it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the directories above it do not lead to the root.
    pub(crate) fn is_beneath(&self, dir: Ino, above: Ino) -> Result<bool> {
        is_ancestor(above, dir, &mut |dir| self.parent(dir))
    }

    /// A rename in a transaction of the caller, who holds [`Engine::renames`]; `parent` says which
    /// directory holds one, and locks it. Returns the inode that is an orphan now.
    pub(crate) fn rename_in(
        &self,
        tx: &mut Tx<'_>,
        locks: &WriteGuards<'_>,
        rename: RenameIn<'_>,
        parent: impl FnMut(&Tx<'_>, Ino) -> Result<Ino>,
    ) -> TxResult<Option<Ino>> {
        let RenameIn { from, to, a, b, mode } = rename;
        let m = Move { from, to, a, b, mode, leave: Leave::Nothing };
        let mut parent = parent;
        check_ancestors(&m, |dir| parent(tx, dir))?;
        let orphaned = self.rename_in_tx(tx, locks, &m)?.ok_or(Error::NotFound)?;
        Ok(b.filter(|_| orphaned).map(|b| b.ino))
    }

    /// `None` if a name has changed its meaning; else whether what was replaced is an orphan now.
    fn rename_in_tx(&self, tx: &mut Tx<'_>, locks: &WriteGuards<'_>, m: &Move<'_>) -> TxResult<Option<bool>> {
        let mut old = live_directory(tx, m.from.0)?;
        let target = live_directory(tx, m.to.0)?;
        if names::find(self, tx, &old, m.from.1)? != Some(m.a) || names::find(self, tx, &target, m.to.1)? != m.b {
            return Ok(None);
        }
        let now = Time::now();
        match (m.b, m.mode) {
            (Some(_), RenameMode::NoReplace) => return Err(Error::Exists.into()),
            (None, RenameMode::Exchange) => return Err(Error::NotFound.into()),
            (Some(b), _) if b.ino == m.a.ino => return Ok(Some(false)), // two names of one file
            (Some(b), RenameMode::Exchange) => return self.exchange(tx, m, &b, now).map(Some),
            (Some(b), _) => match (m.a.kind == FileType::Dir, b.kind == FileType::Dir) {
                (true, false) => return Err(Error::NotDirectory.into()),
                (false, true) => return Err(Error::IsDirectory.into()),
                _ => {}
            },
            (None, _) => {}
        }
        let orphaned = match m.b {
            Some(b) => {
                let rec = tx.inode(b.ino)?;
                self.lose_name(tx, locks, rec, self.opens.is_open(b.ino), now)?
            }
            None => false,
        };
        match m.leave {
            Leave::Nothing => names::take(tx, &mut old, &m.a, None)?,
            Leave::Whiteout => {
                let whiteout = new_inode(tx, &old, &NewNode::new(FileType::CharDevice, 0), now)?;
                names::redirect(tx, &mut old, &m.a, m.from.1, whiteout.ino(), FileType::CharDevice)?;
            }
        }
        if m.a.kind == FileType::Dir {
            old.nlink = old.nlink.saturating_sub(1);
        }
        old.touch(now);
        tx.put_inode(&old)?;
        let mut new = live_directory(tx, m.to.0)?;
        match m.b {
            Some(b) => names::redirect(tx, &mut new, &b, m.to.1, m.a.ino, m.a.kind)?,
            None => {
                let free = names::free_key(self, tx, &new, m.to.1)?;
                names::add(tx, &mut new, free, m.to.1, m.a.ino, m.a.kind)?;
            }
        }
        // A directory that replaces another takes over its place in the parent's count.
        if m.a.kind == FileType::Dir && m.b.is_none() {
            new.nlink = checked_links(new.nlink)?;
        }
        new.touch(now);
        tx.put_inode(&new)?;
        settle_moved(tx, m.a.ino, m.to.0, now)?;
        Ok(Some(orphaned))
    }

    fn exchange(&self, tx: &mut Tx<'_>, m: &Move<'_>, b: &Found, now: Time) -> TxResult<bool> {
        let mut old = live_directory(tx, m.from.0)?;
        names::redirect(tx, &mut old, &m.a, m.from.1, b.ino, b.kind)?;
        old.nlink =
            old.nlink + u32::from(b.kind == FileType::Dir) - u32::from(m.a.kind == FileType::Dir).min(old.nlink);
        old.touch(now);
        tx.put_inode(&old)?;
        let mut new = live_directory(tx, m.to.0)?;
        names::redirect(tx, &mut new, b, m.to.1, m.a.ino, m.a.kind)?;
        new.nlink =
            new.nlink + u32::from(m.a.kind == FileType::Dir) - u32::from(b.kind == FileType::Dir).min(new.nlink);
        new.touch(now);
        tx.put_inode(&new)?;
        settle_moved(tx, m.a.ino, m.to.0, now)?;
        settle_moved(tx, b.ino, m.from.0, now)?;
        Ok(false)
    }
}

/// Refuses to move a directory below itself.
fn check_ancestors(m: &Move<'_>, mut parent: impl FnMut(Ino) -> Result<Ino>) -> Result<()> {
    if m.from.0 == m.to.0 {
        return Ok(());
    }
    let exchanged = m.b.filter(|b| m.mode == RenameMode::Exchange && b.kind == FileType::Dir);
    let below = m.a.kind == FileType::Dir && is_ancestor(m.a.ino, m.to.0, &mut parent)?;
    if below || exchanged.map_or(Ok(false), |b| is_ancestor(b.ino, m.from.0, &mut parent))? {
        return Err(Error::Invalid("a directory cannot be moved into itself"));
    }
    Ok(())
}

fn is_ancestor(ancestor: Ino, mut dir: Ino, parent: &mut impl FnMut(Ino) -> Result<Ino>) -> Result<bool> {
    for _ in 0..MAX_DEPTH {
        if dir == ancestor {
            return Ok(true);
        }
        if dir == ROOT {
            return Ok(false);
        }
        dir = parent(dir)?;
    }
    Err(Error::corrupt(Place::Inode(dir), "its ancestors do not lead to the root"))
}

/// The inode has another name now; a directory learns its parent.
fn settle_moved(tx: &mut Tx<'_>, ino: Ino, parent: Ino, now: Time) -> TxResult<()> {
    let mut rec = tx.inode(ino)?;
    if rec.kind() == Some(FileType::Dir) {
        rec.parent = parent.0;
    }
    rec.set_ctime(now);
    tx.put_inode(&rec)
}
