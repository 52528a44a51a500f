//! The last attributes of what has lost its last name while the kernel still holds it.
//!
//! A process can stand in a directory that is removed, or hold the descriptor of a named pipe or
//! of a path that is unlinked, and ask for its attributes. The pool keeps only regular files that
//! are open; for everything else the answer is remembered here until the kernel forgets the node.
//! As many as the kernel holds, which is almost always none.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use pagestone::{Attr, Time};
use parking_lot::Mutex;

use crate::transport::NodeId;

/// Nodes without names.
#[derive(Debug, Default)]
pub(crate) struct Ghosts {
    count: AtomicUsize,
    attrs: Mutex<HashMap<u64, Attr>>,
}

impl Ghosts {
    /// Remembers `attr` as that of a node whose last name is about to go.
    pub(crate) fn remember(&self, node: NodeId, mut attr: Attr) {
        attr.nlink = 0;
        attr.ctime = Time::now();
        let mut attrs = self.attrs.lock();
        attrs.insert(node.0, attr);
        self.count.store(attrs.len(), Ordering::Release);
    }

    /// The kernel has let go of the node, or it has kept its name after all.
    pub(crate) fn forget(&self, node: NodeId) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut attrs = self.attrs.lock();
        attrs.remove(&node.0);
        self.count.store(attrs.len(), Ordering::Release);
    }

    /// What was remembered of the node.
    pub(crate) fn get(&self, node: NodeId) -> Option<Attr> {
        self.attrs.lock().get(&node.0).copied()
    }
}
