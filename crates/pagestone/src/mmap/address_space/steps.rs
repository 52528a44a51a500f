//! The transitions between page states of a mapping, each one system call on the target.
//!
//! ```text
//!   show       maps what the file has: data, holes, or inaccessible beyond the end
//!   put_data   the pool's pages                    map_zero_page   zeros, until the first store
//!   map_lazy   unresolved until the next access    map_poison      inaccessible: SIGBUS, EFAULT
//! ```
//!
//! In a private mapping only pages that are not mapped yet are mapped: the kernel alone has its stores.

use std::io;
use std::ops::Range;

use pmem::{MapMode, Region};

use crate::alloc::Run;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::extent::extent_map::Map;
use crate::extent::resolve::Span;
use crate::layout::InodeRec;
use crate::lock::rank;
use crate::mmap::address_space::area::{Area, State};
use crate::mmap::fault::service::Mechanism;
use crate::mmap::fork::child;
use crate::mmap::kernel::userfault;
use crate::units::{PAGE_SIZE, PageNo};

impl Area {
    /// Maps these pages as the file has them. If a page cannot be mapped, it becomes inaccessible with the error.
    pub(in crate::mmap) fn show(&self, state: &mut State, engine: &Engine, rec: &InodeRec, pages: Range<u64>) {
        let end = rec.size.div_ceil(PAGE_SIZE).next_multiple_of(self.map_alignment);
        let region = &engine.alloc.region;
        let inside = pages.start..pages.end.min(end).max(pages.start);
        let mut put = || -> Result<()> {
            self.map_poison(state, inside.end..pages.end).map_err(Error::mapping)?;
            for part in state.revoked.within(inside.clone()) {
                self.map_poison(state, part).map_err(Error::mapping)?;
            }
            for part in state.revoked.without(inside.clone()) {
                for (pages, span) in spans(engine, rec, part, usize::MAX)? {
                    match span {
                        Span::Absent { answer, .. } if answer.is_zeros() => {
                            self.map_zero_page(state, pages).map_err(Error::mapping)?
                        }
                        // The contents have no storage yet: the first access allocates it.
                        Span::Absent { .. } => self.map_lazy(state, pages).map_err(Error::mapping)?,
                        // A store would change other files too, so the first access copies the pages.
                        Span::Shared(_) if self.mode == MapMode::Write => {
                            self.map_lazy(state, pages).map_err(Error::mapping)?
                        }
                        Span::Shared(run) if self.mode == MapMode::Private => {
                            Area::pin(state, engine, run);
                            self.put_data(state, region, pages, run)?;
                        }
                        Span::Shared(run) | Span::Own(run) => {
                            region.prepare_for_mapping(run.page.byte(), run.pages * PAGE_SIZE)?;
                            self.put_data(state, region, pages, run)?;
                        }
                    }
                }
            }
            Ok(())
        };
        if let Err(e) = put() {
            // An error is better than pages of another file. Each page is tried again after its error was reported.
            // Pages of a private mapping that are mapped already may have been stored to, and stay.
            let missing = if self.mode == MapMode::Private { state.unresolved.within(pages) } else { vec![pages] };
            missing.into_iter().flatten().for_each(|page| self.fail_locked(state, page, &e));
        }
    }

    /// Maps the pages of `run`.
    pub(in crate::mmap) fn put_data(
        &self,
        state: &mut State,
        region: &Region,
        pages: Range<u64>,
        run: Run,
    ) -> Result<()> {
        let whole = [pages.start, pages.end, run.page.0].iter().all(|page| page.is_multiple_of(self.map_alignment));
        if !whole {
            // The kernel would round up, over pages of other files.
            return Err(Error::NotSupported("a piece of storage that these media cannot map"));
        }
        let addr = self.addr(&pages);
        // SAFETY: the range is address space of this mapping, which hands out no references.
        unsafe { region.map_at(run.page.byte(), addr.len() as u64, addr.start as *mut u8, self.mode)? };
        state.inaccessible.remove(pages.clone());
        state.unresolved.remove(pages.clone());
        state.holes.remove(pages);
        Ok(())
    }

    pub(in crate::mmap) fn map_zero_page(&self, state: &mut State, pages: Range<u64>) -> io::Result<()> {
        for part in state.holes.without(pages) {
            let addr = self.addr(&part);
            match (self.mode, self.uffd()) {
                (MapMode::Private, _) => userfault::map_zeros(addr, true)?,
                (MapMode::Write, Mechanism::Userfault(uffd)) => {
                    rank::check_remap(child::is_child());
                    uffd.map_zero_page(addr)?;
                }
                _ => userfault::map_zeros(addr, false)?,
            }
            state.inaccessible.remove(part.clone());
            state.unresolved.remove(part.clone());
            state.holes.insert(part);
        }
        Ok(())
    }

    pub(in crate::mmap) fn map_lazy(&self, state: &mut State, pages: Range<u64>) -> io::Result<()> {
        for part in state.unresolved.without(pages) {
            match self.uffd() {
                Mechanism::Userfault(uffd) => {
                    rank::check_remap(child::is_child());
                    uffd.map_lazy(self.addr(&part))?;
                }
                Mechanism::Signals => userfault::map_poison(self.addr(&part), 0)?,
            }
            state.inaccessible.remove(part.clone());
            state.holes.remove(part.clone());
            state.unresolved.insert(part);
        }
        Ok(())
    }

    pub(in crate::mmap) fn map_poison(&self, state: &mut State, pages: Range<u64>) -> io::Result<()> {
        for part in state.inaccessible.without(pages) {
            let addr = self.addr(&part);
            userfault::map_poison(addr, (part.start - self.first) * PAGE_SIZE)?;
            state.holes.remove(part.clone());
            state.unresolved.remove(part.clone());
            state.inaccessible.insert(part);
        }
        Ok(())
    }
}

/// These pages of the pool, as a run.
pub(in crate::mmap) fn run_of(pages: Range<u64>) -> Run {
    Run { page: PageNo(pages.start), pages: pages.end - pages.start }
}

/// The runs that store these pages.
pub(in crate::mmap) fn runs(engine: &Engine, rec: &InodeRec, pages: Range<u64>) -> Result<Vec<Run>> {
    let run = |(pages, span): (Range<u64>, Span)| match span {
        Span::Own(run) | Span::Shared(run) => Some(Run { page: run.page, pages: pages.end - pages.start }),
        Span::Absent { .. } => None,
    };
    Ok(spans(engine, rec, pages, usize::MAX)?.into_iter().filter_map(run).collect())
}

/// What these pages are, as at most `most` spans.
pub(in crate::mmap) fn spans(
    engine: &Engine,
    rec: &InodeRec,
    pages: Range<u64>,
    most: usize,
) -> Result<Vec<(Range<u64>, Span)>> {
    let _chain = engine.chain(rec);
    let map = Map { nodes: &engine.alloc, alloc: &engine.alloc, rec };
    let mut out = Vec::new();
    let mut page = pages.start;
    while page < pages.end && out.len() < most {
        let span = map.span(page)?;
        let end = page.saturating_add(span.pages()).min(pages.end);
        out.push((page..end, span.first(end - page)));
        page = end;
    }
    Ok(out)
}
