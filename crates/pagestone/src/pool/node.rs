//! Any inode, whatever its kind.

use super::Pool;
use crate::attr::{Attr, Kind, SetAttr, XattrMode};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::file::{self, File};
use crate::layout::InodeRec;
use crate::units::Ino;

/// Any inode. Borrowed from the pool and as cheap as its number; it does not keep a file alive.
#[derive(Clone, Copy, Debug)]
pub struct Node<'p> {
    pool: &'p Pool,
    ino: Ino,
}

impl<'p> Node<'p> {
    pub(crate) fn new(pool: &'p Pool, ino: Ino) -> Node<'p> {
        Node { pool, ino }
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Its attributes.
    pub fn attr(&self) -> Result<Attr> {
        self.pool.inner().attr(self.ino)
    }

    /// Changes attributes; returns them as they are then.
    pub fn set_attr(&self, change: &SetAttr) -> Result<Attr> {
        self.pool.inner().set_attr(self.ino, change)
    }

    /// A symbolic link's target.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        let inner = self.pool.inner();
        let _lock = inner.locks.read(self.ino);
        let rec = inner.frames.inode(self.ino)?;
        if rec.kind() != Some(Kind::Symlink) {
            return Err(Error::Invalid("not a symbolic link"));
        }
        if rec.size <= InodeRec::INLINE_TARGET as u64 {
            return Ok(rec.inline_target().to_vec());
        }
        if rec.size > 4095 {
            return Err(Error::corrupt(self.ino.to_string(), "a symbolic link of impossible length"));
        }
        let mut target = vec![0; rec.size as usize];
        file::read::read(&inner.frames, &inner.chain(&rec), &rec, 0, &mut target)?;
        Ok(target)
    }

    /// The value of an extended attribute, by its whole name (`user.x`).
    pub fn xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.pool.inner().xattr(self.ino, name)
    }

    /// Creates or replaces an extended attribute of at most 32 KiB.
    pub fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.pool.inner().set_xattr(self.ino, name, value, mode)
    }

    /// Takes an extended attribute away.
    pub fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.pool.inner().remove_xattr(self.ino, name)
    }

    /// The names of all extended attributes.
    pub fn xattrs(&self) -> Result<Vec<Vec<u8>>> {
        self.pool.inner().xattrs(self.ino)
    }

    /// As a directory; [`Error::NotDirectory`] otherwise.
    pub fn dir(&self) -> Result<Dir<'p>> {
        match self.pool.inner().kind(self.ino)? {
            Kind::Dir => Ok(Dir::new(self.pool, self.ino)),
            _ => Err(Error::NotDirectory),
        }
    }

    /// Opens a regular file.
    pub fn open(&self) -> Result<File> {
        File::open(self.pool, self.ino)
    }

    /// Durable on return: the inode, its names, its data.
    pub fn sync(&self) -> Result<()> {
        self.pool.inner().sync_inode(self.ino)
    }
}
