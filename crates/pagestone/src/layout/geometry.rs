//! The geometry of a pool: the positions of its parts, fixed at creation except for the number of frames.
//!
//! ```text
//!   |fixed pages|lanes|descriptors of segment 0| frames ...      segment 0: `first_segment` frames
//!   |descriptors| frames ...                                     segment 1: 32,768 frames, 64 GiB
//!   |descriptors| frames ...                                     segment 2
//! ```
//!
//! Each segment except the first begins with one frame that contains the descriptors of the whole segment,
//! including those of frames beyond the current end of the pool. So a pool can grow by frames, and needs no table
//! of segments.

use super::{FIRST_LANE, FrameDesc, MAX_POOL, MIN_POOL};
use crate::error::{Error, Result};
use crate::units::{FRAME_SIZE, FrameNo, PAGE_SIZE, PAGES_PER_FRAME, PageNo};

/// Frames whose descriptors fill one frame: a segment, 64 GiB.
pub(crate) const SEGMENT: u64 = FRAME_SIZE / FrameDesc::SIZE;

/// The fixed part of a pool's layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    /// Journal lanes.
    pub(crate) lanes: u32,
    /// Pages of each lane.
    pub(crate) lane_pages: u32,
    /// First page of the descriptors of segment 0.
    pub(crate) descriptors: PageNo,
    /// First frame that can be owned.
    pub(crate) first_frame: FrameNo,
    /// Frames that the descriptors of segment 0 have room for.
    pub(crate) first_segment: u64,
}

/// The number of frames of a pool of `size` bytes, or an error if that size is not possible.
pub(crate) fn frames_of(size: u64) -> Result<u64> {
    match size {
        _ if size < MIN_POOL => {
            Err(Error::Size(format!("{size} bytes are too few for a pool; the least is {MIN_POOL} (8 MiB)")))
        }
        _ if size > MAX_POOL => {
            Err(Error::Size(format!("{size} bytes are too many for a pool; the most is {MAX_POOL} (256 TiB)")))
        }
        _ => Ok(size / FRAME_SIZE),
    }
}

impl Geometry {
    /// The layout of a pool that is made with `frames` frames.
    pub(crate) fn for_new_pool(frames: u64) -> Geometry {
        let (lanes, lane_pages) = if frames < 32 { (2, 64) } else { (8, 128) };
        let descriptors = FIRST_LANE.plus(u64::from(lanes * lane_pages));
        let needed = (frames.min(SEGMENT) * FrameDesc::SIZE).div_ceil(PAGE_SIZE);
        let first_frame = FrameNo(descriptors.plus(needed).0.div_ceil(PAGES_PER_FRAME));
        // The whole space before the first frame is used for descriptors: it lets the pool grow at no cost.
        let room = (first_frame.byte() - descriptors.byte()) / FrameDesc::SIZE;
        Geometry { lanes, lane_pages, descriptors, first_frame, first_segment: room.min(SEGMENT) }
    }

    /// First byte of lane `lane`.
    pub(crate) fn lane_at(&self, lane: u32) -> u64 {
        FIRST_LANE.byte() + u64::from(lane) * self.lane_len()
    }

    /// Bytes of a lane.
    pub(crate) fn lane_len(&self) -> u64 {
        u64::from(self.lane_pages) * PAGE_SIZE
    }

    /// Whether the frame contains the descriptors of a segment.
    pub(crate) fn holds_descriptors(&self, frame: FrameNo) -> bool {
        frame.0 >= self.first_segment && (frame.0 - self.first_segment).is_multiple_of(SEGMENT)
    }

    /// The first frame at or after `frame` that holds descriptors.
    pub(crate) fn next_descriptors(&self, frame: FrameNo) -> FrameNo {
        let behind = frame.0.saturating_sub(self.first_segment);
        FrameNo(self.first_segment + behind.next_multiple_of(SEGMENT))
    }

    /// Whether the frame can be owned in a pool of `frames` frames.
    pub(crate) fn owns(&self, frame: FrameNo, frames: u64) -> bool {
        frame >= self.first_frame && frame.0 < frames && !self.holds_descriptors(frame)
    }

