//! What can go wrong, with the place where it did.

mod place;

use std::io;
use std::path::PathBuf;

use crate::units::Ino;

pub use place::Place;

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
    /// The pool (or what lies below it) is full. An operation in several steps keeps those that are done.
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
    /// [`Mapping::refresh`](crate::mmap::Mapping::refresh).
    #[error("the page at offset {0:#x} was taken away under the mapping")]
    Revoked(u64),
    /// The page at this offset lies behind the end of the mapped file.
    #[error("the page at offset {0:#x} lies behind the end of the file")]
    BeyondEnd(u64),
    /// The caller asked a long operation to stop. What it did so far is consistent and durable.
    #[error("interrupted")]
    Interrupted,
    /// All pages of a part of a frame are pinned: they cannot be given back one by one until a pin
    /// is gone.
    #[error("the pages are pinned")]
    Pinned,
    /// The file's page was changed by somebody else after an atomic mapping had stored to it: to commit the mapping's
    /// copy would undo that. See [`AtomicMapping::commit`](crate::mmap::AtomicMapping::commit).
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
    /// The media is shorter than its superblock says, or too short to be a pool; or a pool cannot be made, grown or
    /// shrunk to this size.
    #[error("size: {0}")]
    Size(String),
    /// What stands on the media cannot be true.
    #[error("damaged at {place}: {what}")]
    Corrupt {
        /// Which structure, where.
        place: Place,
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
    /// The system refused something that has no path: a thread, a mapping, a descriptor.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The media failed.
    #[error("media: {0}")]
    Media(io::Error),
    /// Others hold what the operation needs for itself: files, mappings or clones of a pool that is to be closed, work that
    /// goes on beside a shrink.
    #[error("still in use in this process")]
    Busy,
    /// An operation of a [`Transaction`](crate::Transaction) failed, so nothing of it has happened. errno and kind are
    /// those of the operation.
    #[error("operation {operation} of the transaction: {source}")]
    InTransaction {
        /// Which one, counted from 0.
        operation: usize,
        /// What it met.
        source: Box<Error>,
    },
    /// One record, of 128 KiB, does not hold the metadata that a [`Transaction`](crate::Transaction) changes: too many
    /// operations, or files in too many pieces. Nothing was changed. Commit it in parts.
    #[error("the transaction changes more places than one record holds")]
    TransactionTooLarge,
    /// A path leads through more than 40 symbolic links.
    #[error("too many levels of symbolic links")]
    LinkLoop,
    /// The file was opened without this kind of access; see [`FileOptions`](crate::FileOptions).
    #[error("the file is not open for {0}")]
    NotOpenFor(&'static str),
}

/// `io::Error` from here is what `std` would have answered, as far as that says everything: then it has a
/// [`raw_os_error`](io::Error::raw_os_error). Otherwise it has the right [`kind`](io::Error::kind), and the library's
/// error inside ([`io::Error::get_ref`]).
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        match error {
            Error::NotFound
            | Error::Exists
            | Error::NotDirectory
            | Error::IsDirectory
            | Error::NotEmpty
            | Error::NameTooLong
            | Error::FileTooLarge
            | Error::TooManyLinks
            | Error::NoSpace
            | Error::ReadOnly
            | Error::LinkLoop => io::Error::from_raw_os_error(error.errno()),
            Error::Media(source) => source,
            error => io::Error::new(error.kind(), error),
        }
    }
}

impl From<pmem::Error> for Error {
    fn from(error: pmem::Error) -> Error {
        match error {
            pmem::Error::NotFound => Error::NotFound,
            pmem::Error::Invalid(what) => Error::Invalid(what),
            pmem::Error::OutOfRange { at, len, media } => Error::corrupt(
                Place::PoolByte(at),
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
    pub fn corrupt(place: Place, what: impl Into<String>) -> Error {
        Error::Corrupt { place, what: what.into() }
    }

    /// The kind that means this to a Rust program.
    ///
    /// It is the kind of [`Error::errno`], except where that would mislead: a damaged pool, or no pool at all, is
    /// [`InvalidData`](io::ErrorKind::InvalidData); a file that was not opened for the access is
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied).
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Error::Corrupt { .. } | Error::NotAPool(_) | Error::TooNew(_) => io::ErrorKind::InvalidData,
            Error::InTransaction { source, .. } => source.kind(),
            Error::NotOpenFor(_) => io::ErrorKind::PermissionDenied,
            Error::NoAttribute => io::ErrorKind::NotFound,
            Error::TooLarge => io::ErrorKind::InvalidInput,
            Error::Stale(_) => io::ErrorKind::NotFound,
            Error::Revoked(_) | Error::BeyondEnd(_) | Error::NoData => io::ErrorKind::UnexpectedEof,
            Error::Path { source, .. } | Error::System { source, .. } | Error::Media(source) => source.kind(),
            other => io::Error::from_raw_os_error(other.errno()).kind(),
        }
    }

    /// For `map_err`: the system refused to change or describe a mapping.
    pub(crate) fn mapping(source: io::Error) -> Error {
        Error::System { what: "mapping memory", source }
    }

    /// For `map_err`: the system refused `what`.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System { what, source }
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
            Error::InTransaction { source, .. } => source.errno(),
            Error::TransactionTooLarge => libc::E2BIG,
            Error::LinkLoop => libc::ELOOP,
            Error::NotOpenFor(_) => libc::EBADF,
            Error::Path { source, .. } | Error::System { source, .. } | Error::Media(source) => {
                source.raw_os_error().unwrap_or(libc::EIO)
            }
            Error::NotAPool(_) | Error::TooNew(_) | Error::TooOld(_) | Error::Size(_) => libc::EINVAL,
            Error::Corrupt { .. } | Error::Lost(_) | Error::DataLost(_) | Error::Latched(_) => libc::EIO,
        }
    }
}
