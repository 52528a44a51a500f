//! A transaction: staged metadata, reserved space, and the order in which they become real.
//!
//! ```text
//!   reserve ----> Fresh ----fill: data streamed, one fence----> Durable ----> a map may name it
//!   stage nodes and inodes (the batch)                                              |
//!   commit: lock the frames touched, stage their descriptors, log, apply, unlock  <-+
//! ```
//!
//! Only a [`Durable`] run can be put into a file's map, and only [`Tx::fill`] makes one: data is
//! fenced before the record that makes it reachable, by type.
//!
//! A transaction that is dropped without commit gives everything back; nothing of it is on the media.

use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::{Frames, Run, Stop, TxResult, live};
use crate::error::{Error, Result};
use crate::journal::{Lane, MAX_RECORD, Staged};
use crate::layout::{COUNTERS, Counts, InodeRec, PageUse, inode_at, node};
use crate::lock::MutexGuard;
use crate::media::{PageRef, Part};
use crate::units::{FrameNo, Ino, PAGE_SIZE, PAGES_PER_FRAME, PageNo};

/// Pages that a whole frame must leave to others: more than the nodes that one record takes for a map.
const NODES: i64 = 16;

/// Pages handed out to a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) owner: u64,
    /// A whole frame, with the file page it will lie at.
    pub(super) whole: Option<u64>,
}

/// Pages that a transaction gives back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) owner: u64,
}

/// Pages that stay in use and get another owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) run: Run,
    pub(super) what: PageUse,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Reserved pages whose contents are not yet defined.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) file_page: u64,
    pub(crate) run: Run,
}

/// A run whose contents are durable (as far as the media promises at a fence).
#[derive(Debug)]
pub(crate) struct Durable {
    file_page: u64,
    run: Run,
}

impl Durable {
    /// File page and pool run.
    pub(crate) fn parts(&self) -> (u64, Run) {
        (self.file_page, self.run)
    }
}

/// One transaction, holding its lane.
pub(crate) struct Tx<'p> {
    frames: &'p Frames,
    lane: MutexGuard<'p, Lane>,
    deleting: bool,
    publishes: bool,
    taken: SmallVec<[Taken; 8]>,
    given: SmallVec<[Given; 8]>,
    moved: SmallVec<[Moved; 2]>,
    /// Frames that the lane moved out of meanwhile: nobody may come again to merge them.
    left: SmallVec<[FrameNo; 2]>,
    slots_taken: SmallVec<[Ino; 2]>,
    slots_freed: SmallVec<[Ino; 2]>,
    pages_made: SmallVec<[PageNo; 1]>,
    /// Staged nodes; they get their checksums at commit.
    nodes: SmallVec<[PageNo; 8]>,
    /// Bases and their pages, by the records staged.
    bases: (i64, i64),
    reserved: i64,
    /// There was not even one page left to be charged.
    full: bool,
    committed: bool,
}

