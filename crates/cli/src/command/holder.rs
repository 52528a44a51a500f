//! Who has a pool in use, where it is mounted, and whether that one is about to let go.
//!
//! ```text
//!   umount(8) returns       the server sees that, syncs, closes the pool       free
//!        |------------------ holder is going: wait ---------------------------|
//! ```
//!
//! A server whose mount is in no mount namespace is going, or has not mounted yet. Neither takes long,
//! so a command that comes in between waits. Everybody else who has the pool is an error at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pagestone::Error;
use pagestone_mount::{mounted_elsewhere, mounts};

/// How long a server that is going is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(10);

/// What is known of the process that has a pool in use.
pub(crate) enum Holder {
    /// It serves the mount on this directory.
    Mounted(PathBuf),
    /// It serves a mount that only another mount namespace sees, that of this process, on this directory.
    Elsewhere(u32, PathBuf),
    /// It is a server whose mount nobody sees: it is going, or about to mount.
    Going,
    /// Some other program, or nothing is known.
    Other,
}

impl Holder {
    /// Looks at process `pid`, which has `pool` open.
    pub(crate) fn of(pool: &Path, pid: u32) -> Holder {
        let Ok(seen) = mounts(Some(pid)) else { return Holder::Other };
        if let Some(mount) = seen.into_iter().rfind(|mount| mount.is_of(pool)) {
            return Holder::Mounted(mount.dir);
        }
        if !is_server(pid) {
            return Holder::Other;
        }
        match mounted_elsewhere(pid, pool) {
            Some((other, mount)) => Holder::Elsewhere(other, mount.dir),
            None => Holder::Going,
        }
    }

    /// What there is to say to somebody who wants the pool.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Holder::Mounted(dir) => format!("it is mounted on {}: umount it first", dir.display()),
            Holder::Elsewhere(pid, dir) => format!(
                "it is still mounted on {} in another mount namespace, that of process {pid}, and stays in use until the \
                 last copy of the mount is gone",
                dir.display()
            ),
            Holder::Going => "its mount is out of sight and ends with its last user".into(),
            Holder::Other => return None,
        })
    }
}

/// Whether a process is one that mounts, by its command line.
fn is_server(pid: u32) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let name = words.next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    name.starts_with("mount.") || (name.contains("pagestone") && words.next().is_some_and(|word| word == "mount"))
}

/// Does `open`, again and again while the pool is in use by a server that is going.
pub(crate) fn patiently<T>(pool: &Path, mut open: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(Error::InUse { pid, .. })
                if begun.elapsed() < PATIENCE && matches!(Holder::of(pool, pid), Holder::Going) =>
            {
                std::thread::sleep(STEP);
            }
            other => return other,
        }
    }
}
