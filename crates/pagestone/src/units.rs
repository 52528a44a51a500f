//! Newtypes for every unit, so that a frame number cannot be used as a byte offset.
//!
//! ```text
//!   pool bytes   0 ........ 4 KiB ........ 2 MiB ............ len
//!   PageNo       0          1              512
//!   FrameNo      0                         1
//! ```
//!
//! Conversions are named and go in one direction each; arithmetic that could overflow on a number
//! read from the media is checked where it is read, not here.

use std::fmt;

/// Bytes in a page, the smallest unit that a file or a structure owns.
pub const PAGE_SIZE: u64 = pmem::PAGE_SIZE;
/// Bytes in a frame, the unit of the on-media descriptors and of huge pages.
pub const FRAME_SIZE: u64 = pmem::HUGE_PAGE_SIZE;
/// Pages in a frame.
pub(crate) const PAGES_PER_FRAME: u64 = FRAME_SIZE / PAGE_SIZE;
/// Bytes in a cache line, the unit of flushing and of journal payloads.
pub(crate) const LINE: u64 = 64;

/// A 4 KiB page of the pool, counted from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageNo(pub u64);

impl PageNo {
    /// First byte of the page, in pool bytes. A number that cannot be (from a damaged structure)
    /// gives a byte outside every pool.
    pub const fn byte(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE)
    }
    /// The frame that holds this page.
    pub const fn frame(self) -> FrameNo {
        FrameNo(self.0 / PAGES_PER_FRAME)
    }
    /// Which of its frame's 512 pages this is.
    pub const fn index_in_frame(self) -> usize {
        (self.0 % PAGES_PER_FRAME) as usize
    }
    /// The page `n` further on.
    pub const fn plus(self, n: u64) -> PageNo {
        PageNo(self.0.saturating_add(n))
    }
}

impl fmt::Display for PageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x}", self.0)
    }
}

/// A 2 MiB frame of the pool, counted from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FrameNo(pub u64);

impl FrameNo {
    /// The frame's first page.
    pub const fn first_page(self) -> PageNo {
        PageNo(self.0 * PAGES_PER_FRAME)
    }
    /// First byte of the frame, in pool bytes.
    pub const fn byte(self) -> u64 {
        self.0 * FRAME_SIZE
    }
    /// The frame's page number `index` (0 to 511).
    pub const fn page(self, index: usize) -> PageNo {
        PageNo(self.0 * PAGES_PER_FRAME + index as u64)
    }
}

impl fmt::Display for FrameNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {:#x}", self.0)
    }
}

/// An inode number: where the record lies, and which use of that place it is.
///
/// ```text
///   bit 63      62 ........ 40   39 ................. 4   3 .. 0
///       0       generation       page of the pool         slot
/// ```
///
/// A place is reused under another generation, so a number that outlives its file never finds
/// somebody else's. Looking one up costs no index: the number *is* the address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ino(pub u64);

impl Ino {
    /// Inode records in a page.
    pub const SLOTS_PER_PAGE: u64 = 16;
    const PLACE_BITS: u32 = 40;
    /// Largest generation; the next one after it is 1 again.
    pub const MAX_GENERATION: u32 = (1 << 23) - 1;

    /// The number of slot `slot` of `page` in its use `generation`.
    pub const fn new(page: PageNo, slot: usize, generation: u32) -> Ino {
        let place = page.0 * Self::SLOTS_PER_PAGE + slot as u64 % Self::SLOTS_PER_PAGE;
        Ino(((generation as u64) << Self::PLACE_BITS) | place)
    }
    /// The page and slot, without the generation: the key of locks and indexes.
    pub const fn place(self) -> u64 {
        self.0 & ((1 << Self::PLACE_BITS) - 1)
    }
    /// The page that holds the record.
    pub const fn page(self) -> PageNo {
        PageNo(self.place() / Self::SLOTS_PER_PAGE)
    }
    /// Which of its page's 16 records this is.
    pub const fn slot(self) -> usize {
        (self.0 % Self::SLOTS_PER_PAGE) as usize
    }
    /// Which use of the place this number means.
    pub const fn generation(self) -> u32 {
        (self.0 >> Self::PLACE_BITS) as u32 & Self::MAX_GENERATION
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {:#x}", self.0)
    }
}
