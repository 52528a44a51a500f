//! Trees under stress through the library: many names, names of every length, files of many runs.

use std::collections::{BTreeMap, HashSet};

use pagestone::inode::{NewNode, XattrMode};
use pagestone::{File, FileType, Pool};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::place::{On, Place};
use crate::seed;

const PAGE: u64 = 4096;

fn memory(size: u64) -> (Place, Pool) {
    Place::create(On::Memory, size)
}

fn file(pool: &Pool, name: &str) -> File {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
    pool.node(ino).unwrap().open().unwrap()
}

/// Closes, proves sound, opens.
fn reopened(place: &Place, pool: Pool) -> Pool {
    pool.close().unwrap();
    place.check();
    place.open()
}

/// All names of the root, in the order of their cookies.
fn names(pool: &Pool) -> HashSet<Vec<u8>> {
    let mut found = HashSet::new();
    let mut last = 0;
    for e in pool.root().entries() {
        let e = e.unwrap();
        assert!(e.cookie > last);
        last = e.cookie;
        assert!(found.insert(e.name), "a name stands there twice");
    }
    found
}

#[test]
fn a_directory_of_many_names_under_random_changes() {
    let (place, pool) = memory(256 << 20);
    let mut rng = StdRng::seed_from_u64(seed());
    let root = pool.root();
    let first = root.create(b"first", &NewNode::new(FileType::Fifo, 0)).unwrap().ino;
    let mut all: Vec<Vec<u8>> = Vec::new();
    // Names of one inode: what is tried is the tree, not the inodes.
    for i in 0..200_000u32 {
        let name = format!("{i}-{}", "z".repeat(rng.random_range(0..12))).into_bytes();
        root.link(&name, first).unwrap();
        all.push(name);
    }
    let mut there = vec![true; all.len()];
    // Waves of many deletes and some inserts thin the tree out, waves of inserts fill it again.
    for wave in 0..6 {
        let deletes = if wave % 2 == 0 { 0.95 } else { 0.2 };
        for _ in 0..60_000 {
            let i = rng.random_range(0..all.len());
            let wanted = !rng.random_bool(deletes);
            match (there[i], wanted) {
                (true, false) => root.unlink(&all[i]).unwrap(),
                (false, true) => drop(root.link(&all[i], first).unwrap()),
                _ => assert_eq!(root.lookup(&all[i]).is_ok(), wanted),
            }
            there[i] = wanted;
        }
    }
    drop(root);
    let pool = reopened(&place, pool);
    let mut want: HashSet<Vec<u8>> = all.iter().zip(&there).filter(|(_, t)| **t).map(|(n, _)| n.clone()).collect();
    want.insert(b"first".to_vec());
    assert!(names(&pool) == want);
    assert_eq!(pool.node(first).unwrap().attr().unwrap().nlink as usize, want.len());
    for name in &want {
        pool.root().unlink(name).unwrap();
    }
    assert_eq!(names(&pool).len(), 0);
    assert_eq!(pool.statfs().inodes, 0);
    reopened(&place, pool);
}

#[test]
fn names_of_every_length() {
    let (place, pool) = memory(64 << 20);
    let mut rng = StdRng::seed_from_u64(seed());
    let target = pool.root().create(b"target", &NewNode::new(FileType::Fifo, 0)).unwrap().ino;
    let mut model = HashSet::from([b"target".to_vec()]);
    for round in 0..40_000u32 {
        let len = *[1, 2, 3, 8, 200, 254, 255, rng.random_range(1..256)].choose(&mut rng).unwrap();
        let name: Vec<u8> = (0..len).map(|_| b"ab\xFF\x01"[rng.random_range(0..4)]).collect();
        if model.contains(&name) && name != b"target" {
            pool.root().unlink(&name).unwrap();
            model.remove(&name);
        } else if round % 3 == 0 && model.len() > 1 {
            let victim = model.iter().find(|n| *n != b"target").unwrap().clone();
            pool.root().rename(&victim, pool.root().ino(), &name, Default::default()).unwrap();
            // Renaming one name of a file onto another of the same changes nothing.
            if !model.contains(&name) {
                model.remove(&victim);
            }
            model.insert(name);
        } else {
            pool.root().link(&name, target).unwrap();
            model.insert(name);
        }
    }
    let pool = reopened(&place, pool);
    assert!(names(&pool) == model);
}

/// Which pages of a file hold what; the number is written at the start and the end of the page.
type Pages = BTreeMap<u64, u64>;

fn put(file: &File, pages: &mut Pages, page: u64, value: u64) {
    let mut bytes = [0x5A; PAGE as usize];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[4088..].copy_from_slice(&value.to_le_bytes());
    file.write_all_at(&bytes, page * PAGE).unwrap();
    pages.insert(page, value);
}

