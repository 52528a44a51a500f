//! Errors of the library, with the pool they are about and a hint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use pagestone::Error;

/// What went wrong with a pool: where, what, and the way out if there is one.
#[derive(Debug)]
pub(crate) struct PoolError {
    path: PathBuf,
    error: Error,
    hint: Option<String>,
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !matches!(self.error, Error::Path { .. } | Error::InUse { .. }) {
            write!(f, "{}: ", self.path.display())?;
        }
        write!(f, "{}", self.error)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl std::error::Error for PoolError {}

impl PoolError {
    pub(crate) fn new(path: &Path, error: Error, hint: Option<String>) -> PoolError {
        PoolError { path: path.to_path_buf(), error, hint }
    }

    /// Whether it takes no changes, but may be read.
    pub(crate) fn is_refusal(&self) -> bool {
        match &self.error {
            Error::ReadOnly => true,
            Error::Path { source, .. } | Error::System { source, .. } | Error::Media(source) => {
                matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
            }
            _ => false,
        }
    }

    /// The process that has the pool in use, if that is what went wrong.
    pub(crate) fn holder(&self) -> Option<u32> {
        match self.error {
            Error::InUse { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Whether the pool is damaged.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self.error, Error::Corrupt { .. })
    }
}
