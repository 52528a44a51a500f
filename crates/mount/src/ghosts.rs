//! What has lost its last name while the kernel still holds it.
//!
//! A process can stand in a directory that is removed, or hold the descriptor of a named pipe or
//! of a path that is unlinked, and ask for its attributes. The pool keeps only regular files that
//! are open; for everything else the answer is remembered here until the kernel forgets the node.
//! As many as the kernel holds, which is almost always none.
//!
//! ```text
//!   program       open("a") ------ LOOKUP a -> n ---------------------- OPEN n -> stale?
//!   another                                      rename("b", "a")
//! ```
//!
//! Between the two requests of an `open` the file can lose its name, and its node with it. The
//! kernel then asks once more from the start, and gives up if that happens again; a program that
//! replaces a file by rename, over and over, would so make its readers fail. Therefore, for a
//! while after a node was missed, a regular file that loses its last name is kept open here, as
//! it would be by an inode in the kernel's cache. Not always: an unlink of a file that is open
//! takes two transactions in place of one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pagestone::{Attr, File, SetAttr, Time};
use parking_lot::Mutex;

use crate::transport::NodeId;

/// How long after a node was missed files are kept.
const WARY: Duration = Duration::from_secs(2);

/// Nodes without names.
#[derive(Debug)]
pub(crate) struct Ghosts {
    count: AtomicUsize,
    nodes: Mutex<HashMap<u64, Ghost>>,
    start: Instant,
    /// Until when files are kept, in milliseconds after the start.
    wary_until: AtomicU64,
}

/// A node without a name.
#[derive(Debug)]
pub(crate) struct Ghost {
    attr: Attr,
    target: Vec<u8>,
    _kept: Option<File>,
}

impl Ghost {
    /// The last attributes of a node, where it led if it is a symbolic link, and what keeps the
    /// inode and the bytes of a regular file.
    pub(crate) fn new(attr: Attr, target: Vec<u8>, kept: Option<File>) -> Ghost {
        Ghost { attr, target, _kept: kept }
    }
}

impl Default for Ghosts {
    fn default() -> Ghosts {
        Ghosts {
            count: AtomicUsize::new(0),
            nodes: Mutex::default(),
            start: Instant::now(),
            wary_until: AtomicU64::new(0),
        }
    }
}

impl Ghosts {
    /// Remembers a node whose last name is about to go.
    pub(crate) fn remember(&self, node: NodeId, mut ghost: Ghost) {
        ghost.attr.nlink = 0;
        ghost.attr.ctime = Time::now();
        let mut nodes = self.nodes.lock();
        let before = nodes.insert(node.0, ghost);
        self.count.store(nodes.len(), Ordering::Release);
        drop(nodes);
        drop(before); // closing a file takes locks of its own
    }

    /// The kernel has let go of the node, or it has kept its name after all.
    pub(crate) fn forget(&self, node: NodeId) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut nodes = self.nodes.lock();
        let ghost = nodes.remove(&node.0);
        self.count.store(nodes.len(), Ordering::Release);
        drop(nodes);
        drop(ghost);
    }

    /// The attributes that were remembered of the node.
    pub(crate) fn get(&self, node: NodeId) -> Option<Attr> {
        self.nodes.lock().get(&node.0).map(|ghost| ghost.attr)
    }

    /// Where the symbolic link led.
    pub(crate) fn target(&self, node: NodeId) -> Option<Vec<u8>> {
        self.nodes.lock().get(&node.0).map(|ghost| ghost.target.clone())
    }

    /// Changes what is remembered, which is all there is of the node; the attributes then.
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

    /// Somebody asked for a node that is gone.
    pub(crate) fn missed(&self) {
        let until = self.start.elapsed() + WARY;
        self.wary_until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether files that lose their last name are to be kept.
    pub(crate) fn wary(&self) -> bool {
        let until = self.wary_until.load(Ordering::Relaxed);
        until != 0 && self.start.elapsed() < Duration::from_millis(until)
    }
}
