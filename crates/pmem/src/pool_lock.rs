//! One process at a time: the advisory lock on a pool, and the name of who holds it.
//!
//! `flock` belongs to the open file description, so a second open in the same process is refused
//! like one in another, and the lock goes with the last descriptor however the process ends. A child that this
//! process is just starting has the descriptors too, until it becomes another program; so a lock that is this
//! process's own is waited for a moment.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::{Error, Result};

/// Locks `file` for as long as it stays open: alone to change it, shared to read it.
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
                // Nobody: it was released while we looked.
                let wait = pid == 0 || pid == std::process::id();
                if !wait || begun.elapsed() > PATIENCE {
                    return Err(Error::InUse { path: path.to_path_buf(), pid });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(Error::Path { what: "cannot lock", path: path.to_path_buf(), source: e.into() }),
        }
    }
}

/// The process that has the pool at `path` open, if there is one and `/proc` tells.
pub fn holder_of(path: &Path) -> Option<u32> {
    let file = File::open(path).ok()?;
    holder(&file).ok().filter(|&pid| pid != 0)
}

/// How long a lock of this process, or of nobody, is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often the list of locks is read before the holder is given up.
const TRIES: u32 = 20;

/// Who holds a lock on `file`, as far as `/proc` tells.
fn holder(file: &File) -> io::Result<u32> {
    let meta = file.metadata()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    // The kernel writes the list in pieces; while others come and go, a line can be missed.
    for _ in 0..TRIES {
        if let Some(pid) = find(&std::fs::read_to_string("/proc/locks")?, &place) {
            return Ok(pid);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(0)
}

/// The process of the first `flock` on `place` in the text of `/proc/locks`, whose lines read
/// `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF` (and `1: -> FLOCK ...` for one that waits).
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
