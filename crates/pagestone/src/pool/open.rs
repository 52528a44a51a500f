//! Opening: superblock and replay.
//!
//! The time depends on the length of the journal, not on the size of the pool or the number of files. After replay this
//! reads the root inode page and, for each lane (at most eight), a descriptor, a split table and a page of inodes.
//! [`Pool::open_on`] also reclaims orphans before it returns; [`Pool::open`] leaves them to a background thread.

use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Arc;

use pmem::{Media, MediaKind, PoolLock, Region};

use super::{Engine, Pool};
use crate::alloc::Allocator;
use crate::error::{Error, Place, Result};
use crate::journal::{self, Journal};
use crate::layout::{Geometry, ORPHANS, PoolState, ROOT, SUPERBLOCKS, Superblock};
use crate::units::{FRAME_SIZE, LINE, PageNo};

/// How to open a pool.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct OpenOptions {
    read_only: bool,
    media: Option<MediaKind>,
    room: u64,
    leave_orphans: bool,
    lock: Option<PoolLock>,
}

impl OpenOptions {
    /// For reading and writing.
    pub fn new() -> OpenOptions {
        OpenOptions::default()
    }

    /// Whether to change nothing: recovery happens in private memory, changes are [`Error::ReadOnly`].
    pub fn read_only(mut self, read_only: bool) -> OpenOptions {
        self.read_only = read_only;
        self
    }

    /// What kind of media the path is; `None` finds out.
    pub fn media(mut self, kind: impl Into<Option<MediaKind>>) -> OpenOptions {
        self.media = kind.into();
        self
    }

    /// How large, in bytes, the pool is to become by [`Pool::grow`] while it is open. Address space is set aside for it; without
    /// this, for 64 times the length of the media, at least 256 GiB and at most 64 TiB.
    pub fn room(mut self, bytes: u64) -> OpenOptions {
        self.room = bytes;
        self
    }

    /// Whether files that lost their last name while they were open stay until [`Pool::reclaim_orphans`]. For a server
    /// that takes over from one that has died: it opens them by their numbers first.
    pub fn leave_orphans(mut self, leave: bool) -> OpenOptions {
        self.leave_orphans = leave;
        self
    }

    /// The lock of the pool, which the caller has, or a process that gave it to the caller. It has to be exclusive, or
    /// shared to read only. `None`: opening takes it.
    pub fn lock(mut self, lock: impl Into<Option<PoolLock>>) -> OpenOptions {
        self.lock = lock.into();
        self
    }
}

pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Pool> {
    let OpenOptions { read_only, media: kind, room, lock, .. } = options.clone();
    let how = pmem::Open { read_only, kind, size: None, room, lock };
    open_media(open_existing(path, &how)?.media, options, true)
}

/// Opens media that should hold a pool. If it does not begin like one, that is what is wrong with it, and not its size.
pub(crate) fn open_existing(path: &Path, how: &pmem::Open) -> Result<pmem::Opened> {
    pmem::open(path, how).map_err(|e| match Error::from(e) {
        Error::Size(_) if !is_pool(path) => Error::NotAPool("no superblock at its start (wrong magic)".into()),
        other => other,
    })
}

/// Whether a file or block device begins as pools do, whatever state it is in and whoever has it open: so
/// that nobody overwrites one by mistake. What cannot be read is none.
pub fn is_pool(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    // Opening anything else may wait for somebody, or do something.
    let kind = std::fs::metadata(path).map(|meta| meta.file_type());
    if !kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device()) {
        return false;
    }
    let Ok(file) = std::fs::File::open(path) else { return false };
    let begins = |at: u64| {
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, at).is_ok() && Superblock::has_magic(&magic)
    };
    SUPERBLOCKS.into_iter().any(|copy| begins(copy.byte()))
}

