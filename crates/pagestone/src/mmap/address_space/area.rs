//! One mapping's address space: which of its pages are what, and the steps from one to another.
//!
//! ```text
//!   absent   unresolved: the first touch is a fault for us   (userfaultfd, missing). A page that a backing answers
//!            with anything but zeros stays so until it has storage
//!   hole     zeros; the first store is a fault for us        (userfaultfd, write-protected)
//!   data     the pool's own pages                             (the media's file)
//!   nothing  SIGBUS, EFAULT: behind the end, or taken away    (an empty file)
//!
//!            touch              store, write_at            truncate, punch
//!   absent --------> hole -------------------------> data -----------------> nothing
//!      |  `--------------------- touch --------------> ^                        |
//!      ^-----------------------------------------------------------------------'
//!                           growth, refresh
//! ```
//!
//! Every step is one system call on the target, so that no store can fall between two of them.
//! What is done to pages is decided under the inode's lock ([`InodeWrite`]); the state below is locked inside it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use pmem::{MapMode, MediaKind};

use crate::alloc::Run;
use crate::data::FileHandle;
use crate::engine::{Engine, InodeWrite, WeakEngine};
use crate::error::{Error, Result};
use crate::extent::resolve::Span;
use crate::layout::InodeRec;
use crate::lock::{Mutex, StdMutex, StdMutexGuard, rank};
use crate::mmap::address_space::page_ranges::Ranges;
use crate::mmap::address_space::steps::{run_of, runs, spans};
use crate::mmap::fault::service::{MapMechanism, Mechanism};
use crate::mmap::fork::channel::Links;
use crate::mmap::fork::child;
use crate::mmap::kernel::userfault;
use crate::units::{Ino, PAGE_SIZE, PAGES_PER_FRAME, PageNo};

/// Pieces of storage that are mapped at one fault; a window of more is mapped by frames.
const PIECES: usize = 256;
/// Pages of an aligned window that get storage together once one of them has some.
const FILL_WINDOW: u64 = 16;

/// Why a page cannot be reached.
#[derive(Debug)]
pub(in crate::mmap) enum Failure {
    /// No space for a hole that was stored to.
    NoSpace,
    /// Anything else.
    Other(String),
}

/// What pages are, as a parent describes them to its child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::mmap) enum Shown {
    /// Behind the end of the file.
    Nothing,
    /// Zeros, until somebody stores there.
    Hole,
    /// Not settled: the next touch asks.
    Unresolved,
    /// The pool's pages from this one on.
    Data(PageNo),
}

/// How a range is mapped.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmap) struct How {
    pub(in crate::mmap) lend: MapMode,
    /// Private copies are to be committed, or forgotten.
    pub(in crate::mmap) atomic: bool,
    pub(in crate::mmap) mechanism: &'static Mechanism,
}

/// A mapping's address space.
#[derive(Debug)]
pub(in crate::mmap) struct Area {
    /// The same in a child.
    pub(in crate::mmap) id: u64,
    pub(in crate::mmap) pool: WeakEngine,
    /// Children that have it too.
    pub(in crate::mmap) links: Mutex<rank::Leaf, Links>,
    pub(in crate::mmap) ino: Ino,
    /// Address of the first page.
    pub(in crate::mmap) base: usize,
    /// File page there.
    pub(in crate::mmap) first: u64,
    pub(in crate::mmap) pages: u64,
    pub(in crate::mmap) lend: MapMode,
    /// Private copies are to be committed, or forgotten: pages that are replaced become unresolved.
    pub(in crate::mmap) atomic: bool,
    /// Pages of the smallest piece that the media can map: 1, or 512.
    pub(in crate::mmap) map_alignment: u64,
    /// The pages are a device's own memory.
    pub(in crate::mmap) dax: bool,
    /// The kernel can block stores to its pages (userfaultfd write-protection).
    pub(in crate::mmap) holds_stores: bool,
    /// Stores stay in the processor's cache until somebody flushes them.
    pub(in crate::mmap) flushed: bool,
    /// Pages that are looked at together, a power of two.
    pub(in crate::mmap) window: u64,
    mechanism: &'static Mechanism,
    /// A child can release it, whoever waits for it in the parent.
    state: StdMutex<rank::MapState, State>,
}

