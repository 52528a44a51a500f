//! Who has a pool in use, where it is mounted, and whether that process is about to release it.
//!
//! ```text
//!   umount(8) returns       the server sees that, syncs, closes the pool       free
//!        |------------------ holder is going: wait ---------------------------|
//! ```
//!
//! A server whose mount is in no mount namespace is going, or has not mounted yet. Neither takes long,
//! so a command that comes in between waits. A process that has ended meanwhile has released it, or will at once. Everybody
//! else who has the pool is an error at once.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pagestone::Error;
use pagestone_mount::{mounted_elsewhere, mounts};
use pagestone_server::Client;

/// How long a server that is going is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what a process left that has ended.
const LAST_MOMENT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(10);

/// What is known of the process that has a pool in use.
pub(crate) enum Holder {
    /// It serves the mount on this directory.
    Mounted(PathBuf),
    /// It serves a mount that only another mount namespace sees, that of this process, on this directory.
    Elsewhere(u32, PathBuf),
    /// It serves the pool to other commands, and goes on when nothing is mounted.
    Serving(u32),
    /// It is a server whose mount nobody sees: it is going, or about to mount.
    Going,
    /// It has ended: the lock is on its way, or with a child of it.
    Ended,
    /// Some other program, or nothing is known.
    Other,
}

impl Holder {
    /// Looks at process `pid`, which has `pool` open.
    pub(crate) fn of(pool: &Path, pid: u32) -> Holder {
        let words = command_line(pid);
        let outlives_mounts = words.as_ref().is_some_and(|words| is_server(words, "serve"));
        let seen = mounts(Some(pid)).unwrap_or_default();
        if let Some(mount) = seen.into_iter().rfind(|mount| !outlives_mounts && mount.is_of(pool)) {
            return Holder::Mounted(mount.dir);
        }
        match words {
            Some(words) if words.is_empty() => return Holder::Ended,
            Some(_) if outlives_mounts => {
                let serves = match Client::find(pool) {
                    Ok(client) => client.is_some(),
                    // It lets others in.
                    Err(e) => e.kind() == ErrorKind::PermissionDenied,
                };
                return if serves { Holder::Serving(pid) } else { Holder::Going };
            }
            Some(words) if is_server(&words, "mount") => {}
            _ => return Holder::Other,
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
            Holder::Serving(pid) => format!("pagestone serve has it open: end process {pid} first, by Ctrl-C or kill"),
            Holder::Going => "its mount is out of sight and ends with its last user".into(),
            Holder::Ended | Holder::Other => return None,
        })
    }
}

/// Somebody waits for a holder to release the pool.
pub(crate) struct Wait {
    begun: Instant,
    patience: Duration,
    ended: Option<Instant>,
}

impl Wait {
    /// A server that is going is waited for until `patience` is over.
    pub(crate) fn new(patience: Duration) -> Wait {
        Wait { begun: Instant::now(), patience, ended: None }
    }

    /// Whether to look once more.
    pub(crate) fn goes_on(&mut self, holder: &Holder) -> bool {
        match holder {
            Holder::Going => self.begun.elapsed() < self.patience,
            Holder::Ended => self.ended.get_or_insert_with(Instant::now).elapsed() < LAST_MOMENT,
            Holder::Mounted(_) | Holder::Elsewhere(..) | Holder::Serving(_) | Holder::Other => false,
        }
    }
}

/// The words of a process's command line: none if it has ended. `None` if nobody tells.
fn command_line(pid: u32) -> Option<Vec<String>> {
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) if line.is_empty() => Some(Vec::new()),
        Ok(line) => Some(line.split(|byte| *byte == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect()),
        // No process has the number 0: it is one that cannot be seen from here.
        Err(e) if pid != 0 && (e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH)) => {
            Some(Vec::new())
        }
        Err(_) => None,
    }
}

/// Whether a process is one that serves by this command. No option comes before the command, and a helper of mount(8) starts a server
/// that is called like this.
fn is_server(words: &[String], by: &str) -> bool {
    let [name, command, ..] = words else { return false };
    name.rsplit('/').next().is_some_and(|name| name.contains("pagestone")) && command == by
}

/// Does `open`, again and again while the pool is in use by a server that is going.
pub(crate) fn patiently<T>(pool: &Path, mut open: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    let mut wait = Wait::new(PATIENCE);
    loop {
        match open() {
            Err(Error::InUse { pid, .. }) if wait.goes_on(&Holder::of(pool, pid)) => {
                std::thread::sleep(STEP);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_server_is_known_by_its_command_line() {
        assert!(is_server(&words("/usr/bin/pagestone mount a.pool /mnt"), "mount"));
        assert!(is_server(&words("pagestone mount --detached --json -- a.pool /mnt"), "mount"));
        assert!(!is_server(&words("pagestone check mount"), "mount"));
        assert!(!is_server(&words("/opt/pagestone/other mount"), "mount"));
        assert!(!is_server(&words("mount.cifs //server/share /mnt"), "mount"));
    }

    #[test]
    fn a_process_that_has_ended_is_waited_for_a_moment_only() -> std::io::Result<()> {
        let mut child = Command::new("true").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().map(std::io::read_to_string).transpose()?;
        assert_eq!(stdout.as_deref(), Some(""));
        let pool = Path::new("/none.pool");
        let begun = Instant::now();
        // It is not waited for yet: that comes with what a parent has of it.
        while !matches!(Holder::of(pool, child.id()), Holder::Ended) && begun.elapsed() < PATIENCE {
            std::thread::sleep(STEP);
        }
        child.wait()?;
        let ended = Holder::of(pool, child.id());
        assert!(matches!(ended, Holder::Ended) && ended.hint().is_none());
        // Also at the end of a long wait, but not for long.
        let mut wait = Wait::new(Duration::ZERO);
        assert!(wait.goes_on(&ended) && !wait.goes_on(&Holder::Going));
        wait.ended = wait.ended.and_then(|since| since.checked_sub(LAST_MOMENT));
        assert!(wait.ended.is_none() || !wait.goes_on(&ended));
        assert!(matches!(Holder::of(pool, 0), Holder::Other) && matches!(Holder::of(pool, 1), Holder::Other));
        Ok(())
    }
}
