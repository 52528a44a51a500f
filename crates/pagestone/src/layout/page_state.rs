//! The page states of a cache or a checksummed volume: one entry for each page that it stores.
//!
//! ```text
//!   entry, 16 bytes per 4 KiB page:   0 crc of the page    4 state    5 zero (3)    8 epoch
//!   a chunk of 512 pages: two pages of entries, in the file's map under the key 2^63 + chunk
//! ```
//!
//! A record that writes a page changes its entry's line, which contains four entries. Pools created by this version
//! have none. A program that writes them must set a feature bit, so that other programs reject the pool.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The state of one page of a cached or checksummed file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum PageState {
    /// Not stored: the backing has it.
    Absent = 0,
    /// Equal to the backing.
    Clean = 1,
    /// Newer than in the backing.
    Dirty = 2,
    /// Newer, and being written to the backing.
    Writeback = 3,
}

/// The entry of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct PageStateEntry {
    /// CRC-32C of the page's bytes; 0 for an absent one.
    pub(crate) crc: u32,
    state: u8,
    zero: [u8; 3],
    /// The epoch that the page belongs to.
    pub(crate) epoch: u64,
}

const _: () = assert!(size_of::<PageStateEntry>() == 16);

#[cfg_attr(not(test), expect(dead_code, reason = "the format has room for what caches write"))]
impl PageStateEntry {
    /// An entry.
    pub(crate) fn new(state: PageState, epoch: u64, crc: u32) -> PageStateEntry {
        PageStateEntry { crc, state: state as u8, zero: [0; 3], epoch }
    }

    /// The state; `None` for an invalid value.
    pub(crate) fn state(&self) -> Option<PageState> {
        let state = match self.state {
            0 => PageState::Absent,
            1 => PageState::Clean,
            2 => PageState::Dirty,
            3 => PageState::Writeback,
            _ => return None,
        };
        let absent = self.crc == 0 && self.epoch == 0;
        (self.zero == [0; 3] && (state != PageState::Absent || absent)).then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_was_put_in_and_zeros_are_an_absent_page() {
        for state in [PageState::Clean, PageState::Dirty, PageState::Writeback] {
            assert_eq!(PageStateEntry::new(state, 7, 9).state(), Some(state));
        }
        assert_eq!(PageStateEntry::new_zeroed().state(), Some(PageState::Absent));
        assert_eq!(PageStateEntry::new(PageState::Absent, 1, 0).state(), None);
        let unknown: PageStateEntry = zerocopy::transmute!([[0u8, 0, 0, 0, 4, 0, 0, 0], [0; 8]]);
        assert_eq!(unknown.state(), None);
    }
    use zerocopy::FromZeros;
}
