//! Where the server of a pool listens.
//!
//! ```text
//!   pool file or device --(device, inode)--> NAME.sock in     /run/pagestone             a server of root
//!                                                             $XDG_RUNTIME_DIR/pagestone  a server of a user
//!                                                             /tmp/pagestone-UID          if there is none
//! ```
//!
//! The name follows from what the pool *is*, so every path to it leads to the same socket. A directory that others can
//! write to is trusted no more than a name: the server checks the directory before it listens, the client checks who
//! answers.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the servers of root listen.
const OF_ROOT: &str = "/run/pagestone";

/// The user whom a pool belongs to, and the file name of its socket.
fn identity(pool: &Metadata) -> (u32, String) {
    let kind = pool.file_type();
    let name = match (kind.is_block_device(), kind.is_char_device()) {
        (true, _) => format!("block-{:x}.sock", pool.rdev()),
        (_, true) => format!("char-{:x}.sock", pool.rdev()),
        _ => format!("{:x}-{:x}.sock", pool.dev(), pool.ino()),
    };
    (pool.uid(), name)
}

/// The socket that a server of this user listens on for the pool at `pool`, and the pool's owner.
///
/// # Errors
/// As [`prepare_dir`].
pub(crate) fn to_listen_on(pool: &Path) -> io::Result<(PathBuf, u32)> {
    let (owner, name) = identity(&fs::metadata(pool)?);
    Ok((prepare_dir()?.join(name), owner))
}

/// The directory that servers of this user have their sockets in. Makes it if it is missing.
///
/// # Errors
/// `PermissionDenied` if the directory is somebody else's, or open to others.
pub fn prepare_dir() -> io::Result<PathBuf> {
    let us = rustix::process::geteuid().as_raw();
    let dir = dir_of(us);
    // Root's sockets can be found by everybody, and connected to by root and the owner of each.
    let mode = if us == 0 { 0o755 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(&dir) {
        // Whatever the mask of this process takes away.
        Ok(()) => fs::set_permissions(&dir, Permissions::from_mode(mode))?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    let found = fs::symlink_metadata(&dir)?;
    if !found.is_dir() || found.uid() != us || found.mode() & 0o022 != 0 {
        let text = format!("{} is not a directory of this user alone", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(dir)
}

/// The sockets that a server of the pool may listen on; and the users who may be its server. Whoever has the pool's file
/// open is none of them by that: a lock takes no more than the right to read it.
pub(crate) fn to_look_at(pool: &Path) -> io::Result<(Vec<PathBuf>, Vec<u32>)> {
    let (owner, name) = identity(&fs::metadata(pool)?);
    let us = rustix::process::geteuid().as_raw();
    let mut dirs: Vec<PathBuf> = vec![OF_ROOT.into(), dir_of(us)];
    if owner != 0 {
        dirs.push(format!("/run/user/{owner}/pagestone").into());
        dirs.push(format!("/tmp/pagestone-{owner}").into());
    }
    Ok((dirs.into_iter().map(|dir| dir.join(&name)).collect(), vec![0, owner, us]))
}

fn dir_of(user: u32) -> PathBuf {
    let runtime =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.is_dir());
    match runtime {
        _ if user == 0 => OF_ROOT.into(),
        Some(dir) => dir.join("pagestone"),
        None => format!("/tmp/pagestone-{user}").into(),
    }
}
