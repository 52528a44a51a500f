//! What was verified since the pool was opened, and is not verified again.
//!
//! ```text
//!   Item --hash--> [ slot | slot | ... ]   a slot names one item; another item of the same slot replaces it
//! ```
//!
//! All media are read through checks. This saves the checksum of what is read again and again. An entry is a hint that
//! may go at any time, so its size does not depend on the pool.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::units::PageNo;

const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 15;
const EMPTY: u64 = u64::MAX;

/// What was verified.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    /// The checksum of the tree node on this page.
    Node(PageNo),
    /// That the page with this number holds inodes, by its descriptor.
    InodePage(PageNo),
    /// The checksum of the inode record at this place; see [`crate::units::Ino::place`].
    Inode(u64),
}

impl Item {
    /// Pages and places have less than 62 bits.
    fn key(self) -> u64 {
        match self {
            Item::Node(page) => page.0,
            Item::InodePage(page) => page.0 | 1 << 62,
            Item::Inode(place) => place | 2 << 62,
        }
    }
}

/// The cache.
#[derive(Debug)]
pub(super) struct Verified(Vec<AtomicU64>);

impl Verified {
    /// DRAM it takes, in bytes.
    pub(super) const DRAM_BYTES: usize = SLOTS * size_of::<AtomicU64>();

    pub(super) fn new() -> Verified {
        Verified((0..SLOTS).map(|_| AtomicU64::new(EMPTY)).collect())
    }

    /// Everything is verified again when it is read next.
    pub(super) fn clear(&self) {
        self.0.iter().for_each(|slot| slot.store(EMPTY, Ordering::Release));
    }

    fn slot(&self, key: u64) -> &AtomicU64 {
        &self.0[(key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SLOT_BITS)) as usize]
    }

    /// Whether the item was verified and nothing has taken that back.
    pub(super) fn contains(&self, item: Item) -> bool {
        let key = item.key();
        self.slot(key).load(Ordering::Acquire) == key
    }

    /// The item was verified.
    pub(super) fn insert(&self, item: Item) {
        let key = item.key();
        // Sequentially consistent: who inserts looks afterwards whether the item was removed meanwhile.
        self.slot(key).store(key, Ordering::SeqCst);
    }

    /// The item has to be verified again.
    pub(super) fn remove(&self, item: Item) {
        let key = item.key();
        let _ = self.slot(key).compare_exchange(key, EMPTY, Ordering::SeqCst, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if one kind of item passes for another one.
    #[test]
    fn an_item_is_known_by_its_kind_and_number_until_it_is_removed() {
        let verified = Verified::new();
        let page = PageNo(77);
        let items = [Item::Node(page), Item::InodePage(page), Item::Inode(page.0)];
        for item in items {
            assert!(items.iter().all(|&other| !verified.contains(other)));
            verified.insert(item);
            assert_eq!(items.iter().filter(|&&other| verified.contains(other)).count(), 1);
            verified.remove(Item::Node(PageNo(78)));
            assert!(verified.contains(item));
            verified.remove(item);
        }
    }

    /// Fails if an item stays known after another one has taken its slot.
    #[test]
    fn one_slot_names_one_item() {
        let verified = Verified::new();
        let pages = 4 * SLOTS as u64;
        (0..pages).for_each(|page| verified.insert(Item::Node(PageNo(page))));
        let known = (0..pages).filter(|&page| verified.contains(Item::Node(PageNo(page)))).count();
        assert!((SLOTS / 2..=SLOTS).contains(&known), "{known} of {SLOTS}");
    }
}
