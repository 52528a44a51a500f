//! A filesystem that does nothing, but for reads that a test answers.

use pagestone::StatFs;
use pagestone::inode::Attr;
use pagestone_mount::{FileSystem, Handle, NodeId, NullFs, OpenHow, Reply, WriteHow, Written};

/// What takes the bytes of a read.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(&[u8]);

/// Reads are answered by the function: of the filesystem, the handle, the offset and the length.
pub(crate) struct Reads<R>(pub(crate) NullFs, pub(crate) R);

impl<R> FileSystem for Reads<R>
where
    R: Fn(&NullFs, Handle, u64, u32, Sink<'_>) -> Reply<()> + Send + Sync + 'static,
{
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Reply<Attr> {
        self.0.lookup(parent, name)
    }
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Reply<Attr> {
        self.0.getattr(node, handle)
    }
    fn open(&self, node: NodeId, how: OpenHow) -> Reply<Handle> {
        self.0.open(node, how)
    }
    fn release(&self, handle: Handle) {
        self.0.release(handle);
    }
    fn read(&self, handle: Handle, offset: u64, len: u32, send: Sink<'_>) -> Reply<()> {
        self.1(&self.0, handle, offset, len, send)
    }
    fn write(&self, handle: Handle, offset: u64, bytes: &[u8], how: WriteHow) -> Reply<Written> {
        self.0.write(handle, offset, bytes, how)
    }
    fn statfs(&self) -> Reply<StatFs> {
        self.0.statfs()
    }
}
