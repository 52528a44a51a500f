//! What everybody above shares of one open pool: the allocator, the locks, the open inodes.
//!
//! ```text
//!   EngineRef --Arc--> Engine { alloc (and journal, media below), locks, open inodes, ... }
//!                        |
//!        inode_locks.rs  |  open_inodes.rs        last_extent.rs
//!        who may read and change an inode         what is open, who observes it, the extent used last
//!        lock_witness.rs                          background_errors.rs
//!        the proof of it, as a parameter          errors of work that no caller waits for
//! ```
//!
//! The order of the locks is in `lock/rank.rs`, and is checked in debug builds. It must not know what lies in a file
//! or a directory: the layers above add their operations to [`Engine`] by `impl` blocks of their own.

mod background_errors;
mod inode_locks;
mod last_extent;
mod lock_witness;
mod open_inodes;

pub(crate) use inode_locks::{ReadGuard, WriteGuards};
pub(crate) use last_extent::LastExtent;
pub(crate) use lock_witness::{InodeRead, InodeWrite, OrphansWrite};
pub(crate) use open_inodes::{MappingObserver, MappingObservers, OpenInode};

use std::any::Any;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use crate::alloc::Allocator;
use crate::attr::Kind;
use crate::error::{Error, Result};
use crate::layout::Superblock;
use crate::lock::{Mutex, RwLock, rank};
use crate::units::Ino;
use background_errors::Failures;
use inode_locks::Locks;
use open_inodes::OpenInodes;

/// A reference to an open pool: the pool stays open while there is one.
#[derive(Clone, Debug)]
pub(crate) struct EngineRef(Arc<Shared>);

/// What all references share. The last one to be dropped ends the background thread first.
#[derive(Debug)]
struct Shared {
    /// Dropped before the engine: it waits for its thread, so closing is over when it is over.
    _background: Option<Box<dyn Any + Send + Sync>>,
    engine: Arc<Engine>,
}

impl EngineRef {
    /// The first reference. `background` is dropped before the engine.
    pub(crate) fn new(engine: Arc<Engine>, background: Option<impl Any + Send + Sync>) -> EngineRef {
        let boxed = |background| -> Box<dyn Any + Send + Sync> { Box::new(background) };
        EngineRef(Arc::new(Shared { _background: background.map(boxed), engine }))
    }

    /// Whether both are of one pool.
    pub(crate) fn is_same(&self, other: &EngineRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Runs `last` and drops the engine, if this is the only reference to it: its background thread has ended then.
    pub(crate) fn close<R>(self, last: impl FnOnce(&Engine) -> R) -> Option<R> {
        let Shared { _background, mut engine } = Arc::into_inner(self.0)?;
        drop(_background);
        let done = last(&engine);
        // A thread that serves a child of the process may hold it for a moment.
        while let Err(shared) = Arc::try_unwrap(engine) {
            engine = shared;
            std::thread::yield_now();
        }
        Some(done)
    }

    /// For who must not keep the pool open.
    pub(crate) fn downgrade(&self) -> WeakEngine {
        WeakEngine(Arc::downgrade(&self.0.engine))
    }
}

impl Deref for EngineRef {
    type Target = Engine;
    fn deref(&self) -> &Engine {
        &self.0.engine
    }
}

/// A pool that may have been closed.
#[derive(Clone, Debug)]
pub(crate) struct WeakEngine(Weak<Engine>);

impl WeakEngine {
    /// The same for all handles of one pool, and for no other pool while this handle is there.
    pub(crate) fn identity(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// The pool, if it is still open. To be held for a moment only: a close waits for it.
    pub(crate) fn upgrade(&self) -> Option<Arc<Engine>> {
        self.0.upgrade()
    }
}

/// Bases that wait to be merged.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// For the next sync or merge.
    pub(crate) next: Vec<Ino>,
    /// Until a pin is dropped, and how many were when it was tried: before, it would be tried in vain.
    pub(crate) pinned: Vec<(Ino, u64)>,
}

/// What all handles of a pool share.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) alloc: Allocator,
    pub(crate) locks: Locks,
    pub(crate) opens: OpenInodes,
    /// Held by renames that could make a directory its own ancestor.
    pub(crate) renames: Mutex<rank::Renames, ()>,
    /// Shared while a file is read through its bases; exclusive while a base is merged.
    pub(crate) chains: RwLock<rank::Chain, ()>,
    /// Held while the pool is grown or shrunk.
    pub(crate) resizing: Mutex<rank::Resize, ()>,
    /// Held while a tree is made, removed or restored.
    pub(crate) trees: Mutex<rank::Trees, ()>,
    /// Bases to be merged after the next sync (at an open at the latest: they are orphans).
    pub(crate) merges: Mutex<rank::Leaf, Waiting>,
    /// Errors of work that no caller waits for.
    pub(crate) failures: Failures,
    pub(crate) superblock: Superblock,
    pub(crate) replayed: u64,
}

impl Engine {
    pub(crate) fn new(alloc: Allocator, superblock: Superblock, replayed: u64) -> Engine {
        Engine {
            alloc,
            locks: Locks::new(),
            opens: OpenInodes::default(),
            renames: Mutex::default(),
            chains: RwLock::default(),
            resizing: Mutex::default(),
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
        self.alloc.inode(ino)?.kind().ok_or(Error::Stale(ino.0))
    }

    /// Keyed hash of a name: nobody can make names that collide without knowing the pool's seed.
    pub(crate) fn hash(&self, name: &[u8]) -> u64 {
        let key = self.superblock.hash_seed;
        siphasher::sip::SipHasher13::new_with_keys(key, key.rotate_left(32)).hash(name)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let ours = !self.alloc.region.describe().read_only && self.alloc.check_process().is_ok();
        if ours && self.alloc.journal.check_latch().is_ok() {
            let _ = self.alloc.checkpoint();
            // Stores through mappings leave no record, so that a checkpoint may have had nothing to do.
            let _ = self.alloc.journal.sync();
        }
    }
}
