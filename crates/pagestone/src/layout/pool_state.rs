//! The layout state: the variable part of a pool's layout. Has the number of frames and the root of the forwarding
//! table.
//!
//! ```text
//!   0 checksum of 4..64   4 zero   8 frames   16 root of the forwarding table, or 0   24 pages forwarded   32 zero
//! ```
//!
//! There are two copies, on different pages. A record that changes the state changes both, so they differ only
//! after damage.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::record::one_line;
use super::{MAX_POOL, MIN_POOL, crc32c};
use crate::units::{FRAME_SIZE, PageNo};

/// The line at the start of pages 4 and 254.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct PoolState {
    crc: u32,
    zero: u32,
    pub(crate) frames: u64,
    forward_root: u64,
    /// Number of inode pages that were relocated.
    pub(crate) forwarded: u64,
    zero2: [u64; 4],
}
one_line!(PoolState);

impl PoolState {
    /// The pages that begin with a copy.
    pub(crate) const PAGES: [PageNo; 2] = [PageNo(4), PageNo(254)];

    /// The state of a new pool of `frames` frames, without its checksum.
    pub(crate) fn new(frames: u64) -> PoolState {
        PoolState { crc: 0, zero: 0, frames, forward_root: 0, forwarded: 0, zero2: [0; 4] }
    }

    /// The root of the forwarding table, if there is one.
    pub(crate) fn forward_root(&self) -> Option<PageNo> {
        Some(PageNo(self.forward_root)).filter(|page| page.0 != 0)
    }

    /// The root of the forwarding table, if a page is forwarded.
    pub(crate) fn active_root(&self) -> Option<PageNo> {
        self.forward_root().filter(|_| self.forwarded > 0)
    }

    /// See [`Self::forward_root`].
    pub(crate) fn set_forward_root(&mut self, page: PageNo) {
        self.forward_root = page.0;
    }

    /// Whether the state is valid for a pool.
    pub(crate) fn is_possible(&self) -> bool {
        (MIN_POOL / FRAME_SIZE..=MAX_POOL / FRAME_SIZE).contains(&self.frames) && self.forwarded < 1 << 40
    }
}
