//! An open regular file.

use std::sync::Arc;

use crate::attr::{Attr, Extent, Kind, Privileges, SetAttr};
use crate::data::bounce_buffer;
use crate::data::read::Piece;
use crate::data::write::Target;
use crate::engine::{EngineRef, OpenInode};
use crate::error::{Error, Result};
use crate::units::Ino;

/// Bytes that are copied at a time when a program's buffer is a mapping.
const BOUNCE: usize = 1 << 20;

/// An open regular file. Cheap to clone and to keep; `Send + Sync`. While one exists, the file's
/// bytes stay, even if its last name goes.
///
/// What is written is durable as the pool's media promises
/// ([`Description::durability`](pmem::Description)): at once, or at the next
/// [`File::sync`].
#[derive(Clone, Debug)]
pub struct File(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    engine: EngineRef,
    ino: Ino,
    open: Arc<OpenInode>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.engine.close_file(self.ino, &self.open);
    }
}

impl File {
    pub(crate) fn open(engine: &EngineRef, ino: Ino) -> Result<File> {
        let lock = engine.locks.read(ino);
        match engine.alloc.inode(ino)?.kind() {
            Some(Kind::File) => {}
            Some(Kind::Dir) => return Err(Error::IsDirectory),
            _ => return Err(Error::NotSupported("only regular files have bytes")),
        }
        let open = engine.opens.open(lock.held());
        Ok(File(Arc::new(Handle { engine: engine.clone(), ino, open })))
    }

    /// Its entry among the open files.
    pub(crate) fn opened(&self) -> &OpenInode {
        &self.0.open
    }

    /// The pool that it is a file of.
    pub(crate) fn engine(&self) -> &EngineRef {
        &self.0.engine
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.0.ino
    }

    /// Its attributes.
    pub fn attr(&self) -> Result<Attr> {
        self.engine().attr(self.0.ino)
    }

    /// What it has that a face takes away when somebody else changes its contents. The answer is kept
    /// while the file is open: asking before each write costs one load.
    pub fn privileges(&self) -> Result<Privileges> {
        self.engine().privileges(self.0.ino, &self.0.open)
    }

    /// Lets this file, which is empty, have the contents of `src`, in one record and without a copy: both share
    /// what is there until one of them writes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this file is not empty, [`Error::NoSpace`], [`Error::TooManyLinks`].
    pub fn clone_from(&self, src: &File) -> Result<()> {
        self.engine().share_contents(src.ino(), self.0.ino)
    }

    /// Lets this file, which ends at `offset`, go on with up to `len` bytes that `src` has from there,
    /// without a copy; returns how many. That is possible from the start of an empty file, and from the
    /// page-aligned end of one that shares all it has with `src` so far; else the answer is 0.
    ///
    /// # Errors
    /// As [`File::clone_from`].
    pub fn clone_range_from(&self, src: &File, offset: u64, len: u64) -> Result<u64> {
        self.engine().share_range(src.ino(), self.0.ino, offset, len)
    }

    /// Sets the length: shorter frees pages, longer reads as zeros.
    pub fn set_len(&self, len: u64) -> Result<()> {
        self.engine().set_attr(self.0.ino, &SetAttr { size: Some(len), ..SetAttr::default() }).map(drop)
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.engine().alloc.check_process()?;
        if bounce_buffer::needed(buf) {
            return self.read_bounced(offset, buf);
        }
        self.engine().read_open((self.0.ino, &self.0.open), offset, buf)
    }

    fn read_bounced(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        let mut piece = vec![0; buf.len().min(BOUNCE)];
        while done < buf.len() {
            let want = (buf.len() - done).min(BOUNCE);
            let n = self.read_at(offset.saturating_add(done as u64), &mut piece[..want])?;
            buf[done..done + n].copy_from_slice(&piece[..n]);
            done += n;
            if n < want {
                break;
            }
        }
        Ok(done)
    }

