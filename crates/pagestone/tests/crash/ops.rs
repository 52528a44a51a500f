//! Every operation that changes a pool, as a value, and how it is done through the library.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pagestone::inode::{Dir, NewNode, Node, RenameMode, SetAttr, XattrMode};
use pagestone::io::{DirectFile, Purpose};
use pagestone::{Error, FileType, OpenOptions, Pool};
use pmem::Media;

/// A path from the root without leading slash.
pub(crate) type Path = &'static str;

/// Where a write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum At {
    Offset(u64),
    End,
}

/// Parts of an atomic write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Parts {
    pub(crate) from: u64,
    pub(crate) every: u64,
    pub(crate) len: usize,
    pub(crate) count: u64,
}

impl Parts {
    /// Their offsets.
    pub(crate) fn offsets(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |i| self.from + i * self.every)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Create(Path),
    Mkdir(Path),
    /// A symbolic link whose target has so many bytes.
    Symlink(Path, usize),
    Link(Path, Path),
    /// A clone of the first under the name of the second.
    Clone(Path, Path),
    Unlink(Path),
    /// Opens the file, takes its name away, reads it, closes it.
    UnlinkOpen(Path),
    Rmdir(Path),
    Rename(Path, Path, RenameMode),
    Write(Path, At, usize, u8),
    /// So many bytes of another file behind the end, which lies between two pages.
    Extend(Path, usize, u8),
    /// Every so many bytes so many bytes, so many times, all at once.
    WriteAtomic(Path, Parts, u8),
    /// All of these or none: creates, directories, links of both kinds, writes, renames that replace or exchange, removals,
    /// truncates.
    Transaction(&'static [Op]),
    Truncate(Path, u64),
    Allocate(Path, u64, u64),
    /// As that, and the length stays.
    AllocateBehind(Path, u64, u64),
    Punch(Path, u64, u64),
    Zero(Path, u64, u64),
    /// Path, name, length of the value and what it is filled with.
    SetXattr(Path, Path, usize, u8),
    RemoveXattr(Path, Path),
    /// Path, permissions, owner.
    SetAttr(Path, u32, u32),
    /// Lets the pool have so many bytes, fewer or more.
    Resize(u64),
    Sync,
    /// Closes the pool and opens it again.
    Reopen,
    /// Drops the pool, which syncs nothing by promise, and opens it again.
    Drop,
}

impl Op {
    /// Whether all that came before is durable, on every media, once this is acknowledged.
    pub(crate) fn syncs(self) -> bool {
        matches!(self, Op::Sync | Op::Reopen)
    }

    /// Bytes of data written: large ones leave large crash states.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Op::Write(_, _, len, _) | Op::Extend(_, len, _) => len as u64,
            Op::WriteAtomic(_, parts, _) => parts.count * parts.len as u64,
            Op::Allocate(_, _, len) | Op::Zero(_, _, len) => len,
            Op::Transaction(ops) => ops.iter().map(|op| op.bytes()).sum(),
            _ => 0,
        }
    }
}

/// What a write puts at `offset`: never zero, and different from place to place.
pub(crate) fn byte_at(offset: u64, fill: u8) -> u8 {
    (u64::from(fill) * 31 + offset / 64) as u8 | 1
}

/// Bytes for this offset.
pub(crate) fn pattern(offset: u64, len: usize, fill: u8) -> Vec<u8> {
    (0..len as u64).map(|i| byte_at(offset + i, fill)).collect()
}

/// The bytes of a write. What is appended is the same wherever the end is.
pub(crate) fn written(at: At, len: usize, fill: u8) -> Vec<u8> {
    match at {
        At::Offset(at) => pattern(at, len, fill),
        At::End => pattern(0, len, fill),
    }
}

/// The target of a symbolic link of so many bytes.
pub(crate) fn target(len: usize) -> Vec<u8> {
    (0..len).map(|i| b'a' + (i / 7 % 26) as u8).collect()
}

/// Splits a path into its directory and its last name.
pub(crate) fn split(path: Path) -> (Path, Path) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// A pool that operations are done to.
pub(crate) struct Driver {
    media: Arc<dyn Media>,
    pool: Option<Pool>,
    /// What all paths are relative to.
    base: Path,
}

impl Driver {
    pub(crate) fn new(media: Arc<dyn Media>) -> Result<Driver, Error> {
        let pool = Pool::open_on(media.clone(), &OpenOptions::default())?;
        Ok(Driver { media, pool: Some(pool), base: "" })
    }

    /// Another one, for a directory of the pool.
    pub(crate) fn below(&self, base: Path) -> Driver {
        Driver { media: self.media.clone(), pool: self.pool.clone(), base }
    }

    fn node(&self, path: Path) -> Result<Node, Error> {
        self.pool().resolve(format!("{}/{path}", self.base).as_bytes())
    }

    pub(crate) fn pool(&self) -> &Pool {
        self.pool.as_ref().expect("only a reopen that failed leaves none")
    }

    fn dir(&self, path: Path) -> Result<Dir, Error> {
        self.node(path)?.dir()
    }

    fn make(&self, path: Path, node: &NewNode<'_>) -> Result<(), Error> {
        let (dir, name) = split(path);
        self.dir(dir)?.create(name.as_bytes(), node).map(drop)
    }

