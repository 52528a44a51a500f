//! An open file as programs have it: bytes at offsets, a cursor, and what the file was opened for.
//!
//! ```text
//!   File { handle, access, position }
//!            |        |       `- Read, Write, Seek          (file_io.rs)
//!            |        `- refused: NotOpenFor
//!            `- data::FileHandle: keeps the inode open
//! ```

use std::ops::{Bound, Range, RangeBounds};
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use super::Metadata;
use crate::attr::{Attr, Extent, Privileges, SetAttr};
use crate::data::{FileHandle, Pieces};
use crate::dir::Node;
use crate::error::{Error, Result};
use crate::io::{DirectFile, PinnedExtents, Source};
use crate::lock::{Mutex, rank};
use crate::mmap::{AtomicMapping, MapOptions, Mapping};
use crate::transaction::Transaction;
use crate::units::Ino;

/// What a file was opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Access {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) append: bool,
}

impl Access {
    pub(super) const ALL: Access = Access { read: true, write: true, append: false };
}

/// An open regular file. It keeps its bytes, even if its last name goes, and keeps the pool open.
///
/// [`Pool::open_file`](crate::Pool::open_file) and [`Pool::file_options`](crate::Pool::file_options) open one. It has
/// the methods of [`std::os::unix::fs::FileExt`] with the library's [`Error`], implements that trait, and
/// [`Read`](std::io::Read), [`Write`](std::io::Write) and [`Seek`](std::io::Seek) with a cursor. A clone is the same
/// open file with a cursor of its own, which starts where this one stands.
///
/// # Durability
/// A write that has returned is visible to everybody. It is durable as the pool's media promise
/// ([`Description::durability`](pmem::Description)): on return, or after the next [`File::sync_all`].
///
/// # Blocking
/// Calls do their work in the caller's thread. They wait for locks of the inode, and for a page fault or a write-back of
/// an ordinary file. Only on media that are durable at sync do they wait for a device, and there only in a sync.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let pool = pagestone::Pool::create(dir.path().join("p"), &pagestone::CreateOptions::new().size(16 << 20))?;
/// let file = pool.create_file("/greeting")?;
/// file.write_all_at(b"hello", 0)?;
/// file.write_all_at(b"far away", 1 << 30)?; // between is a hole, which takes no space
/// let mut buf = [0; 5];
/// file.read_exact_at(&mut buf, 0)?;
/// assert_eq!(&buf, b"hello");
/// file.sync_all()?;
/// # Ok::<(), pagestone::Error>(())
/// ```
#[derive(Debug)]
pub struct File {
    handle: FileHandle,
    access: Access,
    pub(super) position: Mutex<rank::Position, u64>,
}

impl Clone for File {
    fn clone(&self) -> File {
        let at = if self.handle.engine().alloc.check_process().is_ok() { *self.position.lock() } else { 0 };
        File { handle: self.handle.clone(), access: self.access, position: Mutex::new(at) }
    }
}

impl File {
    pub(super) fn new(handle: FileHandle, access: Access) -> File {
        File { handle, access, position: Mutex::new(0) }
    }

    pub(super) fn handle(&self) -> &FileHandle {
        &self.handle
    }

    #[inline]
    fn readable(&self) -> Result<()> {
        if self.access.read { Ok(()) } else { Err(Error::NotOpenFor("reading")) }
    }

    #[inline]
    fn writable(&self) -> Result<()> {
        if self.access.write { Ok(()) } else { Err(self.not_for_writing()) }
    }

    #[cold]
    fn not_for_writing(&self) -> Error {
        Error::NotOpenFor(if self.access.append { "writing at an offset, only for appending" } else { "writing" })
    }

    fn changeable(&self) -> Result<()> {
        if self.access.append { Ok(()) } else { self.writable() }
    }

    /// Whether writes through the cursor go to the end.
    pub(super) fn appends(&self) -> bool {
        self.access.append
    }

    /// Its inode number.
    pub fn ino(&self) -> Ino {
        self.handle.ino()
    }

    /// Length, times, owner, mode and space.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Lost`] if the inode cannot be read.
    pub fn metadata(&self) -> Result<Metadata> {
        self.attr().map(Metadata::new)
    }

