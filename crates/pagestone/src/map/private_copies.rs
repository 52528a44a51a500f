//! What a private mapping keeps when the pages that it maps are replaced.
//!
//! ```text
//!   stored to: the kernel has a copy     kept
//!   mapped from the pool                copied; in an atomic mapping unresolved
//!   no memory for a copy                an error until refreshed
//! ```

use std::ops::Range;

use super::area::{Area, State};
use super::pages;
use super::ranges::Ranges;
use super::service::Mechanism;
use crate::media::reach;

impl Area {
    /// The storage of these pages is about to be replaced. Private copies stay. Pages that are mapped from the pool are
    /// copied; in an atomic mapping they become unresolved.
    pub(super) fn preserve_private(&self, state: &mut State, pages: &[Range<u64>]) {
        let mut whole = Ranges::default();
        pages.iter().for_each(|pages| whole.insert(self.clip(self.whole(pages.clone()))));
        let whole = whole.within(self.range()).into_iter();
        // An unresolved page is not touched: that would wait for the inode, which is held here.
        if self.atomic {
            let there = whole.flat_map(|part| state.nothing.without(part));
            let parts = there.flat_map(|part| state.absent.without(part)).collect();
            self.unmap_all_but_copies(state, parts);
        } else {
            let parts: Vec<_> = whole.flat_map(|part| Area::data(state, part)).collect();
            parts.iter().for_each(|part| self.make_private(state, part));
        }
    }

    /// Unmaps the pages of these that are no private copies: the next touch maps what the file has then.
    ///
    /// No store may fall between the scan of the page tables and the unmapping: stores are blocked meanwhile,
    /// where the kernel can do that (not for pages of an ordinary file).
    pub(super) fn unmap_all_but_copies(&self, state: &mut State, parts: Vec<Range<u64>>) {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return };
        let hull = self.addr(&(first.start..last.end));
        let mut rest = Ranges::default();
        parts.into_iter().for_each(|part| rest.insert(part));
        let mut held = Vec::new();
        // What cannot be unmapped.
        let mut stays = Ranges::default();
        // One scan of the page tables, however many parts there are.
        if let Ok(Some(mut copies)) = pages::private_copies(hull.clone(), self.dax) {
            copies.iter().for_each(|copy| rest.remove(self.pages_at(copy.clone())));
            held = rest.within(self.range());
            held.retain(|part| self.hold_stores(part));
            if !held.is_empty() {
                // Copies that were made in between. Protected pages that are not there look like swapped ones now.
                let more = pages::copies_in_memory(hull.clone(), self.dax).ok().flatten().unwrap_or_else(|| vec![hull]);
                more.iter().for_each(|copy| rest.remove(self.pages_at(copy.clone())));
                copies.extend(more);
            }
            for copy in copies {
                let piece = self.whole(self.pages_at(copy));
                // Pages that cannot be mapped singly stay as they are: a later store to them is a conflict.
                let beside = rest.within(piece.clone());
                beside.into_iter().for_each(|pages| state.stale.insert(pages));
                rest.remove(piece);
            }
            for part in rest.within(self.range()) {
                if self.put_absent(state, part.clone()).is_err() {
                    stays.insert(part);
                }
            }
        } else {
            stays = rest;
        }
        for part in held {
            let absent = state.absent.within(part.clone());
            let mut left = Ranges::default();
            left.insert(part);
            absent.into_iter().for_each(|part| left.remove(part));
            left.within(self.range()).into_iter().for_each(|part| self.allow_stores(&part));
        }
        for part in stays.within(self.range()) {
            // Zeros that the file no longer has. A copy of them would count as a store, so a store there is a conflict.
            let holes = state.holes.within(part.clone());
            holes.into_iter().for_each(|hole| state.stale.insert(hole));
            state.holes.without(part).iter().for_each(|part| self.make_private(state, part));
        }
    }

    fn hold_stores(&self, pages: &Range<u64>) -> bool {
        match self.uffd() {
            Mechanism::Userfault(uffd) => {
                let addr = self.addr(pages);
                let held = uffd.hold_stores(addr.clone()).is_ok();
                if !held {
                    // A part of it may be.
                    uffd.allow_stores(addr);
                }
                held
            }
            Mechanism::Signals => false,
        }
    }

    fn allow_stores(&self, pages: &Range<u64>) {
        if let Mechanism::Userfault(uffd) = self.uffd() {
            uffd.allow_stores(self.addr(pages));
        }
    }

    /// Has the kernel make private copies of pages of a private mapping, by storing what is there. Where it has no
    /// memory for them they are taken away.
    fn make_private(&self, state: &mut State, pages: &Range<u64>) {
        for page in pages.clone() {
            let (addr, mut word) = (self.addr(&(page..page + 1)).start as *mut u8, 0);
            // SAFETY: an aligned word of this mapping; what is there, or has been stored meanwhile,
            // stays. A page that cannot be reached has no bytes to keep.
            let copied = unsafe {
                reach::load(addr, 8, &mut word).is_err() || {
                    let same = word;
                    reach::compare(addr, 8, &mut word, same).is_ok()
                }
            };
            if !copied {
                let gone = self.clip(self.whole(page..page + 1));
                state.cut.insert(gone.clone());
                let _ = self.put_nothing(state, gone);
            }
        }
    }
}
