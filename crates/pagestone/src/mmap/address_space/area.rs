//! The address space of one mapping: the state of each of its pages. `steps.rs` has the transitions.
//!
//! ```text
//!   unresolved    the first access is a fault                      (userfaultfd, missing). An absent page that a
//!                 backing reads as anything but zeros stays so until it has storage
//!   hole          zeros: the first store is a fault                (userfaultfd, write-protected)
//!   data          the pool's own pages                             (the media's file)
//!   inaccessible  SIGBUS, EFAULT: beyond the end, or revoked       (an empty file)
//!
//!                access             store, write_at            truncate, punch
//!   unresolved --------> hole -------------------------> data ----------------> inaccessible
//!      |  `------------------- access -------------------> ^                        |
//!      ^---------------------------------------------------------------------------'
//!                           growth, refresh
//! ```
//!
//! Every transition is one system call on the target, so no store can fall between two of them. The inode's lock
//! ([`InodeWrite`]) protects the decision; the lock of the state below is taken inside it.

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

/// Limit on pieces of storage that one fault maps. If a window has more, only the frame around the page is mapped.
const PIECES: usize = 256;
/// Size of the aligned window whose pages are allocated together once one of them has storage.
const FILL_WINDOW: u64 = 16;

/// Why a page is inaccessible.
#[derive(Debug)]
pub(in crate::mmap) enum Failure {
    /// No space for a hole that was stored to.
    NoSpace,
    /// Anything else.
    Other(String),
}

/// The contents of pages, as a parent describes them to its child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::mmap) enum Shown {
    /// Beyond the end of the file.
    Nothing,
    /// Zeros until the first store.
    Hole,
    /// Unknown: the next access sends a request.
    Unresolved,
    /// Pages of the pool, starting with this one.
    Data(PageNo),
}

/// How a range is mapped.
#[derive(Clone, Copy, Debug)]
pub(in crate::mmap) struct Settings {
    pub(in crate::mmap) mode: MapMode,
    /// Private copies are committed or discarded.
    pub(in crate::mmap) atomic: bool,
    pub(in crate::mmap) mechanism: &'static Mechanism,
}

/// The address space of a mapping.
#[derive(Debug)]
pub(in crate::mmap) struct Area {
    /// The same number in a child.
    pub(in crate::mmap) id: u64,
    pub(in crate::mmap) pool: WeakEngine,
    /// Children that have the mapping too.
    pub(in crate::mmap) links: Mutex<rank::Leaf, Links>,
    pub(in crate::mmap) ino: Ino,
    /// Address of the first page.
    pub(in crate::mmap) base: usize,
    /// File page at that address.
    pub(in crate::mmap) first: u64,
    pub(in crate::mmap) pages: u64,
    pub(in crate::mmap) mode: MapMode,
    /// Private copies are committed or discarded: pages that are replaced become unresolved.
    pub(in crate::mmap) atomic: bool,
    /// Size of the smallest piece that the media can map, in pages: 1 or 512.
    pub(in crate::mmap) map_alignment: u64,
    /// The pages are device memory.
    pub(in crate::mmap) dax: bool,
    /// The kernel can block stores to its pages (userfaultfd write-protection).
    pub(in crate::mmap) can_block_stores: bool,
    /// Stores stay in the processor's cache until they are flushed.
    pub(in crate::mmap) flushed: bool,
    /// Pages that one fault resolves together, a power of two.
    pub(in crate::mmap) window: u64,
    mechanism: &'static Mechanism,
    /// A child can unlock it even if threads of the parent wait for it.
    state: StdMutex<rank::MapState, State>,
}

