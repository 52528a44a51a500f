//! Free inode slots: which of the sixteen records of an inode page can be used next.
//!
//! ```text
//!   page ->  free     ................   slots without an inode
//!            reserved ................   slots that a running transaction fills
//! ```
//!
//! A lane fills one page after the other. The table contains pages that were touched since the pool was opened, up
//! to a limit. It is a hint where free slots are; the record on the media decides.

use std::sync::atomic::Ordering;

use super::Allocator;
use super::verified::Item;
use crossbeam_utils::CachePadded;
use smallvec::SmallVec;

use crate::address_hash::AddressMap;
use crate::error::{Error, Result};
use crate::layout::{FrameState, PageEntry, PageUse, ROOT_INODES};
use crate::lock::{Mutex, rank};
use crate::units::{Ino, PageNo};

const SHARDS: usize = 16;
/// Limit on pages per shard. Other pages enter the table when one of their inodes is freed.
const PAGES_PER_SHARD: usize = 1024;

#[derive(Clone, Copy, Debug, Default)]
struct SlotPage {
    free: u16,
    reserved: u16,
}

/// The table of pages that may have free slots.
#[derive(Debug)]
pub(super) struct Slots {
    shards: Vec<CachePadded<Mutex<rank::Leaf, AddressMap<PageNo, SlotPage>>>>,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { shards: (0..SHARDS).map(|_| CachePadded::default()).collect() }
    }
}

impl Slots {
    fn shard(&self, page: PageNo) -> &Mutex<rank::Leaf, AddressMap<PageNo, SlotPage>> {
        &self.shards[page.0 as usize % SHARDS]
    }

    /// Adds a page that the running transaction creates. The transaction takes slot 0; the other slots are not
    /// available yet.
    pub(super) fn add_new_page(&self, page: PageNo) {
        let mut shard = self.shard(page).lock();
        if shard.len() >= PAGES_PER_SHARD {
            shard.retain(|_, p| p.reserved != 0);
        }
        shard.insert(page, SlotPage { free: 0, reserved: u16::MAX });
    }

    /// The transaction that created `page` has committed: makes its other slots available. They were not before,
    /// because an inode that another lane committed there would be on an unowned page.
    pub(super) fn open_page(&self, page: PageNo, allocated: u16) {
        self.shard(page).lock().insert(page, SlotPage { free: !allocated, reserved: 0 });
    }

    /// The transaction that created `page` was aborted.
    pub(super) fn drop_page(&self, page: PageNo) {
        self.shard(page).lock().remove(&page);
    }

    /// Reserves a free slot: of `preferred` if it has one, else of any page in the shard of lane `lane`.
    pub(super) fn take(&self, preferred: PageNo, lane: usize) -> Option<(PageNo, usize)> {
        let from = |page: PageNo, p: &mut SlotPage| {
            let slot = p.free.trailing_zeros() as usize;
            p.free &= !(1 << slot);
            p.reserved |= 1 << slot;
            Some((page, slot))
        };
        if let Some(p) = self.shard(preferred).lock().get_mut(&preferred).filter(|p| p.free != 0) {
            return from(preferred, p);
        }
        let mut shard = self.shards[lane % SHARDS].lock();
        let (&page, p) = shard.iter_mut().find(|(_, p)| p.free != 0)?;
        from(page, p)
    }

    /// Ends the reservation of a slot. `used`: its transaction has committed; otherwise it was aborted.
    pub(super) fn end(&self, ino: Ino, used: bool) {
        let mut shard = self.shard(ino.page()).lock();
        let Some(p) = shard.get_mut(&ino.page()) else { return };
        let mask = 1 << ino.slot();
        p.reserved &= !mask;
        if !used {
            p.free |= mask;
        } else if p.free == 0 && p.reserved == 0 {
            shard.remove(&ino.page());
        }
    }

    pub(super) fn dram_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.lock().capacity() as u64 * 24).sum()
    }
}

/// The inode slots that one transaction allocates and frees.
#[derive(Debug)]
pub(crate) struct SlotReservation<'p> {
    alloc: &'p Allocator,
    lane: usize,
    allocated: SmallVec<[Ino; 2]>,
    freed: SmallVec<[Ino; 2]>,
    /// Pages that the transaction creates.
    pages: SmallVec<[PageNo; 1]>,
    committed: bool,
}

