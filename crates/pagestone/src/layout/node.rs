//! A B+tree node: one page, sorted slots growing up, entries growing down.
//!
//! ```text
//!   0 checksum      8 page (its own number)   24 count    26 heap: lowest entry byte
//!   4 magic         16 owner (inode place)    28 garbage  30 tree (0 map or names, 1 xattrs)
//!   6 level (0 leaf)
//!   64 slots, 4 bytes each: [ entry offset (16) | value length (16) ], in key order
//!      ...free...
//!   heap: entries, 8-aligned: [ key (8) ][ value ]
//! ```
//!
//! An insert dirties the header, the slots after the new one and the entry: a few lines, which is
//! what the journal has to carry. The checksum covers header, slots and heap but not the free
//! bytes between them.

/// Offsets of the header's fields, in bytes.
pub(crate) const CRC: usize = 0;
pub(crate) const MAGIC_AT: usize = 4;
pub(crate) const LEVEL: usize = 6;
pub(crate) const PAGE: usize = 8;
pub(crate) const OWNER: usize = 16;
pub(crate) const COUNT: usize = 24;
pub(crate) const HEAP: usize = 26;
pub(crate) const GARBAGE: usize = 28;
pub(crate) const TREE: usize = 30;
/// First slot.
pub(crate) const SLOTS: usize = 64;
/// Bytes of a slot.
pub(crate) const SLOT: usize = 4;
/// "ND".
pub(crate) const MAGIC: u16 = 0x444E;
/// Levels a tree can have; more is damage.
pub(crate) const MAX_DEPTH: u8 = 12;
/// Longest value: four entries must always fit in a node.
pub(crate) const MAX_VALUE: usize = 960;

/// The checksum of a node's header, slots and heap; `None` if its counts are impossible.
pub(crate) fn checksum(page: &[u8]) -> Option<u32> {
    let word = |at: usize| Some(usize::from(u16::from_le_bytes([*page.get(at)?, *page.get(at + 1)?])));
    let (slots_end, heap) = (SLOTS + word(COUNT)? * SLOT, word(HEAP)?);
    if slots_end > heap {
        return None;
    }
    let head = super::crc32c(page.get(MAGIC_AT..slots_end)?);
    Some(head ^ super::crc32c(page.get(heap..)?).rotate_left(1))
}
