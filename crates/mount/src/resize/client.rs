//! The side of a command: ioctls on the mount's root directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::protocol::{CANCEL, Change, START, START_LEN, STATUS, STATUS_LEN, Status, decode_number};

/// The way to the server of the mount on a directory. The directory is open during a call only: it keeps nobody from
/// unmounting.
///
/// # Errors
/// All calls: what opening the directory answers; `EPERM` for other users than root and the one who runs the server;
/// `ENOTTY` if no pool is mounted there. `start`: `EBUSY` while an operation runs, `EROFS` for a pool that is open
/// read-only.
#[derive(Clone, Copy, Debug)]
pub struct Control<'a> {
    dir: &'a Path,
}

impl<'a> Control<'a> {
    /// Of the mount on exactly this directory.
    pub fn new(dir: &'a Path) -> Control<'a> {
        Control { dir }
    }

    /// Starts an operation; answers its number. `size` is in bytes. Waits for nothing.
    pub fn start(&self, change: Change, size: u64) -> io::Result<u32> {
        let mut bytes: [u8; START_LEN] = change.encode(size);
        self.ioctl(START, &mut bytes)?;
        Ok(decode_number(&bytes))
    }

    /// How far the last operation is.
    pub fn status(&self) -> io::Result<Status> {
        let mut bytes = [0; STATUS_LEN];
        self.ioctl(STATUS, &mut bytes)?;
        Status::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Ends a shrink that runs after its step. Returns at once.
    pub fn cancel(&self) -> io::Result<()> {
        self.ioctl(CANCEL, &mut [])
    }

    fn ioctl(&self, command: u32, bytes: &mut [u8]) -> io::Result<()> {
        let dir = File::open(self.dir)?;
        // SAFETY: the descriptor is open, and the command's number says how many bytes are read and written: the
        // length of `bytes`, which is live and exclusively borrowed.
        let done = unsafe { libc::ioctl(dir.as_raw_fd(), libc::c_ulong::from(command), bytes.as_mut_ptr()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
