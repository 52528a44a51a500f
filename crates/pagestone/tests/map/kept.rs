//! Stores of private and atomic mappings, and everything that goes on around them. How they could be lost, and which
//! test would show it: a fault maps its window again over pages with stores (`a_fault_leaves_...`,
//! `threads_that_fault_in_one_window_...`); a hole that got bytes is still zeros, and a commit writes those zeros
//! (`what_others_put_into_a_hole_...`);
//! likewise a page of a base (`what_others_put_over_...`); what commits replaced stays pinned until the pool is full (`commits_of_...`).
//! That no store falls between the scan of the page tables and the unmapping is a test in `map/private_copies.rs`.

use std::sync::Barrier;

use pagestone::Error;
use pagestone::mmap::{MapOptions, Mapping};

use crate::place::{PAGE, Place};

/// A fault behind the end, a fault in a page that others have replaced, and faults of a file in many pieces.
fn faults_around_stores(place: &Place, file: &pagestone::File, map: &Mapping) {
    map.write(0, &[171; 100]).unwrap();
    assert!(map.write(5000 * PAGE, &[7]).is_err(), "{}: behind the end", place.name);
    assert_eq!(map.load::<u8>(50).unwrap(), 171, "{}: after a fault behind the end", place.name);
    file.write_atomic(&[(9 * PAGE, &[3; PAGE as usize])]).unwrap();
    map.load::<u8>(9 * PAGE).unwrap();
    map.load::<u8>(10 * PAGE).unwrap();
    assert_eq!(map.load::<u8>(50).unwrap(), 171, "{}: after a page was replaced", place.name);
    for page in (20..1500).step_by(2) {
        map.store(page * PAGE, 5u64).unwrap();
    }
    for page in (20..1500).step_by(2) {
        assert_eq!(map.load::<u64>(page * PAGE).unwrap(), 5, "{}: page {page}", place.name);
    }
}

#[test]
fn a_fault_leaves_the_stores_around_it_alone() {
    Place::every(|place| {
        let file = place.file("pieces");
        for page in (0..1500).step_by(2) {
            file.write_all_at(&[65; PAGE as usize], page * PAGE).unwrap();
        }
        let private = file.map(0..5120 * PAGE, &MapOptions::private()).unwrap();
        faults_around_stores(place, &file, &private);
        drop(private);
        let mut atomic = file.map_atomic(0..5120 * PAGE).unwrap();
        faults_around_stores(place, &file, &atomic);
        // Where pieces of 2 MiB are mapped, the page that was replaced lies in one that was stored to.
        if place.granule == 1 {
            assert_eq!(atomic.commit().unwrap(), 741, "{}", place.name);
        }
    });
}

#[test]
fn threads_that_fault_in_one_window_lose_no_store() {
    const THREADS: u64 = 4;
    Place::every(|place| {
        let len = 4 * 512 * PAGE;
        let file = place.file("race");
        file.write_all_at(&vec![65; len as usize], 0).unwrap();
        let mut map = file.map_atomic(0..len).unwrap();
        for round in 1..if place.granule == 1 { 40u64 } else { 4 } {
            map.discard().unwrap();
            let together = Barrier::new(THREADS as usize);
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (map, together) = (&map, &together);
                    scope.spawn(move || {
                        for window in 0..4 {
                            together.wait();
                            map.store((window * 512 + thread * 7) * PAGE, round).unwrap();
                        }
                    });
                }
            });
            for page in (0..4).flat_map(|window| (0..THREADS).map(move |thread| window * 512 + thread * 7)) {
                assert_eq!(map.load::<u64>(page * PAGE).unwrap(), round, "{}: page {page}", place.name);
            }
            let pages = map.commit().unwrap();
            assert!(place.granule > 1 || pages == 4 * THREADS, "{}: {pages} pages", place.name);
        }
    });
}

