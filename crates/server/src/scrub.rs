//! Reading everything in a pool, to find what the media have lost while other copies of it still exist.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;

use pagestone::inode::{Node, WalkEntry};
use pagestone::{Error, File, FileType, PAGE_SIZE, Pool};

use crate::api::{LostPage, Scrubbed};
use crate::store::{Progress, Result};

/// Bytes of one read.
const STEP: u64 = 1 << 20;
/// Lost places that are named.
const NAMED: usize = 1000;

struct Scrub<'a> {
    found: Scrubbed,
    progress: Progress<'a>,
    /// Pages in use.
    total: u64,
    /// One bit for each page of the pool whose data were read: snapshots share most of theirs.
    read: Vec<u64>,
    buffer: Vec<u8>,
}

/// Reads every directory, attribute and byte of data, each page once. Metadata are verified on the way. What cannot be
/// read is named, and the rest is read. Others go on meanwhile; what they make or remove may be read or not.
pub(crate) fn scrub(pool: &Pool, progress: Progress<'_>) -> Result<Scrubbed> {
    pool.verify_again();
    let space = pool.statfs();
    let pages = pool.info()?.size / PAGE_SIZE;
    let mut scrub = Scrub {
        found: Scrubbed::default(),
        progress,
        total: space.pages.saturating_sub(space.free),
        read: vec![0; (pages / 64 + 1) as usize],
        buffer: vec![0; STEP as usize],
    };
    scrub.part("/", xattrs(&pool.root().node()))?;
    let mut seen = HashSet::new();
    for entry in pool.root().walk() {
        match entry {
            // It was removed meanwhile.
            Err(Error::Stale(_)) => {}
            Err(e) if is_damage(&e) => scrub.lost("/", None, &e),
            Err(e) => return Err(e.into()),
            Ok(entry) => scrub.entry(pool, &entry, &mut seen)?,
        }
        scrub.step()?;
    }
    Ok(scrub.found)
}

fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. } | Error::Lost(_) | Error::DataLost(_))
}

fn xattrs(node: &Node) -> pagestone::Result<()> {
    for name in node.xattrs()? {
        match node.xattr(&name) {
            // It was removed meanwhile.
            Err(Error::NoAttribute) => {}
            value => drop(value?),
        }
    }
    Ok(())
}

impl Scrub<'_> {
    /// An entry of the walk, whose directory the walk reads.
    fn entry(&mut self, pool: &Pool, entry: &WalkEntry, seen: &mut HashSet<pagestone::Ino>) -> Result<()> {
        let path = format!("/{}", String::from_utf8_lossy(entry.path().as_os_str().as_bytes()).trim_start_matches('/'));
        let node = match pool.node(entry.ino()) {
            Err(e) => return self.part(&path, Err(e)),
            Ok(node) => node,
        };
        // What is wrong with one part does not keep the others from being read.
        self.part(&path, xattrs(&node))?;
        let data = node.attr().and_then(|attr| match attr.kind {
            // A file with several names is read once.
            FileType::File if attr.nlink == 1 || seen.insert(attr.ino) => self.file(&path, &node.open()?),
            FileType::Symlink => node.read_link().map(drop),
            _ => Ok(()),
        });
        self.part(&path, data)?;
        self.found.files += 1;
        Ok(())
    }

    /// Notes what is wrong with a part of an inode.
    fn part(&mut self, path: &str, done: pagestone::Result<()>) -> Result<()> {
        match done {
            Ok(()) | Err(Error::Stale(_)) => Ok(()),
            Err(e) if is_damage(&e) => {
                self.lost(path, None, &e);
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    fn lost(&mut self, path: &str, offset: Option<u64>, error: &Error) {
        self.found.lost += 1;
        if self.found.places.len() < NAMED {
            self.found.places.push(LostPage { path: path.into(), offset, what: error.to_string() });
        }
    }

    fn step(&mut self) -> pagestone::Result<()> {
        let done = self.found.bytes / PAGE_SIZE;
        if (self.progress)(done, self.total.max(done)).is_break() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn file(&mut self, path: &str, file: &File) -> pagestone::Result<()> {
        for extent in file.extents(..)? {
            let end = extent.offset + extent.len;
            let mut offset = extent.offset;
            while offset < end {
                let len = STEP.min(end - offset);
                if self.is_new(extent.pool + (offset - extent.offset), len) {
                    self.piece(path, file, offset, len)?;
                    self.step()?;
                }
                offset += len;
            }
        }
        Ok(())
    }

    /// Whether a page of these bytes of the pool was not read before.
    fn is_new(&mut self, at: u64, len: u64) -> bool {
        let mut new = false;
        for page in at / PAGE_SIZE..(at + len).div_ceil(PAGE_SIZE) {
            let Some(word) = self.read.get_mut((page / 64) as usize) else { return true };
            new |= *word & 1 << (page % 64) == 0;
            *word |= 1 << (page % 64);
        }
        new
    }

    /// Reads a piece; page by page if a page of it is lost.
    fn piece(&mut self, path: &str, file: &File, offset: u64, len: u64) -> pagestone::Result<()> {
        match file.read_at(&mut self.buffer[..len as usize], offset) {
            Ok(read) => self.found.bytes += read as u64,
            Err(Error::DataLost(_)) if len > PAGE_SIZE => {
                for at in (offset..offset + len).step_by(PAGE_SIZE as usize) {
                    self.piece(path, file, at, PAGE_SIZE)?;
                }
            }
            Err(e @ Error::DataLost(_)) => self.lost(path, Some(offset), &e),
            Err(e) => return Err(e),
        }
        Ok(())
    }
}
