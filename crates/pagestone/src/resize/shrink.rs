//! Shrinking: what lies behind the new end is moved, then the end.

use std::ops::ControlFlow;

use super::Resizing;
use crate::alloc::Limit;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layout::{FrameState, ORPHANS, PageUse, ROOT, frames_of};
use crate::units::{FRAME_SIZE, FrameNo, Ino, PAGES_PER_FRAME, PageNo};

/// Called with pages moved and pages to be moved in all, as far as that is known; no lock is held. `Break` ends the
/// operation after the step.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// How often everything is looked through: what is cloned meanwhile may have taken pages over that were not moved yet.
const PASSES: usize = 8;

/// A shrink under way.
pub(super) struct Shrink<'a, 'p> {
    pub(super) engine: &'a Engine,
    pub(super) limit: Limit<'a>,
    moved: u64,
    total: u64,
    /// The first thing that could not be read: what is damaged cannot be moved.
    unreadable: Option<Error>,
    /// A page behind the new end is pinned: whoever pinned it may be storing to it.
    pub(super) pinned: std::cell::Cell<bool>,
    progress: Progress<'p>,
}

impl Engine {
    /// Lets the pool have `size` bytes, rounded up to whole frames; not more than it has.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if what the pool holds does not fit; [`Error::Interrupted`]; [`Error::Pinned`] if pages behind
    /// the end stay in use by mappings or by a child process; what cannot be read or moved. The pool keeps its size then.
    pub(crate) fn shrink(&self, size: u64, progress: Progress<'_>) -> Result<()> {
        // First: a child may have inherited the lock taken.
        self.alloc.check_process()?;
        let frames = frames_of(size.checked_next_multiple_of(FRAME_SIZE).unwrap_or(size))?;
        let _resizing = Resizing::begin(&self.resizing)?;
        if frames > self.alloc.frames() {
            return Err(Error::Size(format!("the pool has {} bytes, less than {size}", self.alloc.size())));
        }
        if frames < self.least_frames() {
            let least = self.least_frames() * FRAME_SIZE;
            return Err(Error::Size(format!("{size} bytes are too few for this pool; the least is {least}")));
        }
        if frames < self.alloc.frames() {
            let mut shrink = Shrink::new(self, self.alloc.limit(frames)?, progress)?;
            shrink.evacuate_all()?;
            // Mappings may have pinned pages only to map them.
            for ino in self.opens.all_observed() {
                self.unpin_mapped(self.locks.write(&[ino]).of(ino));
            }
            self.cut_off(shrink.limit)?;
        }
        // The pool has its new size. What fails from here on leaves the media longer than it.
        let given_back =
            self.alloc.checkpoint().and_then(|()| Ok(self.alloc.region.release_from(frames * FRAME_SIZE)?));
        self.failures.note("giving back what lay behind the new end", given_back);
        Ok(())
    }

    /// Lets the pool end at the limit. A crash leaves the old number of frames or the new one.
    fn cut_off(&self, limit: Limit<'_>) -> Result<()> {
        // What was freed is in quarantine until then, and records describe it.
        self.alloc.checkpoint()?;
        if limit.is_pinned() {
            return Err(Error::Pinned);
        }
        // Asked again: nothing may be cut off that is in use.
        if limit.holds_anything()? {
            return Err(Error::Busy);
        }
        let used = limit.used()?;
        let change = self.alloc.change_layout();
        self.alloc.transact(true, |tx| {
            tx.put_frames(&change, limit.frames())?;
            tx.forget_pages(used);
            Ok(())
        })?;
        limit.end(used);
        Ok(())
    }

    /// Frames that a pool with this layout has at least.
    fn least_frames(&self) -> u64 {
        self.alloc.geometry.first_frame.0 + 3
    }
}

impl<'a, 'p> Shrink<'a, 'p> {
    fn new(engine: &'a Engine, limit: Limit<'a>, progress: Progress<'p>) -> Result<Shrink<'a, 'p>> {
        let mut total = 0;
        for frame in engine.alloc.used_frames_from(FrameNo(limit.frames())) {
            let (desc, _) = engine.alloc.frame_contents(frame)?;
            total += match desc.state() {
                FrameState::Whole => PAGES_PER_FRAME,
                FrameState::Split => u64::from(desc.used) - 1,
                _ => 0,
            };
        }
        Ok(Shrink { engine, limit, moved: 0, total, unreadable: None, pinned: std::cell::Cell::new(false), progress })
    }

    /// Whether the page lies behind the new end.
    pub(super) fn leaves(&self) -> impl Fn(PageNo) -> bool + use<> {
        let frames = self.limit.frames();
        move |page| page.frame().0 >= frames
    }

    /// Some pages were moved; no lock is held.
    pub(super) fn step(&mut self, pages: u64) -> Result<()> {
        self.moved += pages;
        let total = self.total.max(self.moved);
        match (self.progress)(self.moved, total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    }

    fn evacuate_all(&mut self) -> Result<()> {
        for _ in 0..PASSES {
            self.step(0)?;
            if !self.limit.holds_anything()? {
                return Ok(());
            }
            for ino in [ROOT, ORPHANS] {
                self.evacuate_if_readable(ino)?;
            }
            for frame in self.engine.alloc.used_frames_from(FrameNo(0)) {
                let pages = self.inode_pages_in(frame);
                for page in self.readable(pages)?.unwrap_or_default() {
                    self.evacuate_inodes_on(page)?;
                }
            }
            self.move_inode_pages()?;
        }
        match self.limit.holds_anything()? {
            true if self.pinned.get() => Err(Error::Pinned),
            true => Err(self.unreadable.take().unwrap_or(Error::Busy)),
            false => Ok(()),
        }
    }

    /// The pages of a frame that hold inodes.
    pub(super) fn inode_pages_in(&self, frame: FrameNo) -> Result<Vec<PageNo>> {
        let (_, pages) = self.engine.alloc.frame_contents(frame)?;
        Ok(pages.into_iter().filter(|&(_, what, _)| what == PageUse::Inodes).map(|(page, ..)| page).collect())
    }

    fn evacuate_inodes_on(&mut self, page: PageNo) -> Result<()> {
        let number = self.engine.alloc.number_of_inode_page(page);
        let Some(number) = self.readable(number)? else { return Ok(()) };
        for slot in 0..Ino::SLOTS_PER_PAGE as usize {
            let place = Ino::new(number, slot, 0);
            let rec = {
                let _lock = self.engine.locks.read(place);
                self.engine.alloc.inode_at_place(place)
            };
            if let Some(rec) = self.readable(rec)?.filter(|rec| !rec.is_free()) {
                self.evacuate_if_readable(rec.ino())?;
            }
        }
        Ok(())
    }

    fn evacuate_if_readable(&mut self, ino: Ino) -> Result<()> {
        let done = self.evacuate(ino);
        self.readable(done).map(drop)
    }

    /// What was read; nothing of what is damaged, or gone by now. It counts only if something is left in the end.
    pub(super) fn readable<T>(&mut self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(Error::Stale(_)) => Ok(None),
            Err(e @ (Error::Corrupt { .. } | Error::Lost(_) | Error::DataLost(_))) => {
                self.unreadable.get_or_insert(e);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}
