//! What is done with an opened hostile image: everything is looked at, and, if it may be written,
//! much is changed. Any answer will do, as long as it is one.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use pagestone::inode::{Dir, NewNode, RenameMode, SetAttr, XattrMode};
use pagestone::{Error, FileType, Ino, Piece, Pool};
use rand::Rng;
use rand::rngs::StdRng;

use crate::stage::Tracked;

/// What a look found.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) errors: Vec<Error>,
    /// Of everything that was read, access times aside.
    pub(crate) fingerprint: u64,
    pub(crate) inodes: Vec<(Ino, FileType)>,
}

struct Look<'a> {
    pool: &'a Pool,
    media: &'a Tracked,
    seen: Seen,
    hash: DefaultHasher,
    known: HashSet<Ino>,
    bytes_left: u64,
}

/// Inodes that are looked at in one image; a hostile one may seem to hold more.
const MOST: usize = 3000;

pub(crate) fn look(pool: &Pool, media: &Tracked) -> Seen {
    let mut look = Look {
        pool,
        media,
        seen: Seen::default(),
        hash: DefaultHasher::new(),
        known: HashSet::new(),
        bytes_left: 24 << 20,
    };
    let root = pool.root().ino();
    look.seen.inodes.push((root, FileType::Dir));
    let mut at = 0;
    while at < look.seen.inodes.len().min(MOST) {
        let (ino, kind) = look.seen.inodes[at];
        look.inode(ino, kind);
        at += 1;
    }
    let _ = (pool.statfs(), pool.info().map(drop), pool.resolve(b"/0/1/2/file").map(drop));
    look.seen.fingerprint = look.hash.finish();
    look.seen
}

impl Look<'_> {
    fn take<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) => {
                let _ = (e.to_string(), e.errno());
                self.seen.errors.push(e);
                None
            }
        }
    }

    fn inode(&mut self, ino: Ino, kind: FileType) {
        let Some(node) = self.take(self.pool.node(ino)) else { return };
        if let Some(attr) = self.take(node.attr()) {
            format!("{attr:?}").hash(&mut self.hash);
        }
        for name in self.take(node.xattrs()).unwrap_or_default().iter().take(300) {
            let value = self.take(node.xattr(name));
            (name, value).hash(&mut self.hash);
        }
        match kind {
            FileType::Dir => self.directory(ino),
            FileType::File => self.file(ino),
            FileType::Symlink => self.take(node.read_link()).hash(&mut self.hash),
            _ => {}
        }
    }

    fn directory(&mut self, ino: Ino) {
        let Some(node) = self.take(self.pool.node(ino)) else { return };
        let Some(dir) = self.take(node.dir()) else { return };
        let listed: Vec<_> = dir.entries().take(MOST).collect();
        let entries: Vec<_> = listed.into_iter().filter_map(|entry| self.take(entry)).collect();
        self.take(dir.parent()).hash(&mut self.hash);
        if ino == self.pool.root().ino() {
            for entry in dir.walk() {
                self.take(entry).map(|entry| (entry.ino(), entry.depth())).hash(&mut self.hash);
            }
        }
        for entry in entries {
            (entry.ino, entry.kind, &entry.name).hash(&mut self.hash);
            self.take(dir.lookup(&entry.name)).map(|a| a.ino).hash(&mut self.hash);
            if self.known.insert(entry.ino) {
                self.seen.inodes.push((entry.ino, entry.kind));
            }
        }
    }

    fn file(&mut self, ino: Ino) {
        let Some(node) = self.take(self.pool.node(ino)) else { return };
        let Some(file) = self.take(node.open()) else { return };
        let extents = self.take(file.extents(..)).unwrap_or_default();
        let mut buf = Vec::new();
        for x in extents.iter().take(MOST) {
            (x.offset, x.len).hash(&mut self.hash);
            let len = x.len.min(self.bytes_left);
            self.bytes_left -= len;
            buf.resize(len as usize, 0);
            if self.take(file.read_at(&mut buf, x.offset)).is_some() {
                // Contents are many: the quick sum first.
                crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &buf).hash(&mut self.hash);
            }
        }
        let media = self.media;
        let inside = file.pieces(0..1 << 50).map(|pieces| {
            let mut at = 0;
            pieces.iter().all(|p| {
                let from = at;
                at += p.len() as u64;
                // What a backing answers is a copy, and no extent is there.
                let absent = || extents.iter().all(|x| x.offset >= at || x.offset.saturating_add(x.len) <= from);
                match *p {
                    Piece::Storage { addr, len } => media.holds(addr, len) || absent(),
                    Piece::Hole { .. } => true,
                }
            })
        });
        assert!(self.take(inside) != Some(false), "a piece lies outside the pool");
        let mut at = 0;
        for _ in 0..50 {
            let Ok(data) = file.seek_data(at) else { break };
            let Ok(hole) = file.seek_hole(data) else { break };
            assert!(data >= at && hole >= data);
            at = hole.max(at + 1);
        }
    }
}

