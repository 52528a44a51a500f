//! The directory that is mounted on: whether it will do, and how it gets free again.
//!
//! ```text
//!   missing              made
//!   not a directory      refused
//!   dead mount (its server was killed: "Transport endpoint is not connected")   taken away first
//!   mount point already  refused
//!   not empty            allowed, and said: what is in it is hidden until the unmount
//! ```
//!
//! A mount that stands can be shown on a second directory ([`bind`]): the kernel knows that both are one filesystem, and what is
//! changed through one is seen through the other at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount as unmount_call};
use rustix::process::geteuid;

use crate::mounts::mount_at;

/// Why a pool cannot be mounted, and what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The kernel has no FUSE, or hides it.
    #[error(
        "this system has no /dev/fuse: load the module (modprobe fuse); in a container, start it with --device \
         /dev/fuse --cap-add SYS_ADMIN"
    )]
    NoFuse,
    /// `/dev/fuse` is there and refuses.
    #[error("/dev/fuse cannot be opened: {0} (its mode should be 0666; in a container, pass the device through)")]
    FuseRefused(io::Error),
    /// Only root may mount without a helper.
    #[error("only root can mount without the fusermount3 program: install fuse3, or run as root")]
    NoHelper,
    /// Privileges were asked for.
    #[error("only root can mount with devices or set-user-id programs")]
    OnlyRoot,
    /// A second directory was asked for.
    #[error("only root can show on a second directory what is mounted on {}", .0.display())]
    OnlyRootTwice(PathBuf),
    /// The directory cannot be used.
    #[error("mount point {}: {source}", dir.display())]
    Dir {
        /// Which.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is a file.
    #[error("mount point {}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Something is mounted there.
    #[error("mount point {}: in use, {what} is mounted there (umount it first)", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Source and type.
        what: String,
    },
    /// The mount itself was refused.
    #[error("mounting on {} failed: {source}", dir.display())]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A directory that is ready to be mounted on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Prepared {
    /// Its absolute path, without symbolic links.
    pub dir: PathBuf,
    /// It did not exist.
    pub made: bool,
    /// A dead mount was taken away from it.
    pub was_dead: bool,
    /// It has entries, which the mount hides.
    pub not_empty: bool,
}

/// Whether this process can mount at all.
pub fn can_mount() -> Result<(), MountError> {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MountError::NoFuse),
        // The device node is there, the driver is not.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => return Err(MountError::NoFuse),
        Err(e) => return Err(MountError::FuseRefused(e)),
    }
    if geteuid().is_root() || helper().is_some() { Ok(()) } else { Err(MountError::NoHelper) }
}

/// Makes the directory if it is missing, frees it from a dead mount, and looks what is there.
pub fn prepare(dir: &Path) -> Result<Prepared, MountError> {
    let failed = |source| MountError::Dir { dir: dir.to_path_buf(), source };
    let mut prepared = Prepared::default();
    let mut dead = 0;
    loop {
        match probe(dir) {
            Ok(meta) if !meta.is_dir() => return Err(MountError::NotADirectory(dir.to_path_buf())),
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !prepared.made => {
                fs::create_dir(dir).map_err(failed)?;
                prepared.made = true;
            }
            Err(e) if is_dead(&e) && dead < MOST_DEAD => {
                unmount_lazily(&absolute(dir).map_err(failed)?).map_err(failed)?;
                prepared.was_dead = true;
                dead += 1;
            }
            Err(e) => return Err(failed(e)),
        }
    }
    prepared.dir = dir.canonicalize().map_err(failed)?;
    if let Some(mount) = mount_at(&prepared.dir) {
        return Err(MountError::InUse {
            dir: prepared.dir,
            what: format!("{} ({})", mount.source.display(), mount.kind),
        });
    }
    prepared.not_empty = fs::read_dir(&prepared.dir).map_err(failed)?.next().is_some();
    Ok(prepared)
}

/// As many dead mounts are taken away from one directory.
const MOST_DEAD: usize = 16;