fn same(file: &File, pages: &Pages) {
    let mut found = 0;
    for x in file.extents(..).unwrap() {
        let mut bytes = vec![0; x.len as usize];
        assert_eq!(file.read_at(&mut bytes, x.offset).unwrap(), bytes.len());
        for (i, bytes) in bytes.chunks(PAGE as usize).enumerate() {
            let page = x.offset / PAGE + i as u64;
            let value = pages.get(&page).unwrap_or_else(|| panic!("page {page} has storage"));
            assert_eq!(bytes[..8], value.to_le_bytes(), "page {page}");
            assert_eq!(bytes[4088..], value.to_le_bytes(), "page {page}");
            found += 1;
        }
    }
    assert_eq!(found, pages.len());
    assert!(file.attr().unwrap().pages as usize >= pages.len());
}

#[test]
fn a_file_of_a_hundred_thousand_runs() {
    let (place, pool) = memory(1 << 30);
    let mut rng = StdRng::seed_from_u64(seed());
    let f = file(&pool, "f");
    let mut pages = Pages::new();
    for i in 0..100_000 {
        put(&f, &mut pages, i * 2, i);
    }
    same(&f, &pages);
    for _ in 0..400 {
        let from = rng.random_range(0..200_000);
        let len = if rng.random_bool(0.1) { rng.random_range(1..20_000) } else { rng.random_range(1..200) };
        f.punch_hole(from * PAGE..(from * PAGE).saturating_add(len * PAGE)).unwrap();
        let gone: Vec<u64> = pages.range(from..from + len).map(|(&p, _)| p).collect();
        gone.iter().for_each(|p| {
            pages.remove(p);
        });
        // Into the gaps, the front of a gap first: separators that were passed by come back.
        for _ in 0..rng.random_range(0..300) {
            let page = from + rng.random_range(0..len);
            put(&f, &mut pages, page, rng.random());
        }
    }
    same(&f, &pages);
    drop(f);
    let pool = reopened(&place, pool);
    let f = pool.resolve(b"/f").unwrap().open().unwrap();
    same(&f, &pages);
    let mut len = 200_000 * PAGE;
    for _ in 0..12 {
        len = rng.random_range(len / 2..=len);
        f.set_len(len).unwrap();
        pages.retain(|&p, _| p * PAGE < len);
        f.set_len(200_000 * PAGE).unwrap();
        // The page in which the file was cut keeps its front.
        if let Some(value) = pages.get(&(len / PAGE)).copied().filter(|_| !len.is_multiple_of(PAGE)) {
            put(&f, &mut pages, len / PAGE, value);
        }
        same(&f, &pages);
    }
    let before = pool.statfs().free;
    drop(f);
    pool.root().unlink(b"f").unwrap();
    assert!(pool.statfs().free >= before + pages.len() as u64);
    reopened(&place, pool);
}

/// One write over thousands of holes and runs: more changes than one record carries.
#[test]
fn a_long_write_into_a_file_full_of_holes() {
    let (place, pool) = memory(128 << 20);
    let f = file(&pool, "f");
    let mut pages = Pages::new();
    for i in 0..2048 {
        put(&f, &mut pages, i * 2, i);
    }
    let bytes: Vec<u8> = (0..16 << 20).map(|i| (i / 977) as u8).collect();
    f.write_all_at(&bytes, 0).unwrap();
    let mut back = vec![0; bytes.len()];
    assert_eq!(f.read_at(&mut back, 0).unwrap(), bytes.len());
    assert!(back == bytes);
    f.set_len(0).unwrap();
    f.write_all_at(&bytes[..1 << 20], 100).unwrap();
    drop(f);
    reopened(&place, pool);
}

/// The same, and an allocation, where free space is single pages.
#[test]
fn a_long_write_into_a_pool_of_single_free_pages() {
    let (place, pool) = memory(32 << 20);
    let (a, b) = (file(&pool, "a"), file(&pool, "b"));
    let (mut in_a, mut in_b) = (Pages::new(), Pages::new());
    for i in 0..2500 {
        put(&a, &mut in_a, i, i);
        put(&b, &mut in_b, i, i);
    }
    drop(b);
    pool.root().unlink(b"b").unwrap();
    // Nothing but the pages that `b` has left.
    let rest = file(&pool, "rest");
    let mut at = 0;
    while pool.statfs().available > 2400 && rest.write_all_at(&[1; 4096], at).is_ok() {
        at += PAGE;
    }
    let c = file(&pool, "c");
    let bytes: Vec<u8> = (0..7 << 20).map(|i| (i / 977) as u8).collect();
    c.write_all_at(&bytes, 0).unwrap();
    let mut back = vec![0; bytes.len()];
    assert_eq!(c.read_at(&mut back, 0).unwrap(), bytes.len());
    assert!(back == bytes);
    same(&a, &in_a);
    c.set_len(0).unwrap();
    c.allocate(0..7 << 20).unwrap();
    c.write_all_at(&bytes, 0).unwrap();
    c.set_len(3 << 20).unwrap();
    c.append(&bytes[..2 << 20]).unwrap();
    drop((a, c, rest));
    let pool = reopened(&place, pool);
    for name in ["a", "c", "rest"] {
        pool.root().unlink(name.as_bytes()).unwrap();
    }
    reopened(&place, pool);
}

