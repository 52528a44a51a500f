//! Directories and their names.
//!
//! ```text
//!   names.rs   name -> inode, in a tree keyed by hash      create.rs  new names
//!   remove.rs  names that go                               rename.rs  names that move
//!   clone_file.rs  a new name for a clone                  node.rs    any inode
//!   entries.rs a listing, in batches                      resolve.rs from a path to a name
//!   tree.rs    a directory and everything beneath it     descent.rs  which directories that enters
//! ```
//!
//! Every operation on names is one record. Its locks are taken at once, so what it needs to know
//! to choose them (which inode a name means) is looked up first and looked up again under them;
//! if it has changed, the operation starts over. A removal, which nearly always finds them free,
//! tries that first.

mod clone_file;
mod create;
mod descent;
mod entries;
mod names;
mod node;
mod remove;
mod rename;
mod resolve;
mod tree;

use std::ops::ControlFlow;

use crate::attr::{Attr, DirEntry, FileType, NewNode, RenameMode};
use crate::btree::{self, TreeId};
use crate::engine::{EngineRef, Pause};
use crate::error::{Error, Result};
use crate::layout::InodeRec;
use crate::txn::Tx;
use crate::units::Ino;

pub(crate) use create::name_again;
pub use entries::Entries;
pub use node::Node;
pub use tree::{Walk, WalkEntry};

pub(crate) use create::{check_target, new_inode};
pub(crate) use descent::{Child, Descent};
pub(crate) use names::{Found, Name, parse as parse_entry};
pub(crate) use node::link_target;
pub(crate) use remove::{Removal, forget_name};
pub(crate) use rename::RenameIn;
pub(crate) use resolve::{Lookup, Resolved, gone, resolve};

use rename::Leave;

/// A directory, with names as bytes: 1 to 255 of them, without `/` and NUL, not `.` or `..`. It keeps the pool open.
///
/// A change is one record: durable on return where the media are durable at the fence, else at the next sync. Besides what
/// each method says, names that cannot be are [`Error::NameTooLong`], [`Error::NotFound`] (no bytes) or
/// [`Error::Invalid`], a directory that is gone is [`Error::Stale`] or [`Error::NotFound`], and a change may be
/// [`Error::ReadOnly`], [`Error::NoSpace`] or [`Error::Latched`]. Calls wait for locks of the inodes that they name.
#[derive(Clone, Debug)]
pub struct Dir {
    engine: EngineRef,
    ino: Ino,
}

impl Dir {
    pub(crate) fn new(engine: EngineRef, ino: Ino) -> Dir {
        Dir { engine, ino }
    }

    pub(crate) fn engine(&self) -> &EngineRef {
        &self.engine
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// As a node.
    pub fn node(&self) -> Node {
        Node::new(self.engine.clone(), self.ino)
    }

    /// The number of the directory that holds this one; the root's is its own.
    pub fn parent(&self) -> Result<Ino> {
        self.engine().parent(self.ino)
    }

    /// The attributes of what a name means; symbolic links are not followed.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn lookup(&self, name: &[u8]) -> Result<Attr> {
        let entry = self.engine().find(self.ino, &Name::new(name)?)?.ok_or(Error::NotFound)?;
        self.engine().attr(entry.ino)
    }

    /// Makes a file, directory, symbolic link or device.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::TooManyLinks`] for a directory; [`Error::NameTooLong`] for a target of more than 4,095
    /// bytes, and [`Error::NotFound`] for one of none.
    pub fn create(&self, name: &[u8], node: &NewNode<'_>) -> Result<Attr> {
        self.engine().create(self.ino, &Name::new(name)?, node)
    }

    /// A new file with the contents, the owner and the mode of the file `src`, whatever its size in one record and
    /// without a copy: both share what is there until one of them writes. Its times are `src`'s;
    /// extended attributes are not taken along.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::IsDirectory`] or [`Error::Invalid`] if `src` is no regular file,
    /// [`Error::NoSpace`], [`Error::TooManyLinks`] beyond 2^30 clones of one state.
    pub fn clone_file(&self, name: &[u8], src: Ino) -> Result<Attr> {
        self.engine().clone_file(src, self.ino, &Name::new(name)?)
    }

