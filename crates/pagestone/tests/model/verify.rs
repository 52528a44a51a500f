//! Compares everything: names, attributes, bytes, holes, extended attributes, counts.

use std::collections::BTreeMap;

use pagestone::{Error, FileType, Ino};

use crate::reference::{Id, PAGE};
use crate::world::World;

impl World {
    /// The attributes of one inode.
    pub(crate) fn same_attr(&self, id: Id) {
        let node = &self.tree.nodes[&id];
        let attr = self.pool().node(node.ino).expect("live").attr().expect("attr");
        let size = match node.kind {
            FileType::File => node.data.size,
            FileType::Dir => node.names.len() as u64 * 32,
            FileType::Symlink => node.target.len() as u64,
            _ => 0,
        };
        assert_eq!((attr.ino, attr.kind, attr.rdev), (node.ino, node.kind, node.rdev));
        assert_eq!((attr.perm, attr.uid, attr.gid), (node.perm, node.uid, node.gid));
        assert_eq!(attr.nlink, node.nlink, "links of {}", node.ino);
        assert_eq!(attr.size, size, "size of {}", node.ino);
        if let Some(t) = node.atime {
            assert_eq!(attr.atime, t);
        }
        if let Some(t) = node.mtime {
            assert_eq!(attr.mtime, t, "mtime of {}", node.ino);
        }
        if node.kind == FileType::File {
            let (least, most) = (node.data.pages.len(), node.data.pages.len() + node.data.maybe.len());
            assert!((least as u64..=most as u64).contains(&attr.pages), "pages of {}: {attr:?}", node.ino);
        }
    }

    /// Everything, from the root down and from the handles.
    pub(crate) fn verify(&self) {
        // What an earlier session left as orphans is given back beside.
        for _ in 0..2000 {
            if self.pool().statfs().inodes == self.tree.nodes.len() as u64 - 1 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let space = self.pool().statfs();
        assert_eq!(space.inodes, self.tree.nodes.len() as u64 - 1, "inodes");
        assert!(space.free <= space.pages && space.free <= self.free_at_start, "{space:?}");
        for (&id, node) in &self.tree.nodes {
            self.same_attr(id);
            self.same_xattrs(id);
            match node.kind {
                FileType::Dir => self.same_names(id),
                FileType::File => self.same_bytes(id),
                FileType::Symlink => {
                    assert_eq!(self.pool().node(node.ino).expect("live").read_link().expect("target"), node.target);
                }
                _ => {}
            }
        }
        for &ino in self.tree.dead.iter().rev().take(20) {
            if self.tree.nodes.values().all(|n| n.ino != ino) {
                let got = self.pool().node(ino).map(|n| n.ino());
                assert!(matches!(got, Err(Error::Stale(_))), "{ino} is gone, but: {got:?}");
            }
        }
    }

    fn same_names(&self, id: Id) {
        let node = &self.tree.nodes[&id];
        let dir = self.pool().node(node.ino).expect("live").dir().expect("a directory");
        assert_eq!(dir.parent().expect("parent"), self.ino(node.parent));
        let mut names: BTreeMap<Vec<u8>, (Ino, FileType)> = BTreeMap::new();
        for e in dir.entries() {
            let e = e.expect("listing");
            assert!(names.insert(e.name, (e.ino, e.kind)).is_none(), "a name stands there twice");
        }
        let want: BTreeMap<Vec<u8>, (Ino, FileType)> =
            node.names.iter().map(|(n, id)| (n.clone(), (self.ino(*id), self.tree.nodes[id].kind))).collect();
        assert_eq!(names, want);
        for (name, (ino, _)) in &want {
            assert_eq!(dir.lookup(name).expect("lookup").ino, *ino);
        }
    }

    fn same_xattrs(&self, id: Id) {
        let node = &self.tree.nodes[&id];
        let real = self.pool().node(node.ino).expect("live");
        let mut names = real.xattrs().expect("names");
        names.sort();
        assert_eq!(names, node.xattrs.keys().cloned().collect::<Vec<_>>());
        for (name, value) in &node.xattrs {
            assert!(real.xattr(name).expect("value") == *value, "another value");
        }
    }

    /// Whatever has storage is compared; whatever should have some must.
    fn same_bytes(&self, id: Id) {
        let node = &self.tree.nodes[&id];
        let data = &node.data;
        let handle = self.handles.iter().find(|(h, _)| *h == id).map(|(_, f)| f.clone());
        let file = handle.unwrap_or_else(|| self.pool().node(node.ino).expect("live").open().expect("opens"));
        let mut certain = 0;
        let mut end = 0;
        for x in file.extents(..).expect("extents") {
            assert!(x.offset >= end && x.len > 0, "extents in order");
            end = x.offset + x.len;
            for page in x.offset / PAGE..end.div_ceil(PAGE) {
                let known = data.pages.contains_key(&page);
                certain += u64::from(known);
                assert!(known || data.maybe.contains(&page), "page {page} has storage");
            }
            let mut got = vec![0xEE; x.len as usize];
            assert_eq!(file.read_at(&mut got, x.offset).expect("read"), got.len());
            assert!(got == data.read(x.offset, x.len), "other bytes in {x:?} of {}", node.ino);
        }
        let inside = data.pages.range(..data.size.div_ceil(PAGE)).count() as u64;
        assert_eq!(certain, inside, "pages without storage");
    }

    /// Deletes everything and proves that nothing is left.
    pub(crate) fn delete_everything(&mut self) {
        while !self.handles.is_empty() {
            self.close_handle(0);
        }
        self.empty(0);
        let xattrs: Vec<Vec<u8>> = self.tree.nodes[&0].xattrs.keys().cloned().collect();
        for name in xattrs {
            self.pool().root().node().remove_xattr(&name).expect("removes");
            self.tree.node(0).xattrs.remove(&name);
        }
        self.verify();
        let lanes = u64::from(self.pool().info().expect("info").lanes);
        let space = self.pool().statfs();
        // A lane keeps an inode page and the table of the frame it stands in; the root and the index of
        // orphans keep a node each, and the tables of the frames these lie in.
        let lost = self.free_at_start - space.free;
        assert!(lost <= 2 * lanes + 4, "{lost} pages are lost: {space:?}");
        let pool = self.pool.take().expect("open");
        pool.close().expect("close");
        self.place.check();
        self.pool = Some(self.place.open());
        self.verify();
    }

    fn empty(&mut self, dir: Id) {
        let names: Vec<(Vec<u8>, Id)> = self.tree.nodes[&dir].names.iter().map(|(n, &id)| (n.clone(), id)).collect();
        for (name, id) in names {
            let is_dir = self.tree.nodes[&id].kind == FileType::Dir;
            if is_dir {
                self.empty(id);
            }
            self.remove(dir, &name, is_dir);
        }
    }
}
