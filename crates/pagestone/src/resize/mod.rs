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

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layout::frames_of;
use crate::units::FRAME_SIZE;

impl Engine {
    /// Lets the pool have `size` bytes, rounded down to whole frames; not fewer than it has.
    pub(crate) fn grow(&self, size: u64) -> Result<()> {
        // First: a child may have inherited the lock taken.
        self.alloc.check_process()?;
        let frames = frames_of(size)?;
        let _resizing = self.resizing.lock();
        if frames < self.alloc.frames() {
            return Err(Error::Size(format!("the pool has {} bytes, more than {size}", self.alloc.size())));
        }
        let region = &self.alloc.region;
        // What the media have of the new range already may hold anything.
        let blank = region.len();
        // Also if they are long enough: a truncation after an earlier shrink may be due.
        region.set_len(frames * FRAME_SIZE)?;
        if region.len() < frames * FRAME_SIZE {
            return Err(Error::Size(format!("the media have {} bytes, {size} were asked for", region.len())));
        }
        let old = self.alloc.frames();
        // From here on no record describes anything behind the end, so none is replayed over the zeros.
        self.alloc.checkpoint()?;
        self.alloc.zero_descriptors(old, frames, blank)?;
        {
            let change = self.alloc.change_layout();
            self.alloc.transact(false, |tx| tx.put_frames(&change, frames))?;
        }
        self.alloc.frames_added(old);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests end at the first surprise
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use pmem::Memory;

    use crate::check::{CheckOptions, check_on};
    use crate::layout::SEGMENT;
    use crate::units::{FRAME_SIZE, FrameNo};
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
}
