//! The reference: what a pool should contain, in plain maps, slow and obviously right.
//!
//! ```text
//!   Tree { nodes: id -> Node }        Node { names | Bytes | target, attributes, xattrs }
//!   Bytes { size, page -> bytes }     allocated pages, and pages that may or may not be there
//! ```

use std::collections::{BTreeMap, BTreeSet};

use pagestone::inode::Time;
use pagestone::{FileType, Ino};

pub(crate) type Id = usize;
pub(crate) const PAGE: u64 = 4096;
const FRAME_PAGES: u64 = 512;

/// A file's bytes: only pages that were given storage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bytes {
    pub(crate) size: u64,
    /// Pages with storage; `None`: all zeros.
    pub(crate) pages: BTreeMap<u64, Option<Box<[u8]>>>,
    /// Pages that the engine may have taken ahead of need.
    pub(crate) maybe: BTreeSet<u64>,
}

impl Bytes {
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let len = (PAGE - at % PAGE).min(end - at) as usize;
            let slot = self.pages.entry(page).or_default();
            let slot = slot.get_or_insert_with(|| vec![0; PAGE as usize].into());
            slot[within..within + len].copy_from_slice(&bytes[(at - offset) as usize..][..len]);
            at += len as u64;
        }
        if end >= self.size {
            let behind = end.div_ceil(PAGE);
            self.maybe.extend(behind..behind.next_multiple_of(FRAME_PAGES));
            self.size = end;
        }
    }

    pub(crate) fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return Vec::new();
        }
        let mut out = vec![0; (end - offset) as usize];
        for (&page, bytes) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let Some(bytes) = bytes else { continue };
            let (from, to) = (offset.max(page * PAGE), end.min((page + 1) * PAGE));
            let source = &bytes[(from - page * PAGE) as usize..(to - page * PAGE) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        out
    }

    /// Zeros what has storage in the range.
    pub(crate) fn clear(&mut self, from: u64, to: u64) {
        for (&page, bytes) in self.pages.range_mut(from / PAGE..to.div_ceil(PAGE)) {
            let (a, b) = (from.max(page * PAGE) - page * PAGE, to.min((page + 1) * PAGE) - page * PAGE);
            match bytes {
                Some(_) if b - a == PAGE => *bytes = None,
                Some(bytes) => bytes[a as usize..b as usize].fill(0),
                None => {}
            }
        }
    }

    fn drop_pages(&mut self, from: u64, to: u64) {
        let gone: Vec<u64> = self.pages.range(from..to).map(|(&p, _)| p).collect();
        for page in gone {
            self.pages.remove(&page);
        }
        self.maybe.retain(|&p| p < from || p >= to);
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.size {
            self.clear(len, len.next_multiple_of(PAGE));
            self.drop_pages(len.div_ceil(PAGE), u64::MAX);
        }
        self.size = len;
    }

    pub(crate) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        self.clear(offset, end);
        if offset.div_ceil(PAGE) < end / PAGE {
            self.drop_pages(offset.div_ceil(PAGE), end / PAGE);
        }
    }

    pub(crate) fn allocate(&mut self, offset: u64, len: u64, keep_size: bool) {
        for page in offset / PAGE..(offset + len).div_ceil(PAGE) {
            self.pages.entry(page).or_default();
        }
        if !keep_size {
            self.size = self.size.max(offset + len);
        }
    }

    /// An allocation that failed half-way: storage may be there.
    pub(crate) fn allocate_perhaps(&mut self, offset: u64, len: u64) {
        self.maybe.extend(offset / PAGE..(offset + len).div_ceil(PAGE));
    }

    /// What a clone has of it.
    pub(crate) fn cloned(&self) -> Bytes {
        let end = self.size.div_ceil(PAGE);
        Bytes {
            size: self.size,
            pages: self.pages.range(..end).map(|(&p, bytes)| (p, bytes.clone())).collect(),
            maybe: self.maybe.range(..end).copied().collect(),
        }
    }

    /// The last handle has gone: what lies behind the end may have been trimmed.
    pub(crate) fn closed(&mut self) {
        let behind: Vec<u64> = self.pages.range(self.size.div_ceil(PAGE)..).map(|(&p, _)| p).collect();
        for page in behind {
            self.pages.remove(&page);
            self.maybe.insert(page);
        }
    }
}

