//! Notifies mappings of changes of their file, and gives storage to what one of them stored to.
//!
//! ```text
//!   lock the inode        nobody may fault in what is about to change
//!     invalidate          pages that will be freed become inaccessible in every mapping
//!     transactions        (if they fail: revalidate)
//!     notify_mappings     tail zeroed; grown: growth made accessible; filled: new pages mapped
//!   unlock
//! ```
//!
//! A file that nobody has mapped pays one load.

use std::ops::Range;

use pmem::Part;
use smallvec::SmallVec;

use crate::alloc::TxResult;
use crate::attr::Time;
use crate::backing::Contents;
use crate::data::preallocate::MEMORY;
use crate::data::truncate::regular;
use crate::data::write::Parts;
use crate::engine::{Engine, InodeWrite, MappingObservers};
use crate::error::Result;
use crate::extent::extent_map::{self, Map, in_tx};
use crate::extent::resolve::Span;
use crate::layout::InodeRec;
use crate::txn::{Fresh, Tx};
use crate::units::{PAGE_SIZE, PAGES_PER_FRAME};

/// Whether pages get storage because somebody stores there: the file's time changes then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stores {
    /// The stores follow, or may follow at any moment.
    Follow,
    /// They are only read.
    No,
}

impl Engine {
    /// Storage of the file for these pages: what the backing answers for absent ones, copies of shared ones.
    /// Every mapping sees it on return. The pages read as before, and the length stays.
    pub(crate) fn materialize(&self, held: InodeWrite<'_>, pages: Range<u64>, stores: Stores) -> Result<()> {
        let ino = held.ino();
        let observers = self.opens.observers(ino);
        let mut page = pages.start;
        while page < pages.end {
            let reached = {
                let _chain = self.chain_of(held)?;
                self.alloc.transact(false, |tx| {
                    let mut rec = regular(tx, ino)?;
                    let reached = own_pages(tx, &mut rec, page, pages.end)?;
                    if stores == Stores::Follow {
                        rec.touch(Time::now());
                    }
                    tx.put_inode(&rec)?;
                    Ok(reached)
                })?
            };
            let rec = self.alloc.inode(ino)?;
            observers.iter().for_each(|w| w.filled(held, self, &rec, page..reached));
            page = reached;
        }
        Ok(())
    }

    /// Has every mapping map the new storage of these pages.
    pub(crate) fn remap_pages(&self, held: InodeWrite<'_>, pages: Range<u64>) -> Result<()> {
        let ino = held.ino();
        let rec = self.alloc.inode(ino)?;
        self.opens.observers(ino).iter().for_each(|w| w.filled(held, self, &rec, pages.clone()));
        Ok(())
    }

    /// Runs `change`, which gives these pages back, with every mapping kept from them.
    pub(crate) fn with_invalidated<R>(
        &self,
        held: InodeWrite<'_>,
        observers: &MappingObservers,
        pages: Range<u64>,
        change: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        observers.iter().for_each(|w| w.invalidate(held, pages.clone()));
        let result = change();
        if result.is_err() {
            observers.iter().for_each(|w| w.revalidate(held, pages.clone()));
        }
        result
    }

    /// The inode has changed: its length was `old_len`, and these pages may have new storage.
    pub(crate) fn notify_mappings(
        &self,
        held: InodeWrite<'_>,
        observers: &MappingObservers,
        old_len: u64,
        pages: Range<u64>,
    ) -> Result<()> {
        let ino = held.ino();
        if observers.is_empty() {
            return Ok(());
        }
        if self.alloc.inode(ino)?.size != old_len {
            self.zero_tail(held)?;
        }
        let rec = self.alloc.inode(ino)?;
        let (before, now) = (old_len.div_ceil(PAGE_SIZE), rec.size.div_ceil(PAGE_SIZE));
        if now > before {
            observers.iter().for_each(|w| w.grown(held, before..now));
        }
        if !pages.is_empty() {
            observers.iter().for_each(|w| w.filled(held, self, &rec, pages.clone()));
        }
        Ok(())
    }

    /// Zeros what lies behind the end in the last page: a mapping shows it.
    pub(crate) fn zero_tail(&self, held: InodeWrite<'_>) -> Result<()> {
        let rec = self.alloc.inode(held.ino())?;
        let (last, within) = (rec.size / PAGE_SIZE, rec.size % PAGE_SIZE);
        if within == 0 || self.alloc.region.describe().read_only {
            return Ok(());
        }
        let span = {
            let _chain = self.chain(&rec);
            Map { nodes: &self.alloc, alloc: &self.alloc, rec: &rec }.span(last)?
        };
        match span {
            Span::Own(run) => {
                let (at, len) = (run.page.byte() + within, PAGE_SIZE - within);
                let mut tail = [0; PAGE_SIZE as usize];
                let tail = &mut tail[..len as usize];
                self.alloc.region.read_data(at, tail)?;
                if tail.iter().any(|&byte| byte != 0) {
                    self.alloc.region.persist(&[Part::Zero { at, len }])?;
                }
                Ok(())
            }
            // What lies behind the end there is inside another file.
            Span::Shared(_) => self.materialize(held, last..last + 1, Stores::Follow),
            // No mapping shows it before it has storage, zeros aside.
            Span::Absent { .. } => Ok(()),
        }
    }
}

/// Pages of the file's own in `[page, stop)`, as many as one record takes; returns how far.
fn own_pages(tx: &mut Tx<'_>, rec: &mut InodeRec, mut page: u64, stop: u64) -> TxResult<u64> {
    let mut fresh: SmallVec<[Fresh; 4]> = SmallVec::new();
    // In the order of `fresh`.
    let (mut contents, mut memory): (SmallVec<[Contents; 4]>, u64) = (SmallVec::new(), 0);
    while page < stop && tx.has_room(16 << 10) && memory < MEMORY {
        let span = in_tx(tx, rec).span(page)?;
        let want = span.pages().min(stop - page);
        if matches!(span, Span::Own(_)) {
            page += want;
            continue;
        }
        let whole = want >= PAGES_PER_FRAME && page.is_multiple_of(PAGES_PER_FRAME);
        let f = tx.reserve_data(rec.owner(), page, want.min(PAGES_PER_FRAME), whole)?;
        let begins = span.contents(tx.alloc(), page, f.run.pages, rec.size)?;
        memory += begins.memory();
        contents.push(begins);
        page += f.run.pages;
        fresh.push(f);
    }
    let mut parts = Parts::new();
    parts.extend(fresh.iter().zip(&contents).map(|(f, c)| c.part(f.run.page.byte(), 0..f.run.pages * PAGE_SIZE)));
    for durable in tx.fill(fresh, &parts)? {
        extent_map::insert(tx, rec, durable)?;
    }
    Ok(page)
}
