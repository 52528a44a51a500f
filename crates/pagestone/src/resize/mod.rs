//! Growing and shrinking a pool that is in use.
//!
//! ```text
//!   grow     media longer --> descriptors zeroed --> one record: the size --> allocated from at once
//!
//!   shrink   limit: nothing more is allocated behind it
//!            evacuate: every inode's nodes and runs behind it, a step at a time    (evacuate.rs)
//!                      inode pages and forwarding tables behind it                 (inode_pages.rs)
//!            one record: the size --> media shorter
//! ```
//!
//! Every step is a transaction. A crash anywhere leaves a pool of the old size, some of whose pages lie elsewhere, or of
//! the new one.

mod evacuate;
mod inode_pages;
mod shrink;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layout::frames_of;
use crate::units::FRAME_SIZE;

/// One grow or shrink. While this exists, another one is [`Error::Busy`].
pub(crate) struct Resizing<'a>(&'a AtomicBool);

impl<'a> Resizing<'a> {
    /// [`Error::Busy`] if somebody else does that.
    pub(crate) fn begin(flag: &'a AtomicBool) -> Result<Resizing<'a>> {
        match flag.swap(true, Ordering::Acquire) {
            true => Err(Error::Busy),
            false => Ok(Resizing(flag)),
        }
    }
}

impl Drop for Resizing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Engine {
    /// Lets the pool have `size` bytes, rounded down to whole frames; not fewer than it has.
    pub(crate) fn grow(&self, size: u64) -> Result<()> {
        // First: a child may have inherited the lock taken.
        self.alloc.check_process()?;
        let frames = frames_of(size)?;
        let _resizing = Resizing::begin(&self.resizing)?;
        if frames < self.alloc.frames() {
            return Err(Error::Size(format!("the pool has {} bytes, more than {size}", self.alloc.size())));
        }
        let old = self.alloc.frames();
        let region = &self.alloc.region;
        let before = region.len_at_close()?.max(old * FRAME_SIZE);
        if let Err(e) = self.lengthen(old, frames) {
            // After an error of the journal itself, nobody knows which size the media say.
            if self.alloc.journal.check_latch().is_ok() {
                self.failures.note(
                    "giving back what the media were lengthened by",
                    region.release_from(before).map_err(Error::from),
                );
            }
            return Err(e);
        }
        self.alloc.frames_added(old);
        self.alloc.journal.sync()
    }

    /// Everything up to the record.
    fn lengthen(&self, old: u64, frames: u64) -> Result<()> {
        let (region, size) = (&self.alloc.region, frames * FRAME_SIZE);
        // Also if they are long enough: a truncation after an earlier shrink may be due.
        region.ensure_len(size)?;
        if region.len() < size {
            return Err(Error::Size(format!("the media have {} bytes, {size} were asked for", region.len())));
        }
        self.alloc.zero_descriptors(old, frames)?;
        let change = self.alloc.change_layout();
        self.alloc.transact(false, |tx| tx.put_frames(&change, frames))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests end at the first surprise
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use pmem::{Media, Memory, Part};

    use crate::check::{CheckOptions, check_on};
    use crate::layout::{FORWARD_LEVELS, ForwardEntry, SEGMENT};
    use crate::units::{FRAME_SIZE, FrameNo, PageNo};
    use crate::{CreateOptions, OpenOptions, Pool};

    /// Fails if frames of a further segment take their descriptors, or owners, from another one.
    #[test]
    fn frames_of_a_further_segment_are_allocated_checked_and_left_again() {
        let media = Arc::new(Memory::new(16 << 20).unwrap());
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
        let first = pool.engine().alloc.geometry.first_segment;
        pool.grow((first + SEGMENT + 100) * FRAME_SIZE).unwrap();
        for head in [first, first + SEGMENT] {
            pool.engine().alloc.search_from(FrameNo(head));
            let file = pool.create_file(format!("/{head}")).unwrap();
            file.write_atomic(&[(0, &[head as u8 | 1; 100_000][..])]).unwrap();
            file.write_all_at(&vec![3; FRAME_SIZE as usize], 2 * FRAME_SIZE).unwrap();
            let lies = file.extents(..).unwrap().iter().filter(|x| x.pool > head * FRAME_SIZE).count();
            assert!(lies > 0, "nothing lies in the segment of {}", FrameNo(head));
        }
        pool.close().unwrap();
        let check = || check_on(media.clone(), &CheckOptions::default(), &mut |_, _| {}).unwrap().findings;
        assert!(check().is_empty(), "{:?}", check());
        let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
        pool.shrink(first * FRAME_SIZE, &mut |_, _| ControlFlow::Continue(())).unwrap();
        for head in [first, first + SEGMENT] {
            let mut bytes = vec![0; 100_000];
            pool.open_file(format!("/{head}")).unwrap().read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes.iter().all(|&byte| byte == head as u8 | 1));
        }
        pool.close().unwrap();
        assert!(check().is_empty(), "{:?}", check());
    }

