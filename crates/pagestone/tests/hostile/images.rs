//! The sound images that are damaged: small pools of different contents.

use std::sync::Arc;

use pagestone::inode::{Dir, NewNode, XattrMode};
use pagestone::{CreateOptions, File, FileType, Ino, OpenOptions, Pool};
use pmem::Memory;

use crate::format::{SALT, SUPERBLOCK, seal_superblock};

/// An image and what it is called.
pub(crate) struct Image {
    pub(crate) name: &'static str,
    pub(crate) bytes: Arc<Vec<u8>>,
    /// Closed, so that its journal says nothing any more.
    pub(crate) closed: bool,
}

pub(crate) fn all() -> Vec<Image> {
    vec![
        image("many files", 8 << 20, true, many_files),
        image("deep directories", 8 << 20, true, deep_directories),
        image("frames", 16 << 20, true, frames),
        image("attributes", 8 << 20, true, attributes),
        image("clones", 12 << 20, true, clones),
        image("backings", 8 << 20, true, backings),
        image("shrunk", 24 << 20, true, |pool| shrunk(pool, 14 << 20)),
        image("journal of a shrunk pool", 24 << 20, false, |pool| {
            shrunk(pool, 16 << 20);
            backings(pool);
            journal_and_orphans(pool);
        }),
        image("journal and orphans", 10 << 20, false, journal_and_orphans),
        image("journal of everything", 12 << 20, false, |pool| {
            many_files(pool);
            attributes(pool);
            frames(pool);
            clones(pool);
            journal_and_orphans(pool);
        }),
    ]
}

/// `closed`: else the pool is left as a crash would leave it.
fn image(name: &'static str, size: u64, closed: bool, fill: impl FnOnce(&Pool)) -> Image {
    let media = Arc::new(Memory::new(size).expect("memory"));
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).expect("create");
    pool.close().expect("close");
    // The same identity, hash seed and salt in every run, so that trees look the same.
    let mut sb = vec![0; SUPERBLOCK];
    assert!(media.bytes().read(0, &mut sb));
    sb[24..40].copy_from_slice(b"a hostile image!");
    sb[80..88].copy_from_slice(&0x0123_4567_89AB_CDEFu64.to_le_bytes());
    sb[SALT].copy_from_slice(b"pinchful");
    seal_superblock(&mut sb);
    assert!(media.bytes().write(0, &sb) && media.bytes().write(255 * 4096, &sb));
    let pool = Pool::open_on(media.clone(), &OpenOptions::default()).expect("open");
    fill(&pool);
    let size = pool.info().expect("info").size;
    if closed {
        pool.close().expect("close");
    } else {
        std::mem::forget(pool);
    }
    // A pool that was shrunk is shorter than what it lies on.
    let mut bytes = vec![0; size as usize];
    assert!(media.bytes().read(0, &mut bytes));
    Image { name, bytes: Arc::new(bytes), closed }
}

fn make(dir: &Dir, name: &str, kind: FileType) -> Ino {
    let target = if kind == FileType::Symlink { name.repeat(30) } else { String::new() };
    let node = NewNode::new(kind, 0o644).target(target.as_bytes());
    dir.create(name.as_bytes(), &node).expect("create").ino
}

fn open(pool: &Pool, ino: Ino) -> File {
    pool.node(ino).expect("node").open().expect("open")
}

fn many_files(pool: &Pool) {
    for i in 0..260 {
        let kind = if i % 9 == 0 { FileType::Symlink } else { FileType::File };
        let ino = make(&pool.root(), &format!("file number {i}"), kind);
        if kind == FileType::File && i % 4 == 0 {
            open(pool, ino).write_all_at(&vec![i as u8; i * 20], 0).expect("write");
        }
    }
    for i in (0..260).step_by(3) {
        pool.root().unlink(format!("file number {i}").as_bytes()).expect("unlink");
    }
}

fn deep_directories(pool: &Pool) {
    let mut dir = pool.root();
    for depth in 0..40 {
        let file = make(&dir, "file", FileType::File);
        dir.link(b"second name", file).expect("link");
        let ino = make(&dir, &format!("{depth}"), FileType::Dir);
        dir = pool.node(ino).expect("node").dir().expect("dir");
    }
    make(&dir, "fifo", FileType::Fifo);
}

