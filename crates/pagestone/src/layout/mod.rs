//! Every type on the media, byte by byte. `docs/format.md` describes the same bytes.
//!
//! ```text
//!   page 0      superblock, first copy           written once, at creation
//!   page 1      journal header: checkpoint and sync marks, two slots each
//!   page 2      lane counters, one line per lane
//!   page 3      root inode page: inode 1 is the root directory, 2 the orphan index
//!   page 4      pool state (frames of the pool, forwarding table): first copy
//!   page 5..8   last requests of server threads
//!   page 254    as page 4, second copy
//!   page 255    superblock, second copy
//!   page 256    journal lanes, one after the other
//!   ...         frame descriptors of segment 0, 64 bytes for every frame
//!   first_frame the first 2 MiB frame that can be owned; from here on everything is allocated, except for
//!               the first frame of each further segment, which contains its descriptors
//! ```
//!
//! All numbers are little-endian. Every structure has a checksum, and its place or a second copy, so a flipped bit
//! and a misplaced write are both detected when it is read. An all-zero descriptor is a free frame and an all-zero inode
//! record a free slot, so formatting writes six pages however large the pool is.

mod descriptor;
mod forward;
mod geometry;
mod inode;
pub(crate) mod node;
mod page_state;
mod pool_state;
mod record;
mod superblock;

pub(crate) use descriptor::{FrameDesc, FrameState, PageEntry, PageUse};
pub(crate) use forward::{ForwardEntry, LEVELS as FORWARD_LEVELS, index as forward_index};
#[cfg(test)]
pub(crate) use geometry::SEGMENT;
pub(crate) use geometry::{Geometry, frames_of};
pub(crate) use inode::{INLINE_EXTENTS, InlineExtent, InodeRec, TreeRef};
pub(crate) use pool_state::PoolState;
pub(crate) use record::{
    CheckpointMark, Counts, LaneCounters, LastRequest, RECORD_MAGIC, RECORD_PUBLISHES, RecordHeader, SyncMark,
    entry_word,
};
pub(crate) use superblock::Superblock;

use crate::units::{Ino, PAGE_SIZE, PageNo};

const _: () = assert!(cfg!(target_endian = "little"), "the format is little-endian and read in place");

/// Format version that this build writes and reads.
pub(crate) const VERSION: u32 = 3;
/// Smallest pool: metadata and three frames.
pub(crate) const MIN_POOL: u64 = 8 << 20;
/// Largest pool: what an inode number can address.
pub(crate) const MAX_POOL: u64 = 1 << 48;

/// Addresses of the fixed structures.
pub(crate) const JOURNAL_HEADER: PageNo = PageNo(1);
pub(crate) const COUNTERS: PageNo = PageNo(2);
pub(crate) const ROOT_INODES: PageNo = PageNo(3);
/// One line for each server thread: its last request.
pub(crate) const REQUESTS: PageNo = PageNo(5);
/// Pages of these lines.
pub(crate) const REQUEST_PAGES: u64 = 4;
pub(crate) const SUPERBLOCKS: [PageNo; 2] = [PageNo(0), PageNo(255)];
pub(crate) const FIRST_LANE: PageNo = PageNo(256);

/// The root directory; its generation never changes.
pub(crate) const ROOT: Ino = Ino::new(ROOT_INODES, 1, 1);
/// The index of files that have no name but are still open.
pub(crate) const ORPHANS: Ino = Ino::new(ROOT_INODES, 2, 1);

/// CRC-32C (Castagnoli).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Address of an inode record, as a pool byte, unless its page was relocated.
pub(crate) fn inode_at(ino: Ino) -> u64 {
    ino.page().byte() + ino.slot() as u64 * InodeRec::SIZE
}

const _: () = assert!(InodeRec::SIZE * Ino::SLOTS_PER_PAGE == PAGE_SIZE);
