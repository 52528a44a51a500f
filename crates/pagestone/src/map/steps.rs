//! The steps from one kind of page to another, each one system call on the target.
//!
//! ```text
//!   show       what the file has: data, holes, nothing
//!   put_data   the pool's pages       put_hole      zeros, until somebody stores
//!   put_absent the next touch asks    put_nothing   SIGBUS, EFAULT
//! ```
//!
//! A private mapping is shown only what it does not show yet: its stores are known to the kernel alone.

use std::io;
use std::ops::Range;

use super::area::{Area, State};
use super::service::Mechanism;
use super::{child, sys};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::file::chain::Span;
use crate::file::map::Map;
use crate::frame::Run;
use crate::layout::InodeRec;
use crate::lock::rank;
use crate::media::{Lend, Region};
use crate::units::{PAGE_SIZE, PageNo};

impl Area {
    pub(super) fn show(&self, state: &mut State, engine: &Engine, rec: &InodeRec, pages: Range<u64>) {
        let end = rec.size.div_ceil(PAGE_SIZE).next_multiple_of(self.granule);
        let region = &engine.frames.region;
        let inside = pages.start..pages.end.min(end).max(pages.start);
        let mut put = || -> Result<()> {
            self.put_nothing(state, inside.end..pages.end)?;
            for part in state.cut.within(inside.clone()) {
                self.put_nothing(state, part)?;
            }
            for part in state.cut.without(inside.clone()) {
                for (pages, span) in spans(engine, rec, part, usize::MAX)? {
                    match span {
                        Span::Hole(_) => self.put_hole(state, pages)?,
                        // A store would change what others have borrowed too, so the first touch
                        // makes the pages the file's own.
                        Span::Borrowed(_) if self.lend == Lend::Write => self.put_absent(state, pages)?,
                        Span::Borrowed(run) if self.lend == Lend::Private => {
                            Area::pin(state, engine, run);
                            self.put_data(state, region, pages, run)?;
                        }
                        Span::Borrowed(run) | Span::Data(run) => {
                            region.settle(run.page.byte(), run.pages * PAGE_SIZE)?;
                            self.put_data(state, region, pages, run)?;
                        }
                    }
                }
            }
            Ok(())
        };
        if let Err(e) = put() {
            // Better an error than pages that are not the file's; each is tried again once it was reported.
            // Those that are mapped already may have been stored to.
            let missing = if self.lend == Lend::Private { state.absent.within(pages) } else { vec![pages] };
            missing.into_iter().flatten().for_each(|page| self.fail_locked(state, page, &e));
        }
    }

    pub(super) fn put_data(&self, state: &mut State, region: &Region, pages: Range<u64>, run: Run) -> Result<()> {
        let whole = [pages.start, pages.end, run.page.0].iter().all(|page| page.is_multiple_of(self.granule));
        if !whole {
            // The kernel would round up, over pages that are not the file's.
            return Err(Error::NotSupported("a piece of storage that these media cannot map"));
        }
        let addr = self.addr(&pages);
        // SAFETY: the range is address space of this mapping, which hands out no references.
        unsafe { region.map_at(run.page.byte(), addr.len() as u64, addr.start as *mut u8, self.lend)? };
        state.nothing.remove(pages.clone());
        state.absent.remove(pages.clone());
        state.holes.remove(pages);
        Ok(())
    }

    pub(super) fn put_hole(&self, state: &mut State, pages: Range<u64>) -> io::Result<()> {
        for part in state.holes.without(pages) {
            let addr = self.addr(&part);
            match (self.lend, self.uffd()) {
                (Lend::Private, _) => sys::put_zeros(addr, true)?,
                (Lend::Write, Mechanism::Userfault(uffd)) => {
                    rank::check_remap(child::is_one());
                    uffd.put_hole(addr)?;
                }
                _ => sys::put_zeros(addr, false)?,
            }
            state.nothing.remove(part.clone());
            state.absent.remove(part.clone());
            state.holes.insert(part);
        }
        Ok(())
    }

    pub(super) fn put_absent(&self, state: &mut State, pages: Range<u64>) -> io::Result<()> {
        for part in state.absent.without(pages) {
            match self.uffd() {
                Mechanism::Userfault(uffd) => {
                    rank::check_remap(child::is_one());
                    uffd.put_absent(self.addr(&part))?;
                }
                Mechanism::Signals => sys::put_nothing(self.addr(&part), 0)?,
            }
            state.nothing.remove(part.clone());
            state.holes.remove(part.clone());
            state.absent.insert(part);
        }
        Ok(())
    }

    pub(super) fn put_nothing(&self, state: &mut State, pages: Range<u64>) -> io::Result<()> {
        for part in state.nothing.without(pages) {
            let addr = self.addr(&part);
            sys::put_nothing(addr, (part.start - self.first) * PAGE_SIZE)?;
            state.holes.remove(part.clone());
            state.absent.remove(part.clone());
            state.nothing.insert(part);
        }
        Ok(())
    }
}

/// These pages of the pool.
pub(super) fn run_of(pages: Range<u64>) -> Run {
    Run { page: PageNo(pages.start), pages: pages.end - pages.start }
}

/// The storage of these pages.
pub(super) fn runs(engine: &Engine, rec: &InodeRec, pages: Range<u64>) -> Result<Vec<Run>> {
    let run = |(pages, span): (Range<u64>, Span)| match span {
        Span::Data(run) | Span::Borrowed(run) => Some(Run { page: run.page, pages: pages.end - pages.start }),
        Span::Hole(_) => None,
    };
    Ok(spans(engine, rec, pages, usize::MAX)?.into_iter().filter_map(run).collect())
}

/// What these pages are, in at most `most` pieces.
pub(super) fn spans(
    engine: &Engine,
    rec: &InodeRec,
    pages: Range<u64>,
    most: usize,
) -> Result<Vec<(Range<u64>, Span)>> {
    let _chain = engine.chain(rec);
    let map = Map { nodes: &engine.frames, frames: &engine.frames, rec };
    let mut out = Vec::new();
    let mut page = pages.start;
    while page < pages.end && out.len() < most {
        let span = map.span(page)?;
        let end = page.saturating_add(span.pages()).min(pages.end);
        let span = match span {
            Span::Data(run) => Span::Data(Run { pages: end - page, ..run }),
            Span::Borrowed(run) => Span::Borrowed(Run { pages: end - page, ..run }),
            Span::Hole(_) => Span::Hole(end - page),
        };
        out.push((page..end, span));
        page = end;
    }
    Ok(out)
}