#[derive(Debug, Default)]
pub(in crate::mmap) struct State {
    /// The address space was unmapped.
    unmapped: bool,
    /// File pages that are revoked: an access is an error until they are refreshed or the file grows over them
    /// again.
    pub(in crate::mmap) revoked: Ranges,
    /// File pages that are inaccessible at present.
    pub(in crate::mmap) inaccessible: Ranges,
    /// File pages that are mapped as holes at present.
    pub(in crate::mmap) holes: Ranges,
    /// File pages that are unresolved at present.
    pub(in crate::mmap) unresolved: Ranges,
    /// Private copies of an atomic mapping whose page of the file has changed since.
    pub(in crate::mmap) stale: Ranges,
    /// File pages whose private copies were dropped by a punch or a truncate.
    pub(in crate::mmap) lost: Ranges,
    /// Private copies that the end of the file came to lie in, with the smallest length that the file has had
    /// there.
    pub(in crate::mmap) shortened: BTreeMap<u64, u64>,
    /// Pool pages that a private mapping maps and that are shared, or may become shared or be freed. Each is pinned
    /// once.
    pub(in crate::mmap) pinned: Ranges,
    failed: BTreeMap<u64, Failure>,
    /// The pages that the last store to a hole allocated.
    filled: Range<u64>,
    /// In a child: invalidations received from the parent.
    pub(in crate::mmap) changes: u64,
    /// In a child: the mapping has no connection to the parent.
    pub(in crate::mmap) poisoned: bool,
}