impl<'p> SlotReservation<'p> {
    /// An empty reservation.
    #[inline]
    pub(crate) fn new(alloc: &'p Allocator, lane: usize) -> SlotReservation<'p> {
        let (allocated, freed, pages) = (SmallVec::new(), SmallVec::new(), SmallVec::new());
        SlotReservation { alloc, lane, allocated, freed, pages, committed: false }
    }

    /// Reserves a free slot on a page of the table, or on one that the transaction creates.
    pub(crate) fn take_known(&mut self) -> Result<Option<Ino>> {
        if let Some(&page) = self.pages.last() {
            let slot = self.reserved_on(page).trailing_ones() as usize;
            if slot < 16 {
                let ino = Ino::new(page, slot, self.alloc.next_generation(0));
                self.allocated.push(ino);
                return Ok(Some(ino));
            }
        }
        let ino = self.alloc.known_slot(self.lane)?;
        self.allocated.extend(ino);
        Ok(ino)
    }

    /// The slots of a page that the transaction has reserved.
    fn reserved_on(&self, page: PageNo) -> u16 {
        self.allocated.iter().filter(|ino| ino.page() == page).fold(0, |bits, ino| bits | 1 << ino.slot())
    }

    /// Reserves the first slot of a page that the transaction creates.
    pub(crate) fn take_of_new_page(&mut self, page: PageNo) -> Ino {
        self.alloc.slots.add_new_page(page);
        self.alloc.slot_pages[self.lane].store(page.0, Ordering::Relaxed);
        self.pages.push(page);
        let ino = Ino::new(page, 0, self.alloc.next_generation(0));
        self.allocated.push(ino);
        ino
    }

    /// Frees the slot when the transaction commits.
    pub(crate) fn free(&mut self, ino: Ino) {
        self.freed.push(ino);
    }

    /// By how many inodes the transaction changes the pool's count.
    pub(crate) fn balance(&self) -> i64 {
        self.allocated.len() as i64 - self.freed.len() as i64
    }

    /// Called after the record was applied. Returns the pages that have become empty.
    pub(crate) fn commit(&mut self) -> SmallVec<[PageNo; 1]> {
        self.committed = true;
        self.allocated.iter().for_each(|&ino| self.alloc.slots.end(ino, true));
        self.pages.iter().for_each(|&page| self.alloc.slots.open_page(page, self.reserved_on(page)));
        self.freed.iter().filter_map(|&ino| self.alloc.note_free_slot(ino)).collect()
    }
}

impl Drop for SlotReservation<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for &page in &self.pages {
            self.alloc.slots.drop_page(page);
            self.alloc.slot_pages[self.lane].store(0, Ordering::Relaxed);
        }
        for &ino in self.allocated.iter().filter(|i| !self.pages.contains(&i.page())) {
            self.alloc.slots.end(ino, false);
        }
    }
}

impl Allocator {
    /// Notes that the slot's inode was freed on the media. Returns the page if it has become empty and no lane is
    /// filling it: it is unreachable then, and the caller frees it.
    pub(super) fn note_free_slot(&self, ino: Ino) -> Option<PageNo> {
        let page = ino.page();
        if page == ROOT_INODES {
            return None;
        }
        let mut shard = self.slots.shard(page).lock();
        if !shard.contains_key(&page) {
            if shard.len() >= PAGES_PER_SHARD {
                return None;
            }
            // Another thread may have found the page empty and freed it meanwhile.
            if !self.holds_inodes(page).unwrap_or(false) {
                return None;
            }
            // A page that is not in the table has no reserved slots, so the media are right about all sixteen.
            shard.insert(page, SlotPage { free: self.free_slots(page), reserved: 0 });
        }
        let p = shard.get_mut(&page)?;
        let mask = 1 << ino.slot();
        // Another thread may have reserved the slot again already: the record decides.
        if p.reserved & mask == 0 && self.slot_is_free(ino) {
            p.free |= mask;
        }
        let (empty, full) = (p.free == u16::MAX, p.free == 0 && p.reserved == 0);
        let filling = self.slot_pages.iter().any(|s| s.load(Ordering::Relaxed) == page.0);
        if empty && !filling {
            // No other thread takes a slot of the page, or finds it empty, until it has been freed.
            *p = SlotPage { free: 0, reserved: u16::MAX };
            return Some(page);
        }
        if full {
            shard.remove(&page);
        }
        None
    }

