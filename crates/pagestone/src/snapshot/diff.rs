//! The differences between two trees.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::copy::entries;
use super::{OWN, SNAPSHOTS};
use crate::attr::{Attr, DirEntry, FileType};
use crate::dir::{Child, Descent, Node};
use crate::engine::EngineRef;
use crate::error::Result;
use crate::units::Ino;

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Change {
    /// Relative to the top of both trees, with a leading `/`.
    pub path: String,
    /// The kind of change.
    pub what: What,
    /// For a changed file: the number of bytes that differ, in pages for the range that both have.
    pub bytes: u64,
}

/// The kind of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum What {
    /// It is only in the newer tree.
    Added,
    /// It is only in the older tree.
    Removed,
    /// Its contents, its target or its kind differ.
    Modified,
    /// Owner, mode, times of the contents or extended attributes differ, but the contents do not.
    Attributes,
}

struct Diff<'p> {
    engine: &'p EngineRef,
    changes: Vec<Change>,
    /// Directories that both trees have, and their path.
    todo: Vec<(Descent, Descent, String)>,
}

pub(super) fn diff(engine: &EngineRef, old: Ino, new: Ino) -> Result<Vec<Change>> {
    let mut diff =
        Diff { engine, changes: Vec::new(), todo: vec![(Descent::new(old), Descent::new(new), String::new())] };
    let (one, other) = (engine.node(old)?, engine.node(new)?);
    if attributes(&one.attr()?) != attributes(&other.attr()?) || !same_xattrs(&one, &other)? {
        diff.change("/".into(), What::Attributes, 0);
    }
    while let Some((old, new, path)) = diff.todo.pop() {
        diff.directory((old, new), &path)?;
    }
    diff.changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(diff.changes)
}

impl Diff<'_> {
    fn names(&self, ino: Ino) -> Result<BTreeMap<Vec<u8>, DirEntry>> {
        let is_root = ino == self.engine.root().ino();
        let all = entries(&self.engine.node(ino)?.dir()?)?;
        Ok(all.into_iter().filter(|e| !(is_root && e.name == SNAPSHOTS)).map(|e| (e.name.clone(), e)).collect())
    }

    fn change(&mut self, path: String, what: What, bytes: u64) {
        self.changes.push(Change { path, what, bytes });
    }

    fn directory(&mut self, (mut old, mut new): (Descent, Descent), path: &str) -> Result<()> {
        let (before, mut after) = (self.names(old.dir())?, self.names(new.dir())?);
        for (name, a) in before {
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            match after.remove(&name) {
                None => self.only_in(&mut old, &a, path, What::Removed)?,
                Some(b) if a.kind != b.kind => self.change(path, What::Modified, 0),
                Some(b) => self.both((&mut old, &a), (&mut new, &b), path)?,
            }
        }
        for (name, b) in after {
            self.only_in(&mut new, &b, format!("{path}/{}", String::from_utf8_lossy(&name)), What::Added)?;
        }
        Ok(())
    }

    /// Reports a name that only one tree has, and everything beneath it.
    fn only_in(&mut self, dir: &mut Descent, entry: &DirEntry, path: String, what: What) -> Result<()> {
        if dir.checked_child(self.engine, entry)? == Child::Enter {
            for below in self.engine.node(entry.ino)?.dir()?.walk() {
                self.change(format!("{path}/{}", below?.path().display()), what, 0);
            }
        }
        self.change(path, what, 0);
        Ok(())
    }

    /// Compares what a name means in both trees. What is beneath it follows later.
    fn both(&mut self, old: (&mut Descent, &DirEntry), new: (&mut Descent, &DirEntry), path: String) -> Result<()> {
        let ((old, a), (new, b)) = (old, new);
        let (one, other) = (self.engine.node(a.ino)?, self.engine.node(b.ino)?);
        let (x, y) = (one.attr()?, other.attr()?);
        let bytes = match a.kind {
            FileType::File => one.handle()?.count_differing_bytes(&other.handle()?)?,
            FileType::Symlink => u64::from(one.read_link()? != other.read_link()?),
            _ => u64::from(x.rdev != y.rdev),
        };
        if bytes > 0 {
            self.change(path.clone(), What::Modified, bytes);
        } else {
            let same_times = a.kind == FileType::Dir || x.mtime == y.mtime;
            if attributes(&x) != attributes(&y) || !same_times || !same_xattrs(&one, &other)? {
                self.change(path.clone(), What::Attributes, 0);
            }
        }
        let children = (old.checked_child(self.engine, a)?, new.checked_child(self.engine, b)?);
        if children == (Child::Enter, Child::Enter) {
            self.todo.push((old.below(a.ino), new.below(b.ino), path));
        }
        Ok(())
    }
}

fn attributes(attr: &Attr) -> (u32, u32, u32) {
    (attr.perm, attr.uid, attr.gid)
}

fn same_xattrs(one: &Node, other: &Node) -> Result<bool> {
    let mut names = [one.xattrs()?, other.xattrs()?];
    for names in &mut names {
        names.retain(|name| !name.starts_with(OWN));
        names.sort();
    }
    if names[0] != names[1] {
        return Ok(false);
    }
    for name in &names[0] {
        if one.xattr(name)? != other.xattr(name)? {
            return Ok(false);
        }
    }
    Ok(true)
}
