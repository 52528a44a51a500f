//! What a command does to a pool, wherever it is open.

use std::ops::ControlFlow;
use std::path::Path;

use pagestone::check::Report;
use pagestone::inode::SetAttr;
use pagestone::snapshot::{Change, Copied, Snapshot};
use pagestone::{Info, Ino};

use crate::StoreError;
use crate::api::{self, Entry, Event, Listing, Moved, NewEntry, Scrubbed, TransferHow, Usage, Xattr};

/// The result of an operation.
pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// Called with the work done and the work in all, in pages, as far as that is known. `Break` cancels the operation.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// A pool that is open in this process ([`LocalStore`](crate::LocalStore)) or in a server ([`Client`](crate::Client)).
///
/// Paths are absolute. A number is that of an [`Entry`]; it leads to the same file whatever its name has become, or is
/// [`pagestone::Error::Stale`] once the file is gone. Each operation is what the library's of that name is; its errors are the library's, or
/// [`StoreError::Connection`].
pub trait Store {
    /// See [`pagestone::Pool::info`].
    fn info(&self) -> Result<Info>;

    /// Everything so far is durable on return.
    fn sync(&self) -> Result<()>;

    /// What lies at `path`. A symbolic link at its end is not followed.
    fn entry(&self, path: &[u8]) -> Result<Entry>;

    /// A part of the directory at `path`: the first one, or that at `from`.
    fn entries(&self, path: &[u8], from: Option<&str>) -> Result<Listing>;

    /// Up to `len` bytes of the file from `offset` on; at least one, unless the file ends there. At most
    /// [`READ_LIMIT`].
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>>;

    /// What the tree at `path` takes.
    fn usage(&self, path: &[u8]) -> Result<Usage>;

    /// Makes what `new` says. The directory above it has to be there, and nothing of that name in it.
    fn create(&self, path: &[u8], new: &NewEntry) -> Result<Entry>;

    /// Gives the file the name `to`, too.
    fn link(&self, ino: Ino, to: &[u8]) -> Result<()>;

    /// Writes all of `bytes`, at most [`READ_LIMIT`], at `offset` of the file.
    fn write(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<()>;

    /// The first offset at or behind `offset` at which the file has bytes that are not in a hole.
    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>>;

    /// Changes attributes.
    fn set_attributes(&self, ino: Ino, change: &SetAttr) -> Result<()>;

    /// All extended attributes.
    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>>;

    /// Sets an extended attribute.
    fn set_xattr(&self, ino: Ino, attribute: &Xattr) -> Result<()>;

    /// Removes what lies at `path`; a directory, with everything in it, only if `recursive`. Returns the number of names
    /// removed.
    fn remove(&self, path: &[u8], recursive: bool) -> Result<u64>;

    /// Renames `from` to `to`. What lies there is replaced, if `replace`; an error otherwise.
    fn rename(&self, from: &[u8], to: &[u8], replace: bool) -> Result<()>;

    /// Makes `to` a clone of the file or tree at `from`; see [`pagestone::snapshot::Snapshots::clone_tree`].
    fn clone_tree(&self, from: &[u8], to: &[u8]) -> Result<Copied>;

    /// See [`pagestone::snapshot::Snapshots::list`].
    fn snapshots(&self) -> Result<Vec<Snapshot>>;

    /// See [`pagestone::snapshot::Snapshots::create`].
    fn create_snapshot(&self, name: &[u8]) -> Result<Copied>;

    /// See [`pagestone::snapshot::Snapshots::delete`].
    fn delete_snapshot(&self, name: &[u8]) -> Result<()>;

    /// See [`pagestone::snapshot::Snapshots::diff`].
    fn diff_snapshot(&self, name: &[u8], other: Option<&[u8]>) -> Result<Vec<Change>>;

    /// See [`pagestone::snapshot::Snapshots::restore`].
    fn restore_snapshot(&self, name: &[u8]) -> Result<Copied>;

    /// What administrators have done to the pool, as far as it is kept; the oldest first.
    fn history(&self) -> Result<Vec<Event>>;

    /// See [`pagestone::check::check_in_use`].
    fn check(&self) -> Result<Report>;

    /// Reads all that is in the pool, and names what cannot be read. Others go on meanwhile.
    ///
    /// # Errors
    /// [`pagestone::Error::Interrupted`].
    fn scrub(&self, progress: Progress<'_>) -> Result<Scrubbed>;

    /// Copies a file or block device of the system into the pool, past the page cache.
    fn import(&self, from: &Path, to: &[u8], how: TransferHow, progress: Progress<'_>) -> Result<Moved>;

    /// Copies a file of the pool to a file or block device of the system, past the page cache.
    fn export(&self, from: &[u8], to: &Path, how: TransferHow, progress: Progress<'_>) -> Result<Moved>;

    /// Grows or shrinks the pool; see [`pagestone::Pool::grow`] and [`pagestone::Pool::shrink`].
    fn resize(&self, change: api::Change, size: u64, progress: Progress<'_>) -> Result<()>;
}

/// Bytes that one [`Store::read`] returns at most.
pub const READ_LIMIT: usize = 1 << 20;
