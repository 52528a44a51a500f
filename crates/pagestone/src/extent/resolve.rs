//! What a clone sees: its own map first, then its base's, then that one's base.
//!
//! ```text
//!   file     [own ]............[void]......            base_pages
//!   base     ......[data      ][data]......[data]..........|   <- not seen from here on
//!   base     [data           ]........[data    ]...............
//!            --------------------------------------
//!   seen     Data  Borrowed    Hole   Borrowed
//! ```
//!
//! A base never changes, except that it is merged into its only dependent (`merge.rs`). So a chain is
//! read with the file's own lock and, only if there is a base, [`Engine::chain`].

use crate::alloc::{Allocator, Run, TxResult};
use crate::btree::Nodes;
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Result};
use crate::extent::extent_map::{LocalAnswer, Map, Mapped, in_tx, join};
use crate::layout::InodeRec;
use crate::lock::{ReadGuard, WriteGuard};
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE};

/// What a file page is, and how far that goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Span {
    /// Storage of the file's own, from this page on.
    Own(Run),
    /// A base's storage: to be read, never written.
    Shared(Run),
    /// Nothing for this many pages.
    Hole(u64),
}

impl Span {
    /// How far it goes.
    pub(crate) fn pages(&self) -> u64 {
        match *self {
            Span::Own(run) | Span::Shared(run) => run.pages,
            Span::Hole(pages) => pages,
        }
    }
}

/// Where inode records are read from besides nodes.
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
    /// What `file_page` is. It may go on the same way behind the end of what is answered.
    pub(crate) fn span(&self, file_page: u64) -> Result<Span> {
        let limit = match self.local(file_page)? {
            LocalAnswer::Data(run) => return Ok(Span::Own(run)),
            LocalAnswer::Void(pages) => return Ok(Span::Hole(pages)),
            LocalAnswer::Nothing(pages) => pages,
        };
        if self.rec.base == 0 { Ok(Span::Hole(limit)) } else { self.below(file_page, limit) }
    }

    /// What the bases say of `file_page`, for at most `limit` pages.
    fn below(&self, file_page: u64, mut limit: u64) -> Result<Span> {
        let mut rec = *self.rec;
        while rec.base != 0 && file_page < rec.base_pages {
            limit = limit.min(rec.base_pages - file_page);
            rec = base(self.nodes, &rec)?;
            match (Map { rec: &rec, nodes: self.nodes, alloc: self.alloc }).local(file_page)? {
                LocalAnswer::Data(run) => return Ok(Span::Shared(Run { pages: run.pages.min(limit), ..run })),
                LocalAnswer::Void(pages) => return Ok(Span::Hole(pages.min(limit))),
                LocalAnswer::Nothing(pages) => limit = limit.min(pages),
            }
        }
        Ok(Span::Hole(limit))
    }

    /// How many pages of `[from, to)` the bases answer for.
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

/// The base of `rec`, which has one.
fn base(records: &impl Records, rec: &InodeRec) -> Result<InodeRec> {
    let wrong = |what: &str| Err(Error::corrupt(rec.ino().to_string(), format!("{what}: {}", Ino(rec.base))));
    match records.record(Ino(rec.base)) {
        Ok(base) if base.is_base() && base.height < rec.height => Ok(base),
        Ok(_) => wrong("its base is none"),
        Err(Error::Stale(_)) => wrong("its base is gone"),
        Err(e) => Err(e),
    }
}

/// Hides what the base has in `[from, to)`, where the map says nothing.
pub(crate) fn cover_with_void(tx: &mut Tx<'_>, rec: &mut InodeRec, from: u64, to: u64) -> TxResult<()> {
    let to = to.min(rec.base_pages);
    let mut at = from;
    while rec.base != 0 && at < to {
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

/// A borrowed page as the file sees it: zeros from its end on. `None` if the page is not borrowed.
pub(crate) fn borrowed_page(tx: &Tx<'_>, rec: &InodeRec, file_page: u64) -> Result<Option<Box<[u8]>>> {
    if rec.base == 0 || file_page >= rec.base_pages {
        return Ok(None);
    }
    let Span::Shared(run) = in_tx(tx, rec).span(file_page)? else { return Ok(None) };
    let seen = rec.size.saturating_sub(file_page * PAGE_SIZE).min(PAGE_SIZE) as usize;
    let mut page = vec![0; PAGE_SIZE as usize].into_boxed_slice();
    tx.alloc().region.read_data(run.page.byte(), &mut page[..seen])?;
    Ok(Some(page))
}

/// The bases of a file, if it has any, are not merged while this is there.
pub(crate) struct ChainRead<'a>(Option<ReadGuard<'a, ()>>);

impl ChainRead<'_> {
    /// Whether `rec` can be read through its bases.
    pub(crate) fn covers(&self, rec: &InodeRec) -> bool {
        rec.base == 0 || self.0.is_some()
    }
}

/// Nobody reads through a base while this is there.
pub(crate) struct ChainWrite<'a>(#[allow(dead_code)] WriteGuard<'a, ()>);

impl Engine {
    /// Keeps the bases of `rec` from being merged while it is read through them. Taken once, after the
    /// inode's lock.
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

    /// Keeps everybody from reading through a base while one is merged.
    pub(crate) fn chain_to_merge(&self) -> ChainWrite<'_> {
        ChainWrite(self.chains.write())
    }
}
