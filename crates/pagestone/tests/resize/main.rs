//! Pools that grow and shrink while they are used: nothing is lost, numbers stay, and `check` finds nothing.
//!
//! ```text
//!   |....files, clones, attributes, inodes all over the pool....|
//!   |..everything..|  shrunk: the same names, numbers, bytes
//!   |..everything..|............................................|  grown: numbers are not given out twice
//!
//!   same.rs    names, numbers, bytes          mapped.rs  mappings, pins, merges
//!   load.rs    threads that change the pool   media.rs   the file below
//! ```

#![allow(clippy::unwrap_used)] // tests end at the first surprise

mod load;
mod mapped;
mod media;
mod same;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use pagestone::check::{CheckOptions, check_on};
use pagestone::inode::{NewNode, XattrMode};
use pagestone::{CreateOptions, Error, File, FileType, Ino, OpenOptions, Pool};
use pmem::Memory;

const MIB: u64 = 1 << 20;

fn on_memory(len: u64) -> (Arc<Memory>, Pool) {
    let media = Arc::new(Memory::new(len).unwrap());
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    (media, pool)
}

fn reopened(media: &Arc<Memory>, pool: Pool) -> Pool {
    pool.close().unwrap();
    Pool::open_on(media.clone(), &OpenOptions::default()).unwrap()
}

fn new_file(pool: &Pool, name: &str) -> File {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
    open(pool, ino)
}

fn open(pool: &Pool, ino: Ino) -> File {
    pool.node(ino).unwrap().open().unwrap()
}

fn write(file: &File, offset: u64, bytes: &[u8]) {
    file.write_all_at(bytes, offset).unwrap();
}

fn bytes(file: &File) -> Vec<u8> {
    let mut all = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    all
}

/// Bytes that tell files, and offsets in them, apart.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((i / 512).wrapping_mul(0x9E37_79B9).wrapping_add(seed * 77 + i % 7) >> 3) as u8).collect()
}

fn shrink(pool: &Pool, size: u64) -> Result<(), Error> {
    pool.shrink(size, &mut |_, _| ControlFlow::Continue(()))
}

/// Whether all that the file has stored lies before this byte of the pool.
fn lie_before(file: &File, end: u64) -> bool {
    file.extents(..).unwrap().iter().all(|x| x.pool + x.len <= end)
}

/// Whether all of it lies behind.
fn lie_behind(file: &File, end: u64) -> bool {
    let lies = file.extents(..).unwrap();
    !lies.is_empty() && lies.iter().all(|x| x.pool >= end)
}

fn clean(media: &Arc<Memory>) {
    let report = check_on(media.clone(), &CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Everything that names lead to: number, kind, link count, bytes or target, attributes.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    ino: u64,
    nlink: u32,
    contents: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn look(pool: &Pool) -> BTreeMap<Vec<u8>, Seen> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![(pool.root().ino(), Vec::new())];
    while let Some((ino, path)) = todo.pop() {
        let node = pool.node(ino).unwrap();
        let attr = node.attr().unwrap();
        let contents = match attr.kind {
            FileType::File => bytes(&node.open().unwrap()),
            FileType::Symlink => node.read_link().unwrap(),
            _ => Vec::new(),
        };
        let xattrs =
            node.xattrs().unwrap().into_iter().map(|name| (name.clone(), node.xattr(&name).unwrap())).collect();
        if attr.kind == FileType::Dir {
            let entries = node.dir().unwrap().entries().map(Result::unwrap);
            todo.extend(entries.map(|entry| (entry.ino, [&path[..], b"/", &entry.name].concat())));
        }
        seen.insert(path, Seen { ino: ino.0, nlink: attr.nlink, contents, xattrs });
    }
    seen
}

/// Files of many sizes, directories, links, attributes, clones and a snapshot, all behind the first `ballast` bytes, which
/// are free again.
fn populate(pool: &Pool, rounds: u64, ballast: u64) {
    let root = pool.root();
    let (low, between) = (new_file(pool, "ballast"), new_file(pool, "between"));
    (0..ballast / MIB).for_each(|i| write(&low, i * MIB, &pattern(i, MIB as usize)));
    for round in 0..rounds {
        let dir = root.create(format!("dir {round}").as_bytes(), &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
        let dir = pool.node(dir).unwrap().dir().unwrap();
        for i in 0..40u64 {
            let ino = dir.create(format!("file {i}").as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
            let file = pool.node(ino).unwrap().open().unwrap();
            write(&file, (i % 3) * 5000, &pattern(round * 100 + i, 100 + (i * i * 37 % 20_000) as usize));
            if i % 5 == 0 {
                let value = pattern(i, 3000);
                pool.node(ino).unwrap().set_xattr(b"user.a", &value, XattrMode::Set).unwrap();
                dir.link(format!("link {i}").as_bytes(), ino).unwrap();
            }
            if i % 8 == 0 {
                let target = vec![b'x'; 50 + i as usize * 20];
                let node = NewNode::new(FileType::Symlink, 0o777).target(&target);
                dir.create(format!("symlink {i}").as_bytes(), &node).unwrap();
            }
        }
        let big = new_file(pool, &format!("big {round}"));
        write(&big, 0, &pattern(round, 3 * MIB as usize));
        // Many runs: a tree of them.
        let sparse = new_file(pool, &format!("sparse {round}"));
        (0..300u64).for_each(|i| write(&sparse, i * 3 * 4096, &pattern(i, 4096)));
        let clone = root.clone_file(format!("clone {round}").as_bytes(), big.ino()).unwrap().ino;
        write(&pool.node(clone).unwrap().open().unwrap(), MIB, &pattern(99, 9000));
        // Frames that are used in part.
        (0..700u64).for_each(|i| write(&between, (round * 700 + i) * 4096, &pattern(i, 4096)));
    }
    pool.snapshots().create(b"all").unwrap();
    write(&new_file(pool, "after"), 0, &pattern(5, 2 * MIB as usize));
    drop((low, between));
    pool.root().unlink(b"ballast").unwrap();
    pool.root().unlink(b"between").unwrap();
    pool.snapshots().delete(b"all").unwrap();
    pool.snapshots().create(b"again").unwrap();
}
