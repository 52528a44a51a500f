//! A pool and its reference, side by side: operations on names, attributes and the pool itself.

use std::collections::BTreeSet;

use pagestone::inode::{NewNode, RenameMode, SetAttr, Time, XattrMode};
use pagestone::{Error, File, FileType, Ino, Pool};
use proptest::sample::Index;

use crate::ops::{Name, Op};
use crate::place::{On, Place};
use crate::reference::{Answer, Id, Mode, Node, Tree};

pub(crate) struct World {
    pub(crate) place: Place,
    pub(crate) pool: Option<Pool>,
    pub(crate) tree: Tree,
    pub(crate) handles: Vec<(Id, File)>,
    pub(crate) free_at_start: u64,
}

/// The error's name, to be compared with the reference's answer.
pub(crate) fn name_of(e: &Error) -> &'static str {
    match e {
        Error::NotFound => "NotFound",
        Error::Exists => "Exists",
        Error::NotDirectory => "NotDirectory",
        Error::IsDirectory => "IsDirectory",
        Error::NotEmpty => "NotEmpty",
        Error::Invalid(_) => "Invalid",
        Error::NameTooLong => "NameTooLong",
        Error::FileTooLarge => "FileTooLarge",
        Error::NoSpace => "NoSpace",
        Error::NoAttribute => "NoAttribute",
        Error::TooLarge => "TooLarge",
        Error::NoData => "NoData",
        Error::Stale(_) => "Stale",
        Error::NotSupported(_) => "NotSupported",
        _ => "something else",
    }
}

/// How a real answer compares with the reference's.
pub(crate) enum Outcome<T> {
    /// Both succeeded.
    Done(T),
    /// Both failed alike.
    Refused,
    /// The pool is full; the reference stays as it is.
    Full,
}

pub(crate) fn pick<T: Copy>(index: Index, from: &[T]) -> Option<T> {
    (!from.is_empty()).then(|| from[index.index(from.len())])
}

/// A content that says where it belongs.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add((i as u8).wrapping_mul(7)).wrapping_add((i >> 8) as u8) | 1).collect()
}

impl World {
    pub(crate) fn new(on: On, size: u64) -> World {
        let (place, pool) = Place::create(on, size);
        let tree = Tree::new(pool.root().ino());
        let free_at_start = pool.statfs().free;
        World { place, pool: Some(pool), tree, handles: Vec::new(), free_at_start }
    }

    pub(crate) fn pool(&self) -> &Pool {
        self.pool.as_ref().expect("an open pool")
    }

    /// Compares two answers. `grows`: pages that the operation may need, if it may fail for want
    /// of them; `None` if it must never fail so.
    pub(crate) fn outcome<T, W>(&self, got: Result<T, Error>, want: &Answer<W>, grows: Option<u64>) -> Outcome<T> {
        match (got, want) {
            (Ok(value), Ok(_)) => Outcome::Done(value),
            (Err(Error::NoSpace), Ok(_)) if grows.is_some() => {
                let (space, need) = (self.pool().statfs(), grows.unwrap_or(0));
                assert!(space.available < need + 24, "full, with {space:?}, {need} pages wanted");
                Outcome::Full
            }
            (Err(e), Err(want)) if name_of(&e) == *want => Outcome::Refused,
            (Err(e), Ok(_)) => panic!("failed: {e}; {:?}", self.pool().statfs()),
            (Err(e), Err(want)) => panic!("failed with {e}, expected {want}"),
            (Ok(_), Err(want)) => panic!("succeeded, expected {want}"),
        }
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        self.apply_one(op);
        if self.tree.cloned {
            self.tree.nodes.values_mut().for_each(|node| node.data.closed());
        }
    }

    fn apply_one(&mut self, op: &Op) {
        match *op {
            Op::Create { dir, name, kind, target } => self.create(dir, name, kind, target),
            Op::Link { dir, name, node } => self.link(dir, name, node),
            Op::Clone { file, dir, name } => self.clone_file(file, self.dir(dir), &name.bytes()),
            Op::CloneInto { file, to } => self.clone_into(file, to),
            Op::Unlink { dir, name } => self.remove(self.dir(dir), &name.bytes(), false),
            Op::Rmdir { dir, name } => self.remove(self.dir(dir), &name.bytes(), true),
            Op::RemoveSome { dir, name } => self.remove_some(dir, name),
            Op::Rename { from, name, to, to_name, mode } => {
                let (from, to) = (self.dir(from), self.dir(to));
                let name = self.some_name(from, name);
                self.rename(from, &name, to, &to_name.bytes(), mode);
            }
            Op::RenameOnto { from, name, to, onto, mode } => {
                let (from, to) = (self.dir(from), self.dir(to));
                let (name, onto) = (self.some_name(from, name), self.some_name(to, onto));
                self.rename(from, &name, to, &onto, mode);
            }
            Op::Open { node } => self.open(node),
            Op::Close { handle } => {
                if !self.handles.is_empty() {
                    self.close_handle(handle.index(self.handles.len()));
                }
            }
            Op::SetXattr { node, name, len, mode, seed } => self.set_xattr(node, name, len, mode, seed),
            Op::RemoveXattr { node, name } => self.remove_xattr(node, name),
            Op::SetAttr { node, perm, owner, time } => self.set_attr(node, perm, owner, time),
            Op::List { dir, batch, ref changes } => self.list(dir, batch, changes),
            Op::Sync => self.pool().sync().expect("sync"),
            Op::Reopen { crash } => self.reopen(crash),
            Op::Verify => self.verify(),
            _ => self.apply_to_file(op),
        }
    }

