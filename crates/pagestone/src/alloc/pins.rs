//! Pinned pages: kept from reuse after they were freed, because something outside the engine still reads or writes
//! them.
//!
//! ```text
//!   freed --> quarantine --checkpoint--> free
//!                 ^            |
//!                 `---- a page of the frame is pinned: until the next checkpoint
//! ```
//!
//! While nothing is pinned the table is empty and costs one load at a checkpoint.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use super::{Allocator, FrameBits, Run, bit, by_frame};
use crate::lock::{Mutex, rank};
use crate::units::FrameNo;

/// The number of pins of each page, by frame.
#[derive(Debug, Default)]
pub(super) struct Pins {
    frames: Mutex<rank::Leaf, HashMap<FrameNo, HashMap<usize, u32>>>,
    count: AtomicUsize,
    /// How often the last pin of a page was dropped.
    dropped: AtomicU64,
    /// Pages that a pin in their frame kept in quarantine at the last checkpoint.
    withheld: AtomicI64,
}

impl Pins {
    /// Removes the frames with a pinned page from `freed` and returns them.
    pub(super) fn keep(&self, freed: &mut HashMap<FrameNo, FrameBits>) -> HashMap<FrameNo, FrameBits> {
        if self.count.load(Ordering::SeqCst) == 0 {
            self.withheld.store(0, Ordering::Relaxed);
            return HashMap::new();
        }
        let frames = self.frames.lock();
        let pinned = |frame: &FrameNo, bits: &FrameBits| {
            frames.get(frame).is_some_and(|pages| pages.keys().any(|&page| bit(bits, page)))
        };
        let kept: HashMap<FrameNo, FrameBits> = freed.extract_if(|frame, bits| pinned(frame, bits)).collect();
        let pages = kept.values().flatten().map(|word| i64::from(word.count_ones())).sum();
        self.withheld.store(pages, Ordering::Relaxed);
        kept
    }

    /// Whether any page is pinned in the frames from `first` on.
    pub(super) fn any_from(&self, first: FrameNo) -> bool {
        self.count.load(Ordering::SeqCst) != 0 && self.frames.lock().keys().any(|&frame| frame >= first)
    }

    /// Pages that count as free but are not available at present.
    pub(super) fn withheld(&self) -> i64 {
        self.withheld.load(Ordering::Relaxed)
    }

    /// Whether page `index` of the frame is pinned.
    pub(super) fn is_pinned(&self, frame: FrameNo, index: usize) -> bool {
        self.count.load(Ordering::SeqCst) != 0
            && self.frames.lock().get(&frame).is_some_and(|pages| pages.contains_key(&index))
    }

    /// DRAM in use, approximately, in bytes.
    pub(super) fn dram_bytes(&self) -> u64 {
        self.count.load(Ordering::SeqCst) as u64 * 32
    }
}

impl Allocator {
    /// Keeps the pages of a run, which a file owns at this moment, from reuse.
    pub(crate) fn pin(&self, run: Run) {
        let mut frames = self.pins.frames.lock();
        for (frame, first, pages) in by_frame(run) {
            let counts = frames.entry(frame).or_default();
            for page in first..first + pages {
                *counts.entry(page).or_insert(0) += 1;
                self.pins.count.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Changes whenever the last pin of a page is dropped. Until then, a retry of what failed with
    /// [`Error::Pinned`](crate::Error::Pinned) fails again.
    pub(crate) fn pins_dropped(&self) -> u64 {
        self.pins.dropped.load(Ordering::SeqCst)
    }

    /// Drops one pin of the same run.
    pub(crate) fn unpin(&self, run: Run) {
        let mut frames = self.pins.frames.lock();
        for (frame, first, pages) in by_frame(run) {
            let Some(counts) = frames.get_mut(&frame) else { continue };
            for page in first..first + pages {
                let Some(count) = counts.get_mut(&page) else { continue };
                *count -= 1;
                self.pins.count.fetch_sub(1, Ordering::SeqCst);
                if *count == 0 {
                    counts.remove(&page);
                    self.pins.dropped.fetch_add(1, Ordering::SeqCst);
                }
            }
            if counts.is_empty() {
                frames.remove(&frame);
            }
        }
    }
}
