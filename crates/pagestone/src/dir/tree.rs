//! A walk of a tree: a directory and everything beneath it.
//!
//! ```text
//!   levels   [ entries of the start ][ entries of "a" ][ entries of "a/b" ]     one listing for each directory that
//!   path       a/b                                                              is being walked, and one path
//! ```
//!
//! There is no recursion. The DRAM that a walk takes grows with the depth: a batch of entries for each level, and the
//! numbers of the directories that were found in it. `descent.rs` says which directories are entered.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::iter::FusedIterator;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::descent::{Child, Descent};
use super::{Dir, Entries, Node};
use crate::attr::{Attr, DirEntry, FileType};
use crate::engine::EngineRef;
use crate::error::{Error, Result};
use crate::units::Ino;

/// A directory and everything beneath it: a directory comes before its entries, and the entries of a directory in no
/// particular order. [`Pool::walk`](crate::Pool::walk), [`Node::walk`] and [`Dir::walk`] make it.
///
/// Symbolic links beneath the start are not followed. Nothing is locked between two entries, so the tree may change
/// during the walk. What was there from the beginning to the end, under one path, is listed once. What comes, goes or
/// moves meanwhile may be listed or not, and an entry may be gone when it is used. A directory that was removed before
/// its entries were read has none; that is no error. A directory is entered only from the one that its record names as
/// its parent, and by one name: a damaged name does not lead the walk out of the tree or round in it.
///
/// The walk keeps the pool open.
///
/// # Errors
/// An error is an item: [`Error::Corrupt`] or [`Error::Lost`] for a directory, the rest of which is left out. The walk
/// continues behind it.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let pool = pagestone::Pool::create(dir.path().join("p"), &pagestone::CreateOptions::new().size(16 << 20))?;
/// pool.create_dir_all("/a/b")?;
/// pool.write("/a/b/file", "one")?;
/// for entry in pool.walk("/a")? {
///     let entry = entry?;
///     println!("{:indent$}{}", "", entry.path().display(), indent = entry.depth());
/// }
/// # Ok::<(), pagestone::Error>(())
/// ```
pub struct Walk {
    engine: EngineRef,
    levels: Vec<Level>,
    /// The path of the entry that was read last. It begins with the path of each level.
    path: Vec<u8>,
    /// A start that is no directory.
    single: Option<WalkEntry>,
    contents_first: bool,
    /// The last level belongs to the entry that was yielded last.
    entered: bool,
}

/// A directory that is being walked.
struct Level {
    entries: Entries,
    descent: Descent,
    /// The directory that it was found in.
    parent: Ino,
    /// Its path is this much of the walk's.
    path_len: usize,
    /// It is not yielded yet.
    pending: bool,
}

impl Walk {
    /// Walks `dir`; `itself`: it is an entry, too.
    fn of_dir(dir: &Dir, path: Vec<u8>, itself: bool) -> Walk {
        let (entries, descent) = (dir.entries(), Descent::new(dir.ino));
        let level = Level { entries, descent, parent: dir.ino, path_len: path.len(), pending: itself };
        let engine = dir.engine.clone();
        Walk { engine, levels: vec![level], path, single: None, contents_first: false, entered: false }
    }

    /// Walks the node, which has this path.
    pub(crate) fn of_node(node: &Node, path: Vec<u8>) -> Result<Walk> {
        let (engine, ino) = (node.engine().clone(), node.ino());
        let kind = engine.kind(ino)?;
        let mut walk = Walk::of_dir(&Dir::new(engine, ino), path, true);
        if kind != FileType::Dir {
            walk.levels.clear();
            walk.single = Some(walk.entry(ino, ino, kind, 0));
        }
        Ok(walk)
    }

    /// Whether a directory comes after everything beneath it, as for a removal, and not before. To be called before the
    /// first entry is read.
    #[must_use]
    pub fn contents_first(mut self, yes: bool) -> Walk {
        self.contents_first = yes;
        self
    }

    /// Leaves out what is beneath the directory that was yielded last. Does nothing after anything else than a
    /// directory, and nothing where contents come first.
    pub fn skip_dir(&mut self) {
        if std::mem::take(&mut self.entered) {
            self.levels.pop();
        }
    }

    fn entry(&self, ino: Ino, parent: Ino, kind: FileType, depth: usize) -> WalkEntry {
        let path = PathBuf::from(OsString::from_vec(self.path.clone()));
        WalkEntry { path, ino, parent, kind, depth, engine: self.engine.clone() }
    }