#[test]
fn what_others_put_into_a_hole_is_seen_by_private_and_atomic_mappings() {
    type Put = fn(&pagestone::File, &Mapping);
    let puts: [(&str, Put); 3] = [
        ("write", |file, _| file.write_all_at(&[121; PAGE as usize], 3 * PAGE).unwrap()),
        ("allocate and write", |file, _| {
            file.allocate(3 * PAGE..3 * PAGE + PAGE).unwrap();
            file.write_all_at(&[121; PAGE as usize], 3 * PAGE).unwrap();
        }),
        ("a shared mapping", |_, shared| shared.write(3 * PAGE, &[121; PAGE as usize]).unwrap()),
    ];
    Place::every(|place| {
        for touched in [false, true] {
            for (how, put) in puts {
                let file = place.sparse(&format!("{how} {touched}"), 64 * PAGE);
                let shared = file.map(0..64 * PAGE, &MapOptions::shared()).unwrap();
                let private = file.map(0..64 * PAGE, &MapOptions::private()).unwrap();
                let mut atomic = file.map_atomic(0..64 * PAGE).unwrap();
                if touched {
                    assert_eq!(atomic.load::<u8>(3 * PAGE).unwrap(), 0);
                    assert_eq!(private.load::<u8>(3 * PAGE).unwrap(), 0);
                    atomic.store(20 * PAGE, 1u8).unwrap();
                }
                put(&file, &shared);
                let context = format!("{}, {how}, touched before: {touched}", place.name);
                assert_eq!(private.load::<u8>(3 * PAGE).unwrap(), 121, "private, {context}");
                // Pieces of 2 MiB are copied, and replaced, as a whole.
                if place.granule == 1 || !touched {
                    assert_eq!(atomic.load::<u8>(3 * PAGE).unwrap(), 121, "atomic, {context}");
                    atomic.store(3 * PAGE + 100, 7u8).unwrap();
                    atomic.commit().unwrap();
                } else {
                    atomic.store(3 * PAGE + 100, 7u8).unwrap();
                    let refused = atomic.commit();
                    assert!(matches!(refused, Err(Error::Conflict { .. })), "{context}: {refused:?}");
                }
                let mut byte = [0];
                file.read_at(&mut byte, 3 * PAGE).unwrap();
                assert_eq!(byte, [121], "the file, {context}");
            }
        }
    });
}

#[test]
fn what_others_put_over_a_page_of_a_base_is_seen_by_private_and_atomic_mappings() {
    type Put = fn(&pagestone::File, &Mapping);
    let puts: [(&str, Put); 4] = [
        ("write", |file, _| file.write_all_at(&[121; PAGE as usize], 3 * PAGE).unwrap()),
        ("write of a part", |file, _| file.write_all_at(&[121; 20], 3 * PAGE + 10).unwrap()),
        ("zero", |file, _| file.zero_range(3 * PAGE + 10..3 * PAGE + 10 + 20).unwrap()),
        ("a shared mapping", |_, shared| shared.write(3 * PAGE + 10, &[121; 20]).unwrap()),
    ];
    Place::every(|place| {
        for clone_first in [false, true] {
            for (how, put) in puts {
                let file = place.file(&format!("{how} {clone_first}"));
                file.write_all_at(&[65; 64 * PAGE as usize], 0).unwrap();
                let clone = || {
                    let _ = place.pool.root().unlink(b"clone");
                    place.pool.root().clone_file(b"clone", file.attr().unwrap().ino).unwrap();
                };
                if clone_first {
                    clone();
                }
                let shared = file.map(0..64 * PAGE, &MapOptions::shared()).unwrap();
                let private = file.map(0..64 * PAGE, &MapOptions::private()).unwrap();
                let mut atomic = file.map_atomic(0..64 * PAGE).unwrap();
                assert_eq!(atomic.load::<u8>(3 * PAGE).unwrap() + private.load::<u8>(3 * PAGE).unwrap(), 130);
                if !clone_first {
                    clone();
                }
                put(&file, &shared);
                let wanted = if how == "zero" { 0 } else { 121 };
                let context = format!("{}, {how}, cloned first: {clone_first}", place.name);
                // Where 2 MiB are replaced, a private mapping keeps what it has shown.
                let private = private.load::<u8>(3 * PAGE + 15).unwrap();
                assert!(private == wanted || place.granule > 1, "private, {context}: {private}");
                assert_eq!(atomic.load::<u8>(3 * PAGE + 15).unwrap(), wanted, "atomic, {context}");
                atomic.store(3 * PAGE + 100, 7u8).unwrap();
                atomic.commit().unwrap();
                let mut byte = [0];
                file.read_at(&mut byte, 3 * PAGE + 15).unwrap();
                assert_eq!(byte, [wanted], "the file, {context}");
            }
        }
    });
}

