//! The length, and the holes, of a file below media that are open: longer at once, shorter when they are closed.
//!
//! ```text
//!   lengthen   ftruncate, fsync          the new bytes can be mapped
//!   shorten    the tail is punched out   its blocks are free; the length stays, so that a late reader meets zeros
//!              ... at close: ftruncate   and no SIGBUS
//! ```

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;

use crate::OwnerProcess;

/// No truncation is due.
const NONE: u64 = u64::MAX;

/// What the file's length is to be.
#[derive(Debug)]
pub(crate) struct FileLen {
    /// Length that the file gets at close, or [`NONE`].
    at_close: AtomicU64,
    /// A child of the process has the media too, and must not change the file.
    process: OwnerProcess,
}

impl FileLen {
    /// The file keeps its length.
    pub(crate) fn new() -> FileLen {
        FileLen { at_close: AtomicU64::new(NONE), process: OwnerProcess::current() }
    }

    /// Makes sure that the file has `len` bytes, durably.
    pub(crate) fn lengthen(&self, file: &File, len: u64) -> io::Result<()> {
        let meta = file.metadata()?;
        if meta.is_file() {
            // A truncation that was due would cut off what is used again.
            self.at_close.store(NONE, Ordering::Release);
            if meta.len() < len {
                rustix::fs::ftruncate(file, len)?;
                file.sync_all()?;
            }
            return Ok(());
        }
        let there = (&*file).seek(SeekFrom::End(0))?;
        match there >= len {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::Unsupported, format!("the device has only {there} bytes"))),
        }
    }

    /// Gives back what lies behind `len`.
    pub(crate) fn shorten(&self, file: &File, len: u64) -> io::Result<()> {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() <= len {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // A filesystem that cannot do it gives the space back at close.
        let _ = rustix::fs::fallocate(file, how, len, meta.len() - len);
        self.at_close.store(len, Ordering::Release);
        Ok(())
    }

    /// The media are closed.
    pub(crate) fn close(&self, file: &File) {
        let len = self.at_close.load(Ordering::Acquire);
        if len != NONE && self.process.is_current() {
            // If it fails the file is longer than the pool, which does no harm.
            let _ = rustix::fs::ftruncate(file, len);
        }
    }
}

/// The first byte of the range that the file has storage for, as far as its filesystem tells.
pub(crate) fn next_data(file: impl AsFd, at: u64, len: u64) -> Option<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Some(data.max(at)).filter(|&data| data - at < len),
        // Nothing up to the end of the file.
        Err(rustix::io::Errno::NXIO) => None,
        Err(_) => (len > 0).then_some(at),
    }
}
