//! The pages that one transaction allocates, frees and passes on: reserved in DRAM, published by its record.
//!
//! ```text
//!   allocate --> charged to the free count, out of the lane's cursor or as a whole frame
//!   free     --> noted; checked against the owner at commit
//!   reown    --> noted; checked against the owner at commit
//!        stage (descriptors, tables)  -->  record  -->  commit: reservations end
//!        dropped without a commit     -->               everything goes back
//! ```

use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::publish::Stripes;
use super::{Allocator, Run, Stop, TxResult, by_frame};
use crate::journal::Batch;
use crate::layout::PageUse;
use crate::units::{FrameNo, PAGE_SIZE, PAGES_PER_FRAME, PageNo};

/// Pages that a whole frame must leave to others: more than the nodes that one record takes for a map.
const NODES: i64 = 16;

/// Pages handed out to a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocated {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) owner: u64,
    /// A whole frame, with the file page it will lie at.
    pub(super) whole: Option<u64>,
}

/// Pages that a transaction gives back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) owner: u64,
}

/// Pages that stay in use and get another owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reowned {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What one transaction, which holds its lane, does with pages.
#[derive(Debug)]
pub(crate) struct Reservation<'p> {
    alloc: &'p Allocator,
    lane: usize,
    /// The operation frees more than it allocates, and may use the last pages.
    deleting: bool,
    allocated: SmallVec<[Allocated; 8]>,
    freed: SmallVec<[Freed; 8]>,
    reowned: SmallVec<[Reowned; 2]>,
    /// Frames that the lane's cursor moved out of meanwhile: nobody else looks again whether they can be coalesced.
    left: SmallVec<[FrameNo; 2]>,
    charged: i64,
    /// There was not even one page left to be charged.
    exhausted: bool,
    committed: bool,
}

impl<'p> Reservation<'p> {
    /// Nothing reserved yet.
    #[inline]
    pub(crate) fn new(alloc: &'p Allocator, lane: usize, deleting: bool) -> Reservation<'p> {
        Reservation {
            alloc,
            lane,
            deleting,
            allocated: SmallVec::new(),
            freed: SmallVec::new(),
            reowned: SmallVec::new(),
            left: SmallVec::new(),
            charged: 0,
            exhausted: false,
            committed: false,
        }
    }

    /// Whether no page changes hands.
    pub(crate) fn is_empty(&self) -> bool {
        self.allocated.is_empty() && self.freed.is_empty()
    }

    /// A bound on the bytes that descriptors and tables add to the record.
    ///
    /// A frame's table is in the record at most once. A run that covers a whole frame changes its descriptor alone: the
    /// frame has no table.
    pub(crate) fn record_bound(&self) -> u64 {
        let allocated = self.allocated.iter().map(|a| a.run);
        let runs = allocated.chain(self.freed.iter().map(|f| f.run)).chain(self.reowned.iter().map(|r| r.run));
        let (mut split, mut whole): (SmallVec<[FrameNo; 16]>, u64) = (SmallVec::new(), 0);
        for (frame, _, pages) in runs.flat_map(by_frame) {
            if pages as u64 == PAGES_PER_FRAME { whole += 1 } else { split.push(frame) }
        }
        split.sort_unstable();
        split.dedup();
        split.len() as u64 * (PAGE_SIZE + 1024) + whole * 128
    }

    /// Whether the pool has no page left for this operation, none that waits for a checkpoint either.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Reserves up to `pages` pages for `owner`'s data from `file_page` on: if `whole` and there is
    /// one, a whole frame (`file_page` begins one), else a run out of a split frame.
    pub(crate) fn allocate_data(&mut self, owner: u64, file_page: u64, pages: u64, whole: bool) -> TxResult<Run> {
        if whole && self.leaves_room_for_nodes() {
            match self.allocate_frame(owner, file_page) {
                Ok(frame) => return Ok(Run { page: frame.first_page(), pages: PAGES_PER_FRAME }),
                Err(Stop::NoSpace) => {}
                Err(e) => return Err(e),
            }
        }
        self.allocate_pages(pages, PageUse::Data, owner)
    }

    /// If `page` was reserved here: how many pages of its run there are from it on.
    pub(crate) fn allocated_from(&self, page: PageNo) -> Option<u64> {
        let run =
            self.allocated.iter().map(|a| a.run).find(|run| (run.page.0..run.page.0 + run.pages).contains(&page.0))?;
        Some(run.page.0 + run.pages - page.0)
    }

    /// Undoes the allocation of a run out of a split frame.
    pub(crate) fn unallocate(&mut self, run: Run) {
        if let Some(i) = self.allocated.iter().position(|a| a.whole.is_none() && a.run == run) {
            let allocated = self.allocated.remove(i);
            self.give_back(&allocated);
            self.uncharge(run.pages);
        }
    }

    /// Gives pages back when the transaction commits. That they are the owner's is checked then.
    pub(crate) fn free(&mut self, run: Run, what: PageUse, owner: u64) {
        self.freed.push(Freed { run, what, owner });
    }

    /// Passes pages of `from` on to `to` when the transaction commits. That they are `from`'s is checked
    /// then; a whole frame changes hands in one piece.
    pub(crate) fn reown(&mut self, run: Run, what: PageUse, from: u64, to: u64) {
        self.reowned.push(Reowned { run, what, from, to });
    }

    /// Whether a whole frame leaves a few pages for the nodes that map it. Else its pages are better had one run at a
    /// time: of those, no more is taken than the data needs.
    fn leaves_room_for_nodes(&self) -> bool {
        let kept = self.alloc.kept + self.alloc.pins.withheld();
        self.alloc.free.load(Ordering::Relaxed) >= kept + PAGES_PER_FRAME as i64 + NODES
    }

    fn charge(&mut self, pages: u64) -> TxResult<()> {
        let kept = if self.deleting { 0 } else { self.alloc.kept } + self.alloc.pins.withheld();
        // Never less for a moment than it is: somebody else would find the pool full.
        let take = |free: i64| Some(free - pages as i64).filter(|&left| left >= kept);
        if self.alloc.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return Err(Stop::NoSpace);
        }
        self.charged += pages as i64;
        Ok(())
    }

