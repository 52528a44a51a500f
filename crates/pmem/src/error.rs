//! Errors of media and of accesses to them, with the place where they occurred.

use std::io;
use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why media could not be opened, or an access to them failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path does not exist, and no size was given to create a file.
    #[error("no such file or directory")]
    NotFound,
    /// An invalid argument.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The range does not lie inside the media.
    #[error("{len} bytes from {at:#x} on lie outside the media ({media:#x} bytes)")]
    OutOfRange {
        /// First byte of the range.
        at: u64,
        /// Bytes of the range.
        len: u64,
        /// Bytes of the media.
        media: u64,
    },
    /// The page at this byte is unreadable: the memory has failed.
    #[error("media error: the page at byte {0:#x} cannot be read")]
    BadPage(u64),
    /// The media are open read-only.
    #[error("the media are open read-only")]
    ReadOnly,
    /// The filesystem has no space left.
    #[error("no space left below the media")]
    NoSpace,
    /// An impossible size.
    #[error("size: {0}")]
    Size(String),
    /// Another open of the same path holds its lock.
    #[error("{} is in use by process {pid}", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
        /// The process that holds the lock; 0 if unknown.
        pid: u32,
    },
    /// A system call on a path has failed.
    #[error("{what} {}: {source}", path.display())]
    Path {
        /// The operation.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The media failed.
    #[error("media: {0}")]
    Io(#[from] io::Error),
}
