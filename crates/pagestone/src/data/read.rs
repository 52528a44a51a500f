//! Reading: copies, or the pieces themselves.

use std::fmt;
use std::ops::Deref;

use smallvec::SmallVec;

use crate::alloc::Allocator;
use crate::backing::{Answer, answer_absent};
use crate::engine::{Engine, OpenInode, ReadGuard};
use crate::error::{Error, Result};
use crate::extent::extent_map::{Map, Mapped};
use crate::extent::resolve::{ChainRead, Span};
use crate::layout::InodeRec;
use crate::units::{Ino, PAGE_SIZE};

/// One piece of a file's range as it lies in this process.
#[derive(Clone, Copy, Debug)]
pub enum Piece {
    /// Storage, or a copy of what the file's backing has there: valid, and not reused, while the [`Pieces`] that it came
    /// with exist. Another writer may be storing to it, so it is an address and not a slice. A byte of each page was there to
    /// be read just now;
    /// others may be lost, so it is for system calls, which answer that with an error. Who wants a copy of bytes
    /// that may be lost asks [`File::read_at`](crate::File::read_at).
    Storage {
        /// First byte.
        addr: *const u8,
        /// Bytes.
        len: usize,
    },
    /// This many zero bytes: no extent covers them, and the file's backing answers zeros.
    Hole {
        /// Bytes.
        len: usize,
    },
}

impl Piece {
    /// Bytes.
    pub fn len(&self) -> usize {
        match *self {
            Piece::Storage { len, .. } | Piece::Hole { len } => len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The pieces of a file's range, in order: a slice of [`Piece`]. See [`File::pieces`](crate::File::pieces).
///
/// While it exists it holds the inode's lock shared, so that the storage is not reused: every change of the file waits,
/// and so may changes of other files, because files share locks by a hash of their numbers. The thread that has it must
/// not call the pool: that could wait for itself. It is not [`Send`].
#[must_use = "the storage is valid only while this exists"]
pub struct Pieces<'f> {
    pieces: SmallVec<[Piece; 4]>,
    /// Copies of what a backing answered, which pieces point to.
    _answers: Vec<Box<[u8]>>,
    _lock: ReadGuard<'f>,
}

impl fmt::Debug for Pieces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces.fmt(f)
    }
}

impl Deref for Pieces<'_> {
    type Target = [Piece];
    fn deref(&self) -> &[Piece] {
        &self.pieces
    }
}

/// A stretch of a range, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) source: Source,
}

/// Where a stretch lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// In storage of the file, from this pool byte on.
    Own(u64),
    /// In storage of a base, from this pool byte on.
    Shared(u64),
    /// Nowhere: the backing answers.
    Absent(Answer),
}

impl Stretch {
    /// Its first pool byte, if it lies in the pool.
    pub(crate) fn pool(&self) -> Option<u64> {
        match self.source {
            Source::Own(at) | Source::Shared(at) => Some(at),
            Source::Absent(_) => None,
        }
    }

    /// Says of an error of the media which part of the file it met.
    pub(crate) fn lost(&self, error: Error) -> Error {
        match (error, self.pool()) {
            (Error::Lost(page), Some(at)) => Error::DataLost(self.offset + page.saturating_sub(at)),
            (other, _) => other,
        }
    }
}

/// Cuts `[offset, end)` into stretches; returns the last run that one of them lies in.
pub(crate) fn stretches(
    alloc: &Allocator,
    chain: &ChainRead<'_>,
    rec: &InodeRec,
    mut offset: u64,
    end: u64,
    mut each: impl FnMut(Stretch) -> Result<()>,
) -> Result<Option<Mapped>> {
    debug_assert!(chain.covers(rec));
    let map = Map { nodes: alloc, alloc, rec };
    let mut last = None;
    while offset < end {
        let page = offset / PAGE_SIZE;
        let span = match map.first_after(page)? {
            Some(m) if m.file_page <= page && !m.is_void() => {
                last = Some(m);
                Span::Own(m.part(page, m.end()).run)
            }
            Some(m) if m.file_page <= page => map.span(page)?,
            next => map.below(page, next.map_or(u64::MAX, |m| m.file_page) - page)?,
        };
        let within = offset % PAGE_SIZE;
        let source = match span {
            Span::Own(run) => Source::Own(run.page.byte() + within),
            Span::Shared(run) => Source::Shared(run.page.byte() + within),
            Span::Absent { answer, .. } => Source::Absent(answer),
        };
        let len = (span.pages().saturating_mul(PAGE_SIZE)).saturating_sub(within).min(end - offset);
        each(Stretch { offset, len, source })?;
        offset += len;
    }
    Ok(last)
}