    fn allocate_frame(&mut self, owner: u64, file_page: u64) -> TxResult<FrameNo> {
        self.charge(PAGES_PER_FRAME)?;
        let frame = match self.alloc.reserve_frame() {
            Ok(frame) => frame,
            Err(e) => {
                self.uncharge(PAGES_PER_FRAME);
                return Err(e);
            }
        };
        let run = Run { page: frame.first_page(), pages: PAGES_PER_FRAME };
        self.allocated.push(Allocated { run, what: PageUse::Data, owner, whole: Some(file_page) });
        Ok(frame)
    }

    pub(crate) fn allocate_pages(&mut self, want: u64, what: PageUse, owner: u64) -> TxResult<Run> {
        let lane = self.lane;
        // One page is charged first; the others once we know how many there are in one run.
        if let Err(e) = self.charge(1) {
            self.exhausted = true;
            return Err(e);
        }
        let run = match self.run_of_own_cursor(lane, want) {
            Err(Stop::NoSpace) => self.run_of_other_cursors(lane, want).ok_or(Stop::NoSpace),
            run => run,
        };
        let run = match run {
            Ok(run) => run,
            Err(e) => {
                self.uncharge(1);
                return Err(e);
            }
        };
        self.allocated.push(Allocated { run, what, owner, whole: None });
        if let Err(e) = self.charge(run.pages - 1) {
            self.allocated.pop();
            self.give_back(&Allocated { run, what, owner, whole: None });
            self.uncharge(1);
            return Err(e);
        }
        Ok(run)
    }

    fn run_of_own_cursor(&mut self, lane: usize, want: u64) -> TxResult<Run> {
        let mut cursor = self.alloc.cursors[lane].lock();
        loop {
            if let Some(run) = cursor.take(want) {
                return Ok(run);
            }
            self.left.extend(cursor.frame);
            self.alloc.refill(lane, &mut cursor, &self.allocated)?;
        }
    }

    /// No frame has room but those that other lanes stand in: takes a run out of one of them. It is
    /// held, so that it is not found free should that lane leave the frame.
    fn run_of_other_cursors(&self, lane: usize, want: u64) -> Option<Run> {
        let others = self.alloc.cursors.iter().enumerate().filter(|(i, _)| *i != lane);
        for (_, cursor) in others {
            let mut cursor = cursor.lock();
            if let Some(run) = cursor.take(want) {
                self.alloc.hold(run);
                return Some(run);
            }
        }
        None
    }

    /// Takes pages back that were handed out and not published: to the lane that stands in their
    /// frame. Until then they are held, so nobody else has come to stand there.
    fn give_back(&self, allocated: &Allocated) {
        let frame = allocated.run.page.frame().0;
        let lane = self.alloc.active.iter().position(|a| a.load(Ordering::SeqCst) == frame);
        let mut cursor = lane.map(|lane| self.alloc.cursors[lane].lock());
        self.alloc.unhold(std::slice::from_ref(allocated));
        if let Some(cursor) = &mut cursor {
            // A lost page that was free is handed out once, and not again.
            let pages = (0..allocated.run.pages).map(|i| Run { page: allocated.run.page.plus(i), pages: 1 });
            pages.filter(|run| !self.alloc.is_lost(run.page)).for_each(|run| cursor.give_back(run));
        }
    }

    fn uncharge(&mut self, pages: u64) {
        self.charged -= pages as i64;
        self.alloc.free.fetch_add(pages as i64, Ordering::Relaxed);
    }

    // ---- commit ------------------------------------------------------------------------------

    /// Locks the frames touched and stages their descriptors and tables. Returns the locks, to be held until the
    /// record is applied, and by how many pages the pool is fuller.
    pub(crate) fn stage(&self, batch: &mut Batch) -> TxResult<(Stripes<'p>, i64)> {
        let locked = self.alloc.lock_stripes(&self.allocated, &self.freed, &self.reowned, &self.left);
        let pages = self.alloc.stage_owners(batch, &self.allocated, &self.freed, &self.left)?;
        self.alloc.stage_reowned(batch, &self.reowned)?;
        Ok((locked, pages))
    }

    /// The record is applied, and the pool fuller by `pages`: the reservations end.
    pub(crate) fn commit(&mut self, pages: i64) {
        self.committed = true;
        // What was reserved was charged already; what really changed counts.
        // The total is shared by all lanes: not touched for nothing.
        if self.charged != pages {
            self.alloc.free.fetch_add(self.charged - pages, Ordering::Relaxed);
        }
        self.alloc.unhold(&self.allocated);
        let mut search = None;
        for frame in self.allocated.iter().filter(|a| a.whole.is_some()) {
            search.get_or_insert_with(|| self.alloc.search.lock()).unreserve(frame.run.page.frame());
        }
    }
}

impl Drop for Reservation<'_> {
    /// Gives back what was reserved, if nothing was committed.
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        self.alloc.free.fetch_add(self.charged, Ordering::Relaxed);
        for allocated in &self.allocated {
            match allocated.whole {
                Some(_) => self.alloc.search.lock().unreserve(allocated.run.page.frame()),
                None => self.give_back(allocated),
            }
        }
    }
}
