//! The lost pages of a pool: the set of pages that are known to be unreadable, in DRAM, for as long as the pool is
//! open.
//!
//! ```text
//!   Media::bad (at open) ---------------.
//!   fault_tolerant (a fault) --collect--+-> the set --> reads and stores there: Error::Lost
//!                                                   --> free: not allocated; freed: retired (frame)
//! ```
//!
//! While no page is lost, it costs two loads and a comparison per access.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Views, fault_tolerant};
use crate::PAGE_SIZE;

/// The lost pages of one pool.
#[derive(Debug)]
pub(super) struct BadPages {
    /// The process's fault count at the last check that found no lost page; [`SOME_LOST`] once there are lost
    /// pages.
    clean_at: AtomicU64,
    count: AtomicUsize,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    pages: BTreeSet<u64>,
    /// The first fault of the process that was not processed yet.
    next: u64,
}

/// Larger than any number of faults.
const SOME_LOST: u64 = u64::MAX;

impl BadPages {
    /// An empty set. Only later faults count.
    pub(super) fn new() -> BadPages {
        let known = Known { pages: BTreeSet::new(), next: fault_tolerant::next() };
        BadPages {
            clean_at: AtomicU64::new(fault_tolerant::count()),
            count: AtomicUsize::new(0),
            known: Mutex::new(known),
        }
    }

    /// The first lost page in the pool bytes `at .. at + len`, by its first byte.
    #[inline]
    pub(super) fn first_in(&self, views: Views<'_>, at: u64, len: u64) -> Option<u64> {
        if self.clean_at.load(Ordering::Relaxed) == fault_tolerant::count() { None } else { self.look(views, at, len) }
    }

    #[cold]
    fn look(&self, views: Views<'_>, at: u64, len: u64) -> Option<u64> {
        self.collect(views);
        if self.count() == 0 || len == 0 {
            return None;
        }
        let last = at.saturating_add(len - 1) / PAGE_SIZE;
        self.known.lock().pages.range(at / PAGE_SIZE..=last).next().map(|page| page * PAGE_SIZE)
    }

    /// Adds the pages that contain these pool bytes.
    pub(super) fn add(&self, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let mut known = self.known.lock();
        known.pages.extend(bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE));
        self.publish(&known);
    }

    /// Number of lost pages.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Processes the faults noted since the last call. This happens under the lock, so that no thread considers a
    /// fault processed before its page is in the set.
    fn collect(&self, views: Views<'_>) {
        let now = fault_tolerant::count();
        let mut known = self.known.lock();
        let Known { pages, next } = &mut *known;
        *next = fault_tolerant::since(*next, |addr| {
            let places = [views.data, views.meta].into_iter().filter_map(|view| view.byte_at(addr));
            pages.extend(places.map(|at| at / PAGE_SIZE));
        });
        if known.pages.is_empty() {
            self.clean_at.store(now, Ordering::Relaxed);
        } else {
            self.publish(&known);
        }
    }

    fn publish(&self, known: &Known) {
        self.count.store(known.pages.len(), Ordering::Relaxed);
        self.clean_at.store(SOME_LOST, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Media, Memory};

    #[test]
    fn a_fault_makes_its_page_lost_in_its_own_pool_alone() {
        fault_tolerant::install().expect("handlers");
        let (one, other) = (Memory::new(1 << 20).expect("memory"), Memory::new(1 << 20).expect("memory"));
        let (lost, well) = (BadPages::new(), BadPages::new());
        assert_eq!(lost.first_in(one.views(), 0, 1 << 20), None);
        one.bytes().forbid(5 * PAGE_SIZE, PAGE_SIZE);
        assert!(!one.bytes().read(5 * PAGE_SIZE + 17, &mut [0; 8]));
        assert_eq!(lost.first_in(one.views(), 0, 1 << 20), Some(5 * PAGE_SIZE));
        assert_eq!(lost.first_in(one.views(), 6 * PAGE_SIZE, 1 << 19), None);
        assert_eq!(lost.first_in(one.views(), 0, 5 * PAGE_SIZE), None);
        assert_eq!(well.first_in(other.views(), 0, 1 << 20), None);
        assert_eq!((lost.count(), well.count()), (1, 0));
    }

    /// Fails if a fault is considered processed before its address was stored.
    #[test]
    fn a_fault_whose_address_comes_late_makes_its_page_lost_all_the_same() {
        let memory = Memory::new(1 << 20).expect("memory");
        let lost = BadPages::new();
        let late = fault_tolerant::begin();
        fault_tolerant::note_elsewhere(memory.bytes().addresses().start);
        assert_eq!(lost.first_in(memory.views(), 0, 1 << 20), Some(0));
        assert_eq!(lost.first_in(memory.views(), 5 * PAGE_SIZE, PAGE_SIZE), None);
        fault_tolerant::finish(late, memory.bytes().addresses().start + 5 * PAGE_SIZE as usize);
        assert_eq!(lost.first_in(memory.views(), 5 * PAGE_SIZE, PAGE_SIZE), Some(5 * PAGE_SIZE));
        assert_eq!(lost.count(), 2);
    }
}