#[derive(Debug, Default)]
pub(in crate::mmap) struct State {
    /// The address space was given back.
    gone: bool,
    /// File pages that are an error until refreshed, or until the file grows over them again.
    pub(in crate::mmap) cut: Ranges,
    /// File pages where nothing is mapped at present.
    pub(in crate::mmap) nothing: Ranges,
    /// File pages where a hole is mapped at present.
    pub(in crate::mmap) holes: Ranges,
    /// File pages that are unresolved at present.
    pub(in crate::mmap) absent: Ranges,
    /// Copies that wait for a commit and are of what the file had there before.
    pub(in crate::mmap) stale: Ranges,
    /// File pages whose copies with stores were taken away, by a punch or a truncate.
    pub(in crate::mmap) lost: Ranges,
    /// Copies in which the file came to end, and the shortest that it was then.
    pub(in crate::mmap) shortened: BTreeMap<u64, u64>,
    /// Pages of the pool that a private mapping shows and that are not, or may not stay, the file's own; each is pinned
    /// once.
    pub(in crate::mmap) pinned: Ranges,
    failed: BTreeMap<u64, Failure>,
    /// The pages that the last store to a hole got.
    filled: Range<u64>,
    /// In a child: invalidations received from the parent.
    pub(in crate::mmap) changes: u64,
    /// In a child: it has no connection to the parent.
    pub(in crate::mmap) poisoned: bool,
}

impl Area {
    /// Address space at `base` for these pages of `file`.
    pub(in crate::mmap) fn new(file: &FileHandle, base: usize, pages: Range<u64>, how: How) -> Area {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let count = pages.end - pages.start;
        let region = &file.engine().alloc.region;
        let map_alignment = region.map_alignment().map_or(1, |bytes| bytes / PAGE_SIZE);
        Area {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            pool: file.engine().downgrade(),
            links: Mutex::default(),
            ino: file.ino(),
            base,
            first: pages.start,
            pages: count,
            lend: how.lend,
            atomic: how.atomic,
            map_alignment,
            dax: matches!(region.describe().kind, MediaKind::DaxDevice | MediaKind::DaxFile),
            holds_stores: matches!(region.describe().kind, MediaKind::Memory | MediaKind::Tmpfs | MediaKind::Hugetlbfs)
                && matches!(how.mechanism, Mechanism::Userfault(_)),
            flushed: how.lend == MapMode::Write && file.engine().stores_need_flush(),
            window: (count / 4096).next_power_of_two().max(PAGES_PER_FRAME),
            mechanism: how.mechanism,
            state: StdMutex::numbered(base, State::default()),
        }
    }

