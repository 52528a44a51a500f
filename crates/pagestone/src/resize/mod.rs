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
        let frames = frames_of(size)?;
        let _resizing = self.resizing.lock();
        self.alloc.check_process()?;
        if frames < self.alloc.frames() {
            return Err(Error::Size(format!("the pool has {} bytes, more than {size}", self.alloc.size())));
        }
        let region = &self.alloc.region;
        // What the media have of the new range already may hold anything.
        let blank = region.len();
        if region.len() < frames * FRAME_SIZE {
            region.set_len(frames * FRAME_SIZE)?;
        }
        if region.len() < frames * FRAME_SIZE {
            return Err(Error::Size(format!("the media have {} bytes, {size} were asked for", region.len())));
        }
        let old = self.alloc.frames();
        // From here on no record describes anything behind the end, so none is replayed over the zeros.
        self.alloc.checkpoint()?;
        self.alloc.zero_descriptors(old, frames, blank)?;
        self.alloc.transact(false, |tx| tx.put_frames(frames))?;
        self.alloc.frames_added(old);
        Ok(())
    }
}
