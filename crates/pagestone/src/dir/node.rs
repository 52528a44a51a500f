//! Any inode, whatever its kind.

use super::Dir;
use crate::alloc::Allocator;
use crate::attr::{Attr, FileType, SetAttr, XattrMode};
use crate::data::FileHandle;
use crate::engine::EngineRef;
use crate::error::{Error, Place, Result};
use crate::extent::extent_map::Map;
use crate::extent::resolve::Records;
use crate::layout::{InodeRec, ORPHANS, ROOT};
use crate::units::{Ino, PAGE_SIZE};

/// Any inode. It keeps the pool open, but not a file alive: once the last name is gone, and the last open file, every
/// method is [`Error::Stale`]. Changes are one record each, and durable like those of a [`Dir`].
#[derive(Clone, Debug)]
pub struct Node {
    engine: EngineRef,
    ino: Ino,
}

impl Node {
    pub(crate) fn new(engine: EngineRef, ino: Ino) -> Node {
        Node { engine, ino }
    }

    pub(super) fn engine(&self) -> &EngineRef {
        &self.engine
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Its attributes.
    pub fn attr(&self) -> Result<Attr> {
        self.engine.attr(self.ino)
    }

    /// Changes attributes; returns them as they are then. A change of the length is a record of its own, the first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for nanoseconds of a second or more; for a length also [`Error::FileTooLarge`],
    /// [`Error::IsDirectory`], [`Error::NoSpace`].
    pub fn set_attr(&self, change: &SetAttr) -> Result<Attr> {
        self.engine.set_attr(self.ino, change)
    }

    /// A symbolic link's target.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        let engine = &self.engine;
        let _lock = engine.locks.read(self.ino);
        let rec = engine.alloc.inode(self.ino)?;
        link_target(&engine.alloc, &engine.alloc, &rec)
    }

    /// The value of an extended attribute, by its whole name (`user.x`).
    ///
    /// # Errors
    /// [`Error::NoAttribute`].
    pub fn xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.engine.xattr(self.ino, name)
    }

    /// Creates or replaces an extended attribute of at most 32 KiB.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::NoSpace`]; [`Error::Exists`] or [`Error::NoAttribute`] as `mode` says.
    pub fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.engine.set_xattr(self.ino, name, value, mode)
    }

    /// Takes an extended attribute away.
    ///
    /// # Errors
    /// [`Error::NoAttribute`].
    pub fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.engine.remove_xattr(self.ino, name)
    }

    /// The names of all extended attributes.
    pub fn xattrs(&self) -> Result<Vec<Vec<u8>>> {
        self.engine.xattrs(self.ino)
    }

    /// As a directory; [`Error::NotDirectory`] otherwise.
    pub fn dir(&self) -> Result<Dir> {
        match self.engine.kind(self.ino)? {
            FileType::Dir => Ok(Dir::new(self.engine.clone(), self.ino)),
            _ => Err(Error::NotDirectory),
        }
    }

    pub(crate) fn handle(&self) -> Result<FileHandle> {
        FileHandle::open(&self.engine, self.ino)
    }

    /// Durable on return: the inode, its names, its data. Waits for `fdatasync` on an ordinary file.
    pub fn sync(&self) -> Result<()> {
        self.engine.sync_inode(self.ino)
    }
}

/// The target of the symbolic link `rec`, whose map `nodes` read.
pub(crate) fn link_target(nodes: &impl Records, alloc: &Allocator, rec: &InodeRec) -> Result<Vec<u8>> {
    if rec.kind() != Some(FileType::Symlink) {
        return Err(Error::Invalid("not a symbolic link"));
    }
    if rec.size <= InodeRec::INLINE_TARGET as u64 {
        return Ok(rec.inline_target().to_vec());
    }
    if rec.size >= PAGE_SIZE {
        return Err(Error::corrupt(Place::Inode(rec.ino()), "a symbolic link of impossible length"));
    }
    let mut target = vec![0; rec.size as usize];
    Map { nodes, alloc, rec }.span(0)?.read(alloc, 0, &mut target).map_err(|e| match e {
        Error::Lost(_) => Error::DataLost(0),
        other => other,
    })?;
    Ok(target)
}

impl EngineRef {
    /// The root directory.
    pub(crate) fn root(&self) -> Dir {
        Dir::new(self.clone(), ROOT)
    }

    /// The node with this number; [`Error::Stale`] if it is gone.
    pub(crate) fn node(&self, ino: Ino) -> Result<Node> {
        if ino == ORPHANS {
            return Err(Error::Stale(ino.0));
        }
        self.kind(ino)?;
        Ok(self.any(ino))
    }

    /// The node with this number, which is known to be there.
    pub(crate) fn any(&self, ino: Ino) -> Node {
        Node::new(self.clone(), ino)
    }
}