    /// As [`File::metadata`], as the record of the [inode layer](crate::inode).
    pub fn attr(&self) -> Result<Attr> {
        self.handle.attr()
    }

    /// What it has that a face takes away when somebody else changes its contents. The answer is kept
    /// while the file is open: asking before each write costs one load.
    pub fn privileges(&self) -> Result<Privileges> {
        self.handle.engine().privileges(self.ino(), self.handle.opened())
    }

    /// Sets the permission bits (`07777`). Durable like a write.
    pub fn set_permissions(&self, mode: u32) -> Result<()> {
        self.change(&SetAttr::new().perm(mode))
    }

    /// Sets the time of the last change of the contents. Durable like a write.
    pub fn set_modified(&self, time: SystemTime) -> Result<()> {
        self.change(&SetAttr::new().mtime(time.into()))
    }

    fn change(&self, change: &SetAttr) -> Result<()> {
        self.handle.engine().set_attr(self.ino(), change).map(drop)
    }

    /// Sets the length: shorter frees pages, longer reads as zeros. One record.
    ///
    /// # Errors
    /// [`Error::FileTooLarge`], [`Error::NotOpenFor`], [`Error::ReadOnly`], and [`Error::NoSpace`] where the page with
    /// the new end is shared with a clone.
    pub fn set_len(&self, len: u64) -> Result<()> {
        self.changeable()?;
        self.change(&SetAttr::new().size(len))
    }

