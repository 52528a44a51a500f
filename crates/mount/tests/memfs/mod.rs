//! A filesystem in ordinary memory, as simple as can be: what the transport promises can be tested
//! with it apart from any pool. Nothing is ever freed, one lock guards everything.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use pagestone::inode::{Attr, NewNode, RenameMode, SetAttr, Time, XattrMode};
use pagestone::{FileType, Ino, StatFs};
use pagestone_mount::{
    Caller, Errno, Fallocate, FileSystem, Handle, Listed, NodeId, OpenHow, Reply, Seek, WriteHow, Written,
};

#[derive(Clone)]
struct Entry {
    node: u64,
    cookie: u64,
}

struct Node {
    attr: Attr,
    bytes: Vec<u8>,
    entries: BTreeMap<Vec<u8>, Entry>,
    parent: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<u64, Node>,
    last: u64,
}

pub(crate) struct MemFs(Mutex<State>);

fn no<T>(errno: i32) -> Reply<T> {
    Err(Errno(errno))
}

impl MemFs {
    pub(crate) fn new() -> MemFs {
        let mut state = State { last: 2, ..State::default() };
        state.add(1, 1, &NewNode::new(FileType::Dir, 0o755));
        MemFs(Mutex::new(state))
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }
}

impl State {
    fn add(&mut self, node: u64, parent: u64, new: &NewNode<'_>) {
        let now = Time::now();
        let mut attr = Attr::new(Ino(node), new.kind, new.perm, now);
        (attr.uid, attr.gid, attr.rdev, attr.size) = (new.uid, new.gid, new.rdev, new.target.len() as u64);
        let bytes = new.target.to_vec();
        self.nodes.insert(node, Node { attr, bytes, entries: BTreeMap::new(), parent, xattrs: BTreeMap::new() });
    }
    fn node(&mut self, node: u64) -> Reply<&mut Node> {
        self.nodes.get_mut(&node).ok_or(Errno(libc::ESTALE))
    }
    fn find(&mut self, dir: NodeId, name: &[u8]) -> Reply<u64> {
        if name.len() > 255 {
            return no(libc::ENAMETOOLONG);
        }
        self.node(dir.0)?.entries.get(name).map(|e| e.node).ok_or(Errno(libc::ENOENT))
    }
    fn changed(&mut self, node: u64) -> Reply<Attr> {
        let n = self.node(node)?;
        n.attr.ctime = Time::now();
        if n.attr.kind == FileType::File {
            n.attr.size = n.bytes.len() as u64;
            n.attr.pages = n.attr.size.div_ceil(4096);
        }
        Ok(n.attr)
    }
    fn touch_dir(&mut self, dir: u64) -> Reply<()> {
        let n = self.node(dir)?;
        (n.attr.mtime, n.attr.ctime) = (Time::now(), Time::now());
        n.attr.size = n.entries.len() as u64;
        Ok(())
    }
    fn enter(&mut self, dir: NodeId, name: &[u8], node: u64) -> Reply<()> {
        self.last += 1;
        let cookie = self.last;
        self.node(dir.0)?.entries.insert(name.to_vec(), Entry { node, cookie });
        if self.node(node)?.attr.kind == FileType::Dir {
            self.node(node)?.parent = dir.0;
            self.node(dir.0)?.attr.nlink += 1;
        }
        self.touch_dir(dir.0)
    }
    fn leave(&mut self, dir: NodeId, name: &[u8]) -> Reply<()> {
        let node = self.find(dir, name)?;
        self.node(dir.0)?.entries.remove(name);
        if self.node(node)?.attr.kind == FileType::Dir {
            self.node(dir.0)?.attr.nlink -= 1;
        }
        self.touch_dir(dir.0)
    }
    /// Takes a name's link off the node that it named.
    fn drop_link(&mut self, node: u64) -> Reply<()> {
        let n = self.node(node)?;
        if n.attr.kind == FileType::Dir {
            if !n.entries.is_empty() {
                return no(libc::ENOTEMPTY);
            }
            n.attr.nlink = 0;
        } else {
            n.attr.nlink -= 1;
        }
        self.changed(node).map(|_| ())
    }
    fn make(&mut self, dir: NodeId, name: &[u8], new: &NewNode<'_>) -> Reply<Attr> {
        match self.find(dir, name) {
            Ok(_) => return no(libc::EEXIST),
            Err(Errno(libc::ENOENT)) => {}
            Err(e) => return Err(e),
        }
        self.last += 1;
        let node = self.last;
        self.add(node, dir.0, new);
        self.enter(dir, name, node)?;
        Ok(self.node(node)?.attr)
    }
    fn is_below(&self, mut node: u64, above: u64) -> bool {
        while node != 1 {
            if node == above {
                return true;
            }
            node = self.nodes[&node].parent;
        }
        false
    }
}

