//! The pages that one transaction allocates, frees and reowns: reserved in DRAM, published by its record.
//!
//! ```text
//!   allocate --> charged to the free count; from the lane's cursor, or a whole frame
//!   free     --> noted; the owner is checked at commit
//!   reown    --> noted; the owner is checked at commit
//!        stage (descriptors, tables)  -->  record  -->  commit: reservations end
//!        dropped without a commit     -->               everything is returned
//! ```

use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::publish::Stripes;
use super::{Allocator, Run, Stop, TxResult, by_frame};
use crate::journal::Batch;
use crate::layout::PageUse;
use crate::units::{FrameNo, PAGE_SIZE, PAGES_PER_FRAME, PageNo};

/// Pages that must stay free when a whole frame is allocated: more than the nodes that one record needs for a map.
const NODES: i64 = 16;

/// Pages allocated to a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocated {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) owner: u64,
    /// For a whole frame: the file page that it will be mapped at.
    pub(super) whole: Option<u64>,
}

/// Pages that a transaction frees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) owner: u64,
}

/// Pages that stay in use and change their owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reowned {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// The page operations of one transaction. The transaction holds its lane.
#[derive(Debug)]
pub(crate) struct Reservation<'p> {
    alloc: &'p Allocator,
    lane: usize,
    /// The operation frees more than it allocates, and may use the last pages.
    deleting: bool,
    allocated: SmallVec<[Allocated; 8]>,
    freed: SmallVec<[Freed; 8]>,
    reowned: SmallVec<[Reowned; 2]>,
    /// Frames that the lane's cursor has left: the commit checks whether they can be coalesced.
    left: SmallVec<[FrameNo; 2]>,
    charged: i64,
    /// Not even one page was left to charge.
    exhausted: bool,
    committed: bool,
}

impl<'p> Reservation<'p> {
    /// An empty reservation.
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

    /// Whether no page changes its owner.
    pub(crate) fn is_empty(&self) -> bool {
        self.allocated.is_empty() && self.freed.is_empty()
    }

    /// An upper bound for the bytes that descriptors and tables add to the record.
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

    /// Whether the pool has no page left for this operation, and none waits for a checkpoint.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Reserves up to `pages` pages for `owner`'s data from `file_page` on: a whole frame if `whole` is set and one
    /// is free (`file_page` has to be aligned to a frame), else a run from a split frame.
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

    /// Undoes the allocation of a run from a split frame.
    pub(crate) fn unallocate(&mut self, run: Run) {
        if let Some(i) = self.allocated.iter().position(|a| a.whole.is_none() && a.run == run) {
            let allocated = self.allocated.remove(i);
            self.return_run(&allocated);
            self.uncharge(run.pages);
        }
    }

    /// Frees pages when the transaction commits. The commit checks that `owner` owns them.
    pub(crate) fn free(&mut self, run: Run, what: PageUse, owner: u64) {
        self.freed.push(Freed { run, what, owner });
    }

    /// Changes the owner of pages from `from` to `to` when the transaction commits. The commit checks that `from`
    /// owns them. A whole frame must be passed as one run.
    pub(crate) fn reown(&mut self, run: Run, what: PageUse, from: u64, to: u64) {
        self.reowned.push(Reowned { run, what, from, to });
    }

    /// Whether a few pages are left for the nodes that map a whole frame. If not, single runs are better: they take
    /// no more pages than the data needs.
    fn leaves_room_for_nodes(&self) -> bool {
        let kept = self.alloc.kept() + self.alloc.pins.withheld();
        self.alloc.free.load(Ordering::Relaxed) >= kept + PAGES_PER_FRAME as i64 + NODES
    }

