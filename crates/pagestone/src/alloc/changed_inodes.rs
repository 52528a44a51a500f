//! Which inodes transactions have changed since somebody asked.
//!
//! ```text
//!   record() --> Recording ... transactions of other threads commit ... take() --> the inodes they changed
//! ```
//!
//! Whoever copies a tree learns what has changed while it copies. The list is in DRAM, and grows with what is changed meanwhile.
//! While nobody asks, a commit reads one word.
//!
//! A transaction is in the list before the locks of its inodes are released. One that staged an inode before the recording
//! began is not: whoever locks that inode afterwards sees what it did.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::lock::{Mutex, rank, this_thread};
use crate::units::Ino;

/// The list.
#[derive(Debug, Default)]
pub(crate) struct ChangedInodes {
    /// [`this_thread`] of the thread that records; 0: none does. Its own changes are not in the list.
    by: AtomicUsize,
    inodes: Mutex<rank::Leaf, HashSet<Ino>>,
}

/// Changes are recorded until this is dropped.
#[derive(Debug)]
pub(crate) struct Recording<'a>(&'a ChangedInodes);

impl ChangedInodes {
    /// Records what all threads but this one change. One recording at a time.
    pub(crate) fn record(&self) -> Recording<'_> {
        debug_assert_eq!(self.by.load(Ordering::Relaxed), 0, "somebody records already");
        self.by.store(this_thread(), Ordering::SeqCst);
        Recording(self)
    }

    /// Whether somebody records.
    #[inline]
    pub(crate) fn is_recording(&self) -> bool {
        self.by.load(Ordering::SeqCst) != 0
    }

    /// Adds what a transaction of this thread has changed.
    #[cold]
    pub(crate) fn add(&self, inodes: &[Ino]) {
        if self.by.load(Ordering::SeqCst) != this_thread() {
            self.inodes.lock().extend(inodes);
        }
    }
}

impl Recording<'_> {
    /// The number of inodes changed since the last [`Recording::take`].
    pub(crate) fn len(&self) -> usize {
        self.0.inodes.lock().len()
    }

    /// The inodes changed since the last call.
    pub(crate) fn take(&self) -> HashSet<Ino> {
        std::mem::take(&mut self.0.inodes.lock())
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.0.by.store(0, Ordering::SeqCst);
        self.take();
    }
}
