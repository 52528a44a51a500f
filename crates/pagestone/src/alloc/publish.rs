//! Publication of ownership: the descriptors and split tables that a transaction changes on the media.
//!
//! ```text
//!   free  --allocate pages-->  split (table on page 0)      whole --free a part--> split (table on the
//!   free  --allocate all---->  whole                        first freed page that is readable and not pinned)
//!   split --only the table left, no cursor in it--> free    whole --free all of it---> free
//!   split --reown--> split, whole --reown--> whole          whole --free all, some of it lost--> retired
//! ```
//!
//! This runs at commit. The stripes of all touched frames are held from staging until the record is applied,
//! because two lanes may change different pages of one frame.

use std::ops::Range;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::reservation::{Allocated, Freed, Reowned};
use super::{Allocator, Run, Stop, TxResult, by_frame, set_bits};
use crate::error::{Error, Place, Result};
use crate::journal::{Batch, Lane};
use crate::layout::{COUNTERS, Counts, FrameDesc, FrameState, PageEntry, PageUse};
use crate::lock::MutexGuard;
use crate::units::{FRAME_SIZE, FrameNo, PAGE_SIZE, PAGES_PER_FRAME, PageNo};

/// The lock guards of a commit.
pub(crate) type Stripes<'a> = SmallVec<[MutexGuard<'a, ()>; 8]>;

