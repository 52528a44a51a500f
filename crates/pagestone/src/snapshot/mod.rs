//! Snapshots of a pool, and clones of directory trees.
//!
//! ```text
//!   /.snapshots/NAME        a snapshot: an ordinary tree, each file a clone; its top directory has the mark, an
//!                           attribute that only root can set. Directories without the mark are no snapshots
//!              /.partial    being created or removed; after a crash it is deleted
//!              /.restoring  complete, about to replace the contents of the root
//!              /.restored   the root is empty, its names move there
//!              /.replaced   the previous contents of the root
//! ```
//!
//! Creating a tree takes O(1) per file. It appears with one rename when it is complete. Each file is copied as of
//! one moment, but not all files as of the same moment, unless nothing is written meanwhile. The next call finishes
//! a restore that a crash has interrupted; until then both trees are in the pool.
//!
//! This layer uses directories and files through their public operations. `copy.rs` creates and removes trees,
//! `diff.rs` compares them.

mod copy;
mod diff;

pub use copy::Copied;
pub use diff::{Change, What};

use serde::Serialize;

use crate::attr::{Attr, Kind, NewNode, RenameMode, SetAttr, Time, XattrMode};
use crate::dir::Dir;
use crate::engine::EngineRef;
use crate::error::{Error, Result};
use crate::lock::MutexGuard;
use crate::units::Ino;

/// The directory in the root that holds the snapshots.
pub(crate) const SNAPSHOTS: &[u8] = b".snapshots";
/// The extended attribute that marks a directory as a snapshot.
const MARK: &[u8] = b"trusted.pagestone.snapshot";
const PARTIAL: &[u8] = b".partial";
const RESTORING: &[u8] = b".restoring";
const RESTORED: &[u8] = b".restored";
const REPLACED: &[u8] = b".replaced";

/// One snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Time,
}

/// The snapshots of a pool: ordinary directories below `/.snapshots`.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let pool = pagestone::Pool::create(dir.path().join("p"), &pagestone::CreateOptions::new().size(16 << 20))?;
/// pool.write("/a", "old")?;
/// pool.snapshots().create("before")?;
/// pool.write("/a", "changed")?;
/// let changes = pool.snapshots().diff("before", None)?;
/// assert_eq!(changes[0].path, "/a");
/// assert_eq!(pool.read("/.snapshots/before/a")?, b"old");
/// pool.snapshots().restore("before")?;
/// assert_eq!(pool.read("/a")?, b"old");
/// # Ok::<(), pagestone::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Snapshots {
    engine: EngineRef,
}

impl Snapshots {
    pub(crate) fn new(engine: EngineRef) -> Snapshots {
        Snapshots { engine }
    }

    /// Creates a snapshot of the whole pool, without `/.snapshots`.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NoSpace`]: nothing of the snapshot remains.
    pub fn create(&self, name: impl AsRef<[u8]>) -> Result<Copied> {
        let name = name.as_ref();
        check_name(name)?;
        let place = self.begin()?;
        if place.dir.lookup(name).is_ok() {
            return Err(Error::Exists);
        }
        self.make(&place, self.engine.root().ino(), (place.dir.ino(), name), true)
    }

    /// Makes `name` in the directory `dir` a clone of the file or the tree `from`: all of it or nothing, with
    /// owners, modes, times, extended attributes and hard links.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NoSpace`], [`Error::Invalid`] for a tree beneath itself.
    pub fn clone_tree(&self, from: Ino, dir: Ino, name: impl AsRef<[u8]>) -> Result<Copied> {
        let name = name.as_ref();
        let to = self.engine.node(dir)?.dir()?;
        if to.lookup(name).is_ok() {
            return Err(Error::Exists);
        }
        let mut above = dir;
        while above != self.engine.root().ino() && from != self.engine.root().ino() {
            if above == from {
                return Err(Error::Invalid("a tree cannot be cloned into itself"));
            }
            above = self.engine.node(above)?.dir()?.parent()?;
        }
        let place = self.begin()?;
        let made = self.make(&place, from, (dir, name), false);
        self.leave(&place)?;
        made
    }