impl Area {
    /// Address space at `base` for these pages of `file`.
    pub(in crate::mmap) fn new(file: &FileHandle, base: usize, pages: Range<u64>, settings: Settings) -> Area {
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
            mode: settings.mode,
            atomic: settings.atomic,
            map_alignment,
            dax: matches!(region.describe().kind, MediaKind::DaxDevice | MediaKind::DaxFile),
            can_block_stores: matches!(
                region.describe().kind,
                MediaKind::Memory | MediaKind::Tmpfs | MediaKind::Hugetlbfs
            ) && matches!(settings.mechanism, Mechanism::Userfault(_)),
            flushed: settings.mode == MapMode::Write && file.engine().stores_need_flush(),
            window: (count / 4096).next_power_of_two().max(PAGES_PER_FRAME),
            mechanism: settings.mechanism,
            state: StdMutex::numbered(base, State::default()),
        }
    }

    /// The state, also of an unmapped area (a fork locks those too).
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

    /// The addresses of these file pages.
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

    /// The state, or `None` if the address space was unmapped.
    pub(in crate::mmap) fn live(&self) -> Option<StdMutexGuard<'_, State>> {
        let state = self.locked();
        (!state.unmapped).then_some(state)
    }

    /// Unmaps the address space (`all` of it). Nothing is mapped there afterwards.
    pub(in crate::mmap) fn give_back(&self, engine: &Engine, all: Range<usize>) {
        let mut state = self.locked();
        state.unmapped = true;
        userfault::unmap(all);
        drop(state);
        if engine.alloc.check_process().is_ok() && self.links.lock().is_empty() {
            self.unpin(engine);
        }
    }

    /// Drops the pins of a private mapping.
    pub(in crate::mmap) fn unpin(&self, engine: &Engine) {
        let pinned = std::mem::take(&mut self.locked().pinned);
        pinned.within(0..u64::MAX).into_iter().for_each(|pages| engine.alloc.unpin(run_of(pages)));
    }

    /// Pages that are pinned for a private mapping.
    pub(in crate::mmap) fn pinned(&self) -> u64 {
        self.locked().pinned.pages()
    }

    /// Unmaps and unpins all pinned pages. Returns true if there were any. Private copies stay.
    pub(in crate::mmap) fn release_pins(&self, held: InodeWrite<'_>, engine: &Engine) -> bool {
        debug_assert_eq!(held.ino(), self.ino);
        // A child may still map them.
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

    /// Pins pages that a private mapping maps, until [`Area::unpin`].
    pub(in crate::mmap) fn pin(state: &mut State, engine: &Engine, run: Run) {
        let pages = run.page.0..run.page.0 + run.pages;
        state.pinned.without(pages.clone()).into_iter().for_each(|part| engine.alloc.pin(run_of(part)));
        state.pinned.insert(pages);
    }

    /// Makes all pages unresolved.
    pub(in crate::mmap) fn start(&self) -> io::Result<()> {
        match self.live() {
            Some(mut state) => self.map_lazy(&mut state, self.range()),
            None => Ok(()),
        }
    }

    /// The mechanism that resolves its faults.
    pub(in crate::mmap) fn mechanism(&self) -> MapMechanism {
        self.mechanism.name()
    }

    /// Whether the page was revoked.
    pub(in crate::mmap) fn is_revoked(&self, page: u64) -> bool {
        self.live().is_none_or(|state| state.revoked.contains(page))
    }

    /// Maps the storage of the file, at most `most` pieces. Absent pages stay unresolved until their first access,
    /// except holes of a private mapping: these need no storage and are mapped now.
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
            let at_once = self.mode == MapMode::Private || self.mechanism() == MapMechanism::Signals;
            if !matches!(span, Span::Absent { .. }) || at_once && span.is_hole() {
                self.install(held, engine, rec, pages);
            }
        }
        pieces
    }

    /// Maps these pages as the file has them.
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
            let relocated =
                self.make_contiguous(held, engine, chunk.clone()).and_then(|()| engine.alloc.inode(self.ino));
            let Some(mut state) = self.live() else { return };
            match relocated {
                Ok(rec) => self.show(&mut state, engine, &rec, chunk),
                Err(e) => chunk.for_each(|page| self.fail_locked(&mut state, page, &e)),
            }
        }
    }

    /// The pages, rounded out to what the media can map.
    pub(in crate::mmap) fn whole(&self, pages: Range<u64>) -> Range<u64> {
        let end = pages.end.checked_next_multiple_of(self.map_alignment).unwrap_or(pages.end);
        pages.start / self.map_alignment * self.map_alignment..end
    }

    /// Relocates the storage of these pages so that the media can map it.
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
            // Also where this mapping has nothing mapped: a child may map it again.
            step => {
                let mut chunks = (pages.start..pages.end.min(end)).step_by(step as usize);
                chunks.try_for_each(|first| engine.make_contiguous(held, first, false))
            }
        }
    }

    /// As `install`, for the window around a page that was accessed, or for less if the window has many pieces.
    /// Returns the pages mapped and their number of pieces.
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
            // Each page may become a kernel mapping.
            pieces = pieces_of(pages.clone(), PAGES_PER_FRAME as usize);
        }
        self.unresolved(&pages).into_iter().for_each(|part| self.install(held, engine, rec, part));
        (pages, pieces)
    }

    /// The pages among these that a fault has to map. A shared mapping can map the same storage again. A private
    /// mapping may have stores in its pages, which only the kernel has, so only unresolved pages are mapped.
    fn unresolved(&self, pages: &Range<u64>) -> Vec<Range<u64>> {
        match (self.mode, self.live()) {
            (MapMode::Private, Some(state)) => state.unresolved.within(pages.clone()),
            _ => vec![pages.clone()],
        }
    }

    /// The pages to allocate for a store to `page`, which lies in the hole `hole`. None beyond the last page of the
    /// file.
    ///
    /// One page if the aligned window of 16 pages around it has no storage: a single store pays for its page alone.
    /// The second store to a window fills the window. While a program continues where the last fill ended, each
    /// fill is twice as large as the one before, up to a whole frame.
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
        let continues = last > 0 && page >= state.filled.end && page - state.filled.end < last.min(FILL_WINDOW);
        let whole = self.clip(page / FILL_WINDOW * FILL_WINDOW..(page / FILL_WINDOW + 1) * FILL_WINDOW);
        let around = match () {
            () if continues => window((last * 2).next_power_of_two().min(PAGES_PER_FRAME)),
            () if hole.start <= whole.start && whole.end.min(end) <= hole.end => page..page + 1,
            () => window(FILL_WINDOW),
        };
        state.filled = around.clone();
        around
    }

    /// Makes `page` inaccessible with an error. The error is reported once, then the page is resolved again.
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
        // If that fails too, the page stays as it is and is resolved again.
        let _ = self.map_poison(state, page..page + 1);
    }

    /// Why `page` is inaccessible; `None` if no error is recorded (any more). A failure is returned once: the page
    /// becomes unresolved.
    pub(in crate::mmap) fn take_error(&self, page: u64) -> Option<Error> {
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
            () if state.revoked.contains(page) => Some(Error::Revoked(at)),
            () if state.inaccessible.contains(page) => Some(Error::BeyondEnd(at)),
            () => None,
        }
    }

    /// Revoked pages show the file again, as it is now.
    pub(in crate::mmap) fn refresh(&self, pages: Range<u64>) -> Result<()> {
        let pages = self.clip(self.whole(pages));
        let Some(mut state) = self.live() else { return Ok(()) };
        state.revoked.remove(pages.clone());
        let failed: Vec<u64> = state.failed.range(pages.clone()).map(|(&page, _)| page).collect();
        failed.iter().for_each(|page| drop(state.failed.remove(page)));
        for part in state.inaccessible.within(pages) {
            self.map_lazy(&mut state, part).map_err(Error::mapping)?;
        }
        Ok(())
    }

    /// Unmaps the holes among these pages, or (`all`) every page; the next access maps them again. This limits the
    /// kernel's page tables, or its number of mappings.
    ///
    /// There is no witness: the inode is locked except in a child, where only the calling thread maps these pages.
    pub(in crate::mmap) fn take_down(&self, pages: Range<u64>, all: bool) -> io::Result<()> {
        let Some(mut state) = self.live() else { return Ok(()) };
        let pages = self.clip(pages);
        let parts = if all { state.inaccessible.without(pages) } else { state.holes.within(pages) };
        for part in parts {
            // Mapped as one piece, including the parts that are unresolved already.
            state.unresolved.remove(part.clone());
            self.map_lazy(&mut state, part)?;
        }
        Ok(())
    }

    /// Enters what is mapped of these pages into the page tables, writable. Other pages are not accessed: that
    /// would wait for a fault to be resolved.
    pub(in crate::mmap) fn populate(&self, pages: Range<u64>) {
        let Some(state) = self.live() else { return };
        for part in Area::data(&state, self.clip(pages)) {
            userfault::populate(self.addr(&part));
        }
    }

    /// The number of these pages that are mapped as holes at present.
    pub(in crate::mmap) fn holes_in(&self, pages: Range<u64>) -> u64 {
        self.live().map_or(0, |state| state.holes.within(pages).into_iter().map(|part| part.end - part.start).sum())
    }

    /// The number of pages mapped as holes at present, and of inaccessible pages.
    pub(in crate::mmap) fn counts(&self) -> (u64, u64) {
        self.live().map_or((0, 0), |state| (state.holes.pages(), state.inaccessible.pages()))
    }

    pub(in crate::mmap) fn revoke_here(&self, pages: Range<u64>) {
        let Some(mut state) = self.live() else { return };
        state.filled = 0..0;
        state.revoked.insert(pages.clone());
        if self.mode == MapMode::Private && !pages.is_empty() {
            if !self.atomic {
                state.lost.remove(pages.clone());
            }
            self.copies(pages.clone()).into_iter().for_each(|copy| state.lost.insert(copy));
        }
        if self.map_poison(&mut state, pages.clone()).is_err() {
            // No kernel mapping is left for the inaccessible state. An unmapped address is inaccessible too
            // (SIGSEGV).
            userfault::unmap(self.addr(&pages));
            state.holes.remove(pages.clone());
            state.unresolved.remove(pages.clone());
            state.inaccessible.insert(pages);
        }
    }

    /// File pages of `pages` that are mapped from storage.
    pub(in crate::mmap) fn data(state: &State, pages: Range<u64>) -> Vec<Range<u64>> {
        let others = [&state.unresolved, &state.holes, &state.inaccessible];
        let left = |left: Vec<Range<u64>>, set: &&Ranges| left.into_iter().flat_map(|part| set.without(part)).collect();
        others.iter().fold(vec![pages], left)
    }

    pub(in crate::mmap) fn freeze_here(&self, engine: &Engine, rec: &InodeRec, replaced: Option<&[Range<u64>]>) {
        let Some(mut state) = self.live() else { return };
        match self.mode {
            MapMode::Private if let Some(replaced) = replaced => self.preserve_private(&mut state, replaced),
            MapMode::Private => {
                let runs = runs(engine, rec, self.range()).unwrap_or_default();
                runs.into_iter().for_each(|run| Area::pin(&mut state, engine, run));
            }
            MapMode::Read | MapMode::Write => {
                for part in Area::data(&state, self.range()) {
                    if self.map_lazy(&mut state, part.clone()).is_err() {
                        // An error until the next refresh is better than a store to a frozen page.
                        let _ = self.map_poison(&mut state, part);
                    }
                }
            }
        }
    }
}
