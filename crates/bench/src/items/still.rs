//! A filesystem that only moves bytes: the minimum cost of a mount, if reads come from as much memory as the file
//! has and writes go to it.

use anyhow::{Result, ensure};
use pagestone::StatFs;
use pagestone::inode::{Attr, NewNode, SetAttr};
use pagestone_mount::{Caller, FileSystem, Handle, NodeId, NullFs, OpenHow, Reply, WriteHow, Written};
use pmem::Memory;

/// Names and attributes are those of [`NullFs`].
pub(super) struct Still {
    null: NullFs,
    read: Vec<u8>,
    written: Memory,
}

impl Still {
    /// With one file of `len` bytes, all of it in memory.
    pub(super) fn new(len: u64) -> Result<Still> {
        let read = vec![0x5a; len as usize];
        let written = Memory::new(len)?;
        ensure!(written.bytes().write(0, &read), "the memory has the file's length");
        Ok(Still { null: NullFs::new(len), read, written })
    }
}

impl FileSystem for Still {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Reply<Attr> {
        self.null.lookup(parent, name)
    }
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Reply<Attr> {
        self.null.getattr(node, handle)
    }
    fn setattr(&self, node: NodeId, handle: Option<Handle>, change: &SetAttr, caller: Caller) -> Reply<Attr> {
        self.null.setattr(node, handle, change, caller)
    }
    fn create(&self, parent: NodeId, name: &[u8], new: &NewNode<'_>, how: OpenHow) -> Reply<(Attr, Handle)> {
        self.null.create(parent, name, new, how)
    }
    fn unlink(&self, parent: NodeId, name: &[u8]) -> Reply<()> {
        self.null.unlink(parent, name)
    }
    fn open(&self, node: NodeId, how: OpenHow) -> Reply<Handle> {
        self.null.open(node, how)
    }
    fn release(&self, handle: Handle) {
        self.null.release(handle);
    }
    fn read(&self, _handle: Handle, offset: u64, len: u32, send: &mut dyn FnMut(&[u8])) -> Reply<()> {
        let rest = &self.read[self.read.len().min(offset as usize)..];
        send(&rest[..rest.len().min(len as usize)]);
        Ok(())
    }
    fn write(&self, _handle: Handle, offset: u64, bytes: &[u8], _how: WriteHow) -> Reply<Written> {
        // Bytes beyond the end are discarded.
        let _ = self.written.bytes().write(offset, bytes);
        Ok(Written::Bytes)
    }
    fn statfs(&self) -> Reply<StatFs> {
        self.null.statfs()
    }
}