fn frames(pool: &Pool) {
    let whole = open(pool, make(&pool.root(), "whole", FileType::File));
    whole.write_all_at(&vec![7; 4 << 20], 0).expect("write");
    whole.punch_hole(3 << 20..(3 << 20) + 8192).expect("punch");
    let runs = open(pool, make(&pool.root(), "runs", FileType::File));
    for i in 0..220 {
        runs.write_all_at(&[i as u8; 100], i * 8192).expect("write");
    }
    runs.write_all_at(b"far away", 1 << 40).expect("write");
    let few = open(pool, make(&pool.root(), "few", FileType::File));
    for i in 0..4 {
        few.write_all_at(&[3; 4000], i * 20_000).expect("write");
    }
    few.allocate_keep_size(100_000..150_000).expect("allocate");
}

/// A chain of bases with voids, runs in trees and a whole frame, and files on every level.
fn clones(pool: &Pool) {
    let file = open(pool, make(&pool.root(), "original", FileType::File));
    file.write_all_at(&vec![1; 2 << 20], 0).expect("write");
    for i in 0..8 {
        pool.root().clone_file(format!("clone {i}").as_bytes(), file.ino()).expect("clone");
        file.write_all_at(&vec![i as u8; 9000], i * 100_000).expect("write");
        file.punch_hole(i * 100_000 + 50_000..(i * 100_000 + 50_000).saturating_add(20_000)).expect("punch");
        if i % 4 == 1 {
            pool.root().unlink(format!("clone {}", i - 1).as_bytes()).expect("unlink");
        }
    }
    let deep = pool.root().lookup(b"clone 5").expect("lookup").ino;
    let deep = open(pool, deep);
    for i in 0..30 {
        deep.write_all_at(&[2; 100], i * 40_960).expect("write");
    }
    deep.set_len(1_500_000).expect("truncate");
}

fn attributes(pool: &Pool) {
    let ino = make(&pool.root(), "attributes", FileType::File);
    let node = pool.node(ino).expect("node");
    for i in 0..60 {
        node.set_xattr(format!("user.{i}").as_bytes(), &[i; 40], XattrMode::Set).expect("set");
    }
    node.set_xattr(b"user.large", &vec![1; 32 << 10], XattrMode::Set).expect("set");
    node.set_xattr(b"user.medium", &vec![2; 3000], XattrMode::Set).expect("set");
    let dir = make(&pool.root(), "with attributes", FileType::Dir);
    pool.node(dir).expect("node").set_xattr(b"security.x", b"y", XattrMode::Set).expect("set");
}

/// Files whose absent pages a backing answers, with voids, storage of their own, and clones.
fn backings(pool: &Pool) {
    for (name, number) in [("noop", 1), ("pattern", 2)] {
        let file = open(pool, make(&pool.root(), name, FileType::File));
        file.set_len(400_000).expect("set_len");
        file.set_backing(number).expect("set_backing");
        file.write_all_at(&[1; 5000], 30_000).expect("write");
        file.punch_hole(100_000..150_000).expect("punch");
        pool.root().clone_file(format!("clone of {name}").as_bytes(), file.ino()).expect("clone");
        for i in 0..10 {
            file.write_all_at(&[2; 10], 160_000 + i * 20_000).expect("write");
        }
        file.set_len(390_000).expect("set_len");
    }
}

/// Inodes, trees and bases that lay behind the new end: the forwarding table says where the inodes are.
fn shrunk(pool: &Pool, size: u64) {
    let ballast = open(pool, make(&pool.root(), "ballast", FileType::File));
    // Taken out of split frames: what is made from here on lies behind.
    for i in 0..12 {
        ballast.write_atomic(&[(i << 20, &[1; 1 << 20][..])]).expect("write");
    }
    many_files(pool);
    attributes(pool);
    clones(pool);
    pool.root().unlink(b"ballast").expect("unlink");
    drop(ballast);
    pool.shrink(size, &mut |_, _| std::ops::ControlFlow::Continue(())).expect("shrink");
}

/// Records in both lanes, and files that nobody names but somebody has open.
fn journal_and_orphans(pool: &Pool) {
    let started = std::sync::Barrier::new(4);
    std::thread::scope(|s| {
        for t in 0..4 {
            let started = &started;
            s.spawn(move || {
                started.wait();
                for i in 0..12 {
                    let ino = make(&pool.root(), &format!("thread {t} file {i}"), FileType::File);
                    open(pool, ino).write_all_at(&vec![t; 5000], 0).expect("write");
                }
            });
        }
    });
    for (name, len) in [("small orphan", 100), ("large orphan", 300_000)] {
        let file = open(pool, make(&pool.root(), name, FileType::File));
        for i in 0..8 {
            file.write_all_at(&vec![9; len / 8], i * 16384).expect("write");
        }
        pool.root().unlink(name.as_bytes()).expect("unlink");
        // Held for ever: the image is taken as if the process had been killed.
        std::mem::forget(file);
    }
}
