//! A pool by another name: the directory that it is mounted on, or any path below.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use pagestone_mount::Mount;
use pagestone_server::Client;

/// The pool that is mounted on `path`, or above it; and the way from its root to there. A file below a mount that is a pool
/// of its own names itself.
pub(crate) fn mounted_at(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let found = below_mount(path)?;
    let is_place = path.is_dir() || std::fs::symlink_metadata(path).is_ok() && !pagestone::is_pool(path);
    is_place.then_some(found)
}

/// The same for a path of which only the directory above it has to be there.
pub(crate) fn below_mount(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let place = match path.is_dir() {
        true => path.canonicalize().ok()?,
        // A symbolic link is what is meant itself.
        false => {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            above.canonicalize().ok()?.join(path.file_name()?)
        }
    };
    let mounts = pagestone_mount::mounts(None).ok()?;
    let above = mounts.into_iter().filter(|mount| place.starts_with(&mount.dir));
    // The last one of the longest paths is what is seen there.
    let mount = above.max_by_key(|mount| mount.dir.as_os_str().len())?;
    if mount.kind != "fuse.pagestone" || !mount.is_trusted() || !serves(&mount) {
        return None;
    }
    // A part of a mount can be mounted elsewhere.
    let way = mount.root.strip_prefix("/").ok()?.join(place.strip_prefix(&mount.dir).ok()?);
    Some((mount.pool(), way))
}

/// The path of the pool that `path` names.
pub(crate) fn pool(path: &Path) -> Cow<'_, Path> {
    mounted_at(path).map_or(path.into(), |(pool, _)| pool.into())
}

/// Whether the server of the pool at the path of the mount serves that mount: another pool may have got the path.
fn serves(mount: &Mount) -> bool {
    let status = Client::find(&mount.pool()).ok().flatten().and_then(|client| client.status().ok());
    status.is_some_and(|status| status.faces.iter().any(|face| face.device.as_ref() == Some(&mount.device)))
}
