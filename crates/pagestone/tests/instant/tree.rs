//! A small reference of a tree, and the same description of a tree in the pool.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use pagestone::{FileType, Ino, Pool};

/// The length of files that are mapped. Their time is not compared: a store through a mapping changes it some time later.
pub(crate) const MAPPED: usize = 16 << 10;

/// What the reference knows of one inode.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) kind: FileType,
    pub(crate) bytes: Vec<u8>,
    /// [`checksum`] of `bytes`.
    pub(crate) sum: u64,
    pub(crate) perm: u32,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) modified: SystemTime,
}

/// Names by path, without the root, and the inodes they lead to.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    pub(crate) names: BTreeMap<String, Ino>,
    pub(crate) nodes: BTreeMap<Ino, Node>,
}

pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3))
}

impl Tree {
    /// One line for each name, in order. The first name of an inode stands for it.
    pub(crate) fn describe(&self) -> String {
        let mut first: BTreeMap<Ino, &str> = BTreeMap::new();
        let mut text = String::new();
        for (path, ino) in &self.names {
            let node = &self.nodes[ino];
            let same = first.entry(*ino).or_insert(path);
            let is_mapped = node.kind == FileType::File && node.bytes.len() == MAPPED;
            let modified = (!is_mapped).then(|| node.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap());
            let (len, sum) = (node.bytes.len(), node.sum);
            writeln!(
                text,
                "{path} {:?} {:o} {len} {sum:x} {:?} {modified:?} as {same}",
                node.kind, node.perm, node.xattrs
            )
            .unwrap();
        }
        text
    }

    /// What lies beneath a directory of a pool.
    pub(crate) fn read(pool: &Pool, top: &str) -> Tree {
        let mut tree = Tree::default();
        for entry in pool.walk(top).unwrap() {
            let entry = entry.unwrap();
            let whole = entry.path().to_str().unwrap().to_owned();
            let path = whole.strip_prefix(top).unwrap_or(&whole).to_owned();
            if path.is_empty() || path.starts_with("/.snapshots") {
                continue;
            }
            tree.names.insert(path.clone(), entry.ino());
            let node = pool.node(entry.ino()).unwrap();
            let metadata = pool.symlink_metadata(&whole).unwrap();
            let bytes = match entry.file_type() {
                FileType::File => pool.read(&whole).unwrap(),
                FileType::Symlink => node.read_link().unwrap(),
                _ => Vec::new(),
            };
            let xattrs = node.xattrs().unwrap();
            let xattrs = xattrs.into_iter().map(|name| (name.clone(), node.xattr(&name).unwrap())).collect();
            tree.nodes.insert(
                entry.ino(),
                Node {
                    kind: entry.file_type(),
                    sum: checksum(&bytes),
                    bytes,
                    perm: metadata.permissions(),
                    xattrs,
                    modified: metadata.modified(),
                },
            );
        }
        tree
    }
}
