//! Conflicts of an atomic mapping: stores that wait for a commit, and changes of the file beneath them.
//!
//! ```text
//!   mapping    [copy]          commit ----> refused: the copy was made of the old page
//!   file       [page] -- write --> [page']
//! ```
//!
//! An operation that changes bytes of a file notifies its mappings afterwards. If an atomic mapping has a private
//! copy of a changed page at that moment, the page is *stale* there until the copy is dropped. A later copy is made
//! of the new bytes. So every conflict involves a change of a copied page. Stores through other shared mappings
//! send no notification and are not detected.

use std::ops::Range;

use crate::engine::{InodeRead, InodeWrite};
use crate::error::{Error, Result};
use crate::mmap::address_space::area::Area;
use crate::mmap::address_space::page_ranges::Ranges;
use crate::mmap::kernel::pagemap;
use crate::units::PAGE_SIZE;

impl Area {
    /// These pages of the file have changed.
    pub(in crate::mmap) fn note_changed(&self, held: InodeRead<'_>, pages: &[Range<u64>]) {
        debug_assert_eq!(held.ino(), self.ino);
        if !self.atomic {
            return;
        }
        let mut changed = Ranges::default();
        let some = pages.iter().filter(|pages| !pages.is_empty());
        some.for_each(|pages| changed.insert(self.clip(self.whole(pages.clone()))));
        let (Some(first), Some(last)) = (pages.first(), pages.last()) else { return };
        // One scan of the page tables, however many pages there are.
        let hull = self.clip(self.whole(first.start..last.end));
        if hull.is_empty() {
            return;
        }
        let Some(mut state) = self.live() else { return };
        for copy in self.copies(hull) {
            changed.within(copy).into_iter().for_each(|stale| state.stale.insert(stale));
        }
    }

    /// The file was truncated to `len`.
    pub(in crate::mmap) fn note_shortened(&self, held: InodeWrite<'_>, len: u64) {
        debug_assert_eq!(held.ino(), self.ino);
        let page = len / PAGE_SIZE;
        let pages = self.clip(page..page + 1);
        if !self.atomic || pages.is_empty() || len.is_multiple_of(PAGE_SIZE) {
            return;
        }
        let Some(mut state) = self.live() else { return };
        if !self.copies(pages).is_empty() {
            let shortest = state.shortened.entry(page).or_insert(len);
            *shortest = len.min(*shortest);
        }
    }

    /// The pages among these that are private copies. All of them if the kernel does not report it; then a page
    /// that differs from the file at the commit counts as a copy.
    pub(in crate::mmap) fn copies(&self, pages: Range<u64>) -> Vec<Range<u64>> {
        match pagemap::private_copies(self.addr(&pages), self.dax) {
            Ok(Some(copies)) => copies.into_iter().map(|copy| self.pages_at(copy)).collect(),
            Ok(None) | Err(_) => vec![pages],
        }
    }

    /// All copies were dropped: forgets the conflicts recorded for them.
    pub(in crate::mmap) fn forget_changes(&self) {
        if let Some(mut state) = self.live() {
            state.stale.remove(self.range());
            state.lost.remove(self.range());
            state.shortened.clear();
        }
    }

    /// Returns [`Error::Conflict`] if copies of these pages are older than the file's pages. The file is `size`
    /// bytes long.
    pub(in crate::mmap) fn check_conflict(&self, held: InodeWrite<'_>, pages: &[Range<u64>], size: u64) -> Result<()> {
        debug_assert_eq!(held.ino(), self.ino);
        let Some(state) = self.live() else { return Ok(()) };
        let conflict = |page| Err(Error::Conflict { ino: self.ino, page });
        if let Some(stale) = pages.iter().find_map(|range| state.stale.within(range.clone()).into_iter().next()) {
            return conflict(stale.start);
        }
        // Some stores were lost. Pages beyond the end do not count: a commit drops them in any case.
        if let Some(lost) = state.lost.within(self.clip(0..size.div_ceil(PAGE_SIZE))).first() {
            return conflict(lost.start);
        }
        // The file was cut inside the page and has grown again: the copy still has the bytes that were cut off.
        let mut shortened = state.shortened.iter().filter(|&(_, &len)| len < size).map(|(&page, _)| page);
        match shortened.find(|page| pages.iter().any(|range| range.contains(page))) {
            Some(page) => conflict(page),
            None => Ok(()),
        }
    }
}