    /// The directory of the last level, unless it was yielded.
    fn directory(&mut self) -> Option<WalkEntry> {
        let depth = self.levels.len().checked_sub(1)?;
        let level = &mut self.levels[depth];
        self.path.truncate(level.path_len);
        let pending = std::mem::take(&mut level.pending);
        let (ino, parent) = (level.descent.dir(), level.parent);
        pending.then(|| self.entry(ino, parent, FileType::Dir, depth))
    }

    /// Adds a name to the path and enters its directory, if it is one. Returns the entry to be yielded; `None` if it is
    /// a directory that comes after its contents.
    fn descend(&mut self, found: &DirEntry) -> Option<WalkEntry> {
        let level = self.levels.last_mut()?;
        // What cannot be read is entered: reading its entries yields the error.
        let enters = level.descent.child(&self.engine, found).map_or(true, |child| child == Child::Enter);
        let (parent, descent) = (level.descent.dir(), level.descent.below(found.ino));
        if !self.path.is_empty() && !self.path.ends_with(b"/") {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&found.name);
        let yields = !(enters && self.contents_first);
        let entry = yields.then(|| self.entry(found.ino, parent, found.kind, self.levels.len()));
        if enters {
            let entries = Dir::new(self.engine.clone(), found.ino).entries();
            let path_len = self.path.len();
            self.levels.push(Level { entries, descent, parent, path_len, pending: !yields });
            self.entered = yields;
        }
        entry
    }
}

impl Iterator for Walk {
    type Item = Result<WalkEntry>;

    fn next(&mut self) -> Option<Result<WalkEntry>> {
        self.entered = false;
        if let Some(single) = self.single.take() {
            return Some(Ok(single));
        }
        loop {
            if !self.contents_first
                && let Some(start) = self.directory()
            {
                self.entered = true;
                return Some(Ok(start));
            }
            let level = self.levels.last_mut()?;
            self.path.truncate(level.path_len);
            let next = match level.entries.next() {
                Some(Ok(found)) => self.descend(&found),
                // It was removed, and has no entries.
                None | Some(Err(Error::Stale(_))) => {
                    let directory = self.directory();
                    self.levels.pop();
                    directory
                }
                Some(Err(e)) => return Some(Err(e)),
            };
            if let Some(entry) = next {
                return Some(Ok(entry));
            }
        }
    }
}

impl FusedIterator for Walk {}

impl fmt::Debug for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk").field("path", &String::from_utf8_lossy(&self.path)).finish_non_exhaustive()
    }
}

/// One entry of a [`Walk`]. It keeps the pool open.
#[derive(Clone)]
pub struct WalkEntry {
    path: PathBuf,
    ino: Ino,
    parent: Ino,
    kind: FileType,
    depth: usize,
    engine: EngineRef,
}

impl WalkEntry {
    /// The path that [`Pool::walk`](crate::Pool::walk) was given, joined with the names that lead here from there; the
    /// names alone for [`Node::walk`] and [`Dir::walk`], so nothing for the start.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last name of the path; nothing if it has none.
    pub fn file_name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Names between the start and this entry: 0 for the start, 1 for what is in it.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// What it is; known without another look.
    pub fn file_type(&self) -> FileType {
        self.kind
    }

    /// Inode number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// The number of the directory that it was found in; of the start, its own.
    pub fn parent(&self) -> Ino {
        self.parent
    }

    /// Its attributes; symbolic links are not followed.
    ///
    /// # Errors
    /// [`Error::Stale`] if it was removed since, [`Error::Corrupt`], [`Error::Lost`].
    pub fn attr(&self) -> Result<Attr> {
        self.engine.attr(self.ino)
    }
}

impl fmt::Debug for WalkEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WalkEntry").field(&self.path).finish()
    }
}

impl Dir {
    /// Everything beneath the directory; without the directory itself, unlike [`Node::walk`].
    ///
    /// # Errors
    /// None here. What cannot be read is an item of the walk.
    pub fn walk(&self) -> Walk {
        Walk::of_dir(self, Vec::new(), false)
    }
}

impl Node {
    /// The node and, if it is a directory, everything beneath it.
    ///
    /// # Errors
    /// [`Error::Stale`] if it is gone, [`Error::Corrupt`], [`Error::Lost`].
    pub fn walk(&self) -> Result<Walk> {
        Walk::of_node(self, Vec::new())
    }
}