/// Looks at a directory in a way that the server of a mount there has to answer: the kernel answers
/// requests for attributes by itself for as long as it may, also when the server is gone.
fn probe(dir: &Path) -> io::Result<fs::Metadata> {
    let meta = fs::metadata(dir)?;
    if meta.is_dir() {
        match rustix::fs::statfs(dir).map_err(io::Error::from) {
            Err(e) if is_dead(&e) => return Err(e),
            // The answer itself does not matter here.
            _ => {}
        }
    }
    Ok(meta)
}

/// The server of the mount has gone without unmounting.
pub(crate) fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Takes a dead mount away from the directory, if there is one.
pub(crate) fn clear_dead(dir: &Path) -> io::Result<()> {
    match probe(dir) {
        Err(e) if is_dead(&e) => unmount_lazily(dir),
        _ => Ok(()),
    }
}

/// The path of a directory that itself cannot be looked at.
fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => Ok(std::env::current_dir()?.join(name)),
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => std::path::absolute(dir),
    }
}

/// Shows the filesystem that is mounted on `from` on one more directory, read-only or without programs if that is asked for. Takes
/// root. For a moment it has the rights of `from`.
///
/// # Errors
/// [`MountError::OnlyRootTwice`] for other users; the system's.
pub fn bind(from: &Path, to: &Prepared, read_only: bool, no_exec: bool) -> Result<(), MountError> {
    let failed = |e: rustix::io::Errno| match e {
        rustix::io::Errno::PERM | rustix::io::Errno::ACCESS => MountError::OnlyRootTwice(from.to_path_buf()),
        e => MountError::Mount { dir: to.dir.clone(), source: e.into() },
    };
    mount_bind(from, &to.dir).map_err(failed)?;
    let rights = [(read_only, MountFlags::RDONLY), (no_exec, MountFlags::NOEXEC)];
    let rights = rights.into_iter().filter(|(taken, _)| *taken).fold(MountFlags::BIND, |all, (_, flag)| all | flag);
    restrict(&to.dir, rights).map_err(|e| {
        // It has the rights of another directory.
        let _ = unmount_lazily(&to.dir);
        failed(e)
    })
}

/// Gives a second directory rights of its own. What the mount itself does not allow stays forbidden.
fn restrict(dir: &Path, rights: MountFlags) -> rustix::io::Result<()> {
    let now = statvfs(dir)?.f_flag;
    let kept = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let kept = kept.into_iter().filter(|(flag, _)| now.contains(*flag));
    mount_remount(dir, kept.fold(rights, |all, (_, flag)| all | flag), "")
}

/// Unmounts; fails with `EBUSY` while somebody is in it.
pub fn unmount(dir: &Path) -> io::Result<()> {
    take_away(dir, false)
}

/// Takes the mount out of sight at once; it ends when the last one has left it.
pub fn unmount_lazily(dir: &Path) -> io::Result<()> {
    take_away(dir, true)
}

fn take_away(dir: &Path, lazily: bool) -> io::Result<()> {
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    match unmount_call(dir, flags) {
        Err(e) if e == rustix::io::Errno::PERM => take_away_by_helper(dir, lazily),
        other => Ok(other?),
    }
}

fn take_away_by_helper(dir: &Path, lazily: bool) -> io::Result<()> {
    let Some(helper) = helper() else { return Err(io::Error::from_raw_os_error(libc::EPERM)) };
    let mut command = Command::new(helper);
    command.arg(if lazily { "-uz" } else { "-u" }).arg("--").arg(dir);
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let busy = said.to_ascii_lowercase().contains("busy");
    Err(if busy { io::Error::from_raw_os_error(libc::EBUSY) } else { io::Error::other(said) })
}

/// The program that mounts for those who are not root.
fn helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/bin", "/bin", "/sbin"].map(PathBuf::from);
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(standard).collect();
    let find = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
    find("fusermount3").or_else(|| find("fusermount"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_refused_and_a_missing_directory_is_made() {
        assert!(matches!(prepare(Path::new("/proc/version")), Err(MountError::NotADirectory(_))));
        assert!(matches!(prepare(Path::new("/proc")), Err(MountError::InUse { .. })));
        assert!(matches!(prepare(Path::new("/nowhere/at/all")), Err(MountError::Dir { .. })));
    }
}
