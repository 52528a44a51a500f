//! What is known about a file besides its bytes, as programs ask for it.

use std::fmt;
use std::time::SystemTime;

use super::{WalkEntry, path};
use crate::attr::{Attr, FileType};
use crate::error::Result;
use crate::units::{Ino, PAGE_SIZE};

/// Length, times, owner, mode and space of a file, directory or anything else with a name, as they were when it was
/// asked for. [`Pool::metadata`](crate::Pool::metadata) and [`File::metadata`](crate::File::metadata) answer it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Metadata(Attr);

impl Metadata {
    pub(super) fn new(attr: Attr) -> Metadata {
        Metadata(attr)
    }

    /// The record of the [inode layer](crate::inode) that this is made from.
    pub fn attr(&self) -> &Attr {
        &self.0
    }

    /// Length in bytes; of a symbolic link, that of its target. Of a directory it grows with its entries.
    #[allow(clippy::len_without_is_empty)] // as in `std`
    pub fn len(&self) -> u64 {
        self.0.size
    }

    /// Regular file, directory, symbolic link or another.
    pub fn file_type(&self) -> FileType {
        self.0.kind
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.0.kind.is_file()
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.0.kind.is_dir()
    }

    /// Whether it is a symbolic link: only of [`Pool::symlink_metadata`](crate::Pool::symlink_metadata).
    pub fn is_symlink(&self) -> bool {
        self.0.kind.is_symlink()
    }

    /// Type and permissions as in `st_mode`.
    pub fn mode(&self) -> u32 {
        self.0.kind.mode_bits() | self.0.perm
    }

    /// The permission bits alone (`07777`).
    pub fn permissions(&self) -> u32 {
        self.0.perm
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.0.uid
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.0.gid
    }

    /// Hard links; of a directory 2 plus its subdirectories. 0 if the last name is gone.
    pub fn nlink(&self) -> u32 {
        self.0.nlink
    }

    /// Inode number, with its generation: no other file of the pool ever has the same.
    pub fn ino(&self) -> Ino {
        self.0.ino
    }

    /// Device number of a device file, else 0.
    pub fn rdev(&self) -> u64 {
        self.0.rdev
    }

    /// Pages of 4 KiB that hold data, shared ones too.
    pub fn pages(&self) -> u64 {
        self.0.pages
    }

    /// Those of [`Metadata::pages`] that a clone or the original may have in common with it.
    pub fn shared_pages(&self) -> u64 {
        self.0.shared
    }

    /// Bytes of storage: its pages.
    pub fn stored_bytes(&self) -> u64 {
        self.0.pages.saturating_mul(PAGE_SIZE)
    }

    /// Last change of the contents.
    pub fn modified(&self) -> SystemTime {
        self.0.mtime.into()
    }

    /// Last read, as far as somebody has set it: the library itself does not, for each read would be a write.
    pub fn accessed(&self) -> SystemTime {
        self.0.atime.into()
    }

    /// When it was made.
    pub fn created(&self) -> SystemTime {
        self.0.btime.into()
    }

    /// Last change of the contents, the name or any attribute.
    pub fn changed(&self) -> SystemTime {
        self.0.ctime.into()
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata")
            .field("ino", &self.0.ino)
            .field("file_type", &self.0.kind)
            .field("mode", &format_args!("{:o}", self.mode()))
            .field("len", &self.len())
            .field("modified", &self.0.mtime)
            .finish_non_exhaustive()
    }
}

impl WalkEntry {
    /// Of the entry itself: symbolic links are not followed.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if it was removed since, [`Error::Corrupt`](crate::Error::Corrupt),
    /// [`Error::Lost`](crate::Error::Lost).
    pub fn metadata(&self) -> Result<Metadata> {
        path::gone(self.attr()).map(Metadata::new)
    }
}