    /// Does these in one transaction.
    fn commit(&self, ops: &[Op]) -> Result<(), Error> {
        let path = |path: Path| format!("{}/{path}", self.base);
        let bytes = |op: &Op| match *op {
            Op::Write(_, at, len, fill) => written(at, len, fill),
            Op::Symlink(_, len) => target(len),
            _ => Vec::new(),
        };
        let bytes: Vec<Vec<u8>> = ops.iter().map(bytes).collect();
        let mut change = self.pool().transaction();
        for (op, bytes) in ops.iter().zip(&bytes) {
            match *op {
                Op::Create(name) => change.create(path(name), 0o644),
                Op::Mkdir(name) => change.create_dir(path(name)),
                Op::Write(name, At::Offset(at), ..) => change.write(path(name), bytes, at),
                Op::Write(name, At::End, ..) => change.append(path(name), bytes),
                Op::Symlink(name, _) => change.symlink(OsStr::from_bytes(bytes), path(name)),
                Op::Rename(name, to, RenameMode::Replace) => change.rename(path(name), path(to)),
                Op::Rename(name, to, RenameMode::Exchange) => change.exchange(path(name), path(to)),
                Op::Link(name, to) => change.hard_link(path(name), path(to)),
                Op::Unlink(name) => change.remove_file(path(name)),
                Op::Rmdir(name) => change.remove_dir(path(name)),
                Op::Truncate(name, len) => change.set_len(path(name), len),
                other => panic!("{other:?} is no operation of a transaction"),
            };
        }
        change.commit()
    }

    /// Does it.
    pub(crate) fn run(&mut self, op: Op) -> Result<(), Error> {
        let node = |path: Path| self.node(path);
        let open = |path: Path| node(path)?.open();
        match op {
            Op::Create(path) => self.make(path, &NewNode::new(FileType::File, 0o644)),
            Op::Mkdir(path) => self.make(path, &NewNode::new(FileType::Dir, 0o755)),
            Op::Symlink(path, len) => self.make(path, &NewNode::new(FileType::Symlink, 0o777).target(&target(len))),
            Op::Link(path, to) => {
                let ino = node(path)?.ino();
                let (dir, name) = split(to);
                self.dir(dir)?.link(name.as_bytes(), ino).map(drop)
            }
            Op::Clone(path, to) => {
                let ino = node(path)?.ino();
                let (dir, name) = split(to);
                self.dir(dir)?.clone_file(name.as_bytes(), ino).map(drop)
            }
            Op::Unlink(path) => self.dir(split(path).0)?.unlink(split(path).1.as_bytes()),
            Op::UnlinkOpen(path) => {
                let file = open(path)?;
                let before = contents(&file)?;
                self.dir(split(path).0)?.unlink(split(path).1.as_bytes())?;
                assert!(before == contents(&file)?, "an open file keeps its bytes");
                Ok(())
            }
            Op::Rmdir(path) => self.dir(split(path).0)?.rmdir(split(path).1.as_bytes()),
            Op::Rename(path, to, mode) => {
                let ((dir, name), (to_dir, to_name)) = (split(path), split(to));
                let to_dir = self.dir(to_dir)?.ino();
                self.dir(dir)?.rename(name.as_bytes(), to_dir, to_name.as_bytes(), mode)
            }
            Op::Write(path, to, len, fill) => match to {
                At::Offset(at) => open(path)?.write_all_at(&written(to, len, fill), at),
                At::End => open(path)?.append(&written(to, len, fill)).map(drop),
            },
            Op::Extend(path, len, fill) => {
                let source = tempfile::NamedTempFile::new().and_then(|mut file| {
                    std::io::Write::write_all(&mut file, &pattern(0, len, fill))?;
                    DirectFile::open(file.path(), Purpose::Read)
                });
                let source = source.map_err(Error::Media)?;
                open(path)?.extend_from(&source, 0..len as u64, &AtomicBool::new(false))
            }
            Op::WriteAtomic(path, parts, fill) => {
                let bytes: Vec<_> = parts.offsets().map(|at| (at, pattern(at, parts.len, fill))).collect();
                let parts: Vec<(u64, &[u8])> = bytes.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
                open(path)?.write_atomic(&parts)
            }
            Op::Transaction(ops) => self.commit(ops),
            Op::Truncate(path, len) => open(path)?.set_len(len),
            Op::Allocate(path, at, len) => open(path)?.allocate(at..at.saturating_add(len)),
            Op::AllocateBehind(path, at, len) => open(path)?.allocate_keep_size(at..at.saturating_add(len)),
            Op::Punch(path, at, len) => open(path)?.punch_hole(at..at.saturating_add(len)),
            Op::Zero(path, at, len) => open(path)?.zero_range(at..at.saturating_add(len)),
            Op::SetXattr(path, name, len, fill) => {
                node(path)?.set_xattr(name.as_bytes(), &pattern(0, len, fill), XattrMode::Set)
            }
            Op::RemoveXattr(path, name) => node(path)?.remove_xattr(name.as_bytes()),
            Op::SetAttr(path, perm, uid) => {
                let change = SetAttr::new().perm(perm).uid(uid);
                node(path)?.set_attr(&change).map(drop)
            }
            Op::Resize(size) if size < self.pool().info()?.size => {
                self.pool().shrink(size, &mut |_, _| std::ops::ControlFlow::Continue(()))
            }
            Op::Resize(size) => self.pool().grow(size),
            Op::Sync => self.pool().sync(),
            Op::Reopen | Op::Drop => {
                match self.pool.take() {
                    Some(pool) if op == Op::Reopen => pool.close()?,
                    pool => drop(pool),
                }
                self.pool = Some(Pool::open_on(self.media.clone(), &OpenOptions::default())?);
                Ok(())
            }
        }
    }
}

/// All bytes of a file.
pub(crate) fn contents(file: &pagestone::File) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0x5A; file.attr()?.size as usize];
    let read = file.read_at(&mut bytes, 0)?;
    assert_eq!(read, bytes.len(), "a read ends only at the end of the file");
    Ok(bytes)
}
