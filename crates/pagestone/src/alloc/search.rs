//! The search for frames: forward from the last one found, skipping groups that are known to have none.
//!
//! ```text
//!   frames  |....group 0....|....group 1....| ... at most 4,096 groups, however large the pool
//!   hints       free? part?     free? part?       "maybe" until a scan of the whole group finds none
//! ```

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::reservation::Allocated;
use super::{Allocator, FrameBits, Run, Stop, TxResult};
use crate::error::Result;
use crate::layout::{FrameState, Geometry, PageEntry};
use crate::units::{FRAME_SIZE, FrameNo, LINE, PAGES_PER_FRAME};

const GROUPS: u64 = 4096;

/// The state of the search, under one mutex. It is locked once per frame, not once per page.
#[derive(Debug, Default)]
pub(super) struct Search {
    next: [u64; 2],
    /// Frames that are reserved and not published yet.
    reserved: HashSet<FrameNo>,
    maybe: [Vec<bool>; 2],
    span: u64,
    limit: u64,
}

/// What to search for; the number indexes the hints.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Free = 0,
    Partial = 1,
}

impl Search {
    pub(super) fn new(geometry: &Geometry, frames: u64) -> Search {
        let mut search = Search { next: [geometry.first_frame.0; 2], ..Search::default() };
        search.set_limit(frames);
        search
    }

    /// Excludes the frames from `limit` on. Any other frame may be free.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.span = limit.div_ceil(GROUPS).max(1);
        let groups = limit.div_ceil(self.span) as usize;
        self.maybe = [vec![true; groups], vec![true; groups]];
    }

    /// A page of `frame`, or all its pages, became free.
    pub(super) fn note_freed(&mut self, frame: FrameNo) {
        let group = (frame.0 / self.span) as usize;
        for maybe in &mut self.maybe {
            if let Some(hint) = maybe.get_mut(group) {
                *hint = true;
            }
        }
    }

    pub(super) fn unreserve(&mut self, frame: FrameNo) {
        self.reserved.remove(&frame);
    }

    /// Ends the reservation of a partial frame. If it has `nothing` available, the next search starts after it.
    fn end_partial_search(&mut self, frame: FrameNo, nothing: bool) {
        self.reserved.remove(&frame);
        if nothing {
            self.next[Want::Partial as usize] = frame.0 + 1;
        }
    }

    pub(super) fn dram_bytes(&self) -> u64 {
        2 * GROUPS + self.reserved.len() as u64 * 16
    }
}

impl Allocator {
    /// Starts the next search at `frame`; the cursors leave their frames.
    #[cfg(test)]
    pub(crate) fn search_from(&self, frame: FrameNo) {
        for (lane, cursor) in self.cursors.iter().enumerate() {
            self.leave(lane, &mut cursor.lock());
        }
        let mut search = self.search.lock();
        search.next = [frame.0; 2];
        search.maybe[Want::Partial as usize].fill(false);
    }

    /// Reserves a free frame for one owner, until it is published or unreserved.
    pub(super) fn reserve_frame(&self) -> TxResult<FrameNo> {
        let frame = self.find(Want::Free)?.ok_or(Stop::NoSpace)?;
        let descriptor = self.geometry.descriptor_at(frame);
        let below = self.region.reserve(descriptor, LINE).and_then(|()| self.region.reserve(frame.byte(), FRAME_SIZE));
        if let Err(e) = below {
            self.search.lock().unreserve(frame);
            return Err(e.into());
        }
        Ok(frame)
    }

