//! The overlay: private copies of metadata pages of a file, for the meta view, whose stores must not reach the file
//! by themselves.
//!
//! ```text
//!            store             flush           begin            write_out
//!   clean --------> stored --------> pending ---------> due ------------------> clean
//!   (the file's    (private copy,                            copy written to the file,
//!    page)          one bit set)                             then dropped
//! ```
//!
//! The bits take one page of memory per 128 MiB of pool, only where something was stored. Private copies exist
//! until they are written out. So memory does not grow with the pool.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::{MappedRange, Part, Share};
use crate::PAGE_SIZE;

/// The overlay of one pool.
#[derive(Debug)]
pub(super) struct Overlay {
    /// A private mapping of the file.
    view: MappedRange,
    stored: PageBits,
    /// Locked while pages are written out.
    flushed: Mutex<Flushed>,
}

/// Flushed pages, by page number.
#[derive(Debug, Default)]
pub(super) struct Flushed {
    /// Must not be written out yet: the journal records that they depend on may not be durable.
    pending: BTreeSet<u64>,
    /// Will be written out next.
    due: BTreeSet<u64>,
}

/// The flushed pages, locked. Nothing is written out while this exists.
pub(super) type Locked<'a> = MutexGuard<'a, Flushed>;

impl Overlay {
    /// An overlay on `view`, a [`super::Share::Private`] mapping.
    pub(super) fn new(view: MappedRange) -> io::Result<Overlay> {
        let stored = PageBits::new(view.room().div_ceil(PAGE_SIZE))?;
        Ok(Overlay { view, stored, flushed: Mutex::default() })
    }

    /// Extends the view to `len` bytes of `file`.
    pub(super) fn extend(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        self.view.extend(file, len, Share::Private)?;
        self.view.advise_random();
        Ok(())
    }

    /// The meta view.
    pub(super) fn view(&self) -> &MappedRange {
        &self.view
    }

    /// Stores into private copies. Returns false, with nothing stored, outside the view.
    #[must_use]
    pub(super) fn store(&self, at: u64, bytes: &[u8]) -> bool {
        if !self.view.contains(at, bytes.len() as u64) {
            return false;
        }
        // Set the bit first: a copy without its bit would never be written out.
        pages(at, bytes.len() as u64).for_each(|page| self.stored.set(page));
        self.view.write(at, bytes)
    }

    /// The first byte of the range that is in a private copy.
    pub(super) fn next_stored(&self, at: u64, len: u64) -> Option<u64> {
        self.stored.next_set(pages(at, len)).map(|page| (page * PAGE_SIZE).max(at))
    }

    /// Adds the pages of the range that have private copies to the flushed pages.
    pub(super) fn flush(&self, at: u64, len: u64) {
        let mut copies = pages(at, len).filter(|&page| self.stored.get(page)).peekable();
        if copies.peek().is_some() {
            self.flushed.lock().pending.extend(copies);
        }
    }

    /// Makes every page flushed so far due. Returns whether there are any. Pages flushed later wait for the next
    /// call, so that the caller can make everything durable in between.
    pub(super) fn begin(&self) -> bool {
        let Flushed { pending, due } = &mut *self.flushed.lock();
        due.append(pending);
        !due.is_empty()
    }

    /// Passes every run of due pages to `write` and drops the copies that were written. After a failure the rest
    /// stays due.
    pub(super) fn write_out(&self, mut write: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut flushed = self.flushed.lock();
        while let Some(first) = flushed.due.first().copied() {
            let end = (first..).find(|page| !flushed.due.contains(page)).unwrap_or(first + 1);
            let (at, len) = (first * PAGE_SIZE, (end - first) * PAGE_SIZE);
            let Some(from) = self.view.addr(at, len) else { return Err(io::ErrorKind::InvalidInput.into()) };
            // SAFETY: the range is mapped; by the contract of `Media::flush` nothing is stored to these pages until
            // they are written out, and `persist` waits for the lock held here.
            write(at, unsafe { std::slice::from_raw_parts(from, len as usize) })?;
            self.drop_copies(&mut flushed, first..end)?;
        }
        Ok(())
    }