/// One inode.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) ino: Ino,
    pub(crate) kind: FileType,
    pub(crate) perm: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u64,
    pub(crate) nlink: u32,
    pub(crate) target: Vec<u8>,
    pub(crate) data: Bytes,
    pub(crate) names: BTreeMap<Vec<u8>, Id>,
    pub(crate) parent: Id,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) handles: usize,
    /// Set by hand and not changed since.
    pub(crate) atime: Option<Time>,
    pub(crate) mtime: Option<Time>,
}

impl Node {
    pub(crate) fn new(ino: Ino, kind: FileType, parent: Id) -> Node {
        Node {
            ino,
            kind,
            perm: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: if kind == FileType::Dir { 2 } else { 1 },
            target: Vec::new(),
            data: Bytes::default(),
            names: BTreeMap::new(),
            parent,
            xattrs: BTreeMap::new(),
            handles: 0,
            atime: None,
            mtime: None,
        }
    }
}

/// What a rename does about an existing name, and what every call answers: the error's name.
pub(crate) type Answer<T = ()> = Result<T, &'static str>;

/// The whole tree; id 0 is the root.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: BTreeMap<Id, Node>,
    next: Id,
    /// There have been clones: what lies behind the end of a file may go whenever one goes.
    pub(crate) cloned: bool,
    /// Numbers of inodes that are gone.
    pub(crate) dead: Vec<Ino>,
}

pub(crate) fn check_name(name: &[u8]) -> Answer {
    match name {
        _ if name.len() > 255 => Err("NameTooLong"),
        b"" => Err("NotFound"),
        b"." | b".." => Err("Invalid"),
        _ if name.contains(&b'/') || name.contains(&0) => Err("Invalid"),
        _ => Ok(()),
    }
}

impl Tree {
    pub(crate) fn new(root: Ino) -> Tree {
        Tree {
            nodes: BTreeMap::from([(0, Node::new(root, FileType::Dir, 0))]),
            next: 1,
            cloned: false,
            dead: Vec::new(),
        }
    }

    pub(crate) fn of_kind(&self, kind: FileType) -> Vec<Id> {
        self.nodes.iter().filter(|(_, n)| n.kind == kind).map(|(&id, _)| id).collect()
    }

