//! Names: making files by name, listing directories, and what happens to a last name.

use pagestone::inode::{Attr, Dir, DirEntry, NewNode};
use pagestone::{Error, File, FileType};

use super::PoolFs;
use crate::transport::{Errno, Handle, Listed, NodeId, OpenHow, Reply};
use crate::unlinked_nodes::UnlinkedNode;

/// Entries that are taken out of a directory at a time: about as many as fit one reply.
const BATCH: usize = 128;

/// Where a listing stands after `.` and after `..`; entries of the pool begin at 3.
const AFTER_DOT: u64 = 1;
const AFTER_DOT_DOT: u64 = 2;

impl PoolFs {
    pub(super) fn create_file(
        &self,
        parent: NodeId,
        name: &[u8],
        new: &NewNode<'_>,
        how: OpenHow,
    ) -> Reply<(Attr, Handle)> {
        if let Some(handle) = self.handles.opened_by(how.request) {
            return Ok((self.outward(self.handles.get(handle)?.attr()?), handle));
        }
        let dir = self.dir(parent)?;
        let (attr, file) = match dir.create(name, new) {
            Ok(attr) => (attr, self.pool.node(attr.ino)?.open()?),
            // Somebody else was quicker; without O_EXCL, theirs will do.
            Err(Error::Exists) if !how.exclusive => self.open_existing(dir, name, how)?,
            Err(e) => return Err(e.into()),
        };
        Ok((self.outward(attr), self.insert(file, how)?))
    }

    fn open_existing(&self, dir: Dir, name: &[u8], how: OpenHow) -> Reply<(Attr, File)> {
        let attr = dir.lookup(name)?;
        if attr.kind != FileType::File {
            // The kernel looks the name up again and treats it as what it is.
            return Err(Errno(libc::ESTALE));
        }
        let file = self.note_if_stale(self.pool.node(attr.ino).and_then(|n| n.open()))?;
        if how.truncate {
            file.set_len(0)?;
        }
        Ok((file.attr()?, file))
    }

    /// Runs `change`, which removes a name. If it was the last one, the attributes are
    /// kept while the kernel refers to the node.
    pub(super) fn unlink_name(&self, dir: &Dir, name: &[u8], change: impl FnOnce() -> Result<(), Error>) -> Reply<()> {
        let last = dir.lookup(name).ok().filter(|attr| attr.nlink == 1 || attr.kind == FileType::Dir);
        let Some(attr) = last else { return Ok(change()?) };
        let node = self.node_id(attr.ino);
        // Before the change: the kernel may forget the node as soon as it is answered.
        self.unlinked.remember(node, self.unlinked_node(attr));
        change().map_err(|e| {
            self.unlinked.forget(node);
            e.into()
        })
    }

    /// What is kept of a node that is about to lose its last name.
    fn unlinked_node(&self, attr: Attr) -> UnlinkedNode {
        let node = self.pool.node(attr.ino);
        let file = match attr.kind {
            FileType::File if self.unlinked.recently_stale() => node.as_ref().ok().and_then(|n| n.open().ok()),
            _ => None,
        };
        let target = match attr.kind {
            FileType::Symlink => node.and_then(|n| n.read_link()).unwrap_or_default(),
            _ => Vec::new(),
        };
        UnlinkedNode::new(self.outward(attr), target, file)
    }

    pub(super) fn list_dir(
        &self,
        node: NodeId,
        mut cookie: u64,
        attrs: bool,
        add: &mut dyn FnMut(&Listed<'_>) -> bool,
    ) -> Reply<()> {
        let dir = match self.dir(node) {
            // Removed while somebody stands in it: there is nothing in it, not even itself.
            Err(Error::Stale(_)) if self.unlinked.get(node).is_some() => return Ok(()),
            other => other?,
        };
        if cookie < AFTER_DOT_DOT && !self.list_dots(&dir, cookie, attrs, add)? {
            return Ok(());
        }
        cookie = cookie.max(AFTER_DOT_DOT);
        loop {
            // 0 means the start to the library, whose own cookies are never 1 or 2.
            let batch = dir.read_entries(if cookie <= AFTER_DOT_DOT { 0 } else { cookie }, BATCH)?;
            for entry in &batch {
                cookie = entry.cookie;
                if !self.list_entry(entry, attrs, add) {
                    return Ok(());
                }
            }
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }

    fn list_dots(&self, dir: &Dir, cookie: u64, attrs: bool, add: &mut dyn FnMut(&Listed<'_>) -> bool) -> Reply<bool> {
        let dots = [(b".".as_slice(), AFTER_DOT, dir.ino()), (b"..".as_slice(), AFTER_DOT_DOT, dir.parent()?)];
        for (name, after, ino) in dots {
            if cookie >= after {
                continue;
            }
            let attr = if attrs { Some(self.attr(self.node_id(ino))?) } else { None };
            let listed =
                Listed { node: self.node_id(ino), kind: FileType::Dir, name, cookie: after, attr: attr.as_ref() };
            if !add(&listed) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn list_entry(&self, entry: &DirEntry, attrs: bool, add: &mut dyn FnMut(&Listed<'_>) -> bool) -> bool {
        let node = self.node_id(entry.ino);
        let attr = if attrs { self.attr(node).ok() } else { None };
        if attrs && attr.is_none() {
            return true; // removed since the batch was taken
        }
        add(&Listed { node, kind: entry.kind, name: &entry.name, cookie: entry.cookie, attr: attr.as_ref() })
    }
}
