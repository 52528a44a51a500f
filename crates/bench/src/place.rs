//! Where measuring happens: directories of our own, and pools in them.
//!
//! ```text
//!   /dev/shm/pagestone-bench-PID-XXXXXX     tmpfs
//!   $TMPDIR/pagestone-bench-PID-XXXXXX      the ordinary filesystem
//! ```
//!
//! They go when they are dropped; what a killed run left behind goes when the next one starts.

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

/// Removes what runs that were killed have left.
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

/// A pool to measure the library in, with the media below it at hand for the raw peer.
pub(crate) struct Bed {
    pub(crate) pool: Pool,
    pub(crate) media: Arc<dyn Media>,
    /// Where in the pool everything happens.
    root: Vec<u8>,
    /// On tmpfs, for the peers; and for the pool, unless it is the user's.
    pub(crate) dir: TempDir,
}

impl Bed {
    /// The pool that was named, or one on tmpfs with stores as persistent memory needs them.
    pub(crate) fn new(config: &Config) -> Result<Bed> {
        let Some(path) = &config.pool else { return Bed::temporary(true) };
        let opened = pmem::open(path, &pmem::Open::default())?;
        Bed::with(Pool::open_on(opened.media.clone(), &OpenOptions::default())?, opened.media, on_tmpfs()?)
    }

    /// A new pool on tmpfs; `durable`: stored to as persistent memory would be.
    pub(crate) fn temporary(durable: bool) -> Result<Bed> {
        Bed::of_size(1 << 30, durable)
    }

    /// As [`Bed::temporary`], of so many bytes.
    pub(crate) fn of_size(size: u64, durable: bool) -> Result<Bed> {
        let dir = on_tmpfs()?;
        let below =
            pmem::open(&dir.path().join("pool"), &pmem::Open { read_only: false, kind: None, size: Some(size) })?.media;
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

    /// How stores are pushed out here, for the report.
    pub(crate) fn method(&self) -> String {
        format!("{:?} stores on a {}", self.media.describe().method, self.media.describe().kind)
    }

    /// The directory in the pool.
    pub(crate) fn root(&self) -> Result<Dir> {
        Ok(self.pool.resolve(&self.root)?.dir()?)
    }

    /// A directory below it.
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

    /// The media itself, and where on it a file of `len` bytes lies, in one run or several: what
    /// the raw peer stores to. `at` maps a file offset to a pool byte.
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
        // A pool of our own goes with its directory; in a user's pool nothing may stay behind.
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

/// A file of `len` bytes, all of them there.
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