    /// The state, for a fork too: of a mapping that is gone as well.
    pub(in crate::mmap) fn locked(&self) -> StdMutexGuard<'_, State> {
        self.state.lock()
    }

    pub(in crate::mmap) fn uffd(&self) -> &Mechanism {
        child::mechanism().unwrap_or(self.mechanism)
    }

    /// The file pages mapped.
    pub(in crate::mmap) fn range(&self) -> Range<u64> {
        self.first..self.first + self.pages
    }

    /// The part of these file pages that is mapped.
    pub(in crate::mmap) fn clip(&self, pages: Range<u64>) -> Range<u64> {
        let mine = self.range();
        let start = pages.start.clamp(mine.start, mine.end);
        start..pages.end.clamp(start, mine.end)
    }

    /// Where these file pages lie.
    pub(in crate::mmap) fn addr(&self, pages: &Range<u64>) -> Range<usize> {
        let at = |page: u64| self.base + ((page - self.first) * PAGE_SIZE) as usize;
        at(pages.start)..at(pages.end)
    }

    /// The file page at an address.
    pub(in crate::mmap) fn page_at(&self, addr: usize) -> u64 {
        self.first + (addr - self.base) as u64 / PAGE_SIZE
    }

    /// The file pages at these addresses.
    pub(in crate::mmap) fn pages_at(&self, addr: Range<usize>) -> Range<u64> {
        let first = self.page_at(addr.start);
        first..first + addr.len() as u64 / PAGE_SIZE
    }

    /// The window around a page.
    pub(in crate::mmap) fn window_of(&self, page: u64) -> Range<u64> {
        let start = page / self.window * self.window;
        self.clip(start..start + self.window)
    }

    /// The state, unless the address space was given back.
    pub(in crate::mmap) fn live(&self) -> Option<StdMutexGuard<'_, State>> {
        let state = self.locked();
        (!state.gone).then_some(state)
    }

    /// Gives the address space (`all` of it) back. Nothing is mapped there afterwards by anybody.
    pub(in crate::mmap) fn give_back(&self, engine: &Engine, all: Range<usize>) {
        let mut state = self.locked();
        state.gone = true;
        userfault::unmap(all);
        drop(state);
        if engine.alloc.check_process().is_ok() && self.links.lock().is_empty() {
            self.unpin(engine);
        }
    }

    /// Unpins what a private mapping showed.
    pub(in crate::mmap) fn unpin(&self, engine: &Engine) {
        let pinned = std::mem::take(&mut self.locked().pinned);
        pinned.within(0..u64::MAX).into_iter().for_each(|pages| engine.alloc.unpin(run_of(pages)));
    }

    /// Pages that are pinned for a private mapping.
    pub(in crate::mmap) fn pinned(&self) -> u64 {
        self.locked().pinned.pages()
    }

    /// Unmaps and unpins everything that is pinned; true if anything was. Private copies stay.
    pub(in crate::mmap) fn release_pins(&self, held: InodeWrite<'_>, engine: &Engine) -> bool {
        debug_assert_eq!(held.ino(), self.ino);
        // A child may go on showing it.
        if self.pinned() == 0 || !self.links.lock().is_empty() {
            return false;
        }
        {
            let Some(mut state) = self.live() else { return false };
            let shown = Area::data(&state, self.range());
            self.unmap_all_but_copies(&mut state, shown);
        }
        self.unpin(engine);
        true
    }

    /// Keeps what a private mapping shows from reuse until [`Area::unpin`].
    pub(in crate::mmap) fn pin(state: &mut State, engine: &Engine, run: Run) {
        let pages = run.page.0..run.page.0 + run.pages;
        state.pinned.without(pages.clone()).into_iter().for_each(|part| engine.alloc.pin(run_of(part)));
        state.pinned.insert(pages);
    }

    /// Everything is unresolved.
    pub(in crate::mmap) fn start(&self) -> io::Result<()> {
        match self.live() {
            Some(mut state) => self.map_lazy(&mut state, self.range()),
            None => Ok(()),
        }
    }

    /// How its faults are answered.
    pub(in crate::mmap) fn mechanism(&self) -> MapMechanism {
        self.mechanism.name()
    }

    /// Whether the page was taken away.
    pub(in crate::mmap) fn is_cut(&self, page: u64) -> bool {
        self.live().is_none_or(|state| state.cut.contains(page))
    }

    /// Maps the storage of the file as it is, `most` pieces at most; absent pages wait for their first
    /// touch (but holes where stores stay private: they need no storage).
    pub(in crate::mmap) fn install_first(
        &self,
        held: InodeWrite<'_>,
        engine: &Engine,
        rec: &InodeRec,
        most: usize,
    ) -> usize {
        let inside = self.clip(self.whole(0..rec.size.div_ceil(PAGE_SIZE)));
        let Ok(spans) = spans(engine, rec, inside, most) else { return 0 };
        let pieces = spans.len();
        for (pages, span) in spans {
            let at_once = self.lend == MapMode::Private || self.mechanism() == MapMechanism::Signals;
            if !matches!(span, Span::Absent { .. }) || at_once && span.is_hole() {
                self.install(held, engine, rec, pages);
            }
        }
        pieces
    }

    /// Maps what these pages are.
    pub(in crate::mmap) fn install(&self, held: InodeWrite<'_>, engine: &Engine, rec: &InodeRec, pages: Range<u64>) {
        debug_assert_eq!(held.ino(), self.ino);
        let pages = self.clip(self.whole(pages));
        if self.map_alignment == 1 {
            if let Some(mut state) = self.live() {
                self.show(&mut state, engine, rec, pages);
            }
            return;
        }
        for first in pages.step_by(self.map_alignment as usize) {
            let chunk = first..first + self.map_alignment;
            let gathered =
                self.make_contiguous(held, engine, chunk.clone()).and_then(|()| engine.alloc.inode(self.ino));
            let Some(mut state) = self.live() else { return };
            match gathered {
                Ok(rec) => self.show(&mut state, engine, &rec, chunk),
                Err(e) => chunk.for_each(|page| self.fail_locked(&mut state, page, &e)),
            }
        }
    }

    /// The pages rounded out to what the media can map.
    pub(in crate::mmap) fn whole(&self, pages: Range<u64>) -> Range<u64> {
        let end = pages.end.checked_next_multiple_of(self.map_alignment).unwrap_or(pages.end);
        pages.start / self.map_alignment * self.map_alignment..end
    }

    /// Has storage in these pages moved to where it can be mapped.
    pub(in crate::mmap) fn make_contiguous(
        &self,
        held: InodeWrite<'_>,
        engine: &Engine,
        pages: Range<u64>,
    ) -> Result<()> {
        let end = engine.alloc.inode(self.ino)?.size.div_ceil(PAGE_SIZE).next_multiple_of(self.map_alignment);
        let pages = self.clip(self.whole(pages));
        match self.map_alignment {
            1 => Ok(()),
            // Also where this mapping shows nothing: a child may show it again.
            step => {
                let mut chunks = (pages.start..pages.end.min(end)).step_by(step as usize);
                chunks.try_for_each(|first| engine.make_contiguous(held, first, false))
            }
        }
    }

    /// As `install`, of the window around a page that was touched, or less if that is in many
    /// pieces; returns what was done.
    pub(in crate::mmap) fn install_around(
        &self,
        held: InodeWrite<'_>,
        engine: &Engine,
        rec: &InodeRec,
        page: u64,
    ) -> (Range<u64>, usize) {
        let window = self.window_of(page);
        let pieces_of = |pages: Range<u64>, most| spans(engine, rec, pages, most).map_or(most, |spans| spans.len());
        let mut pieces = pieces_of(window.clone(), PIECES);
        let mut pages = window;
        if pieces == PIECES {
            let start = page / PAGES_PER_FRAME * PAGES_PER_FRAME;
            pages = self.clip(start..start + PAGES_PER_FRAME);
            // Each may be a mapping of its own to the kernel.
            pieces = pieces_of(pages.clone(), PAGES_PER_FRAME as usize);
        }
        self.unresolved(&pages).into_iter().for_each(|part| self.install(held, engine, rec, part));
        (pages, pieces)
    }

    /// The pages of these that a fault has to map. A shared mapping shows the same storage again; what a private one
    /// shows may have stores in it, which only the kernel has.
    fn unresolved(&self, pages: &Range<u64>) -> Vec<Range<u64>> {
        match (self.lend, self.live()) {
            (MapMode::Private, Some(state)) => state.absent.within(pages.clone()),
            _ => vec![pages.clone()],
        }
    }

    /// Which pages to give storage to at a store to `page`, which lies in a hole that reaches over
    /// `hole`. Nothing behind the file's last page.
    ///
    /// One page where nothing around it has storage: a single store pays for no more than itself. A second store
    /// to an aligned window of 16 pages fills the window. A program that goes on where the last fill ended gets twice
    /// as much each time, whole frames in the end.
    pub(in crate::mmap) fn fill_around(&self, page: u64, hole: Range<u64>, end: u64) -> Range<u64> {
        if self.map_alignment > 1 {
            return self.whole(page..page + 1);
        }
        let Some(mut state) = self.live() else { return page..page + 1 };
        let hole = self.clip(hole.start..hole.end.min(end));
        let window = |size: u64| {
            let start = page / size * size;
            start.max(hole.start)..(start + size).min(hole.end)
        };
        let last = state.filled.end - state.filled.start;
        let goes_on = last > 0 && page >= state.filled.end && page - state.filled.end < last.min(FILL_WINDOW);
        let whole = self.clip(page / FILL_WINDOW * FILL_WINDOW..(page / FILL_WINDOW + 1) * FILL_WINDOW);
        let around = match () {
            () if goes_on => window((last * 2).next_power_of_two().min(PAGES_PER_FRAME)),
            () if hole.start <= whole.start && whole.end.min(end) <= hole.end => page..page + 1,
            () => window(FILL_WINDOW),
        };
        state.filled = around.clone();
        around
    }

    /// Puts an error at `page`; it is reported once, and the page is tried again afterwards.
    pub(in crate::mmap) fn fail(&self, page: u64, error: &Error) {
        let Some(mut state) = self.live() else { return };
        self.fail_locked(&mut state, page, error);
    }

    pub(in crate::mmap) fn fail_locked(&self, state: &mut State, page: u64, error: &Error) {
        let failure = match error {
            Error::NoSpace => Failure::NoSpace,
            other => Failure::Other(other.to_string()),
        };
        state.failed.insert(page, failure);
        // If even that cannot be mapped, the page stays as it is and is asked for again.
        let _ = self.map_poison(state, page..page + 1);
    }

    /// Why `page` could not be reached; `None` if nothing is wrong (any more).
    pub(in crate::mmap) fn why(&self, page: u64) -> Option<Error> {
        let mut state = self.live()?;
        if state.poisoned {
            return Some(Error::Forked);
        }
        let at = page.saturating_mul(PAGE_SIZE);
        if let Some(failure) = state.failed.remove(&page) {
            let _ = self.map_lazy(&mut state, page..page + 1);
            return Some(match failure {
                Failure::NoSpace => Error::NoSpace,
                Failure::Other(what) => Error::mapping(io::Error::other(what)),
            });
        }
        match () {
            () if state.cut.contains(page) => Some(Error::Revoked(at)),
            () if state.nothing.contains(page) => Some(Error::BeyondEnd(at)),
            () => None,
        }
    }

    /// Pages that were taken away are the file's as it is now.
    pub(in crate::mmap) fn refresh(&self, pages: Range<u64>) -> Result<()> {
        let pages = self.clip(self.whole(pages));
        let Some(mut state) = self.live() else { return Ok(()) };
        state.cut.remove(pages.clone());
        let failed: Vec<u64> = state.failed.range(pages.clone()).map(|(&page, _)| page).collect();
        failed.iter().for_each(|page| drop(state.failed.remove(page)));
        for part in state.nothing.within(pages) {
            self.map_lazy(&mut state, part).map_err(Error::mapping)?;
        }
        Ok(())
    }

    /// Takes down what is mapped of these pages as holes, or (`all`) whatever it is; the next touch
    /// maps them again. Keeps the kernel's page tables, or its mappings, few.
    ///
    /// No witness: the inode is locked, but not in a child, where nobody maps these pages beside the thread that asks.
    pub(in crate::mmap) fn take_down(&self, pages: Range<u64>, all: bool) -> io::Result<()> {
        let Some(mut state) = self.live() else { return Ok(()) };
        let pages = self.clip(pages);
        let parts = if all { state.nothing.without(pages) } else { state.holes.within(pages) };
        for part in parts {
            // Put there as one piece, whatever of it is unresolved already.
            state.absent.remove(part.clone());
            self.map_lazy(&mut state, part)?;
        }
        Ok(())
    }

    /// Enters what is mapped of these pages into the page tables, for stores. Nothing else is touched: that would wait
    /// for an answer to a fault.
    pub(in crate::mmap) fn populate(&self, pages: Range<u64>) {
        let Some(state) = self.live() else { return };
        for part in Area::data(&state, self.clip(pages)) {
            userfault::populate(self.addr(&part));
        }
    }

    /// Pages of these that are mapped as holes at present.
    pub(in crate::mmap) fn holes_in(&self, pages: Range<u64>) -> u64 {
        self.live().map_or(0, |state| state.holes.within(pages).into_iter().map(|part| part.end - part.start).sum())
    }

    /// Pages mapped as holes at present, and pages where nothing can be reached.
    pub(in crate::mmap) fn counts(&self) -> (u64, u64) {
        self.live().map_or((0, 0), |state| (state.holes.pages(), state.nothing.pages()))
    }

    pub(in crate::mmap) fn cut_here(&self, pages: Range<u64>) {
        let Some(mut state) = self.live() else { return };
        state.filled = 0..0;
        state.cut.insert(pages.clone());
        if self.lend == MapMode::Private && !pages.is_empty() {
            if !self.atomic {
                state.lost.remove(pages.clone());
            }
            self.copies(pages.clone()).into_iter().for_each(|copy| state.lost.insert(copy));
        }
        if self.map_poison(&mut state, pages.clone()).is_err() {
            // No kernel mapping left to say "nothing" with: unmapped says it too (SIGSEGV).
            userfault::unmap(self.addr(&pages));
            state.holes.remove(pages.clone());
            state.absent.remove(pages.clone());
            state.nothing.insert(pages);
        }
    }

    /// File pages of `pages` that are mapped from storage.
    pub(in crate::mmap) fn data(state: &State, pages: Range<u64>) -> Vec<Range<u64>> {
        let others = [&state.absent, &state.holes, &state.nothing];
        let left = |left: Vec<Range<u64>>, set: &&Ranges| left.into_iter().flat_map(|part| set.without(part)).collect();
        others.iter().fold(vec![pages], left)
    }

    pub(in crate::mmap) fn freeze_here(&self, engine: &Engine, rec: &InodeRec, replaced: Option<&[Range<u64>]>) {
        let Some(mut state) = self.live() else { return };
        match self.lend {
            MapMode::Private if let Some(replaced) = replaced => self.preserve_private(&mut state, replaced),
            MapMode::Private => {
                let runs = runs(engine, rec, self.range()).unwrap_or_default();
                runs.into_iter().for_each(|run| Area::pin(&mut state, engine, run));
            }
            MapMode::Read | MapMode::Write => {
                for part in Area::data(&state, self.range()) {
                    if self.map_lazy(&mut state, part.clone()).is_err() {
                        // An error that refresh takes away, rather than a store to a frozen page.
                        let _ = self.map_poison(&mut state, part);
                    }
                }
            }
        }
    }
}
