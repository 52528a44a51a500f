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

use pmem::{PageBuf, PageRef, Part};
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use crate::alloc::{Allocator, Reservation, Run, SlotReservation, TxResult, live};
use crate::error::{Error, Place, Result};
use crate::journal::{Lane, MAX_RECORD, Staged};
use crate::layout::{Counts, InodeRec, PageUse, PoolState, node};
use crate::lock::MutexGuard;
use crate::units::{Ino, PAGE_SIZE, PageNo};

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
    alloc: &'p Allocator,
    // Before the lane: what is dropped gives back to the lane's cursor.
    space: Reservation<'p>,
    slots: SlotReservation<'p>,
    lane: MutexGuard<'p, Lane>,
    publishes: bool,
    /// Staged nodes; they get their checksums at commit.
    nodes: SmallVec<[PageNo; 8]>,
    /// Staged inodes, bases excluded, while somebody asks.
    changed: SmallVec<[Ino; 4]>,
    /// Bases and their pages, by the records staged.
    bases: (i64, i64),
    /// The state of the layout, if it changes.
    pub(super) state: Option<PoolState>,
    /// Pages in use that are counted no more: they are cut off.
    forgotten: i64,
}

impl<'p> Tx<'p> {
    #[inline]
    pub(super) fn new(alloc: &'p Allocator, mut lane: MutexGuard<'p, Lane>, deleting: bool) -> Tx<'p> {
        lane.batch.clear();
        let index = lane.index as usize;
        Tx {
            alloc,
            space: Reservation::new(alloc, index, deleting),
            slots: SlotReservation::new(alloc, index),
            lane,
            publishes: false,
            nodes: SmallVec::new(),
            changed: SmallVec::new(),
            bases: (0, 0),
            state: None,
            forgotten: 0,
        }
    }

    /// The allocator.
    pub(crate) fn alloc(&self) -> &'p Allocator {
        self.alloc
    }

    /// Whether the record has room for about `bytes` more, besides what is staged.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.lane.batch.record_bound() + self.space.record_bound() + bytes < MAX_RECORD - 8 * PAGE_SIZE
    }

    /// Pages of the smallest piece that the media can map.
    pub(crate) fn map_alignment(&self) -> u64 {
        self.alloc.region.map_alignment().map_or(1, |bytes| bytes / PAGE_SIZE)
    }

    /// Whether the pool has no page left for this operation, none that waits for a checkpoint either.
    pub(super) fn is_exhausted(&self) -> bool {
        self.space.is_exhausted()
    }

    // ---- inodes ------------------------------------------------------------------------------

    /// The live inode `ino`, with this transaction's changes.
    pub(crate) fn inode(&self, ino: Ino) -> Result<InodeRec> {
        match self.lane.batch.get(self.alloc.inode_at(ino)?) {
            Some(staged) => {
                let mut rec = InodeRec::free(ino);
                rec.as_mut_bytes().copy_from_slice(&staged.bytes()[..256]);
                rec.check(ino.place(), true)?;
                live(&rec, ino)?;
                Ok(rec)
            }
            None => self.alloc.inode(ino),
        }
    }

    /// Stages the record; lines that do not change stay out of the journal.
    pub(crate) fn put_inode(&mut self, rec: &InodeRec) -> TxResult<()> {
        let sealed = rec.sealed();
        let at = self.alloc.inode_at(rec.ino())?;
        let staged = self.lane.batch.stage(&self.alloc.region, at, 256)?;
        let mut old = InodeRec::free(rec.ino());
        old.as_mut_bytes().copy_from_slice(&staged.bytes()[..256]);
        if old.is_base() || rec.is_base() {
            let ((was, had), (is, has)) = (old.counts_as_base(), rec.counts_as_base());
            // A record of a hostile image may count anything.
            self.bases = (self.bases.0 + is - was, self.bases.1.saturating_add(has - had));
        }
        if !rec.is_base() && self.alloc.changed.is_recording() {
            self.changed.push(rec.ino());
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
        if let Some(ino) = self.slots.take_known()? {
            return Ok(ino);
        }
        let page = self.allocate_inode_page(None)?;
        // Written beside the journal: the record only says whose page it is.
        self.alloc.region.persist(&[Part::Zero { at: page.byte(), len: PAGE_SIZE }])?;
        self.publishes = true;
        Ok(self.slots.take_of_new_page(page))
    }

    /// A page for inodes; not one whose number others than those of `number` bear, which lie elsewhere.
    pub(super) fn allocate_inode_page(&mut self, number: Option<PageNo>) -> TxResult<PageNo> {
        let mut refused: SmallVec<[Run; 1]> = SmallVec::new();
        let found = loop {
            let run = match self.space.allocate_pages(1, PageUse::Inodes, 0) {
                Ok(run) => run,
                Err(stop) => break Err(stop),
            };
            match self.alloc.forwarded_to(run.page) {
                Ok(None) => break Ok(run.page),
                Ok(Some(_)) if number == Some(run.page) => break Ok(run.page),
                Ok(Some(_)) => refused.push(run),
                Err(e) => break Err(e.into()),
            }
        };
        refused.into_iter().for_each(|run| self.space.unallocate(run));
        found
    }

    /// The inode is no more: its slot is free once this commits.
    pub(crate) fn free_ino(&mut self, ino: Ino) -> TxResult<()> {
        self.put_inode(&InodeRec::free(ino))?;
        self.slots.free(ino);
        Ok(())
    }

    // ---- other pages -------------------------------------------------------------------------

    /// Stages a whole line, whatever the media hold there.
    pub(super) fn stage_line(&mut self, at: u64, line: &[u8; 64]) -> TxResult<()> {
        self.lane.batch.stage_blank(at, line.len())?.write(0, line);
        Ok(())
    }

    /// Stages a page that is no node for changes.
    pub(super) fn stage_page(&mut self, page: PageNo) -> TxResult<&mut Staged> {
        self.alloc.page(page)?;
        Ok(self.lane.batch.stage(&self.alloc.region, page.byte(), PAGE_SIZE as usize)?)
    }

    /// A new page of zeros.
    pub(super) fn new_blank_page(&mut self, what: PageUse, owner: u64) -> TxResult<PageNo> {
        let page = self.space.allocate_pages(1, what, owner)?.page;
        if self.is_staged(page) {
            return Err(Error::corrupt(Place::Page(page), "it was found free and is in use").into());
        }
        let staged = self.lane.batch.stage_blank(page.byte(), PAGE_SIZE as usize)?;
        staged.mark(0, PAGE_SIZE as usize);
        Ok(page)
    }

    /// Writes a whole page beside the journal; the record says whose it is.
    pub(super) fn persist_page(&mut self, page: PageNo, bytes: &PageBuf) -> TxResult<()> {
        self.publishes = true;
        Ok(self.alloc.region.persist(&[Part::Bytes { at: page.byte(), bytes: &bytes.0 }])?)
    }

    /// Counts so many pages in use no more: they are cut off when this commits.
    pub(crate) fn forget_pages(&mut self, pages: i64) {
        self.forgotten += pages;
    }

    // ---- nodes -------------------------------------------------------------------------------

    /// A page of metadata as this transaction sees it.
    pub(crate) fn page(&self, page: PageNo) -> Result<PageRef<'_>> {
        match self.lane.batch.get(page.byte()) {
            Some(staged) => Ok(staged.view()),
            None => self.alloc.page(page),
        }
    }

    /// Whether the page is staged: it was verified when it was, and may not carry its checksum yet.
    pub(crate) fn is_staged(&self, page: PageNo) -> bool {
        self.lane.batch.get(page.byte()).is_some()
    }

    /// Stages a node for changes.
    pub(crate) fn node_mut(&mut self, page: PageNo) -> TxResult<&mut Staged> {
        self.alloc.page(page)?;
        if !self.is_staged(page) {
            self.nodes.push(page);
        }
        Ok(self.lane.batch.stage(&self.alloc.region, page.byte(), PAGE_SIZE as usize)?)
    }

    /// A new, blank page for a node of `owner`'s trees.
    pub(crate) fn new_node(&mut self, owner: u64) -> TxResult<PageNo> {
        let page = self.space.allocate_pages(1, PageUse::Node, owner)?.page;
        if self.is_staged(page) {
            return Err(Error::corrupt(Place::Page(page), "it was found free and is in use").into());
        }
        let staged = self.lane.batch.stage_blank(page.byte(), PAGE_SIZE as usize)?;
        staged.mark(0, node::SLOTS);
        self.nodes.push(page);
        Ok(page)
    }

    // ---- space -------------------------------------------------------------------------------

    /// See [`Reservation::allocate_data`].
    pub(crate) fn reserve_data(&mut self, owner: u64, file_page: u64, pages: u64, whole: bool) -> TxResult<Fresh> {
        let run = self.space.allocate_data(owner, file_page, pages, whole)?;
        Ok(Fresh { file_page, run })
    }

    /// If this transaction has reserved the page: how many pages it has from there on in one run. Nobody else sees them.
    pub(crate) fn pages_of_this(&self, page: PageNo) -> Option<u64> {
        self.space.allocated_from(page)
    }

    /// Writes the contents of fresh pages, and of older ones that the file is about to reach, with
    /// one fence. `parts` define every byte that lies within the length the caller will set.
    pub(crate) fn fill(&mut self, fresh: SmallVec<[Fresh; 4]>, parts: &[Part<'_>]) -> TxResult<SmallVec<[Durable; 4]>> {
        if !parts.is_empty() {
            self.publishes = true;
            self.alloc.region.persist(parts)?;
        }
        Ok(fresh.into_iter().map(|f| Durable { file_page: f.file_page, run: f.run }).collect())
    }

    /// The record makes data reachable that was stored outside of transactions, and fenced.
    pub(crate) fn publish_data(&mut self) {
        self.publishes = true;
    }

    /// See [`Reservation::free`].
    pub(crate) fn free(&mut self, run: Run, what: PageUse, owner: u64) {
        self.space.free(run, what, owner);
    }

    /// See [`Reservation::reown`].
    pub(crate) fn change_owner(&mut self, run: Run, what: PageUse, from: u64, to: u64) {
        self.space.reown(run, what, from, to);
    }

    // ---- commit ------------------------------------------------------------------------------

    /// Makes all of it happen, or none. Returns inode pages that have become empty.
    pub(super) fn commit(&mut self) -> TxResult<SmallVec<[PageNo; 1]>> {
        if self.space.is_empty() && self.lane.batch.is_empty() {
            return Ok(SmallVec::new());
        }
        let (locked, pages) = self.space.stage(&mut self.lane.batch)?;
        let counts = Counts {
            pages: pages - self.forgotten,
            inodes: self.slots.balance(),
            bases: self.bases.0,
            shared: self.bases.1,
        };
        if !counts.is_zero() {
            self.alloc.stage_counters(&mut self.lane, counts)?;
        }
        self.seal_nodes()?;
        self.alloc.journal.log(&mut self.lane, self.publishes)?.apply();
        drop(locked);
        if !self.changed.is_empty() {
            self.alloc.changed.add(&self.changed);
        }
        if let Some(state) = self.state {
            self.alloc.set_state(state);
        }
        self.space.commit(pages);
        if !counts.is_zero() {
            self.alloc.add_counts(self.lane.index, counts);
        }
        Ok(self.slots.commit())
    }

    fn seal_nodes(&mut self) -> TxResult<()> {
        for &page in &self.nodes {
            let staged = self.lane.batch.stage(&self.alloc.region, page.byte(), PAGE_SIZE as usize)?;
            if staged.is_dirty() {
                let sum = node::checksum(staged.bytes()).unwrap_or_default();
                staged.write(node::CRC, &sum.to_le_bytes());
            }
        }
        Ok(())
    }
}
