//! Memory of a program that is itself a mapping of a pool: a touch of it may need an inode's lock,
//! so nobody touches it while holding one.
//!
//! ```text
//!   write_at(bytes) --- bytes in a mapping? --- no ---> straight to the media, under the lock
//!                              `------------- yes ---> copied first, without a lock
//! ```
//!
//! While nothing is mapped this costs one load.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use pmem::OwnerProcess;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static RANGES: RwLock<Vec<Range<usize>>> = RwLock::new(Vec::new());

/// Keeps a range on the list.
#[derive(Debug)]
pub(crate) struct Guard(Range<usize>, OwnerProcess);

impl Guard {
    /// Addresses that are a mapping from now on.
    pub(crate) fn new(range: Range<usize>) -> Guard {
        RANGES.write().push(range.clone());
        COUNT.fetch_add(1, Ordering::SeqCst);
        Guard(range, OwnerProcess::current())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.1.is_current() {
            // A child: the lock may be held by a thread that it does not have.
            return;
        }
        let mut ranges = RANGES.write();
        if let Some(i) = ranges.iter().position(|range| *range == self.0) {
            ranges.swap_remove(i);
            COUNT.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Whether any of these bytes lies in a mapping.
pub(crate) fn needed(bytes: &[u8]) -> bool {
    if COUNT.load(Ordering::SeqCst) == 0 || bytes.is_empty() {
        return false;
    }
    let (start, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
    RANGES.read().iter().any(|range| start < range.end && range.start < end)
}
