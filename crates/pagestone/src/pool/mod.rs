//! The facade: what programs call. It owns a reference to the engine, and starts its background thread.
//!
//! ```text
//!   Pool --> EngineRef --> Engine { alloc (and journal, media below), locks, open inodes }
//!    |
//!    | by path (names.rs, path.rs, file_options.rs)     by number and bytes (root, node, resolve)
//!    v                                                  v
//!   File, Metadata, ReadDir, DirEntry, Walk             inode::Dir, inode::Node
//!
//!   create.rs  open.rs  info.rs  background.rs          file.rs  file_io.rs  metadata.rs  read_dir.rs
//! ```
//!
//! Each of them has a reference of its own to the engine, and keeps the pool open.

mod background;
mod create;
mod file;
mod file_io;
mod file_options;
mod info;
mod metadata;
mod names;
mod open;
mod path;
mod read_dir;

pub use crate::dir::{Walk, WalkEntry};
pub use create::CreateOptions;
pub use file::File;
pub use file_options::FileOptions;
pub use info::Info;
pub use metadata::Metadata;
pub(crate) use open::open_existing;
pub use open::{OpenOptions, is_pool};
pub use read_dir::{DirEntry, ReadDir};

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::attr::StatFs;
use crate::dir::{Dir, Node};
use crate::engine::{Engine, EngineRef};
use crate::error::{Error, Result};
use crate::snapshot::Snapshots;
use crate::transaction::Transaction;
use crate::txn::DoneRequest;
use crate::units::Ino;
use background::Background;
use pmem::Media;

/// An open pool. Cheap to clone. Files, directories and mappings of it keep it open like a clone; the last of them that
/// goes closes it. [`Pool::close`] closes it and reports errors.
///
/// ```
/// use pagestone::{CreateOptions, OpenOptions, Pool};
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("demo.pool");
/// let pool = Pool::create(&path, &CreateOptions::new().size(16 << 20))?;
/// pool.create_dir("/notes")?;
/// pool.write("/notes/today", "hello")?;
/// pool.close()?; // durable
///
/// let pool = Pool::open(&path, &OpenOptions::new().read_only(true))?;
/// assert_eq!(pool.read("/notes/today")?, b"hello");
/// # Ok::<(), pagestone::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pool(EngineRef);

impl Pool {
    fn new(engine: Engine, in_background: bool, leave_orphans: bool) -> Result<Pool> {
        let engine = Arc::new(engine);
        let background = if in_background { Background::start(&engine, !leave_orphans)? } else { None };
        Ok(Pool(EngineRef::new(engine, background)))
    }

    /// Formats `path` (making the file, mode 0600, if it is missing) and opens it.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a pool already and `force` is not set, [`Error::Size`],
    /// [`Error::InUse`], [`Error::Path`].
    pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<Pool> {
        create::create(path.as_ref(), options)
    }

    /// Opens the pool at `path`, replaying what a crash left.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InUse`], [`Error::NotAPool`], [`Error::TooNew`],
    /// [`Error::Size`], [`Error::Corrupt`], [`Error::Path`].
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Pool> {
        open::open(path.as_ref(), options)
    }

    /// Formats `media` and opens it.
    pub fn create_on(media: Arc<dyn Media>, options: &CreateOptions) -> Result<Pool> {
        create::create_on(media, options)
    }

    /// Opens the pool on `media`. Nothing runs in the background: media that are durable at sync
    /// are synced when asked, and at close.
    pub fn open_on(media: Arc<dyn Media>, options: &OpenOptions) -> Result<Pool> {
        open::open_media(media, options, false)
    }

    pub(crate) fn engine(&self) -> &EngineRef {
        &self.0
    }

    /// Media, space and overhead.
    pub fn info(&self) -> Result<Info> {
        info::info(self.engine())
    }

    /// Space.
    pub fn statfs(&self) -> StatFs {
        info::statfs(self.engine())
    }

    /// Everything done so far is durable on return. On an ordinary file this waits for `fdatasync`; on DAX media it
    /// writes back what was stored through mappings.
    ///
    /// # Errors
    /// The first of what failed; everything else is durable all the same.
    pub fn sync(&self) -> Result<()> {
        self.engine().sync_all()
    }

    /// As [`Pool::sync`], and empties the journal: the next open has nothing to replay, and space that was freed can be
    /// taken again. Waits for changes that are under way.
    ///
    /// # Errors
    /// As [`Pool::sync`].
    pub fn checkpoint(&self) -> Result<()> {
        checkpoint(self.engine())
    }

