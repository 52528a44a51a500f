//! The advisory lock on a pool, for one process at a time, and the lookup of the process that holds it.
//!
//! ```text
//!   open --> flock --+-- free: locked
//!                    +-- held by another process: Error::InUse with its pid, from /proc/locks
//!                    `-- held by this process, or just released: retry for a moment
//! ```
//!
//! `flock` belongs to the open file description, so a second open in the same process is rejected too. The lock is
//! released with the last descriptor, however the process ends. A child that this process is starting has the
//! descriptors until it calls `exec`, so a lock held by this process is retried for a moment.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::{Error, Result, detect};

/// The lock on a pool, held apart from its media, so that it outlives them: by a process that starts another one, which
/// opens the pool. It is released with the last clone and the last descriptor, in all processes.
#[derive(Clone, Debug)]
pub struct PoolLock(Arc<OwnedFd>);

impl PoolLock {
    /// Locks the pool at `path`: exclusively, or shared for read-only use.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn take(path: &Path, shared: bool) -> Result<PoolLock> {
        let file = detect::open_to_lock(path)?;
        take(&file, path, shared)?;
        Ok(PoolLock(Arc::new(file.into())))
    }

    /// A lock that another process has taken and passed on, by its descriptor.
    pub fn from_fd(fd: OwnedFd) -> PoolLock {
        PoolLock(Arc::new(fd))
    }

    /// Refuses a lock of another file.
    pub(super) fn check(&self, file: &File, path: &Path) -> Result<()> {
        let identity = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino, stat.st_rdev));
        let fail =
            |e: rustix::io::Errno| Error::Path { what: "cannot look at", path: path.to_path_buf(), source: e.into() };
        if identity(self.0.as_fd()).map_err(fail)? == identity(file.as_fd()).map_err(fail)? {
            return Ok(());
        }
        Err(Error::Invalid("the lock is that of another pool"))
    }
}

impl AsFd for PoolLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Locks `file` for as long as it is open: exclusively, or shared for read-only use.
pub(super) fn take(file: &File, path: &Path, shared: bool) -> Result<()> {
    let how = match shared {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    let begun = Instant::now();
    loop {
        match rustix::io::retry_on_intr(|| rustix::fs::flock(file, how)) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let pid = holder(file).unwrap_or(0);
                // 0: it was released during the lookup.
                let wait = pid == 0 || pid == std::process::id();
                if !wait || begun.elapsed() > RETRY_TIME {
                    return Err(Error::InUse { path: path.to_path_buf(), pid });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(Error::Path { what: "cannot lock", path: path.to_path_buf(), source: e.into() }),
        }
    }
}

/// The process that has the pool at `path` open, if there is one and `/proc` shows it.
pub fn holder_of(path: &Path) -> Option<u32> {
    let file = File::open(path).ok()?;
    holder(&file).ok().filter(|&pid| pid != 0)
}

/// How long to wait for a lock that is held by this process, or whose holder is unknown.
const RETRY_TIME: Duration = Duration::from_millis(500);

/// Limit on reads of the list of locks to find the holder.
const TRIES: u32 = 20;

/// The process that holds a lock on `file`, as far as `/proc` shows it.
fn holder(file: &File) -> io::Result<u32> {
    let meta = file.metadata()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    // The kernel produces the list in pieces. A line can be missing while locks are added and removed.
    for _ in 0..TRIES {
        if let Some(pid) = find(&std::fs::read_to_string("/proc/locks")?, &place) {
            return Ok(pid);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(0)
}

/// The process of the first `flock` on `place` in the text of `/proc/locks`, whose lines read `1: FLOCK  ADVISORY
/// WRITE 4711 fe:00:1234 0 EOF` (and `1: -> FLOCK ...` for a process that waits).
fn find(locks: &str, place: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok().filter(|&pid| pid != 0),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn reads_proc_locks() {
        let text = "1: POSIX  ADVISORY  WRITE 10 fe:00:77 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                    3: FLOCK  ADVISORY  READ  13 00:1a:77 0 EOF\nnonsense\n";
        assert_eq!(find(text, "fe:00:77"), Some(11));
        assert_eq!(find(text, "00:1a:77"), Some(13));
        assert_eq!(find(text, "fe:00:78"), None);
        assert_eq!(find("", "fe:00:78"), None);
    }
}