/// Changes of every kind, mostly to what is there.
pub(crate) fn abuse(pool: &Pool, seen: &Seen, rng: &mut StdRng, rounds: u32) {
    for round in 0..rounds {
        let (ino, kind) = seen.inodes[rng.random_range(0..seen.inodes.len())];
        let _ = match kind {
            FileType::Dir => abuse_dir(pool, ino, seen, rng, round),
            FileType::File => abuse_file(pool, ino, rng),
            _ => pool.node(ino).and_then(|n| n.set_attr(&SetAttr::new().perm(0))).map(drop),
        };
        if rng.random_bool(0.2) {
            let _ = abuse_xattrs(pool, ino, rng);
        }
    }
    let _ = pool.sync();
}

fn some_name(dir: &Dir, rng: &mut StdRng) -> Vec<u8> {
    let most = rng.random_range(0..20).max(1);
    let last = dir.entries().take(most).filter_map(Result::ok).last();
    last.map_or_else(|| b"nothing".to_vec(), |entry| entry.name)
}

fn abuse_dir(pool: &Pool, ino: Ino, seen: &Seen, rng: &mut StdRng, round: u32) -> Result<(), Error> {
    let dir = pool.node(ino)?.dir()?;
    let name = some_name(&dir, rng);
    let fresh = format!("new {round} {}", "x".repeat(rng.random_range(0..200))).into_bytes();
    let (other, _) = seen.inodes[rng.random_range(0..seen.inodes.len())];
    match rng.random_range(0..10) {
        9 => dir.clone_file(&fresh, other).map(drop),
        0 | 1 => {
            let attr = dir.create(&fresh, &NewNode::new(FileType::File, 0o600))?;
            pool.node(attr.ino)?.open()?.write_all_at(&[1; 20_000], rng.random_range(0..9000))
        }
        2 => dir.create(&fresh, &NewNode::new(FileType::Dir, 0o700)).map(drop),
        3 => dir.create(&fresh, &NewNode::new(FileType::Symlink, 0).target(&[b't'; 500])).map(drop),
        4 => dir.link(&fresh, other).map(drop),
        5 => dir.unlink(&name),
        6 => dir.rmdir(&name),
        7 => dir.rename(&name, other, &fresh, RenameMode::Replace),
        _ => {
            let to = pool.node(other)?.dir()?;
            let onto = some_name(&to, rng);
            let mode = if rng.random_bool(0.5) { RenameMode::Exchange } else { RenameMode::Replace };
            dir.rename(&name, other, &onto, mode)
        }
    }
}

fn abuse_file(pool: &Pool, ino: Ino, rng: &mut StdRng) -> Result<(), Error> {
    let file = pool.node(ino)?.open()?;
    let at = match rng.random_range(0..4) {
        0 => rng.random_range(0..100_000),
        1 => file.attr()?.size,
        2 => rng.random_range(0..300) * 4096,
        _ => rng.random_range(0..5 << 20),
    };
    let len = rng.random_range(1..200_000);
    match rng.random_range(0..8) {
        0 | 1 => file.write_all_at(&vec![2; len as usize], at),
        2 => file.append(&[3; 5000]).map(drop),
        3 => file.set_len(at),
        4 if rng.random() => file.allocate(at..at.saturating_add(len)),
        4 => file.allocate_keep_size(at..at.saturating_add(len)),
        5 => file.punch_hole(at..at.saturating_add(len)),
        6 if rng.random() => file.zero_range(at..at.saturating_add(len)),
        6 => file.zero_range_keep_size(at..at.saturating_add(len)),
        _ => file.punch_hole(0..i64::MAX as u64 - 8192),
    }
}

fn abuse_xattrs(pool: &Pool, ino: Ino, rng: &mut StdRng) -> Result<(), Error> {
    let node = pool.node(ino)?;
    let names = node.xattrs()?;
    if let Some(name) = names.first().filter(|_| rng.random_bool(0.4)) {
        return node.remove_xattr(name);
    }
    let name = format!("user.{}", rng.random_range(0..70));
    node.set_xattr(name.as_bytes(), &vec![4; rng.random_range(0..3000)], XattrMode::Set)
}
