//! What a pool really holds: its whole tree, read through the library, and compared with models.

use std::collections::BTreeMap;

use pagestone::inode::{Attr, Node};
use pagestone::{Error, FileType, Ino, Pool};

use crate::model::{Body, Bytes, World};
use crate::ops::contents;

/// What an entry counts for in a directory's length.
const ENTRY: usize = 32;

/// One inode as it was found.
#[derive(Debug)]
pub(crate) struct Seen {
    attr: Attr,
    parent: Option<Ino>,
    names: BTreeMap<String, Ino>,
    bytes: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

impl Seen {
    /// The names in this directory.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.names.keys()
    }

    /// What a name in this directory means.
    pub(crate) fn child(&self, name: &str) -> Option<Ino> {
        self.names.get(name).copied()
    }
}

/// All of them.
pub(crate) type Tree = BTreeMap<Ino, Seen>;

/// Reads everything that can be reached from the root.
pub(crate) fn read(pool: &Pool) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut todo = vec![pool.root().ino()];
    while let Some(ino) = todo.pop() {
        if tree.contains_key(&ino) {
            continue;
        }
        let seen = pool.node(ino).and_then(|node| read_node(&node)).map_err(|e| format!("reading {ino}: {e}"))?;
        todo.extend(seen.names.values());
        tree.insert(ino, seen);
    }
    Ok(tree)
}

fn read_node(node: &Node) -> Result<Seen, Error> {
    let attr = node.attr()?;
    let mut names = BTreeMap::new();
    let (mut parent, mut bytes) = (None, Vec::new());
    match attr.kind {
        FileType::Dir => {
            let dir = node.dir()?;
            parent = Some(dir.parent()?);
            for entry in dir.entries() {
                let entry = entry?;
                let old = names.insert(String::from_utf8_lossy(&entry.name).into_owned(), entry.ino);
                assert!(old.is_none(), "a name is listed twice");
            }
        }
        FileType::File => bytes = contents(&node.open()?)?,
        FileType::Symlink => bytes = node.read_link()?,
        _ => {}
    }
    let mut xattrs = BTreeMap::new();
    for name in node.xattrs()? {
        let value = node.xattr(&name)?;
        xattrs.insert(String::from_utf8_lossy(&name).into_owned(), value);
    }
    for (name, ino) in &names {
        assert_eq!(node.dir()?.lookup(name.as_bytes())?.ino, *ino, "a listed name is found");
    }
    Ok(Seen { attr, parent, names, bytes, xattrs })
}

/// The worlds whose bytes may show in data that was overwritten in place.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    /// All worlds of the run.
    pub(crate) worlds: &'a [World],
    /// The first whose data must be durable.
    pub(crate) from: usize,
    /// The last that may have begun.
    pub(crate) to: usize,
}

/// Whether the tree below `root` is world `k`, but for data in place that another world of the span explains.
pub(crate) fn compare(tree: &Tree, root: Ino, k: usize, span: Span<'_>) -> Result<(), String> {
    let world = &span.worlds[k];
    let mut ids: BTreeMap<Ino, u32> = BTreeMap::new();
    let above = tree.get(&root).and_then(|seen| seen.parent).ok_or("no directory")?;
    let mut todo = vec![(root, above, 0, String::new())];
    while let Some((ino, parent, id, path)) = todo.pop() {
        match ids.get(&ino) {
            Some(known) if *known == id => continue,
            Some(_) => return Err(format!("/{path}: a link to another file than it should be")),
            None => ids.insert(ino, id),
        };
        if ids.values().filter(|known| **known == id).count() > 1 {
            return Err(format!("/{path}: should be a link to a file that has another name, too"));
        }
        let seen = &tree[&ino];
        compare_node(seen, world, id, k, span).map_err(|e| format!("/{path}: {e}"))?;
        if let Body::Dir(names) = &world.nodes[&id].body {
            if seen.parent != Some(parent) {
                return Err(format!("/{path}: says its parent is {:?}, not {parent}", seen.parent));
            }
            let (there, wanted): (Vec<_>, Vec<_>) = (seen.names.keys().collect(), names.keys().collect());
            if there != wanted {
                return Err(format!("/{path}: holds {there:?}, not {wanted:?}"));
            }
            todo.extend(seen.names.iter().map(|(name, child)| (*child, ino, names[name], format!("{path}/{name}"))));
        }
    }
    Ok(())
}