/// Opens the pool on `media`; `in_background` allows a thread that syncs at an interval, and gives
/// orphans back beside.
pub(super) fn open_media(media: Arc<dyn Media>, options: &OpenOptions, in_background: bool) -> Result<Pool> {
    let region = Region::new(media);
    let read_only = options.read_only || region.describe().read_only;
    if read_only && !region.describe().read_only {
        return Err(Error::Invalid("read-only needs media that were opened read-only"));
    }
    let (superblock, alloc, records) = mount_region(region)?;
    let engine = Engine::new(alloc, superblock, records);
    for ino in [ROOT, ORPHANS] {
        engine.alloc.inode(ino)?;
    }
    if !read_only && !in_background && !options.leave_orphans {
        engine.reclaim_orphans(|| true)?;
        // What is on the media now is durable, and nobody else is here yet.
        engine.merge_pending();
    }
    Pool::new(engine, in_background, options.leave_orphans)
}

/// The superblock, the journal and the layers up to `alloc`, on a pool whose records have been replayed.
fn mount_region(region: Region) -> Result<(Superblock, Allocator, u64)> {
    let (superblock, geometry) = read_superblock(&region)?;
    let read_only = region.describe().read_only;
    if superblock.read_only_here() && !read_only {
        return Err(Error::TooNew("it can only be opened read-only here".into()));
    }
    // What is too short is refused before records are looked for in it. A crash may have torn the size; a record has
    // it then.
    if let Err(e @ Error::Size(_)) = read_state(&region) {
        return Err(e);
    }
    let salt = superblock.record_salt();
    let replayed = journal::replay(&region, &geometry, salt)?;
    let state = read_state(&region)?;
    let possible = state.frames >= geometry.first_frame.0 + 3
        && state.forwarded <= geometry.usable_pages(state.frames)
        && state.forward_root().is_none_or(|root| geometry.owns(root.frame(), state.frames));
    if !possible {
        return Err(Error::corrupt(Place::PoolState(PoolState::PAGES[0]), "impossible numbers"));
    }
    let journal = Journal::new(region.clone(), geometry, salt, &replayed);
    if !read_only {
        journal.start_session(&replayed)?;
    }
    Ok((superblock, Allocator::new(region, geometry, state, journal)?, replayed.records))
}

/// How many frames the pool has, and where moved inode pages are listed: the first copy that is whole says it.
pub(crate) fn read_state(region: &Region) -> Result<PoolState> {
    let copy = |page: PageNo| {
        let mut line = [0; LINE as usize];
        region.read_meta(page.byte(), &mut line).ok()?;
        PoolState::parse(line).filter(PoolState::is_possible)
    };
    let least = PoolState::PAGES[1].byte() + LINE;
    if region.len() < least {
        return Err(Error::Size(format!("the pool has only {} bytes left (truncated?)", region.len())));
    }
    let Some(state) = PoolState::PAGES.into_iter().find_map(copy) else {
        let [first, second] = PoolState::PAGES;
        return Err(Error::corrupt(Place::PoolState(first), format!("it and its copy at {second} are damaged")));
    };
    let bytes = state.frames * FRAME_SIZE;
    if region.len() < bytes {
        let text = format!("the pool has {bytes} bytes, only {} are left (truncated?)", region.len());
        return Err(Error::Size(text));
    }
    Ok(state)
}

/// The first copy that is whole; if none is, what is wrong with the first.
fn read_superblock(region: &Region) -> Result<(Superblock, Geometry)> {
    let mut first_error = None;
    let mut any_magic = false;
    for page in SUPERBLOCKS {
        let mut bytes = [0; 128];
        let at = page.byte();
        if region.read_data(at, &mut bytes).is_err() {
            continue;
        }
        any_magic |= Superblock::has_magic(&bytes);
        match Superblock::parse(&bytes) {
            Ok(found) => return Ok(found),
            // A copy that is whole and refused (another version) is the answer.
            Err(e @ (Error::TooNew(_) | Error::TooOld(_) | Error::Size(_))) => return Err(e),
            Err(e) => {
                first_error.get_or_insert(e);
            }
        }
    }
    match first_error {
        Some(e) if any_magic => Err(e),
        Some(_) => Err(Error::NotAPool("no superblock at its start (wrong magic)".into())),
        None => Err(Error::NotAPool(format!("{} bytes are too few to hold one", region.len()))),
    }
}