    /// A pool of 200 files whose inode pages lie elsewhere than their numbers say, closed; and the words at the last
    /// level of its forwarding table, by the page and index of each.
    fn pool_with_moved_inode_pages() -> (Arc<Memory>, Vec<(PageNo, usize, u64)>) {
        let media = Arc::new(Memory::new(64 << 20).unwrap());
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
        let engine = pool.engine();
        engine.alloc.search_from(FrameNo(24));
        for i in 0..200 {
            pool.create_file(format!("/{i}")).unwrap().write_all_at(&[i as u8; 5000], 0).unwrap();
        }
        pool.shrink(32 << 20, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let mut table = engine.alloc.state().forward_root().expect("inode pages have moved");
        let mut words = Vec::new();
        for level in (0..FORWARD_LEVELS).rev() {
            let page = engine.alloc.page(table).unwrap();
            let used = |&i: &usize| page.u64(i * 8) != 0;
            words = (0..512).filter(used).map(|i| (table, i, page.u64(i * 8))).collect();
            let (_, first, word) = words[0];
            if level > 0 {
                table = ForwardEntry(word).parse(table, first).unwrap().unwrap();
            }
        }
        pool.close().unwrap();
        assert!(words.len() > 1);
        (media, words)
    }

    /// Fails if a repair takes inodes that a damaged forwarding table hides for deleted ones, and frees what they own.
    #[test]
    fn a_repair_gives_up_nothing_while_words_of_the_forwarding_table_are_wrong() {
        let (media, words) = pool_with_moved_inode_pages();
        let check = |repair| check_on(media.clone(), &CheckOptions::new().repair(repair), &mut |_, _| {}).unwrap();
        // Gone; or whole, with a check that is right, and leading to the page of another word, or to none of inodes.
        let target = |&(table, index, word): &(PageNo, usize, u64)| ForwardEntry(word).parse(table, index).unwrap();
        let elsewhere = [None, target(&words[1]), target(&words[0]).map(|page| page.plus(1)), Some(PageNo(1 << 39))];
        for (case, to) in elsewhere.into_iter().enumerate() {
            let (table, index, word) = words[0];
            let wrong = to.map_or(0, |to| ForwardEntry::new(table, index, to).0);
            let put = |word: u64| {
                let at = table.byte() + index as u64 * 8;
                media.persist(&[Part::Bytes { at, bytes: &word.to_le_bytes() }]).unwrap();
            };
            put(wrong);
            let found = check(true).findings;
            assert!(!found.is_empty() && found.iter().all(|f| !f.repaired), "case {case}: {found:?}");
            put(word);
            assert!(check(false).findings.is_empty(), "case {case}: {:?}", check(false).findings);
        }
        let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
        for i in 0..200 {
            let mut bytes = [0; 5000];
            pool.open_file(format!("/{i}")).unwrap().read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, [i as u8; 5000]);
        }
    }
}