impl FileSystem for MemFs {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Reply<Attr> {
        let mut s = self.lock();
        let node = s.find(parent, name)?;
        Ok(s.node(node)?.attr)
    }
    fn getattr(&self, node: NodeId, _handle: Option<Handle>) -> Reply<Attr> {
        Ok(self.lock().node(node.0)?.attr)
    }
    fn setattr(&self, node: NodeId, _handle: Option<Handle>, c: &SetAttr, _caller: Caller) -> Reply<Attr> {
        let mut s = self.lock();
        let n = s.node(node.0)?;
        n.attr.perm = c.perm.unwrap_or(n.attr.perm);
        n.attr.uid = c.uid.unwrap_or(n.attr.uid);
        n.attr.gid = c.gid.unwrap_or(n.attr.gid);
        if let Some(size) = c.size {
            n.bytes.resize(size as usize, 0);
            n.attr.mtime = Time::now();
        }
        n.attr.atime = c.atime.unwrap_or(n.attr.atime);
        n.attr.mtime = c.mtime.unwrap_or(n.attr.mtime);
        s.changed(node.0)
    }
    fn readlink(&self, node: NodeId) -> Reply<Vec<u8>> {
        Ok(self.lock().node(node.0)?.bytes.clone())
    }
    fn make(&self, parent: NodeId, name: &[u8], new: &NewNode<'_>) -> Reply<Attr> {
        self.lock().make(parent, name, new)
    }
    fn create(&self, parent: NodeId, name: &[u8], new: &NewNode<'_>, _how: OpenHow) -> Reply<(Attr, Handle)> {
        let attr = self.lock().make(parent, name, new)?;
        Ok((attr, Handle(attr.ino.0)))
    }
    fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Reply<Attr> {
        let mut s = self.lock();
        if s.find(parent, name).is_ok() {
            return no(libc::EEXIST);
        }
        s.enter(parent, name, node.0)?;
        s.node(node.0)?.attr.nlink += 1;
        s.changed(node.0)
    }
    fn unlink(&self, parent: NodeId, name: &[u8]) -> Reply<()> {
        let mut s = self.lock();
        let node = s.find(parent, name)?;
        s.leave(parent, name)?;
        s.drop_link(node)
    }
    fn rmdir(&self, parent: NodeId, name: &[u8]) -> Reply<()> {
        let mut s = self.lock();
        let node = s.find(parent, name)?;
        s.drop_link(node)?;
        s.leave(parent, name)
    }
    fn rename(&self, parent: NodeId, name: &[u8], to: NodeId, to_name: &[u8], mode: RenameMode) -> Reply<()> {
        let mut s = self.lock();
        let node = s.find(parent, name)?;
        let other = match s.find(to, to_name) {
            Ok(other) => Some(other),
            Err(Errno(libc::ENOENT)) => None,
            Err(e) => return Err(e),
        };
        if s.node(node)?.attr.kind == FileType::Dir && s.is_below(to.0, node) {
            return no(libc::EINVAL);
        }
        match (other, mode) {
            (Some(_), RenameMode::NoReplace) => return no(libc::EEXIST),
            (None, RenameMode::Exchange) => return no(libc::ENOENT),
            (Some(other), _) if other == node => return Ok(()),
            (Some(other), RenameMode::Replace) => {
                s.drop_link(other)?;
                s.leave(to, to_name)?;
            }
            (Some(other), RenameMode::Exchange) => {
                s.leave(to, to_name)?;
                s.leave(parent, name)?;
                s.enter(parent, name, other)?;
                s.enter(to, to_name, node)?;
                s.changed(other)?;
                return s.changed(node).map(|_| ());
            }
            (None, _) => {}
        }
        s.leave(parent, name)?;
        s.enter(to, to_name, node)?;
        s.changed(node).map(|_| ())
    }
    fn open(&self, node: NodeId, _how: OpenHow) -> Reply<Handle> {
        Ok(Handle(node.0))
    }
    fn release(&self, _handle: Handle) {}
    fn read(&self, handle: Handle, offset: u64, len: u32, send: &mut dyn FnMut(&[u8])) -> Reply<()> {
        let mut s = self.lock();
        let bytes = &s.node(handle.0)?.bytes;
        let from = bytes.len().min(offset as usize);
        send(&bytes[from..bytes.len().min(from + len as usize)]);
        Ok(())
    }
    fn write(&self, handle: Handle, offset: u64, bytes: &[u8], how: WriteHow) -> Reply<Written> {
        let mut s = self.lock();
        let n = s.node(handle.0)?;
        let end = offset as usize + bytes.len();
        if n.bytes.len() < end {
            n.bytes.resize(end, 0);
        }
        n.bytes[offset as usize..end].copy_from_slice(bytes);
        n.attr.mtime = Time::now();
        if how.kill_set_id {
            n.attr.perm &= if n.attr.perm & 0o10 != 0 { 0o1777 } else { 0o3777 };
        }
        s.changed(handle.0)?;
        Ok(if how.kill_set_id { Written::BytesAndMode } else { Written::Bytes })
    }
    fn list(&self, node: NodeId, cookie: u64, attrs: bool, add: &mut dyn FnMut(&Listed<'_>) -> bool) -> Reply<()> {
        let mut s = self.lock();
        let parent = s.node(node.0)?.parent;
        let mut found: Vec<(u64, Vec<u8>, u64)> =
            s.node(node.0)?.entries.iter().map(|(name, e)| (e.cookie, name.clone(), e.node)).collect();
        found.extend([(1, b".".to_vec(), node.0), (2, b"..".to_vec(), parent)]);
        found.sort();
        for (at, name, child) in found.into_iter().filter(|(at, ..)| *at > cookie) {
            let attr = s.node(child)?.attr;
            let listed =
                Listed { node: NodeId(child), kind: attr.kind, name: &name, cookie: at, attr: attrs.then_some(&attr) };
            if !add(&listed) {
                break;
            }
        }
        Ok(())
    }
    fn statfs(&self) -> Reply<StatFs> {
        let mut space = StatFs::default();
        (space.pages, space.free, space.available, space.inodes) = (1 << 20, 1 << 19, 1 << 18, 7);
        Ok(space)
    }
    fn xattr(&self, node: NodeId, name: &[u8]) -> Reply<Vec<u8>> {
        self.lock().node(node.0)?.xattrs.get(name).cloned().ok_or(Errno(libc::ENODATA))
    }
    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Reply<()> {
        let mut s = self.lock();
        let xattrs = &mut s.node(node.0)?.xattrs;
        match (xattrs.contains_key(name), mode) {
            (true, XattrMode::Create) => return no(libc::EEXIST),
            (false, XattrMode::Replace) => return no(libc::ENODATA),
            _ => xattrs.insert(name.to_vec(), value.to_vec()),
        };
        s.changed(node.0).map(|_| ())
    }
    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Reply<()> {
        let mut s = self.lock();
        s.node(node.0)?.xattrs.remove(name).ok_or(Errno(libc::ENODATA))?;
        s.changed(node.0).map(|_| ())
    }
    fn xattrs(&self, node: NodeId, _caller: Caller) -> Reply<Vec<Vec<u8>>> {
        Ok(self.lock().node(node.0)?.xattrs.keys().cloned().collect())
    }
    fn fallocate(&self, handle: Handle, offset: u64, len: u64, what: Fallocate, _: Caller) -> Reply<Written> {
        let mut s = self.lock();
        let bytes = &mut s.node(handle.0)?.bytes;
        let (from, end) = (offset as usize, (offset + len) as usize);
        let grow = matches!(what, Fallocate::Allocate { keep_size: false } | Fallocate::Zero { keep_size: false });
        if grow && bytes.len() < end {
            bytes.resize(end, 0);
        }
        let (from, end) = (from.min(bytes.len()), end.min(bytes.len()));
        if !matches!(what, Fallocate::Allocate { .. }) {
            bytes[from..end].fill(0);
        }
        s.changed(handle.0).map(|_| Written::Bytes)
    }
    fn seek(&self, handle: Handle, offset: u64, what: Seek) -> Reply<u64> {
        let size = self.lock().node(handle.0)?.attr.size;
        match what {
            _ if offset >= size => no(libc::ENXIO),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }
}
