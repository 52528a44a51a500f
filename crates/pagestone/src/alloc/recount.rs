//! Setting counts right, for `check`: nothing else runs meanwhile.

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::Allocator;
use crate::error::Result;
use crate::layout::{COUNTERS, Counts, FrameDesc, FrameState, LaneCounters, PageEntry, PageUse};
use crate::units::{FrameNo, Ino, PAGES_PER_FRAME};

impl Allocator {
    /// Counts pages and inodes anew and lets the first lane's counters say so.
    pub(crate) fn recount(&self) -> Result<()> {
        let mut counts = Counts::default();
        for frame in self.all_frames() {
            let Ok(desc) = self.descriptor(frame) else { continue };
            match desc.state() {
                FrameState::Free => {}
                FrameState::Split => {
                    counts.pages += i64::from(desc.used);
                    self.inodes_in(frame, &desc, &mut counts)?;
                }
                _ => counts.pages += PAGES_PER_FRAME as i64,
            }
        }
        // Straight to the media: the journal is empty after the checkpoint before, and the same
        // bytes go through both windows.
        for lane in 0..self.geometry.lanes {
            let counters = LaneCounters::new(lane, if lane == 0 { counts } else { Counts::default() });
            *self.counters[lane as usize].lock() = counters;
            let at = COUNTERS.byte() + u64::from(lane) * 64;
            self.region.store(at, &counters.sealed())?;
            self.region.flush(at, 64)?;
        }
        self.region.fence();
        self.region.sync()?;
        self.free.store(self.usable_pages() as i64 - counts.pages, Ordering::Relaxed);
        Ok(())
    }

    fn inodes_in(&self, frame: FrameNo, desc: &FrameDesc, counts: &mut Counts) -> Result<()> {
        let table = self.page(desc.table())?;
        for i in 0..PAGES_PER_FRAME as usize {
            let page = frame.page(i);
            if let Ok(Some((PageUse::Inodes, _))) = PageEntry(table.u64(i * 8)).parse(page) {
                let number = self.number_of_inode_page(page)?;
                let slots = (0..Ino::SLOTS_PER_PAGE as usize).map(|slot| Ino::new(number, slot, 0));
                for rec in slots.filter_map(|ino| self.inode_at_place(ino).ok()).filter(|rec| !rec.is_free()) {
                    let (bases, shared) = rec.counts_as_base();
                    *counts = counts.plus(Counts { pages: 0, inodes: 1, bases, shared });
                }
            }
        }
        Ok(())
    }

    /// Lets a split frame's descriptor say how many pages its table has in use.
    pub(crate) fn set_used(&self, frame: FrameNo, used: u16) -> Result<()> {
        let desc = self.descriptor(frame)?;
        let fixed = FrameDesc::split(frame, desc.table(), used.max(1));
        let at = self.geometry.descriptor_at(frame);
        self.region.store(at, fixed.as_bytes())?;
        self.region.flush(at, FrameDesc::SIZE)?;
        self.region.fence();
        Ok(self.region.sync()?)
    }
}
