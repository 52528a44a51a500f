//! Making a pool: a few pages are written, however large it is.
//!
//! ```text
//!   0  the file is made or lengthened
//!   1  both superblocks zeroed                                                  (a reused range)   durable
//!   2  pages 1 to the first frame zeroed, and the descriptors of other segments (a reused range)
//!   3  root inode, orphan index, pool state, checkpoint mark                                       durable
//!   4  superblock, second copy                                                                     durable: a pool
//!   5  superblock, first copy                                                                      durable
//! ```
//!
//! The steps are those of *Create* in `docs/format.md`. A crash after step 1 and before step 4 leaves no pool.

use std::io;
use std::path::Path;
use std::sync::Arc;

use pmem::{Durability, Media, MediaKind, Part, Region};
use zerocopy::IntoBytes;

use super::{OpenOptions, Pool};
use crate::alloc::zero_segments;
use crate::attr::{FileType, Time};
use crate::error::{Error, Result};
use crate::layout::{
    CheckpointMark, Geometry, InodeRec, JOURNAL_HEADER, ORPHANS, PoolState, ROOT, SUPERBLOCKS, Superblock, frames_of,
    inode_at,
};
use crate::units::PAGE_SIZE;

/// How to make a pool.
///
/// ```
/// let options = pagestone::CreateOptions::new().size(16 << 20).force(true);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CreateOptions {
    size: Option<u64>,
    force: bool,
    media: Option<MediaKind>,
}

impl CreateOptions {
    /// A pool of the size of what is there (a device, an existing file) that overwrites nothing.
    pub fn new() -> CreateOptions {
        CreateOptions::default()
    }

    /// Size in bytes. A file that is shorter is lengthened.
    pub fn size(mut self, bytes: u64) -> CreateOptions {
        self.size = Some(bytes);
        self
    }

    /// Whether to overwrite a pool, or anything else, that is there.
    pub fn force(mut self, force: bool) -> CreateOptions {
        self.force = force;
        self
    }

    /// What kind of media the path is; `None` finds out.
    pub fn media(mut self, kind: impl Into<Option<MediaKind>>) -> CreateOptions {
        self.media = kind.into();
        self
    }
}

pub(super) fn create(path: &Path, options: &CreateOptions) -> Result<Pool> {
    // A size that cannot be is refused before a file is made or lengthened.
    if let Some(size) = options.size {
        frames_of(size)?;
    }
    if !options.force && holds_something(path) {
        return Err(Error::Exists);
    }
    let how = pmem::Open { read_only: false, kind: options.media, size: options.size, room: 0, lock: None };
    let opened = pmem::open(path, &how).map_err(|e| match Error::from(e) {
        // Somebody has made the file since it was looked for.
        Error::Path { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => Error::Exists,
        other => other,
    })?;
    let region = Region::new(opened.media.clone());
    let size = options.size.unwrap_or(region.len()).min(region.len());
    // Asked again now that nobody else can be here: somebody may have made a pool since, even in the file that was
    // made by this call.
    let blank = is_blank(&region);
    if !options.force && !blank {
        return Err(Error::Exists);
    }
    let made = format(&region, size, !opened.created || !blank);
    let made = made.and_then(|()| super::open::open_media(opened.media, &OpenOptions::default(), true));
    if made.is_err() && opened.created {
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Whether something is there that must not be overwritten by mistake: a pool, even one whose
/// first superblock is damaged, or anything else that is not zeros where others keep theirs.
fn holds_something(path: &Path) -> bool {
    let opened = pmem::open(path, &pmem::Open { read_only: true, ..Default::default() });
    opened.is_ok_and(|opened| !is_blank(&Region::new(opened.media)))
}

fn is_blank(region: &Region) -> bool {
    let mut bytes = vec![0; BLANK.min(region.len()) as usize];
    region.read_data(0, &mut bytes).is_ok() && bytes.iter().all(|&b| b == 0)
}

/// Bytes that must be zeros for `create` to take them without `force`: both superblocks lie within.
const BLANK: u64 = SUPERBLOCKS[1].byte() + PAGE_SIZE;

pub(super) fn create_on(media: Arc<dyn Media>, options: &CreateOptions) -> Result<Pool> {
    let region = Region::new(media.clone());
    let size = options.size.unwrap_or(region.len());
    if size > region.len() {
        return Err(Error::Size(format!("the media has {} bytes, {size} were asked for", region.len())));
    }
    if !options.force && !is_blank(&region) {
        return Err(Error::Exists);
    }
    format(&region, size, true)?;
    super::open::open_media(media, &OpenOptions::default(), false)
}

/// Writes an empty pool. `used`: the range may hold old bytes.
fn format(region: &Region, size: u64, used: bool) -> Result<()> {
    let frames = frames_of(size)?;
    let geometry = Geometry::for_new_pool(frames);
    let mut seed = [0u8; 32];
    fill_random(&mut seed)?;
    let now = Time::now();
    let (mut uuid, mut hash, mut salt) = ([0; 16], [0; 8], [0; 8]);
    uuid.copy_from_slice(&seed[..16]);
    hash.copy_from_slice(&seed[16..24]);
    salt.copy_from_slice(&seed[24..]);
    let sb = Superblock::new(frames, uuid, u64::from_le_bytes(hash), u64::from_le_bytes(salt), now.sec);
    region.reserve(0, geometry.descriptors.byte() + PAGE_SIZE)?;
    let fence = || if region.describe().durability == Durability::AtSync { region.sync() } else { Ok(()) };
    if used {
        let zero = |at: u64, len: u64| Part::Zero { at, len };
        region.persist(&[zero(SUPERBLOCKS[0].byte(), PAGE_SIZE), zero(SUPERBLOCKS[1].byte(), PAGE_SIZE)])?;
        fence()?;
        region.persist(&[zero(PAGE_SIZE, geometry.first_frame.byte() - PAGE_SIZE)])?;
        zero_segments(region, &geometry, 0..frames)?;
    }
    let mut root = InodeRec::new(ROOT, FileType::Dir, 0o755, now);
    root.parent = ROOT.0;
    let mut orphans = InodeRec::new(ORPHANS, FileType::File, 0, now);
    orphans.nlink = 1;
    let mark =
        CheckpointMark::new(1, 0, region.describe().durability == Durability::AtSync, region.describe().cache_id, 0);
    let (root, orphans, mark, size) = (root.sealed(), orphans.sealed(), mark.sealed(), PoolState::new(frames).sealed());
    region.persist(&[
        Part::Bytes { at: inode_at(ROOT), bytes: root.as_bytes() },
        Part::Bytes { at: inode_at(ORPHANS), bytes: orphans.as_bytes() },
        Part::Bytes { at: JOURNAL_HEADER.byte() + 512, bytes: &mark },
        Part::Bytes { at: PoolState::PAGES[0].byte(), bytes: &size },
        Part::Bytes { at: PoolState::PAGES[1].byte(), bytes: &size },
    ])?;
    fence()?;
    for page in SUPERBLOCKS.into_iter().rev() {
        region.persist(&[Part::Bytes { at: page.byte(), bytes: sb.as_bytes() }])?;
        fence()?;
    }
    Ok(())
}

fn fill_random(buf: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < buf.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut buf[filled..], flags)
            .map_err(|e| Error::system("asking for random bytes")(e.into()))?;
    }
    Ok(())
}
