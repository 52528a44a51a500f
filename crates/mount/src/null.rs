//! A filesystem that does nothing but answer: what is left is the price of the transport.

use std::sync::OnceLock;

use pagestone::inode::{Attr, NewNode, SetAttr, Time};
use pagestone::{FileType, Ino, StatFs};

use crate::transport::{Caller, Errno, FileSystem, Handle, Listed, NodeId, OpenHow, Reply, WriteHow, Written};

const FILE: NodeId = NodeId(2);
const LARGEST_READ: usize = 1 << 20;

/// One directory with one file, `file`: reads come from a buffer that never changes, writes are
/// thrown away, every name that is created is that file.
#[derive(Debug)]
pub struct NullFs {
    size: u64,
    made: Time,
}

impl NullFs {
    /// With a file of `size` bytes.
    pub fn new(size: u64) -> NullFs {
        NullFs { size, made: Time::now() }
    }

    fn attr(&self, node: NodeId) -> Attr {
        let root = node == NodeId::ROOT;
        if root {
            return Attr::new(Ino(node.0), FileType::Dir, 0o755, self.made);
        }
        let mut attr = Attr::new(Ino(node.0), FileType::File, 0o644, self.made);
        attr.size = self.size;
        attr
    }
}

fn buffer() -> &'static [u8] {
    static BUFFER: OnceLock<Vec<u8>> = OnceLock::new();
    BUFFER.get_or_init(|| vec![0x5a; LARGEST_READ])
}

impl FileSystem for NullFs {
    fn lookup(&self, _parent: NodeId, name: &[u8]) -> Reply<Attr> {
        if name == b"file" { Ok(self.attr(FILE)) } else { Err(Errno(libc::ENOENT)) }
    }
    fn getattr(&self, node: NodeId, _handle: Option<Handle>) -> Reply<Attr> {
        Ok(self.attr(node))
    }
    fn setattr(&self, node: NodeId, _handle: Option<Handle>, _change: &SetAttr, _caller: Caller) -> Reply<Attr> {
        Ok(self.attr(node))
    }
    fn make(&self, _parent: NodeId, _name: &[u8], _new: &NewNode<'_>) -> Reply<Attr> {
        Ok(self.attr(FILE))
    }
    fn create(&self, _parent: NodeId, _name: &[u8], _new: &NewNode<'_>, _how: OpenHow) -> Reply<(Attr, Handle)> {
        Ok((self.attr(FILE), Handle(0)))
    }
    fn unlink(&self, _parent: NodeId, _name: &[u8]) -> Reply<()> {
        Ok(())
    }
    fn open(&self, _node: NodeId, _how: OpenHow) -> Reply<Handle> {
        Ok(Handle(0))
    }
    fn release(&self, _handle: Handle) {}
    fn read(&self, _handle: Handle, offset: u64, len: u32, send: &mut dyn FnMut(&[u8])) -> Reply<()> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = buffer();
        send(&bytes[..(len as usize).min(left).min(bytes.len())]);
        Ok(())
    }
    fn write(&self, _handle: Handle, _offset: u64, _bytes: &[u8], _how: WriteHow) -> Reply<Written> {
        Ok(Written::Bytes)
    }
    fn list(&self, _node: NodeId, cookie: u64, attrs: bool, add: &mut dyn FnMut(&Listed<'_>) -> bool) -> Reply<()> {
        if cookie == 0 {
            let attr = self.attr(FILE);
            let attr = attrs.then_some(&attr);
            add(&Listed { node: FILE, kind: FileType::File, name: b"file", cookie: 3, attr });
        }
        Ok(())
    }
    fn statfs(&self) -> Reply<StatFs> {
        let mut space = StatFs::default();
        (space.pages, space.free, space.available, space.inodes) = (1 << 20, 1 << 20, 1 << 20, 1);
        Ok(space)
    }
}
