//! From a path to what it names.
//!
//! ```text
//!   "/a/../b/link/c"     from the root, name by name, whether or not it begins with `/`
//!        |  |   |
//!        |  |   `- a symbolic link: its target's names come next; 40 of them are the most
//!        |  `- a name: looked up in the directory
//!        `- the directory above; above the root is the root
//! ```

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::attr::Attr;
use crate::dir::{Dir, Node};
use crate::engine::EngineRef;
use crate::error::{Error, Result};

/// Symbolic links that a path may lead through.
const MAX_LINKS: usize = 40;

/// Where a path leads.
pub(super) struct Place {
    /// The directory that has the last name; or the one that the path means, if it ends with none.
    pub(super) dir: Dir,
    /// The last name, unless the path ends with the root, `.` or `..`.
    name: Option<Vec<u8>>,
    /// What is there; nothing if only the last name is missing.
    pub(super) attr: Option<Attr>,
    /// The path says that a directory is meant: it ends with `/`.
    pub(super) must_be_dir: bool,
}

impl Place {
    /// The last name, for what changes names.
    pub(super) fn name(&self) -> Result<&[u8]> {
        self.name.as_deref().ok_or(Error::Invalid("the path ends with no name"))
    }

    /// What is there.
    pub(super) fn found(&self) -> Result<&Attr> {
        self.attr.as_ref().ok_or(Error::NotFound)
    }

    /// The last name of something that is there.
    pub(super) fn entry(&self) -> Result<&[u8]> {
        self.found()?;
        self.name()
    }

    /// The last name of something that is not.
    pub(super) fn free(&self) -> Result<&[u8]> {
        if self.attr.is_some() { Err(Error::Exists) } else { self.name() }
    }
}

/// Walks a path from the root. `follow`: a symbolic link at its end is followed, too.
pub(super) fn walk(engine: &EngineRef, path: &Path, follow: bool) -> Result<Place> {
    let path = path.as_os_str().as_bytes();
    if path.is_empty() {
        return Err(Error::NotFound);
    }
    let mut must_be_dir = means_directory(path);
    let mut todo = Vec::new();
    push(&mut todo, path);
    let (mut dir, mut links) = (engine.root(), 0);
    while let Some(name) = todo.pop() {
        if name == b".." {
            dir = gone(dir.parent().and_then(|ino| engine.node(ino)?.dir()))?;
            continue;
        }
        let is_last = todo.is_empty();
        let attr = match gone(dir.lookup(&name)) {
            Err(Error::NotFound) if is_last => {
                return Ok(Place { dir, name: Some(name), attr: None, must_be_dir });
            }
            found => found?,
        };
        if attr.kind.is_symlink() && (follow || !is_last) {
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::LinkLoop);
            }
            let target = gone(engine.any(attr.ino).read_link())?;
            must_be_dir |= is_last && means_directory(&target);
            if target.starts_with(b"/") {
                dir = engine.root();
            }
            push(&mut todo, &target);
        } else if is_last {
            let wrong = must_be_dir && !attr.kind.is_dir();
            return if wrong {
                Err(Error::NotDirectory)
            } else {
                Ok(Place { dir, name: Some(name), attr: Some(attr), must_be_dir })
            };
        } else {
            dir = gone(engine.any(attr.ino).dir())?;
        }
    }
    let attr = Some(gone(dir.node().attr())?);
    Ok(Place { dir, name: None, attr, must_be_dir })
}

/// What a path names, with symbolic links followed.
pub(super) fn node(engine: &EngineRef, path: &Path) -> Result<Node> {
    Ok(engine.any(walk(engine, path, true)?.found()?.ino))
}

/// The name was found, and what it meant is gone: it would not be found now.
pub(super) fn gone<T>(answer: Result<T>) -> Result<T> {
    match answer {
        Err(Error::Stale(_)) => Err(Error::NotFound),
        other => other,
    }
}

fn means_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path == b"." || path.ends_with(b"/.")
}

/// Puts the names of a path on a stack, the first on top.
fn push(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    let names = path.rsplit(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    todo.extend(names.map(<[u8]>::to_vec));
}