/// Copies out; returns how much there was before the end of the file.
pub(crate) fn read(
    alloc: &Allocator,
    chain: &ChainRead<'_>,
    rec: &InodeRec,
    offset: u64,
    buf: &mut [u8],
) -> Result<usize> {
    let end = offset.saturating_add(buf.len() as u64).min(rec.size);
    stretches(alloc, chain, rec, offset, end, |s| copy_out(alloc, &s, offset, buf))?;
    Ok(end.saturating_sub(offset) as usize)
}

fn copy_out(alloc: &Allocator, s: &Stretch, offset: u64, buf: &mut [u8]) -> Result<()> {
    let part = &mut buf[(s.offset - offset) as usize..][..s.len as usize];
    match s.source {
        Source::Own(at) | Source::Shared(at) => alloc.region.read_data(at, part).map_err(|e| s.lost(e.into())),
        Source::Absent(answer) => answer_absent(answer, s.offset, part),
    }
}

impl Engine {
    /// Cuts `len` bytes of an open file into stretches, as far as the file reaches; returns where
    /// they end. Usually the run that was used last answers.
    pub(crate) fn open_stretches(
        &self,
        lock: &ReadGuard<'_>,
        open: &OpenInode,
        (offset, len): (u64, u64),
        mut each: impl FnMut(Stretch) -> Result<()>,
    ) -> Result<u64> {
        let wanted = offset.saturating_add(len);
        if let Some(known) = open.hint.known(lock) {
            let end = wanted.min(known.size);
            if let Some(at) = known.at(offset, end) {
                each(Stretch { offset, len: end - offset, source: Source::Own(at) })?;
                return Ok(end);
            }
        }
        let rec = self.alloc.inode(lock.held().ino())?;
        let chain = self.chain(&rec);
        let end = wanted.min(rec.size);
        if let Some(run) = stretches(&self.alloc, &chain, &rec, offset, end, each)? {
            open.hint.remember(lock, run.file_page, run.run, rec.size);
        }
        Ok(end)
    }

    /// As [`read`], of an open file.
    pub(crate) fn read_open(&self, file: (Ino, &OpenInode), offset: u64, buf: &mut [u8]) -> Result<usize> {
        let lock = self.locks.read(file.0);
        let len = buf.len() as u64;
        let end = self.open_stretches(&lock, file.1, (offset, len), |s| copy_out(&self.alloc, &s, offset, buf))?;
        Ok(end.saturating_sub(offset) as usize)
    }

    /// The pieces of an open file's range, up to its end. What a backing answers is copied for it, unless it is zeros.
    pub(crate) fn pieces_open(&self, file: (Ino, &OpenInode), range: (u64, u64)) -> Result<Pieces<'_>> {
        let lock = self.locks.read(file.0);
        let mut pieces: SmallVec<[Piece; 4]> = SmallVec::new();
        // They stay where they are while the list grows.
        let mut answers: Vec<Box<[u8]>> = Vec::new();
        self.open_stretches(&lock, file.1, range, |s| {
            let len = s.len as usize;
            pieces.push(match s.source {
                Source::Own(at) | Source::Shared(at) => {
                    let addr = self.alloc.region.data_addr(at, s.len).map_err(|e| s.lost(e.into()))?;
                    Piece::Storage { addr, len }
                }
                Source::Absent(answer) if answer.is_zeros() => Piece::Hole { len },
                Source::Absent(answer) => {
                    let mut bytes = vec![0; len].into_boxed_slice();
                    answer_absent(answer, s.offset, &mut bytes)?;
                    let addr = bytes.as_ptr();
                    answers.push(bytes);
                    Piece::Storage { addr, len }
                }
            });
            Ok(())
        })?;
        Ok(Pieces { pieces, _answers: answers, _lock: lock })
    }
}
