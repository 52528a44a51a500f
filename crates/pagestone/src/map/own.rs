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
    pub(super) fn show_anew(&self, state: &mut State, parts: Vec<Range<u64>>) {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return };
        // One look at the page tables, however many parts there are.
        let copies = pages::private_copies(self.addr(&(first.start..last.end)), self.dax);
        let Ok(Some(copies)) = copies else {
            return parts.iter().for_each(|part| self.make_private(state, part));
        };
        let mut rest = Ranges::default();
        parts.into_iter().for_each(|part| rest.insert(part));
        for copy in copies {
            let copy = self.pages_at(copy);
            let piece = self.whole(copy.clone());
            rest.remove(copy);
            // What cannot be mapped by itself goes on to be shown as it was: a store there is a conflict.
            let beside = rest.within(piece.clone());
            beside.into_iter().for_each(|pages| state.stale.insert(pages));
            rest.remove(piece);
        }
        for part in rest.within(self.range()) {
            if self.put_absent(state, part.clone()).is_err() {
                self.make_private(state, &part);
            }
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
