//! Resolving a file page: in the file's own map, then in its base, then in that one's base, at last by the backing.
//!
//! ```text
//!   file     [own ]............[void].............     base_pages
//!   base     ......[data      ][data].............[data]...|   <- not visible from here on
//!   base     [data           ]........[data    ]...............
//!   backing  oooooooooooooooooooooooooooooooooooooooooooooooooo
//!            --------------------------------------------------
//!   result   Own   Shared      zeros  Shared   o  Shared    zeros
//! ```
//!
//! A void hides everything beneath it: the page is absent and reads as zeros. The same holds beyond `base_pages`.
//! Everywhere else the backing of the lowest base (or of the file, if it has no base) resolves a page without an
//! extent.
//!
//! A base never changes, except that it is merged into its only dependent (`merge.rs`). So reading a chain needs
//! the file's own lock and, only if there is a base, [`Engine::chain`].

use crate::alloc::{Allocator, Run, TxResult};
use crate::backing::{Answer, Contents, answer_absent, answer_of, has_below};
use crate::btree::Nodes;
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Place, Result};
use crate::extent::extent_map::{LocalAnswer, Map, Mapped, in_tx, join};
use crate::layout::InodeRec;
use crate::lock::{ReadGuard, WriteGuard};
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE};

/// What a file page is, and for how many pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Span {
    /// The file's own storage, starting with this page.
    Own(Run),
    /// Storage of a base: may be read, must not be written.
    Shared(Run),
    /// No extent for this many pages: the backing resolves them.
    Absent {
        /// Number of pages.
        pages: u64,
        /// The backing.
        answer: Answer,
    },
}

impl Span {
    /// The number of pages.
    pub(crate) fn pages(&self) -> u64 {
        match *self {
            Span::Own(run) | Span::Shared(run) => run.pages,
            Span::Absent { pages, .. } => pages,
        }
    }

    /// The first `pages` of it, or all of it if it is shorter.
    pub(crate) fn first(self, pages: u64) -> Span {
        match self {
            Span::Own(run) => Span::Own(run.first(pages)),
            Span::Shared(run) => Span::Shared(run.first(pages)),
            Span::Absent { pages: all, answer } => Span::Absent { pages: all.min(pages), answer },
        }
    }

    /// All but the first `skip` pages. It must have more.
    pub(crate) fn without_first(self, skip: u64) -> Span {
        let rest = |run: Run| Run { page: run.page.plus(skip), pages: run.pages - skip };
        match self {
            Span::Own(run) => Span::Own(rest(run)),
            Span::Shared(run) => Span::Shared(rest(run)),
            Span::Absent { pages, answer } => Span::Absent { pages: pages - skip, answer },
        }
    }

    /// Whether it is absent and reads as zeros: a hole.
    pub(crate) fn is_hole(&self) -> bool {
        matches!(self, Span::Absent { answer, .. } if answer.is_zeros())
    }

    /// Whether it is absent and does not read as zeros: the bytes need storage before they can be mapped.
    pub(crate) fn needs_storage(&self) -> bool {
        matches!(self, Span::Absent { answer, .. } if !answer.is_zeros())
    }

    /// Reads the first bytes of the span, which begins at `file_page`.
    pub(crate) fn read(&self, alloc: &Allocator, file_page: u64, buf: &mut [u8]) -> Result<()> {
        match *self {
            Span::Own(run) | Span::Shared(run) => Ok(alloc.region.read_data(run.page.byte(), buf)?),
            Span::Absent { answer, .. } => answer_absent(answer, file_page * PAGE_SIZE, buf),
        }
    }

    /// The initial contents of fresh storage for the first `pages` of the span, which begins at `file_page`, in a
    /// file of `size` bytes.
    pub(crate) fn contents(&self, alloc: &Allocator, file_page: u64, pages: u64, size: u64) -> Result<Contents> {
        if self.is_hole() {
            return Ok(Contents::default());
        }
        let mut bytes = vec![0; (pages * PAGE_SIZE) as usize];
        // Bytes beyond the end of the file have no meaning.
        let seen = size.saturating_sub(file_page * PAGE_SIZE).min(pages * PAGE_SIZE) as usize;
        self.read(alloc, file_page, &mut bytes[..seen])?;
        Ok(Contents::bytes(bytes))
    }
}

/// A source of inode records and nodes.
pub(crate) trait Records: Nodes {
    /// The live inode with this number.
    fn record(&self, ino: Ino) -> Result<InodeRec>;
}

impl Records for Allocator {
    fn record(&self, ino: Ino) -> Result<InodeRec> {
        self.inode(ino)
    }
}

impl Records for Tx<'_> {
    fn record(&self, ino: Ino) -> Result<InodeRec> {
        self.inode(ino)
    }
}

