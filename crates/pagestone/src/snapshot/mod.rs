//! Snapshots of a pool, and clones of directory trees.
//!
//! ```text
//!   /.snapshots/NAME        a snapshot: an ordinary tree, each file a clone; its top directory has the mark, an
//!                           attribute that only root can set. Directories without the mark are no snapshots
//!              /.partial    being created or removed; after a crash it is deleted
//!              /.aside      parts of one that is being created
//!              /.restoring  complete, about to replace the contents of the root
//!              /.restored   the root is empty, its names move there
//!              /.replaced   the previous contents of the root
//! ```
//!
//! Creating a tree takes O(1) per file. It has what all files had at one moment, also if others write meanwhile. It appears
//! with one rename when it is complete. The next call finishes a restore that a crash has interrupted; until then both
//! trees are in the pool.
//!
//! This layer uses directories and files through their public operations. `copy.rs` creates trees, `catch_up.rs` brings
//! them to one moment, `restore.rs` lets one take the place of the root's contents, `remove.rs` removes them, `diff.rs`
//! compares them.

mod catch_up;
mod copy;
mod diff;
mod remove;
mod restore;

pub use copy::Copied;
pub use diff::{Change, What};

use serde::{Deserialize, Serialize};

use crate::attr::{Attr, FileType, NewNode, RenameMode, Time, XattrMode};
use crate::dir::Dir;
use crate::engine::EngineRef;
use crate::error::{Error, Result};
use crate::lock::MutexGuard;
use crate::units::Ino;

/// The directory in the root that holds the snapshots.
pub(crate) const SNAPSHOTS: &[u8] = b".snapshots";
/// The extended attribute that marks a directory as a snapshot.
const MARK: &[u8] = b"trusted.pagestone.snapshot";
/// Attributes that begin like this are those of a pool, and not of a file.
const OWN: &[u8] = b"trusted.pagestone.";
const PARTIAL: &[u8] = b".partial";
/// What a copy that is being created has at the moment without a name.
const ASIDE: &[u8] = b".aside";
const RESTORING: &[u8] = b".restoring";
const RESTORED: &[u8] = b".restored";
const REPLACED: &[u8] = b".replaced";

