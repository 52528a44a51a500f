//! The kernel's cache of names and attributes, told by notifications on `/dev/fuse`.
//!
//! ```text
//!   another face changes a name or a node --> KernelCache --> /dev/fuse: "forget it" --> the next access asks
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};

use crate::transport::{KernelCache, NodeId};

/// [`KernelCache`] of one session. An error is no concern of the caller: a mount that has ended has no cache.
#[derive(Debug)]
pub(super) struct FuseCache(pub(super) Notifier);

impl KernelCache for FuseCache {
    fn name_changed(&self, dir: NodeId, name: &[u8]) {
        let _ = self.0.inval_entry(INodeNo(dir.0), OsStr::from_bytes(name));
        self.node_changed(dir);
    }

    fn node_changed(&self, node: NodeId) {
        // An offset below zero means "the attributes, not the data".
        let _ = self.0.inval_inode(INodeNo(node.0), -1, 0);
    }

    fn bytes_changed(&self, node: NodeId) {
        // All of them, from the first one on.
        let _ = self.0.inval_inode(INodeNo(node.0), 0, 0);
    }
}
