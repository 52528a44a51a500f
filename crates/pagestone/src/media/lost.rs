//! Pages of the pool that were found to be lost: known from then on, in DRAM, as long as the pool is open.
//!
//! ```text
//!   Media::bad (when it is opened) ------.
//!   reach (a fault was noted) --collect--+-> the pages --> reads and stores there: Error::Lost
//!                                                      --> free: not handed out; freed: retired (frame)
//! ```
//!
//! Empty on all media that are well, and then two loads and a comparison per access.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Windows, reach};
use crate::units::PAGE_SIZE;

/// The lost pages of one pool.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Faults of the process when there was nothing lost; [`SOMETHING`] from when there is.
    well_at: AtomicU64,
    /// Faults of the process that have been looked at.
    seen: AtomicU64,
    count: AtomicUsize,
    pages: Mutex<BTreeSet<u64>>,
}

/// More faults than there can be.
const SOMETHING: u64 = u64::MAX;

impl Lost {
    /// Nothing lost; faults from now on count.
    pub(super) fn new() -> Lost {
        let now = reach::count();
        Lost { well_at: AtomicU64::new(now), seen: AtomicU64::new(now), ..Lost::default() }
    }

    /// The first lost page of the pool bytes `at .. at + len`, by its first byte.
    #[inline]
    pub(super) fn first_in(&self, windows: Windows<'_>, at: u64, len: u64) -> Option<u64> {
        if self.well_at.load(Ordering::Relaxed) == reach::count() { None } else { self.look(windows, at, len) }
    }

    #[cold]
    fn look(&self, windows: Windows<'_>, at: u64, len: u64) -> Option<u64> {
        self.collect(windows);
        if self.count() == 0 || len == 0 {
            return None;
        }
        let last = at.saturating_add(len - 1) / PAGE_SIZE;
        self.pages.lock().range(at / PAGE_SIZE..=last).next().map(|page| page * PAGE_SIZE)
    }

    /// Adds the pages with these pool bytes.
    pub(super) fn add(&self, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let mut pages = self.pages.lock();
        pages.extend(bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE));
        self.count.store(pages.len(), Ordering::Relaxed);
        self.well_at.store(SOMETHING, Ordering::Relaxed);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes up what was noted since the last time.
    fn collect(&self, windows: Windows<'_>) {
        let now = reach::count();
        let before = self.seen.swap(now, Ordering::Relaxed);
        if before == now {
            return;
        }
        for window in [windows.data, windows.meta] {
            let inside: Range<usize> = window.addresses();
            reach::since(before, inside).filter_map(|addr| window.byte_at(addr)).for_each(|at| self.add(at..at + 1));
        }
        if self.count() == 0 {
            // Unless somebody finds one at this moment.
            let _ =
                self.well_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| (at != SOMETHING).then_some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{Media, Memory};

    #[test]
    fn a_fault_makes_its_page_lost_in_its_own_pool_alone() {
        reach::install().expect("handlers");
        let (one, other) = (Memory::new(1 << 20).expect("memory"), Memory::new(1 << 20).expect("memory"));
        let (lost, well) = (Lost::new(), Lost::new());
        assert_eq!(lost.first_in(one.windows(), 0, 1 << 20), None);
        one.bytes().forbid(5 * PAGE_SIZE, PAGE_SIZE);
        assert!(!one.bytes().read(5 * PAGE_SIZE + 17, &mut [0; 8]));
        assert_eq!(lost.first_in(one.windows(), 0, 1 << 20), Some(5 * PAGE_SIZE));
        assert_eq!(lost.first_in(one.windows(), 6 * PAGE_SIZE, 1 << 19), None);
        assert_eq!(lost.first_in(one.windows(), 0, 5 * PAGE_SIZE), None);
        assert_eq!(well.first_in(other.windows(), 0, 1 << 20), None);
        assert_eq!((lost.count(), well.count()), (1, 0));
    }
}
