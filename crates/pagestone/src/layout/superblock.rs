//! The superblock: identity and fixed geometry of a pool. Two copies, written once at creation and never changed,
//! so no crash can leave it half written. The size is in [`PoolState`](super::PoolState).
//!
//! ```text
//!   0  magic "PAGESTON"     40  frames it was made with     72  lanes        96  salt of the records
//!   8  version              48  descriptors (page)          76  lane pages  104  zero (20 bytes)
//!  12  features: ignore     56  first frame                 80  hash seed   124  checksum of 0..124
//!  16  features: read-only  64  frames of segment 0         88  created (s since 1970)
//!  20  features: refuse
//!  24  uuid
//! ```
//!
//! The uuid is not secret. The hash seed and the salt are: with the salt, a user could store bytes that look like a
//! record.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::geometry::frames_of;
use super::{Geometry, VERSION, crc32c};
use crate::error::{Error, Place, Result};
use crate::units::FRAME_SIZE;

const MAGIC: [u8; 8] = *b"PAGESTON";

/// The advice for a pool of a version that this program does not read.
const OLDER: &str = "its format is version VERSION, which this program does not read. To move the data, copy it out with \
                     the program that made the pool (pagestone get -r -a POOL:/ DIR), make a new pool, and copy it in \
                     (pagestone put -r -a DIR POOL:/)";

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
    frames: u64,
    descriptors: u64,
    first_frame: u64,
    first_segment: u64,
    lanes: u32,
    lane_pages: u32,
    pub(crate) hash_seed: u64,
    pub(crate) created: i64,
    salt: u64,
    reserved: [u32; 5],
    crc: u32,
}

const _: () = assert!(size_of::<Superblock>() == 128);

impl Superblock {
    /// The superblock of a new pool.
    pub(crate) fn new(frames: u64, uuid: [u8; 16], hash_seed: u64, salt: u64, created: i64) -> Superblock {
        let geometry = Geometry::for_new_pool(frames);
        let mut sb = Superblock {
            magic: MAGIC,
            version: VERSION,
            features_ignore: 0,
            features_read_only: 0,
            features_refuse: 0,
            uuid,
            frames,
            descriptors: geometry.descriptors.0,
            first_frame: geometry.first_frame.0,
            first_segment: geometry.first_segment,
            lanes: geometry.lanes,
            lane_pages: geometry.lane_pages,
            hash_seed,
            created,
            salt,
            reserved: [0; 5],
            crc: 0,
        };
        sb.crc = sb.sum();
        sb
    }

    /// Whether the checksum is right at the position that versions 1 and 2 use.
    fn old_sum_is_right(&self) -> bool {
        let bytes = self.as_bytes();
        crc32c(&bytes[..96]).to_le_bytes() == bytes[96..100]
    }

    fn sum(&self) -> u32 {
        crc32c(&self.as_bytes()[..124])
    }

    /// Whether these bytes begin with the magic of a superblock, intact or not.
    pub(crate) fn has_magic(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Reads one copy. The caller tries the other one if this fails.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Superblock, Geometry)> {
        let (sb, _) = Superblock::read_from_prefix(bytes)
            .map_err(|_| Error::Size(format!("{} bytes are too few for a superblock", bytes.len())))?;
        if sb.magic != MAGIC {
            return Err(Error::NotAPool("no superblock at its start (wrong magic)".into()));
        }
        // Check the version first: the position of the checksum depends on it.
        match sb.version {
            VERSION => {}
            1 | 2 if sb.old_sum_is_right() || sb.crc == sb.sum() => {
                return Err(Error::TooOld(OLDER.replace("VERSION", &sb.version.to_string())));
            }
            _ if sb.crc != sb.sum() => return Err(Error::corrupt(Place::Superblock, "checksum does not match")),
            newer => {
                return Err(Error::TooNew(format!("its format is version {newer}, this program reads {VERSION}")));
            }
        }
        if sb.crc != sb.sum() {
            return Err(Error::corrupt(Place::Superblock, "checksum does not match"));
        }
        if sb.features_refuse != 0 {
            return Err(Error::TooNew(format!("it uses features {:#x}, unknown here", sb.features_refuse)));
        }
        let frames = frames_of(sb.frames.saturating_mul(FRAME_SIZE))?;
        let g = Geometry::for_new_pool(frames);
        let stated = (sb.descriptors, sb.first_frame, sb.first_segment, sb.lanes, sb.lane_pages);
        if stated != (g.descriptors.0, g.first_frame.0, g.first_segment, g.lanes, g.lane_pages) {
            return Err(Error::corrupt(Place::Superblock, "its layout does not follow from its size"));
        }
        Ok((sb, g))
    }

    /// Whether this version may only read the pool.
    pub(crate) fn read_only_here(&self) -> bool {
        self.features_read_only != 0
    }

    /// The salt of the journal's records in this pool.
    pub(crate) fn record_salt(&self) -> u64 {
        self.salt
    }

    /// Format version.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if somebody with a pool of an older or a newer version is told that it is damaged.
    #[test]
    fn pools_of_other_versions_are_refused_with_what_to_do() {
        let parse = |sb: &Superblock| Superblock::parse(sb.as_bytes()).map(|_| ());
        let mut sb = Superblock::new(64, [1; 16], 2, 3, 4);
        assert!(parse(&sb).is_ok());
        for version in [1, 2, VERSION + 1] {
            sb.version = version;
            assert!(matches!(parse(&sb), Err(Error::Corrupt { .. })), "{version}: no checksum is right");
            let resealed = Superblock { crc: sb.sum(), ..sb };
            let mut old = sb;
            let sum = crc32c(&old.as_bytes()[..96]).to_le_bytes();
            old.as_mut_bytes()[96..100].copy_from_slice(&sum);
            match version {
                1 | 2 => {
                    for sb in [resealed, old] {
                        let Err(Error::TooOld(text)) = parse(&sb) else { panic!("version {version}") };
                        assert!(text.contains(&format!("version {version}")) && text.contains("get -r -a"), "{text}");
                    }
                }
                _ => assert!(matches!(parse(&resealed), Err(Error::TooNew(_)))),
            }
        }
    }
}
