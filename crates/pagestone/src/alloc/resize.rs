//! Changes of the number of frames.
//!
//! ```text
//!   grow     |....old frames....|  zeroed descriptors, one record: size   |....new frames....|
//!   shrink   limit: no allocation beyond it --> (evacuation) --> one record: size
//! ```

use std::ops::Range;
use std::sync::atomic::Ordering;

use pmem::{Durability, Part, Region};

use super::{Allocator, Run};
use crate::error::{Error, Result};
use crate::layout::{FrameDesc, FrameState, Geometry, PageEntry, PageUse};
use crate::units::{FRAME_SIZE, FrameNo, PAGE_SIZE, PAGES_PER_FRAME, PageNo};

/// While this exists, nothing is allocated beyond the limit. If it is dropped before [`Limit::end`], the whole pool
/// can be allocated again.
#[derive(Debug)]
pub(crate) struct Limit<'a> {
    alloc: &'a Allocator,
    frames: u64,
    /// Pages beyond the limit that can be owned. They are subtracted from the free count as if all were free.
    withheld: i64,
    cut: bool,
}

/// A page in use of a split frame: which, what for, and whose.
pub(crate) type OwnedPage = (PageNo, PageUse, u64);

impl Allocator {
    /// Makes the new frames available. A record with a number of frames larger than `old` was applied.
    pub(crate) fn frames_added(&self, old: u64) {
        let frames = self.frames();
        let more = self.geometry.usable_pages(frames) - self.geometry.usable_pages(old);
        self.search.lock().set_limit(frames);
        self.free.fetch_add(more as i64, Ordering::Relaxed);
        self.kept.store(super::kept_of(self.usable_pages() as i64), Ordering::Relaxed);
    }

    /// Zeros the descriptors of the frames from `old` to `frames`: in each segment from the first byte that was ever
    /// stored to. A segment without one is not touched. Takes a checkpoint first: no record describes anything behind the end then, so none is replayed over the zeros.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the layer below has no space for what has to be zeroed.
    pub(crate) fn zero_descriptors(&self, old: u64, frames: u64) -> Result<()> {
        let head = self.geometry.next_descriptors(FrameNo(old)).0.min(frames);
        let mut zeroed = Ok(());
        // The first page also holds descriptors in use. While transactions run, one of them could take its private
        // copy of the page before it is zeroed, and write the old bytes back.
        self.checkpoint_then(|| {
            if head > old {
                let last = self.geometry.descriptor_at(FrameNo(head - 1));
                zeroed = zero_from_first_stored(
                    &self.region,
                    self.geometry.descriptor_at(FrameNo(old))..last + FrameDesc::SIZE,
                );
            }
        })?;
        zeroed?;
        zero_segments(&self.region, &self.geometry, old..frames)?;
        if self.region.describe().durability == Durability::AtSync {
            self.region.sync()?;
        }
        Ok(())
    }