impl<N: Records> Map<'_, N> {
    /// Resolves `file_page`. The span may be shorter than possible: the next one may be of the same kind.
    pub(crate) fn span(&self, file_page: u64) -> Result<Span> {
        let limit = match self.local(file_page)? {
            LocalAnswer::Data(run) => return Ok(Span::Own(run)),
            LocalAnswer::Void(pages) => return Ok(hole(pages)),
            LocalAnswer::Nothing(pages) => pages,
        };
        self.below(file_page, limit)
    }

    /// Resolves `file_page`, for which this map has no extent for `limit` pages, through the bases and the backing.
    #[inline]
    pub(crate) fn below(&self, file_page: u64, limit: u64) -> Result<Span> {
        // The file has neither base nor backing there.
        if file_page >= self.rec.base_pages { Ok(hole(limit)) } else { self.in_bases(file_page, limit) }
    }

    fn in_bases(&self, file_page: u64, mut limit: u64) -> Result<Span> {
        let mut rec = *self.rec;
        while file_page < rec.base_pages {
            limit = limit.min(rec.base_pages - file_page);
            if rec.base == 0 {
                return Ok(Span::Absent { pages: limit, answer: answer_of(&rec) });
            }
            rec = base(self.nodes, &rec)?;
            match (Map { rec: &rec, nodes: self.nodes, alloc: self.alloc }).local(file_page)? {
                LocalAnswer::Data(run) => return Ok(Span::Shared(Run { pages: run.pages.min(limit), ..run })),
                LocalAnswer::Void(pages) => return Ok(hole(pages.min(limit))),
                LocalAnswer::Nothing(pages) => limit = limit.min(pages),
            }
        }
        Ok(hole(limit))
    }

    /// The number of pages of `[from, to)` that the bases have storage for.
    pub(crate) fn borrowed_in(&self, mut from: u64, to: u64) -> Result<u64> {
        let to = to.min(self.rec.base_pages);
        let mut sum = 0;
        while self.rec.base != 0 && from < to {
            let span = self.span(from)?;
            let pages = span.pages().min(to - from);
            if matches!(span, Span::Shared(_)) {
                sum += pages;
            }
            from += pages;
        }
        Ok(sum)
    }
}

/// Pages beyond everything that bases and backing have, or hidden by a void.
fn hole(pages: u64) -> Span {
    Span::Absent { pages, answer: Answer::Zeros }
}

/// The base of `rec`, which must have one.
fn base(records: &impl Records, rec: &InodeRec) -> Result<InodeRec> {
    let wrong = |what: &str| Err(Error::corrupt(Place::Inode(rec.ino()), format!("{what}: {}", Ino(rec.base))));
    match records.record(Ino(rec.base)) {
        Ok(base) if base.is_base() && base.height < rec.height => Ok(base),
        Ok(_) => wrong("its base is none"),
        Err(Error::Stale(_)) => wrong("its base is gone"),
        Err(e) => Err(e),
    }
}

/// Hides what the base or the backing has in `[from, to)`, where the map has no extent.
pub(crate) fn cover_with_void(tx: &mut Tx<'_>, rec: &mut InodeRec, from: u64, to: u64) -> TxResult<()> {
    let to = to.min(rec.base_pages);
    let mut at = from;
    while at < to && has_below(rec) {
        match in_tx(tx, rec).local(at)? {
            LocalAnswer::Data(Run { pages, .. }) | LocalAnswer::Void(pages) => at += pages,
            LocalAnswer::Nothing(pages) => {
                let end = to.min(at.saturating_add(pages));
                join(tx, rec, Mapped::void(at, end))?;
                at = end;
            }
        }
    }
    Ok(())
}

/// The initial contents of fresh storage for `file_page`: what a base or the backing has there, and zeros from the
/// end of the file on. If the file has storage there itself, zeros, without reading it.
pub(crate) fn page_below(tx: &Tx<'_>, rec: &InodeRec, file_page: u64) -> Result<Contents> {
    if file_page >= rec.base_pages {
        return Ok(Contents::default());
    }
    match in_tx(tx, rec).span(file_page)? {
        Span::Own(_) => Ok(Contents::default()),
        span => span.contents(tx.alloc(), file_page, 1, rec.size),
    }
}

/// While this exists, the bases of a file, if any, are not merged.
pub(crate) struct ChainRead<'a>(Option<ReadGuard<'a, ()>>);

impl ChainRead<'_> {
    /// Whether `rec` may be read through its bases.
    pub(crate) fn covers(&self, rec: &InodeRec) -> bool {
        rec.base == 0 || self.0.is_some()
    }
}

/// While this exists, no thread reads through a base.
pub(crate) struct ChainWrite<'a>(#[allow(dead_code)] WriteGuard<'a, ()>);

impl Engine {
    /// Excludes merges of the bases of `rec` while it is read through them. Take it once, after the inode's lock.
    pub(crate) fn chain(&self, rec: &InodeRec) -> ChainRead<'_> {
        ChainRead((rec.base != 0).then(|| self.chains.read()))
    }

    /// As [`Engine::chain`], of two files.
    pub(crate) fn chain_of_both(&self, a: &InodeRec, b: &InodeRec) -> ChainRead<'_> {
        self.chain(if a.base != 0 { a } else { b })
    }

    /// As [`Engine::chain`], for a transaction that is about to begin.
    pub(crate) fn chain_of(&self, held: InodeWrite<'_>) -> Result<ChainRead<'_>> {
        Ok(self.chain(&self.alloc.inode(held.ino())?))
    }

    /// Excludes all reads through bases while one is merged.
    pub(crate) fn chain_to_merge(&self) -> ChainWrite<'_> {
        ChainWrite(self.chains.write())
    }
}