    /// Whether all pages of a run can be owned in a pool of `frames` frames; never for an empty one.
    pub(crate) fn owns_run(&self, page: PageNo, pages: u64, frames: u64) -> bool {
        let Some(last) = page.0.checked_add(pages).and_then(|end| end.checked_sub(1)) else { return false };
        let (first, last) = (page.frame(), PageNo(last).frame());
        pages > 0 && first >= self.first_frame && last.0 < frames && self.next_descriptors(first) > last
    }

    /// Address of a frame's descriptor, as a pool byte.
    pub(crate) fn descriptor_at(&self, frame: FrameNo) -> u64 {
        match frame.0.checked_sub(self.first_segment) {
            None => self.descriptors.byte() + frame.0 * FrameDesc::SIZE,
            Some(behind) => {
                let head = FrameNo(self.first_segment + behind / SEGMENT * SEGMENT);
                head.byte() + behind % SEGMENT * FrameDesc::SIZE
            }
        }
    }

    /// Frames that hold descriptors in a pool of `frames` frames, those of segment 0 not counted.
    pub(crate) fn descriptor_frames(&self, frames: u64) -> u64 {
        frames.saturating_sub(self.first_segment).div_ceil(SEGMENT)
    }

    /// Pages that can be owned in a pool of `frames` frames.
    pub(crate) fn usable_pages(&self, frames: u64) -> u64 {
        (frames - self.first_frame.0 - self.descriptor_frames(frames)) * PAGES_PER_FRAME
    }

    /// Bytes that hold descriptors in a pool of `frames` frames.
    pub(crate) fn descriptor_bytes(&self, frames: u64) -> u64 {
        self.first_segment * FrameDesc::SIZE + self.descriptor_frames(frames) * FRAME_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Every frame has a descriptor of its own, and none lies where data can.
    #[test]
    fn descriptors_neither_overlap_nor_lie_in_frames_that_can_be_owned() {
        for made_with in [4, 31, 32, 8_192, 16_384, 20_000, 40_000] {
            let g = Geometry::for_new_pool(made_with);
            let frames = g.first_segment + 2 * SEGMENT + 5;
            let mut seen = HashSet::new();
            for frame in (0..frames).map(FrameNo) {
                let at = g.descriptor_at(frame);
                assert!(seen.insert(at), "{made_with}: {frame}");
                let holder = PageNo(at / PAGE_SIZE).frame();
                assert!(!g.owns(holder, frames), "{made_with}: the descriptor of {frame} lies in {holder}");
            }
            let owned = (0..frames).filter(|&f| g.owns(FrameNo(f), frames)).count() as u64;
            assert_eq!(owned * PAGES_PER_FRAME, g.usable_pages(frames), "{made_with}");
        }
    }

    #[test]
    fn a_run_over_a_frame_of_descriptors_belongs_to_nobody() {
        let g = Geometry::for_new_pool(32);
        let frames = g.first_segment + 10;
        let head = FrameNo(g.first_segment).first_page();
        assert!(g.owns_run(PageNo(head.0 - 4), 4, frames));
        assert!(!g.owns_run(PageNo(head.0 - 4), 5, frames));
        assert!(!g.owns_run(head, 1, frames) && !g.owns_run(PageNo(head.0 + 511), 2, frames));
        assert!(g.owns_run(PageNo(head.0 + 512), 512, frames));
        assert!(!g.owns_run(PageNo(0), 1, frames) && !g.owns_run(PageNo(u64::MAX), 2, frames));
        assert!(!g.owns_run(FrameNo(frames).first_page(), 1, frames) && !g.owns_run(PageNo(head.0 + 512), 0, frames));
    }

    #[test]
    fn descriptors_take_at_most_32_mib_per_tib() {
        let frames = (1 << 40) / FRAME_SIZE;
        let g = Geometry::for_new_pool(frames);
        assert!(g.descriptor_bytes(frames) <= 32 << 20, "{}", g.descriptor_bytes(frames));
    }
}
