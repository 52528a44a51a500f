//! Private copies of a private mapping: what it keeps when the file's pages are replaced.
//!
//! ```text
//!   stored to: the kernel has a copy    kept
//!   mapped from the pool                copied; in an atomic mapping unresolved
//!   no memory for a copy                an error until refreshed
//! ```

use std::ops::Range;

use pmem::fault_tolerant;

use crate::mmap::address_space::area::{Area, State};
use crate::mmap::address_space::page_ranges::Ranges;
use crate::mmap::fault::service::Mechanism;
use crate::mmap::kernel::pagemap;

impl Area {
    /// The storage of these pages is about to be replaced. Private copies stay. Pages that are mapped from the pool
    /// are copied; in an atomic mapping they become unresolved.
    pub(in crate::mmap) fn preserve_private(&self, state: &mut State, pages: &[Range<u64>]) {
        let mut whole = Ranges::default();
        pages.iter().for_each(|pages| whole.insert(self.clip(self.whole(pages.clone()))));
        let whole = whole.within(self.range()).into_iter();
        // Unresolved pages are not accessed: the fault would wait for the inode, which is locked here.
        if self.atomic {
            let there = whole.flat_map(|part| state.inaccessible.without(part));
            let parts = there.flat_map(|part| state.unresolved.without(part)).collect();
            self.unmap_all_but_copies(state, parts);
        } else {
            let parts: Vec<_> = whole.flat_map(|part| Area::data(state, part)).collect();
            parts.iter().for_each(|part| self.make_private(state, part));
        }
    }

