//! A cache of the extent that was used last, one for each open file.
//!
//! ```text
//!   open file   [ generation | file page, run, length ]
//!                     |
//!   inode stripe  generation: the same?  yes: no lookup of the record or the map
//! ```
//!
//! Nothing clears an entry. It is valid only under a shared lock with the generation under which it was stored;
//! every change of a map or a length holds that lock exclusively and so changes the generation.
//!
//! Readers of one file store entries concurrently. A counter, odd during a change, protects the fields: a reader
//! that sees it odd or changed ignores the entry.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::ReadGuard;
use crate::alloc::Run;
use crate::units::{PAGE_SIZE, PageNo};

/// The entry of an open file.
#[derive(Debug, Default)]
pub(crate) struct LastExtent {
    /// Odd while the fields change.
    turn: AtomicU64,
    /// Generation, file page, pool page, pages (0: no entry), length of the file.
    fields: [AtomicU64; 5],
}

/// A valid entry. It stays valid for as long as the lock is held under which it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// File page of the run's first page.
    file_page: u64,
    run: Run,
    /// Length of the file, in bytes.
    pub(crate) size: u64,
}

impl Known {
    /// The pool byte at which `[offset, end)` begins, if that range is not empty and lies inside the run and the
    /// file.
    pub(crate) fn at(&self, offset: u64, end: u64) -> Option<u64> {
        let first = self.file_page * PAGE_SIZE;
        let inside =
            first <= offset && offset < end && end <= self.size && end <= (self.file_page + self.run.pages) * PAGE_SIZE;
        inside.then(|| self.run.page.byte() + (offset - first))
    }
}

impl LastExtent {
    /// The entry, if nothing has changed since it was stored. `lock` is the file's.
    pub(crate) fn known(&self, lock: &ReadGuard<'_>) -> Option<Known> {
        let turn = self.turn.load(Ordering::Acquire);
        let [generation, file_page, page, pages, size] =
            std::array::from_fn(|i| self.fields[i].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let whole = turn.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == turn;
        let run = Run { page: PageNo(page), pages };
        (whole && pages > 0 && generation == lock.generation()).then_some(Known { file_page, run, size })
    }

    /// Stores a run of the file, read under `lock`. Does nothing if another thread is storing one.
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