impl Allocator {
    /// Locks the stripes of every frame that the transaction touches, in order.
    pub(super) fn lock_stripes(
        &self,
        allocated: &[Allocated],
        freed: &[Freed],
        reowned: &[Reowned],
        left: &[FrameNo],
    ) -> Stripes<'_> {
        if allocated.is_empty() && freed.is_empty() && reowned.is_empty() && left.is_empty() {
            return Stripes::new();
        }
        let mut order: SmallVec<[usize; 16]> = left.iter().map(|&frame| Self::stripe(frame)).collect();
        let runs =
            allocated.iter().map(|t| t.run).chain(freed.iter().map(|g| g.run)).chain(reowned.iter().map(|m| m.run));
        for run in runs {
            order.extend(by_frame(run).map(|(frame, ..)| Self::stripe(frame)));
            if order.len() > 1024 {
                order.sort_unstable();
                order.dedup();
            }
        }
        order.sort_unstable();
        order.dedup();
        order.into_iter().map(|i| self.stripes[i].lock()).collect()
    }

    /// Stages descriptors and table entries. Frames in `left` are coalesced if they are empty. Returns the change
    /// in the number of pages in use.
    pub(super) fn stage_owners(
        &self,
        batch: &mut Batch,
        allocated: &[Allocated],
        freed: &[Freed],
        left: &[FrameNo],
    ) -> TxResult<i64> {
        let mut pages = 0;
        for t in allocated {
            pages += match t.whole {
                Some(file_page) => self.stage_whole(batch, t, file_page)?,
                None => self.stage_allocated(batch, t)?,
            };
        }
        let mut touched: SmallVec<[FrameNo; 8]> = SmallVec::from_slice(left);
        for g in freed {
            for (frame, first, count) in by_frame(g.run) {
                pages += self.stage_freed(batch, g, frame, first, count)?;
                if touched.last() != Some(&frame) {
                    touched.push(frame);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for frame in touched {
            pages += self.stage_coalesce(batch, frame)?;
        }
        Ok(pages)
    }

    fn staged_descriptor(&self, batch: &mut Batch, frame: FrameNo) -> Result<FrameDesc> {
        if !self.owns(frame) {
            return Err(Error::corrupt(Place::Frame(frame), "outside the pool's frames"));
        }
        let staged = batch.stage(&self.region, self.geometry.descriptor_at(frame), 64)?;
        let mut bytes = [0; 64];
        bytes.copy_from_slice(staged.bytes());
        self.parse_descriptor(&bytes, frame)
    }

    fn put_descriptor(&self, batch: &mut Batch, frame: FrameNo, desc: &FrameDesc) -> Result<()> {
        batch.stage(&self.region, self.geometry.descriptor_at(frame), 64)?.write(0, desc.as_bytes());
        Ok(())
    }

    fn stage_whole(&self, batch: &mut Batch, t: &Allocated, file_page: u64) -> Result<i64> {
        let frame = t.run.page.frame();
        if self.staged_descriptor(batch, frame)?.state() != FrameState::Free {
            return Err(Error::corrupt(Place::Frame(frame), "it was found free and is owned"));
        }
        self.put_descriptor(batch, frame, &FrameDesc::whole(frame, t.owner, file_page))?;
        Ok(PAGES_PER_FRAME as i64)
    }

    fn stage_allocated(&self, batch: &mut Batch, t: &Allocated) -> Result<i64> {
        let (frame, first, count) = (t.run.page.frame(), t.run.page.index_in_frame(), t.run.pages as usize);
        let desc = self.staged_descriptor(batch, frame)?;
        let (table, used) = match desc.state() {
            FrameState::Split => (desc.table(), desc.used),
            FrameState::Free => {
                let table = frame.first_page();
                let staged = batch.stage_blank(table.byte(), PAGE_SIZE as usize)?;
                staged.write(0, &PageEntry::new(table, PageUse::Table, 0).0.to_le_bytes());
                staged.mark(0, PAGE_SIZE as usize);
                (table, 1)
            }
            _ => return Err(Error::corrupt(Place::Frame(frame), "a page of it was handed out, but it is not split")),
        };
        let staged = batch.stage(&self.region, table.byte(), PAGE_SIZE as usize)?;
        for i in first..first + count {
            if staged.bytes()[i * 8..][..8] != [0; 8] {
                return Err(Error::corrupt(Place::Page(frame.page(i)), "it was found free and is owned"));
            }
            staged.write(i * 8, &PageEntry::new(frame.page(i), t.what, t.owner).0.to_le_bytes());
        }
        let now = used + count as u16;
        if u64::from(now) > PAGES_PER_FRAME {
            return Err(Error::corrupt(Place::Descriptor(frame), "impossible count of used pages"));
        }
        self.put_descriptor(batch, frame, &FrameDesc::split(frame, table, now))?;
        let before = if desc.state() == FrameState::Split { used } else { 0 };
        Ok(i64::from(now) - i64::from(before))
    }

    fn stage_freed(&self, batch: &mut Batch, g: &Freed, frame: FrameNo, first: usize, count: usize) -> TxResult<i64> {
        let desc = self.staged_descriptor(batch, frame)?;
        let wrong = || Error::corrupt(Place::Page(frame.page(first)), "it is given back by another than its owner");
        match desc.state() {
            FrameState::Whole if desc.owner != g.owner || g.what != PageUse::Data => Err(wrong().into()),
            FrameState::Whole if count as u64 == PAGES_PER_FRAME && self.has_lost(frame) => {
                self.put_descriptor(batch, frame, &FrameDesc::retired(frame))?;
                Ok(0)
            }
            FrameState::Whole if count as u64 == PAGES_PER_FRAME => {
                self.put_descriptor(batch, frame, &FrameDesc::FREE)?;
                self.quarantine_pages(frame, 0, count);
                Ok(-(count as i64))
            }
            FrameState::Whole => self.stage_split(batch, g, frame, first, count),
            FrameState::Split => {
                let staged = batch.stage(&self.region, desc.table().byte(), PAGE_SIZE as usize)?;
                let mut count_free = 0;
                for i in first..first + count {
                    let entry = PageEntry(staged.view().u64(i * 8));
                    if entry.parse(frame.page(i))? != Some((g.what, g.owner)) {
                        return Err(wrong().into());
                    }
                    let left = self.freed_entry(frame.page(i));
                    count_free += usize::from(left == PageEntry::FREE);
                    staged.write(i * 8, &left.0.to_le_bytes());
                }
                let used = desc.used.checked_sub(count_free as u16).filter(|&u| u > 0).ok_or_else(wrong)?;
                self.put_descriptor(batch, frame, &FrameDesc::split(frame, desc.table(), used))?;
                self.quarantine_pages(frame, first, count);
                Ok(-(count_free as i64))
            }
            _ => Err(wrong().into()),
        }
    }

    /// Stages new owners for pages that stay in use.
    pub(super) fn stage_reowned(&self, batch: &mut Batch, reowned: &[Reowned]) -> Result<()> {
        for m in reowned {
            for (frame, first, count) in by_frame(m.run) {
                self.stage_new_owner(batch, m, frame, first, count)?;
            }
        }
        Ok(())
    }

    fn stage_new_owner(
        &self,
        batch: &mut Batch,
        m: &Reowned,
        frame: FrameNo,
        first: usize,
        count: usize,
    ) -> Result<()> {
        let desc = self.staged_descriptor(batch, frame)?;
        let wrong = || Error::corrupt(Place::Page(frame.page(first)), "it is passed on by another than its owner");
        match desc.state() {
            FrameState::Whole if desc.owner == m.from && count as u64 == PAGES_PER_FRAME => {
                self.put_descriptor(batch, frame, &FrameDesc::whole(frame, m.to, desc.file_page))
            }
            FrameState::Split => {
                let staged = batch.stage(&self.region, desc.table().byte(), PAGE_SIZE as usize)?;
                for i in first..first + count {
                    let entry = PageEntry(staged.view().u64(i * 8));
                    if entry.parse(frame.page(i))? != Some((m.what, m.from)) {
                        return Err(wrong());
                    }
                    staged.write(i * 8, &PageEntry::new(frame.page(i), m.what, m.to).0.to_le_bytes());
                }
                Ok(())
            }
            _ => Err(wrong()),
        }
    }

    /// Splits a whole frame of which a part is freed. The table is put on the first page of that part that is
    /// readable and not pinned, so a split never needs space.
    fn stage_split(&self, batch: &mut Batch, g: &Freed, frame: FrameNo, first: usize, count: usize) -> TxResult<i64> {
        let at = self.page_for_table(frame, first..first + count).ok_or(Stop::Pinned)?;
        let table = frame.page(at);
        let staged = batch.stage_blank(table.byte(), PAGE_SIZE as usize)?;
        let mut free = 0;
        for i in 0..PAGES_PER_FRAME as usize {
            let entry = match i {
                _ if i == at => PageEntry::new(table, PageUse::Table, 0),
                _ if i >= first && i < first + count => self.freed_entry(frame.page(i)),
                _ => PageEntry::new(frame.page(i), PageUse::Data, g.owner),
            };
            free += u16::from(entry == PageEntry::FREE);
            staged.write(i * 8, &entry.0.to_le_bytes());
        }
        let used = PAGES_PER_FRAME as u16 - free;
        self.put_descriptor(batch, frame, &FrameDesc::split(frame, table, used))?;
        self.quarantine_pages(frame, first, at - first);
        self.quarantine_pages(frame, at + 1, first + count - at - 1);
        Ok(-i64::from(free))
    }

    fn page_for_table(&self, frame: FrameNo, mut pages: Range<usize>) -> Option<usize> {
        pages.find(|&i| !self.pins.is_pinned(frame, i) && !self.is_lost(frame.page(i)))
    }

    /// If the run is a part of a whole frame and the media have lost some of it: a page of the frame that can hold
    /// the table.
    pub(crate) fn healthy_page_for_table(&self, part: Run) -> Result<Option<PageNo>> {
        let frame = part.page.frame();
        let cut = part.pages < PAGES_PER_FRAME && self.descriptor(frame)?.state() == FrameState::Whole;
        if !cut || self.region.first_lost(part.page.byte(), part.pages * PAGE_SIZE).is_none() {
            return Ok(None);
        }
        Ok(self.page_for_table(frame, 0..PAGES_PER_FRAME as usize).map(|i| frame.page(i)))
    }

    /// The table entry for a freed page: free, or retired if the media have lost the page.
    fn freed_entry(&self, page: PageNo) -> PageEntry {
        if self.is_lost(page) { PageEntry::new(page, PageUse::Retired, 0) } else { PageEntry::FREE }
    }

    /// Whether the page is known to be lost.
    pub(super) fn is_lost(&self, page: PageNo) -> bool {
        self.region.first_lost(page.byte(), PAGE_SIZE).is_some()
    }

    /// Whether a page of the frame is known to be lost.
    pub(super) fn has_lost(&self, frame: FrameNo) -> bool {
        self.region.first_lost(frame.first_page().byte(), FRAME_SIZE).is_some()
    }

    /// Coalesces a split frame if only its table is left.
    fn stage_coalesce(&self, batch: &mut Batch, frame: FrameNo) -> Result<i64> {
        let desc = self.staged_descriptor(batch, frame)?;
        if desc.state() != FrameState::Split || desc.used != 1 || self.is_reserved(frame) {
            return Ok(0);
        }
        self.put_descriptor(batch, frame, &FrameDesc::FREE)?;
        self.quarantine_pages(frame, 0, PAGES_PER_FRAME as usize);
        Ok(-1)
    }

    /// Stages the lane's counters with `counts` added.
    pub(crate) fn stage_counters(&self, lane: &mut Lane, counts: Counts) -> TxResult<()> {
        let mut counters = *self.counters[lane.index as usize].lock();
        counters.counts = counters.counts.plus(counts);
        counters.slots = self.slot_pages[lane.index as usize].load(Ordering::Relaxed);
        let at = COUNTERS.byte() + u64::from(lane.index) * 64;
        lane.batch.stage_blank(at, 64)?.write(0, &counters.sealed());
        Ok(())
    }

    /// Called after a record with these counts was applied.
    pub(crate) fn add_counts(&self, lane: u32, counts: Counts) {
        let mut counters = self.counters[lane as usize].lock();
        counters.counts = counters.counts.plus(counts);
    }

    /// Puts freed pages into quarantine until the next checkpoint. This happens before the record is applied, so no
    /// search finds them free in between.
    fn quarantine_pages(&self, frame: FrameNo, first: usize, count: usize) {
        set_bits(self.quarantine.lock().entry(frame).or_default(), first, count, true);
    }
}
