//! From a path to what it names, whoever looks the names up.
//!
//! ```text
//!   "/a/../b/link/c"     from the root, name by name, whether or not it begins with `/`
//!        |  |   |
//!        |  |   `- a symbolic link: its target's names come next; 40 of them are the most
//!        |  `- a name: looked up in the directory
//!        `- the directory above; above the root is the root
//! ```

use super::names::{Found, Name};
use crate::attr::FileType;
use crate::error::{Error, Result};
use crate::layout::ROOT;
use crate::units::Ino;

/// Symbolic links that a path may lead through.
const MAX_LINKS: usize = 40;

/// Who looks names up: the pool as it is, or a transaction with its changes.
pub(crate) trait Lookup {
    /// What a name of the directory means.
    fn find(&mut self, dir: Ino, name: &Name<'_>) -> Result<Option<Found>>;
    /// The directory that holds this one.
    fn parent(&mut self, dir: Ino) -> Result<Ino>;
    /// The target of a symbolic link.
    fn target(&mut self, link: Ino) -> Result<Vec<u8>>;
}

/// Where a path leads.
pub(crate) struct Resolved {
    /// The directory that has the last name; or the one that the path means, if it ends with none.
    pub(crate) dir: Ino,
    /// The last name, unless the path ends with the root, `.` or `..`.
    pub(crate) name: Option<Vec<u8>>,
    /// What that name means, if it is there.
    pub(crate) found: Option<Found>,
    /// The path says that a directory is meant: it ends with `/`.
    pub(crate) must_be_dir: bool,
}

impl Resolved {
    /// The last name, for what changes names.
    pub(crate) fn name(&self) -> Result<&[u8]> {
        self.name.as_deref().ok_or(Error::Invalid("the path ends with no name"))
    }
}

/// Resolves a path from the root. `follow`: a symbolic link at its end is followed, too.
pub(crate) fn resolve(lookup: &mut impl Lookup, path: &[u8], follow: bool) -> Result<Resolved> {
    if path.is_empty() {
        return Err(Error::NotFound);
    }
    let mut must_be_dir = means_directory(path);
    let mut todo = Vec::new();
    push(&mut todo, path);
    let (mut dir, mut links) = (ROOT, 0);
    while let Some(name) = todo.pop() {
        if name == b".." {
            dir = gone(lookup.parent(dir))?;
            continue;
        }
        let is_last = todo.is_empty();
        let found = match gone(Name::new(&name).and_then(|name| lookup.find(dir, &name))) {
            Err(Error::NotFound) | Ok(None) if is_last => {
                return Ok(Resolved { dir, name: Some(name), found: None, must_be_dir });
            }
            found => found?.ok_or(Error::NotFound)?,
        };
        if found.kind == FileType::Symlink && (follow || !is_last) {
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::LinkLoop);
            }
            let target = gone(lookup.target(found.ino))?;
            must_be_dir |= is_last && means_directory(&target);
            if target.starts_with(b"/") {
                dir = ROOT;
            }
            push(&mut todo, &target);
        } else if is_last {
            let wrong = must_be_dir && found.kind != FileType::Dir;
            return if wrong {
                Err(Error::NotDirectory)
            } else {
                Ok(Resolved { dir, name: Some(name), found: Some(found), must_be_dir })
            };
        } else if found.kind == FileType::Dir {
            dir = found.ino;
        } else {
            return Err(Error::NotDirectory);
        }
    }
    Ok(Resolved { dir, name: None, found: None, must_be_dir })
}

/// The name was found, and what it meant is gone: it would not be found now.
pub(crate) fn gone<T>(answer: Result<T>) -> Result<T> {
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