    // ---- choosing ----------------------------------------------------------------------------

    fn dir(&self, index: Index) -> Id {
        pick(index, &self.tree.of_kind(FileType::Dir)).expect("the root is a directory")
    }

    fn any_node(&self, index: Index) -> Id {
        pick(index, &self.tree.nodes.keys().copied().collect::<Vec<_>>()).expect("the root is a node")
    }

    /// A name in the directory; one that is not there if it is empty.
    fn some_name(&self, dir: Id, index: Index) -> Vec<u8> {
        let names: Vec<&Vec<u8>> = self.tree.nodes[&dir].names.keys().collect();
        pick(index, &names).cloned().unwrap_or_else(|| b"nothing".to_vec())
    }

    pub(crate) fn ino(&self, id: Id) -> Ino {
        self.tree.nodes[&id].ino
    }

    pub(crate) fn in_dir<T>(
        &self,
        id: Id,
        f: impl FnOnce(pagestone::inode::Dir) -> Result<T, Error>,
    ) -> Result<T, Error> {
        f(self.pool().node(self.ino(id)).expect("a live node").dir().expect("a directory"))
    }

    // ---- names -------------------------------------------------------------------------------

    fn create(&mut self, dir: Index, name: Name, kind: u8, target: u16) {
        let (dir, name, kind) = (self.dir(dir), name.bytes(), FileType::from_u8(kind).expect("a kind"));
        let target = if kind == FileType::Symlink { pattern(3, target.into()) } else { Vec::new() };
        let want = self.tree.may_create(dir, &name, kind, &target);
        let rdev = if matches!(kind, FileType::CharDevice | FileType::BlockDevice) { 0x1234_5678 } else { 0 };
        let node = NewNode::new(kind, 0o640).owner(7, 8).rdev(rdev).target(&target);
        let got = self.in_dir(dir, |d| d.create(&name, &node));
        if let Outcome::Done(attr) = self.outcome(got, &want, Some(8)) {
            let mut made = Node::new(attr.ino, kind, dir);
            (made.perm, made.uid, made.gid, made.rdev, made.target) = (0o640, 7, 8, rdev, target);
            assert!(self.tree.nodes.values().all(|n| n.ino != attr.ino), "{} is used twice", attr.ino);
            let id = self.tree.create(dir, &name, made);
            self.same_attr(id);
        }
    }

    fn link(&mut self, dir: Index, name: Name, node: Index) {
        let (dir, name, id) = (self.dir(dir), name.bytes(), self.any_node(node));
        let want = self.tree.may_link(dir, &name, id);
        let got = self.in_dir(dir, |d| d.link(&name, self.ino(id)));
        if let Outcome::Done(_) = self.outcome(got, &want, Some(6)) {
            self.tree.link(dir, &name, id);
            self.same_attr(id);
        }
    }

    fn remove_some(&mut self, dir: Index, name: Index) {
        let dir = self.dir(dir);
        let name = self.some_name(dir, name);
        let is_dir = self.tree.child(dir, &name).is_some_and(|id| self.tree.nodes[&id].kind == FileType::Dir);
        self.remove(dir, &name, is_dir);
    }

    pub(crate) fn remove(&mut self, dir: Id, name: &[u8], is_dir: bool) {
        let want = self.tree.may_remove(dir, name, is_dir);
        let got = self.in_dir(dir, |d| if is_dir { d.rmdir(name) } else { d.unlink(name) });
        if let Outcome::Done(()) = self.outcome(got, &want, None) {
            self.tree.remove(dir, name);
        }
    }

    fn rename(&mut self, from: Id, name: &[u8], to: Id, to_name: &[u8], mode: Mode) {
        let want = self.tree.may_rename(from, name, to, to_name, mode);
        let how = match mode {
            Mode::Replace => RenameMode::Replace,
            Mode::NoReplace => RenameMode::NoReplace,
            Mode::Exchange => RenameMode::Exchange,
        };
        let got = self.in_dir(from, |d| d.rename(name, self.ino(to), to_name, how));
        if let (Outcome::Done(()), Ok(true)) = (self.outcome(got, &want, Some(6)), want) {
            self.tree.rename(from, name, to, to_name, mode);
            self.same_attr(from);
            self.same_attr(to);
        }
    }

