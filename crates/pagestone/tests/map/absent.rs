//! Mappings of files whose absent pages a backing answers.
//!
//! How it could fail: a mapping, or a child, shows the zero page where the backing has other bytes; a store keeps zeros
//! around it; a read changes the time of the file; a page shows the backing's bytes behind the end, or after a punch.
//! The backing of these tests has no zero byte (`backing/instant.rs`).

use std::fs::File as OsFile;
use std::io::Write;
use std::os::fd::AsRawFd;

use pagestone::mmap::{MapMechanism, MapOptions, Mapping};
use pagestone::{Error, File};

use crate::fork::Child;
use crate::place::{FRAME, PAGE, Place, storage};

const LEN: u64 = 8 * FRAME + 100;

/// What the backing has at `offset`: written down a second time, not asked of the library.
fn pattern(offset: u64) -> u8 {
    ((offset / PAGE * 7 + offset % PAGE) % 255) as u8 + 1
}

/// A file of `LEN` bytes, all of them the backing's.
fn backed(place: &Place, name: &str) -> File {
    let file = place.sparse(name, LEN);
    file.set_backing(2).unwrap();
    file
}

/// Bytes `at..at + len` of a mapping from the start of the file are the backing's, but for those in `others`.
#[track_caller]
fn shows(map: &Mapping, at: u64, len: u64, others: &[(u64, &[u8])]) {
    let got = map.slice(at..at + len).unwrap().to_vec().unwrap();
    for (i, &byte) in (at..).zip(&got) {
        let other = others.iter().find(|(from, bytes)| (*from..*from + bytes.len() as u64).contains(&i));
        let want = other.map_or_else(|| pattern(i), |(from, bytes)| bytes[(i - from) as usize]);
        assert_eq!(byte, want, "at {i} (page {})", i / PAGE);
    }
}

#[track_caller]
fn holds(file: &File, at: u64, len: u64, others: &[(u64, &[u8])]) {
    let mut got = vec![0; len as usize];
    assert_eq!(file.read_at(&mut got, at).unwrap(), len as usize);
    for (i, &byte) in (at..).zip(&got) {
        let other = others.iter().find(|(from, bytes)| (*from..*from + bytes.len() as u64).contains(&i));
        let want = other.map_or_else(|| pattern(i), |(from, bytes)| bytes[(i - from) as usize]);
        assert_eq!(byte, want, "at {i} (page {})", i / PAGE);
    }
}

