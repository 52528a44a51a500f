//! A pool as a [`FileSystem`]: translates numbers, and asks the library.
//!
//! ```text
//!   NodeId 1  <->  the pool's root          NodeId n  <->  Ino n (generation included)
//!   Handle    ->   an open File             (this table and the unlinked nodes are the only state)
//! ```

mod data;
mod names;
mod privileges;

use std::sync::Arc;

use pagestone::inode::{Attr, Dir, NewNode, Node, RenameMode, SetAttr, XattrMode};
use pagestone::{Error, File, Ino, Pool, StatFs};

use crate::handle_table::HandleTable;
use crate::handles::Handles;
use crate::transport::{
    Caller, Errno, Fallocate, FileSystem, Handle, Listed, NodeId, OpenHow, Reply, Seek, WriteHow, Written,
};
use crate::unlinked_nodes::UnlinkedNodes;

/// A pool that is being mounted.
#[derive(Debug)]
pub struct PoolFs {
    pool: Pool,
    root: Ino,
    /// Shared with the requests that use them: a clone of a [`File`] would have a cursor of its own.
    handles: Handles<Arc<File>>,
    unlinked: UnlinkedNodes,
}

impl PoolFs {
    /// Serves `pool`. Its clone here goes when the mount ends.
    pub fn new(pool: Pool) -> PoolFs {
        let root = pool.root().ino();
        let (handles, unlinked) = (Handles::new(None), UnlinkedNodes::default());
        PoolFs { pool, root, handles, unlinked }
    }

    /// As [`PoolFs::new`]; the table remembers which files are open, for the process that serves the mount after this one.
    pub fn with_table(pool: Pool, table: HandleTable) -> PoolFs {
        PoolFs { handles: Handles::new(Some(table)), ..PoolFs::new(pool) }
    }

    /// Serves `pool`, which was opened with [`pagestone::OpenOptions::leave_orphans`], in place of a process that has
    /// died. What it had open is open.
    pub fn take_over(pool: Pool, table: HandleTable) -> PoolFs {
        let open = |ino| pool.node(Ino(ino)).and_then(|node| node.open()).ok().map(Arc::new);
        PoolFs { handles: Handles::restored(table, open), ..PoolFs::new(pool.clone()) }
    }

    fn ino(&self, node: NodeId) -> Ino {
        if node == NodeId::ROOT { self.root } else { Ino(node.0) }
    }

    fn node_id(&self, ino: Ino) -> NodeId {
        if ino == self.root { NodeId::ROOT } else { NodeId(ino.0) }
    }

    fn node(&self, node: NodeId) -> Result<Node, Error> {
        self.note_if_stale(self.pool.node(self.ino(node)))
    }

