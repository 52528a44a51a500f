//! What a private mapping keeps when the pages below become others'.
//!
//! ```text
//!   stored to, so the kernel's copy     stays
//!   only shown                          copied; or, where stores wait for a commit, a question again
//!   no memory for a copy                taken away: an error until refreshed
//! ```

use std::ops::Range;

use super::area::{Area, State};
use super::pages;
use super::ranges::Ranges;
use super::service::Mechanism;
use crate::media::reach;

impl Area {
    /// What a private mapping has of these pages will be others': its own copies stay, and what it only shows is
    /// copied, or, where stores wait for a commit, shown anew.
    pub(super) fn keep_own(&self, state: &mut State, pages: &[Range<u64>]) {
        let mut whole = Ranges::default();
        pages.iter().for_each(|pages| whole.insert(self.clip(self.whole(pages.clone()))));
        let whole = whole.within(self.range()).into_iter();
        // An unresolved page is not touched: that would wait for the inode, which is held here.
        if self.atomic {
            let there = whole.flat_map(|part| state.nothing.without(part));
            let parts = there.flat_map(|part| state.absent.without(part)).collect();
            self.show_anew(state, parts);
        } else {
            let parts: Vec<_> = whole.flat_map(|part| Area::data(state, part)).collect();
            parts.iter().for_each(|part| self.make_private(state, part));
        }
    }

    /// Takes down what of these mapped pages is no private copy: the next touch maps the file's new pages.
    ///
    /// No store may fall between the look at the page tables and what is done then: stores are held up meanwhile,
    /// where the kernel can do that (not for pages of an ordinary file).
    pub(super) fn show_anew(&self, state: &mut State, parts: Vec<Range<u64>>) {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return };
        let hull = self.addr(&(first.start..last.end));
        let mut rest = Ranges::default();
        parts.into_iter().for_each(|part| rest.insert(part));
        let mut held = Vec::new();
        // What stays as it is.
        let mut stays = Ranges::default();
        // One look at the page tables, however many parts there are.
        if let Ok(Some(mut copies)) = pages::private_copies(hull.clone(), self.dax) {
            copies.iter().for_each(|copy| rest.remove(self.pages_at(copy.clone())));
            held = rest.within(self.range());
            held.retain(|part| self.hold_stores(part));
            if !held.is_empty() {
                // Copies that were made before. Pages that are not there look as if they were swapped out now.
                let more = pages::private_present(hull.clone(), self.dax).unwrap_or_else(|_| vec![hull]);
                more.iter().for_each(|copy| rest.remove(self.pages_at(copy.clone())));
                copies.extend(more);
            }
            for copy in copies {
                let piece = self.whole(self.pages_at(copy));
                // What cannot be mapped by itself goes on to be shown as it was: a store there is a conflict.
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
            // Zeros that the file does not have any more: a store there is a conflict. A copy of them would be taken
            // for a store.
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