    /// Gives the lane's cursor another frame: a split one with room, else a free one. What the running transaction
    /// has `allocated` in the old frame stays reserved.
    pub(super) fn refill(&self, lane: usize, cursor: &mut super::Cursor, allocated: &[Allocated]) -> TxResult<()> {
        if let Some(frame) = cursor.frame {
            self.reserve_all(frame, allocated);
        }
        self.leave(lane, cursor);
        // A damaged split frame, whose count and table disagree, may have nothing available: limit the attempts.
        for _ in 0..64 {
            let Some(frame) = self.find(Want::Partial)? else { break };
            // The stripe excludes a coalescing of the frame meanwhile.
            let _stripe = self.stripes[Self::stripe(frame)].lock();
            let available = self.pages_left(frame).unwrap_or_default();
            let room = available != [0; 8];
            // Activate the frame before its reservation ends. Otherwise another lane could choose it in between.
            self.active[lane].store(if room { frame.0 } else { u64::MAX }, Ordering::SeqCst);
            self.search.lock().end_partial_search(frame, !room);
            if room {
                (cursor.frame, cursor.available) = (Some(frame), available);
                return Ok(());
            }
        }
        let frame = self.reserve_frame()?;
        let _stripe = self.stripes[Self::stripe(frame)].lock();
        self.active[lane].store(frame.0, Ordering::SeqCst);
        self.search.lock().unreserve(frame);
        // Page 0 will be the split table.
        let mut available = [u64::MAX; 8];
        available[0] &= !1;
        (cursor.frame, cursor.available) = (Some(frame), available);
        Ok(())
    }

    /// Reserves pages in `frame` that are allocated but not published.
    fn reserve_all(&self, frame: FrameNo, allocated: &[Allocated]) {
        let mut ours = [0; 8];
        for run in allocated.iter().filter(|t| t.run.page.frame() == frame).map(|t| t.run) {
            super::set_bits(&mut ours, run.page.index_in_frame(), run.pages as usize, true);
        }
        if ours != [0; 8] {
            let mut reserved_pages = self.reserved_pages.lock();
            let bits = reserved_pages.entry(frame).or_default();
            bits.iter_mut().zip(ours).for_each(|(b, o)| *b |= o);
        }
    }

    /// As `reserve_all`, for a run from another lane's frame.
    pub(super) fn reserve_run(&self, run: Run) {
        let mut reserved_pages = self.reserved_pages.lock();
        let bits = reserved_pages.entry(run.page.frame()).or_default();
        super::set_bits(bits, run.page.index_in_frame(), run.pages as usize, true);
    }

    /// Ends the reservations of a transaction. It has committed or was aborted.
    pub(super) fn release(&self, allocated: &[Allocated]) {
        if allocated.is_empty() {
            return; // without taking a lock that all threads share
        }
        // A search takes this lock while it holds its own. So take the lock of the search only after releasing this
        // one.
        let mut free_again = Vec::new();
        let mut reserved_pages = self.reserved_pages.lock();
        if reserved_pages.is_empty() {
            return;
        }
        for run in allocated.iter().map(|t| t.run) {
            let frame = run.page.frame();
            let Some(bits) = reserved_pages.get_mut(&frame) else { continue };
            super::set_bits(bits, run.page.index_in_frame(), run.pages as usize, false);
            if *bits == [0; 8] {
                reserved_pages.remove(&frame);
                free_again.push(frame);
            }
        }
        drop(reserved_pages);
        for frame in free_again {
            self.search.lock().note_freed(frame);
        }
    }

    /// Whether the frame must not be coalesced, because a cursor or a reservation uses it.
    pub(super) fn is_reserved(&self, frame: FrameNo) -> bool {
        self.is_active(frame) || self.reserved_pages.lock().contains_key(&frame)
    }

    /// Updates the cursors in frames of which pages `were_freed`: no search offers such pages. No transaction runs
    /// meanwhile, so no page is allocated and unpublished.
    pub(super) fn refill_cursors(&self, were_freed: impl Fn(FrameNo) -> bool) {
        for cursor in &self.cursors {
            let mut cursor = cursor.lock();
            if let Some(frame) = cursor.frame.filter(|&frame| were_freed(frame))
                && self.descriptor(frame).is_ok_and(|desc| desc.state() == FrameState::Split)
                && let Ok(available) = self.pages_left(frame)
            {
                cursor.available = available;
            }
        }
    }