    /// Reads a directory a few entries at a time while names come and go: what is there all the
    /// time is seen exactly once.
    fn list(&mut self, dir: Index, batch: u8, changes: &[(Name, bool)]) {
        let dir = self.dir(dir);
        let mut steady: BTreeSet<Vec<u8>> = self.tree.nodes[&dir].names.keys().cloned().collect();
        let mut seen = Vec::new();
        let (mut cookie, mut changes) = (0, changes.iter());
        loop {
            let found = self.in_dir(dir, |d| d.read_entries(cookie, batch.into())).expect("listing");
            for e in &found {
                assert!(e.cookie > cookie && e.cookie >= 3);
                cookie = e.cookie;
                seen.push(e.name.clone());
            }
            if found.len() < usize::from(batch) {
                break;
            }
            if let Some(&(name, add)) = changes.next() {
                let name = name.bytes();
                match self.tree.child(dir, &name) {
                    None if add => self.create_named(dir, &name),
                    Some(id) if !add && self.tree.nodes[&id].kind != FileType::Dir => {
                        steady.remove(&name);
                        self.remove(dir, &name, false);
                    }
                    _ => {}
                }
            }
        }
        for name in &steady {
            assert_eq!(seen.iter().filter(|n| *n == name).count(), 1, "a name was missed or seen twice");
        }
    }

    fn create_named(&mut self, dir: Id, name: &[u8]) {
        let want = self.tree.may_create(dir, name, FileType::Fifo, b"");
        let got = self.in_dir(dir, |d| d.create(name, &NewNode::new(FileType::Fifo, 0o755)));
        if let Outcome::Done(attr) = self.outcome(got, &want, Some(8)) {
            self.tree.create(dir, name, Node::new(attr.ino, FileType::Fifo, dir));
        }
    }

    // ---- attributes --------------------------------------------------------------------------

    fn xattr_name(name: u8) -> Vec<u8> {
        match name {
            0 => Vec::new(),
            1 => vec![b'u'; 256],
            2 => vec![b'u'; 255],
            3..=120 => format!("user.{}", name % 8).into_bytes(),
            _ => format!("user.long-name-{}-{name}", "y".repeat(name as usize / 2)).into_bytes(),
        }
    }

    fn set_xattr(&mut self, node: Index, name: u8, len: u16, mode: u8, seed: u8) {
        let (id, name, value) = (self.any_node(node), Self::xattr_name(name), pattern(seed, len.into()));
        let mode = [XattrMode::Set, XattrMode::Set, XattrMode::Create, XattrMode::Replace][usize::from(mode)];
        let there = self.tree.nodes[&id].xattrs.contains_key(&name);
        let want = match () {
            _ if name.is_empty() || name.len() > 255 => Err("NameTooLong"),
            _ if value.len() > 32 << 10 => Err("TooLarge"),
            _ if there && mode == XattrMode::Create => Err("Exists"),
            _ if !there && mode == XattrMode::Replace => Err("NoAttribute"),
            _ => Ok(()),
        };
        let got = self.pool().node(self.ino(id)).expect("live").set_xattr(&name, &value, mode);
        if let Outcome::Done(()) = self.outcome(got, &want, Some(20)) {
            self.tree.node(id).xattrs.insert(name, value);
        }
    }

    fn remove_xattr(&mut self, node: Index, name: u8) {
        let (id, name) = (self.any_node(node), Self::xattr_name(name));
        let want = if self.tree.nodes[&id].xattrs.contains_key(&name) { Ok(()) } else { Err("NoAttribute") };
        let got = self.pool().node(self.ino(id)).expect("live").remove_xattr(&name);
        if let Outcome::Done(()) = self.outcome(got, &want, None) {
            self.tree.node(id).xattrs.remove(&name);
        }
        let got = self.pool().node(self.ino(id)).expect("live").xattr(&name);
        assert!(matches!(got, Err(Error::NoAttribute)));
    }

    fn set_attr(&mut self, node: Index, perm: u32, owner: u32, time: i64) {
        let id = self.any_node(node);
        let time = Time { sec: time, nsec: owner % 1_000_000_000 };
        let mut change = SetAttr::new().atime(time);
        if perm & 1 == 1 {
            change = change.perm(perm).uid(owner).gid(!owner).mtime(time);
        }
        let got = self.pool().node(self.ino(id)).expect("live").set_attr(&change);
        if let Outcome::Done(attr) = self.outcome(got, &Ok(()), None) {
            let node = self.tree.node(id);
            node.atime = Some(time);
            if perm & 1 == 1 {
                (node.perm, node.uid, node.gid, node.mtime) = (perm & 0o7777, owner, !owner, Some(time));
            }
            assert_eq!(attr.atime, time);
            self.same_attr(id);
        }
    }

    // ---- the pool ----------------------------------------------------------------------------

    pub(crate) fn reopen(&mut self, crash: bool) {
        let pool = self.pool.take().expect("an open pool");
        let handles = std::mem::take(&mut self.handles);
        let owners: Vec<Id> = handles.iter().map(|(id, _)| *id).collect();
        if crash {
            self.place.crash();
            drop((handles, pool));
            self.place.restore();
        } else {
            drop(handles);
            pool.close().expect("close");
            self.place.check();
        }
        self.pool = Some(self.place.open());
        for id in owners {
            self.closed(id);
        }
        self.verify();
    }
}