    fn charge(&mut self, pages: u64) -> TxResult<()> {
        let kept = if self.deleting { 0 } else { self.alloc.kept() } + self.alloc.pins.withheld();
        // The free count must not be too low even for a moment: another thread would find the pool full.
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
        // Charge one page first, and the others once the length of the run is known.
        if let Err(e) = self.charge(1) {
            self.exhausted = true;
            return Err(e);
        }
        let run = match self.run_from_own_cursor(lane, want) {
            Err(Stop::NoSpace) => self.run_from_other_cursors(lane, want).ok_or(Stop::NoSpace),
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
            self.return_run(&Allocated { run, what, owner, whole: None });
            self.uncharge(1);
            return Err(e);
        }
        Ok(run)
    }

    fn run_from_own_cursor(&mut self, lane: usize, want: u64) -> TxResult<Run> {
        let mut cursor = self.alloc.cursors[lane].lock();
        loop {
            if let Some(run) = cursor.take(want) {
                return Ok(run);
            }
            self.left.extend(cursor.frame);
            self.alloc.refill(lane, &mut cursor, &self.allocated)?;
        }
    }

    /// Allocates a run from another lane's frame, if no other frame has room. The run is reserved, so that no
    /// search finds it free after that lane has left the frame.
    fn run_from_other_cursors(&self, lane: usize, want: u64) -> Option<Run> {
        let others = self.alloc.cursors.iter().enumerate().filter(|(i, _)| *i != lane);
        for (_, cursor) in others {
            let mut cursor = cursor.lock();
            if let Some(run) = cursor.take(want) {
                self.alloc.reserve_run(run);
                return Some(run);
            }
        }
        None
    }

    /// Returns pages that were allocated and not published to the cursor in their frame. They are reserved until
    /// then, so no other cursor can have entered the frame.
    fn return_run(&self, allocated: &Allocated) {
        let frame = allocated.run.page.frame().0;
        let lane = self.alloc.active.iter().position(|a| a.load(Ordering::SeqCst) == frame);
        let mut cursor = lane.map(|lane| self.alloc.cursors[lane].lock());
        self.alloc.release(std::slice::from_ref(allocated));
        if let Some(cursor) = &mut cursor {
            // A lost page that was free is allocated once and not returned.
            let pages = (0..allocated.run.pages).map(|i| Run { page: allocated.run.page.plus(i), pages: 1 });
            pages.filter(|run| !self.alloc.is_lost(run.page)).for_each(|run| cursor.return_run(run));
        }
    }

    fn uncharge(&mut self, pages: u64) {
        self.charged -= pages as i64;
        self.alloc.free.fetch_add(pages as i64, Ordering::Relaxed);
    }

    // ---- commit ------------------------------------------------------------------------------

    /// Locks the frames touched and stages their descriptors and tables. Returns the locks, to be held until the
    /// record is applied, and the change in the number of pages in use.
    pub(crate) fn stage(&self, batch: &mut Batch) -> TxResult<(Stripes<'p>, i64)> {
        let locked = self.alloc.lock_stripes(&self.allocated, &self.freed, &self.reowned, &self.left);
        let pages = self.alloc.stage_owners(batch, &self.allocated, &self.freed, &self.left)?;
        self.alloc.stage_reowned(batch, &self.reowned)?;
        Ok((locked, pages))
    }

    /// Ends the reservations. The record was applied; `pages` more pages are in use.
    pub(crate) fn commit(&mut self, pages: i64) {
        self.committed = true;
        // The reserved pages were charged already; correct that by the actual change. All lanes share the total, so
        // do not write it without need.
        if self.charged != pages {
            self.alloc.free.fetch_add(self.charged - pages, Ordering::Relaxed);
        }
        self.alloc.release(&self.allocated);
        let mut search = None;
        for frame in self.allocated.iter().filter(|a| a.whole.is_some()) {
            search.get_or_insert_with(|| self.alloc.search.lock()).unreserve(frame.run.page.frame());
        }
    }
}

impl Drop for Reservation<'_> {
    /// Returns what was reserved, unless the transaction has committed.
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        self.alloc.free.fetch_add(self.charged, Ordering::Relaxed);
        for allocated in &self.allocated {
            match allocated.whole {
                Some(_) => self.alloc.search.lock().unreserve(allocated.run.page.frame()),
                None => self.return_run(allocated),
            }
        }
    }
}
