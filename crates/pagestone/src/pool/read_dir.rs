//! A directory's entries, as programs list them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::iter::FusedIterator;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Metadata, path};
use crate::attr::FileType;
use crate::dir::Entries;
use crate::engine::EngineRef;
use crate::error::Result;
use crate::units::Ino;

/// The entries of a directory, without `.` and `..`, in no particular order. [`Pool::read_dir`](crate::Pool::read_dir)
/// makes it.
///
/// Entries are read in batches, and nothing is locked between: the directory may be changed while it is listed. What was
/// there from the beginning to the end is listed once. It keeps the pool open. After an error it ends.
#[derive(Debug)]
pub struct ReadDir {
    entries: Entries,
    engine: EngineRef,
    path: Arc<PathBuf>,
}

impl ReadDir {
    pub(super) fn new(entries: Entries, engine: EngineRef, path: &Path) -> ReadDir {
        ReadDir { entries, engine, path: Arc::new(path.to_path_buf()) }
    }
}

impl Iterator for ReadDir {
    type Item = Result<DirEntry>;

    fn next(&mut self) -> Option<Result<DirEntry>> {
        let entry = |found: crate::attr::DirEntry| DirEntry {
            name: OsString::from_vec(found.name),
            kind: found.kind,
            ino: found.ino,
            engine: self.engine.clone(),
            dir: self.path.clone(),
        };
        self.entries.next().map(|found| found.map(entry))
    }
}

impl FusedIterator for ReadDir {}

/// One entry of a directory. It keeps the pool open.
#[derive(Clone)]
pub struct DirEntry {
    name: OsString,
    kind: FileType,
    ino: Ino,
    engine: EngineRef,
    dir: Arc<PathBuf>,
}

impl DirEntry {
    /// The name alone.
    pub fn file_name(&self) -> &OsStr {
        &self.name
    }

    /// The path that was listed, joined with the name.
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// What it is; known without another look.
    pub fn file_type(&self) -> FileType {
        self.kind
    }

    /// Inode number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Of the entry itself: symbolic links are not followed.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if it was removed since, [`Error::Corrupt`](crate::Error::Corrupt),
    /// [`Error::Lost`](crate::Error::Lost).
    pub fn metadata(&self) -> Result<Metadata> {
        path::gone(self.engine.any(self.ino).attr()).map(Metadata::new)
    }
}

impl fmt::Debug for DirEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirEntry").field(&self.path()).finish()
    }
}
