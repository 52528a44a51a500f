//! Which directories a descent into a tree enters, so that it ends and stays in the tree, whatever the media say.
//!
//! ```text
//!   directory --name--> child    entered if its record names this directory as its parent,
//!                                at the first such name, and unless the descent has begun there
//! ```
//!
//! A record names one parent. So a directory is entered from one other, and once while that is listed: no descent takes
//! more steps than there are directories, unless others move some meanwhile. `check` finds names that break the rule.

use std::collections::HashSet;

use super::directory;
use super::names::{self, Name};
use crate::attr::{DirEntry, FileType};
use crate::engine::Engine;
use crate::error::{Error, Place, Result};
use crate::layout::InodeRec;
use crate::units::Ino;

/// What a name of a directory means for a descent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Child {
    /// A directory that is entered.
    Enter,
    /// No directory, or one that was entered by another name of this directory.
    Pass,
    /// A directory that lies elsewhere, says its record, or the start. It was moved after it had been listed, or the name
    /// is damaged.
    Elsewhere,
}

/// One directory of a descent.
#[derive(Clone, Debug)]
pub(crate) struct Descent {
    start: Ino,
    dir: Ino,
    /// What was entered from here.
    entered: HashSet<Ino>,
}

impl Descent {
    /// Begins at this directory.
    pub(crate) fn new(start: Ino) -> Descent {
        Descent { start, dir: start, entered: HashSet::new() }
    }

    /// Goes on in a directory that was found here.
    pub(crate) fn below(&self, dir: Ino) -> Descent {
        Descent { start: self.start, dir, entered: HashSet::new() }
    }

    /// The directory.
    pub(crate) fn dir(&self) -> Ino {
        self.dir
    }

    /// What an entry of the directory means.
    pub(crate) fn child(&mut self, engine: &Engine, entry: &DirEntry) -> Result<Child> {
        if entry.kind != FileType::Dir {
            return Ok(Child::Pass);
        }
        if entry.ino == self.start || engine.parent(entry.ino)? != self.dir {
            return Ok(Child::Elsewhere);
        }
        Ok(if self.entered.insert(entry.ino) { Child::Enter } else { Child::Pass })
    }

    /// As [`Descent::child`], for whoever cannot leave out what is damaged.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a name whose directory lies elsewhere, unless it was moved meanwhile.
    pub(crate) fn checked_child(&mut self, engine: &Engine, entry: &DirEntry) -> Result<Child> {
        let child = self.child(engine, entry)?;
        if child == Child::Elsewhere {
            engine.check_child(self.dir, &entry.name, entry.ino)?;
        }
        Ok(child)
    }
}

impl Engine {
    /// The directory that holds this one, as its record says.
    pub(crate) fn parent(&self, dir: Ino) -> Result<Ino> {
        let _lock = self.locks.read(dir);
        Ok(Ino(directory(self.alloc.inode(dir)?)?.parent))
    }

    /// Fails if the name leads to this directory, and the directory's record names another parent.
    pub(crate) fn check_child(&self, dir: Ino, name: &[u8], child: Ino) -> Result<()> {
        // A move changes the names and the record under these locks.
        let _locks = self.locks.read_two(dir, child);
        let rec = directory(self.alloc.inode(dir)?)?;
        let found = names::find(self, &self.alloc, &rec, &Name::new(name)?)?;
        if found.is_some_and(|found| found.ino == child) {
            check_parent(&directory(self.alloc.inode(child)?)?, dir)?;
        }
        Ok(())
    }
}

/// Fails if the record of a directory that was found in `dir` names another parent. The root, which names itself, is in no
/// directory.
pub(super) fn check_parent(rec: &InodeRec, dir: Ino) -> Result<()> {
    if rec.parent == dir.0 && rec.ino() != dir {
        return Ok(());
    }
    let what = format!("{dir} has a name for it, and its record says that it is in {}", Ino(rec.parent));
    Err(Error::corrupt(Place::Inode(rec.ino()), what))
}