    /// Unmaps the pages among these that are not private copies. The next access maps what the file has then.
    ///
    /// No store may fall between the scan of the page tables and the unmapping. Stores are blocked meanwhile where
    /// the kernel supports it (not for pages of an ordinary file).
    pub(in crate::mmap) fn unmap_all_but_copies(&self, state: &mut State, parts: Vec<Range<u64>>) {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return };
        let hull = self.addr(&(first.start..last.end));
        let mut rest = Ranges::default();
        parts.into_iter().for_each(|part| rest.insert(part));
        let mut held = Vec::new();
        // Pages that cannot be unmapped.
        let mut stays = Ranges::default();
        // One scan of the page tables, however many parts there are.
        if let Ok(Some(mut copies)) = pagemap::private_copies(hull.clone(), self.dax) {
            copies.iter().for_each(|copy| rest.remove(self.pages_at(copy.clone())));
            held = rest.within(self.range());
            held.retain(|part| self.block_stores(part));
            #[cfg(test)]
            tests::pause();
            if !held.is_empty() {
                // Copies made since the first scan. Protected pages that are not present look like swapped pages
                // now.
                let more =
                    pagemap::copies_in_memory(hull.clone(), self.dax).ok().flatten().unwrap_or_else(|| vec![hull]);
                more.iter().for_each(|copy| rest.remove(self.pages_at(copy.clone())));
                copies.extend(more);
            }
            for copy in copies {
                let piece = self.whole(self.pages_at(copy));
                // Pages that cannot be mapped singly stay mapped. A later store to them is a conflict.
                let beside = rest.within(piece.clone());
                beside.into_iter().for_each(|pages| state.stale.insert(pages));
                rest.remove(piece);
            }
            for part in rest.within(self.range()) {
                if self.map_lazy(state, part.clone()).is_err() {
                    stays.insert(part);
                }
            }
        } else {
            stays = rest;
        }
        for part in held {
            let absent = state.unresolved.within(part.clone());
            let mut left = Ranges::default();
            left.insert(part);
            absent.into_iter().for_each(|part| left.remove(part));
            left.within(self.range()).into_iter().for_each(|part| self.allow_stores(&part));
        }
        for part in stays.within(self.range()) {
            // Zeros that the file no longer has. A copy of them would count as a store, so a store there is a
            // conflict.
            let holes = state.holes.within(part.clone());
            holes.into_iter().for_each(|hole| state.stale.insert(hole));
            state.holes.without(part).iter().for_each(|part| self.make_private(state, part));
        }
    }

    fn block_stores(&self, pages: &Range<u64>) -> bool {
        match self.uffd() {
            Mechanism::Userfault(uffd) => {
                let addr = self.addr(pages);
                let held = uffd.block_stores(addr.clone()).is_ok();
                if !held {
                    // A part of the range may be blocked.
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

    /// Makes the kernel create private copies of pages of a private mapping, by storing the bytes that are there.
    /// Where the kernel has no memory for a copy, the page becomes inaccessible.
    fn make_private(&self, state: &mut State, pages: &Range<u64>) {
        for page in pages.clone() {
            let (addr, mut word) = (self.addr(&(page..page + 1)).start as *mut u8, 0);
            // SAFETY: an aligned word of this mapping; its value, or a concurrent store to it, is preserved. A page
            // that is inaccessible has no bytes to keep.
            let copied = unsafe {
                fault_tolerant::load(addr, 8, &mut word).is_err() || {
                    let same = word;
                    fault_tolerant::compare(addr, 8, &mut word, same).is_ok()
                }
            };
            if !copied {
                let gone = self.clip(self.whole(page..page + 1));
                state.revoked.insert(gone.clone());
                let _ = self.map_poison(state, gone);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    use std::time::Duration;

    use crate::attr::{FileType, NewNode};
    use crate::error::Result;
    use crate::mmap::{MapOptions, Mapping};
    use crate::pool::{CreateOptions, Pool};
    use crate::units::PAGE_SIZE;
    use pmem::Memory;

    /// Whether to widen the window between the scan and the unmapping, in which a store could be lost.
    static PAUSES: AtomicBool = AtomicBool::new(false);

    pub(in crate::mmap) fn pause() {
        if PAUSES.load(SeqCst) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Stores to the even pages of each window of 16 while `shared` fills the window.
    fn store_while_windows_are_filled(map: &Mapping, shared: &Mapping, pages: u64) -> Result<()> {
        for page in 0..pages {
            assert_eq!(map.load::<u8>(page * PAGE_SIZE)?, 0);
        }
        let turn = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let fills = scope.spawn(|| -> Result<()> {
                for window in 0..pages / 16 {
                    // The second store to a window fills it.
                    shared.store((window * 16 + 1) * PAGE_SIZE, 7u64)?;
                    turn.store(window + 1, SeqCst);
                    shared.store((window * 16 + 3) * PAGE_SIZE, 7u64)?;
                }
                Ok(())
            });
            for window in 0..pages / 16 {
                while turn.load(SeqCst) <= window && !fills.is_finished() {
                    std::hint::spin_loop();
                }
                for page in (window * 16..window * 16 + 16).step_by(2) {
                    // Spread over the duration of the fill.
                    std::thread::sleep(Duration::from_micros(20));
                    map.store(page * PAGE_SIZE, page + 1)?;
                }
            }
            fills.join().unwrap_or_else(|why| std::panic::resume_unwind(why))
        })?;
        for page in (0..pages).step_by(2) {
            assert_eq!(map.load::<u64>(page * PAGE_SIZE)?, page + 1, "page {page}");
        }
        Ok(())
    }

    #[test]
    fn stores_beside_pages_that_others_fill_are_kept() -> Result<()> {
        const PAGES: u64 = 512;
        let pool = Pool::create_on(
            Arc::new(Memory::new(64 << 20).map_err(crate::error::Error::Media)?),
            &CreateOptions::default(),
        )?;
        let sparse = |name: &[u8]| {
            let file = pool.node(pool.root().create(name, &NewNode::new(FileType::File, 0o600))?.ino)?.open()?;
            file.set_len(PAGES * PAGE_SIZE).map(|()| file)
        };
        if crate::mmap::MapMechanism::here() == crate::mmap::MapMechanism::Signals {
            println!("skipped: userfaultfd is not allowed here");
            return Ok(());
        }
        PAUSES.store(true, SeqCst);
        let file = sparse(b"atomic")?;
        let (shared, mut atomic) =
            (file.map(0..PAGES * PAGE_SIZE, &MapOptions::shared())?, file.map_atomic(0..PAGES * PAGE_SIZE)?);
        store_while_windows_are_filled(&atomic, &shared, PAGES)?;
        assert_eq!(atomic.commit()?, PAGES / 2);
        let file = sparse(b"private")?;
        let map = |options: &MapOptions| file.map(0..PAGES * PAGE_SIZE, options);
        let done = store_while_windows_are_filled(&map(&MapOptions::private())?, &map(&MapOptions::shared())?, PAGES);
        PAUSES.store(false, SeqCst);
        done
    }
}
