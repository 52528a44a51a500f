//! The messages about one mapping across a fork: what the parent sends, and how the child applies it.
//!
//! ```text
//!   parent    describe: pages -> Shown                  invalidate_in_children
//!   child     map_described: Shown -> kernel mappings   apply_invalidation
//! ```

use std::io;
use std::ops::Range;

use pmem::{MapMode, Region};

use crate::alloc::Run;
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Result};
use crate::extent::resolve::Span;
use crate::layout::InodeRec;
use crate::mmap::address_space::area::{Area, Failure, Shown, State};
use crate::mmap::address_space::steps::spans;
use crate::mmap::fork::channel::{Invalidation, Link};
use crate::units::{PAGE_SIZE, PageNo};

impl Shown {
    /// Encoded as one word: 0 to 2, or the pool page plus 3.
    pub(in crate::mmap) fn word(self) -> u64 {
        match self {
            Shown::Nothing => 0,
            Shown::Hole => 1,
            Shown::Unresolved => 2,
            Shown::Data(page) => page.0 + 3,
        }
    }

    /// Decodes the word.
    pub(in crate::mmap) fn of(word: u64) -> Shown {
        match word {
            0 => Shown::Nothing,
            1 => Shown::Hole,
            2 => Shown::Unresolved,
            page => Shown::Data(PageNo(page - 3)),
        }
    }
}

// ---- the parent ----------------------------------------------------------------------------------

impl Area {
    /// The contents of the window around `page`, or of a part of it if it has more than `most` spans.
    pub(in crate::mmap) fn describe(
        &self,
        held: InodeWrite<'_>,
        engine: &Engine,
        rec: &InodeRec,
        page: u64,
        most: usize,
        link: &Link,
    ) -> Result<Vec<(Range<u64>, Shown)>> {
        debug_assert_eq!(held.ino(), self.ino);
        let end = rec.size.div_ceil(PAGE_SIZE).next_multiple_of(self.map_alignment);
        let mut window = self.window_of(page);
        if spans(engine, rec, window.start..window.end.min(end).max(window.start), most - 1)?.len() >= most - 1 {
            window.start = page;
        }
        let inside = window.start..window.end.min(end).max(window.start);
        let mut out = Vec::new();
        for (pages, span) in spans(engine, rec, inside.clone(), most - 1)? {
            let shown = match span {
                Span::Absent { answer, .. } if answer.is_zeros() => Shown::Hole,
                Span::Absent { .. } => Shown::Unresolved,
                Span::Shared(_) if self.mode == MapMode::Write => Shown::Unresolved,
                Span::Shared(run) | Span::Own(run) => {
                    // The child may map a shared page for as long as it lives, even if the base is freed.
                    if self.mode == MapMode::Private && matches!(span, Span::Shared(_)) {
                        link.pin_until_exit(&self.pool, run);
                    }
                    engine.alloc.region.prepare_for_mapping(run.page.byte(), run.pages * PAGE_SIZE)?;
                    Shown::Data(run.page)
                }
            };
            out.push((pages, shown));
        }
        if inside.end < window.end && out.last().is_none_or(|(pages, _)| pages.end == inside.end) {
            out.push((inside.end..window.end, Shown::Nothing));
        }
        Ok(out)
    }

    /// Sends an invalidation to the children. Returns whether all have applied it.
    pub(in crate::mmap) fn invalidate_in_children(&self, change: Invalidation, pages: &Range<u64>) -> bool {
        let links = self.links.lock().clone();
        let pages = &self.clip(self.whole(pages.clone()));
        // Every child gets it, whatever the others reply.
        links.iter().filter(|link| !link.send(change, self, pages)).count() == 0
    }

    /// As [`Area::invalidate_in_children`], for pages that will be freed: pages that a child may still map are
    /// pinned.
    pub(in crate::mmap) fn revoke_in_children(&self, pages: &Range<u64>) {
        let links = self.links.lock().clone();
        for link in links {
            if link.send(Invalidation::Revoke, self, pages) {
                continue;
            }
            let Some(pool) = self.pool.upgrade() else { continue };
            let engine = &*pool;
            let runs = engine
                .alloc
                .inode(self.ino)
                .and_then(|rec| crate::mmap::address_space::steps::runs(engine, &rec, pages.clone()));
            link.pin(&self.pool, &runs.unwrap_or_default());
        }
    }
}

// ---- the child -----------------------------------------------------------------------------------

