//! The length and the holes of the file beneath open media. Extending happens at once; truncating is deferred to
//! the close.
//!
//! ```text
//!   lengthen   ftruncate, fsync          the new bytes can be mapped
//!   shorten    the tail is punched out   its blocks are free; the length stays, so that a late read gets zeros
//!              ... at close: ftruncate   and not SIGBUS
//! ```

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;

use crate::OwnerProcess;

/// No truncation is due.
const NONE: u64 = u64::MAX;

/// The pending truncation of a file.
#[derive(Debug)]
pub(crate) struct FileLen {
    /// The length that the file gets at close, or [`NONE`].
    at_close: AtomicU64,
    /// A child of the process has the media too, and must not change the file.
    process: OwnerProcess,
}

impl FileLen {
    /// No truncation is pending.
    pub(crate) fn new() -> FileLen {
        FileLen { at_close: AtomicU64::new(NONE), process: OwnerProcess::current() }
    }

    /// Extends the file to `len` bytes if it is shorter. Durable on return. A pending truncation cuts nothing before
    /// `len` any more.
    pub(crate) fn lengthen(&self, file: &File, len: u64) -> io::Result<()> {
        let meta = file.metadata()?;
        if meta.is_file() {
            // A pending truncation would remove bytes that are in use again. What lies behind `len` still has to go.
            let pending = self.at_close.load(Ordering::Acquire);
            let left = if pending == NONE || len >= meta.len() { NONE } else { pending.max(len) };
            self.at_close.store(left, Ordering::Release);
            if meta.len() < len {
                rustix::fs::ftruncate(file, len)?;
                file.sync_all()?;
            }
            return Ok(());
        }
        let there = len_of(file)?;
        match there >= len {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::Unsupported, format!("the device has only {there} bytes"))),
        }
    }

    /// The length that the file has once the media are closed.
    pub(crate) fn at_close(&self, file: &File) -> io::Result<u64> {
        match self.at_close.load(Ordering::Acquire) {
            NONE => len_of(file),
            len => Ok(len),
        }
    }

    /// Punches out the bytes beyond `len`, and truncates the file at close.
    pub(crate) fn shorten(&self, file: &File, len: u64) -> io::Result<()> {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() <= len {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // If the filesystem does not support it, the space is freed at close.
        let _ = rustix::fs::fallocate(file, how, len, meta.len() - len);
        self.at_close.store(len, Ordering::Release);
        Ok(())
    }

    /// Performs a pending truncation. Called when the media are closed.
    pub(crate) fn close(&self, file: &File) {
        let len = self.at_close.load(Ordering::Acquire);
        if len != NONE && self.process.is_current() {
            // If it fails the file is longer than the pool, which does no harm.
            let _ = rustix::fs::ftruncate(file, len);
        }
    }
}

/// The length of a file, or of a device, which has none in its attributes.
fn len_of(mut file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if meta.is_file() { Ok(meta.len()) } else { file.seek(SeekFrom::End(0)) }
}

/// The first byte of the range that the file has storage for, as far as its filesystem reports it.
pub(crate) fn next_data(file: impl AsFd, at: u64, len: u64) -> Option<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Some(data.max(at)).filter(|&data| data - at < len),
        // No data up to the end of the file.
        Err(rustix::io::Errno::NXIO) => None,
        Err(_) => (len > 0).then_some(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: the attributes of a block device, as of any other special file, say 0.
    #[test]
    #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn the_length_is_where_the_end_is_and_what_a_shorten_has_left() {
        let mut path = std::env::temp_dir();
        path.push(format!("pagestone-len-{}", std::process::id()));
        std::fs::write(&path, [1; 5000]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let len = FileLen::new();
        assert_eq!(len.at_close(&file).unwrap(), 5000);
        len.shorten(&file, 4096).unwrap();
        assert_eq!(len.at_close(&file).unwrap(), 4096);
        for device in block_devices() {
            let mut end = &device;
            let end = end.seek(SeekFrom::End(0)).unwrap();
            assert_eq!(FileLen::new().at_close(&device).unwrap(), end);
        }
    }

    /// Block devices that this process may read; a machine need not have any.
    fn block_devices() -> Vec<File> {
        use std::os::unix::fs::FileTypeExt;
        let all = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        let blocks = all.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_block_device()));
        blocks.filter_map(|entry| File::open(entry.path()).ok()).collect()
    }
}
