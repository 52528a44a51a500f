//! The model: what a pool must hold after each operation, kept in DRAM in the simplest way.
//!
//! ```text
//!   World   bytes of the pool
//!           node number -> Dir { name -> number } | File { bytes, which pages have storage } | ...
//!   before op 1, after op 1, after op 2 ...     one World each; bytes are shared between them
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pagestone::inode::RenameMode;

use crate::ops::{At, Op, Path, pattern, split, target, written};

const PAGE: u64 = 4096;

/// A regular file.
#[derive(Clone, Default, Debug)]
pub(crate) struct Bytes {
    pub(crate) bytes: Arc<Vec<u8>>,
    /// Pages with storage, and the operation that gave it: other storage, other number.
    pub(crate) born: Arc<BTreeMap<u64, u32>>,
    /// Pages that a clone has too: a write gives other storage.
    shared: Arc<BTreeSet<u64>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Dir(BTreeMap<String, u32>),
    File(Bytes),
    Symlink(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) perm: u32,
    pub(crate) uid: u32,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    pub(crate) body: Body,
}

/// A whole pool. The root is node 0.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Bytes of the pool.
    pub(crate) size: u64,
    pub(crate) nodes: BTreeMap<u32, Node>,
    next: u32,
    /// Operations so far.
    clock: u32,
}

/// An errno.
pub(crate) type Refused = i32;

impl World {
    /// What a pool of so many bytes is when it has been made.
    pub(crate) fn empty(size: u64) -> World {
        let root = Node { perm: 0o755, uid: 0, xattrs: BTreeMap::new(), body: Body::Dir(BTreeMap::new()) };
        World { size, nodes: BTreeMap::from([(0, root)]), next: 1, clock: 0 }
    }

    /// How many names mean `id`.
    pub(crate) fn links(&self, id: u32) -> u32 {
        let count = |node: &Node| match &node.body {
            Body::Dir(names) => names.values().filter(|n| **n == id).count() as u32,
            _ => 0,
        };
        self.nodes.values().map(count).sum()
    }