    /// Passes `answer` on, and notes that a node is stale.
    fn note_if_stale<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if matches!(answer, Err(Error::Stale(_))) {
            self.unlinked.note_stale();
        }
        answer
    }

    fn insert(&self, file: File, how: OpenHow) -> Reply<Handle> {
        let ino = file.ino().0;
        self.handles.insert(Arc::new(file), ino, how.request)
    }

    fn dir(&self, node: NodeId) -> Result<Dir, Error> {
        self.node(node)?.dir()
    }

    /// Attributes as they go out: numbered by node.
    fn outward(&self, mut attr: Attr) -> Attr {
        attr.ino = Ino(self.node_id(attr.ino).0);
        attr
    }

    /// Attributes of a node that may have lost its last name.
    fn attr(&self, node: NodeId) -> Reply<Attr> {
        match self.node(node).and_then(|n| n.attr()) {
            Ok(attr) => Ok(self.outward(attr)),
            Err(e @ (Error::Stale(_) | Error::NotFound)) => self.unlinked.get(node).ok_or(e.into()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Attributes of the namespaces that the kernel's filesystems keep. Access control lists and whatever else the system
/// would interpret (`system.`) are not among them.
fn is_kept(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."].iter().any(|space| name.starts_with(space))
}

const NOT_SUPPORTED: Errno = Errno(libc::EOPNOTSUPP);

impl FileSystem for PoolFs {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Reply<Attr> {
        match name {
            b"." => self.attr(parent),
            b".." => self.attr(self.node_id(self.dir(parent)?.parent()?)),
            name => Ok(self.outward(self.dir(parent)?.lookup(name)?)),
        }
    }

    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Reply<Attr> {
        match handle.and_then(|handle| self.handles.get(handle).ok()) {
            Some(file) => Ok(self.outward(file.attr()?)),
            None => self.attr(node),
        }
    }

    fn forget(&self, node: NodeId) {
        self.unlinked.forget(node);
    }

    fn setattr(&self, node: NodeId, _handle: Option<Handle>, change: &SetAttr, caller: Caller) -> Reply<Attr> {
        let mut with_perm = *change;
        with_perm.perm = self.perm_after(node, change, caller);
        let change = &with_perm;
        match self.node(node).and_then(|n| self.note_if_stale(n.set_attr(change))) {
            Ok(attr) => Ok(self.outward(attr)),
            Err(e @ Error::Stale(_)) if change.size.is_none() => self.unlinked.set_attr(node, change).ok_or(e.into()),
            Err(e) => Err(e.into()),
        }
    }

    fn readlink(&self, node: NodeId) -> Reply<Vec<u8>> {
        match self.node(node).and_then(|n| n.read_link()) {
            Err(e @ Error::Stale(_)) => self.unlinked.target(node).ok_or(e.into()),
            other => Ok(other?),
        }
    }

    fn make(&self, parent: NodeId, name: &[u8], new: &NewNode<'_>) -> Reply<Attr> {
        Ok(self.outward(self.dir(parent)?.create(name, new)?))
    }

    fn create(&self, parent: NodeId, name: &[u8], new: &NewNode<'_>, how: OpenHow) -> Reply<(Attr, Handle)> {
        self.create_file(parent, name, new, how)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Reply<Attr> {
        Ok(self.outward(self.dir(parent)?.link(name, self.ino(node))?))
    }

    fn unlink(&self, parent: NodeId, name: &[u8]) -> Reply<()> {
        let dir = self.dir(parent)?;
        self.unlink_name(&dir, name, || dir.unlink(name))
    }

    fn rmdir(&self, parent: NodeId, name: &[u8]) -> Reply<()> {
        let dir = self.dir(parent)?;
        self.unlink_name(&dir, name, || dir.rmdir(name))
    }

    fn rename(&self, parent: NodeId, name: &[u8], to: NodeId, to_name: &[u8], mode: RenameMode) -> Reply<()> {
        let (dir, to_dir) = (self.dir(parent)?, self.dir(to)?);
        let rename = || dir.rename(name, to_dir.ino(), to_name, mode);
        match mode {
            RenameMode::Replace => self.unlink_name(&to_dir, to_name, rename),
            RenameMode::NoReplace | RenameMode::Exchange => Ok(rename()?),
        }
    }

    fn rename_with_whiteout(&self, parent: NodeId, name: &[u8], to: NodeId, to_name: &[u8]) -> Reply<()> {
        let (dir, to_dir) = (self.dir(parent)?, self.dir(to)?);
        self.unlink_name(&to_dir, to_name, || dir.rename_with_whiteout(name, to_dir.ino(), to_name))
    }

    fn open(&self, node: NodeId, how: OpenHow) -> Reply<Handle> {
        if let Some(handle) = self.handles.opened_by(how.request) {
            return Ok(handle);
        }
        let file = self.note_if_stale(self.node(node)?.open())?;
        if how.truncate {
            file.set_len(0)?;
        }
        self.insert(file, how)
    }

    fn release(&self, handle: Handle) {
        drop(self.handles.remove(handle));
    }

    fn read(&self, handle: Handle, offset: u64, len: u32, send: &mut dyn FnMut(&[u8])) -> Reply<()> {
        data::read(&*self.handles.get(handle)?, offset, len, send)
    }

    fn write(&self, handle: Handle, offset: u64, bytes: &[u8], how: WriteHow) -> Reply<Written> {
        let file = self.handles.get(handle)?;
        let done = self.before_write(&file, how)?;
        file.write_all_at(bytes, offset)?;
        Ok(done)
    }

    fn fsync(&self, handle: Handle) -> Reply<()> {
        Ok(self.handles.get(handle)?.sync_all()?)
    }

    fn fsync_dir(&self, node: NodeId) -> Reply<()> {
        match self.node(node).and_then(|n| n.sync()) {
            // A directory that is gone has nothing left to make durable.
            Err(Error::Stale(_)) if self.unlinked.get(node).is_some() => Ok(()),
            other => Ok(other?),
        }
    }

    fn list(&self, node: NodeId, cookie: u64, attrs: bool, add: &mut dyn FnMut(&Listed<'_>) -> bool) -> Reply<()> {
        self.list_dir(node, cookie, attrs, add)
    }

    fn statfs(&self) -> Reply<StatFs> {
        Ok(self.pool.statfs())
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Reply<Vec<u8>> {
        if !is_kept(name) {
            return Err(NOT_SUPPORTED);
        }
        Ok(self.node(node)?.xattr(name)?)
    }

    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Reply<()> {
        if !is_kept(name) {
            return Err(NOT_SUPPORTED);
        }
        match self.node(node)?.set_xattr(name, value, mode) {
            // To a reader "too large" means its buffer; to a writer, the attribute.
            Err(Error::TooLarge) => Err(Errno(libc::E2BIG)),
            other => Ok(other?),
        }
    }

    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Reply<()> {
        if !is_kept(name) {
            return Err(NOT_SUPPORTED);
        }
        Ok(self.node(node)?.remove_xattr(name)?)
    }

    fn xattrs(&self, node: NodeId, caller: Caller) -> Reply<Vec<Vec<u8>>> {
        let mut names = self.node(node)?.xattrs()?;
        names.retain(|name| is_kept(name));
        if caller.uid != 0 {
            names.retain(|name| !name.starts_with(b"trusted."));
        }
        Ok(names)
    }

    fn fallocate(&self, handle: Handle, offset: u64, len: u64, what: Fallocate, caller: Caller) -> Reply<Written> {
        let file = self.handles.get(handle)?;
        let written = self.before_change(&file, caller)?;
        let range = offset..offset.saturating_add(len);
        match what {
            Fallocate::Allocate { keep_size: false } => file.allocate(range),
            Fallocate::Allocate { keep_size: true } => file.allocate_keep_size(range),
            Fallocate::Punch => file.punch_hole(range),
            Fallocate::Zero { keep_size: false } => file.zero_range(range),
            Fallocate::Zero { keep_size: true } => file.zero_range_keep_size(range),
        }?;
        Ok(written)
    }

    fn seek(&self, handle: Handle, offset: u64, what: Seek) -> Reply<u64> {
        let file = self.handles.get(handle)?;
        Ok(match what {
            Seek::Data => file.seek_data(offset),
            Seek::Hole => file.seek_hole(offset),
        }?)
    }

    fn copy(&self, from: (Handle, u64), to: (Handle, u64), len: u64, caller: Caller) -> Reply<(u32, Written)> {
        let (source, target) = (self.handles.get(from.0)?, self.handles.get(to.0)?);
        let written = self.before_change(&target, caller)?;
        Ok((data::copy(&source, from.1, &target, to.1, len)?, written))
    }
}
