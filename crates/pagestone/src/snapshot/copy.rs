//! Creating a tree that is a clone of another one.
//!
//! ```text
//!   record --> copy directory by directory --> catch up: copy again what has changed --> pause: the rest of it --> go on
//!   changes    others read and write           others read and write (catch_up.rs)       others wait
//! ```
//!
//! It is not recursive, so that a deep tree does not overflow the thread's stack. Until it is complete, it needs DRAM for
//! the number of each inode's copy, and for the directories that are still to be copied.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{OWN, SNAPSHOTS};
use crate::attr::{Attr, DirEntry, FileType, NewNode, SetAttr, XattrMode};
use crate::dir::{Child, Descent, Dir, Node};
use crate::engine::EngineRef;
use crate::error::{Error, Place, Result};
use crate::units::Ino;

/// The contents of a new tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Copied {
    /// Number of regular files.
    pub files: u64,
    /// Number of directories.
    pub directories: u64,
    /// Everything else, and further names of files.
    pub others: u64,
    /// How long all other operations on the pool had to wait, in nanoseconds.
    #[serde(default)]
    pub pause_ns: u64,
}

/// The entries of a directory.
pub(super) fn entries(dir: &Dir) -> Result<Vec<DirEntry>> {
    dir.entries().collect()
}

/// A name that the copy `to` of the directory `from` lacks.
pub(super) struct Missing {
    pub(super) from: Ino,
    pub(super) to: Ino,
    pub(super) entry: DirEntry,
}

/// A tree that is being copied.
pub(super) struct Copy<'p> {
    pub(super) engine: &'p EngineRef,
    /// The directory for trees that are not complete.
    pub(super) workspace: &'p Dir,
    pub(super) made: Copied,
    /// The top of the source.
    pub(super) top: Ino,
    /// The copy of each inode.
    pub(super) copies: HashMap<Ino, Ino>,
    /// What was copied since this was cleared.
    pub(super) fresh: HashSet<Ino>,
    /// Names of directories that were found after the directories had been copied elsewhere: they were moved.
    pub(super) moved: Vec<Missing>,
    /// Directories to be copied: source and target.
    todo: Vec<(Descent, Ino)>,
    /// Directories whose times have to be set after all entries were created in them.
    times: Vec<(Ino, Attr)>,
}

/// Makes `name` in `dir` a clone of `from` and everything beneath it, as it is at one moment. What else that takes lies in
/// `dir` meanwhile.
pub(super) fn copy(engine: &EngineRef, from: Ino, dir: &Dir, name: &[u8]) -> Result<Copied> {
    copy_beside(engine, from, dir, name, || {})
}

/// As [`copy`]. `meanwhile` is called between the copy and what brings it to one moment.
pub(super) fn copy_beside(
    engine: &EngineRef,
    from: Ino,
    dir: &Dir,
    name: &[u8],
    meanwhile: impl FnOnce(),
) -> Result<Copied> {
    let recording = engine.alloc.changed.record();
    let mut copy = Copy {
        engine,
        workspace: dir,
        made: Copied::default(),
        top: from,
        copies: HashMap::new(),
        fresh: HashSet::new(),
        moved: Vec::new(),
        todo: Vec::new(),
        times: Vec::new(),
    };
    if let Some(made) = copy.one(from, dir, name)? {
        copy.todo.push((Descent::new(from), made));
    }
    copy.finish_directories()?;
    meanwhile();
    copy.catch_up(&recording)?;
    Ok(copy.made)
}

pub(super) fn times(attr: &Attr) -> SetAttr {
    SetAttr { atime: Some(attr.atime), mtime: Some(attr.mtime), ..SetAttr::default() }
}