    pub(crate) fn resolve(&self, path: Path) -> Result<u32, Refused> {
        let mut id = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            id = *self.names(id)?.get(name).ok_or(libc::ENOENT)?;
        }
        Ok(id)
    }

    fn names(&self, id: u32) -> Result<&BTreeMap<String, u32>, Refused> {
        match &self.nodes[&id].body {
            Body::Dir(names) => Ok(names),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn node(&mut self, id: u32) -> &mut Node {
        self.nodes.get_mut(&id).expect("every name means a node")
    }

    fn set_name(&mut self, dir: u32, name: &str, id: Option<u32>) {
        if let Body::Dir(names) = &mut self.node(dir).body {
            match id {
                Some(id) => names.insert(name.into(), id),
                None => names.remove(name),
            };
        }
    }

    fn file(&mut self, path: Path) -> Result<&mut Bytes, Refused> {
        let id = self.resolve(path)?;
        match &mut self.node(id).body {
            Body::File(file) => Ok(file),
            Body::Dir(_) => Err(libc::EISDIR),
            Body::Symlink(_) => Err(libc::EOPNOTSUPP),
        }
    }

    /// A symbolic link is followed, which leads nowhere here.
    fn follow(&self, path: Path) -> Result<(), Refused> {
        match &self.nodes[&self.resolve(path)?].body {
            Body::Symlink(target) if target.len() > 255 => Err(libc::ENAMETOOLONG),
            Body::Symlink(_) => Err(libc::ENOENT),
            _ => Ok(()),
        }
    }

    /// Does `op`, or says why not and changes nothing.
    pub(crate) fn run(&mut self, op: Op) -> Result<(), Refused> {
        self.clock += 1;
        let clock = self.clock;
        match op {
            Op::Create(path) => self.make(path, 0o644, Body::File(Bytes::default())),
            Op::Mkdir(path) => self.make(path, 0o755, Body::Dir(BTreeMap::new())),
            Op::Symlink(path, len) => self.make(path, 0o777, Body::Symlink(target(len))),
            Op::Link(path, to) => self.link(path, to),
            Op::Clone(path, to) => self.clone_file(path, to),
            Op::Unlink(path) => self.remove(path, false),
            Op::UnlinkOpen(path) => {
                self.file(path)?;
                self.remove(path, false)
            }
            Op::Rmdir(path) => self.remove(path, true),
            Op::Rename(path, to, mode) => self.rename(path, to, mode),
            Op::Write(path, at, len, fill) => {
                self.file(path)?.write(at, len, fill, clock);
                Ok(())
            }
            Op::Extend(path, len, fill) => {
                self.file(path)?.write(At::End, len, fill, clock);
                Ok(())
            }
            Op::WriteAtomic(path, parts, fill) => {
                let file = self.file(path)?;
                for at in parts.offsets() {
                    // Always other storage.
                    let pages = at / PAGE..(at + parts.len as u64).div_ceil(PAGE);
                    Arc::make_mut(&mut file.shared).extend(pages);
                    file.write(At::Offset(at), parts.len, fill, clock);
                }
                Ok(())
            }
            Op::Transaction(ops) => {
                let mut world = self.clone();
                for op in ops {
                    if let Op::Write(path, ..) | Op::Truncate(path, _) = *op {
                        world.follow(path)?;
                    }
                    if let Op::Write(path, at, len, _) = *op {
                        // Always other storage.
                        let file = world.file(path)?;
                        let from = file.offset(at);
                        let pages = from / PAGE..(from + len as u64).div_ceil(PAGE);
                        Arc::make_mut(&mut file.shared).extend(pages);
                    }
                    if let Op::Truncate(path, len) = *op {
                        // The page with the new end is made anew if the file grows again.
                        Arc::make_mut(&mut world.file(path)?.shared).insert(len / PAGE);
                    }
                    world.run(*op)?;
                }
                *self = world;
                Ok(())
            }
            Op::Truncate(path, len) => {
                self.file(path)?.truncate(len, clock);
                if len == 0 {
                    self.unshare();
                }
                Ok(())
            }
            Op::Allocate(path, at, len) => {
                self.file(path)?.allocate(at, len, clock);
                Ok(())
            }
            // Nobody sees it.
            Op::AllocateBehind(..) => Ok(()),
            Op::Punch(path, at, len) => {
                self.file(path)?.punch(at, len, clock);
                Ok(())
            }
            Op::Zero(path, at, len) => {
                let file = self.file(path)?;
                file.clear(at, at + len);
                file.allocate(at, len, clock);
                Ok(())
            }
            Op::SetXattr(path, name, len, fill) => {
                let id = self.resolve(path)?;
                self.node(id).xattrs.insert(name.into(), pattern(0, len, fill));
                Ok(())
            }
            Op::RemoveXattr(path, name) => {
                let id = self.resolve(path)?;
                self.node(id).xattrs.remove(name).map(drop).ok_or(libc::ENODATA)
            }
            Op::SetAttr(path, perm, uid) => {
                let id = self.resolve(path)?;
                (self.node(id).perm, self.node(id).uid) = (perm, uid);
                Ok(())
            }
            Op::Resize(size) => {
                self.size = size;
                Ok(())
            }
            Op::Sync | Op::Reopen | Op::Drop => Ok(()),
        }
    }

    fn make(&mut self, path: Path, perm: u32, body: Body) -> Result<(), Refused> {
        let dir = self.resolve(split(path).0)?;
        if self.names(dir)?.contains_key(split(path).1) {
            return Err(libc::EEXIST);
        }
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Node { perm, uid: 0, xattrs: BTreeMap::new(), body });
        self.set_name(dir, split(path).1, Some(id));
        Ok(())
    }

    fn link(&mut self, path: Path, to: Path) -> Result<(), Refused> {
        let id = self.resolve(path)?;
        let dir = self.resolve(split(to).0)?;
        if self.names(dir)?.contains_key(split(to).1) {
            return Err(libc::EEXIST);
        }
        if matches!(self.nodes[&id].body, Body::Dir(_)) {
            return Err(libc::EISDIR);
        }
        self.set_name(dir, split(to).1, Some(id));
        Ok(())
    }

    fn clone_file(&mut self, path: Path, to: Path) -> Result<(), Refused> {
        let id = self.resolve(path)?;
        let dir = self.resolve(split(to).0)?;
        let taken = self.names(dir)?.contains_key(split(to).1);
        let (perm, uid) = (self.nodes[&id].perm, self.nodes[&id].uid);
        let file = match &mut self.node(id).body {
            Body::File(_) if taken => return Err(libc::EEXIST),
            Body::File(file) => {
                file.shared = Arc::new(file.born.keys().copied().collect());
                file.clone()
            }
            Body::Dir(_) => return Err(libc::EISDIR),
            Body::Symlink(_) => return Err(libc::EINVAL),
        };
        self.make(to, perm, Body::File(file))?;
        let made = self.resolve(to)?;
        self.node(made).uid = uid;
        Ok(())
    }

    /// When a clone goes, what it had in common with one other is that one's again.
    fn unshare(&mut self) {
        for node in self.nodes.values_mut() {
            if let Body::File(file) = &mut node.body {
                file.shared = Arc::default();
            }
        }
    }

    fn remove(&mut self, path: Path, as_dir: bool) -> Result<(), Refused> {
        let dir = self.resolve(split(path).0)?;
        let id = *self.names(dir)?.get(split(path).1).ok_or(libc::ENOENT)?;
        match (&self.nodes[&id].body, as_dir) {
            (Body::Dir(_), false) => return Err(libc::EISDIR),
            (Body::Dir(names), true) if !names.is_empty() => return Err(libc::ENOTEMPTY),
            (Body::File(_) | Body::Symlink(_), true) => return Err(libc::ENOTDIR),
            _ => {}
        }
        self.set_name(dir, split(path).1, None);
        self.drop_unnamed(id);
        Ok(())
    }

    fn drop_unnamed(&mut self, id: u32) {
        if self.links(id) == 0 {
            self.nodes.remove(&id);
            self.unshare();
        }
    }

    /// Whether `dir` is `ancestor` or lies below it.
    fn is_below(&self, ancestor: u32, dir: u32) -> bool {
        let below = |(id, _): (&u32, &Node)| *id == dir;
        ancestor == dir
            || self.names(ancestor).is_ok_and(|names| {
                names.values().any(|child| self.is_below(*child, dir) && self.nodes.iter().any(below))
            })
    }

    fn rename(&mut self, path: Path, to: Path, mode: RenameMode) -> Result<(), Refused> {
        let new_dir = self.resolve(split(to).0)?;
        self.names(new_dir)?;
        let old_dir = self.resolve(split(path).0)?;
        let a = *self.names(old_dir)?.get(split(path).1).ok_or(libc::ENOENT)?;
        let b = self.names(new_dir)?.get(split(to).1).copied();
        let is_dir = |id: u32| matches!(self.nodes[&id].body, Body::Dir(_));
        if is_dir(a) && self.is_below(a, new_dir) {
            return Err(libc::EINVAL);
        }
        match (b, mode) {
            (Some(b), RenameMode::Exchange) if is_dir(b) && self.is_below(b, old_dir) => return Err(libc::EINVAL),
            (Some(_), RenameMode::NoReplace) => return Err(libc::EEXIST),
            (None, RenameMode::Exchange) => return Err(libc::ENOENT),
            (Some(b), _) if a == b => return Ok(()),
            (Some(_), RenameMode::Exchange) | (None, _) => {}
            (Some(b), _) => match (is_dir(a), is_dir(b)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.names(b)?.is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            },
        }
        self.set_name(old_dir, split(path).1, b.filter(|_| mode == RenameMode::Exchange));
        self.set_name(new_dir, split(to).1, Some(a));
        if let Some(b) = b.filter(|_| mode != RenameMode::Exchange) {
            self.drop_unnamed(b);
        }
        Ok(())
    }
}