    /// Frees the files that had lost their last name when the pool was opened, except those that are open by now. For
    /// [`OpenOptions::leave_orphans`]; without it this has been done, or is being done in the background. Blocks for as
    /// long as freeing takes. What cannot be freed stays for the next open.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Lost`] where their index cannot be read.
    pub fn reclaim_orphans(&self) -> Result<()> {
        self.engine().reclaim_orphans(|| true)
    }

    /// The requests of a client that the pool has a note of (see [`inode::Request`](crate::inode::Request)).
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn done_requests(&self, client: u64) -> Result<Vec<DoneRequest>> {
        self.engine().alloc.done_requests(client)
    }

    /// Closes the pool: syncs it, empties the journal and releases the lock that keeps other processes out. Everything
    /// is durable on return.
    ///
    /// # Errors
    /// [`Error::Busy`] if there are other clones of the pool, or files, directories, mappings, pins or listings of it.
    /// Then nothing is closed, and the pool goes on for them. Any other error is that of the sync; the pool is closed all
    /// the same.
    pub fn close(self) -> Result<()> {
        self.0.close(checkpoint).ok_or(Error::Busy)?
    }

    /// Lets the pool have `size` bytes, rounded down to whole frames of 2 MiB; the media are lengthened if they are a
    /// file that is shorter. It goes on being used meanwhile. Durable on return. Takes one record, whatever the sizes;
    /// waits for a checkpoint.
    ///
    /// # Errors
    /// [`Error::Size`] for fewer bytes than it has, or more than the media or a pool can have; [`Error::Media`] if the
    /// media cannot be lengthened while they are open; [`Error::NoSpace`] if the filesystem below is full;
    /// [`Error::Busy`] while the pool is grown or shrunk already. The pool is as it was then. Only after an error of the
    /// journal it may have either size, and a file stays longer: the pool takes no change any more ([`Error::Latched`]),
    /// and the next open tells the size.
    pub fn grow(&self, size: u64) -> Result<()> {
        self.engine().grow(size)
    }

    /// Lets the pool have `size` bytes, rounded up to whole frames of 2 MiB, after moving what lies behind. It goes on
    /// being used meanwhile; inode numbers stay. `progress` is called with the pages moved and the pages to be moved,
    /// with no lock held; after `Break` the operation ends with [`Error::Interrupted`]. What is behind the end of the
    /// media is given back to the filesystem; a file is truncated once the pool is closed.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if what the pool holds does not fit; [`Error::Size`] for more bytes than it has, or fewer than
    /// it can have; [`Error::Pinned`] if a mapping keeps pages behind the end; [`Error::Busy`] while the pool is grown or
    /// shrunk already; [`Error::Lost`] if a page there cannot be
    /// read. The pool has its size still then, and what was moved lies elsewhere.
    pub fn shrink(&self, size: u64, progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<()> {
        self.engine().shrink(size, progress)
    }

    /// Metadata that were verified since the pool was opened are verified again when they are read next. For whoever looks
    /// for what has been damaged meanwhile.
    pub fn verify_again(&self) {
        self.engine().alloc.verify_again();
    }

    /// Begins a list of changes of several files and names that are committed together: all of them, or none. It may
    /// write, append to and set the length of files, make files, directories, symbolic and hard links, rename and exchange
    /// names, and remove them.
    pub fn transaction<'a>(&self) -> Transaction<'a> {
        Transaction::new(self.0.clone())
    }

    /// Its snapshots, and clones of trees.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::new(self.0.clone())
    }

    /// The root directory, for the [inode layer](crate::inode).
    pub fn root(&self) -> Dir {
        self.0.root()
    }

    /// The node with this number, for the [inode layer](crate::inode); [`Error::Stale`] if it is gone.
    pub fn node(&self, ino: Ino) -> Result<Node> {
        self.0.node(ino)
    }

    /// Walks a path of bytes like `/a/b` from the root, for the [inode layer](crate::inode). Follows no symbolic links and
    /// refuses `..`.
    pub fn resolve(&self, path: &[u8]) -> Result<Node> {
        let mut node = self.0.root().node();
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".") {
            if name == b".." {
                return Err(Error::Invalid("a path inside a pool has no `..`"));
            }
            node = self.0.any(node.dir()?.lookup(name)?.ino);
        }
        Ok(node)
    }
}

fn checkpoint(engine: &Engine) -> Result<()> {
    if engine.alloc.region.describe().read_only {
        return Ok(());
    }
    engine.sync_all().and(engine.alloc.checkpoint())
}
