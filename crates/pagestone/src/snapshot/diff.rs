//! The differences between two trees.

use std::collections::BTreeMap;

use serde::Serialize;

use super::SNAPSHOTS;
use super::copy::entries;
use crate::attr::{DirEntry, Kind};
use crate::dir::Node;
use crate::engine::EngineRef;
use crate::error::Result;
use crate::units::Ino;

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
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
    todo: Vec<(Ino, Ino, String)>,
}

pub(super) fn diff(engine: &EngineRef, old: Ino, new: Ino) -> Result<Vec<Change>> {
    let mut diff = Diff { engine, changes: Vec::new(), todo: vec![(old, new, String::new())] };
    while let Some((old, new, path)) = diff.todo.pop() {
        diff.directory(old, new, &path)?;
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

    fn directory(&mut self, old: Ino, new: Ino, path: &str) -> Result<()> {
        let (before, mut after) = (self.names(old)?, self.names(new)?);
        for (name, a) in before {
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            match after.remove(&name) {
                None => self.only_in(&a, path, What::Removed)?,
                Some(b) if a.kind != b.kind => self.change(path, What::Modified, 0),
                Some(b) => self.both(&a, &b, path)?,
            }
        }
        for (name, b) in after {
            self.only_in(&b, format!("{path}/{}", String::from_utf8_lossy(&name)), What::Added)?;
        }
        Ok(())
    }

    /// Reports a name that only one tree has, and everything beneath it.
    fn only_in(&mut self, entry: &DirEntry, path: String, what: What) -> Result<()> {
        let mut stack = vec![(entry.ino, entry.kind, path)];
        while let Some((ino, kind, path)) = stack.pop() {
            if kind == Kind::Dir {
                let names = self.names(ino)?.into_values();
                stack.extend(names.map(|e| (e.ino, e.kind, format!("{path}/{}", String::from_utf8_lossy(&e.name)))));
            }
            self.change(path, what, 0);
        }
        Ok(())
    }

    fn both(&mut self, a: &DirEntry, b: &DirEntry, path: String) -> Result<()> {
        let (one, other) = (self.engine.node(a.ino)?, self.engine.node(b.ino)?);
        let (x, y) = (one.attr()?, other.attr()?);
        let bytes = match a.kind {
            Kind::File => one.handle()?.count_differing_bytes(&other.handle()?)?,
            Kind::Symlink => u64::from(one.read_link()? != other.read_link()?),
            _ => u64::from(x.rdev != y.rdev),
        };
        if bytes > 0 {
            self.change(path.clone(), What::Modified, bytes);
        } else {
            let attributes = |attr: &crate::attr::Attr| (attr.perm, attr.uid, attr.gid);
            let same_times = a.kind == Kind::Dir || x.mtime == y.mtime;
            if attributes(&x) != attributes(&y) || !same_times || !same_xattrs(&one, &other)? {
                self.change(path.clone(), What::Attributes, 0);
            }
        }
        if a.kind == Kind::Dir {
            self.todo.push((a.ino, b.ino, path));
        }
        Ok(())
    }
}

fn same_xattrs(one: &Node, other: &Node) -> Result<bool> {
    let mut names = [one.xattrs()?, other.xattrs()?];
    names.iter_mut().for_each(|n| n.sort());
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
