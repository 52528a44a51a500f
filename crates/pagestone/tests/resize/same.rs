//! What a pool holds is the same after it has grown or shrunk, and space and numbers are used again.

use std::collections::HashSet;
use std::ops::ControlFlow;

use pagestone::inode::NewNode;
use pagestone::{Error, FileType, Ino, OpenOptions, Pool};

use crate::{MIB, bytes, clean, look, new_file, on_memory, pattern, populate, reopened, shrink, write};

/// Fails if the part of the last run that lies before the end is taken for no run.
#[test]
fn the_part_of_a_run_behind_the_new_end_is_moved() {
    let (media, pool) = on_memory(64 * MIB);
    let (gone, kept) = (new_file(&pool, "gone"), new_file(&pool, "kept"));
    let contents = pattern(2, 24 << 20);
    write(&gone, 0, &pattern(1, 24 << 20));
    write(&kept, 0, &contents);
    let lies = kept.extents(..).unwrap();
    assert!(lies.iter().any(|x| x.pool < 40 * MIB && x.pool + x.len > 40 * MIB), "{lies:?}");
    drop(gone);
    pool.remove_file("/gone").unwrap();
    pool.checkpoint().unwrap();
    shrink(&pool, 40 * MIB).unwrap();
    assert!(bytes(&kept) == contents);
    drop(kept);
    pool.close().unwrap();
    clean(&media);
}

#[test]
fn a_pool_that_has_grown_takes_more_and_opens_with_its_new_size() {
    let (media, pool) = on_memory(16 * MIB);
    let file = new_file(&pool, "f");
    let mut written = 0;
    while file.write_all_at(&pattern(1, MIB as usize), written).is_ok() {
        written += MIB;
    }
    assert!(written < 16 * MIB);
    let before = pool.statfs();
    pool.grow(64 * MIB).unwrap();
    assert_eq!(pool.info().unwrap().size, 64 * MIB);
    assert_eq!(pool.statfs().pages - before.pages, 48 * MIB / 4096);
    assert_eq!(pool.statfs().free - before.free, 48 * MIB / 4096);
    write(&file, written, &pattern(2, 30 << 20));
    assert!(matches!(pool.grow(32 * MIB), Err(Error::Size(_))));
    drop(file);
    let pool = reopened(&media, pool);
    assert_eq!(pool.info().unwrap().size, 64 * MIB);
    assert_eq!(bytes(&pool.resolve(b"/f").unwrap().open().unwrap())[written as usize..], pattern(2, 30 << 20));
    drop(pool);
    clean(&media);
}

