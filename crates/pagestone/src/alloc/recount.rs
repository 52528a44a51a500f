//! Repair of the counters and of a descriptor's page count, for `check`. No other operation may run meanwhile.

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::Allocator;
use crate::error::Result;
use crate::layout::{COUNTERS, Counts, FrameDesc, FrameState, LaneCounters, PageEntry, PageUse};
use crate::units::{FrameNo, Ino, PAGES_PER_FRAME};

impl Allocator {
    /// Recounts pages and inodes, and stores the result in the first lane's counters.
    pub(crate) fn recount(&self) -> Result<()> {
        let mut counts = Counts::default();
        for frame in self.used_frames_from(FrameNo(0)) {
            let Ok(desc) = self.descriptor(frame) else { continue };
            counts.pages += desc.counted_pages() as i64;
            if desc.state() == FrameState::Split {
                self.inodes_in(frame, &desc, &mut counts)?;
            }
        }
        // Written to the media directly: the preceding checkpoint has emptied the journal, and both views get the
        // same bytes.
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

    /// Sets the number of used pages in the descriptor of a split frame.
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