fn compare_node(seen: &Seen, world: &World, id: u32, k: usize, span: Span<'_>) -> Result<(), String> {
    let node = &world.nodes[&id];
    let (kind, size, links) = match &node.body {
        Body::Dir(names) => {
            let dirs = names.values().filter(|child| matches!(world.nodes[child].body, Body::Dir(_))).count();
            (FileType::Dir, names.len() * ENTRY, 2 + dirs as u32)
        }
        Body::File(file) => (FileType::File, file.bytes.len(), world.links(id)),
        Body::Symlink(target) => (FileType::Symlink, target.len(), world.links(id)),
    };
    let attr = &seen.attr;
    let (there, wanted) = ((attr.kind, attr.perm, attr.uid, attr.nlink), (kind, node.perm, node.uid, links));
    if there != wanted {
        return Err(format!("(kind, mode, owner, links) are {there:?}, not {wanted:?}"));
    }
    if attr.size != size as u64 {
        return Err(format!("{} bytes long, not {size}", attr.size));
    }
    if seen.xattrs != node.xattrs {
        let lens = |xattrs: &BTreeMap<String, Vec<u8>>| {
            xattrs
                .iter()
                .map(|(name, value)| format!("{name}: {} of {:?}", value.len(), value.first()))
                .collect::<Vec<_>>()
        };
        return Err(format!("its attributes are {:?}, not {:?}", lens(&seen.xattrs), lens(&node.xattrs)));
    }
    match &node.body {
        Body::Symlink(target) if *target != seen.bytes => Err("another target".into()),
        Body::File(file) if *file.bytes != seen.bytes => compare_bytes(&seen.bytes, file, k, span),
        _ => Ok(()),
    }
}

/// Bytes that differ must be those of another world of the span, on the same storage: that of the file, or of
/// one that it was cloned from.
fn compare_bytes(seen: &[u8], file: &Bytes, k: usize, span: Span<'_>) -> Result<(), String> {
    let versions: Vec<&Bytes> = (span.from.min(k)..=span.to)
        .flat_map(|i| span.worlds[i].nodes.values())
        .filter_map(|node| if let Body::File(file) = &node.body { Some(file) } else { None })
        .collect();
    for (at, byte) in seen.iter().enumerate() {
        if file.bytes[at] == *byte {
            continue;
        }
        let page = &(at as u64 / 4096);
        let explains = |other: &&Bytes| {
            file.born.contains_key(page)
                && other.born.get(page) == file.born.get(page)
                // What lay behind an end may have been zeroed before the length passed it again.
                && other.bytes.get(at).unwrap_or(&0) == byte
        };
        if !versions.iter().any(explains) {
            let storage = if file.born.contains_key(page) { "storage" } else { "a hole" };
            return Err(format!("byte {at} (in {storage}) is {byte:#x}, not {:#x}", file.bytes[at]));
        }
    }
    Ok(())
}

/// Takes everything away that can be reached from the root.
pub(crate) fn empty(pool: &Pool) -> Result<(), Error> {
    empty_dir(pool, pool.root().ino())
}

fn empty_dir(pool: &Pool, ino: Ino) -> Result<(), Error> {
    let dir = pool.node(ino)?.dir()?;
    for entry in dir.entries() {
        let entry = entry?;
        if entry.kind == FileType::Dir {
            empty_dir(pool, entry.ino)?;
            dir.rmdir(&entry.name)?;
        } else {
            dir.unlink(&entry.name)?;
        }
    }
    Ok(())
}
