//! The superblock: what the pool is and where its parts lie. Two copies, written once by create,
//! never changed afterwards, so no crash can be in the middle of it.
//!
//! ```text
//!   0  magic "PAGESTON"     40  size of the pool     72  lanes        96  checksum of 0..96
//!   8  version              48  descriptors (page)   76  lane pages  100  checksum of 104..112
//!  12  features: ignore     56  first frame          80  hash seed   104  salt of the records
//!  16  features: read-only  64  frames               88  created (s since 1970)
//!  20  features: refuse
//!  24  uuid
//! ```
//!
//! The uuid is no secret, the hash seed and the salt are: who knows the salt could store bytes that look like a record.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FIRST_LANE, FrameDesc, MAX_POOL, MIN_POOL, VERSION, crc32c};
use crate::error::{Error, Result};
use crate::units::{FRAME_SIZE, FrameNo, PAGE_SIZE, PageNo};

const MAGIC: [u8; 8] = *b"PAGESTON";

/// The record at the start of pages 0 and 255.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Superblock {
    magic: [u8; 8],
    version: u32,
    features_ignore: u32,
    features_read_only: u32,
    features_refuse: u32,
    pub(crate) uuid: [u8; 16],
    size: u64,
    descriptors: u64,
    first_frame: u64,
    frames: u64,
    lanes: u32,
    lane_pages: u32,
    pub(crate) hash_seed: u64,
    pub(crate) created: i64,
    crc: u32,
    salt_crc: u32,
    salt: u64,
}

const _: () = assert!(size_of::<Superblock>() == 112);

/// Feature to refuse: the records' salt stands in the superblock. Without it the salt is the first half of the uuid.
const SECRET_SALT: u32 = 1;

/// Where everything lies in this pool: computed from the size, compared with the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    /// Bytes of the pool, a multiple of a frame.
    pub(crate) size: u64,
    /// Journal lanes.
    pub(crate) lanes: u32,
    /// Pages of each.
    pub(crate) lane_pages: u32,
    /// First page of the descriptor array.
    pub(crate) descriptors: PageNo,
    /// First frame that can be owned.
    pub(crate) first_frame: FrameNo,
    /// Allocator of the pool, those of the metadata included.
    pub(crate) frames: u64,
}

impl Geometry {
    /// The layout of a pool of `size` bytes (rounded down to whole frames).
    pub(crate) fn for_size(size: u64) -> Result<Geometry> {
        if size < MIN_POOL {
            return Err(Error::Size(format!("{size} bytes are too few for a pool; the least is {MIN_POOL} (8 MiB)")));
        }
        if size > MAX_POOL {
            return Err(Error::Size(format!("{size} bytes are too many for a pool; the most is {MAX_POOL} (256 TiB)")));
        }
        let (lanes, lane_pages) = if size < 64 << 20 { (2, 64) } else { (8, 128) };
        let frames = size / FRAME_SIZE;
        let descriptors = FIRST_LANE.plus(u64::from(lanes * lane_pages));
        let end = descriptors.byte() + frames * FrameDesc::SIZE;
        let first_frame = FrameNo(end.div_ceil(FRAME_SIZE));
        Ok(Geometry { size: frames * FRAME_SIZE, lanes, lane_pages, descriptors, first_frame, frames })
    }

    /// First byte of lane `lane`.
    pub(crate) fn lane_at(&self, lane: u32) -> u64 {
        FIRST_LANE.byte() + u64::from(lane) * self.lane_len()
    }

    /// Bytes of a lane.
    pub(crate) fn lane_len(&self) -> u64 {
        u64::from(self.lane_pages) * PAGE_SIZE
    }

    /// Pages that can be owned.
    pub(crate) fn usable_pages(&self) -> u64 {
        (self.frames - self.first_frame.0) * (FRAME_SIZE / PAGE_SIZE)
    }

    /// Whether `frame` can be owned.
    pub(crate) fn owns(&self, frame: FrameNo) -> bool {
        frame >= self.first_frame && frame.0 < self.frames
    }
}

impl Superblock {
    /// The superblock of a new pool.
    pub(crate) fn new(geometry: &Geometry, uuid: [u8; 16], hash_seed: u64, salt: u64, created: i64) -> Superblock {
        let mut sb = Superblock {
            magic: MAGIC,
            version: VERSION,
            features_ignore: 0,
            features_read_only: 0,
            features_refuse: SECRET_SALT,
            uuid,
            size: geometry.size,
            descriptors: geometry.descriptors.0,
            first_frame: geometry.first_frame.0,
            frames: geometry.frames,
            lanes: geometry.lanes,
            lane_pages: geometry.lane_pages,
            hash_seed,
            created,
            crc: 0,
            salt_crc: crc32c(salt.as_bytes()),
            salt,
        };
        sb.crc = sb.sum();
        sb
    }

    fn sum(&self) -> u32 {
        crc32c(&self.as_bytes()[..96])
    }

    /// Whether these bytes begin like a superblock, intact or not.
    pub(crate) fn has_magic(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Reads one copy. The caller tries the other when this one fails.
    pub(crate) fn parse(bytes: &[u8], media_len: u64) -> Result<(Superblock, Geometry)> {
        let (sb, _) = Superblock::read_from_prefix(bytes)
            .map_err(|_| Error::Size(format!("{} bytes are too few for a superblock", bytes.len())))?;
        if sb.magic != MAGIC {
            return Err(Error::NotAPool("no superblock at its start (wrong magic)".into()));
        }
        if sb.crc != sb.sum() {
            return Err(Error::corrupt("superblock", "checksum does not match"));
        }
        if sb.version > VERSION {
            return Err(Error::TooNew(format!(
                "its format is version {}, this program reads up to {VERSION}",
                sb.version
            )));
        }
        if sb.version < VERSION {
            let what = format!("its format is version {}, older than this program reads ({VERSION})", sb.version);
            return Err(Error::NotAPool(what));
        }
        let unknown = sb.features_refuse & !SECRET_SALT;
        if unknown != 0 {
            return Err(Error::TooNew(format!("it uses features {unknown:#x}, unknown here")));
        }
        if sb.has_salt() && sb.salt_crc != crc32c(sb.salt.as_bytes()) {
            return Err(Error::corrupt("superblock", "checksum of the salt does not match"));
        }
        let geometry = Geometry::for_size(sb.size)?;
        let stated = (sb.descriptors, sb.first_frame, sb.frames, sb.lanes, sb.lane_pages);
        let g = &geometry;
        if stated != (g.descriptors.0, g.first_frame.0, g.frames, g.lanes, g.lane_pages) || sb.size != g.size {
            return Err(Error::corrupt("superblock", "its layout does not follow from its size"));
        }
        if media_len < sb.size {
            return Err(Error::Size(format!("the pool was {} bytes, only {media_len} are left (truncated?)", sb.size)));
        }
        Ok((sb, geometry))
    }

    /// Whether this version may only read the pool.
    pub(crate) fn read_only_here(&self) -> bool {
        self.features_read_only != 0
    }

    fn has_salt(&self) -> bool {
        self.features_refuse & SECRET_SALT != 0
    }

    /// What the journal's records of this pool carry.
    pub(crate) fn record_salt(&self) -> u64 {
        if self.has_salt() { self.salt } else { self.uuid.first_chunk().map_or(0, |half| u64::from_le_bytes(*half)) }
    }

    /// Format version.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }
}
