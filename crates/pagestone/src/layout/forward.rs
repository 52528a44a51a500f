//! The forwarding table: the current pages of inode pages that were relocated from the frames that their numbers
//! name.
//!
//! ```text
//!   page number of an inode, 36 bits:   [ 9 | 9 | 9 | 9 ]      four levels of tables, as a processor's page tables
//!   table: 512 words of 8 bytes         bits 0..39 page of the next table, at the last level the inode page
//!                                       bits 40..55 zero     bits 56..63 check of the rest and the position
//! ```
//!
//! A zero word means: not relocated.

use crate::error::{Error, Place, Result};
use crate::units::PageNo;

/// Number of levels.
pub(crate) const LEVELS: u32 = 4;

/// The index, in its table at `level` (0: the last), of the word for the inode page numbered `page`.
pub(crate) fn index(page: PageNo, level: u32) -> usize {
    (page.0 >> (9 * level)) as usize & 511
}

/// One word of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ForwardEntry(pub(crate) u64);

impl ForwardEntry {
    /// The word at `index` of the table at `table` that refers to `to`.
    pub(crate) fn new(table: PageNo, index: usize, to: PageNo) -> ForwardEntry {
        ForwardEntry(to.0 | Self::check(to.0, table, index) << 56)
    }

    fn check(word: u64, table: PageNo, index: usize) -> u64 {
        let place = (table.0 << 9 | index as u64).rotate_left(24);
        ((word ^ place).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 56
    }

    /// The page it refers to; `None` for a word of zeros.
    pub(crate) fn parse(self, table: PageNo, index: usize) -> Result<Option<PageNo>> {
        if self.0 == 0 {
            return Ok(None);
        }
        let word = self.0 & ((1 << 56) - 1);
        if word >> 40 != 0 || Self::check(word, table, index) != self.0 >> 56 {
            return Err(Error::corrupt(Place::ForwardingWord { table, index }, "check does not match"));
        }
        Ok(Some(PageNo(word)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_leads_where_it_was_said_to_and_nowhere_from_another_place() {
        let (table, to) = (PageNo(700), PageNo(0x0F_FFFF_FFFF));
        let entry = ForwardEntry::new(table, 5, to);
        assert_eq!(entry.parse(table, 5).expect("is whole"), Some(to));
        let elsewhere = [(table, 6), (PageNo(701), 5)];
        assert!(elsewhere.iter().any(|&(table, index)| entry.parse(table, index).is_err()));
        let wrong = (0..56).filter(|bit| ForwardEntry(entry.0 ^ 1 << bit).parse(table, 5).is_ok()).count();
        assert!(wrong <= 2, "{wrong} flipped bits of 56 were not found");
        assert_eq!(ForwardEntry(0).parse(table, 5).expect("is whole"), None);
    }

    #[test]
    fn every_level_takes_nine_bits_of_the_number() {
        let page = PageNo(0b1_0000_0001 << 27 | 0b10 << 18 | 0b11 << 9 | 0b100);
        assert_eq!([3, 2, 1, 0].map(|level| index(page, level)), [257, 2, 3, 4]);
    }
}
