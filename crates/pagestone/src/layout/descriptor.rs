//! Frame descriptors and split tables: the owner of each frame, and of each page of a split frame.
//!
//! ```text
//!   frame descriptor, 64 bytes per 2 MiB               split entry, 8 bytes per 4 KiB
//!     0  checksum (salted with the frame number)         bits  0..3   use (0: free)
//!     4  state: free, whole, split, retired, lent        bits  4..43  owner: address of the inode
//!     6  used pages (split)                              bits 44..55  zero
//!     8  owner: address of the inode (whole)             bits 56..63  check of the other bits and
//!    16  first file page (whole)                                      of the page's number
//!    24  page of the split table (split)
//!    32  session (lent)
//! ```
//!
//! The table of a split frame is one of the frame's pages, so splitting and coalescing need no space elsewhere: a
//! part of a whole frame can be freed even in a full pool.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::crc32c;
use crate::error::{Error, Place, Result};
use crate::units::{FrameNo, PAGES_PER_FRAME, PageNo};

/// The use of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum FrameState {
    /// Without an owner.
    Free = 0,
    /// All 512 pages belong to one file.
    Whole = 1,
    /// The table has the owner of each page.
    Split = 2,
    /// Taken out of use after a media error.
    Retired = 3,
    /// Lent as memory in the session that the descriptor names; free in every other session.
    Lent = 4,
}

/// The on-media record of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct FrameDesc {
    crc: u32,
    state: u8,
    zero: u8,
    /// Pages in use, the table included (split).
    pub(crate) used: u16,
    /// Address of the owning inode (whole).
    pub(crate) owner: u64,
    /// File page at which the frame is mapped (whole).
    pub(crate) file_page: u64,
    table: u64,
    session: u64,
    reserved: [u64; 3],
}

const _: () = assert!(size_of::<FrameDesc>() as u64 == FrameDesc::SIZE);

impl FrameDesc {
    /// Bytes on the media.
    pub(crate) const SIZE: u64 = 64;
    /// A free frame: all zeros.
    pub(crate) const FREE: FrameDesc = FrameDesc {
        crc: 0,
        state: 0,
        zero: 0,
        used: 0,
        owner: 0,
        file_page: 0,
        table: 0,
        session: 0,
        reserved: [0; 3],
    };

    /// A frame that belongs to one file.
    pub(crate) fn whole(frame: FrameNo, owner: u64, file_page: u64) -> FrameDesc {
        FrameDesc { state: FrameState::Whole as u8, owner, file_page, ..Self::FREE }.sealed(frame)
    }

    /// A split frame with `used` pages in use (including the table).
    pub(crate) fn split(frame: FrameNo, table: PageNo, used: u16) -> FrameDesc {
        FrameDesc { state: FrameState::Split as u8, used, table: table.0, ..Self::FREE }.sealed(frame)
    }

    /// A retired frame: the media have lost a part of it.
    pub(crate) fn retired(frame: FrameNo) -> FrameDesc {
        FrameDesc { state: FrameState::Retired as u8, ..Self::FREE }.sealed(frame)
    }

    /// A frame that a session lends as memory.
    #[cfg(test)]
    pub(crate) fn lent(frame: FrameNo, session: u64) -> FrameDesc {
        FrameDesc { state: FrameState::Lent as u8, session, ..Self::FREE }.sealed(frame)
    }

    /// The descriptor as it counts in `session`: frames lent in an earlier session are free.
    pub(crate) fn in_session(self, session: u64) -> FrameDesc {
        if self.state() == FrameState::Lent && self.session != session { Self::FREE } else { self }
    }

    fn sum(&self, frame: FrameNo) -> u32 {
        crc32c(&self.as_bytes()[4..]) ^ (frame.0 as u32).wrapping_mul(0x9E37_79B1)
    }

    fn sealed(mut self, frame: FrameNo) -> FrameDesc {
        self.crc = self.sum(frame);
        self
    }

