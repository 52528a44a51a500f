//! What can go wrong, with the place where it did.

use std::io;
use std::path::PathBuf;

use crate::units::Ino;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything the library can answer instead of a result. Each maps to one errno
/// ([`Error::errno`]), so that a face can pass it on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such name, file or attribute.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Anything but a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// An argument makes no sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A name of more than 255 bytes, or a symlink target of more than 4,095.
    #[error("name too long")]
    NameTooLong,
    /// A file would pass the largest offset.
    #[error("file too large")]
    FileTooLarge,
    /// More hard links than an inode counts.
    #[error("too many links")]
    TooManyLinks,
    /// The pool (or what lies below it) is full. Nothing was changed.
    #[error("no space left in the pool")]
    NoSpace,
    /// The attribute does not exist.
    #[error("no such attribute")]
    NoAttribute,
    /// The value does not fit in what was offered, or is larger than an attribute may be.
    #[error("value too large")]
    TooLarge,
    /// A seek found no data, or no hole, from there on.
    #[error("no data or hole from this offset on")]
    NoData,
    /// The page at this offset was punched or truncated away under a mapping; see
    /// [`Mapping::refresh`](crate::Mapping::refresh).
    #[error("the page at offset {0:#x} was taken away under the mapping")]
    Revoked(u64),
    /// The page at this offset lies behind the end of the mapped file.
    #[error("the page at offset {0:#x} lies behind the end of the file")]
    BeyondEnd(u64),
    /// Others hold what the operation needs for itself.
    #[error("busy")]
    Busy,
    /// The caller asked a long operation to stop. What it did so far is consistent and durable.
    #[error("interrupted")]
    Interrupted,
    /// All pages of a part of a frame are pinned: they cannot be given back one by one until a pin
    /// is gone.
    #[error("the pages are pinned")]
    Pinned,
    /// The file's page was changed by somebody else after an atomic mapping had stored to it: to commit the mapping's
    /// copy would undo that. See [`AtomicMapping::commit`](crate::AtomicMapping::commit).
    #[error("page {page:#x} of {ino} was changed since the mapping stored to it")]
    Conflict {
        /// The file.
        ino: Ino,
        /// The first such page of the file.
        page: u64,
    },
    /// This process is a child of the one that opened the pool: it has its mappings, and nothing
    /// else of it.
    #[error("the pool belongs to the process that opened it, not to its child")]
    Forked,
    /// The inode number is of a file that is gone.
    #[error("stale inode number {0:#x}")]
    Stale(u64),
    /// The pool, the media or the mount takes no changes.
    #[error("the pool is open read-only")]
    ReadOnly,
    /// The operation is not for this kind of file.
    #[error("operation not supported: {0}")]
    NotSupported(&'static str),
    /// Another process has the pool open.
    #[error("{} is in use by process {pid}", path.display())]
    InUse {
        /// The pool.
        path: PathBuf,
        /// Who holds it; 0 if that could not be found out.
        pid: u32,
    },
    /// The range does not hold a pool.
    #[error("not a pagestone pool: {0}")]
    NotAPool(String),
    /// The pool was made by a newer version.
    #[error("the pool needs a newer pagestone: {0}")]
    TooNew(String),
    /// The pool was made by an older version; the text says how to move its data.
    #[error("the pool is of an older format: {0}")]
    TooOld(String),
    /// The media is shorter than its superblock says, or too short to be a pool.
    #[error("size: {0}")]
    Size(String),
    /// What stands on the media cannot be true.
    #[error("damaged at {place}: {what}")]
    Corrupt {
        /// Which structure, where.
        place: String,
        /// What is wrong with it.
        what: String,
    },
    /// The media have lost the page at this pool byte: what it held is gone.
    #[error("media error: the page at pool byte {0:#x} cannot be read")]
    Lost(u64),
    /// The media have lost the page of the file at this offset. The rest of the file is there;
    /// writing over the whole page gives it new storage.
    #[error("media error: the page at offset {0:#x} of the file is lost")]
    DataLost(u64),
    /// An earlier error left the pool in doubt; it takes no more changes until it is reopened.
    #[error("the pool takes no more changes after: {0}")]
    Latched(String),
    /// The system refused something, at a named place.
    #[error("{what} {}: {source}", path.display())]
    Path {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The media failed.
    #[error("media: {0}")]
    Media(#[from] io::Error),
}

impl From<pmem::Error> for Error {
    fn from(error: pmem::Error) -> Error {
        match error {
            pmem::Error::NotFound => Error::NotFound,
            pmem::Error::Invalid(what) => Error::Invalid(what),
            pmem::Error::OutOfRange { at, len, media } => Error::corrupt(
                format!("pool byte {at:#x}"),
                format!("{len} bytes from here lie outside the pool ({media:#x} bytes)"),
            ),
            pmem::Error::BadPage(at) => Error::Lost(at),
            pmem::Error::ReadOnly => Error::ReadOnly,
            pmem::Error::NoSpace => Error::NoSpace,
            pmem::Error::Size(text) => Error::Size(text),
            pmem::Error::InUse { path, pid } => Error::InUse { path, pid },
            pmem::Error::Path { what, path, source } => Error::Path { what, path, source },
            pmem::Error::Io(source) => Error::Media(source),
            other => Error::Media(io::Error::other(other)),
        }
    }
}

impl Error {
    /// A [`Error::Corrupt`].
    pub fn corrupt(place: impl Into<String>, what: impl Into<String>) -> Error {
        Error::Corrupt { place: place.into(), what: what.into() }
    }

    /// The errno that means this to a C program.
    pub fn errno(&self) -> i32 {
        match self {
            Error::NotFound => libc::ENOENT,
            Error::Exists => libc::EEXIST,
            Error::NotDirectory => libc::ENOTDIR,
            Error::IsDirectory => libc::EISDIR,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::Invalid(_) => libc::EINVAL,
            Error::NameTooLong => libc::ENAMETOOLONG,
            Error::FileTooLarge => libc::EFBIG,
            Error::TooManyLinks => libc::EMLINK,
            Error::NoSpace => libc::ENOSPC,
            Error::NoAttribute => libc::ENODATA,
            Error::TooLarge => libc::ERANGE,
            Error::NoData => libc::ENXIO,
            Error::Interrupted => libc::EINTR,
            Error::Revoked(_) | Error::BeyondEnd(_) => libc::EFAULT,
            Error::Busy | Error::Pinned | Error::Forked | Error::Conflict { .. } => libc::EBUSY,
            Error::Stale(_) => libc::ESTALE,
            Error::ReadOnly => libc::EROFS,
            Error::NotSupported(_) => libc::EOPNOTSUPP,
            Error::InUse { .. } => libc::EBUSY,
            Error::Path { source, .. } | Error::Media(source) => source.raw_os_error().unwrap_or(libc::EIO),
            Error::NotAPool(_) | Error::TooNew(_) | Error::TooOld(_) | Error::Size(_) => libc::EINVAL,
            Error::Corrupt { .. } | Error::Lost(_) | Error::DataLost(_) | Error::Latched(_) => libc::EIO,
        }
    }
}