    /// Excludes the frames from `frames` on from allocation.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the pages in use do not fit into the remaining frames.
    pub(crate) fn limit(&self, frames: u64) -> Result<Limit<'_>> {
        let withheld = (self.usable_pages() - self.geometry.usable_pages(frames)) as i64;
        let take = |free: i64| Some(free - withheld).filter(|&left| left >= self.kept());
        if self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return Err(Error::NoSpace);
        }
        self.search.lock().set_limit(frames);
        let limit = Limit { alloc: self, frames, withheld, cut: false };
        // With every lane held: no transaction has reserved such pages then, and none does any more.
        self.checkpoint_then(|| {
            for (lane, cursor) in self.cursors.iter().enumerate() {
                let mut cursor = cursor.lock();
                if cursor.frame.is_some_and(|frame| frame.0 >= frames) {
                    self.leave(lane, &mut cursor);
                }
            }
        })?;
        Ok(limit)
    }

    /// What the frame is used for, and the pages in use of a split one (without its table): page, use and owner. Nobody
    /// changes it while it is read.
    pub(crate) fn frame_contents(&self, frame: FrameNo) -> Result<(FrameDesc, Vec<OwnedPage>)> {
        let _stripe = self.stripes[Self::stripe(frame)].lock();
        let desc = self.descriptor(frame)?;
        let mut pages = Vec::new();
        if desc.state() == FrameState::Split {
            let table = self.page(desc.table())?;
            for page in (0..PAGES_PER_FRAME as usize).map(|i| frame.page(i)) {
                match PageEntry(table.u64(page.index_in_frame() * 8)).parse(page)? {
                    None | Some((PageUse::Table, _)) => {}
                    Some((what, owner)) => pages.push((page, what, owner)),
                }
            }
        }
        Ok((desc, pages))
    }

    /// Whether the frame has a page in use that can be relocated. The error names what cannot be read.
    fn holds_anything(&self, frame: FrameNo) -> Result<bool> {
        let (desc, pages) = self.frame_contents(frame)?;
        Ok(match desc.state() {
            FrameState::Free | FrameState::Retired => false,
            // What is lent does not count as used, but its borrower has it until the pool is closed.
            FrameState::Whole | FrameState::Lent => true,
            FrameState::Split => pages.iter().any(|&(_, what, _)| what != PageUse::Retired),
        })
    }

    /// Whether a page of the run is pinned.
    pub(crate) fn is_pinned(&self, run: Run) -> bool {
        super::by_frame(run).any(|(frame, first, count)| (first..first + count).any(|i| self.pins.is_pinned(frame, i)))
    }
}

/// Zeros the frames of descriptors that segments among these frames begin with, from the first byte on that may be
/// nonzero.
///
/// # Errors
/// [`Error::NoSpace`] if the layer below has no space for what has to be zeroed.
pub(crate) fn zero_segments(region: &Region, geometry: &Geometry, frames: Range<u64>) -> Result<()> {
    let mut head = geometry.next_descriptors(FrameNo(frames.start));
    while head.0 < frames.end {
        zero_from_first_stored(region, head.byte()..head.byte() + FRAME_SIZE)?;
        head = geometry.next_descriptors(FrameNo(head.0 + 1));
    }
    Ok(())
}

/// Zeros the bytes from the first one on that may be nonzero.
fn zero_from_first_stored(region: &Region, bytes: Range<u64>) -> Result<()> {
    let Some(at) = region.next_data(bytes.start, bytes.end - bytes.start)? else { return Ok(()) };
    let page = at / PAGE_SIZE * PAGE_SIZE;
    // A store to a page that the layer below cannot find space for would be lost.
    region.reserve(page, bytes.end.next_multiple_of(PAGE_SIZE) - page)?;
    Ok(region.persist(&[Part::Zero { at, len: bytes.end - at }])?)
}

impl Limit<'_> {
    /// The number of remaining frames.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether a page beyond the limit is in use that can be relocated.
    pub(crate) fn holds_anything(&self) -> Result<bool> {
        for frame in self.alloc.used_frames_from(FrameNo(self.frames)) {
            if self.alloc.holds_anything(frame)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a page beyond the limit is pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        self.alloc.pins.any_from(FrameNo(self.frames))
    }

    /// Pages beyond the limit that count as in use: lost pages and tables.
    pub(crate) fn used(&self) -> Result<i64> {
        let mut used = 0;
        for frame in self.alloc.used_frames_from(FrameNo(self.frames)) {
            let (desc, _) = self.alloc.frame_contents(frame)?;
            used += desc.counted_pages() as i64;
        }
        Ok(used)
    }

    /// Ends the limit. A record with the new size was applied; `used` pages no longer count as in use.
    pub(crate) fn end(mut self, used: i64) {
        self.cut = true;
        self.alloc.free.fetch_add(used, Ordering::Relaxed);
        self.alloc.kept.store(super::kept_of(self.alloc.usable_pages() as i64), Ordering::Relaxed);
    }
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        if !self.cut {
            self.alloc.search.lock().set_limit(self.alloc.frames());
            self.alloc.free.fetch_add(self.withheld, Ordering::Relaxed);
        }
    }
}
