//! One open pool: its locks, its open files, and the handles that programs use.
//!
//! ```text
//!   Pool --Arc--> Inner { frames (and journal, media below), locks, opens }
//!    | root(), node(), resolve()
//!    v
//!   Dir, Node: borrowed, cost nothing        File: owns its place, keeps an unnamed file alive
//! ```
//!
//! The order of the locks is in `lock/rank.rs`, and is checked in debug builds.

mod background;
mod create;
mod failures;
mod held;
mod info;
mod locks;
mod node;
mod open;
mod opens;

pub use create::CreateOptions;
pub use info::Info;
pub use node::Node;
pub(crate) use open::open_existing;
pub use open::{OpenOptions, is_pool};

pub(crate) use held::{InodeRead, InodeWrite, OrphansWrite};
pub(crate) use locks::{ReadGuard, WriteGuards};
pub(crate) use opens::{OpenInode, Watcher, Watchers};

use std::path::Path;
use std::sync::{Arc, Weak};

use crate::attr::{Kind, StatFs};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::file::Waiting;
use crate::frame::Frames;
use crate::layout::{ORPHANS, ROOT, Superblock};
use crate::lock::{Mutex, RwLock, rank};
use crate::media::Media;
use crate::snapshot::Snapshots;
use crate::units::Ino;
use background::Background;
use failures::Failures;
use locks::Locks;
use opens::Opens;

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
pub struct Pool(Arc<Opened>);

/// A pool that may have been closed.
#[derive(Clone, Debug)]
pub(crate) struct WeakPool(Weak<Opened>);

impl WeakPool {
    /// The same for all handles of one pool, and for no other pool while this handle is there.
    pub(crate) fn identity(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// The pool, if it is still open.
    pub(crate) fn upgrade(&self) -> Option<Pool> {
        self.0.upgrade().map(Pool)
    }
}

/// The pool and what runs beside it; the last handle to go ends that first.
#[derive(Debug)]
struct Opened {
    /// Dropped before the pool: it waits for its thread, so closing is over when it is over.
    _background: Option<Background>,
    inner: Arc<Inner>,
}

/// What all handles of a pool share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) frames: Frames,
    pub(crate) locks: Locks,
    pub(crate) opens: Opens,
    /// Held by renames that could make a directory its own ancestor.
    pub(crate) renames: Mutex<rank::Renames, ()>,
    /// Shared while a file is read through its bases; exclusive while a base is merged.
    pub(crate) chains: RwLock<rank::Chain, ()>,
    /// Held while a tree is made, removed or restored.
    pub(crate) trees: Mutex<rank::Trees, ()>,
    /// Bases to be merged after the next sync (at an open at the latest: they are orphans).
    pub(crate) merges: Mutex<rank::Leaf, Waiting>,
    /// Errors of work that no caller waits for.
    pub(crate) failures: Failures,
    superblock: Superblock,
    replayed: u64,
}

impl Pool {
    fn new(inner: Inner, in_background: bool) -> Result<Pool> {
        let inner = Arc::new(inner);
        let background = if in_background { Background::start(&inner)? } else { None };
        Ok(Pool(Arc::new(Opened { _background: background, inner })))
    }

    /// Formats `path` (making the file, mode 0600, if it is missing) and opens it.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a pool already and `force` is not set, [`Error::Size`],
    /// [`Error::InUse`], [`Error::Path`].
    pub fn create(path: &Path, options: &CreateOptions) -> Result<Pool> {
        create::create(path, options)
    }

    /// Opens the pool at `path`, replaying what a crash left.
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

    /// Opens the pool on `media`. Nothing runs in the background: media that are durable at sync
    /// are synced when asked, and at close.
    pub fn open_on(media: Arc<dyn Media>, options: &OpenOptions) -> Result<Pool> {
        open::open_media(media, options, false)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0.inner
    }

    /// For who must not keep the pool open.
    pub(crate) fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(&self.0))
    }

    /// Media, space and overhead.
    pub fn info(&self) -> Result<Info> {
        info::info(self.inner())
    }

    /// Space.
    pub fn statfs(&self) -> StatFs {
        info::statfs(self.inner())
    }

    /// Everything done so far is durable on return.
    ///
    /// # Errors
    /// The first of what failed; everything else is durable all the same.
    pub fn sync(&self) -> Result<()> {
        self.inner().sync_all()
    }

    /// Syncs, and reports what dropping would have to swallow. Other clones stay open, and so do files and mappings:
    /// each holds a clone. With one of them alive this is `Ok` too, and the pool is in use, and locked against other
    /// processes, until the last one goes.
    pub fn close(self) -> Result<()> {
        if self.inner().frames.region.describe().read_only {
            return Ok(());
        }
        let synced = self.inner().sync_all();
        synced.and(self.inner().frames.checkpoint())
    }

    /// Its snapshots, and clones of trees.
    pub fn snapshots(&self) -> Snapshots<'_> {
        Snapshots::new(self)
    }

    /// The root directory.
    pub fn root(&self) -> Dir<'_> {
        Dir::new(self, ROOT)
    }

    /// The node with this number; [`Error::Stale`] if it is gone.
    pub fn node(&self, ino: Ino) -> Result<Node<'_>> {
        if ino == ORPHANS {
            return Err(Error::Stale(ino.0));
        }
        self.inner().kind(ino)?;
        Ok(Node::new(self, ino))
    }

    /// Walks a path like `/a/b` from the root. Follows no symbolic links and refuses `..`.
    pub fn resolve(&self, path: &[u8]) -> Result<Node<'_>> {
        let mut node = Node::new(self, ROOT);
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".") {
            if name == b".." {
                return Err(Error::Invalid("a path inside a pool has no `..`"));
            }
            node = Node::new(self, node.dir()?.lookup(name)?.ino);
        }
        Ok(node)
    }
}