    /// Returns [`Error::Stale`] if the page of `ino` is known not to hold inodes. The caller need not hold a lock of the
    /// inode: whoever frees or moves an inode page calls [`Allocator::forget_inode_page`] afterwards, for the page that
    /// it was on and for the one that it is on.
    pub(super) fn check_inode_page(&self, ino: Ino) -> Result<()> {
        let page = ino.page();
        if self.verified.contains(Item::InodePage(page)) {
            return Ok(());
        }
        if !self.may_hold_inodes(page) {
            return Err(Error::Stale(ino.0));
        }
        self.verified.insert(Item::InodePage(page));
        // The page may have been freed since the check above, and removed from the cache before it was entered.
        if !self.may_hold_inodes(page) {
            self.forget_inode_page(page);
            return Err(Error::Stale(ino.0));
        }
        Ok(())
    }

    /// Whether the descriptors allow `page` to hold inodes. A damaged descriptor allows it: the records have
    /// checksums themselves.
    fn may_hold_inodes(&self, page: PageNo) -> bool {
        self.holds_inodes(page).unwrap_or(true)
    }

    /// Whether the page that stores the inodes of `page` is an inode page.
    fn holds_inodes(&self, page: PageNo) -> Result<bool> {
        let (number, page) = (page, self.inode_page(page)?);
        let desc = self.descriptor(page.frame())?;
        if desc.state() != FrameState::Split {
            return Ok(false);
        }
        let entry = PageEntry(self.page(desc.table())?.u64(page.index_in_frame() * 8));
        let holds = entry.parse(page)?.is_some_and(|(what, _)| what == PageUse::Inodes);
        // Inodes with other numbers may lie there by now.
        Ok(holds && (!self.forwards() || self.number_of_inode_page(page)? == number))
    }

    /// Continues with the pages that the lanes were filling at the end of the last session, so that a session does
    /// not leave partial pages behind.
    pub(super) fn resume_inode_pages(&self) {
        for (lane, counters) in self.counters.iter().enumerate() {
            let page = PageNo(counters.lock().slots);
            if page != PageNo(0) && self.holds_inodes(page).unwrap_or(false) {
                let free = self.free_slots(page);
                self.slots.shard(page).lock().insert(page, SlotPage { free, reserved: 0 });
                self.slot_pages[lane].store(page.0, Ordering::Relaxed);
            }
        }
    }

    /// The free slots of a page, from the records on the media.
    fn free_slots(&self, page: PageNo) -> u16 {
        let free = (0..16).filter(|&slot| self.slot_is_free(Ino::new(page, slot, 0)));
        free.fold(0, |bits, slot| bits | 1 << slot)
    }

    pub(crate) fn forget_inode_page(&self, page: PageNo) {
        self.verified.remove(Item::InodePage(page));
        for place in (0..16).map(|slot| Ino::new(page, slot, 0).place()) {
            self.verified.remove(Item::Inode(place));
        }
    }

    fn slot_is_free(&self, ino: Ino) -> bool {
        self.slot_record(ino).is_ok_and(|rec| rec.is_free())
    }

    /// Removes a page that holds no inodes any more, or must not be filled.
    pub(crate) fn drop_inode_page(&self, page: PageNo) {
        self.slots.drop_page(page);
    }

    /// Reserves a free slot on a known page; its number gets a new generation. `None` if a page has to be created.
    pub(super) fn known_slot(&self, lane: usize) -> Result<Option<Ino>> {
        let preferred = PageNo(self.slot_pages[lane].load(Ordering::Relaxed));
        while let Some((page, slot)) = self.slots.take(preferred, lane) {
            let place = Ino::new(page, slot, 0);
            match self.slot_record(place) {
                Ok(rec) if rec.is_free() => {
                    return Ok(Some(Ino::new(page, slot, self.next_generation(rec.generation))));
                }
                // The slot is unusable. Another page may be readable.
                Ok(_) | Err(Error::Lost(_)) => self.slots.end(place, true),
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The generation after `last`. The first generation on a page is scattered, so that a page that was freed and
    /// created again does not repeat inode numbers that a handle or mount may still have.
    pub(super) fn next_generation(&self, last: u32) -> u32 {
        let next = match last {
            0 => (self.journal.last_sequence().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 41) as u32,
            _ => last + 1,
        };
        (next & Ino::MAX_GENERATION).max(1)
    }
}