impl<'p> Tx<'p> {
    #[inline]
    pub(super) fn new(frames: &'p Frames, mut lane: MutexGuard<'p, Lane>, deleting: bool) -> Tx<'p> {
        lane.batch.clear();
        Tx {
            frames,
            lane,
            deleting,
            publishes: false,
            taken: SmallVec::new(),
            given: SmallVec::new(),
            moved: SmallVec::new(),
            left: SmallVec::new(),
            slots_taken: SmallVec::new(),
            slots_freed: SmallVec::new(),
            pages_made: SmallVec::new(),
            nodes: SmallVec::new(),
            bases: (0, 0),
            reserved: 0,
            full: false,
            committed: false,
        }
    }

    /// Whether the record has room for about `bytes` more, besides what is staged.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let frames = (self.given.len() + self.taken.len() + self.moved.len()) as u64 * (PAGE_SIZE + 1024);
        self.lane.batch.record_bound() + frames + bytes < MAX_RECORD - 8 * PAGE_SIZE
    }

    /// Pages of the smallest piece that the media can map.
    pub(crate) fn granule(&self) -> u64 {
        self.frames.region.granule().map_or(1, |bytes| bytes / PAGE_SIZE)
    }

    // ---- inodes ------------------------------------------------------------------------------

    /// The live inode `ino`, with this transaction's changes.
    pub(crate) fn inode(&self, ino: Ino) -> Result<InodeRec> {
        match self.lane.batch.get(inode_at(ino)) {
            Some(staged) => {
                let mut rec = InodeRec::free(ino);
                rec.as_mut_bytes().copy_from_slice(&staged.bytes()[..256]);
                rec.check(ino.place(), true)?;
                live(&rec, ino)?;
                Ok(rec)
            }
            None => self.frames.inode(ino),
        }
    }

    /// Stages the record; lines that do not change stay out of the journal.
    pub(crate) fn put_inode(&mut self, rec: &InodeRec) -> TxResult<()> {
        let sealed = rec.sealed();
        let staged = self.lane.batch.stage(&self.frames.region, inode_at(rec.ino()), 256)?;
        let mut old = InodeRec::free(rec.ino());
        old.as_mut_bytes().copy_from_slice(&staged.bytes()[..256]);
        if old.is_base() || rec.is_base() {
            let ((was, had), (is, has)) = (old.counts_as_base(), rec.counts_as_base());
            // A record of a hostile image may count anything.
            self.bases = (self.bases.0 + is - was, self.bases.1.saturating_add(has - had));
        }
        for (i, line) in sealed.as_bytes().chunks_exact(64).enumerate() {
            if staged.bytes()[i * 64..][..64] != *line {
                staged.write(i * 64, line);
            }
        }
        Ok(())
    }

    /// A number for a new inode. Its record has to be staged by the caller.
    pub(crate) fn new_ino(&mut self) -> TxResult<Ino> {
        let lane = self.lane.index as usize;
        if let Some(ino) = self.frames.known_slot(lane)? {
            self.slots_taken.push(ino);
            return Ok(ino);
        }
        let page = self.take_pages(1, PageUse::Inodes, 0)?.page;
        // Written beside the journal: the record only says whose page it is.
        self.frames.region.persist(&[Part::Zero { at: page.byte(), len: PAGE_SIZE }])?;
        self.publishes = true;
        self.frames.slots.add_new_page(page);
        self.frames.slot_pages[lane].store(page.0, Ordering::Relaxed);
        self.pages_made.push(page);
        let ino = Ino::new(page, 0, self.frames.next_generation(0));
        self.slots_taken.push(ino);
        Ok(ino)
    }

    /// The inode is no more: its slot is free once this commits.
    pub(crate) fn free_ino(&mut self, ino: Ino) -> TxResult<()> {
        self.put_inode(&InodeRec::free(ino))?;
        self.slots_freed.push(ino);
        Ok(())
    }

    // ---- nodes -------------------------------------------------------------------------------

    /// A page of metadata as this transaction sees it.
    pub(crate) fn page(&self, page: PageNo) -> Result<PageRef<'_>> {
        match self.lane.batch.get(page.byte()) {
            Some(staged) => Ok(staged.view()),
            None => self.frames.page(page),
        }
    }

    /// Whether the page is staged: it was verified when it was, and may not carry its checksum yet.
    pub(crate) fn is_staged(&self, page: PageNo) -> bool {
        self.lane.batch.get(page.byte()).is_some()
    }

    /// Whether the pool has no page left for this operation, none that waits for a checkpoint either.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// The allocator.
    pub(crate) fn frames(&self) -> &'p Frames {
        self.frames
    }

    /// Stages a node for changes.
    pub(crate) fn node_mut(&mut self, page: PageNo) -> TxResult<&mut Staged> {
        self.frames.page(page)?;
        if !self.is_staged(page) {
            self.nodes.push(page);
        }
        Ok(self.lane.batch.stage(&self.frames.region, page.byte(), PAGE_SIZE as usize)?)
    }

    /// A new, blank page for a node of `owner`'s trees.
    pub(crate) fn new_node(&mut self, owner: u64) -> TxResult<PageNo> {
        let page = self.take_pages(1, PageUse::Node, owner)?.page;
        if self.is_staged(page) {
            return Err(Error::corrupt(page.to_string(), "it was found free and is in use").into());
        }
        let staged = self.lane.batch.stage_blank(page.byte(), PAGE_SIZE as usize)?;
        staged.mark(0, node::SLOTS);
        self.nodes.push(page);
        Ok(page)
    }

    // ---- space -------------------------------------------------------------------------------

    /// Reserves up to `pages` pages for `owner`'s data from `file_page` on: if `whole` and there is
    /// one, a whole frame (`file_page` begins one), else a run out of a split frame.
    pub(crate) fn reserve_data(&mut self, owner: u64, file_page: u64, pages: u64, whole: bool) -> TxResult<Fresh> {
        if whole && self.leaves_room_for_nodes() {
            match self.take_frame(owner, file_page) {
                Ok(frame) => {
                    return Ok(Fresh { file_page, run: Run { page: frame.first_page(), pages: PAGES_PER_FRAME } });
                }
                Err(Stop::NoSpace) => {}
                Err(e) => return Err(e),
            }
        }
        let run = self.take_pages(pages, PageUse::Data, owner)?;
        Ok(Fresh { file_page, run })
    }

    /// Whether a whole frame leaves a few pages for the nodes that map it. Else its pages are better had one run at a
    /// time: of those, no more is taken than the data needs.
    fn leaves_room_for_nodes(&self) -> bool {
        let kept = self.frames.kept + self.frames.pins.withheld();
        self.frames.free.load(Ordering::Relaxed) >= kept + PAGES_PER_FRAME as i64 + NODES
    }

    /// Writes the contents of fresh pages, and of older ones that the file is about to reach, with
    /// one fence. `parts` define every byte that lies within the length the caller will set.
    pub(crate) fn fill(&mut self, fresh: SmallVec<[Fresh; 4]>, parts: &[Part<'_>]) -> TxResult<SmallVec<[Durable; 4]>> {
        if !parts.is_empty() {
            self.publishes = true;
            self.frames.region.persist(parts)?;
        }
        Ok(fresh.into_iter().map(|f| Durable { file_page: f.file_page, run: f.run }).collect())
    }

    /// Gives pages back when this commits. That they are the owner's is checked at commit.
    pub(crate) fn free(&mut self, run: Run, what: PageUse, owner: u64) {
        self.given.push(Given { run, what, owner });
    }

    /// Lets pages of `from` be those of `to` when this commits. That they are `from`'s is checked
    /// then; a whole frame changes hands in one piece.
    pub(crate) fn change_owner(&mut self, run: Run, what: PageUse, from: u64, to: u64) {
        self.moved.push(Moved { run, what, from, to });
    }

    fn charge(&mut self, pages: u64) -> TxResult<()> {
        let kept = if self.deleting { 0 } else { self.frames.kept } + self.frames.pins.withheld();
        // Never less for a moment than it is: somebody else would find the pool full.
        let take = |free: i64| Some(free - pages as i64).filter(|&left| left >= kept);
        if self.frames.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return Err(Stop::NoSpace);
        }
        self.reserved += pages as i64;
        Ok(())
    }

    fn take_frame(&mut self, owner: u64, file_page: u64) -> TxResult<FrameNo> {
        self.charge(PAGES_PER_FRAME)?;
        let frame = match self.frames.reserve_frame() {
            Ok(frame) => frame,
            Err(e) => {
                self.uncharge(PAGES_PER_FRAME);
                return Err(e);
            }
        };
        let run = Run { page: frame.first_page(), pages: PAGES_PER_FRAME };
        self.taken.push(Taken { run, what: PageUse::Data, owner, whole: Some(file_page) });
        Ok(frame)
    }

    fn take_pages(&mut self, want: u64, what: PageUse, owner: u64) -> TxResult<Run> {
        let lane = self.lane.index as usize;
        // One page is charged first; the others once we know how many there are in one run.
        if let Err(e) = self.charge(1) {
            self.full = true;
            return Err(e);
        }
        let run = match self.run_of_own(lane, want) {
            Err(Stop::NoSpace) => self.run_of_others(lane, want).ok_or(Stop::NoSpace),
            run => run,
        };
        let run = match run {
            Ok(run) => run,
            Err(e) => {
                self.uncharge(1);
                return Err(e);
            }
        };
        self.taken.push(Taken { run, what, owner, whole: None });
        if let Err(e) = self.charge(run.pages - 1) {
            self.taken.pop();
            self.give_back(&Taken { run, what, owner, whole: None });
            self.uncharge(1);
            return Err(e);
        }
        Ok(run)
    }

    fn run_of_own(&mut self, lane: usize, want: u64) -> TxResult<Run> {
        let mut cursor = self.frames.cursors[lane].lock();
        loop {
            if let Some(run) = cursor.take(want) {
                return Ok(run);
            }
            self.left.extend(cursor.frame);
            self.frames.refill(lane, &mut cursor, &self.taken)?;
        }
    }

    /// No frame has room but those that other lanes stand in: takes a run out of one of them. It is
    /// held, so that it is not found free should that lane leave the frame.
    fn run_of_others(&self, lane: usize, want: u64) -> Option<Run> {
        let others = self.frames.cursors.iter().enumerate().filter(|(i, _)| *i != lane);
        for (_, cursor) in others {
            let mut cursor = cursor.lock();
            if let Some(run) = cursor.take(want) {
                self.frames.hold_run(run);
                return Some(run);
            }
        }
        None
    }

    /// Takes pages back that were handed out and not published: to the lane that stands in their
    /// frame. Until then they are held, so nobody else has come to stand there.
    fn give_back(&self, taken: &Taken) {
        let frame = taken.run.page.frame().0;
        let lane = self.frames.active.iter().position(|a| a.load(Ordering::SeqCst) == frame);
        let mut cursor = lane.map(|lane| self.frames.cursors[lane].lock());
        self.frames.release(std::slice::from_ref(taken));
        if let Some(cursor) = &mut cursor {
            // A lost page that was free is handed out once, and not again.
            let pages = (0..taken.run.pages).map(|i| Run { page: taken.run.page.plus(i), pages: 1 });
            pages.filter(|run| !self.frames.is_lost(run.page)).for_each(|run| cursor.give_back(run));
        }
    }

    fn uncharge(&mut self, pages: u64) {
        self.reserved -= pages as i64;
        self.frames.free.fetch_add(pages as i64, Ordering::Relaxed);
    }

    // ---- commit ------------------------------------------------------------------------------

    /// Makes all of it happen, or none. Returns inode pages that have become empty.
    pub(super) fn commit(&mut self) -> TxResult<SmallVec<[PageNo; 1]>> {
        let frames = self.frames;
        let inodes = self.slots_taken.len() as i64 - self.slots_freed.len() as i64;
        if self.taken.is_empty() && self.given.is_empty() && self.lane.batch.is_empty() {
            return Ok(SmallVec::new());
        }
        let locked = frames.lock_stripes(&self.taken, &self.given, &self.moved, &self.left);
        let pages = frames.stage_owners(&mut self.lane.batch, &self.taken, &self.given, &self.left)?;
        frames.stage_moved(&mut self.lane.batch, &self.moved)?;
        let counts = Counts { pages, inodes, bases: self.bases.0, shared: self.bases.1 };
        if !counts.is_zero() {
            self.stage_counters(counts)?;
        }
        self.seal_nodes()?;
        frames.journal.log(&mut self.lane, self.publishes)?.apply();
        self.committed = true;
        drop(locked);
        // What was reserved was charged already; what really changed counts.
        // The totals are shared by all lanes: not touched for nothing.
        if self.reserved != pages {
            frames.free.fetch_add(self.reserved - pages, Ordering::Relaxed);
        }
        if !counts.is_zero() {
            let mut counters = frames.counters[self.lane.index as usize].lock();
            counters.counts = counters.counts.plus(counts);
        }
        self.settle();
        Ok(self.slots_freed.iter().filter_map(|&ino| frames.note_free_slot(ino)).collect())
    }

    fn seal_nodes(&mut self) -> TxResult<()> {
        for &page in &self.nodes {
            let staged = self.lane.batch.stage(&self.frames.region, page.byte(), PAGE_SIZE as usize)?;
            if staged.is_dirty() {
                let sum = node::checksum(staged.bytes()).unwrap_or_default();
                staged.write(node::CRC, &sum.to_le_bytes());
            }
        }
        Ok(())
    }

    fn stage_counters(&mut self, counts: Counts) -> TxResult<()> {
        let lane = self.lane.index;
        let mut counters = *self.frames.counters[lane as usize].lock();
        counters.counts = counters.counts.plus(counts);
        counters.slots = self.frames.slot_pages[lane as usize].load(Ordering::Relaxed);
        let at = COUNTERS.byte() + u64::from(lane) * 64;
        self.lane.batch.stage_blank(at, 64)?.write(0, &counters.sealed());
        Ok(())
    }

    fn settle(&self) {
        self.frames.release(&self.taken);
        for &ino in &self.slots_taken {
            self.frames.slots.settle(ino, true);
        }
        for &page in &self.pages_made {
            self.frames.slots.open_page(page);
        }
        let mut search = None;
        for taken in self.taken.iter().filter(|t| t.whole.is_some()) {
            search.get_or_insert_with(|| self.frames.search.lock()).unreserve(taken.run.page.frame());
        }
    }
}

impl Drop for Tx<'_> {
    /// Gives back what was reserved, if nothing was committed.
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        self.frames.free.fetch_add(self.reserved, Ordering::Relaxed);
        for taken in &self.taken {
            match taken.whole {
                Some(_) => self.frames.search.lock().unreserve(taken.run.page.frame()),
                None => self.give_back(taken),
            }
        }
        let lane = self.lane.index as usize;
        for &page in &self.pages_made {
            self.frames.slots.drop_page(page);
            self.frames.slot_pages[lane].store(0, Ordering::Relaxed);
        }
        for &ino in self.slots_taken.iter().filter(|i| !self.pages_made.contains(&i.page())) {
            self.frames.slots.settle(ino, false);
        }
    }
}
