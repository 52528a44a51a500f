//! The directories and pools that the measurements use.
//!
//! ```text
//!   /dev/shm/pagestone-bench-PID-XXXXXX     tmpfs
//!   $TMPDIR/pagestone-bench-PID-XXXXXX      the ordinary filesystem
//! ```
//!
//! They are removed on drop. The next run removes what a killed run has left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use pagestone::inode::{Dir, NewNode};
use pagestone::{CreateOptions, File, FileType, OpenOptions, Pool};
use pmem::{Media, Persister, Region};
use tempfile::TempDir;

use crate::config::Config;
use crate::sys::LikePmem;

const PREFIX: &str = "pagestone-bench-";
const TMPFS: &str = "/dev/shm";

/// A directory on tmpfs.
pub(crate) fn on_tmpfs() -> Result<TempDir> {
    within(Path::new(TMPFS))
}

/// A directory on the ordinary filesystem.
pub(crate) fn on_disk() -> Result<TempDir> {
    within(&std::env::temp_dir())
}

fn within(parent: &Path) -> Result<TempDir> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
    dir.with_context(|| format!("a directory in {}", parent.display()))
}

/// Removes the directories of runs that were killed.
pub(crate) fn sweep() {
    for parent in [PathBuf::from(TMPFS), std::env::temp_dir()] {
        let Ok(entries) = fs::read_dir(&parent) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                for mount in ["mount", "null", "still"] {
                    let _ = pagestone_mount::unmount_lazily(&entry.path().join(mount));
                }
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// A pool to measure the library in, with access to its media for the raw peer.
pub(crate) struct Bed {
    pub(crate) pool: Pool,
    pub(crate) media: Arc<dyn Media>,
    /// The directory in the pool that the measurement uses.
    root: Vec<u8>,
    /// On tmpfs; for the peers, and for the pool unless the user has provided one.
    pub(crate) dir: TempDir,
}

impl Bed {
    /// The configured pool, or one on tmpfs that is stored to as persistent memory would be.
    pub(crate) fn new(config: &Config) -> Result<Bed> {
        let Some(path) = &config.pool else { return Bed::temporary(true) };
        let opened = pmem::open(path, &pmem::Open::default())?;
        Bed::with(Pool::open_on(opened.media.clone(), &OpenOptions::default())?, opened.media, on_tmpfs()?)
    }

    /// A new pool on tmpfs. `durable`: it is stored to as persistent memory would be.
    pub(crate) fn temporary(durable: bool) -> Result<Bed> {
        Bed::of_size(1 << 30, durable)
    }

    /// As [`Bed::temporary`], with this size.
    pub(crate) fn of_size(size: u64, durable: bool) -> Result<Bed> {
        let dir = on_tmpfs()?;
        let below = pmem::open(
            &dir.path().join("pool"),
            &pmem::Open { read_only: false, kind: None, size: Some(size), room: 0, lock: None },
        )?
        .media;
        let media = match Persister::durable().filter(|_| durable) {
            Some(persister) => Arc::new(LikePmem::new(below, persister)),
            None => below,
        };
        let pool = Pool::create_on(media.clone(), &CreateOptions::new().size(size))?;
        Bed::with(pool, media, dir)
    }

    fn with(pool: Pool, media: Arc<dyn Media>, dir: TempDir) -> Result<Bed> {
        let root = format!("{PREFIX}{}", std::process::id()).into_bytes();
        pool.root().create(&root, &NewNode::new(FileType::Dir, 0o700))?;
        Ok(Bed { pool, media, root, dir })
    }

    /// The method of writing bytes back, for the report.
    pub(crate) fn method(&self) -> String {
        format!("{:?} stores on a {}", self.media.describe().method, self.media.describe().kind)
    }

    /// The directory in the pool.
    pub(crate) fn root(&self) -> Result<Dir> {
        Ok(self.pool.resolve(&self.root)?.dir()?)
    }

    /// Creates a directory beneath it.
    pub(crate) fn make_dir(&self, name: &str) -> Result<Dir> {
        let attr = self.root()?.create(name.as_bytes(), &NewNode::new(FileType::Dir, 0o700))?;
        Ok(self.pool.node(attr.ino)?.dir()?)
    }

    /// A path in it, from the pool's root.
    pub(crate) fn path(&self, below: &str) -> Vec<u8> {
        [b"/", self.root.as_slice(), b"/", below.as_bytes()].concat()
    }

    /// A file with storage for all of its `len` bytes.
    pub(crate) fn file(&self, name: &str, len: u64) -> Result<File> {
        let attr = self.root()?.create(name.as_bytes(), &NewNode::new(FileType::File, 0o600))?;
        let file = self.pool.node(attr.ino)?.open()?;
        let bytes = vec![0x5a; 8 << 20];
        let mut at = 0;
        while at < len {
            let part = bytes.len().min((len - at) as usize);
            file.write_all_at(&bytes[..part], at)?;
            at += part as u64;
        }
        Ok(file)
    }

    /// The media, and the positions on it of a file of `len` bytes, in one run or several: the raw peer stores
    /// there. The function maps a file offset to a pool byte.
    pub(crate) fn raw(&self, name: &str, len: u64) -> Result<(Region, impl Fn(u64) -> u64 + use<>)> {
        let file = self.file(name, len)?;
        let extents = file.extents(..len)?;
        let at = move |offset: u64| {
            let i = extents.partition_point(|x| x.offset + x.len <= offset);
            extents[i].pool + (offset - extents[i].offset)
        };
        Ok((Region::new(self.media.clone()), at))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // A temporary pool is removed with its directory. In a user's pool nothing may be left.
        let _ = remove(&self.pool, &self.pool.root(), &self.root);
    }
}

fn remove(pool: &Pool, parent: &Dir, name: &[u8]) -> Result<()> {
    let attr = parent.lookup(name)?;
    if attr.kind != FileType::Dir {
        return Ok(parent.unlink(name)?);
    }
    let dir = pool.node(attr.ino)?.dir()?;
    for entry in dir.entries() {
        remove(pool, &dir, &entry?.name)?;
    }
    Ok(parent.rmdir(name)?)
}

/// A file of `len` bytes, all of them allocated.
pub(crate) fn plain_file(dir: &Path, name: &str, len: u64) -> Result<fs::File> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).create_new(true).open(dir.join(name))?;
    let bytes = vec![0x5a; 1 << 20];
    let mut at = 0;
    while at < len {
        let part = bytes.len().min((len - at) as usize);
        file.write_all_at(&bytes[..part], at)?;
        at += part as u64;
    }
    Ok(file)
}