    /// All snapshots, by name.
    pub fn list(&self) -> Result<Vec<Snapshot>> {
        let Ok(attr) = self.engine.root().lookup(SNAPSHOTS) else { return Ok(Vec::new()) };
        let dir = self.engine.node(attr.ino)?.dir()?;
        let mut found = Vec::new();
        for entry in copy::entries(&dir)? {
            if entry.kind == Kind::Dir && !is_reserved(&entry.name) && self.is_marked(entry.ino)? {
                let created = self.engine.node(entry.ino)?.attr()?.btime;
                found.push(Snapshot { name: String::from_utf8_lossy(&entry.name).into_owned(), created });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Deletes a snapshot. Its name disappears at once; its space is freed file by file.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] for a directory that is no snapshot.
    pub fn delete(&self, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref();
        let place = self.begin()?;
        self.find(name)?;
        place.dir.rename(name, place.dir.ino(), PARTIAL, RenameMode::NoReplace)?;
        place.dir.remove_tree(PARTIAL)?;
        self.leave(&place)
    }

    /// The differences of the tree `other` (the current contents of the pool if `None`) from the snapshot `name`,
    /// by path. Files that share their storage are not read.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn diff(&self, name: impl AsRef<[u8]>, other: Option<&[u8]>) -> Result<Vec<Change>> {
        let old = self.find(name.as_ref())?;
        let new = other.map_or_else(|| Ok(self.engine.root()), |other| self.find(other))?;
        diff::diff(&self.engine, old.ino(), new.ino())
    }

    /// Replaces the contents of the pool by those of the snapshot `name`. Snapshots stay. The previous contents are
    /// removed. Open files keep their contents.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoSpace`] with the pool unchanged.
    pub fn restore(&self, name: impl AsRef<[u8]>) -> Result<Copied> {
        let place = self.begin()?;
        let snapshot = self.find(name.as_ref())?;
        let made = self.make(&place, snapshot.ino(), (place.dir.ino(), RESTORING), false)?;
        self.finish_restore(&place.dir)?;
        Ok(made)
    }

    fn find(&self, name: &[u8]) -> Result<Dir> {
        check_name(name)?;
        let dir = self.engine.node(self.engine.root().lookup(SNAPSHOTS)?.ino)?.dir()?;
        let ino = dir.lookup(name)?.ino;
        if !self.is_marked(ino)? {
            return Err(Error::Invalid("a directory that somebody else made there is no snapshot"));
        }
        self.engine.node(ino)?.dir()
    }

    fn is_marked(&self, ino: Ino) -> Result<bool> {
        match self.engine.node(ino)?.xattr(MARK) {
            Ok(_) => Ok(true),
            Err(Error::NoAttribute) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Creates a tree under a hidden name, then renames it.
    fn make(&self, place: &Place<'_>, from: Ino, to: (Ino, &[u8]), is_snapshot: bool) -> Result<Copied> {
        let make = || {
            let made = copy::copy(&self.engine, from, &place.dir, PARTIAL)?;
            if is_snapshot {
                let top = self.engine.node(place.dir.lookup(PARTIAL)?.ino)?;
                top.set_xattr(MARK, b"", XattrMode::Set)?;
            }
            place.dir.rename(PARTIAL, to.0, to.1, RenameMode::NoReplace)?;
            Ok(made)
        };
        let made = make();
        if made.is_err() && place.dir.lookup(PARTIAL).is_ok() {
            place.dir.remove_tree(PARTIAL)?;
        }
        made
    }

    /// The directory of snapshots, created if it is missing, and cleared of what a crash has left. One call at a
    /// time.
    fn begin(&self) -> Result<Place<'_>> {
        let one = self.engine.trees.lock();
        let root = self.engine.root();
        let ino = match root.lookup(SNAPSHOTS) {
            Err(Error::NotFound) => root.create(SNAPSHOTS, &NewNode::new(Kind::Dir, 0o700))?.ino,
            found => self.check_owner(&found?)?,
        };
        let place = Place { dir: self.engine.node(ino)?.dir()?, _one: one };
        if place.dir.lookup(PARTIAL).is_ok() {
            place.dir.remove_tree(PARTIAL)?;
        }
        self.finish_restore(&place.dir)?;
        Ok(place)
    }

    /// A directory that another user may change cannot be used for snapshots: that user could put other trees
    /// there.
    fn check_owner(&self, dir: &Attr) -> Result<Ino> {
        let root = self.engine.node(self.engine.root().ino())?.attr()?;
        if dir.kind != Kind::Dir {
            return Err(Error::Invalid("/.snapshots of the pool is no directory: it is where snapshots are kept"));
        }
        if dir.uid != 0 && dir.uid != root.uid || dir.perm & 0o022 != 0 {
            return Err(Error::Invalid("/.snapshots of the pool can be changed by others than its owner"));
        }
        Ok(dir.ino)
    }

    /// Removes the directory if it contains no snapshot.
    fn leave(&self, _place: &Place<'_>) -> Result<()> {
        match self.engine.root().rmdir(SNAPSHOTS) {
            Err(Error::NotEmpty) => Ok(()),
            done => done,
        }
    }

    /// Finishes a restore, at whatever step it was interrupted.
    fn finish_restore(&self, dir: &Dir) -> Result<()> {
        let root = self.engine.root();
        if let Ok(restoring) = dir.lookup(RESTORING) {
            let replaced = match dir.lookup(REPLACED) {
                Err(Error::NotFound) => dir.create(REPLACED, &NewNode::new(Kind::Dir, 0o700))?.ino,
                found => found?.ino,
            };
            move_all(&root, self.engine.node(replaced)?.dir()?)?;
            let attr = self.engine.node(restoring.ino)?.attr()?;
            let change = SetAttr {
                perm: Some(attr.perm),
                uid: Some(attr.uid),
                gid: Some(attr.gid),
                mtime: Some(attr.mtime),
                ..SetAttr::default()
            };
            root.node().set_attr(&change)?;
            dir.rename(RESTORING, dir.ino(), RESTORED, RenameMode::NoReplace)?;
        }
        if let Ok(restored) = dir.lookup(RESTORED) {
            move_all(&self.engine.node(restored.ino)?.dir()?, root)?;
            dir.rmdir(RESTORED)?;
        }
        if dir.lookup(REPLACED).is_ok() {
            dir.remove_tree(REPLACED)?;
        }
        Ok(())
    }
}

/// The directory of snapshots, in use by one call.
struct Place<'p> {
    dir: Dir,
    _one: MutexGuard<'p, ()>,
}

/// Moves every name except that of the snapshots.
fn move_all(from: &Dir, to: Dir) -> Result<()> {
    for entry in copy::entries(from)? {
        if entry.name != SNAPSHOTS {
            from.rename(&entry.name, to.ino(), &entry.name, RenameMode::Replace)?;
        }
    }
    Ok(())
}

fn is_reserved(name: &[u8]) -> bool {
    [PARTIAL, RESTORING, RESTORED, REPLACED].contains(&name)
}

fn check_name(name: &[u8]) -> Result<()> {
    match is_reserved(name) {
        true => Err(Error::Invalid("this name means a snapshot that is being made or restored")),
        false => crate::dir::Name::new(name).map(drop),
    }
}