    /// Reads up to `buf.len()` bytes at `offset`, and returns how many: fewer only at the end of the file.
    ///
    /// # Errors
    /// [`Error::DataLost`] if the media have lost a page of the range, [`Error::NotOpenFor`].
    #[inline]
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.readable()?;
        self.handle.read_at(buf, offset)
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// As [`File::read_at`], and [`Error::BeyondEnd`] with the length of the file if it ends before; `buf` holds what
    /// there was then.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let got = self.read_at(buf, offset)?;
        if got == buf.len() { Ok(()) } else { Err(Error::BeyondEnd(offset.saturating_add(got as u64))) }
    }

    /// Writes all of `buf` at `offset`, and returns its length. The file grows if need be; what lies between its old end
    /// and `offset` reads as zeros.
    ///
    /// What is overwritten in place is not atomic beyond 8 bytes: after a crash the old and the new bytes may be mixed.
    /// What fills a hole or grows the file appears with its record or not at all, in steps of at most 8 MiB.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: what fitted is there, from the front, up to the end of a page; [`Error::FileTooLarge`],
    /// [`Error::NotOpenFor`], [`Error::ReadOnly`].
    #[inline]
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.write_all_at(buf, offset).map(|()| buf.len())
    }

    /// As [`File::write_at`], which never writes less than everything.
    #[inline]
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.writable()?;
        self.handle.write_at(buf, offset)
    }

    /// Writes all parts, each an offset and its bytes, in order of the offsets and without overlap: after a crash all of
    /// them are there, or none, however many there are. Readers see all of them or none as well. The cost is
    /// that of the pages written; these lie elsewhere afterwards.
    ///
    /// # Errors
    /// [`Error::Invalid`] if parts overlap or are out of order, [`Error::NoSpace`] with nothing
    /// written: all new pages are needed besides the old ones.
    pub fn write_atomic(&self, parts: &[(u64, &[u8])]) -> Result<()> {
        self.writable()?;
        self.handle.write_atomic(parts)
    }

    /// Writes at the end, atomically with respect to other appends; returns the offset. The cursor stays.
    ///
    /// # Errors
    /// As [`File::write_at`].
    pub fn append(&self, buf: &[u8]) -> Result<u64> {
        self.changeable()?;
        self.handle.append(buf)
    }

    /// Where the bytes of the range lie in this process, as far as the file reaches: for system calls that read them
    /// without a copy. While the answer exists no change of the file can happen; see [`Pieces`] for what that forbids.
    ///
    /// # Errors
    /// As [`File::read_at`].
    pub fn pieces(&self, range: Range<u64>) -> Result<Pieces<'_>> {
        self.readable()?;
        self.handle.pieces(range.start, length(&range))
    }

    /// Where the bytes of the range lie in the pool, as far as the file reaches, kept from reuse: for direct transfers to a file
    /// or device. No lock is held meanwhile.
    ///
    /// # Errors
    /// [`Error::DataLost`], [`Error::NotOpenFor`], [`Error::NotSupported`] for a file with a backing.
    pub fn pinned_extents(&self, range: Range<u64>) -> Result<PinnedExtents> {
        self.readable()?;
        PinnedExtents::of(self.handle.engine(), self.ino(), range.start, range.end)
    }

    /// Lets the file, which must end between two pages, go on with the bytes `range` of another file or a device. They are read
    /// straight into storage of the pool, past the page cache, except that a pool in an ordinary file gets them through a
    /// buffer of fixed size. The file has all of them afterwards, in one record, or is as it was. Waits for the source, without a
    /// lock.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a file that ends within a page; [`Error::Busy`] if somebody else changed the file meanwhile;
    /// [`Error::NoSpace`], [`Error::FileTooLarge`], [`Error::NotOpenFor`], [`Error::ReadOnly`]; [`Error::Media`] with what the
    /// system says of the source, also of the kind `Interrupted` after `cancel` is set, and `UnexpectedEof`.
    pub fn extend_from(&self, source: &DirectFile, range: Range<u64>, cancel: &AtomicBool) -> Result<()> {
        self.changeable()?;
        let source = Source { file: source, offset: range.start, len: length(&range) };
        self.handle.engine().extend_from(self.ino(), source, cancel)
    }

    /// Takes zeroed storage for the holes in the range, so that later writes there find room; grows the file to the end
    /// of the range.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty range, [`Error::NoSpace`], [`Error::FileTooLarge`].
    pub fn allocate(&self, range: Range<u64>) -> Result<()> {
        self.changeable()?;
        self.handle.engine().allocate(self.ino(), range.start, length(&range), false)
    }

    /// As [`File::allocate`], and the length stays: storage behind the end waits for the file to grow.
    pub fn allocate_keep_size(&self, range: Range<u64>) -> Result<()> {
        self.changeable()?;
        self.handle.engine().allocate(self.ino(), range.start, length(&range), true)
    }

    /// Gives the storage of the range back: it reads as zeros. The length stays. Pages of mappings there are revoked.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty range.
    pub fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        self.writable()?;
        self.handle.engine().punch(self.ino(), range.start, length(&range))
    }

    /// Makes the range read as zeros and keeps storage for it; grows the file to the end of the range.
    ///
    /// # Errors
    /// As [`File::allocate`].
    pub fn zero_range(&self, range: Range<u64>) -> Result<()> {
        self.writable()?;
        self.handle.engine().zero_range(self.ino(), range.start, length(&range), false)
    }

    /// As [`File::zero_range`], and the length stays.
    pub fn zero_range_keep_size(&self, range: Range<u64>) -> Result<()> {
        self.writable()?;
        self.handle.engine().zero_range(self.ino(), range.start, length(&range), true)
    }

    /// First offset from `offset` on that has storage; [`Error::NoData`] if none follows.
    pub fn seek_data(&self, offset: u64) -> Result<u64> {
        self.handle.engine().seek(self.ino(), offset, true)
    }

    /// First offset from `offset` on that has none: the end of the file at the latest. [`Error::NoData`] behind it.
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        self.handle.engine().seek(self.ino(), offset, false)
    }

    /// The runs with storage in the range of bytes, `..` for all of them.
    pub fn extents(&self, range: impl RangeBounds<u64>) -> Result<Vec<Extent>> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => u64::MAX,
        };
        self.handle.extents(start, length(&(start..end)))
    }

    /// Lets this file, which is empty, have the contents of `src`, in one record and without a copy: both share
    /// what is there until one of them writes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this file is not empty, or `src` is in another pool; [`Error::NoSpace`],
    /// [`Error::TooManyLinks`].
    pub fn clone_from_file(&self, src: &File) -> Result<()> {
        self.changeable()?;
        self.same_pool(src)?;
        self.handle.engine().share_contents(src.ino(), self.ino())
    }

    /// Lets this file, which ends at the start of `range`, go on with the bytes that `src` has there, without a copy;
    /// returns how many. That is possible from the start of an empty file, and from the page-aligned end of one that
    /// shares all it has with `src` so far; else the answer is 0.
    ///
    /// # Errors
    /// As [`File::clone_from_file`].
    pub fn clone_range_from(&self, src: &File, range: Range<u64>) -> Result<u64> {
        self.changeable()?;
        self.same_pool(src)?;
        self.handle.engine().share_range(src.ino(), self.ino(), range.start, length(&range))
    }

    /// Lets the backing with this number answer for the absent pages of the file, up to its present end: 1 answers with
    /// one fixed byte, 2 with bytes that follow from their offset. For measurements and tests. One record.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that no backing has; [`Error::NotSupported`] for a file that has a backing or a
    /// base, or is mapped.
    #[doc(hidden)]
    pub fn set_backing(&self, number: u32) -> Result<()> {
        let engine = self.handle.engine();
        let lock = engine.locks.write(&[self.ino()]);
        engine.set_backing(lock.of(self.ino()), number)
    }

    fn same_pool(&self, other: &File) -> Result<()> {
        match self.handle.engine().is_same(other.handle.engine()) {
            true => Ok(()),
            false => Err(Error::Invalid("the files are in two pools")),
        }
    }

    /// How many bytes of this file and `other` are not alike, counted by page; what only the longer one has
    /// counts. Storage that both share is not read.
    ///
    /// # Errors
    /// As [`File::read_at`]; [`Error::Invalid`] if `other` is in another pool.
    pub fn count_differing_bytes(&self, other: &File) -> Result<u64> {
        self.readable()?;
        self.same_pool(other)?;
        self.handle.count_differing_bytes(&other.handle)
    }

    /// Data and attributes are durable on return, what was stored through mappings of the file before included. Waits
    /// for `fdatasync` on an ordinary file. On DAX media whose processor cache is lost at a power cut this writes back the
    /// cache lines of all that is, or since the last sync was, mapped for stores:
    /// [`Mapping::flush`] and [`Mapping::drain`] cost less where it is known what was stored.
    ///
    /// # Errors
    /// The system's, and [`Error::Latched`]: what was written before may not be durable, and the pool takes no more
    /// changes.
    pub fn sync_all(&self) -> Result<()> {
        self.handle.sync()
    }

    /// The same as [`File::sync_all`]: data and attributes become durable together here.
    pub fn sync_data(&self) -> Result<()> {
        self.sync_all()
    }

    /// Maps the bytes `range` of the file, which may be holes, or lie behind its end: they can be
    /// reached once the file has grown over them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty range or one that no file can have; [`Error::ReadOnly`] for
    /// shared stores to a pool that takes none; [`Error::NotOpenFor`]; [`Error::NotSupported`] on media that cannot be
    /// mapped (the simulator), or for a mechanism that the system does not allow.
    pub fn map(&self, range: Range<u64>, options: &MapOptions) -> Result<Mapping> {
        self.readable()?;
        if options.stores_reach_file() {
            self.writable()?;
        }
        self.handle.map(range, options)
    }

    /// Maps a range so that stores to it become the file's all at once, at a commit.
    ///
    /// # Errors
    /// As [`File::map`]; [`Error::ReadOnly`] for a pool that takes no changes.
    pub fn map_atomic(&self, range: Range<u64>) -> Result<AtomicMapping> {
        self.readable()?;
        self.writable()?;
        self.handle.map_atomic(range)
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

impl Node {
    /// Opens a regular file for reading and writing.
    ///
    /// # Errors
    /// [`Error::IsDirectory`]; [`Error::NotSupported`] for anything else that has no bytes; [`Error::Stale`].
    pub fn open(&self) -> Result<File> {
        self.handle().map(|handle| File::new(handle, Access::ALL))
    }
}

impl Mapping {
    /// The file that is mapped, open for reading and writing.
    pub fn file(&self) -> File {
        File::new(self.handle().clone(), Access::ALL)
    }
}

impl<'a> Transaction<'a> {
    /// Writes all of `bytes` at `offset` of an open file, whatever its name is by now.
    ///
    /// # Errors
    /// [`Error::NotOpenFor`]; [`Error::Invalid`] for a file of another pool.
    pub fn write_file(&mut self, file: &File, bytes: &'a [u8], offset: u64) -> Result<&mut Self> {
        file.writable()?;
        match self.engine().is_same(file.handle.engine()) {
            true => Ok(self.write_handle(&file.handle, bytes, offset)),
            false => Err(Error::Invalid("the file is of another pool")),
        }
    }
}