impl Copy<'_> {
    /// Copies everything beneath the directories that were copied without their entries.
    pub(super) fn finish_directories(&mut self) -> Result<()> {
        while let Some((mut from, to)) = self.todo.pop() {
            let to = self.engine.node(to)?.dir()?;
            let entries = match self.entries(from.dir()) {
                // It was removed after it was copied.
                Err(Error::Stale(_)) => continue,
                entries => entries?,
            };
            for entry in entries {
                // A file that was removed meanwhile is skipped.
                match self.entry(&mut from, &entry, &to) {
                    Err(Error::Stale(_)) => {}
                    done => done?,
                }
            }
        }
        for (ino, attr) in self.times.drain(..).rev() {
            self.engine.node(ino)?.set_attr(&times(&attr))?;
        }
        Ok(())
    }

    /// The entries of a directory of the source.
    pub(super) fn entries(&self, dir: Ino) -> Result<Vec<DirEntry>> {
        let mut all = entries(&self.engine.node(dir)?.dir()?)?;
        if dir == self.engine.root().ino() {
            all.retain(|entry| entry.name != SNAPSHOTS);
        }
        Ok(all)
    }

    /// Copies an entry of the directory `from`. A directory that was moved away meanwhile is skipped.
    pub(super) fn entry(&mut self, from: &mut Descent, entry: &DirEntry, to: &Dir) -> Result<()> {
        let child = from.checked_child(self.engine, entry)?;
        if entry.kind == FileType::Dir && child != Child::Enter {
            return Ok(());
        }
        match (self.one(entry.ino, to, &entry.name)?, child) {
            (None, Child::Enter) => {
                self.moved.push(Missing { from: from.dir(), to: to.ino(), entry: entry.clone() });
                Ok(())
            }
            (None, _) => Ok(()),
            (Some(made), Child::Enter) => {
                self.todo.push((from.below(entry.ino), made));
                Ok(())
            }
            (Some(_), _) => Err(Error::corrupt(Place::Inode(entry.ino), "a directory whose name is that of a file")),
        }
    }

    /// Copies one inode. Returns the number of the copy if it is a directory, whose entries have to be copied. A directory
    /// that was copied elsewhere gets no second name.
    fn one(&mut self, from: Ino, dir: &Dir, name: &[u8]) -> Result<Option<Ino>> {
        let node = self.engine.node(from)?;
        let attr = node.attr()?;
        if let Some(&copy) = self.copies.get(&from) {
            if attr.kind != FileType::Dir {
                dir.link(name, copy)?;
                self.made.others += 1;
            }
            return Ok(None);
        }
        let made = match attr.kind {
            FileType::File => {
                self.made.files += 1;
                dir.clone_file(name, from)?.ino
            }
            FileType::Dir => {
                self.made.directories += 1;
                self.make(&node, &attr, dir, name)?
            }
            _ => {
                self.made.others += 1;
                self.make(&node, &attr, dir, name)?
            }
        };
        self.copies.insert(from, made);
        self.fresh.insert(from);
        copy_xattrs(&node, &self.engine.node(made)?)?;
        if attr.kind == FileType::Dir {
            self.times.push((made, attr));
            return Ok(Some(made));
        }
        Ok(None)
    }

    /// Creates anything but a regular file.
    fn make(&self, node: &Node, attr: &Attr, dir: &Dir, name: &[u8]) -> Result<Ino> {
        let target = if attr.kind == FileType::Symlink { node.read_link()? } else { Vec::new() };
        let new = NewNode {
            kind: attr.kind,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            target: &target,
        };
        let made = dir.create(name, &new)?.ino;
        if attr.kind != FileType::Dir {
            self.engine.node(made)?.set_attr(&times(attr))?;
        }
        Ok(made)
    }
}

/// Gives `to` the extended attributes of `from`, and no others. Those of the pool stay where they are.
pub(super) fn copy_xattrs(from: &Node, to: &Node) -> Result<()> {
    let theirs = |node: &Node| -> Result<Vec<Vec<u8>>> {
        let mut names = node.xattrs()?;
        names.retain(|name| !name.starts_with(OWN));
        Ok(names)
    };
    let mut old = theirs(to)?;
    for name in theirs(from)? {
        old.retain(|old| *old != name);
        let value = match from.xattr(&name) {
            // It was removed after it was listed.
            Err(Error::NoAttribute) => continue,
            value => value?,
        };
        if !to.xattr(&name).is_ok_and(|old| old == value) {
            to.set_xattr(&name, &value, XattrMode::Set)?;
        }
    }
    old.iter().try_for_each(|name| to.remove_xattr(name))
}
