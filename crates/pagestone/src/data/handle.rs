//! An open regular file, as the layers below the facade hold it.
//!
//! ```text
//!   pool::File       cursor and access mode; the public type
//!   mmap::Mapping       |
//!        `-----------> FileHandle --Arc--> engine, inode number, entry among the open inodes
//! ```

use std::sync::Arc;

use crate::attr::{Attr, Extent, FileType};
use crate::data::bounce_buffer;
use crate::data::read::Pieces;
use crate::data::write::Target;
use crate::engine::{EngineRef, OpenInode};
use crate::error::{Error, Result};
use crate::units::Ino;

/// Bytes that are copied at a time when a program's buffer is a mapping.
const BOUNCE: usize = 1 << 20;

/// Keeps a regular file open: while one exists, the bytes stay, even if the last name goes.
#[derive(Clone, Debug)]
pub(crate) struct FileHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    engine: EngineRef,
    ino: Ino,
    open: Arc<OpenInode>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.engine.close_file(self.ino, &self.open);
    }
}

impl FileHandle {
    pub(crate) fn open(engine: &EngineRef, ino: Ino) -> Result<FileHandle> {
        let lock = engine.locks.read(ino);
        match engine.alloc.inode(ino)?.kind() {
            Some(FileType::File) => {}
            Some(FileType::Dir) => return Err(Error::IsDirectory),
            _ => return Err(Error::NotSupported("only regular files have bytes")),
        }
        let open = engine.opens.open(lock.held());
        Ok(FileHandle(Arc::new(Shared { engine: engine.clone(), ino, open })))
    }

    /// Its entry among the open files.
    pub(crate) fn opened(&self) -> &OpenInode {
        &self.0.open
    }

    /// The pool that it is a file of.
    pub(crate) fn engine(&self) -> &EngineRef {
        &self.0.engine
    }

    pub(crate) fn ino(&self) -> Ino {
        self.0.ino
    }

    pub(crate) fn attr(&self) -> Result<Attr> {
        self.engine().attr(self.0.ino)
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    #[inline]
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.engine().alloc.check_process()?;
        if bounce_buffer::needed(buf) {
            return self.read_bounced(buf, offset);
        }
        self.engine().read_open((self.0.ino, &self.0.open), offset, buf)
    }

    fn read_bounced(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        let mut piece = vec![0; buf.len().min(BOUNCE)];
        while done < buf.len() {
            let want = (buf.len() - done).min(BOUNCE);
            let n = self.read_at(&mut piece[..want], offset.saturating_add(done as u64))?;
            buf[done..done + n].copy_from_slice(&piece[..n]);
            done += n;
            if n < want {
                break;
            }
        }
        Ok(done)
    }

    /// The pieces of `[offset, offset + len)` up to the end of the file, with the inode's lock shared.
    pub(crate) fn pieces(&self, offset: u64, len: u64) -> Result<Pieces<'_>> {
        self.engine().pieces_open((self.0.ino, &self.0.open), (offset, len))
    }

    /// Writes all of `bytes` at `offset`.
    #[inline]
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.engine().alloc.check_process()?;
        if bounce_buffer::needed(bytes) {
            let pieces = bytes.chunks(BOUNCE).zip((offset..).step_by(BOUNCE));
            for (piece, offset) in pieces {
                // The copy is made here, without a lock.
                let copy = piece.to_vec();
                self.engine().write(self.0.ino, &self.0.open, Target::At(offset), &copy)?;
            }
            return Ok(());
        }
        self.engine().write(self.0.ino, &self.0.open, Target::At(offset), bytes).map(drop)
    }

    /// Writes at the end; returns the offset.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<u64> {
        self.engine().alloc.check_process()?;
        if bounce_buffer::needed(bytes) {
            let copy = bytes.to_vec();
            return self.engine().write(self.0.ino, &self.0.open, Target::End, &copy);
        }
        self.engine().write(self.0.ino, &self.0.open, Target::End, bytes)
    }

    /// Writes all parts or none.
    pub(crate) fn write_atomic(&self, parts: &[(u64, &[u8])]) -> Result<()> {
        self.engine().alloc.check_process()?;
        if parts.iter().any(|(_, bytes)| bounce_buffer::needed(bytes)) {
            let copies: Vec<(u64, Vec<u8>)> = parts.iter().map(|&(offset, bytes)| (offset, bytes.to_vec())).collect();
            let parts: Vec<(u64, &[u8])> = copies.iter().map(|(offset, bytes)| (*offset, &bytes[..])).collect();
            return self.engine().write_atomic(self.0.ino, &parts);
        }
        self.engine().write_atomic(self.0.ino, parts)
    }

    /// Writes cache lines of storage in the range back, where a store takes that to become durable
    /// at this thread's next fence.
    pub(crate) fn flush_stored(&self, offset: u64, len: u64) -> Result<()> {
        self.engine().flush_stored(self.0.ino, offset, len)
    }

    /// The runs with storage in the range.
    pub(crate) fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.engine().extents(self.0.ino, offset, len)
    }

    /// How many bytes of this file and `other` are not alike, counted by page.
    pub(crate) fn count_differing_bytes(&self, other: &FileHandle) -> Result<u64> {
        self.engine().count_differing_bytes(self.0.ino, other.0.ino)
    }

    /// Data and attributes are durable on return.
    pub(crate) fn sync(&self) -> Result<()> {
        self.engine().sync_inode(self.0.ino)
    }
}
