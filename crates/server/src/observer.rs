//! Who has to know what a store has changed: the mount, whose kernel has names and attributes cached.

use std::sync::Arc;

use pagestone::{Ino, Pool};
use pagestone_mount::{KernelCache, NodeId};

/// Called after a change, with no lock held.
pub(crate) trait Observer: Send + Sync {
    /// The name in the directory leads somewhere else now, or nowhere.
    fn name_changed(&self, dir: Ino, name: &[u8]);
    /// The attributes have changed.
    fn node_changed(&self, ino: Ino);
    /// The bytes have changed, and the attributes.
    fn bytes_changed(&self, ino: Ino);
}

/// The mount of a pool.
pub(crate) struct MountObserver {
    cache: Arc<dyn KernelCache>,
    root: Ino,
}

impl MountObserver {
    pub(crate) fn new(pool: &Pool, cache: Arc<dyn KernelCache>) -> MountObserver {
        MountObserver { cache, root: pool.root().ino() }
    }

    fn node(&self, ino: Ino) -> NodeId {
        if ino == self.root { NodeId::ROOT } else { NodeId(ino.0) }
    }
}

impl Observer for MountObserver {
    fn name_changed(&self, dir: Ino, name: &[u8]) {
        self.cache.name_changed(self.node(dir), name);
    }

    fn node_changed(&self, ino: Ino) {
        self.cache.node_changed(self.node(ino));
    }

    fn bytes_changed(&self, ino: Ino) {
        self.cache.bytes_changed(self.node(ino));
    }
}
