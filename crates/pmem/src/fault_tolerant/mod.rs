//! Accesses to memory that may fail: a fault becomes an error instead of a signal that ends the process.
//!
//! ```text
//!   copy.rs      copies and atomic words: routines that return the address of the fault
//!   table.rs     single loads, streamed stores, flushes: inlined. After a fault they continue with a
//!                value of ones, or with nothing stored, and the address is noted here
//!   handler.rs   SIGBUS, SIGSEGV: which of the two was interrupted
//! ```
//!
//! The kernel answers an access with SIGBUS if a line of persistent memory has failed, if a disk does not return a
//! page, or if a file was truncated there by another process. The engine accesses media with the instructions here,
//! which continue after such a fault.
//!
//! Code that loads single words checks afterwards whether a fault has occurred ([`well_since`]). The exception
//! table is modelled on that of the kernel's user copies.

mod copy;
mod handler;
pub(super) mod table;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub use copy::{Reached, compare, copy, fill, load, swap};
pub use handler::install;

/// Number of faults whose addresses are kept.
const MAX_NOTES: usize = 64;

thread_local! {
    // No destructor and no allocation at the first use: the handler increments this too.
    static THREAD_FAULTS: Cell<u64> = const { Cell::new(0) };
}

/// Faults that have a slot. Their addresses may not be stored yet.
static STARTED: AtomicU64 = AtomicU64::new(0);
/// Faults whose addresses are stored.
static COUNT: AtomicU64 = AtomicU64::new(0);
static NOTES: [Note; MAX_NOTES] = [const { Note { addr: AtomicUsize::new(0), number: AtomicU64::new(0) } }; MAX_NOTES];

struct Note {
    addr: AtomicUsize,
    /// The number of the fault whose address this is, plus one.
    number: AtomicU64,
}

/// Notes the address of a fault of this thread. Also called in the handler.
pub(super) fn note(addr: usize) {
    note_elsewhere(addr);
    // SAFETY: the cell of this thread, which no other thread can access.
    THREAD_FAULTS.with(|mine| unsafe { mine.as_ptr().write_volatile(mine.as_ptr().read_volatile() + 1) });
}

/// Notes the address of failed memory that was not being accessed.
pub(super) fn note_elsewhere(addr: usize) {
    finish(begin(), addr);
}

pub(super) fn begin() -> u64 {
    STARTED.fetch_add(1, Ordering::Relaxed)
}

/// Stores the address first, then the count. A reader in between sees a changed count and reads again.
pub(super) fn finish(fault: u64, addr: usize) {
    let note = &NOTES[fault as usize % MAX_NOTES];
    note.addr.store(addr, Ordering::Relaxed);
    note.number.store(fault + 1, Ordering::Release);
    COUNT.fetch_add(1, Ordering::Release);
}

/// Number of faults of this thread. Compare it before and after reading words; faults of other threads do not
/// count.
#[inline]
pub fn mine() -> u64 {
    // Volatile: the handler increments it during loads, which the compiler assumes change nothing.
    // SAFETY: the cell of this thread, which no other thread can access.
    THREAD_FAULTS.with(|mine| unsafe { mine.as_ptr().read_volatile() })
}

/// Whether this thread has had no fault since [`mine`] returned this value.
#[inline]
pub fn well_since(before: u64) -> bool {
    mine() == before
}

/// Number of faults noted in this process.
#[inline]
pub fn count() -> u64 {
    COUNT.load(Ordering::Acquire)
}

/// The value to pass to [`since`] for faults from now on only.
pub fn next() -> u64 {
    STARTED.load(Ordering::Acquire)
}

/// Passes the addresses noted from the fault `first` on to `each`, as far as they are kept. Returns the value to
/// pass the next time: the first fault whose address is not stored yet.
pub fn since(first: u64, mut each: impl FnMut(usize)) -> u64 {
    let end = next();
    let mut missing = None;
    for fault in first.max(end.saturating_sub(MAX_NOTES as u64))..end {
        let note = &NOTES[fault as usize % MAX_NOTES];
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

    /// Three pages, of which the middle one is inaccessible.
    fn torn() -> MappedRange {
        install().expect("handlers");
        let view = MappedRange::anonymous(3 * PAGE_SIZE).expect("memory");
        for page in 0..3 {
            assert!(view.write(page * PAGE_SIZE, &[page as u8 + 1; PAGE_SIZE as usize]));
        }
        view.forbid(PAGE_SIZE, PAGE_SIZE);
        view
    }

    #[test]
    fn copies_of_every_length_stop_at_what_cannot_be_reached() {
        let view = torn();
        let lengths = (0..300).chain([2047, 2048, 2049, 4096]);
        for len in lengths {
            for start in [0, 1, 7, 64] {
                let mut buf = vec![9; len];
                let inside = start + len as u64 <= PAGE_SIZE;
                assert_eq!(view.read(start, &mut buf), inside, "{len} bytes at {start}");
                assert!(!inside || buf.iter().all(|&b| b == 1), "{len} bytes at {start}");
                let back = 3 * PAGE_SIZE - start - len as u64;
                assert_eq!(view.read(back, &mut buf), back >= 2 * PAGE_SIZE, "{len} bytes at {back}");
            }
        }
        assert!(!view.write(PAGE_SIZE - 1, &[0; 2]) && !view.zero(PAGE_SIZE, 8));
    }

    #[test]
    fn words_that_are_gone_are_ones_and_are_noted() {
        let view = torn();
        let page = view.page(PAGE_SIZE).expect("inside");
        let before = next();
        assert_eq!((page.u16(6), page.u32(8), page.u64(16)), (u16::MAX, u32::MAX, u64::MAX));
        let start = view.addr(PAGE_SIZE, 1).expect("inside").addr();
        let mut noted = Vec::new();
        since(before, |addr| noted.extend((start..start + PAGE_SIZE as usize).contains(&addr).then(|| addr - start)));
        assert_eq!(noted, [6, 8, 16]);
        let good = view.page(2 * PAGE_SIZE).expect("inside");
        assert_eq!((good.u16(6), good.u32(8), good.u64(16)), (0x303, 0x303_0303, 0x0303_0303_0303_0303));
    }
}
