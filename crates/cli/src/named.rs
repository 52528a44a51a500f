//! A pool by another name: the directory that it is mounted on, or one below.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// The pool that is mounted on the directory `path`, or above it; and the way from its root to there.
pub(crate) fn mounted_at(path: &Path) -> Option<(PathBuf, PathBuf)> {
    // A file below a mount may be a pool of its own.
    let dir = path.is_dir().then(|| path.canonicalize().ok()).flatten()?;
    let mounts = pagestone_mount::mounts(None).ok()?;
    let above = mounts.into_iter().filter(|mount| dir.starts_with(&mount.dir));
    // The last one of the longest paths is what is seen there.
    let mount = above.max_by_key(|mount| mount.dir.as_os_str().len())?;
    let way = dir.strip_prefix(&mount.dir).ok()?.to_path_buf();
    (mount.kind == "fuse.pagestone").then(|| (mount.pool(), way))
}

/// The path of the pool that `path` names.
pub(crate) fn pool(path: &Path) -> Cow<'_, Path> {
    mounted_at(path).map_or(path.into(), |(pool, _)| pool.into())
}
