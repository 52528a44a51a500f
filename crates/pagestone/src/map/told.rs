//! What a mapping does when its file changes: here, and in the children that have it too.
//!
//! ```text
//!   cut      nothing there any more       uncut, grown   a question again
//!   filled   the new storage              freeze, leave  a question, as it will lie elsewhere
//! ```
//!
//! Each is over when it returns.

use std::io;
use std::ops::Range;

use super::area::Area;
use super::link::News;
use crate::error::Result;
use crate::layout::InodeRec;
use crate::media::Lend;
use crate::pool::{Inner, InodeRead, InodeWrite, Watcher};

impl Watcher for Area {
    fn cut(&self, held: InodeWrite<'_>, pages: Range<u64>) {
        debug_assert_eq!(held.ino(), self.ino);
        // Where single pages cannot be mapped, single pages cannot be taken away.
        let pages = self.clip(self.whole(pages));
        self.cut_here(pages.clone());
        self.tell_cut(&pages);
    }

    fn freeze(
        &self,
        held: InodeWrite<'_>,
        inner: &Inner,
        rec: &InodeRec,
        replaced: Option<&[Range<u64>]>,
    ) -> Result<()> {
        debug_assert_eq!(held.ino(), self.ino);
        let pages = match (self.lend, replaced) {
            (Lend::Private, None | Some([])) => self.first..self.first,
            (Lend::Private, Some([first, .., last])) => self.clip(self.whole(first.start..last.end)),
            (Lend::Private, Some([all])) => self.clip(self.whole(all.clone())),
            _ => self.range(),
        };
        self.freeze_here(inner, rec, replaced);
        self.ask_again(&pages)
    }

    fn leave(&self, held: InodeWrite<'_>, pages: Range<u64>) -> Result<()> {
        debug_assert_eq!(held.ino(), self.ino);
        let pages = self.clip(self.whole(pages));
        match self.live() {
            Some(mut state) if self.lend == Lend::Private => self.keep_own(&mut state, std::slice::from_ref(&pages)),
            Some(mut state) => {
                let parts = Area::data(&state, pages.clone());
                parts.into_iter().try_for_each(|part| self.put_absent(&mut state, part))?;
            }
            None => {}
        }
        self.ask_again(&pages)
    }

    fn uncut(&self, held: InodeWrite<'_>, pages: Range<u64>) {
        debug_assert_eq!(held.ino(), self.ino);
        let pages = self.whole(pages);
        // What cannot be mapped now stays an error until it is refreshed.
        let _ = self.refresh(pages.clone());
        self.tell(News::Grown, &self.clip(pages));
    }

    fn filled(&self, held: InodeWrite<'_>, inner: &Inner, rec: &InodeRec, pages: Range<u64>) {
        if self.lend != Lend::Private {
            self.install(held, inner, rec, pages.clone());
            self.tell(News::Again, &self.clip(pages));
        } else if let Some(mut state) = self.live() {
            let holes = state.holes.within(self.clip(self.whole(pages)));
            self.show_anew(&mut state, holes);
        }
    }

    fn fills_in_place(&self) -> bool {
        self.lend != Lend::Private
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
        self.tell(News::Grown, &self.clip(pages));
    }
}

impl Area {
    /// Children that have it too know that the pages will lie elsewhere.
    fn ask_again(&self, pages: &Range<u64>) -> Result<()> {
        match pages.is_empty() || self.tell(News::Again, pages) {
            true => Ok(()),
            false => Err(io::Error::other("a child process that has the file mapped does not answer").into()),
        }
    }
}