#[test]
fn commits_of_a_file_that_is_cloned_again_and_again_do_not_fill_the_pool() {
    Place::every(|place| {
        let len = 4 * 512 * PAGE;
        let file = place.file("cloned");
        file.write_all_at(&vec![65; len as usize], 0).unwrap();
        let ino = file.attr().unwrap().ino;
        let mut map = file.map_atomic(0..len).unwrap();
        for round in 0..40u64 {
            let _ = place.pool.root().unlink(b"clone");
            place.pool.root().clone_file(b"clone", ino).unwrap();
            for page in 0..len / PAGE {
                map.store(page * PAGE, round).unwrap();
            }
            map.commit().unwrap_or_else(|e| panic!("{}, round {round}: {e}", place.name));
        }
    });
}

#[test]
fn a_clone_that_came_and_went_blocks_no_commit() {
    Place::every(|place| {
        let len = 8 << 20;
        let file = place.file("source");
        file.write_all_at(&vec![65; len as usize], 0).unwrap();
        let mut map = file.map_atomic(0..len).unwrap();
        map.load::<u8>(0).unwrap();
        place.pool.root().clone_file(b"clone", file.attr().unwrap().ino).unwrap();
        place.pool.root().unlink(b"clone").unwrap();
        place.pool.sync().unwrap();
        map.store(5 * PAGE, 7u64).unwrap();
        map.commit().unwrap_or_else(|e| panic!("{}: {e}", place.name));
        let mut word = [0; 8];
        file.read_at(&mut word, 5 * PAGE).unwrap();
        assert_eq!(u64::from_le_bytes(word), 7, "{}", place.name);
        // What others give back, too, where the kernel can hold stores up meanwhile.
        if !matches!(place.name, "ordinary file") {
            map.store(700 * PAGE, 9u64).unwrap();
            file.punch_hole(9 * PAGE..9 * PAGE + 8 * PAGE).unwrap_or_else(|e| panic!("{}: {e}", place.name));
            assert_eq!(map.load::<u64>(700 * PAGE).unwrap(), 9, "{}", place.name);
            assert!(place.granule > 1 || map.load::<u8>(20 * PAGE).unwrap() == 65, "{}", place.name);
        }
    });
}

#[test]
fn stores_that_a_failed_punch_has_dropped_are_an_error() {
    Place::every(|place| {
        let file = place.file("pinned");
        file.write_all_at(&vec![65; 8 << 20], 0).unwrap();
        let shared = file.map(0..8 << 20, &MapOptions::shared()).unwrap();
        let _pin = shared.pin(0..8 << 20).unwrap();
        let private = file.map(0..8 << 20, &MapOptions::private()).unwrap();
        let mut atomic = file.map_atomic(0..8 << 20).unwrap();
        private.store(1030 * PAGE, 7u64).unwrap();
        atomic.store(1030 * PAGE, 7u64).unwrap();
        let refused = file.punch_hole(1029 * PAGE..1029 * PAGE + 8 * PAGE);
        assert!(matches!(refused, Err(Error::Pinned)), "{}: {refused:?}", place.name);
        let there = private.load::<u64>(1030 * PAGE);
        assert!(!there.is_ok_and(|word| word != 7), "{}: the file's bytes in place of a store", place.name);
        if place.granule == 1 {
            assert_eq!(private.load::<u8>(1031 * PAGE).unwrap(), 65, "{}: what had no store", place.name);
        }
        assert!(atomic.load::<u64>(1030 * PAGE).is_ok_and(|word| word == 7) || atomic.commit().is_err());
    });
}
