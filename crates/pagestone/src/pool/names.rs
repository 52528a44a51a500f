//! The pool's names by path, as `std::fs` has them for the system's.
//!
//! Paths are of the pool: `/` is its root, and a path without a leading `/` begins there, too. Symbolic links are
//! followed as the system does, their absolute targets from the pool's root. Permissions are not checked: whoever has the
//! pool open may do everything; faces check them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::file::Access;
use super::{File, FileOptions, Metadata, Pool, ReadDir, Walk, path};
use crate::attr::{FileType, NewNode, RenameMode, SetAttr};
use crate::data::FileHandle;
use crate::error::{Error, Result};
use crate::snapshot::Copied;

/// # Files and directories by path
///
/// Each change is one record: after a crash it has happened wholly or not at all. It is durable on return where the
/// media are durable at the fence, else at the next [`Pool::sync`]. Every method fails with [`Error::NotFound`],
/// [`Error::NotDirectory`] or [`Error::LinkLoop`] where the path does not lead anywhere, with [`Error::NameTooLong`] and
/// [`Error::Invalid`] for names that cannot be, and with [`Error::Corrupt`] or [`Error::Lost`] where the media fail;
/// every change with [`Error::ReadOnly`], [`Error::NoSpace`] and [`Error::Latched`]. The rest is said with each.
impl Pool {
    /// Opens the file at `path` for reading and writing. For less than that, or to make it, see
    /// [`Pool::file_options`].
    ///
    /// # Errors
    /// [`Error::IsDirectory`]; [`Error::NotSupported`] for a device, pipe or socket. In a pool that is open read-only, the
    /// first write is an error, and not this.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<File> {
        let place = path::resolve(self.engine(), path.as_ref(), true)?;
        let handle = path::gone(FileHandle::open(self.engine(), place.found()?.ino))?;
        Ok(File::new(handle, Access::ALL))
    }

    /// Makes the file at `path`, or empties the one that is there, and opens it for reading and writing.
    ///
    /// # Errors
    /// As [`FileOptions::open`].
    pub fn create_file(&self, path: impl AsRef<Path>) -> Result<File> {
        self.file_options().read(true).write(true).create(true).truncate(true).open(path)
    }

    /// Ways to open a file: read, write, append, make, truncate.
    pub fn file_options(&self) -> FileOptions<'_> {
        FileOptions::new(self)
    }

    /// All bytes of the file at `path`.
    ///
    /// # Errors
    /// As [`Pool::open_file`]; [`Error::DataLost`]; [`Error::FileTooLarge`] for more than an address space.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let file = self.open_file(path)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| Error::FileTooLarge)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Error::FileTooLarge)?;
        bytes.resize(len, 0);
        let got = file.read_at(&mut bytes, 0)?;
        bytes.truncate(got);
        Ok(bytes)
    }

    /// Makes the file at `path` hold exactly these bytes; makes it if it is missing. Two steps: after a crash between
    /// them the file is empty, or holds the first bytes.
    ///
    /// # Errors
    /// As [`FileOptions::open`] and [`File::write_at`].
    pub fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.create_file(path)?.write_all_at(bytes.as_ref(), 0)
    }

    /// What is known about the file at `path`; symbolic links are followed.
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        path::resolve(self.engine(), path.as_ref(), true)?.found().copied().map(Metadata::new)
    }

    /// As [`Pool::metadata`], of the symbolic link itself if the path ends with one.
    pub fn symlink_metadata(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        let path = path.as_ref();
        // With a slash behind it, the directory is meant that it leads to.
        let follow = path.as_os_str().as_bytes().ends_with(b"/");
        path::resolve(self.engine(), path, follow)?.found().copied().map(Metadata::new)
    }

    /// Whether the path leads to something; symbolic links are followed.
    ///
    /// # Errors
    /// What keeps the answer from being known. A path that leads through something else than a directory is `false`.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(Error::NotFound | Error::NotDirectory) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The entries of the directory at `path`.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let pool = pagestone::Pool::create(dir.path().join("p"), &pagestone::CreateOptions::new().size(16 << 20))?;
    /// pool.write("/a", "one")?;
    /// for entry in pool.read_dir("/")? {
    ///     let entry = entry?;
    ///     println!("{}: {} bytes", entry.path().display(), entry.metadata()?.len());
    /// }
    /// # Ok::<(), pagestone::Error>(())
    /// ```
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<ReadDir> {
        let path = path.as_ref();
        let dir = path::gone(path::node(self.engine(), path)?.dir())?;
        Ok(ReadDir::new(dir.entries(), self.engine().clone(), path))
    }

    /// The directory at `path` and everything beneath it, or the one file that is there. Symbolic links are followed on
    /// the way to the start, and not beneath it.
    ///
    /// # Errors
    /// [`Error::NotFound`] and the like if the path leads nowhere. What cannot be read beneath the start is an item of
    /// the walk.
    pub fn walk(&self, path: impl AsRef<Path>) -> Result<Walk> {
        let path = path.as_ref();
        let start = path::node(self.engine(), path)?;
        path::gone(Walk::of_node(&start, path.as_os_str().as_bytes().to_vec()))
    }

    /// Makes a directory, with mode `0o755`, owned by root.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::TooManyLinks`].
    pub fn create_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        let place = path::resolve(self.engine(), path.as_ref(), false)?;
        place.dir.create(place.free()?, &NewNode::new(FileType::Dir, 0o755)).map(drop)
    }

    /// Makes a directory and all that are missing above it. What others make meanwhile is taken as it is.
    ///
    /// # Errors
    /// [`Error::Exists`] if something else than a directory is at `path`.
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut missing = Vec::new();
        let mut above = Some(path).filter(|path| !path.as_os_str().is_empty());
        while let Some(dir) = above {
            match self.create_dir(dir) {
                Ok(()) => break,
                Err(Error::NotFound) => missing.push(dir),
                Err(Error::Exists) if self.metadata(dir)?.is_dir() => break,
                Err(e) => return Err(e),
            }
            above = dir.parent().filter(|path| !path.as_os_str().is_empty());
        }
        for dir in missing.into_iter().rev() {
            match self.create_dir(dir) {
                Err(Error::Exists) if self.metadata(dir)?.is_dir() => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Removes a name of anything but a directory. With the last one the bytes go, unless the file is open or mapped.
    ///
    /// # Errors
    /// [`Error::IsDirectory`].
    pub fn remove_file(&self, path: impl AsRef<Path>) -> Result<()> {
        let place = path::resolve(self.engine(), path.as_ref(), false)?;
        if place.found()?.kind.is_dir() {
            return Err(Error::IsDirectory);
        }
        place.dir.unlink(place.entry()?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error::NotEmpty`]; [`Error::Invalid`] for the root.
    pub fn remove_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        let place = path::resolve(self.engine(), path.as_ref(), false)?;
        place.dir.rmdir(place.entry()?)
    }

    /// Removes a directory and everything below it, the deepest first; symbolic links are removed, and not followed. One
    /// record for each name: after a crash or an error a part may be left.
    ///
    /// # Errors
    /// [`Error::NotDirectory`], unless it is a symbolic link, which goes; [`Error::Invalid`] for the root;
    /// [`Error::NotEmpty`] if others make names in it meanwhile.
    pub fn remove_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let place = path::resolve(self.engine(), path.as_ref(), false)?;
        let kind = place.found()?.kind;
        if !kind.is_dir() && !kind.is_symlink() {
            return Err(Error::NotDirectory);
        }
        place.dir.remove_tree(place.entry()?).map(drop)
    }

    /// Moves the name `from` to `to`. A file, or an empty directory, that has the new name is replaced.
    ///
    /// # Errors
    /// [`Error::IsDirectory`], [`Error::NotDirectory`] or [`Error::NotEmpty`] for what cannot be replaced;
    /// [`Error::Invalid`] for a directory into itself.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let from = path::resolve(self.engine(), from.as_ref(), false)?;
        let to = path::resolve(self.engine(), to.as_ref(), false)?;
        if to.attr.is_none() && to.must_be_dir && !from.found()?.kind.is_dir() {
            return Err(Error::NotDirectory);
        }
        from.dir.rename(from.entry()?, to.dir.ino(), to.name()?, RenameMode::Replace)
    }

    /// Gives the file `original`, which is no directory, another name. A symbolic link is not followed.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::IsDirectory`], [`Error::TooManyLinks`].
    pub fn hard_link(&self, original: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
        let original = path::resolve(self.engine(), original.as_ref(), false)?;
        let link = path::resolve(self.engine(), link.as_ref(), false)?;
        // As on the system, a missing original counts before a name that is taken.
        let ino = original.found()?.ino;
        link.dir.link(link.free()?, ino).map(drop)
    }

    /// Makes a symbolic link at `link` to `original`, which need not be there. A target without a leading `/` begins in
    /// the directory of the link.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::NameTooLong`] for a target of more than 4,095 bytes; [`Error::NotFound`] for a name
    /// that is free and has a slash behind it, which means a directory.
    pub fn symlink(&self, original: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
        let place = path::resolve(self.engine(), link.as_ref(), false)?;
        let target = original.as_ref().as_os_str().as_bytes();
        let node = NewNode::new(FileType::Symlink, 0o777).target(target);
        let name = place.free()?;
        if place.must_be_dir {
            return Err(Error::NotFound);
        }
        place.dir.create(name, &node).map(drop)
    }

    /// The target of the symbolic link at `path`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is none.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let place = path::resolve(self.engine(), path.as_ref(), false)?;
        let target = path::gone(self.engine().any(place.found()?.ino).read_link())?;
        Ok(PathBuf::from(OsString::from_vec(target)))
    }

    /// Sets the permission bits (`07777`) of the file at `path`; symbolic links are followed.
    pub fn set_permissions(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let node = path::node(self.engine(), path.as_ref())?;
        path::gone(node.set_attr(&SetAttr::new().perm(mode))).map(drop)
    }

    /// Makes `to` a new file with the contents, the owner, the mode and the times of the file `from`, whatever its size in
    /// one record and without a copy: both share what is there until one of them writes.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::IsDirectory`] or [`Error::Invalid`] if `from` is no regular file;
    /// [`Error::TooManyLinks`] beyond 2^30 clones of one state.
    pub fn clone_file(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let from = path::resolve(self.engine(), from.as_ref(), true)?;
        let to = path::resolve(self.engine(), to.as_ref(), false)?;
        to.dir.clone_file(to.free()?, from.found()?.ino).map(drop)
    }

    /// Makes `to` a clone of the directory `from` and all below it, each file as with [`Pool::clone_file`], with owners,
    /// modes, times, extended attributes and hard links. The tree appears whole or not at all; each file is as it was at
    /// one moment.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Invalid`] for a tree into itself.
    pub fn clone_tree(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Copied> {
        let from = path::resolve(self.engine(), from.as_ref(), true)?;
        let to = path::resolve(self.engine(), to.as_ref(), false)?;
        self.snapshots().clone_tree(from.found()?.ino, to.dir.ino(), to.free()?)
    }
}
