//! The system's side of a copy: what may be overwritten and how, and attributes of files there.
//!
//! ```text
//!   nothing, a file, a symbolic link    made beside it, then renamed over it
//!   a directory                         refused
//!   a pool (also behind a link)         refused
//!   a device, a pipe, /dev/stdout       written to directly
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pagestone::FileType;
use pagestone::inode::{Attr, Time};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};

/// How a path takes a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A new file takes the place of what is there.
    Replace,
    /// It is something that bytes are written to, as it stands.
    Direct,
}

/// Finds out how `to` takes a file; refuses what must not be overwritten.
pub(super) fn way(to: &Path) -> Result<Way> {
    let shown = || to.display().to_string();
    let here = match fs::symlink_metadata(to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Way::Replace),
        here => here.with_context(shown)?,
    };
    if here.is_dir() {
        bail!("{}: is a directory", to.display());
    }
    // What a symbolic link leads to matters where it is a pool or a stream.
    let Ok(there) = fs::metadata(to) else { return Ok(Way::Replace) };
    let kind = there.file_type();
    if (kind.is_file() || kind.is_block_device()) && pagestone::is_pool(to) {
        bail!("{}: is a pagestone pool and is not overwritten (remove it first if that is what you want)", shown());
    }
    let stream = kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || is_stream(to);
    Ok(if stream { Way::Direct } else { Way::Replace })
}

/// Opens what takes bytes as it stands.
pub(super) fn open_stream(to: &Path) -> Result<File> {
    let shown = || to.display().to_string();
    let is_file = fs::metadata(to).with_context(shown)?.is_file();
    OpenOptions::new().write(true).truncate(is_file).open(to).with_context(shown)
}

/// `/dev/stdout`, `/dev/fd/3`, `/proc/self/fd/3`: names of what is open, wherever that leads.
fn is_stream(to: &Path) -> bool {
    let parent = to.parent().and_then(|parent| parent.canonicalize().ok()).unwrap_or_default();
    parent == Path::new("/dev") || parent.starts_with("/proc")
}

/// Lets `make` make something under a name beside `to`, which then takes its place.
pub(super) fn replace<T>(to: &Path, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let temporary = to.with_file_name(format!(".pagestone-get-{}", std::process::id()));
    // Left over from a process that had our number.
    let _ = fs::remove_file(&temporary);
    let made = make(&temporary)
        .and_then(|made| fs::rename(&temporary, to).map(|()| made).with_context(|| to.display().to_string()));
    // Gone if all is well, and if the two were names of one file still there.
    let _ = fs::remove_file(&temporary);
    made
}

/// Makes a pipe, a socket or a device.
pub(super) fn make_special(path: &Path, attr: &Attr) -> Result<()> {
    let kind = match attr.kind {
        FileType::Fifo => rustix::fs::FileType::Fifo,
        FileType::Socket => rustix::fs::FileType::Socket,
        FileType::CharDevice => rustix::fs::FileType::CharacterDevice,
        FileType::BlockDevice => rustix::fs::FileType::BlockDevice,
        _ => bail!("{}: not a special file", path.display()),
    };
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), attr.rdev)?)
}

/// Names of extended attributes; what the system computes by itself is left out.
pub(super) fn xattr_names(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut buffer) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        len => len?,
    };
    let names = buffer[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter(|name| *name != b"security.selinux").map(<[u8]>::to_vec).collect())
}

/// The value of an extended attribute.
pub(super) fn xattr(path: &Path, name: &[u8]) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let len = rustix::fs::lgetxattr(path, name, &mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Something that a copy has made, held by itself and not by its name: whoever may write to the directory could
/// put a link to another file there meanwhile.
pub(super) struct Made {
    fd: OwnedFd,
    /// A path to just this file, that is followed.
    path: PathBuf,
}

impl Made {
    /// What lies at `path`, which is of this kind and has no other name, nor is somebody else's.
    pub(super) fn open(path: &Path, kind: FileType) -> Result<Made> {
        let shown = || path.display().to_string();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from).with_context(shown)?;
        let stat = rustix::fs::fstat(&fd).map_err(io::Error::from).with_context(shown)?;
        let expected = match kind {
            FileType::File => rustix::fs::FileType::RegularFile,
            FileType::Dir => rustix::fs::FileType::Directory,
            FileType::Symlink => rustix::fs::FileType::Symlink,
            FileType::Fifo => rustix::fs::FileType::Fifo,
            FileType::Socket => rustix::fs::FileType::Socket,
            FileType::CharDevice => rustix::fs::FileType::CharacterDevice,
            FileType::BlockDevice => rustix::fs::FileType::BlockDevice,
            _ => bail!("{}: a kind of file that the system does not have", path.display()),
        };
        let found = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if found != expected || kind != FileType::Dir && stat.st_nlink != 1 {
            bail!("{}: somebody else has put something there meanwhile", path.display());
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok(Made { fd, path })
    }

    pub(super) fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        Ok(rustix::fs::chownat(&self.fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
    }

    pub(super) fn set_mode(&self, perm: u32) -> io::Result<()> {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(perm))
    }

    pub(super) fn set_xattr(&self, name: &[u8], value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::setxattr(&self.path, name, value, XattrFlags::empty())?)
    }

    pub(super) fn set_times(&self, read: Option<Time>, modified: Time) -> io::Result<()> {
        let spec = |time: Time| Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() };
        let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let times = Timestamps { last_access: read.map_or(omit, spec), last_modification: spec(modified) };
        Ok(rustix::fs::utimensat(CWD, &self.path, &times, AtFlags::empty())?)
    }
}

/// What a new file made here belongs to.
pub(super) fn us() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// The name of a directory's entry as a path.
pub(super) fn below(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(std::ffi::OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if attributes of a copy can be led to another file by whoever may write to the directory.
    #[test]
    fn attributes_go_to_what_was_made_and_to_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (made, other) = (dir.path().join("made"), dir.path().join("other"));
        fs::write(&other, "").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&other, &made).unwrap();
        assert!(Made::open(&made, FileType::File).is_err());
        Made::open(&made, FileType::Symlink).unwrap().set_times(None, Time { sec: 5, nsec: 0 }).unwrap();
        fs::remove_file(&made).unwrap();
        fs::hard_link(&other, &made).unwrap();
        assert!(Made::open(&made, FileType::File).is_err());
        fs::remove_file(&made).unwrap();
        fs::write(&made, "").unwrap();
        let open = Made::open(&made, FileType::File).unwrap();
        // Replaced after it was opened.
        fs::rename(&made, dir.path().join("away")).unwrap();
        std::os::unix::fs::symlink(&other, &made).unwrap();
        open.set_mode(0o640).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&other), mode(&dir.path().join("away"))), (0o600, 0o640));
    }
}
