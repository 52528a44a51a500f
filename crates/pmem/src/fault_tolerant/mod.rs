//! Memory that cannot be reached: an error, and not a signal that ends the process.
//!
//! A line of persistent memory that has failed, a page that a disk does not give back, the end of a
//! file that somebody has shortened: the kernel answers a load from there with SIGBUS. The engine
//! reads and stores with the instructions here, which go on after such a fault.
//!
//! ```text
//!   copy.rs     copies, and atomic words: routines that return the address they could not reach
//!   table.rs     single loads, streamed stores, flushes: inlined; behind a fault they go on with a
//!                value of ones, or with nothing stored, and the address is noted here
//!   handler.rs   SIGBUS, SIGSEGV: which of the two was interrupted
//! ```
//!
//! Who loads single words asks afterwards whether they were there ([`well_since`]). The table is that of
//! the kernel's own user copies.

mod copy;
mod handler;
pub(super) mod table;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub use copy::{Reached, compare, copy, fill, load, swap};
pub use handler::install;

/// Faults whose addresses are kept.
const KEPT: usize = 64;

thread_local! {
    // Without a destructor or a first use that allocates: the handler counts here, too.
    static MINE: Cell<u64> = const { Cell::new(0) };
}

/// Faults that have a slot; their addresses may not be there yet.
static BEGUN: AtomicU64 = AtomicU64::new(0);
/// Faults whose addresses are there.
static COUNT: AtomicU64 = AtomicU64::new(0);
static NOTES: [Note; KEPT] = [const { Note { addr: AtomicUsize::new(0), number: AtomicU64::new(0) } }; KEPT];

struct Note {
    addr: AtomicUsize,
    /// One more than the number of the fault whose address this is.
    number: AtomicU64,
}

/// Notes an address that this thread could not reach. Called from the handler, too.
pub(super) fn note(addr: usize) {
    note_elsewhere(addr);
    // SAFETY: the cell of this thread, which nobody else can reach.
    MINE.with(|mine| unsafe { mine.as_ptr().write_volatile(mine.as_ptr().read_volatile() + 1) });
}

/// Notes an address that nobody wanted to reach at the moment.
pub(super) fn note_elsewhere(addr: usize) {
    finish(begin(), addr);
}

pub(super) fn begin() -> u64 {
    BEGUN.fetch_add(1, Ordering::Relaxed)
}

/// The address first, then that it is there: who looks in between comes again when the count has changed.
pub(super) fn finish(fault: u64, addr: usize) {
    let note = &NOTES[fault as usize % KEPT];
    note.addr.store(addr, Ordering::Relaxed);
    note.number.store(fault + 1, Ordering::Release);
    COUNT.fetch_add(1, Ordering::Release);
}

/// Faults of this thread so far. Who reads words asks before and after: others' faults are no concern
/// of theirs, however many there are.
#[inline]
pub fn mine() -> u64 {
    // Volatile: the handler counts in the midst of loads of which the compiler knows that they change nothing.
    // SAFETY: the cell of this thread, which nobody else can reach.
    MINE.with(|mine| unsafe { mine.as_ptr().read_volatile() })
}

/// Whether this thread has reached all it wanted since it asked for [`mine`].
#[inline]
pub fn well_since(before: u64) -> bool {
    mine() == before
}

/// Faults noted in this process so far.
#[inline]
pub fn count() -> u64 {
    COUNT.load(Ordering::Acquire)
}

/// Where [`since`] begins for who wants to apply_invalidation only of what comes from now on.
pub fn next() -> u64 {
    BEGUN.load(Ordering::Acquire)
}

/// Hands the addresses that were noted from the fault `first` on to `each`, as far as they are kept. Returns where
/// to begin the next time: at the first fault whose address is not there yet.
pub fn since(first: u64, mut each: impl FnMut(usize)) -> u64 {
    let end = next();
    let mut missing = None;
    for fault in first.max(end.saturating_sub(KEPT as u64))..end {
        let note = &NOTES[fault as usize % KEPT];
        match note.number.load(Ordering::Acquire) {
            number if number > fault => each(note.addr.load(Ordering::Relaxed)),
            _ => missing = missing.or(Some(fault)),
        }
    }
    missing.unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MappedRange;
    use crate::PAGE_SIZE;

    /// Three pages, of which the one in the middle cannot be reached.
    fn torn() -> MappedRange {
        install().expect("handlers");
        let window = MappedRange::anonymous(3 * PAGE_SIZE).expect("memory");
        for page in 0..3 {
            assert!(window.write(page * PAGE_SIZE, &[page as u8 + 1; PAGE_SIZE as usize]));
        }
        window.forbid(PAGE_SIZE, PAGE_SIZE);
        window
    }

    #[test]
    fn copies_of_every_length_stop_at_what_cannot_be_reached() {
        let window = torn();
        let lengths = (0..300).chain([2047, 2048, 2049, 4096]);
        for len in lengths {
            for start in [0, 1, 7, 64] {
                let mut buf = vec![9; len];
                let inside = start + len as u64 <= PAGE_SIZE;
                assert_eq!(window.read(start, &mut buf), inside, "{len} bytes at {start}");
                assert!(!inside || buf.iter().all(|&b| b == 1), "{len} bytes at {start}");
                let back = 3 * PAGE_SIZE - start - len as u64;
                assert_eq!(window.read(back, &mut buf), back >= 2 * PAGE_SIZE, "{len} bytes at {back}");
            }
        }
        assert!(!window.write(PAGE_SIZE - 1, &[0; 2]) && !window.zero(PAGE_SIZE, 8));
    }

    #[test]
    fn words_that_are_gone_are_ones_and_are_noted() {
        let window = torn();
        let page = window.page(PAGE_SIZE).expect("inside");
        let before = next();
        assert_eq!((page.u16(6), page.u32(8), page.u64(16)), (u16::MAX, u32::MAX, u64::MAX));
        let start = window.addr(PAGE_SIZE, 1).expect("inside").addr();
        let mut noted = Vec::new();
        since(before, |addr| noted.extend((start..start + PAGE_SIZE as usize).contains(&addr).then(|| addr - start)));
        assert_eq!(noted, [6, 8, 16]);
        let good = window.page(2 * PAGE_SIZE).expect("inside");
        assert_eq!((good.u16(6), good.u32(8), good.u64(16)), (0x303, 0x303_0303, 0x0303_0303_0303_0303));
    }
}
