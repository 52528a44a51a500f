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
use crate::units::PAGE_SIZE;

impl Area {
    /// What a private mapping has of these pages will be others': its own copies stay, and what it only shows is
    /// copied, or, where stores wait for a commit, shown anew.
    pub(super) fn keep_own(&self, state: &mut State, pages: Range<u64>) {
        if self.atomic {
            for part in state.nothing.without(pages) {
                self.show_anew(state, part);
            }
            return;
        }
        for part in Area::data(state, pages) {
            self.make_private(state, &part);
        }
    }

    /// Lets go of what is not a private copy: the next touch maps the file's new pages.
    fn show_anew(&self, state: &mut State, pages: Range<u64>) {
        let copies = pages::private_copies(self.addr(&pages), self.dax);
        let Ok(Some(copies)) = copies else {
            // Only what is mapped: a touch of an unresolved page would wait for the inode that is held here.
            return Area::data(state, pages).iter().for_each(|part| self.make_private(state, part));
        };
        let mut rest = Ranges::default();
        rest.insert(pages);
        for copy in copies {
            rest.remove(self.page_at(copy.start)..self.page_at(copy.start) + copy.len() as u64 / PAGE_SIZE);
        }
        for part in rest.within(self.range()) {
            let mapped = Area::data(state, part.clone());
            if self.put_absent(state, part).is_err() {
                mapped.iter().for_each(|part| self.make_private(state, part));
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