impl Inner {
    pub(crate) fn new(frames: Frames, superblock: Superblock, replayed: u64) -> Inner {
        Inner {
            frames,
            locks: Locks::new(),
            opens: Opens::default(),
            renames: Mutex::default(),
            chains: RwLock::default(),
            trees: Mutex::default(),
            merges: Mutex::default(),
            failures: Failures::default(),
            superblock,
            replayed,
        }
    }

    /// The kind of a live inode.
    pub(crate) fn kind(&self, ino: Ino) -> Result<Kind> {
        let _lock = self.locks.read(ino);
        self.frames.inode(ino)?.kind().ok_or(Error::Stale(ino.0))
    }

    /// Keyed hash of a name: nobody can make names that collide without knowing the pool's seed.
    pub(crate) fn hash(&self, name: &[u8]) -> u64 {
        let key = self.superblock.hash_seed;
        siphasher::sip::SipHasher13::new_with_keys(key, key.rotate_left(32)).hash(name)
    }

    pub(crate) fn sync_all(&self) -> Result<()> {
        self.frames.check_home()?;
        if self.frames.region.describe().read_only {
            return Ok(());
        }
        // One file whose record is lost must not keep the others from being durable.
        let mut settled = Ok(());
        for ino in if self.stores_need_flush() { self.opens.all_stored() } else { Vec::new() } {
            match self.persist_stored(ino) {
                Ok(()) | Err(Error::Stale(_)) => {}
                Err(e) => settled = settled.and(Err(e)),
            }
        }
        for ino in self.opens.all_touched() {
            match self.settle_times(ino) {
                Ok(()) | Err(Error::Stale(_)) => {}
                Err(e) => settled = settled.and(Err(e)),
            }
        }
        settled.and(self.sync_and_merge())
    }

    /// Makes durable what was done so far, and merges the bases that wait for that.
    fn sync_and_merge(&self) -> Result<()> {
        let merges = self.take_merges();
        let synced = self.frames.journal.sync();
        match &synced {
            Ok(()) => self.merge_what(&merges),
            Err(_) => self.merge_later(&merges),
        }
        synced
    }

    pub(crate) fn sync_inode(&self, ino: Ino) -> Result<()> {
        self.frames.check_home()?;
        if self.frames.region.describe().read_only {
            return Ok(());
        }
        let settled = self.persist_stored(ino).and(self.settle_times(ino));
        settled.and(self.sync_and_merge())
    }

    /// A handle of a file has gone. Errors of what the last one leaves to do are noted: nobody waits for them.
    pub(crate) fn close_file(&self, ino: Ino, open: &OpenInode) {
        if self.frames.check_home().is_err() {
            return;
        }
        if self.frames.region.describe().read_only {
            self.opens.close(ino);
            return;
        }
        let last = self.opens.close_settled(ino).unwrap_or_else(|| {
            // Nobody opens it, and nobody else closes it, while it is locked: one handle finds that it is the last.
            let lock = self.locks.write(&[ino]);
            let held = lock.of(ino);
            if self.opens.is_last(held) {
                self.failures.note("stores through mappings of a file at its close", self.persist_stored_locked(held));
                self.failures.note("times of a file at its close", self.settle_times_locked(held));
                self.failures.note("giving back what was taken ahead", self.trim_locked(held, open));
            }
            self.opens.close(ino)
        });
        if last {
            let unnamed = {
                let _lock = self.locks.read(ino);
                self.frames.inode(ino).is_ok_and(|rec| rec.nlink == 0)
            };
            if unnamed {
                self.reclaim_beside(ino);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let ours = !self.frames.region.describe().read_only && self.frames.check_home().is_ok();
        if ours && self.frames.journal.check_latch().is_ok() {
            let _ = self.frames.checkpoint();
            // Stores through mappings leave no record, so that a checkpoint may have had nothing to do.
            let _ = self.frames.journal.sync();
        }
    }
}