fn each_option() -> [(&'static str, MapOptions); 3] {
    [("shared", MapOptions::shared()), ("private", MapOptions::private()), ("read-only", MapOptions::read_only())]
}

#[test]
fn every_kind_of_mapping_reads_the_backings_answer() {
    Place::every(|place| {
        for (name, options) in each_option() {
            println!("{name}");
            let file = backed(place, name);
            let before = file.attr().unwrap();
            let map = file.map(0..LEN, &options).unwrap();
            if place.granule == 1 {
                assert_eq!(storage(&file), 0, "nothing was touched yet");
            }
            shows(&map, 5 * PAGE + 10, 20, &[]);
            shows(&map, FRAME - 100, 3 * PAGE, &[]);
            shows(&map, 0, 40 * PAGE, &[]);
            shows(&map, LEN - 200, 200, &[]);
            if place.granule == 1 {
                assert!(storage(&file) < FRAME / PAGE, "not much more than what was touched has storage");
            }
            let after = file.attr().unwrap();
            assert_eq!((after.mtime, after.size), (before.mtime, before.size), "reading is no change");
            holds(&file, 0, LEN, &[]);
        }
        let file = backed(place, "atomic");
        let map = file.map_atomic(0..LEN).unwrap();
        shows(&map, 3 * PAGE, FRAME, &[]);
    });
}

#[test]
fn a_store_keeps_what_the_backing_has_around_it_and_every_mapping_sees_it() {
    Place::every(|place| {
        let file = backed(place, "a");
        let map = file.map(0..LEN, &MapOptions::shared()).unwrap();
        let [reader, private] = [MapOptions::read_only(), MapOptions::private()].map(|o| file.map(0..LEN, &o).unwrap());
        map.write(3 * PAGE + 20, b"stored").unwrap();
        map.write(FRAME - 2, b"two frames").unwrap();
        map.write(LEN - 50, b"the last page").unwrap();
        reader.load::<u8>(5 * FRAME).unwrap();
        map.write(5 * FRAME + 7, b"read before").unwrap();
        let others: [(u64, &[u8]); 4] = [
            (3 * PAGE + 20, b"stored"),
            (FRAME - 2, b"two frames"),
            (LEN - 50, b"the last page"),
            (5 * FRAME + 7, b"read before"),
        ];
        holds(&file, 0, LEN, &others);
        for shown in [&map, &reader, &private] {
            for at in [0, FRAME - PAGE, 5 * FRAME] {
                shows(shown, at, 5 * PAGE, &others);
            }
            shows(shown, LEN - 100, 100, &others);
        }
        // A write through the file, beside and over absent pages.
        file.write_all_at(&[0xEE; 50], 2 * FRAME + 100).unwrap();
        for shown in [&map, &reader, &private] {
            shows(shown, 2 * FRAME, 2 * PAGE, &[(2 * FRAME + 100, &[0xEE; 50])]);
        }
        map.populate(6 * FRAME..7 * FRAME).unwrap();
        shows(&map, 6 * FRAME, FRAME, &[]);
    });
}

#[test]
fn private_stores_stay_private_and_committed_ones_keep_what_is_around_them() {
    Place::every(|place| {
        let file = backed(place, "a");
        let before = file.attr().unwrap().mtime;
        let private = file.map(0..LEN, &MapOptions::private()).unwrap();
        private.write(PAGE + 5, b"mine").unwrap();
        private.write(4 * FRAME - 1, b"mine").unwrap();
        assert_eq!(file.attr().unwrap().mtime, before, "a private store is no change");
        shows(&private, 0, 3 * PAGE, &[(PAGE + 5, b"mine")]);
        holds(&file, 0, LEN, &[]);
        drop(private);
        let mut map = file.map_atomic(0..LEN).unwrap();
        map.write(PAGE + 5, b"committed").unwrap();
        map.write(3 * FRAME - 4, b"committed").unwrap();
        map.write(LEN - 10, b"end").unwrap();
        holds(&file, 0, LEN, &[]);
        map.commit().unwrap();
        let others: [(u64, &[u8]); 3] = [(PAGE + 5, b"committed"), (3 * FRAME - 4, b"committed"), (LEN - 10, b"end")];
        holds(&file, 0, LEN, &others);
        shows(&map, 0, 3 * PAGE, &others);
        map.write(9 * PAGE, b"discarded").unwrap();
        map.discard().unwrap();
        shows(&map, 0, 20 * PAGE, &others);
        holds(&file, 0, LEN, &others);
    });
}

/// Fails if the kernel finds zeros, or an error, where a program reads or stores by an address.
#[test]
fn the_kernel_reads_and_stores_through_a_mapping_of_absent_pages() {
    if MapMechanism::here() == MapMechanism::Signals {
        println!("skipped: userfaultfd is not allowed here");
        return;
    }
    Place::every(|place| {
        let file = backed(place, "a");
        let map = file.map(0..LEN, &MapOptions::shared()).unwrap();
        let reader = file.map(0..LEN, &MapOptions::read_only()).unwrap();
        let mut out = tempfile::tempfile().unwrap();
        // SAFETY: the mapping stays, and nobody stores to these bytes meanwhile.
        out.write_all(unsafe { std::slice::from_raw_parts(reader.as_ptr().add(7 * PAGE as usize), 3 * 4096) }).unwrap();
        let mut got = vec![0; 3 * 4096];
        std::os::unix::fs::FileExt::read_exact_at(&out, &mut got, 0).unwrap();
        assert!((7 * PAGE..).zip(&got).all(|(at, &byte)| byte == pattern(at)));
        let version = OsFile::open("/proc/version").unwrap();
        // SAFETY: the target is the mapping, to which no reference exists.
        let n =
            unsafe { libc::read(version.as_raw_fd(), map.as_mut_ptr().unwrap().add(FRAME as usize + 100).cast(), 5) };
        assert_eq!(n, 5);
        holds(&file, FRAME - PAGE, 3 * PAGE, &[(FRAME + 100, b"Linux")]);
        shows(&reader, FRAME - PAGE, 3 * PAGE, &[(FRAME + 100, b"Linux")]);
    });
}

#[test]
fn without_userfaultfd_the_methods_of_a_mapping_find_the_backings_answer_too() {
    Place::each(|place| {
        for (name, options) in each_option() {
            let file = backed(place, name);
            let map = file.map(0..LEN, &options.clone().mechanism(MapMechanism::Signals)).unwrap();
            shows(&map, 2 * PAGE - 5, 10, &[]);
            shows(&map, 0, 40 * PAGE, &[]);
            if takes_stores(&map) {
                shows(&map, FRAME, PAGE, &[(FRAME + 3, b"stored")]);
            }
            shows(&map, LEN - 10, 10, &[]);
        }
    });
}

/// Stores, and whether the mapping takes stores.
fn takes_stores(map: &Mapping) -> bool {
    match map.write(FRAME + 3, b"stored") {
        Ok(()) => true,
        Err(Error::ReadOnly) => false,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn a_child_reads_and_stores_where_the_backing_answers() {
    Place::each_alone(|place| {
        let file = backed(place, "a");
        let map = file.map(0..LEN, &MapOptions::shared()).unwrap();
        let private = file.map(0..LEN, &MapOptions::private()).unwrap();
        let reader = file.map(0..LEN, &MapOptions::read_only()).unwrap();
        // Some of it is there before the fork.
        shows(&map, PAGE, 10, &[]);
        let child = Child::fork(|_| {
            for shown in [&map, &private, &reader] {
                shows(shown, 0, 5 * PAGE, &[]);
                shows(shown, 3 * FRAME - PAGE, 2 * PAGE, &[]);
                shows(shown, LEN - 100, 100, &[]);
            }
            map.write(5 * FRAME + 9, b"child").unwrap();
            private.write(FRAME + 9, b"mine").unwrap();
            shows(&map, 5 * FRAME, PAGE, &[(5 * FRAME + 9, b"child")]);
            shows(&reader, 5 * FRAME, PAGE, &[(5 * FRAME + 9, b"child")]);
            shows(&private, FRAME, PAGE, &[(FRAME + 9, b"mine")]);
            shows(&map, FRAME, PAGE, &[]);
        });
        child.join();
        holds(&file, 0, LEN, &[(5 * FRAME + 9, b"child")]);
        shows(&map, 5 * FRAME, PAGE, &[(5 * FRAME + 9, b"child")]);
        shows(&private, FRAME, PAGE, &[]);
    });
}

#[test]
fn behind_the_old_end_and_after_a_punch_a_mapping_shows_zeros() {
    Place::each(|place| {
        for (name, options) in each_option() {
            println!("{name}");
            let file = backed(place, name);
            let map = file.map(0..2 * LEN, &options).unwrap();
            // The tail of the last page, untouched and then touched.
            shows(&map, LEN - 100, 200, &[(LEN, &[0; 100])]);
            file.set_len(LEN + 3 * PAGE).unwrap();
            shows(&map, LEN - 100, 2 * PAGE, &[(LEN, &vec![0; 2 * PAGE as usize])]);
            file.set_len(7 * FRAME + 50).unwrap();
            file.set_len(8 * FRAME).unwrap();
            map.refresh(0..2 * LEN).unwrap();
            shows(&map, 7 * FRAME - PAGE, 3 * PAGE, &[(7 * FRAME + 50, &vec![0; 3 * PAGE as usize])]);
            file.punch_hole(3 * PAGE..3 * PAGE + PAGE).unwrap();
            file.punch_hole(9 * PAGE + 7..9 * PAGE + 7 + 20).unwrap();
            file.punch_hole(2 * FRAME..2 * FRAME + FRAME).unwrap();
            assert!(matches!(map.load::<u8>(3 * PAGE), Err(Error::Revoked(_))));
            map.refresh(0..2 * LEN).unwrap();
            shows(&map, 0, 20 * PAGE, &[(3 * PAGE, &[0; PAGE as usize]), (9 * PAGE + 7, &[0; 20])]);
            shows(&map, 2 * FRAME - PAGE, 3 * PAGE, &[(2 * FRAME, &vec![0; FRAME as usize])]);
        }
    });
}

#[test]
fn clones_map_the_backing_of_their_source() {
    Place::every(|place| {
        let file = backed(place, "a");
        file.write_all_at(b"before", 3 * PAGE + 1).unwrap();
        let ino = place.pool.root().clone_file(b"b", file.ino()).unwrap().ino;
        let clone = place.pool.node(ino).unwrap().open().unwrap();
        let [one, other] = [&file, &clone].map(|file| file.map(0..LEN, &MapOptions::shared()).unwrap());
        let private = clone.map(0..LEN, &MapOptions::private()).unwrap();
        one.write(9 * PAGE + 3, b"one").unwrap();
        other.write(9 * PAGE + 4, b"other").unwrap();
        private.write(20 * PAGE, b"mine").unwrap();
        let before: (u64, &[u8]) = (3 * PAGE + 1, b"before");
        shows(&one, 0, 40 * PAGE, &[before, (9 * PAGE + 3, b"one")]);
        shows(&other, 0, 40 * PAGE, &[before, (9 * PAGE + 4, b"other")]);
        shows(&private, 15 * PAGE, 20 * PAGE, &[(20 * PAGE, b"mine")]);
        holds(&file, 0, LEN, &[before, (9 * PAGE + 3, b"one")]);
        holds(&clone, 0, LEN, &[before, (9 * PAGE + 4, b"other")]);
        // Everything that is mapped as it was before a clone is asked for again.
        place.pool.root().clone_file(b"c", file.ino()).unwrap();
        one.write(4 * FRAME + 3, b"again").unwrap();
        shows(&one, 4 * FRAME, 4 * PAGE, &[(4 * FRAME + 3, b"again")]);
    });
}

/// Fails if pages that a transfer reads are not kept because they had no storage when they were pinned.
#[test]
fn a_pin_gives_absent_pages_storage_in_every_kind_of_mapping() {
    Place::each(|place| {
        for (name, options) in each_option() {
            let file = backed(place, name);
            let map = file.map(0..LEN, &options).unwrap();
            let pin = map.pin(PAGE..5 * PAGE).unwrap();
            assert_eq!(storage(&file), 4, "{name}");
            shows(&map, 0, 6 * PAGE, &[]);
            drop(pin);
        }
        let holes = place.sparse("holes", LEN);
        let map = holes.map(0..LEN, &MapOptions::private()).unwrap();
        drop(map.pin(0..LEN).unwrap());
        assert_eq!(storage(&holes), 0, "zeros need none");
    });
}
