//! Creating a tree that is a clone of another one, and removing a tree.
//!
//! Both use an explicit stack instead of recursion, so that a deep tree does not overflow the thread's stack. A
//! copy needs DRAM for that stack and for the numbers of files with several names.

use std::collections::HashMap;

use serde::Serialize;

use super::{MARK, SNAPSHOTS};
use crate::attr::{Attr, DirEntry, Kind, NewNode, SetAttr, XattrMode};
use crate::dir::Dir;
use crate::dir::Node;
use crate::engine::EngineRef;
use crate::error::{Error, Result};
use crate::units::Ino;

/// The contents of a new tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Copied {
    /// Number of regular files.
    pub files: u64,
    /// Number of directories.
    pub directories: u64,
    /// Everything else, and further names of files.
    pub others: u64,
}

/// The entries of a directory.
pub(super) fn entries(dir: &Dir) -> Result<Vec<DirEntry>> {
    dir.entries().collect()
}

struct Copy<'p> {
    engine: &'p EngineRef,
    made: Copied,
    /// Files with several names: source, and its clone.
    linked: HashMap<Ino, Ino>,
    /// Directories to be copied: source and target.
    todo: Vec<(Ino, Ino)>,
    /// Directories whose times have to be set after all entries were created in them.
    times: Vec<(Ino, Attr)>,
}

/// Makes `name` in `dir` a clone of `from` and everything beneath it.
pub(super) fn copy(engine: &EngineRef, from: Ino, dir: &Dir, name: &[u8]) -> Result<Copied> {
    let mut copy =
        Copy { engine, made: Copied::default(), linked: HashMap::new(), todo: Vec::new(), times: Vec::new() };
    copy.one(from, dir, name)?;
    while let Some((from, to)) = copy.todo.pop() {
        let (from, to) = (engine.node(from)?.dir()?, engine.node(to)?.dir()?);
        for entry in entries(&from)? {
            let is_snapshots = from.ino() == engine.root().ino() && entry.name == SNAPSHOTS;
            if !is_snapshots {
                // A file that was removed meanwhile is skipped.
                match copy.one(entry.ino, &to, &entry.name) {
                    Err(Error::Stale(_)) => {}
                    done => done?,
                }
            }
        }
    }
    for (ino, attr) in copy.times.iter().rev() {
        engine.node(*ino)?.set_attr(&times(attr))?;
    }
    Ok(copy.made)
}

fn times(attr: &Attr) -> SetAttr {
    SetAttr { atime: Some(attr.atime), mtime: Some(attr.mtime), ..SetAttr::default() }
}

impl Copy<'_> {
    fn one(&mut self, from: Ino, dir: &Dir, name: &[u8]) -> Result<()> {
        let node = self.engine.node(from)?;
        let attr = node.attr()?;
        if let Some(clone) = self.linked.get(&from) {
            self.made.others += 1;
            return dir.link(name, *clone).map(drop);
        }
        let made = match attr.kind {
            Kind::File => {
                self.made.files += 1;
                dir.clone_file(name, from)?.ino
            }
            Kind::Dir => {
                self.made.directories += 1;
                self.make(&node, &attr, dir, name)?
            }
            _ => {
                self.made.others += 1;
                self.make(&node, &attr, dir, name)?
            }
        };
        let clone = self.engine.node(made)?;
        for name in node.xattrs()?.into_iter().filter(|name| name != MARK) {
            clone.set_xattr(&name, &node.xattr(&name)?, XattrMode::Set)?;
        }
        match attr.kind {
            Kind::Dir => {
                self.todo.push((from, made));
                self.times.push((made, attr));
            }
            _ if attr.nlink > 1 => drop(self.linked.insert(from, made)),
            _ => {}
        }
        Ok(())
    }

    /// Creates anything but a regular file.
    fn make(&self, node: &Node, attr: &Attr, dir: &Dir, name: &[u8]) -> Result<Ino> {
        let target = if attr.kind == Kind::Symlink { node.read_link()? } else { Vec::new() };
        let new = NewNode {
            kind: attr.kind,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            target: &target,
        };
        let made = dir.create(name, &new)?.ino;
        if attr.kind != Kind::Dir {
            self.engine.node(made)?.set_attr(&times(attr))?;
        }
        Ok(made)
    }
}

impl Dir {
    /// Removes `name` and everything beneath it, the deepest entries first. Returns the number of names removed.
    ///
    /// # Errors
    /// [`Error::NotFound`], and errors of the media. What was removed before the error stays removed.
    pub fn remove_tree(&self, name: &[u8]) -> Result<u64> {
        let top = self.lookup(name)?;
        if top.kind != Kind::Dir {
            return self.unlink(name).map(|()| 1);
        }
        let engine = self.engine();
        // Directories, with their parent and their name in it. The second visit finds them empty.
        let mut stack = vec![(self.ino(), name.to_vec(), top.ino)];
        let mut removed = 0;
        while let Some((parent, name, ino)) = stack.pop() {
            let dir = engine.node(ino)?.dir()?;
            let inside = entries(&dir)?;
            if inside.is_empty() {
                engine.node(parent)?.dir()?.rmdir(&name)?;
                removed += 1;
                continue;
            }
            stack.push((parent, name, ino));
            for entry in inside {
                if entry.kind == Kind::Dir {
                    stack.push((ino, entry.name, entry.ino));
                } else {
                    dir.unlink(&entry.name)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}
