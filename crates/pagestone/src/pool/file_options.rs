//! How a file is opened: the library's counterpart of `std::fs::OpenOptions`.

use std::path::Path;

use super::file::Access;
use super::{File, Pool, path};
use crate::attr::{FileType, NewNode, SetAttr};
use crate::data::FileHandle;
use crate::error::{Error, Result};

/// How often an open that others get in the way of is tried again.
const TRIES: usize = 100;

/// How [`FileOptions::open`] opens a file; [`Pool::file_options`] makes one. Everything is off at first.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let pool = pagestone::Pool::create(dir.path().join("p"), &pagestone::CreateOptions::new().size(16 << 20))?;
/// use std::io::Write;
/// let mut log = pool.file_options().append(true).create(true).open("/log")?;
/// writeln!(log, "started")?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct FileOptions<'p> {
    pool: &'p Pool,
    access: Access,
    truncate: bool,
    create: bool,
    create_new: bool,
    mode: u32,
    owner: (u32, u32),
}

impl<'p> FileOptions<'p> {
    pub(super) fn new(pool: &'p Pool) -> FileOptions<'p> {
        let access = Access { read: false, write: false, append: false };
        FileOptions { pool, access, truncate: false, create: false, create_new: false, mode: 0o644, owner: (0, 0) }
    }

    /// The file can be read.
    pub fn read(mut self, read: bool) -> Self {
        self.access.read = read;
        self
    }

    /// The file can be written.
    pub fn write(mut self, write: bool) -> Self {
        self.access.write = write;
        self
    }

    /// The file can be appended to, also without [`write`](FileOptions::write). Writes through the cursor go to the end.
    /// A write at an offset is refused.
    pub fn append(mut self, append: bool) -> Self {
        self.access.append = append;
        self
    }

    /// A file that is there loses its contents. Needs [`write`](FileOptions::write).
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.truncate = truncate;
        self
    }

    /// Makes the file if it is missing. Needs [`write`](FileOptions::write) or [`append`](FileOptions::append).
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Makes the file, and fails if the name is taken, be it by a symbolic link that leads nowhere. Turns
    /// [`create`](FileOptions::create) and [`truncate`](FileOptions::truncate) into nothing.
    pub fn create_new(mut self, create_new: bool) -> Self {
        self.create_new = create_new;
        self
    }

    /// Permission bits of a file that is made; `0o644` unless set. The process's umask does not count.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Owner and group of a file that is made; 0 and 0 unless set.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// Opens the file at `path`. Permissions are not checked: whoever has the pool open may do everything.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Exists`] with [`create_new`](FileOptions::create_new), [`Error::IsDirectory`],
    /// [`Error::NotDirectory`], [`Error::LinkLoop`], [`Error::NoSpace`], [`Error::ReadOnly`]; [`Error::Invalid`] for
    /// options that do not go together; [`Error::NotSupported`] for a device, pipe or socket.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        self.check()?;
        let path = path.as_ref();
        for _ in 0..TRIES {
            match self.try_open(path) {
                // Between looking it up and opening it, somebody has removed or made it.
                Err(Error::Stale(_)) => {}
                Err(Error::Exists) if !self.create_new => {}
                done => return done,
            }
        }
        Err(Error::NotFound)
    }

    fn check(&self) -> Result<()> {
        let Access { read, write, append } = self.access;
        let changes = write || append;
        if !read && !changes {
            return Err(Error::Invalid("a file is opened for reading, writing or appending"));
        }
        if (self.create || self.create_new || self.truncate) && !changes {
            return Err(Error::Invalid("to make or truncate a file, open it for writing"));
        }
        if self.truncate && append && !self.create_new {
            return Err(Error::Invalid("a file cannot be opened for appending and truncated"));
        }
        Ok(())
    }

    fn try_open(&self, path: &Path) -> Result<File> {
        let engine = self.pool.engine();
        let place = path::resolve(engine, path, !self.create_new)?;
        let (ino, made) = match place.attr {
            Some(_) if self.create_new => return Err(Error::Exists),
            Some(attr) => (attr.ino, false),
            None if !self.create && !self.create_new => return Err(Error::NotFound),
            None if place.must_be_dir => return Err(Error::IsDirectory),
            None => {
                let mut node = NewNode::new(FileType::File, self.mode & 0o7777);
                (node.uid, node.gid) = self.owner;
                (place.dir.create(place.name()?, &node)?.ino, true)
            }
        };
        // One mode of access: an append that may also write is an append.
        let access = Access { write: self.access.write && !self.access.append, ..self.access };
        let handle = FileHandle::open(engine, ino)?;
        if (access.write || access.append) && engine.alloc.region.describe().read_only {
            return Err(Error::ReadOnly);
        }
        if self.truncate && !made {
            engine.set_attr(ino, &SetAttr::new().size(0))?;
        }
        Ok(File::new(handle, access))
    }
}