    /// Another name for `ino`, which is not a directory.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::IsDirectory`], [`Error::TooManyLinks`]; [`Error::NotFound`] if it has no name any more.
    pub fn link(&self, name: &[u8], ino: Ino) -> Result<Attr> {
        self.engine().link(self.ino, &Name::new(name)?, ino)
    }

    /// Takes away a name of anything but a directory. With the last one the bytes go, unless the file is open or mapped.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsDirectory`].
    pub fn unlink(&self, name: &[u8]) -> Result<()> {
        self.engine().remove(self.ino, &Name::new(name)?, false)
    }

    /// Takes away an empty directory.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDirectory`], [`Error::NotEmpty`].
    pub fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.engine().remove(self.ino, &Name::new(name)?, true)
    }

    /// Moves a name to `to_name` in the directory `to`, in one record.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Exists`] with [`RenameMode::NoReplace`]; [`Error::IsDirectory`],
    /// [`Error::NotDirectory`] or [`Error::NotEmpty`] for what cannot be replaced; [`Error::Invalid`] for a directory into
    /// itself.
    pub fn rename(&self, name: &[u8], to: Ino, to_name: &[u8], mode: RenameMode) -> Result<()> {
        self.engine().rename((self.ino, &Name::new(name)?), (to, &Name::new(to_name)?), mode, Leave::Nothing)
    }

    /// As [`Dir::rename`] without replacing anything, for whoever holds the lock of renames.
    pub(crate) fn rename_in_pause(&self, pause: &Pause<'_>, name: &[u8], to: Ino, to_name: &[u8]) -> Result<()> {
        let (from, to) = ((self.ino, &Name::new(name)?), (to, &Name::new(to_name)?));
        self.engine().rename_beside(Some(pause.renames()), from, to, RenameMode::NoReplace, Leave::Nothing)
    }

    /// As [`Dir::rename`] with [`RenameMode::Replace`], and lets the old name mean a new character device with the
    /// number 0, all in one record: a whiteout, with which an overlay filesystem hides a name of the layer below.
    ///
    /// # Errors
    /// As [`Dir::rename`], and [`Error::NoSpace`].
    pub fn rename_with_whiteout(&self, name: &[u8], to: Ino, to_name: &[u8]) -> Result<()> {
        let (from, to) = ((self.ino, &Name::new(name)?), (to, &Name::new(to_name)?));
        self.engine().rename(from, to, RenameMode::Replace, Leave::Whiteout)
    }

    /// At most `max` entries after `cookie` (0: from the start), in the order of their cookies; fewer only if no more
    /// follow. `.` and `..` are not among them. The directory is locked while they are read, and not afterwards.
    ///
    /// # Errors
    /// [`Error::Stale`] if the directory is gone, [`Error::Corrupt`], [`Error::Lost`].
    pub fn read_entries(&self, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let engine = self.engine();
        let mut found = Vec::new();
        let _lock = engine.locks.read(self.ino);
        let rec = directory(engine.alloc.inode(self.ino)?)?;
        let Some(from) = cookie.checked_add(1).filter(|_| max > 0) else { return Ok(found) };
        btree::scan(&engine.alloc, TreeId::map(self.ino.place()), rec.map(), from, |entry| {
            found.push(names::parse(&entry)?);
            Ok(if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(found)
    }

    /// All entries, in the order of their cookies. The iterator reads them in batches and holds no lock between: names
    /// that come and go meanwhile may or may not be among them, all others are, once.
    pub fn entries(&self) -> Entries {
        Entries::new(self.clone())
    }
}

/// The record, if it is a directory's.
fn directory(rec: InodeRec) -> Result<InodeRec> {
    match rec.kind() {
        Some(FileType::Dir) => Ok(rec),
        _ => Err(Error::NotDirectory),
    }
}

/// The record of a directory that still has a name.
fn live_directory(tx: &Tx<'_>, ino: Ino) -> Result<InodeRec> {
    let rec = directory(tx.inode(ino)?)?;
    if rec.nlink == 0 { Err(Error::NotFound) } else { Ok(rec) }
}
