//! The run of a file that was used last, remembered with its open file.
//!
//! ```text
//!   open file   [ generation | file page, run, length ]
//!                     |
//!   inode stripe  generation: the same?  yes: no record to read, no map to walk
//! ```
//!
//! Nothing clears a hint. It counts only under a shared lock whose generation is the one it was
//! remembered under, and whoever changes a map or a length has held that lock exclusively.
//!
//! Readers of one file remember at the same time, so the fields are guarded by a counter that is
//! odd while they change: whoever saw it move, or odd, has found nothing.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::ReadGuard;
use crate::alloc::Run;
use crate::units::{PAGE_SIZE, PageNo};

/// One remembered run, for an open file.
#[derive(Debug, Default)]
pub(crate) struct LastExtent {
    /// Odd while the fields change.
    turn: AtomicU64,
    /// Generation, file page, pool page, pages (0: nothing is remembered), length of the file.
    fields: [AtomicU64; 5],
}

/// What is remembered: true for as long as the lock is held under which it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// File page of the run's first page.
    file_page: u64,
    run: Run,
    /// Length of the file, in bytes.
    pub(crate) size: u64,
}

impl Known {
    /// The pool byte at which `[offset, end)` begins, if that is not empty and all of it lies in the
    /// run and in the file.
    pub(crate) fn at(&self, offset: u64, end: u64) -> Option<u64> {
        let first = self.file_page * PAGE_SIZE;
        let inside =
            first <= offset && offset < end && end <= self.size && end <= (self.file_page + self.run.pages) * PAGE_SIZE;
        inside.then(|| self.run.page.byte() + (offset - first))
    }
}

impl LastExtent {
    /// What is remembered, if nothing can have changed since. `lock` is the file's.
    pub(crate) fn known(&self, lock: &ReadGuard<'_>) -> Option<Known> {
        let turn = self.turn.load(Ordering::Acquire);
        let [generation, file_page, page, pages, size] =
            std::array::from_fn(|i| self.fields[i].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let whole = turn.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == turn;
        let run = Run { page: PageNo(page), pages };
        (whole && pages > 0 && generation == lock.generation()).then_some(Known { file_page, run, size })
    }

    /// Remembers a run of the file, read under `lock`; does nothing if somebody else is at it.
    pub(crate) fn remember(&self, lock: &ReadGuard<'_>, file_page: u64, run: Run, size: u64) {
        let turn = self.turn.load(Ordering::Relaxed);
        let odd = turn.wrapping_add(1);
        if odd.is_multiple_of(2) || self.turn.compare_exchange(turn, odd, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return;
        }
        fence(Ordering::Release);
        let values = [lock.generation(), file_page, run.page.0, run.pages, size];
        for (field, value) in self.fields.iter().zip(values) {
            field.store(value, Ordering::Relaxed);
        }
        self.turn.store(odd.wrapping_add(1), Ordering::Release);
    }
}