    /// The cursor leaves its frame. Other lanes may use it.
    pub(super) fn leave(&self, lane: usize, cursor: &mut super::Cursor) {
        if let Some(frame) = cursor.frame.take() {
            let left = cursor.available != [0; 8];
            cursor.available = [0; 8];
            self.active[lane].store(u64::MAX, Ordering::SeqCst);
            if left {
                self.search.lock().note_freed(frame);
            }
        }
    }

    /// The next frame of the wanted kind that is not reserved. It is reserved on return.
    fn find(&self, want: Want) -> Result<Option<FrameNo>> {
        let mut search = self.search.lock();
        let (first, end, span) = (self.geometry.first_frame.0, search.limit, search.span);
        if end <= first {
            return Ok(None);
        }
        let mut at = search.next[want as usize];
        let mut left = end - first;
        // Whether the current group was scanned from its start.
        let mut from_start = false;
        loop {
            if at >= end {
                at = first;
            }
            let group = (at / span) as usize;
            let group_end = ((group as u64 + 1) * span).min(end);
            from_start |= at == first || at.is_multiple_of(span);
            if search.maybe[want as usize][group] {
                let stop = group_end.min(at + left);
                let mut blocked = false;
                for frame in (at..stop).map(FrameNo) {
                    match self.suits(&search, want, frame) {
                        Suits::Yes => {
                            search.next[want as usize] = frame.0 + u64::from(want == Want::Free);
                            search.reserved.insert(frame);
                            return Ok(Some(frame));
                        }
                        Suits::Later => blocked = true,
                        Suits::No => {}
                    }
                }
                if from_start && stop == group_end && !blocked {
                    search.maybe[want as usize][group] = false;
                }
            }
            let step = group_end - at;
            if step >= left {
                return Ok(None);
            }
            left -= step;
            at = group_end;
            from_start = false;
        }
    }

    fn suits(&self, search: &Search, want: Want, frame: FrameNo) -> Suits {
        if self.geometry.holds_descriptors(frame) {
            return Suits::No;
        }
        // Do not allocate from a damaged descriptor; `check` reports it. It may also be one that another lane is
        // changing.
        let Ok(desc) = self.descriptor(frame) else { return Suits::Later };
        let fits = match want {
            Want::Free => desc.state() == FrameState::Free && !self.has_lost(frame),
            Want::Partial => desc.state() == FrameState::Split && u64::from(desc.used) < PAGES_PER_FRAME,
        };
        if !fits {
            return Suits::No;
        }
        let in_use = search.reserved.contains(&frame) || self.is_active(frame);
        let in_use = in_use || self.reserved_pages.lock().contains_key(&frame);
        let waiting = match (want, self.quarantine.lock().get(&frame)) {
            (_, None) => false,
            (Want::Free, Some(_)) => true,
            (Want::Partial, Some(bits)) => {
                u64::from(desc.used) + u64::from(bits.iter().map(|w| w.count_ones()).sum::<u32>()) >= PAGES_PER_FRAME
            }
        };
        if in_use || waiting { Suits::Later } else { Suits::Yes }
    }

    fn is_active(&self, frame: FrameNo) -> bool {
        self.active.iter().any(|a| a.load(Ordering::SeqCst) == frame.0)
    }

    /// Free pages of a split frame that are not in quarantine. The caller holds its stripe.
    fn pages_left(&self, frame: FrameNo) -> Result<FrameBits> {
        let desc = self.descriptor(frame)?;
        if desc.state() != FrameState::Split {
            return Ok([0; 8]);
        }
        let table = self.page(desc.table())?;
        let mut bits = self.quarantine.lock().get(&frame).copied().unwrap_or_default();
        for word in &mut bits {
            *word = !*word;
        }
        for i in 0..PAGES_PER_FRAME as usize {
            if PageEntry(table.u64(i * 8)) != PageEntry::FREE || self.is_lost(frame.page(i)) {
                super::set_bits(&mut bits, i, 1, false);
            }
        }
        super::set_bits(&mut bits, desc.table().index_in_frame(), 1, false);
        Ok(bits)
    }
}

enum Suits {
    Yes,
    Later,
    No,
}
