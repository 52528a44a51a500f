//! A lane's cursor: the split frame that the lane allocates pages from, and which of its pages are available.
//!
//! ```text
//!   frame   [T][used][    ][used][    |    ]      available: one bit per page, cleared as runs are allocated
//! ```

use super::{FrameBits, Run, bit, set_bits};
use crate::units::FrameNo;

/// The cursor of one lane.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// The split frame, or a free frame that the next record splits.
    pub(super) frame: Option<FrameNo>,
    /// Free pages of the frame that are not allocated to a transaction.
    pub(super) available: FrameBits,
}

impl Cursor {
    /// Allocates a run of at most `want` pages: the first that is long enough, else the longest.
    pub(super) fn take(&mut self, want: u64) -> Option<Run> {
        let frame = self.frame?;
        let (first, len) = longest(&self.available, want.min(512) as usize)?;
        set_bits(&mut self.available, first, len, false);
        Some(Run { page: frame.page(first), pages: len as u64 })
    }

    /// Returns a run that was allocated and not published.
    pub(super) fn return_run(&mut self, run: Run) {
        if self.frame == Some(run.page.frame()) {
            set_bits(&mut self.available, run.page.index_in_frame(), run.pages as usize, true);
        }
    }
}

/// The first run of at least `want` set bits (cut to `want`), else the longest run.
fn longest(bits: &FrameBits, want: usize) -> Option<(usize, usize)> {
    let mut best: Option<(usize, usize)> = None;
    let mut i = 0;
    while i < 512 {
        if bits[i / 64] >> (i % 64) == 0 {
            i = (i / 64 + 1) * 64;
            continue;
        }
        if !bit(bits, i) {
            i += 1;
            continue;
        }
        let start = i;
        while i < 512 && bit(bits, i) && i - start < want {
            i += 1;
        }
        if i - start == want {
            return Some((start, want));
        }
        if best.is_none_or(|(_, len)| i - start > len) {
            best = Some((start, i - start));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_cut_to_what_is_wanted_and_the_longest_is_taken_when_none_is_long_enough() {
        let mut bits = [0; 8];
        set_bits(&mut bits, 3, 2, true);
        set_bits(&mut bits, 62, 5, true);
        assert_eq!(longest(&bits, 1), Some((3, 1)));
        assert_eq!(longest(&bits, 4), Some((62, 4)));
        assert_eq!(longest(&bits, 9), Some((62, 5)));
        assert_eq!(longest(&[0; 8], 1), None);
        assert_eq!(longest(&[u64::MAX; 8], 512), Some((0, 512)));
    }
}