    /// Checks a record read from the media: checksum, state, and that the table lies inside.
    pub(crate) fn parse(bytes: &[u8; 64], frame: FrameNo) -> Result<FrameDesc> {
        let desc: FrameDesc = zerocopy::transmute!(*bytes);
        if desc == Self::FREE {
            return Ok(desc);
        }
        let wrong = |what: &str| Err(Error::corrupt(Place::Descriptor(frame), what));
        if desc.crc != desc.sum(frame) {
            return wrong("checksum does not match");
        }
        match desc.state {
            1 | 3 | 4 => Ok(desc),
            2 if PageNo(desc.table).frame() != frame => wrong("its table lies outside the frame"),
            2 if desc.used == 0 || desc.used > 512 => wrong("impossible count of used pages"),
            2 => Ok(desc),
            _ => wrong("unknown state"),
        }
    }

    /// The use of the frame. [`FrameDesc::parse`] has checked the record.
    pub(crate) fn state(&self) -> FrameState {
        match self.state {
            0 => FrameState::Free,
            1 => FrameState::Whole,
            2 => FrameState::Split,
            4 => FrameState::Lent,
            _ => FrameState::Retired,
        }
    }

    /// Pages of the frame that the counters of the pool have as used. A lent frame has none: no transaction takes or frees
    /// it, and the next open finds it free. (Until then it is in use all the same, and cannot be cut off.)
    pub(crate) fn counted_pages(&self) -> u64 {
        match self.state() {
            FrameState::Free | FrameState::Lent => 0,
            FrameState::Split => u64::from(self.used),
            FrameState::Whole | FrameState::Retired => PAGES_PER_FRAME,
        }
    }

    /// The page that holds the split table.
    pub(crate) fn table(&self) -> PageNo {
        PageNo(self.table)
    }
}

/// The use of a page of a split frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum PageUse {
    /// Bytes of a file, or a long symlink's target.
    Data = 1,
    /// Sixteen inode records.
    Inodes = 2,
    /// A node of a B+tree.
    Node = 3,
    /// This frame's split table.
    Table = 4,
    /// Retired: the media have lost it.
    Retired = 5,
    /// A forwarding table of relocated inode pages.
    Forward = 6,
}

/// One page's entry in a split table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageEntry(pub(crate) u64);

impl PageEntry {
    /// A free page.
    pub(crate) const FREE: PageEntry = PageEntry(0);

    /// The entry of `page`, used for `what` by the inode at `owner` (0 for inode pages and tables).
    pub(crate) fn new(page: PageNo, what: PageUse, owner: u64) -> PageEntry {
        let word = what as u64 | (owner & ((1 << 40) - 1)) << 4;
        PageEntry(word | Self::check(word, page) << 56)
    }

    fn check(word: u64, page: PageNo) -> u64 {
        // A multiplicative hash: any flipped bit of the word changes the top byte with
        // probability 255/256, and an entry copied to another page does too.
        ((word ^ page.0.rotate_left(32)).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 56
    }

    /// Use and owner; `None` for a free page.
    pub(crate) fn parse(self, page: PageNo) -> Result<Option<(PageUse, u64)>> {
        if self == Self::FREE {
            return Ok(None);
        }
        let word = self.0 & ((1 << 56) - 1);
        let what = match word & 15 {
            1 => PageUse::Data,
            2 => PageUse::Inodes,
            3 => PageUse::Node,
            4 => PageUse::Table,
            5 => PageUse::Retired,
            6 => PageUse::Forward,
            _ => return Err(Error::corrupt(Place::SplitEntry(page), "unknown use")),
        };
        if word >> 44 != 0 || Self::check(word, page) != self.0 >> 56 {
            return Err(Error::corrupt(Place::SplitEntry(page), "check does not match"));
        }
        Ok(Some((what, word >> 4)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_an_earlier_session_lent_is_free() {
        let frame = FrameNo(7);
        let bytes: [u8; 64] = zerocopy::transmute!(FrameDesc::lent(frame, 3));
        let desc = FrameDesc::parse(&bytes, frame).expect("is whole");
        assert_eq!(desc.in_session(3).state(), FrameState::Lent);
        assert_eq!(desc.in_session(4), FrameDesc::FREE);
        assert_eq!((desc.counted_pages(), FrameDesc::whole(frame, 1, 0).counted_pages()), (0, PAGES_PER_FRAME));
        let split = FrameDesc::split(frame, frame.first_page(), 1);
        assert_eq!(split.in_session(4), split);
    }
}