#[test]
fn many_extended_attributes_and_large_ones() {
    let (place, pool) = memory(64 << 20);
    let mut rng = StdRng::seed_from_u64(seed());
    let f = file(&pool, "f");
    let node = pool.node(f.ino()).unwrap();
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for _ in 0..6000 {
        let name = format!("user.{}", rng.random_range(0..600)).into_bytes();
        let len = *[0, 1, 900, 955, 2000, 32 << 10, rng.random_range(0..200)].choose(&mut rng).unwrap();
        if rng.random_bool(0.3) {
            assert_eq!(node.remove_xattr(&name).is_ok(), model.remove(&name).is_some());
        } else if len < 20_000 || model.values().filter(|v| v.len() > 20_000).count() < 200 {
            let value = vec![rng.random(); len];
            node.set_xattr(&name, &value, XattrMode::Set).unwrap();
            model.insert(name, value);
        }
    }
    drop(f);
    drop(node);
    let pool = reopened(&place, pool);
    let node = pool.resolve(b"/f").unwrap();
    assert_eq!(node.xattrs().unwrap().len(), model.len());
    for (name, value) in &model {
        assert!(node.xattr(name).unwrap() == *value);
    }
    pool.root().unlink(b"f").unwrap();
    drop(node);
    reopened(&place, pool);
}

/// Opening, making one file, deleting it and closing must not cost a page each time.
#[test]
fn sessions_leave_nothing_behind() {
    let (place, mut pool) = memory(8 << 20);
    let free = |pool: &Pool| pool.statfs().free;
    let before = free(&pool);
    for _ in 0..60 {
        let f = file(&pool, "f");
        f.write_all_at(&[1; 10_000], 0).unwrap();
        drop(f);
        pool.root().unlink(b"f").unwrap();
        pool.close().unwrap();
        pool = place.open();
    }
    let pool = reopened(&place, pool);
    assert!(before - free(&pool) <= 6, "{} pages are gone", before - free(&pool));
}

/// A pool that was filled to the last page by names can be emptied again.
#[test]
fn a_pool_full_of_small_things_can_be_emptied() {
    let (place, pool) = memory(8 << 20);
    let mut made = Vec::new();
    for i in 0.. {
        let name = format!("{i}-{}", "n".repeat(200)).into_bytes();
        match pool.root().create(&name, &NewNode::new(FileType::Symlink, 0o777).target(&[b't'; 3000])) {
            Ok(_) => made.push(name),
            Err(pagestone::Error::NoSpace) => break,
            Err(e) => panic!("{e}"),
        }
    }
    // Renames to longer names may still take pages; deleting must go on all the same.
    for name in made.iter_mut().step_by(3) {
        let longer = [&name[..], b"-and-a-bit-longer-than-that"].concat();
        match pool.root().rename(name, pool.root().ino(), &longer, Default::default()) {
            Ok(()) => *name = longer,
            Err(e) => assert!(matches!(e, pagestone::Error::NoSpace), "{e}"),
        }
    }
    for name in made.iter().rev() {
        pool.root().unlink(name).unwrap();
    }
    assert_eq!(pool.statfs().inodes, 0);
    reopened(&place, pool);
}

/// Where an inner node had lost its first child and then got keys before its second, a merge with
/// its neighbour put a key out of order into the middle: what lay there was not found any more.
#[test]
fn merging_inner_nodes_keeps_their_keys_in_order() {
    const LEAF: u64 = 144; // runs that fill a leaf when they come in ascending order
    let (place, pool) = memory(512 << 20);
    let f = file(&pool, "f");
    let mut pages = Pages::new();
    for i in 0..LEAF * 450 {
        put(&f, &mut pages, i * 2, i);
    }
    // The inner nodes begin somewhere around every two hundredth leaf.
    for leaf in (190..215).chain(390..425) {
        let (from, to) = (leaf * LEAF * 2, (leaf + 1) * LEAF * 2);
        f.punch_hole(from * PAGE..(from * PAGE).saturating_add((to - from) * PAGE)).unwrap();
        for page in (from / 2..to / 2).rev().map(|half| half * 2) {
            put(&f, &mut pages, page, page);
        }
        same(&f, &pages);
    }
    for block in (0..LEAF * 900).step_by(64) {
        f.punch_hole((block + 2) * PAGE..((block + 2) * PAGE).saturating_add(62 * PAGE)).unwrap();
        pages.retain(|&p, _| p < block + 2 || p >= block + 64);
    }
    same(&f, &pages);
    drop(f);
    reopened(&place, pool);
}