/// Fails if names, numbers, bytes or attributes are others after a shrink, or if a pool that has grown again gives an
/// inode a number that another one has.
#[test]
fn a_shrunk_pool_is_the_same_but_for_its_size() {
    let (media, pool) = on_memory(192 * MIB);
    populate(&pool, 8, 100 * MIB);
    let before = look(&pool);
    let used = pool.statfs().pages - pool.statfs().free;
    let mut calls = Vec::new();
    pool.shrink(96 * MIB, &mut |moved, all| {
        calls.push((moved, all));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(calls.windows(2).all(|pair| pair[0].0 <= pair[1].0) && calls.len() > 10, "{} calls", calls.len());
    assert!(calls.iter().all(|&(moved, all)| moved <= all));
    assert_eq!(pool.info().unwrap().size, 96 * MIB);
    assert!(look(&pool) == before);
    let now = pool.statfs().pages - pool.statfs().free;
    assert!(now <= used + 64, "{now} pages in use, {used} before");
    let pool = reopened(&media, pool);
    assert!(look(&pool) == before);
    drop(pool);
    clean(&media);
    let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
    // With no space left in front, new inodes come to the pages that the numbers of moved ones name.
    let filler = new_file(&pool, "filler");
    for piece in [MIB, 4096] {
        while filler.append(&pattern(8, piece as usize)).is_ok() {}
    }
    pool.grow(192 * MIB).unwrap();
    let dir = pool.root().create(b"new", &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
    let dir = pool.node(dir).unwrap().dir().unwrap();
    let mut places: HashSet<u64> = before.values().map(|seen| place(seen.ino)).collect();
    assert!(places.insert(place(dir.ino().0)));
    let last = places.iter().max().copied().unwrap();
    let reached = (0..300_000).any(|i| {
        let ino = dir.create(format!("{i}").as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
        assert!(places.insert(place(ino.0)), "{ino}: another inode has this place");
        place(ino.0) > last
    });
    assert!(reached && last * 256 > 100 * MIB, "no inode came behind those that were moved from {last:#x}");
    for (path, seen) in &before {
        let now = pool.node(Ino(seen.ino)).unwrap().attr().unwrap();
        assert!(path.is_empty() || now.nlink == seen.nlink, "{}", String::from_utf8_lossy(path));
    }
    drop((dir, filler, pool));
    clean(&media);
}

/// What names an inode without its generation.
fn place(ino: u64) -> u64 {
    ino & ((1 << 40) - 1)
}

/// Fails if inodes that were moved leave slots, or pages, that nothing takes any more.
#[test]
fn slots_and_pages_of_inodes_that_lie_elsewhere_are_used_again() {
    let (media, pool) = on_memory(192 * MIB);
    populate(&pool, 8, 100 * MIB);
    shrink(&pool, 96 * MIB).unwrap();
    pool.grow(192 * MIB).unwrap();
    let moved: HashSet<u64> =
        look(&pool).values().map(|seen| place(seen.ino)).filter(|place| place * 256 >= 96 * MIB).collect();
    assert!(moved.len() > 200, "{} inodes lie elsewhere than their numbers say", moved.len());
    let full = pool.statfs();
    let dirs: Vec<_> = (0..8).map(|i| pool.resolve(format!("/dir {i}").as_bytes()).unwrap().dir().unwrap()).collect();
    for dir in &dirs {
        // Every fifth has another name, and stays.
        (0..40).for_each(|i| dir.unlink(format!("file {i}").as_bytes()).unwrap());
    }
    pool.snapshots().delete(b"again").unwrap();
    pool.checkpoint().unwrap();
    let emptied = pool.statfs();
    assert!(emptied.inodes + 8 * 32 <= full.inodes && emptied.free > full.free, "{full:?}, {emptied:?}");
    let mut again = 0;
    for round in 0..10 {
        for (d, dir) in dirs.iter().enumerate() {
            for i in 0..32 {
                let ino =
                    dir.create(format!("again {i}").as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
                again += usize::from(moved.contains(&place(ino.0)));
                write(&pool.node(ino).unwrap().open().unwrap(), 0, &pattern(round * 1000 + d as u64 * 40 + i, 5000));
            }
        }
        dirs.iter().for_each(|dir| (0..32).for_each(|i| dir.unlink(format!("again {i}").as_bytes()).unwrap()));
    }
    pool.checkpoint().unwrap();
    assert!(again > 0, "no slot of an inode that lay elsewhere is used again");
    let now = pool.statfs();
    // A round without them takes sixteen pages more.
    assert!(now.free + 16 > emptied.free && now.inodes == emptied.inodes, "{emptied:?}, {now:?}");
    // All that is said to be available can be had.
    let all = new_file(&pool, "all");
    (0..now.available * 4096 / MIB - 1).for_each(|i| write(&all, i * MIB, &pattern(i, MIB as usize)));
    drop((dirs, all, pool));
    clean(&media);
}

#[test]
fn shrinking_again_and_again_moves_what_was_moved_before() {
    let (media, pool) = on_memory(192 * MIB);
    populate(&pool, 6, 100 * MIB);
    let before = look(&pool);
    for size in [160, 128, 100, 90] {
        shrink(&pool, size * MIB).unwrap();
        assert!(look(&pool) == before, "{size} MiB");
    }
    pool.grow(192 * MIB).unwrap();
    shrink(&pool, 90 * MIB).unwrap();
    assert!(look(&pool) == before);
    drop(pool);
    clean(&media);
}

#[test]
fn a_pool_does_not_shrink_below_what_it_holds() {
    let (media, pool) = on_memory(64 * MIB);
    write(&new_file(&pool, "f"), 0, &pattern(1, 40 << 20));
    let free = pool.statfs().free;
    assert!(matches!(shrink(&pool, 32 * MIB), Err(Error::NoSpace)));
    assert!(matches!(shrink(&pool, MIB), Err(Error::Size(_))));
    assert!(matches!(shrink(&pool, 128 * MIB), Err(Error::Size(_))));
    assert_eq!((pool.info().unwrap().size, pool.statfs().free), (64 * MIB, free));
    // And all of it can be had still.
    write(&new_file(&pool, "g"), 0, &pattern(2, 12 << 20));
    drop(pool);
    clean(&media);
}

#[test]
fn an_interrupted_shrink_leaves_the_pool_as_large_as_it_was() {
    let (media, pool) = on_memory(192 * MIB);
    populate(&pool, 6, 100 * MIB);
    let (before, free) = (look(&pool), pool.statfs().free);
    let stop = |moved, all| if moved > all / 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert!(matches!(pool.shrink(96 * MIB, &mut { stop }), Err(Error::Interrupted)));
    assert_eq!(pool.info().unwrap().size, 192 * MIB);
    assert!(free - pool.statfs().free < 64, "a third of the moves costs tables of moved inodes and no more");
    assert!(look(&pool) == before);
    shrink(&pool, 96 * MIB).unwrap();
    assert!(look(&pool) == before);
    drop(pool);
    clean(&media);
}
