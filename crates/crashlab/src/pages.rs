//! A sparse, copy-on-write image of a pool, and the hashes that distinguish images.
//!
//! ```text
//!   PageMap A   { 0 -> p0, 7 -> p7,  9 -> p9 }
//!                       \      |       |          one page is stored once, however many
//!   PageMap B   { 0 -> p0, 7 -> p7', 9 -> p9 }    images contain it
//! ```
//!
//! A missing page is zero. The hash of an image is a *sum* over its words, so the hash after the change of one word
//! costs two multiplications and no pass over the image.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Size of a page in bytes.
pub(crate) const PAGE: usize = pmem::PAGE_SIZE as usize;

/// One page, shared between images.
pub(crate) type Page = Arc<[u8; PAGE]>;

/// A map keyed by page or unit numbers.
pub(crate) type FastMap<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;
/// A set of page numbers or of hashes.
pub(crate) type FastSet = HashSet<u64, BuildHasherDefault<NumberHasher>>;

/// Hashes one number. The keys are internal, so no collisions can be provoked.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = scramble(self.0.rotate_left(5) ^ number);
    }
}

/// A bijection that spreads every input bit (the finalizer of splitmix64).
pub(crate) fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The contribution of some bytes (whole aligned words) to the hash of an image.
pub(crate) fn share(at: u64, bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    for (i, word) in bytes.chunks_exact(8).enumerate() {
        let value = word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if value != 0 {
            // Zero words contribute 0, so that a missing page and a page of zeros are equal.
            let place = scramble(at / 8 + i as u64 + 1);
            sum = sum.wrapping_add(scramble(value ^ place));
        }
    }
    sum
}

/// Random numbers with a fixed sequence for each seed, independent of crate versions: a seed that a failure has
/// printed stays valid.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(scramble(seed ^ 0x9e37_79b9_7f4a_7c15))
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }
    /// A number below `end`, which must not be zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        debug_assert!(end > 0);
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// A sparse image.
#[derive(Clone, Default)]
pub(crate) struct PageMap(FastMap<Page>);

impl PageMap {
    pub(crate) fn get(&self, page: u64) -> Option<&Page> {
        self.0.get(&page)
    }
    pub(crate) fn insert(&mut self, page: u64, bytes: Page) {
        self.0.insert(page, bytes);
    }
    pub(crate) fn remove(&mut self, page: u64) {
        self.0.remove(&page);
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Page)> {
        self.0.iter().map(|(page, bytes)| (*page, bytes))
    }
    /// The page for writing. It is copied first if another image shares it.
    pub(crate) fn page_mut(&mut self, page: u64) -> &mut [u8; PAGE] {
        Arc::make_mut(self.0.entry(page).or_insert_with(|| Arc::new([0; PAGE])))
    }
    /// Changes bytes within one page.
    pub(crate) fn write_within(&mut self, at: u64, bytes: &[u8]) {
        let from = at as usize % PAGE;
        self.page_mut(at / PAGE as u64)[from..from + bytes.len()].copy_from_slice(bytes);
    }
    /// The bytes `at .. at + len`, which must be within one page.
    pub(crate) fn slice(&self, at: u64, len: usize) -> &[u8] {
        static ZEROS: [u8; PAGE] = [0; PAGE];
        let from = at as usize % PAGE;
        let page = self.get(at / PAGE as u64).map_or(&ZEROS, |page| &**page);
        &page[from..from + len]
    }
}

/// Splits `at .. at + len` at page boundaries: (pool byte, offset in the range, length).
pub(crate) fn by_page(at: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let here = at + done;
        let size = (PAGE as u64 - here % PAGE as u64).min(len - done);
        let piece = (here, done as usize, size as usize);
        done += size;
        (size > 0).then_some(piece)
    })
}
