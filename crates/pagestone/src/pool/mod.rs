//! The facade: what programs call. It owns a reference to the engine, and starts its background thread.
//!
//! ```text
//!   Pool --> EngineRef --> Engine { frames (and journal, media below), locks, open inodes }
//!    | root(), node(), resolve()
//!    v
//!   Dir, Node, File: each with a reference of its own; a File keeps an unnamed file alive
//! ```

mod background;
mod create;
mod info;
mod open;

pub use create::CreateOptions;
pub use info::Info;
pub(crate) use open::open_existing;
pub use open::{OpenOptions, is_pool};

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::attr::StatFs;
use crate::dir::{Dir, Node};
use crate::engine::{Engine, EngineRef};
use crate::error::{Error, Result};
use crate::snapshot::Snapshots;
use crate::units::Ino;
use background::Background;
use pmem::Media;

/// An open pool. Cheap to clone; the last clone (or open [`File`](crate::File)) to go closes it.
///
/// ```
/// use pagestone::{CreateOptions, Kind, NewNode, Pool};
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("demo.pool");
/// let pool = Pool::create(&path, &CreateOptions { size: Some(16 << 20), ..Default::default() })?;
/// let attr = pool.root().create(b"hello", &NewNode::new(Kind::File, 0o644))?;
/// let file = pool.node(attr.ino)?.open()?;
/// file.write_at(0, b"world")?;
/// file.sync()?;
/// # Ok::<(), pagestone::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pool(EngineRef);

impl Pool {
    fn new(engine: Engine, in_background: bool) -> Result<Pool> {
        let engine = Arc::new(engine);
        let background = if in_background { Background::start(&engine)? } else { None };
        Ok(Pool(EngineRef::new(engine, background)))
    }

    /// Formats `path` (making the file, mode 0600, if it is missing) and opens it.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a pool already and `force` is not set, [`Error::Size`],
    /// [`Error::InUse`], [`Error::Path`].
    pub fn create(path: &Path, options: &CreateOptions) -> Result<Pool> {
        create::create(path, options)
    }

    /// OpenInodes the pool at `path`, replaying what a crash left.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InUse`], [`Error::NotAPool`], [`Error::TooNew`],
    /// [`Error::Size`], [`Error::Corrupt`], [`Error::Path`].
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Pool> {
        open::open(path, options)
    }

    /// Formats `media` and opens it.
    pub fn create_on(media: Arc<dyn Media>, options: &CreateOptions) -> Result<Pool> {
        create::create_on(media, options)
    }

    /// OpenInodes the pool on `media`. Nothing runs in the background: media that are durable at sync
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

    /// Everything done so far is durable on return.
    ///
    /// # Errors
    /// The first of what failed; everything else is durable all the same.
    pub fn sync(&self) -> Result<()> {
        self.engine().sync_all()
    }

    /// Syncs, and reports what dropping would have to swallow. Other clones stay open, and so do files and mappings:
    /// each holds a clone. With one of them alive this is `Ok` too, and the pool is in use, and locked against other
    /// processes, until the last one goes.
    pub fn close(self) -> Result<()> {
        if self.engine().alloc.region.describe().read_only {
            return Ok(());
        }
        let synced = self.engine().sync_all();
        synced.and(self.engine().alloc.checkpoint())
    }

    /// Lets the pool have `size` bytes, rounded down to whole frames of 2 MiB; the media are lengthened if they are a
    /// file that is shorter. It goes on being used meanwhile. Durable on return. Takes one record, whatever the sizes;
    /// waits for a checkpoint.
    ///
    /// # Errors
    /// [`Error::Size`] for fewer bytes than it has, or more than the media or a pool can have; [`Error::Media`] if the
    /// media cannot be lengthened while they are open. The pool is as it was then.
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
    /// it can have; [`Error::Pinned`] if a mapping keeps pages behind the end; [`Error::Lost`] if a page there cannot be
    /// read. The pool has its size still then, and what was moved lies elsewhere.
    pub fn shrink(&self, size: u64, progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<()> {
        self.engine().shrink(size, progress)
    }

    /// Its snapshots, and clones of trees.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::new(self.0.clone())
    }

    /// The root directory.
    pub fn root(&self) -> Dir {
        self.0.root()
    }

    /// The node with this number; [`Error::Stale`] if it is gone.
    pub fn node(&self, ino: Ino) -> Result<Node> {
        self.0.node(ino)
    }

    /// Walks a path like `/a/b` from the root. Follows no symbolic links and refuses `..`.
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
