//! Transfers between memory and a file or block device past the kernel's page cache, many in flight.
//!
//! ```text
//!   Run { memory, offset, len } ...   cut into pieces of PIECE
//!        |  io_uring, DEPTH in flight                          (ring.rs)
//!        |  threads with pread and pwrite: where io_uring is forbidden, and into memory that outlives the process
//!        v
//!   O_DIRECT: whole blocks              the page cache: what is no whole block, or all of it where O_DIRECT is refused
//! ```
//!
//! A process that is killed is gone only when its threads have left their system calls, and requests of a ring may be done
//! later. So what another process may give to somebody else by then ([`Lifetime::Outlives`]) is never read into by a ring.
//!
//! No bytes are copied, and no memory is taken that grows with what is moved. The memory is any that the process has
//! mapped: of a pool, or its own.

mod ring;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use self::ring::Ring;

/// Bytes of one request to the kernel at most.
const PIECE: usize = 1 << 20;
/// Requests in flight at most, and threads where there is no io_uring.
const DEPTH: usize = 32;
const THREADS: usize = 8;
/// What O_DIRECT asks of offsets, lengths and addresses at most. Devices with larger blocks use the page cache.
const BLOCK: u64 = 4096;

/// Bytes in memory, and where they are in a file.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The first byte in memory.
    pub addr: *mut u8,
    /// Bytes.
    pub len: usize,
    /// Where they are in the file.
    pub offset: u64,
}

// SAFETY: it is an address; whoever uses it promises what is there (`DirectFile::transfer`).
unsafe impl Send for Run {}
// SAFETY: as above.
unsafe impl Sync for Run {}

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the file to memory.
    Read,
    /// From memory to the file.
    Write,
}

/// How long the memory of a transfer lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// This process's own.
    Process,
    /// It outlives the process, and others use it then.
    Outlives,
}

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To read what is there.
    Read,
    /// To write to a file or device that is there. A device must not be in use, and a symbolic link is refused.
    Write,
    /// To write a new file, of mode 0600. What has the name already is refused.
    Create,
}

/// A file or block device that is read or written past the page cache.
#[derive(Debug)]
pub struct DirectFile {
    /// Opened with O_DIRECT; `None` where that is refused.
    direct: Option<File>,
    /// For what is no whole block.
    cached: File,
    /// `None` where io_uring is forbidden.
    ring: Option<Mutex<Ring>>,
    /// A direct request was refused for its alignment: all of them are.
    refused: AtomicBool,
}

