//! Nodes without a name that the kernel still refers to.
//!
//! A process can stand in a removed directory, or hold a descriptor of an unlinked named pipe or path, and ask for its
//! attributes. The pool keeps unlinked nodes only if they are open regular files. For all others the attributes are
//! kept here until the kernel forgets the node. There are as many as the kernel holds, which is almost always none.
//!
//! ```text
//!   program       open("a") ------ LOOKUP a -> n ---------------------- OPEN n -> stale?
//!   another                                      rename("b", "a")
//! ```
//!
//! Between the two requests of an `open` the file can lose its name, and its node with it. The kernel then starts over
//! once, and gives up if that happens again. A program that replaces a file by rename over and over would make its
//! readers fail. Therefore, for a while after a request found its node stale, a regular file that loses its last name
//! is kept open here, as an inode in the kernel's cache would keep it. This is not done always, because unlinking an
//! open file takes two transactions in place of one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pagestone::File;
use pagestone::inode::{Attr, SetAttr, Time};
use parking_lot::Mutex;

use crate::transport::NodeId;

/// How long files are kept after a request found its node stale.
const KEEP_AFTER_STALE: Duration = Duration::from_secs(2);

/// The unlinked nodes of a mount.
#[derive(Debug)]
pub(crate) struct UnlinkedNodes {
    count: AtomicUsize,
    nodes: Mutex<HashMap<u64, UnlinkedNode>>,
    start: Instant,
    /// Until when files are kept, in milliseconds after `start`.
    stale_until: AtomicU64,
}

/// What is kept of one node.
#[derive(Debug)]
pub(crate) struct UnlinkedNode {
    attr: Attr,
    target: Vec<u8>,
    _file: Option<File>,
}

impl UnlinkedNode {
    /// `attr` are the last attributes, `target` that of a symbolic link. `file` keeps the inode and the bytes of a
    /// regular file.
    pub(crate) fn new(attr: Attr, target: Vec<u8>, file: Option<File>) -> UnlinkedNode {
        UnlinkedNode { attr, target, _file: file }
    }
}

impl Default for UnlinkedNodes {
    fn default() -> UnlinkedNodes {
        UnlinkedNodes {
            count: AtomicUsize::new(0),
            nodes: Mutex::default(),
            start: Instant::now(),
            stale_until: AtomicU64::new(0),
        }
    }
}

impl UnlinkedNodes {
    /// Keeps a node whose last name is about to be removed.
    pub(crate) fn remember(&self, node: NodeId, mut unlinked: UnlinkedNode) {
        unlinked.attr.nlink = 0;
        unlinked.attr.ctime = Time::now();
        let mut nodes = self.nodes.lock();
        let before = nodes.insert(node.0, unlinked);
        self.count.store(nodes.len(), Ordering::Release);
        drop(nodes);
        drop(before); // closing a file takes locks of its own
    }

    /// The kernel has forgotten the node, or the node has kept its name after all.
    pub(crate) fn forget(&self, node: NodeId) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut nodes = self.nodes.lock();
        let unlinked = nodes.remove(&node.0);
        self.count.store(nodes.len(), Ordering::Release);
        drop(nodes);
        drop(unlinked);
    }

    /// The attributes of the node, if it is kept here.
    pub(crate) fn get(&self, node: NodeId) -> Option<Attr> {
        self.nodes.lock().get(&node.0).map(|unlinked| unlinked.attr)
    }

    /// The target of the symbolic link, if it is kept here.
    pub(crate) fn target(&self, node: NodeId) -> Option<Vec<u8>> {
        self.nodes.lock().get(&node.0).map(|unlinked| unlinked.target.clone())
    }

    /// Changes the attributes that are kept, and returns them.
    pub(crate) fn set_attr(&self, node: NodeId, change: &SetAttr) -> Option<Attr> {
        let mut nodes = self.nodes.lock();
        let attr = &mut nodes.get_mut(&node.0)?.attr;
        attr.perm = change.perm.unwrap_or(attr.perm);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        attr.atime = change.atime.unwrap_or(attr.atime);
        attr.mtime = change.mtime.unwrap_or(attr.mtime);
        attr.ctime = change.ctime.unwrap_or_else(Time::now);
        Some(*attr)
    }

    /// A request was for a node that no longer exists.
    pub(crate) fn note_stale(&self) {
        let until = self.start.elapsed() + KEEP_AFTER_STALE;
        self.stale_until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether that was a short while ago, so that files which lose their last name are to be kept.
    pub(crate) fn recently_stale(&self) -> bool {
        let until = self.stale_until.load(Ordering::Relaxed);
        until != 0 && self.start.elapsed() < Duration::from_millis(until)
    }
}