impl Area {
    /// Makes the ranges that were not inherited inaccessible.
    pub(in crate::mmap) fn close_gaps(&self) -> io::Result<()> {
        let Some(mut state) = self.live() else { return Ok(()) };
        if self.mode == MapMode::Write {
            for part in state.holes.within(self.range()) {
                state.holes.remove(part.clone());
                state.unresolved.insert(part);
            }
        }
        let gaps = state.unresolved.within(self.range());
        gaps.into_iter().try_for_each(|part| crate::mmap::kernel::userfault::map_poison(self.addr(&part), 0))
    }

    /// Pages that were not inherited and are not beyond the end become unresolved.
    pub(in crate::mmap) fn inherit(&self) -> io::Result<()> {
        let Some(mut state) = self.live() else { return Ok(()) };
        for part in state.unresolved.within(self.range()) {
            state.unresolved.remove(part.clone());
            self.map_lazy(&mut state, part)?;
        }
        Ok(())
    }

    /// No thread resolves faults of the mapping in this process: every access is an error.
    pub(in crate::mmap) fn poison(&self) {
        if let Some(mut state) = self.live() {
            state.poisoned = true;
            if crate::mmap::kernel::userfault::map_poison(self.addr(&self.range()), 0).is_err() {
                crate::mmap::kernel::userfault::unmap(self.addr(&self.range()));
            }
        }
    }

    /// Invalidations received from the parent so far.
    pub(in crate::mmap) fn changes(&self) -> u64 {
        self.live().map_or(0, |state| state.changes)
    }

    /// Maps the spans that the parent sent. Returns false, with nothing mapped, if an invalidation was received
    /// since `changes`.
    pub(in crate::mmap) fn map_described(&self, region: &Region, changes: u64, spans: &[(Range<u64>, Shown)]) -> bool {
        self.unless_changed(changes, |area, state| {
            for (pages, shown) in spans {
                let mut parts = state.revoked.without(area.clip(pages.clone()));
                // A private mapping may have stores in its pages, which only the kernel has.
                if area.mode == MapMode::Private {
                    parts = parts.into_iter().flat_map(|part| state.unresolved.within(part)).collect();
                }
                for part in parts {
                    if let Err(e) = area.take_up_part(state, region, pages.start, part.clone(), *shown) {
                        area.fail_locked(state, part.start, &e);
                    }
                }
            }
        })
    }

    fn take_up_part(
        &self,
        state: &mut State,
        region: &Region,
        first: u64,
        part: Range<u64>,
        shown: Shown,
    ) -> Result<()> {
        match shown {
            Shown::Nothing => self.map_poison(state, part).map_err(Error::mapping)?,
            Shown::Hole => self.map_zero_page(state, part).map_err(Error::mapping)?,
            Shown::Unresolved => self.map_lazy(state, part).map_err(Error::mapping)?,
            Shown::Data(page) => {
                let run = Run { page: page.plus(part.start - first), pages: part.end - part.start };
                self.put_data(state, region, part, run)?;
            }
        }
        Ok(())
    }

    /// Records the parent's failure. Returns false as `map_described` does.
    pub(in crate::mmap) fn record_failure(&self, changes: u64, page: u64, failure: Failure) -> bool {
        let error = match failure {
            Failure::NoSpace => Error::NoSpace,
            Failure::Other(what) => Error::mapping(io::Error::other(what)),
        };
        self.unless_changed(changes, |area, state| area.fail_locked(state, page, &error))
    }

    fn unless_changed(&self, changes: u64, act: impl FnOnce(&Area, &mut State)) -> bool {
        let Some(mut state) = self.live() else { return true };
        if state.changes != changes {
            return false;
        }
        act(self, &mut state);
        true
    }

    /// Applies an invalidation from the parent.
    pub(in crate::mmap) fn apply_invalidation(&self, change: Invalidation, pages: Range<u64>) {
        let pages = self.clip(self.whole(pages));
        let Some(mut state) = self.live() else { return };
        state.changes += 1;
        match change {
            Invalidation::Revoke => {
                state.revoked.insert(pages.clone());
                let _ = self.map_poison(&mut state, pages);
            }
            Invalidation::Allow => {
                state.revoked.remove(pages.clone());
                for part in state.inaccessible.within(pages) {
                    let _ = self.map_lazy(&mut state, part);
                }
            }
            Invalidation::Unresolve if self.mode == MapMode::Private => self.preserve_private(&mut state, &[pages]),
            Invalidation::Unresolve => {
                for part in state.revoked.without(pages) {
                    let _ = self.map_lazy(&mut state, part);
                }
            }
        }
    }
}