impl DirectFile {
    /// Opens a file or block device.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, purpose: Purpose) -> io::Result<DirectFile> {
        DirectFile::open_with(path, purpose, true)
    }

    /// As [`DirectFile::open`]; with `ring` false as if io_uring were forbidden.
    fn open_with(path: &Path, purpose: Purpose, ring: bool) -> io::Result<DirectFile> {
        let mut options = OpenOptions::new();
        let is_device = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
        match purpose {
            Purpose::Read => options.read(true),
            // A device that is mounted, or belongs to an array, is refused.
            Purpose::Write if is_device => options.read(true).write(true).custom_flags(libc::O_EXCL),
            Purpose::Write => options.read(true).write(true).custom_flags(libc::O_NOFOLLOW),
            Purpose::Create => options.read(true).write(true).create_new(true).mode(0o600),
        };
        let cached = options.open(path)?;
        // The same file, whatever has become of its name.
        let same = PathBuf::from(format!("/proc/self/fd/{}", cached.as_raw_fd()));
        let direct = options.create_new(false).custom_flags(libc::O_DIRECT).open(same).ok();
        let ring = if ring && direct.is_some() { Ring::new(DEPTH).ok().map(Mutex::new) } else { None };
        Ok(DirectFile { direct, cached, ring, refused: AtomicBool::new(false) })
    }

    /// The file, as the page cache has it: for its length and everything else that is no transfer.
    pub fn file(&self) -> &File {
        &self.cached
    }

    /// Whether whole blocks go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some() && !self.refused.load(Ordering::Relaxed)
    }

    /// Moves all bytes of all runs. Returns when none is in flight any more, also after an error: then some may have been
    /// moved, in any order. `Interrupted` after `cancel` is set.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before a run that is read; the system's.
    ///
    /// # Safety
    /// The memory of each run is mapped for as long as this runs, and nobody has a reference into it: shared with others for
    /// [`Direction::Write`], none for [`Direction::Read`].
    pub unsafe fn transfer(
        &self,
        direction: Direction,
        runs: &[Run],
        memory: Lifetime,
        cancel: &AtomicBool,
    ) -> io::Result<()> {
        let mut pieces = pieces(runs);
        let by_ring = self.is_direct() && (direction, memory) != (Direction::Read, Lifetime::Outlives);
        if let (Some(ring), Some(direct), true) = (&self.ring, &self.direct, by_ring) {
            // SAFETY: the caller guarantees it.
            let left = unsafe { ring.lock().transfer(direct, direction, &mut pieces, cancel)? };
            return left.into_iter().try_for_each(|run| {
                check(cancel)?;
                // SAFETY: as above.
                unsafe { self.one(direction, run) }
            });
        }
        let (all, next) = (pieces.collect::<Vec<Run>>(), AtomicUsize::new(0));
        let work = || -> io::Result<()> {
            while let Some(run) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                check(cancel)?;
                // SAFETY: as above.
                unsafe { self.one(direction, *run)? };
            }
            Ok(())
        };
        let threads = THREADS.min(all.len()).saturating_sub(1);
        std::thread::scope(|scope| {
            let others: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let ours = work();
            let panicked = |_| Err(io::Error::other("a thread of the transfer panicked"));
            others.into_iter().map(|other| other.join().unwrap_or_else(panicked)).fold(ours, Result::and)
        })
    }

    /// Fills a buffer.
    ///
    /// # Errors
    /// As [`DirectFile::transfer`].
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let run = Run { addr: buf.as_mut_ptr(), len: buf.len(), offset };
        // SAFETY: the buffer is borrowed for as long as this runs.
        unsafe { self.transfer(Direction::Read, &[run], Lifetime::Process, &AtomicBool::new(false)) }
    }

    /// Moves one run by system calls of this thread: whole blocks directly, the rest through the page cache.
    ///
    /// # Safety
    /// As [`DirectFile::transfer`].
    unsafe fn one(&self, direction: Direction, mut run: Run) -> io::Result<()> {
        while run.len > 0 {
            let whole = whole_blocks(&run).filter(|_| self.is_direct());
            let (file, len) = match (&self.direct, whole) {
                (Some(direct), Some(len)) => (direct, len),
                _ => (&self.cached, run.len),
            };
            let (fd, offset) = (file.as_raw_fd(), run.offset as libc::off_t);
            // SAFETY: the caller guarantees it. No slice is made of the memory, which others may store to.
            let moved = unsafe {
                match direction {
                    Direction::Read => libc::pread(fd, run.addr.cast(), len, offset),
                    Direction::Write => libc::pwrite(fd, run.addr.cast(), len, offset),
                }
            };
            let moved = usize::try_from(moved).map_err(|_| io::Error::last_os_error());
            match moved {
                Ok(0) if direction == Direction::Read => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(moved) => run = run.after(moved),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if whole.is_some() && e.raw_os_error() == Some(libc::EINVAL) => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Run {
    /// What is left after so many bytes.
    fn after(self, moved: usize) -> Run {
        let moved = moved.min(self.len);
        Run { addr: self.addr.wrapping_add(moved), len: self.len - moved, offset: self.offset + moved as u64 }
    }
}

fn check(cancel: &AtomicBool) -> io::Result<()> {
    if cancel.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
}

/// How many bytes from the start of a run are whole blocks; `None` if it does not begin with one.
fn whole_blocks(run: &Run) -> Option<usize> {
    let begins = run.offset.is_multiple_of(BLOCK) && (run.addr as u64).is_multiple_of(BLOCK);
    Some(run.len / BLOCK as usize * BLOCK as usize).filter(|&len| begins && len > 0)
}

/// The runs in pieces that are no longer than one request, cut where blocks end.
fn pieces(runs: &[Run]) -> impl Iterator<Item = Run> + '_ {
    runs.iter().flat_map(|&run| {
        let mut left = run;
        std::iter::from_fn(move || {
            let most = PIECE - (left.offset % BLOCK) as usize;
            let len = match whole_blocks(&left) {
                Some(whole) => whole.min(PIECE),
                None => left.len.min(most),
            };
            let piece = Run { len, ..left };
            left = left.after(len);
            (len > 0).then_some(piece)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MappedRange, Share};
    use std::os::fd::AsFd;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
    }

    fn run(memory: &mut [u8], offset: u64) -> Run {
        Run { addr: memory.as_mut_ptr(), len: memory.len(), offset }
    }

    /// Each way, from memory that is aligned and memory that is not, to offsets of both kinds, with ends of both kinds.
    #[test]
    fn what_is_written_is_read_again_whatever_its_alignment_and_the_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let never = AtomicBool::new(false);
        let want = bytes(9 << 20);
        for ring in [true, false] {
            for (offset, at, len) in
                [(0, 0, 9 << 20), (4096, 0, 5000), (4096, 3, 5 << 20), (777, 0, 3 << 20), (12_288, 0, 100)]
            {
                let path = dir.path().join("file");
                let file = DirectFile::open_with(&path, Purpose::Create, ring).expect("opens");
                let file_memory = tempfile::tempfile().expect("a file");
                file_memory.set_len(10 << 20).expect("lengthens");
                let memory = MappedRange::file(file_memory.as_fd(), 10 << 20, Share::Shared).expect("maps");
                assert!(memory.write(at, &want[..len]));
                let from = memory.addr(at, len as u64).expect("inside");
                // SAFETY: the mapping lives as long, and nobody refers into it.
                unsafe {
                    file.transfer(Direction::Write, &[Run { addr: from, len, offset }], Lifetime::Process, &never)
                }
                .expect("writes");
                let mut back = vec![0; len];
                // SAFETY: the vector lives as long; it is not used meanwhile.
                unsafe { file.transfer(Direction::Read, &[run(&mut back, offset)], Lifetime::Process, &never) }
                    .expect("reads");
                assert!(back == want[..len], "ring {ring}, offset {offset}, memory {at}, {len} bytes");
                let plain = std::fs::read(&path).expect("reads");
                assert!(plain[offset as usize..] == want[..len] && plain[..offset as usize].iter().all(|b| *b == 0));
                std::fs::remove_file(path).expect("removes");
            }
        }
    }

    #[test]
    fn many_runs_go_to_their_places_and_an_end_before_them_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let never = AtomicBool::new(false);
        let mut want = bytes(6 << 20);
        let file = DirectFile::open(&path, Purpose::Create).expect("opens");
        // Every second piece of 64 KiB, from the back.
        let mut runs: Vec<Run> =
            want.chunks_mut(64 << 10).enumerate().map(|(i, c)| run(c, (i as u64) << 16)).step_by(2).collect();
        runs.reverse();
        // SAFETY: the vector lives as long; it is not used meanwhile.
        unsafe { file.transfer(Direction::Write, &runs, Lifetime::Process, &never) }.expect("writes");
        let got = std::fs::read(&path).expect("reads");
        for (i, chunk) in got.chunks(64 << 10).enumerate() {
            let right =
                if i % 2 == 0 { chunk == &want[i << 16..][..chunk.len()] } else { chunk.iter().all(|b| *b == 0) };
            assert!(right, "piece {i}");
        }
        let mut back = vec![0; 1 << 20];
        // SAFETY: as above.
        let ended = unsafe {
            file.transfer(Direction::Read, &[run(&mut back, got.len() as u64 - 4096)], Lifetime::Process, &never)
        };
        assert_eq!(ended.map_err(|e| e.kind()), Err(io::ErrorKind::UnexpectedEof));
        let now = AtomicBool::new(true);
        // SAFETY: as above.
        let stopped = unsafe { file.transfer(Direction::Read, &[run(&mut back, 0)], Lifetime::Process, &now) };
        assert_eq!(stopped.map_err(|e| e.kind()), Err(io::ErrorKind::Interrupted));
    }

    #[test]
    fn a_file_that_cannot_be_written_says_so() {
        let never = AtomicBool::new(false);
        let full = DirectFile::open(Path::new("/dev/full"), Purpose::Write).expect("opens");
        let mut some = vec![1; 8192];
        // SAFETY: the vector lives as long; it is not used meanwhile.
        let refused = unsafe { full.transfer(Direction::Write, &[run(&mut some, 0)], Lifetime::Process, &never) };
        assert_eq!(refused.map_err(|e| e.raw_os_error()), Err(Some(libc::ENOSPC)));
        assert!(DirectFile::open(Path::new("/nowhere/at/all"), Purpose::Read).is_err());
        let dir = tempfile::tempdir().expect("a directory");
        let (there, link) = (dir.path().join("there"), dir.path().join("link"));
        std::fs::write(&there, "kept").expect("writes");
        std::os::unix::fs::symlink(&there, &link).expect("links");
        assert!(
            DirectFile::open(&there, Purpose::Create).is_err() && DirectFile::open(&link, Purpose::Create).is_err()
        );
        assert!(DirectFile::open(&link, Purpose::Write).is_err(), "a link is not followed");
        assert_eq!(std::fs::read(&there).expect("reads"), b"kept");
    }
}
