//! How a mapping follows changes of its file, in this process and in the children that have it.
//!
//! ```text
//!   invalidate   inaccessible                revalidate, grown               unresolved
//!   filled       mapped to the new storage   freeze, unmap_for_relocation    unresolved: the pages will move
//! ```
//!
//! Each call is complete when it returns.

use std::io;
use std::ops::Range;

use pmem::MapMode;

use crate::engine::{Engine, InodeRead, InodeWrite, MappingObserver};
use crate::error::{Error, Result};
use crate::layout::InodeRec;
use crate::mmap::address_space::area::Area;
use crate::mmap::address_space::page_ranges::Ranges;
use crate::mmap::fork::channel::Invalidation;

impl MappingObserver for Area {
    fn invalidate(&self, held: InodeWrite<'_>, pages: Range<u64>) {
        debug_assert_eq!(held.ino(), self.ino);
        if pages.is_empty() {
            return;
        }
        // Where single pages cannot be mapped, they cannot be unmapped either.
        let pages = self.clip(self.whole(pages));
        self.revoke_here(pages.clone());
        self.revoke_in_children(&pages);
    }

    fn freeze(
        &self,
        held: InodeWrite<'_>,
        engine: &Engine,
        rec: &InodeRec,
        replaced: Option<&[Range<u64>]>,
    ) -> Result<()> {
        debug_assert_eq!(held.ino(), self.ino);
        let pages = match (self.mode, replaced) {
            (MapMode::Private, None | Some([])) => self.first..self.first,
            (MapMode::Private, Some([first, .., last])) => self.clip(self.whole(first.start..last.end)),
            (MapMode::Private, Some([all])) => self.clip(self.whole(all.clone())),
            _ => self.range(),
        };
        self.freeze_here(engine, rec, replaced);
        self.unresolve_in_children(&pages)
    }

    fn unmap_for_relocation(&self, held: InodeWrite<'_>, pages: Range<u64>) -> Result<()> {
        debug_assert_eq!(held.ino(), self.ino);
        let pages = self.clip(self.whole(pages));
        match self.live() {
            Some(mut state) if self.mode == MapMode::Private => {
                self.preserve_private(&mut state, std::slice::from_ref(&pages))
            }
            Some(mut state) => {
                let parts = Area::data(&state, pages.clone());
                parts.into_iter().try_for_each(|part| self.map_lazy(&mut state, part)).map_err(Error::mapping)?;
            }
            None => {}
        }
        self.unresolve_in_children(&pages)
    }

    fn unpin(&self, held: InodeWrite<'_>, engine: &Engine) -> bool {
        self.can_block_stores && self.release_pins(held, engine)
    }

    fn revalidate(&self, held: InodeWrite<'_>, pages: Range<u64>) {
        debug_assert_eq!(held.ino(), self.ino);
        let pages = self.clip(self.whole(pages));
        // The private stores there are lost, so the pages stay an error until they are refreshed. An atomic mapping
        // needs no such error: its commit reports the conflict.
        let lost = match self.live() {
            Some(state) if self.mode == MapMode::Private && !self.atomic => state.lost.within(pages.clone()),
            _ => Vec::new(),
        };
        let mut back = Ranges::default();
        back.insert(pages.clone());
        lost.into_iter().for_each(|part| back.remove(part));
        // A page that cannot be mapped now stays an error until it is refreshed.
        back.within(pages.clone()).into_iter().for_each(|part| drop(self.refresh(part)));
        self.invalidate_in_children(Invalidation::Allow, &self.clip(pages));
    }

    fn filled(&self, held: InodeWrite<'_>, engine: &Engine, rec: &InodeRec, pages: Range<u64>) {
        if self.mode != MapMode::Private {
            self.install(held, engine, rec, pages.clone());
            self.invalidate_in_children(Invalidation::Unresolve, &self.clip(pages));
        } else if let Some(mut state) = self.live() {
            // The mapped zeros or shared pages are no longer the file's contents.
            let pages = self.clip(self.whole(pages));
            let mut shown = Ranges::default();
            state.holes.within(pages.clone()).into_iter().for_each(|part| shown.insert(part));
            Area::data(&state, pages.clone()).into_iter().for_each(|part| shown.insert(part));
            self.unmap_all_but_copies(&mut state, shown.within(pages));
        }
    }

    fn fills_in_place(&self) -> bool {
        self.mode != MapMode::Private
    }

    fn changed(&self, held: InodeRead<'_>, pages: &[Range<u64>]) {
        self.note_changed(held, pages);
    }

    fn shortened(&self, held: InodeWrite<'_>, len: u64) {
        self.note_shortened(held, len);
    }

    fn stores(&self) -> Range<u64> {
        if self.flushed { self.range() } else { self.first..self.first }
    }

    fn grown(&self, held: InodeWrite<'_>, pages: Range<u64>) {
        debug_assert_eq!(held.ino(), self.ino);
        let pages = self.whole(pages);
        let _ = self.refresh(pages.clone());
        self.invalidate_in_children(Invalidation::Allow, &self.clip(pages));
    }
}

impl Area {
    /// Makes the pages unresolved in the children, because they will be relocated.
    fn unresolve_in_children(&self, pages: &Range<u64>) -> Result<()> {
        match pages.is_empty() || self.invalidate_in_children(Invalidation::Unresolve, pages) {
            true => Ok(()),
            false => Err(Error::mapping(io::Error::other("a child process that has the file mapped does not answer"))),
        }
    }
}