    /// Writes cache lines of storage in the range back, where a store takes that to become durable
    /// at this thread's next fence.
    pub(crate) fn flush_stored(&self, offset: u64, len: u64) -> Result<()> {
        self.engine().flush_stored(self.0.ino, offset, len)
    }

    /// Answers a read straight from the storage: calls `reply` once, under the file's lock, with
    /// the pieces of `[offset, offset + len)` up to the end of the file.
    pub fn read_pieces<R>(&self, offset: u64, len: u64, reply: impl FnOnce(&[Piece]) -> R) -> Result<R> {
        self.engine().pieces_open((self.0.ino, &self.0.open), (offset, len), reply)
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: what fitted is there, from the front, up to the end of a page (a long write is several
    /// steps of 8 MiB or less); [`Error::FileTooLarge`], and the media's own.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
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

    /// Writes all parts, each an offset and its bytes, in order and without overlap: after a crash all of them
    /// are there, or none, however many there are. Readers see all of them or none as well. The cost is
    /// that of the pages written; these lie elsewhere afterwards.
    ///
    /// # Errors
    /// [`Error::Invalid`] if parts overlap or are out of order, [`Error::NoSpace`] with nothing
    /// written: all new pages are needed besides the old ones.
    pub fn write_atomic(&self, parts: &[(u64, &[u8])]) -> Result<()> {
        self.engine().alloc.check_process()?;
        if parts.iter().any(|(_, bytes)| bounce_buffer::needed(bytes)) {
            let copies: Vec<(u64, Vec<u8>)> = parts.iter().map(|&(offset, bytes)| (offset, bytes.to_vec())).collect();
            let parts: Vec<(u64, &[u8])> = copies.iter().map(|(offset, bytes)| (*offset, &bytes[..])).collect();
            return self.engine().write_atomic(self.0.ino, &parts);
        }
        self.engine().write_atomic(self.0.ino, parts)
    }

    /// Writes at the end, atomically with respect to other appends; returns the offset.
    pub fn append(&self, bytes: &[u8]) -> Result<u64> {
        self.engine().alloc.check_process()?;
        if bounce_buffer::needed(bytes) {
            let copy = bytes.to_vec();
            return self.engine().write(self.0.ino, &self.0.open, Target::End, &copy);
        }
        self.engine().write(self.0.ino, &self.0.open, Target::End, bytes)
    }

    /// Takes zeroed storage for the range; grows the file unless `keep_size`.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.engine().allocate(self.0.ino, offset, len, keep_size)
    }

    /// Gives the range back: it reads as zeros. The length stays.
    pub fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.engine().punch(self.0.ino, offset, len)
    }

    /// Makes the range read as zeros and keeps storage for it; grows the file unless `keep_size`.
    pub fn zero(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.engine().zero_range(self.0.ino, offset, len, keep_size)
    }

    /// First offset from `offset` on that has storage; [`Error::NoData`] if none follows.
    pub fn seek_data(&self, offset: u64) -> Result<u64> {
        self.engine().seek(self.0.ino, offset, true)
    }

    /// First offset from `offset` on that has none: the end of the file at the latest.
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        self.engine().seek(self.0.ino, offset, false)
    }

    /// The runs with storage in the range.
    pub fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.engine().extents(self.0.ino, offset, len)
    }

    /// How many bytes of this file and `other` are not alike, counted by page; what only the longer one has
    /// counts. Storage that both share is not read.
    pub fn count_differing_bytes(&self, other: &File) -> Result<u64> {
        self.engine().count_differing_bytes(self.0.ino, other.0.ino)
    }

    /// Data and attributes are durable on return, what was stored through mappings of the file before included. On
    /// DAX media without a cache that outlives a power cut this writes back the cache lines of all that is, or since
    /// the last sync was, mapped for stores: [`Mapping::flush`](crate::Mapping::flush) and
    /// [`Mapping::drain`](crate::Mapping::drain) cost less where it is known what was stored.
    pub fn sync(&self) -> Result<()> {
        self.engine().sync_inode(self.0.ino)
    }
}
