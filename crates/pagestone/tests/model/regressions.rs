//! What the random tests have found, each in the few steps that show it.

use pagestone::inode::NewNode;
use pagestone::{Error, FileType, Ino, Pool};

use crate::place::{On, Place};

const PAGE: u64 = 4096;

fn create(pool: &Pool, name: &str) -> Ino {
    pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino
}

/// Appends until the pool is full.
fn fill(pool: &Pool, ino: Ino) -> pagestone::File {
    let file = pool.node(ino).unwrap().open().unwrap();
    for len in [200_000, 4096] {
        while file.append(&vec![0x55; len]).is_ok() {}
    }
    file
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

/// A number that outlived its file, and whose page became a file's, was damage; and a file that
/// holds the bytes of a record there was taken for an inode.
#[test]
fn a_stale_number_is_stale_whatever_its_page_holds_now() {
    let (place, pool) = Place::create(On::Memory, 8 << 20);
    let gone: Vec<Ino> = (0..2000).map(|i| create(&pool, &format!("{i}"))).collect();
    for i in 0..2000 {
        pool.root().unlink(format!("{i}").as_bytes()).unwrap();
    }
    let big = create(&pool, "big");
    let file = fill(&pool, big);
    let extents = file.extents(..).unwrap();
    let mut reused = 0;
    for ino in gone {
        let at = ino.page().byte();
        if let Some(x) = extents.iter().find(|x| (x.pool..x.pool + x.len).contains(&at)) {
            assert!(matches!(pool.node(ino), Err(Error::Stale(_))));
            let mut record = [0; 256];
            record[4] = FileType::File as u8;
            record[8..16].copy_from_slice(&ino.place().to_le_bytes());
            record[16..20].copy_from_slice(&ino.generation().to_le_bytes());
            let crc = crc32c(&record[4..]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
            file.write_all_at(&record, x.offset + (at - x.pool) + ino.slot() as u64 * 256).unwrap();
            assert!(matches!(pool.node(ino), Err(Error::Stale(_))), "bytes of a file were taken for an inode");
            reused += 1;
        }
    }
    assert!(reused > 0, "no page was used again");
    drop(file);
    pool.close().unwrap();
    place.check();
}

/// A file that was being appended to asked for 512 pages where one would have done, and the pool
/// was full with hundreds left.
#[test]
fn the_last_pages_can_be_appended() {
    for size in [8 << 20, 12 << 20, 18 << 20] {
        let (_, pool) = Place::create(On::Memory, size);
        let _file = fill(&pool, create(&pool, "f"));
        assert!(pool.statfs().available <= 4, "{:?}", pool.statfs());
    }
}

/// Another lane stands in the only frame with room: its pages are there for everybody, those that
/// are freed while it stands there, too.
#[test]
fn a_lane_uses_what_others_leave() {
    let (place, pool) = Place::create(On::Memory, 8 << 20);
    for i in 0..3 {
        // Each thread has a lane of its own to begin with.
        std::thread::scope(|s| {
            s.spawn(|| create(&pool, &format!("of another thread {i}")));
        });
    }
    let ino = create(&pool, "f");
    drop(fill(&pool, ino));
    assert!(pool.statfs().available <= 4, "{:?}", pool.statfs());
    std::thread::scope(|s| {
        s.spawn(|| {
            pool.node(ino).unwrap().open().unwrap().set_len(PAGE * 100).unwrap();
            drop(fill(&pool, ino));
            assert!(pool.statfs().available <= 4, "{:?}", pool.statfs());
        });
    });
    pool.root().unlink(b"f").unwrap();
    pool.close().unwrap();
    place.check();
}

/// The orphan that an atomic write of many parts fills took a whole frame where it grew into one, and
/// its pages between the parts hid what the file had there.
#[test]
fn an_atomic_write_leaves_what_lies_between_its_parts() {
    let (place, pool) = Place::create(On::Memory, 16 << 20);
    let ino = create(&pool, "a");
    let file = pool.node(ino).unwrap().open().unwrap();
    let mut want = vec![7; (2 << 20) + 40 * PAGE as usize];
    file.write_all_at(&want, 0).unwrap();
    let parts = [505, 507, 509, 511, 512, 514, 516, 518].map(|page| page * PAGE);
    let bytes = [9; PAGE as usize];
    file.write_atomic(&parts.iter().map(|&at| (at, &bytes[..])).collect::<Vec<_>>()).unwrap();
    for at in parts {
        want[at as usize..][..bytes.len()].fill(9);
    }
    let mut got = vec![0; want.len()];
    assert_eq!(file.read_at(&mut got, 0).unwrap(), want.len());
    let wrong = (0..want.len()).find(|&i| got[i] != want[i]);
    assert_eq!(wrong.map(|i| i / PAGE as usize), None, "the page with the first wrong byte");
    drop(file);
    pool.close().unwrap();
    place.check();
}

/// Pages that were allocated behind the end went when an atomic write of many parts moved the end behind them.
#[test]
fn an_atomic_write_keeps_what_was_allocated_behind_the_end() {
    let (place, pool) = Place::create(On::Memory, 16 << 20);
    let ino = create(&pool, "a");
    let file = pool.node(ino).unwrap().open().unwrap();
    file.allocate_keep_size(0..20 * PAGE).unwrap();
    let parts: Vec<u64> = (0..10).map(|i| (1 + 2 * i) * PAGE).collect();
    file.write_atomic(&parts.iter().map(|&at| (at, &b"x"[..])).collect::<Vec<_>>()).unwrap();
    assert_eq!(file.attr().unwrap().pages, 20);
    let mut bytes = vec![1; 20 * PAGE as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap() as u64, 19 * PAGE + 1);
    let stored = |at: usize| parts.contains(&(at as u64));
    assert!((0..19 * PAGE as usize + 1).all(|at| bytes[at] == if stored(at) { b'x' } else { 0 }));
    drop(file);
    pool.close().unwrap();
    place.check();
}

/// A write over a hole and a page that was there found no room for a node of the map, after it had stored the
/// bytes of the page.
#[test]
fn a_write_that_finds_no_room_has_not_changed_a_byte() {
    let (place, pool) = Place::create(On::Memory, 8 << 20);
    let (a, filler) = (create(&pool, "a"), create(&pool, "filler"));
    let file = pool.node(a).unwrap().open().unwrap();
    // As many runs as the record of a file holds: the next one needs a node.
    [1, 3, 5, 7].iter().for_each(|page| file.write_all_at(&[1; PAGE as usize], page * PAGE).unwrap());
    let filler = fill(&pool, filler);
    let mut refused = 0;
    for page in 0..100 {
        match file.write_all_at(&[2; 2 * PAGE as usize], 0) {
            Ok(()) => break,
            Err(Error::NoSpace) => refused += 1,
            Err(e) => panic!("{e}"),
        }
        let mut bytes = [0; 2 * PAGE as usize];
        file.read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..PAGE as usize].iter().all(|&b| b == 0) && bytes[PAGE as usize..].iter().all(|&b| b == 1));
        filler.punch_hole(page * PAGE..(page * PAGE).saturating_add(PAGE)).unwrap();
        pool.sync().unwrap();
    }
    assert!((1..100).contains(&refused), "{refused} times refused");
    drop((file, filler));
    pool.close().unwrap();
    place.check();
}

/// A file that grew took the last whole frame ahead of need, and then found no page for a node of its map: the pool was
/// full with a third of it free.
#[test]
fn a_frame_taken_ahead_leaves_room_for_the_map() {
    let (place, pool) = Place::create(On::File, 8 << 20);
    let (a, b) = (create(&pool, "a"), create(&pool, "b"));
    pool.root().unlink(b"a").unwrap();
    assert_ne!(a, b);
    let file = pool.node(b).unwrap().open().unwrap();
    file.write_all_at(b"x", 4_354_048).unwrap();
    file.allocate(432..432 + 7761).unwrap();
    while file.append(&[0x55; 200_000]).is_ok() {}
    let space = pool.statfs();
    assert!(space.available < 56 + 24, "full, with {space:?}");
    drop(file);
    pool.close().unwrap();
    place.check();
}
