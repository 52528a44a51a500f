//! A sparse, copy-on-write image of a pool, and the small hashes that tell two images apart.
//!
//! ```text
//!   PageMap A   { 0 -> p0, 7 -> p7,  9 -> p9 }
//!                       \      |       |          one page is stored once, however many
//!   PageMap B   { 0 -> p0, 7 -> p7', 9 -> p9 }    images contain it
//! ```
//!
//! A page that is missing is zero. An image's hash is a *sum* over its words, so the hash of
//! "this image with that word changed" costs two multiplications and not a walk over the image.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Bytes of a page.
pub(crate) const PAGE: usize = pmem::PAGE_SIZE as usize;

/// One page, shared between images.
pub(crate) type Page = Arc<[u8; PAGE]>;

/// A map keyed by page or unit numbers.
pub(crate) type FastMap<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;
/// A set of page numbers or of hashes.
pub(crate) type FastSet = HashSet<u64, BuildHasherDefault<NumberHasher>>;

/// Hashes one number; the keys are our own, so nobody can aim at a weak spot.
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

/// The share of one stretch of bytes (whole aligned words) in the hash of an image.
pub(crate) fn share(at: u64, bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    for (i, word) in bytes.chunks_exact(8).enumerate() {
        let value = word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if value != 0 {
            // Zero words count nothing, so that a missing page and a page of zeros are equal.
            let place = scramble(at / 8 + i as u64 + 1);
            sum = sum.wrapping_add(scramble(value ^ place));
        }
    }
    sum
}

/// Random numbers whose sequence for a seed never changes, also not with a newer crate: a seed
/// printed by a failure must mean the same thing next year.
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
    /// The page for changing; copied first when another image shares it.
    pub(crate) fn page_mut(&mut self, page: u64) -> &mut [u8; PAGE] {
        Arc::make_mut(self.0.entry(page).or_insert_with(|| Arc::new([0; PAGE])))
    }
    /// Changes bytes that lie within one page.
    pub(crate) fn write_within(&mut self, at: u64, bytes: &[u8]) {
        let from = at as usize % PAGE;
        self.page_mut(at / PAGE as u64)[from..from + bytes.len()].copy_from_slice(bytes);
    }
    /// The bytes `at .. at + len`, which must lie within one page.
    pub(crate) fn slice(&self, at: u64, len: usize) -> &[u8] {
        static ZEROS: [u8; PAGE] = [0; PAGE];
        let from = at as usize % PAGE;
        let page = self.get(at / PAGE as u64).map_or(&ZEROS, |page| &**page);
        &page[from..from + len]
    }
}

/// Cuts `at .. at + len` at page boundaries: (pool byte, offset in the range, length).
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
