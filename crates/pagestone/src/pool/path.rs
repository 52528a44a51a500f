//! From a path to what it names in the pool as it is now.
//!
//! ```text
//!   path --dir::resolve--> directory, last name, what it means --> Located: with handles and attributes
//! ```

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::attr::Attr;
use crate::dir::{self, Dir, Found, Lookup, Name, Node, Resolved};
use crate::engine::EngineRef;
use crate::error::{Error, Result};
use crate::units::Ino;

pub(super) use crate::dir::gone;

/// Where a path leads.
pub(super) struct Located {
    /// The directory that has the last name; or the one that the path means, if it ends with none.
    pub(super) dir: Dir,
    /// The last name, unless the path ends with the root, `.` or `..`.
    name: Option<Vec<u8>>,
    /// What is there; nothing if only the last name is missing.
    pub(super) attr: Option<Attr>,
    /// The path says that a directory is meant: it ends with `/`.
    pub(super) must_be_dir: bool,
}

impl Located {
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

/// Looks names up one by one, each with its directory locked.
struct Now<'e>(&'e EngineRef);

impl Lookup for Now<'_> {
    fn find(&mut self, dir: Ino, name: &Name<'_>) -> Result<Option<Found>> {
        self.0.find(dir, name)
    }
    fn parent(&mut self, dir: Ino) -> Result<Ino> {
        self.0.node(dir)?.dir()?.parent()
    }
    fn target(&mut self, link: Ino) -> Result<Vec<u8>> {
        self.0.any(link).read_link()
    }
}

/// Resolves a path from the root. `follow`: a symbolic link at its end is followed, too.
pub(super) fn resolve(engine: &EngineRef, path: &Path, follow: bool) -> Result<Located> {
    let Resolved { dir, name, found, must_be_dir } =
        dir::resolve(&mut Now(engine), path.as_os_str().as_bytes(), follow)?;
    let dir = Dir::new(engine.clone(), dir);
    let attr = match (&name, found) {
        (None, _) => Some(gone(dir.node().attr())?),
        (Some(_), None) => None,
        (Some(_), Some(found)) => match gone(engine.attr(found.ino)) {
            Err(Error::NotFound) => None,
            attr => Some(attr?),
        },
    };
    Ok(Located { dir, name, attr, must_be_dir })
}

/// What a path names, with symbolic links followed.
pub(super) fn node(engine: &EngineRef, path: &Path) -> Result<Node> {
    Ok(engine.any(resolve(engine, path, true)?.found()?.ino))
}
