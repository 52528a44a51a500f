//! The state of one open pool that the layers above share: the allocator, the locks, the open inodes.
//!
//! ```text
//!   EngineRef --Arc--> Engine { alloc (and journal, media beneath), locks, open inodes, ... }
//!                        |
//!        inode_locks.rs  |  open_inodes.rs        last_extent.rs
//!        locks of inodes |  handles, observers    the extent used last
//!        lock_witness.rs                          background_errors.rs
//!        the proof of a lock, as a parameter      errors of work that no caller waits for
//!        pause.rs   one thread works alone
//! ```
//!
//! `lock/rank.rs` has the order of the locks; debug builds check it. This module does not depend on the structure
//! of files or directories: the layers above add their operations in further `impl` blocks of [`Engine`].

mod background_errors;
mod inode_locks;
mod last_extent;
mod lock_witness;
mod open_inodes;
mod pause;

pub(crate) use inode_locks::{ReadGuard, WriteGuards};
pub(crate) use last_extent::LastExtent;
pub(crate) use lock_witness::{InodeRead, InodeWrite, OrphansWrite};
pub(crate) use open_inodes::{MappingObserver, MappingObservers, OpenInode};
pub(crate) use pause::Pause;

use std::any::Any;
use std::ops::Deref;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use crate::alloc::Allocator;
use crate::attr::FileType;
use crate::error::{Error, Result};
use crate::layout::Superblock;
use crate::lock::{Mutex, RwLock, rank};
use crate::units::Ino;
use background_errors::Failures;
use inode_locks::Locks;
use open_inodes::OpenInodes;

/// A reference to an open pool. The pool stays open while a reference exists.
#[derive(Clone, Debug)]
pub(crate) struct EngineRef(Arc<Shared>);

/// Shared by all references. Dropping the last one stops the background thread first.
#[derive(Debug)]
struct Shared {
    /// Dropped before the engine. Its drop waits for the thread, so a close is complete when it returns.
    _background: Option<Box<dyn Any + Send + Sync>>,
    engine: Arc<Engine>,
}

impl EngineRef {
    /// Creates the first reference. `background` is dropped before the engine.
    pub(crate) fn new(engine: Arc<Engine>, background: Option<impl Any + Send + Sync>) -> EngineRef {
        let boxed = |background| -> Box<dyn Any + Send + Sync> { Box::new(background) };
        EngineRef(Arc::new(Shared { _background: background.map(boxed), engine }))
    }

    /// Whether both refer to the same pool.
    pub(crate) fn is_same(&self, other: &EngineRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// If this is the only reference: stops the background thread, runs `last` and drops the engine.
    pub(crate) fn close<R>(self, last: impl FnOnce(&Engine) -> R) -> Option<R> {
        let Shared { _background, mut engine } = Arc::into_inner(self.0)?;
        drop(_background);
        let done = last(&engine);
        // A thread that serves a child of the process may hold a reference for a moment.
        while let Err(shared) = Arc::try_unwrap(engine) {
            engine = shared;
            std::thread::yield_now();
        }
        Some(done)
    }

    /// A reference that does not keep the pool open.
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
    /// Identifies the pool: equal for all references to it, different for any other pool while this reference
    /// exists.
    pub(crate) fn identity(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// The pool, if it is still open. Hold it only briefly: a close waits for it.
    pub(crate) fn upgrade(&self) -> Option<Arc<Engine>> {
        self.0.upgrade()
    }
}

/// Bases that wait for a merge.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Merged at the next sync or merge.
    pub(crate) next: Vec<Ino>,
    /// Merged after a pin is dropped, with the number of pins dropped at the last attempt: until that changes,
    /// another attempt would fail.
    pub(crate) pinned: Vec<(Ino, u64)>,
}

/// The shared state of an open pool.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) alloc: Allocator,
    pub(crate) locks: Locks,
    pub(crate) opens: OpenInodes,
    /// Held by renames that could make a directory its own ancestor.
    pub(crate) renames: Mutex<rank::Renames, ()>,
    /// Shared while a file is read through its bases; exclusive while a base is merged.
    pub(crate) chains: RwLock<rank::Chain, ()>,
    /// Whether the pool is grown or shrunk. Not a lock: a shrink calls back.
    pub(crate) resizing: AtomicBool,
    /// Held while a tree is copied, removed or restored.
    pub(crate) trees: Mutex<rank::Trees, ()>,
    /// Bases to merge after the next sync, or at the next open (they are orphans).
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
            resizing: AtomicBool::new(false),
            trees: Mutex::default(),
            merges: Mutex::default(),
            failures: Failures::default(),
            superblock,
            replayed,
        }
    }

    /// The kind of a live inode.
    pub(crate) fn kind(&self, ino: Ino) -> Result<FileType> {
        let _lock = self.locks.read(ino);
        self.alloc.inode(ino)?.kind().ok_or(Error::Stale(ino.0))
    }

    /// Keyed hash of a name. Without the pool's seed, names that collide cannot be constructed.
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
            // Stores through mappings leave no record, so the checkpoint may have had nothing to do.
            let _ = self.alloc.journal.sync();
        }
    }
}
