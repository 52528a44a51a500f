//! One io_uring: requests for whole blocks of one file, `depth` in flight.
//!
//! ```text
//!   pieces --> slots [ run | run | free | ... ] --submit--> kernel --complete--> done
//!                 ^------------- the rest of a short one --------------'
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;

use io_uring::{IoUring, opcode, types};

use super::{Direction, Run, check, whole_blocks};

/// A ring, and what of it is in flight. Nothing is, between two calls.
pub(super) struct Ring {
    ring: IoUring,
    slots: Vec<Option<Run>>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring of {}", self.slots.len())
    }
}

impl Ring {
    pub(super) fn new(depth: usize) -> io::Result<Ring> {
        let ring = IoUring::new(depth as u32)?;
        Ok(Ring { ring, slots: vec![None; depth] })
    }

    /// Moves the whole blocks of all pieces; returns what is left for the page cache. Nothing is in flight on return.
    ///
    /// # Safety
    /// As [`super::DirectFile::transfer`].
    pub(super) unsafe fn transfer(
        &mut self,
        file: &File,
        direction: Direction,
        pieces: &mut dyn Iterator<Item = Run>,
        cancel: &AtomicBool,
    ) -> io::Result<Vec<Run>> {
        let mut left = Vec::new();
        let mut again: Vec<Run> = Vec::new();
        let mut failed = None;
        loop {
            while failed.is_none()
                && let Some(slot) = self.slots.iter().position(Option::is_none)
                && let Some(run) = again.pop().or_else(|| pieces.next())
            {
                if let Err(e) = check(cancel) {
                    failed = Some(e);
                    break;
                }
                match whole_blocks(&run) {
                    // SAFETY: the caller guarantees that the memory stays; this function waits for the completion.
                    Some(len) => unsafe { self.begin(file, direction, slot, Run { len, ..run }) },
                    None => left.push(run),
                }
                left.extend(whole_blocks(&run).map(|len| run.after(len)).filter(|rest| rest.len > 0));
            }
            if self.slots.iter().all(Option::is_none) {
                return failed.map_or(Ok(left), Err);
            }
            // What fails here fails for what is not submitted yet; what is in flight has to end in any case.
            if let Err(e) = self.ring.submit_and_wait(1)
                && !matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
            {
                failed.get_or_insert(e);
                std::thread::yield_now();
            }
            while let Some(entry) = self.ring.completion().next() {
                let Some(run) = self.slots.get_mut(entry.user_data() as usize).and_then(Option::take) else { continue };
                match ended(direction, run, entry.result()) {
                    Ok(rest) => again.extend(rest),
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => left.push(run),
                    Err(e) => _ = failed.get_or_insert(e),
                }
            }
        }
    }

    /// # Safety
    /// The memory of the run stays until its completion.
    unsafe fn begin(&mut self, file: &File, direction: Direction, slot: usize, run: Run) {
        let fd = types::Fd(file.as_raw_fd());
        let entry = match direction {
            Direction::Read => opcode::Read::new(fd, run.addr, run.len as u32).offset(run.offset).build(),
            Direction::Write => opcode::Write::new(fd, run.addr, run.len as u32).offset(run.offset).build(),
        };
        // SAFETY: the caller guarantees that the memory stays.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
        // There is a place in the queue for each slot.
        debug_assert!(pushed.is_ok());
        self.slots[slot] = pushed.is_ok().then_some(run);
    }
}

/// What is left of a run after the kernel's answer.
fn ended(direction: Direction, run: Run, result: i32) -> io::Result<Option<Run>> {
    match result {
        0 if direction == Direction::Read => Err(io::ErrorKind::UnexpectedEof.into()),
        0 => Err(io::ErrorKind::WriteZero.into()),
        moved if moved > 0 => Ok(Some(run.after(moved as usize)).filter(|rest| rest.len > 0)),
        error => match io::Error::from_raw_os_error(-error) {
            e if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => Ok(Some(run)),
            e => Err(e),
        },
    }
}