/// One snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
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

    /// Creates a snapshot of the whole pool, without `/.snapshots`, as all of it is at one moment. Other operations
    /// go on meanwhile. For that moment they wait, as [`Copied::pause_ns`] says: for what has changed last, not for the whole
    /// pool. The calling thread must not have memory in a mapping of the pool that it touches meanwhile, as its heap or stack.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NoSpace`]: nothing of the snapshot remains.
    pub fn create(&self, name: impl AsRef<[u8]>) -> Result<Copied> {
        let name = name.as_ref();
        check_name(name)?;
        let snapshots = self.begin()?;
        if snapshots.dir.lookup(name).is_ok() {
            return Err(Error::Exists);
        }
        self.make(&snapshots, self.engine.root().ino(), (snapshots.dir.ino(), name), true)
    }

    /// Makes `name` in the directory `dir` a clone of the file or the tree `from`: all of it or nothing, with
    /// owners, modes, times, extended attributes and hard links, as of one moment, as in [`Snapshots::create`].
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NoSpace`], [`Error::Invalid`] for a tree beneath itself.
    pub fn clone_tree(&self, from: Ino, dir: Ino, name: impl AsRef<[u8]>) -> Result<Copied> {
        let name = name.as_ref();
        let to = self.engine.node(dir)?.dir()?;
        if to.lookup(name).is_ok() {
            return Err(Error::Exists);
        }
        if from != self.engine.root().ino() && self.engine.is_beneath(dir, from)? {
            return Err(Error::Invalid("a tree cannot be cloned into itself"));
        }
        let snapshots = self.begin()?;
        let made = self.make(&snapshots, from, (dir, name), false);
        self.leave(&snapshots)?;
        made
    }

    /// All snapshots, by name.
    pub fn list(&self) -> Result<Vec<Snapshot>> {
        let Ok(attr) = self.engine.root().lookup(SNAPSHOTS) else { return Ok(Vec::new()) };
        let dir = self.engine.node(attr.ino)?.dir()?;
        let mut found = Vec::new();
        for entry in copy::entries(&dir)? {
            if entry.kind == FileType::Dir && !is_reserved(&entry.name) && self.is_marked(entry.ino)? {
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
        let snapshots = self.begin()?;
        self.find(name)?;
        snapshots.dir.rename(name, snapshots.dir.ino(), PARTIAL, RenameMode::NoReplace)?;
        snapshots.dir.remove_tree(PARTIAL)?;
        self.leave(&snapshots)
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

    /// Replaces the contents of the pool by those of the snapshot `name`: names, and the attributes of the root. Snapshots
    /// stay. The previous contents are removed. Open files keep their contents. Other operations wait while the names of the
    /// root are exchanged.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoSpace`] with the pool unchanged.
    pub fn restore(&self, name: impl AsRef<[u8]>) -> Result<Copied> {
        let snapshots = self.begin()?;
        let snapshot = self.find(name.as_ref())?;
        let made = self.make(&snapshots, snapshot.ino(), (snapshots.dir.ino(), RESTORING), false)?;
        self.finish_restore(&snapshots.dir)?;
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
    fn make(&self, snapshots: &SnapshotsDir<'_>, from: Ino, to: (Ino, &[u8]), is_snapshot: bool) -> Result<Copied> {
        let make = || {
            let made = copy::copy(&self.engine, from, &snapshots.dir, PARTIAL)?;
            if is_snapshot {
                let top = self.engine.node(snapshots.dir.lookup(PARTIAL)?.ino)?;
                top.set_xattr(MARK, b"", XattrMode::Set)?;
            }
            snapshots.dir.rename(PARTIAL, to.0, to.1, RenameMode::NoReplace)?;
            Ok(made)
        };
        let made = make();
        if made.is_err() {
            snapshots.remove_remains()?;
        }
        made
    }

    /// The directory of snapshots, created if it is missing, and cleared of what a crash has left. One call at a
    /// time.
    fn begin(&self) -> Result<SnapshotsDir<'_>> {
        let one = self.engine.trees.lock();
        let root = self.engine.root();
        let ino = match root.lookup(SNAPSHOTS) {
            Err(Error::NotFound) => root.create(SNAPSHOTS, &NewNode::new(FileType::Dir, 0o700))?.ino,
            found => self.check_owner(&found?)?,
        };
        let snapshots = SnapshotsDir { dir: self.engine.node(ino)?.dir()?, _one: one };
        snapshots.remove_remains()?;
        self.finish_restore(&snapshots.dir)?;
        Ok(snapshots)
    }

    /// A directory that another user may change cannot be used for snapshots: that user could put other trees
    /// there.
    fn check_owner(&self, dir: &Attr) -> Result<Ino> {
        let root = self.engine.node(self.engine.root().ino())?.attr()?;
        if dir.kind != FileType::Dir {
            return Err(Error::Invalid("/.snapshots of the pool is no directory: it is where snapshots are kept"));
        }
        if dir.uid != 0 && dir.uid != root.uid || dir.perm & 0o022 != 0 {
            return Err(Error::Invalid("/.snapshots of the pool can be changed by others than its owner"));
        }
        Ok(dir.ino)
    }

    /// Removes the directory if it contains no snapshot.
    fn leave(&self, _dir: &SnapshotsDir<'_>) -> Result<()> {
        match self.engine.root().rmdir(SNAPSHOTS) {
            Err(Error::NotEmpty) => Ok(()),
            done => done,
        }
    }
}

/// The directory of snapshots, in use by one call.
struct SnapshotsDir<'p> {
    dir: Dir,
    _one: MutexGuard<'p, ()>,
}

impl SnapshotsDir<'_> {
    /// Removes what was not completed.
    fn remove_remains(&self) -> Result<()> {
        for name in [PARTIAL, ASIDE] {
            if self.dir.lookup(name).is_ok() {
                self.dir.remove_tree(name)?;
            }
        }
        Ok(())
    }
}

fn is_reserved(name: &[u8]) -> bool {
    [PARTIAL, ASIDE, RESTORING, RESTORED, REPLACED].contains(&name)
}

fn check_name(name: &[u8]) -> Result<()> {
    match is_reserved(name) {
        true => Err(Error::Invalid("this name means a snapshot that is being made or restored")),
        false => crate::dir::Name::new(name).map(drop),
    }
}