    pub(crate) fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.nodes[&dir].names.get(name).copied()
    }

    pub(crate) fn node(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).expect("a live node")
    }

    pub(crate) fn may_create(&self, dir: Id, name: &[u8], kind: FileType, target: &[u8]) -> Answer {
        check_name(name)?;
        match (kind, target.len()) {
            (FileType::Symlink, 0) => return Err("NotFound"),
            (FileType::Symlink, 4096..) => return Err("NameTooLong"),
            _ => {}
        }
        if self.child(dir, name).is_some() { Err("Exists") } else { Ok(()) }
    }

    pub(crate) fn create(&mut self, dir: Id, name: &[u8], node: Node) -> Id {
        let id = self.next;
        self.next += 1;
        let is_dir = node.kind == FileType::Dir;
        self.nodes.insert(id, node);
        let parent = self.node(dir);
        parent.names.insert(name.to_vec(), id);
        parent.nlink += u32::from(is_dir);
        parent.mtime = None;
        id
    }

    pub(crate) fn may_link(&self, dir: Id, name: &[u8], id: Id) -> Answer {
        check_name(name)?;
        if self.child(dir, name).is_some() {
            return Err("Exists");
        }
        match &self.nodes[&id] {
            n if n.kind == FileType::Dir => Err("IsDirectory"),
            n if n.nlink == 0 => Err("NotFound"),
            _ => Ok(()),
        }
    }

    pub(crate) fn link(&mut self, dir: Id, name: &[u8], id: Id) {
        self.node(dir).names.insert(name.to_vec(), id);
        self.node(dir).mtime = None;
        self.node(id).nlink += 1;
    }

    pub(crate) fn may_remove(&self, dir: Id, name: &[u8], is_dir: bool) -> Answer<Id> {
        check_name(name)?;
        let id = self.child(dir, name).ok_or("NotFound")?;
        let node = &self.nodes[&id];
        match (node.kind == FileType::Dir, is_dir) {
            (true, false) => Err("IsDirectory"),
            (false, true) => Err("NotDirectory"),
            (true, true) if !node.names.is_empty() => Err("NotEmpty"),
            _ => Ok(id),
        }
    }

    pub(crate) fn remove(&mut self, dir: Id, name: &[u8]) {
        let parent = self.node(dir);
        let id = parent.names.remove(name).expect("the name is there");
        parent.mtime = None;
        if self.nodes[&id].kind == FileType::Dir {
            self.node(dir).nlink -= 1;
            self.node(id).nlink = 0;
        } else {
            self.node(id).nlink -= 1;
        }
        self.bury(id);
    }

    /// Forgets the node if nothing holds it any more.
    pub(crate) fn bury(&mut self, id: Id) {
        let node = &self.nodes[&id];
        if node.nlink == 0 && node.handles == 0 {
            self.dead.push(node.ino);
            self.nodes.remove(&id);
        }
    }

    fn is_ancestor(&self, ancestor: Id, mut dir: Id) -> bool {
        loop {
            if dir == ancestor {
                return true;
            }
            if dir == 0 {
                return false;
            }
            dir = self.nodes[&dir].parent;
        }
    }

    /// Whether a rename is allowed; false if it is and changes nothing.
    pub(crate) fn may_rename(&self, from: Id, name: &[u8], to: Id, to_name: &[u8], mode: Mode) -> Answer<bool> {
        check_name(name)?;
        check_name(to_name)?;
        let a = self.child(from, name).ok_or("NotFound")?;
        let b = self.child(to, to_name);
        let is_dir = |id: Id| self.nodes[&id].kind == FileType::Dir;
        if from != to {
            if is_dir(a) && self.is_ancestor(a, to) {
                return Err("Invalid");
            }
            if mode == Mode::Exchange && b.is_some_and(|b| is_dir(b) && self.is_ancestor(b, from)) {
                return Err("Invalid");
            }
        }
        match (b, mode) {
            (Some(_), Mode::NoReplace) => return Err("Exists"),
            (None, Mode::Exchange) => return Err("NotFound"),
            (Some(b), _) if a == b => return Ok(false),
            _ => {}
        }
        if let (Some(b), Mode::Replace) = (b, mode) {
            match (is_dir(a), is_dir(b)) {
                (true, false) => return Err("NotDirectory"),
                (false, true) => return Err("IsDirectory"),
                (true, true) if !self.nodes[&b].names.is_empty() => return Err("NotEmpty"),
                _ => {}
            }
        }
        Ok(true)
    }

    pub(crate) fn rename(&mut self, from: Id, name: &[u8], to: Id, to_name: &[u8], mode: Mode) {
        let a = self.child(from, name).expect("checked");
        let b = self.child(to, to_name);
        if mode == Mode::Exchange {
            let b = b.expect("checked");
            self.place(from, name, a, Some(b));
            self.place(to, to_name, b, Some(a));
            return;
        }
        if b.is_some() {
            self.remove(to, to_name);
        }
        self.place(from, name, a, None);
        self.node(to).names.insert(to_name.to_vec(), a);
        self.settle(to, a);
    }

    /// Lets a name that meant `old` mean `new`, or nothing.
    fn place(&mut self, dir: Id, name: &[u8], old: Id, new: Option<Id>) {
        if self.nodes[&old].kind == FileType::Dir {
            self.node(dir).nlink -= 1;
        }
        self.node(dir).mtime = None;
        match new {
            Some(new) => {
                self.node(dir).names.insert(name.to_vec(), new);
                self.settle(dir, new);
            }
            None => drop(self.node(dir).names.remove(name)),
        }
    }

    fn settle(&mut self, dir: Id, id: Id) {
        self.node(dir).mtime = None;
        if self.nodes[&id].kind == FileType::Dir {
            self.node(id).parent = dir;
            self.node(dir).nlink += 1;
        }
    }
}

/// [`pagestone::inode::RenameMode`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Replace,
    NoReplace,
    Exchange,
}