impl Bytes {
    /// A shared page in which the file ended is its own before the length passes it.
    fn lengthens(&mut self, to: u64, clock: u32) {
        let len = self.bytes.len() as u64;
        if to > len && !len.is_multiple_of(PAGE) && self.shared.contains(&(len / PAGE)) {
            Arc::make_mut(&mut self.shared).remove(&(len / PAGE));
            Arc::make_mut(&mut self.born).insert(len / PAGE, clock);
        }
    }

    fn offset(&self, at: At) -> u64 {
        match at {
            At::Offset(from) => from,
            At::End => self.bytes.len() as u64,
        }
    }

    fn take_pages(&mut self, from: u64, end: u64, clock: u32) {
        let born = Arc::make_mut(&mut self.born);
        for page in from / PAGE..end.div_ceil(PAGE) {
            if self.shared.contains(&page) {
                Arc::make_mut(&mut self.shared).remove(&page);
                born.insert(page, clock);
            }
            born.entry(page).or_insert(clock);
        }
    }

    fn write(&mut self, at: At, len: usize, fill: u8, clock: u32) {
        let from = self.offset(at);
        self.lengthens(from + len as u64, clock);
        let bytes = Arc::make_mut(&mut self.bytes);
        if bytes.len() < from as usize + len {
            bytes.resize(from as usize + len, 0);
        }
        bytes[from as usize..from as usize + len].copy_from_slice(&written(at, len, fill));
        self.take_pages(from, from + len as u64, clock);
    }

    fn truncate(&mut self, len: u64, clock: u32) {
        self.lengthens(len, clock);
        let shrinks = len < self.bytes.len() as u64;
        Arc::make_mut(&mut self.bytes).resize(len as usize, 0);
        if shrinks {
            Arc::make_mut(&mut self.born).retain(|page, _| *page < len.div_ceil(PAGE));
        }
    }

    fn allocate(&mut self, at: u64, len: u64, clock: u32) {
        self.lengthens(at + len, clock);
        self.take_pages(at, at + len, clock);
        if self.bytes.len() < (at + len) as usize {
            Arc::make_mut(&mut self.bytes).resize((at + len) as usize, 0);
        }
    }

    fn clear(&mut self, from: u64, end: u64) {
        let bytes = Arc::make_mut(&mut self.bytes);
        let end = (end as usize).min(bytes.len());
        if (from as usize) < end {
            bytes[from as usize..end].fill(0);
        }
    }

    fn punch(&mut self, at: u64, len: u64, clock: u32) {
        // Zeroed in part, a shared page is the file's own.
        let within = (at + len).min(self.bytes.len() as u64);
        for edge in [at, within].into_iter().filter(|edge| at < within && !edge.is_multiple_of(PAGE)) {
            if Arc::make_mut(&mut self.shared).remove(&(edge / PAGE)) {
                Arc::make_mut(&mut self.born).insert(edge / PAGE, clock);
            }
        }
        self.clear(at, at + len);
        let (first, last) = (at.div_ceil(PAGE), (at + len) / PAGE);
        Arc::make_mut(&mut self.born).retain(|page, _| !(first..last).contains(page));
    }
}