    /// If a page of one of the parts has a private copy, returns the lock. Under it, the caller has to store the
    /// parts in the file and then pass them to [`Overlay::stored_below`].
    pub(super) fn shadows(&self, parts: &[Part<'_>]) -> Option<Locked<'_>> {
        let hidden = |part: &Part<'_>| pages(part.at(), part.len()).any(|page| self.stored.get(page));
        parts.iter().any(hidden).then(|| self.flushed.lock())
    }

    /// Reconciles the copies with a part that was just stored in the file (on a page that was metadata and is now
    /// data). If the part covers a whole page, its copy is dropped and not written out. Otherwise the bytes are
    /// also stored in the copy, so that writing it out later preserves them.
    pub(super) fn stored_below(&self, flushed: &mut Locked<'_>, part: &Part<'_>) -> io::Result<()> {
        let (at, end) = (part.at(), part.at() + part.len());
        for page in pages(at, part.len()).filter(|&page| self.stored.get(page)) {
            let (from, to) = (at.max(page * PAGE_SIZE), end.min((page + 1) * PAGE_SIZE));
            if to - from == PAGE_SIZE {
                self.drop_copies(flushed, page..page + 1)?;
                continue;
            }
            let inside = match *part {
                Part::Bytes { at, bytes } => self.view.write(from, &bytes[(from - at) as usize..(to - at) as usize]),
                Part::Zero { .. } => self.view.zero(from, to - from),
            };
            debug_assert!(inside, "the caller checked the part");
        }
        Ok(())
    }

    /// Drops the copies of pages that a program may store to from now on. The pages are data, so only the file's
    /// bytes count.
    pub(super) fn forget(&self, at: u64, len: u64) -> io::Result<()> {
        let all = pages(at, len);
        let Some(mut page) = self.stored.next_set(all.clone()) else { return Ok(()) };
        let mut flushed = self.flushed.lock();
        loop {
            self.drop_copies(&mut flushed, page..page + 1)?;
            match self.stored.next_set(page + 1..all.end) {
                Some(next) => page = next,
                None => return Ok(()),
            }
        }
    }

    fn drop_copies(&self, flushed: &mut Locked<'_>, run: std::ops::Range<u64>) -> io::Result<()> {
        self.view.drop_private(run.start * PAGE_SIZE, (run.end - run.start) * PAGE_SIZE)?;
        for page in run {
            flushed.pending.remove(&page);
            flushed.due.remove(&page);
            self.stored.clear(page);
        }
        Ok(())
    }
}

/// The pages that contain the bytes `at .. at + len`.
fn pages(at: u64, len: u64) -> std::ops::Range<u64> {
    match len {
        0 => 0..0,
        _ => at / PAGE_SIZE..(at + (len - 1)) / PAGE_SIZE + 1,
    }
}

/// One bit per page. Memory is allocated only where a bit was set.
#[derive(Debug)]
struct PageBits {
    words: MappedRange,
}

impl PageBits {
    fn new(pages: u64) -> io::Result<PageBits> {
        Ok(PageBits { words: MappedRange::anonymous(pages.div_ceil(64).max(1) * 8)? })
    }

    fn word(&self, page: u64) -> Option<&AtomicU64> {
        let word = self.words.addr(page / 64 * 8, 8)?;
        // SAFETY: the word lies inside the mapping (which `self` keeps), is aligned, and is accessed only as an
        // atomic.
        Some(unsafe { AtomicU64::from_ptr(word.cast()) })
    }

    fn get(&self, page: u64) -> bool {
        self.word(page).is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 == 1)
    }

    /// The first page of these whose bit is set; a word of bits at a time.
    fn next_set(&self, pages: std::ops::Range<u64>) -> Option<u64> {
        let mut page = pages.start;
        while page < pages.end {
            let bits = self.word(page)?.load(Ordering::Acquire) >> (page % 64);
            if bits != 0 {
                let found = page + u64::from(bits.trailing_zeros());
                return Some(found).filter(|&found| found < pages.end);
            }
            page = (page / 64 + 1) * 64;
        }
        None
    }

    fn set(&self, page: u64) {
        // Read first: most stores go to pages that have a copy already.
        if let Some(word) = self.word(page).filter(|_| !self.get(page)) {
            word.fetch_or(1 << (page % 64), Ordering::AcqRel);
        }
    }

    fn clear(&self, page: u64) {
        if let Some(word) = self.word(page) {
            word.fetch_and(!(1 << (page % 64)), Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Share;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_flushed_after_begin_waits() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(4 * PAGE_SIZE).expect("lengthens");
        let view = MappedRange::file(file.as_fd(), 4 * PAGE_SIZE, Share::Private).expect("maps");
        let overlay = Overlay::new(view).expect("memory");
        let mut written = Vec::new();
        let mut write_out = |overlay: &Overlay| {
            written.clear();
            overlay
                .write_out(|at, bytes| {
                    written.push((at / PAGE_SIZE, bytes.len() as u64 / PAGE_SIZE));
                    Ok(())
                })
                .expect("writes");
            written.clone()
        };
        assert!(overlay.store(0, &[1; 2 * PAGE_SIZE as usize]) && overlay.store(3 * PAGE_SIZE, &[1]));
        assert!(!overlay.store(4 * PAGE_SIZE - 1, &[1; 2]) && !overlay.begin());
        overlay.flush(0, 2 * PAGE_SIZE);
        assert!(overlay.begin());
        overlay.flush(2 * PAGE_SIZE, 2 * PAGE_SIZE);
        assert_eq!(write_out(&overlay), [(0, 2)], "one run, and not what was flushed later");
        assert_eq!(write_out(&overlay), []);
        assert!(overlay.begin());
        assert_eq!(write_out(&overlay), [(3, 1)], "and nothing that was never stored to");
        assert!(!overlay.begin());
    }
}
