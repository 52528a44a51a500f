//! What a pool can say of itself.

use pmem::Description;
use serde::{Deserialize, Serialize};

use super::Engine;
use crate::attr::StatFs;
use crate::error::Result;
use crate::layout::FrameDesc;
use crate::mmap::MapMechanism;

/// What `pagestone info` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Info {
    /// What the pool lies on and what that promises.
    pub media: Description,
    /// Bytes of the pool.
    pub size: u64,
    /// Format version.
    pub version: u32,
    /// Pool identity, 32 hexadecimal digits.
    pub uuid: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Space in pages, and inodes.
    pub space: StatFs,
    /// Pages that a clone has, or had, in common with another; owned once, by neither.
    pub shared: u64,
    /// Pages known to be lost: listed by the kernel as bad, or met since the pool was opened.
    pub lost: u64,
    /// Bytes of the descriptor array on the media.
    pub descriptor_bytes: u64,
    /// The same per TiB of pool.
    pub descriptor_bytes_per_tib: u64,
    /// Bytes of DRAM that the engine holds; does not depend on the capacity.
    pub dram_bytes: u64,
    /// Journal lanes.
    pub lanes: u32,
    /// Bytes of each.
    pub lane_bytes: u64,
    /// How faults in mappings that this process makes would be answered.
    pub mappings: MapMechanism,
    /// Records replayed when the pool was opened.
    pub replayed: u64,
    /// Journal records written since the pool was made: one for each change, and some for work in the background.
    pub records: u64,
    /// Errors since the pool was opened of work that no caller waits for: giving back the space of what was
    /// deleted, merging what clones shared, the sync at an interval. A step that is tried again counts again.
    pub background_errors: u64,
    /// The last of them.
    pub last_background_error: Option<String>,
}

pub(super) fn info(engine: &Engine) -> Result<Info> {
    let geometry = &engine.alloc.geometry;
    let descriptor_bytes = geometry.descriptor_bytes(engine.alloc.frames());
    Ok(Info {
        media: engine.alloc.region.describe().clone(),
        size: engine.alloc.size(),
        version: engine.superblock.version(),
        uuid: engine.superblock.uuid.iter().map(|b| format!("{b:02x}")).collect(),
        created: engine.superblock.created,
        space: statfs(engine),
        shared: engine.alloc.counts().shared.max(0) as u64,
        lost: engine.alloc.region.lost_pages() as u64,
        descriptor_bytes,
        descriptor_bytes_per_tib: FrameDesc::SIZE << 19,
        dram_bytes: engine.alloc.dram_bytes() + (1024 * 64),
        lanes: geometry.lanes,
        lane_bytes: geometry.lane_len(),
        mappings: MapMechanism::here(),
        replayed: engine.replayed,
        records: engine.alloc.journal.last_sequence(),
        background_errors: engine.failures.count(),
        last_background_error: engine.failures.last(),
    })
}

/// See [`super::Pool::statfs`].
pub(super) fn statfs(engine: &Engine) -> StatFs {
    let (free, kept) = engine.alloc.space();
    let counts = engine.alloc.counts();
    StatFs {
        pages: engine.alloc.usable_pages(),
        free,
        available: free.saturating_sub(kept),
        // What clones share is no file.
        inodes: counts.inodes.saturating_sub(counts.bases).max(0) as u64,
    }
}
