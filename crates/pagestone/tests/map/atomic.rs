//! Failure-atomic mappings. How they could fail, and which test would show it: a store reaches the file before the
//! commit, or only some of them do (`nothing_is_seen_before_...`, and the crash tests of `write_atomic`); a
//! failed commit loses stores (`a_commit_without_space_...`); a commit of one page costs the whole mapping
//! (`a_commit_costs_...`); stores after a commit go to old pages (`stores_go_on_after_a_commit`).

use pagestone::Error;
use pagestone::mmap::MapOptions;

use crate::place::{PAGE, Place};

/// A file with these bytes.
fn filled(place: &Place, name: &str, bytes: &[u8]) -> pagestone::File {
    let file = place.file(name);
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn bytes(file: &pagestone::File) -> Vec<u8> {
    let mut bytes = vec![0xEE; file.attr().unwrap().size as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

#[test]
fn nothing_is_seen_before_a_commit_and_all_of_it_after() {
    Place::every(|place| {
        let file = filled(place, "atomic", &vec![1; 40 * PAGE as usize + 100]);
        file.punch_hole(8 * PAGE..8 * PAGE + 8 * PAGE).unwrap();
        let shared = file.map(0..41 * PAGE, &MapOptions::shared()).unwrap();
        assert_eq!(shared.load::<u8>(9 * PAGE).unwrap(), 0);
        let mut atomic = file.map_atomic(0..41 * PAGE).unwrap();
        let before = bytes(&file);
        let mut wanted = before.clone();
        for page in [0u64, 3, 9, 10, 20, 40] {
            atomic.write(page * PAGE + 50, &[page as u8 + 2; 40]).unwrap();
            wanted[(page * PAGE) as usize + 50..][..40].fill(page as u8 + 2);
        }
        assert!(bytes(&file) == before, "{}: before the commit", place.name);
        assert_eq!(shared.load::<u8>(3 * PAGE + 50).unwrap(), 1, "{}", place.name);
        assert_eq!(atomic.load::<u8>(3 * PAGE + 50).unwrap(), 5, "{}", place.name);
        let pages = atomic.commit().unwrap();
        assert!(pages == 6 || place.granule > 1 && pages.is_multiple_of(place.granule), "{}: {pages}", place.name);
        assert!(bytes(&file) == wanted, "{}: after the commit", place.name);
        for page in [0u64, 3, 9, 10, 20, 40] {
            assert_eq!(shared.load::<u8>(page * PAGE + 50).unwrap(), page as u8 + 2, "{}, page {page}", place.name);
            assert_eq!(atomic.load::<u8>(page * PAGE + 50).unwrap(), page as u8 + 2, "{}, page {page}", place.name);
        }
        assert_eq!(atomic.commit().unwrap(), 0, "{}: nothing more", place.name);
    });
}

#[test]
fn what_is_discarded_or_dropped_was_never_there() {
    Place::every(|place| {
        let file = filled(place, "atomic", &[7; 3 * PAGE as usize]);
        let mut atomic = file.map_atomic(0..3 * PAGE).unwrap();
        atomic.fill(0..2 * PAGE, 9).unwrap();
        atomic.discard().unwrap();
        assert_eq!(atomic.load::<u8>(100).unwrap(), 7, "{}", place.name);
        atomic.fill(PAGE..3 * PAGE, 9).unwrap();
        drop(atomic);
        assert!(bytes(&file).iter().all(|&b| b == 7), "{}", place.name);
    });
}

#[test]
fn stores_go_on_after_a_commit() {
    Place::every(|place| {
        let file = filled(place, "atomic", &vec![0; 300 * PAGE as usize]);
        let (mut one, mut other) = (file.map_atomic(0..300 * PAGE).unwrap(), file.map_atomic(0..300 * PAGE).unwrap());
        let mut model = vec![0u8; 300 * PAGE as usize];
        for round in 1..40u64 {
            let atomic = if round % 3 == 0 { &mut other } else { &mut one };
            for i in 0..round {
                let at = (round * 31 + i * 7) % 300 * PAGE + i;
                atomic.store(at, round as u8).unwrap();
                model[at as usize] = round as u8;
            }
            atomic.commit().unwrap();
            assert!(bytes(&file) == model, "{}, round {round}", place.name);
            for map in [&one, &other] {
                let mut seen = vec![0; model.len()];
                map.read(0, &mut seen).unwrap();
                assert!(seen == model, "{}, round {round}: a mapping shows old pages", place.name);
            }
        }
    });
}

/// Fails if pages that move below a mapping take along what was stored for it alone.
#[test]
fn stores_that_wait_stay_when_others_change_the_pages_beside_them() {
    Place::every(|place| {
        let file = filled(place, "atomic", &vec![3; 600 * PAGE as usize]);
        let (mut atomic, shared) =
            (file.map_atomic(0..600 * PAGE).unwrap(), file.map(0..600 * PAGE, &MapOptions::shared()).unwrap());
        let private = file.map(0..600 * PAGE, &MapOptions::private()).unwrap();
        for round in 0..4u8 {
            assert_eq!(shared.load::<u8>(0).unwrap(), 3);
            atomic.store(7 * PAGE + u64::from(round), 40 + round).unwrap();
            private.store(7 * PAGE + u64::from(round), 80 + round).unwrap();
            // New storage for one page; where only whole frames are mapped, all of the frame moves then.
            file.write_atomic(&[(20 * PAGE, &[round; PAGE as usize])]).unwrap();
            assert_eq!(shared.load::<u8>(20 * PAGE).unwrap(), round, "{}", place.name);
            for before in 0..=round {
                let at = 7 * PAGE + u64::from(before);
                let seen = (atomic.load::<u8>(at).unwrap(), private.load::<u8>(at).unwrap());
                assert_eq!(seen, (40 + before, 80 + before), "{}, round {round}", place.name);
            }
        }
        if place.granule > 1 {
            // The copy is of the whole chunk: it has what page 20 was at the first store.
            assert!(matches!(atomic.commit(), Err(Error::Conflict { .. })), "{}", place.name);
            return;
        }
        atomic.commit().unwrap();
        assert_eq!(bytes(&file)[7 * PAGE as usize..][..5], [40, 41, 42, 43, 3], "{}", place.name);
        assert_eq!(private.load::<u8>(7 * PAGE + 4).unwrap(), 3);
    });
}

#[test]
fn a_clone_keeps_what_was_before_the_commit() {
    Place::every(|place| {
        let file = filled(place, "atomic", &[3; 20 * PAGE as usize]);
        let mut atomic = file.map_atomic(0..20 * PAGE).unwrap();
        atomic.fill(0..5 * PAGE, 4).unwrap();
        let clone = place.pool.root().clone_file(b"clone", file.ino()).unwrap().ino;
        let clone = place.pool.node(clone).unwrap().open().unwrap();
        atomic.fill(15 * PAGE..20 * PAGE, 5).unwrap();
        atomic.commit().unwrap();
        assert!(bytes(&clone).iter().all(|&b| b == 3), "{}", place.name);
        let seen = bytes(&file);
        assert!(seen[..5 * PAGE as usize].iter().all(|&b| b == 4), "{}", place.name);
        assert!(seen[15 * PAGE as usize..].iter().all(|&b| b == 5), "{}", place.name);
    });
}

#[test]
fn a_commit_without_space_leaves_the_file_and_keeps_the_stores() {
    Place::every(|place| {
        let file = filled(place, "atomic", &vec![1; 600 * PAGE as usize]);
        let mut atomic = file.map_atomic(0..600 * PAGE).unwrap();
        atomic.fill(0..600 * PAGE, 2).unwrap();
        let full = filled(place, "full", b"");
        while full.append(&vec![0; 64 * PAGE as usize]).is_ok() {}
        assert!(matches!(atomic.commit(), Err(Error::NoSpace)), "{}", place.name);
        assert!(bytes(&file).iter().all(|&b| b == 1), "{}", place.name);
        full.set_len(0).unwrap();
        assert_eq!(atomic.commit().unwrap() / 600, 600u64.next_multiple_of(place.granule) / 600, "{}", place.name);
        assert!(bytes(&file).iter().all(|&b| b == 2), "{}", place.name);
    });
}

#[test]
fn a_commit_of_10_000_scattered_pages_and_of_one_in_a_large_file() {
    Place::each(|place| {
        let file = filled(place, "atomic", b"");
        file.set_len(1 << 36).unwrap();
        let mut atomic = file.map_atomic(0..1 << 36).unwrap();
        for page in 0..10_000u64 {
            atomic.store(page * 3 * PAGE, page + 1).unwrap();
        }
        assert_eq!(atomic.commit().unwrap(), 10_000, "{}", place.name);
        assert_eq!(file.attr().unwrap().pages, 10_000, "{}", place.name);
        for page in (0..10_000u64).step_by(97) {
            assert_eq!(atomic.load::<u64>(page * 3 * PAGE).unwrap(), page + 1, "{}", place.name);
        }
        atomic.store(1 << 35, 1u8).unwrap();
        assert_eq!(atomic.commit().unwrap(), 1, "{}", place.name);
    });
}

/// Fails by a hang (or, in a debug build, by the order of locks) if a mapping is frozen under the chain's lock.
#[test]
fn a_commit_larger_than_a_record_ends_on_every_granularity() {
    Place::every(|place| {
        let len = 8 << 20;
        let file = filled(place, "large", &vec![1; len]);
        let shared = file.map(0..len as u64, &MapOptions::shared()).unwrap();
        let private = file.map(0..len as u64, &MapOptions::private()).unwrap();
        assert_eq!((shared.load::<u8>(0).unwrap(), private.load::<u8>(0).unwrap()), (1, 1));
        let mut atomic = file.map_atomic(0..len as u64).unwrap();
        for page in 0..len as u64 / PAGE {
            atomic.store(page * PAGE, 2u8).unwrap();
        }
        assert_eq!(atomic.commit().unwrap(), len as u64 / PAGE, "{}", place.name);
        assert_eq!(shared.load::<u8>(len as u64 - PAGE).unwrap(), 2, "{}", place.name);
        assert_eq!(private.load::<u8>(0).unwrap(), 1, "{}: it shows what it showed", place.name);
    });
}

#[test]
fn a_clone_goes_while_the_other_is_mapped_privately_on_every_granularity() {
    Place::every(|place| {
        let len = 4 << 20;
        let file = filled(place, "a", &vec![3; len]);
        let attr = place.pool.root().clone_file(b"b", file.ino()).unwrap();
        let clone = place.pool.node(attr.ino).unwrap().open().unwrap();
        let private = clone.map(0..len as u64, &MapOptions::private()).unwrap();
        private.store(0, 4u8).unwrap();
        drop(file);
        place.pool.root().unlink(b"a").unwrap();
        place.pool.sync().unwrap();
        assert_eq!(private.load::<u8>(0).unwrap(), 4, "{}", place.name);
        assert_eq!(private.load::<u8>(PAGE).unwrap(), 3, "{}", place.name);
    });
}

fn conflicts(result: pagestone::Result<u64>, file: &pagestone::File, pages: &[u64]) -> bool {
    matches!(result, Err(Error::Conflict { ino, page }) if ino == file.ino() && pages.contains(&page))
}

/// Fails if a commit undoes what others have done to a page since the mapping stored to it.
#[test]
fn a_commit_on_pages_that_were_changed_since_is_a_conflict() {
    type Change = fn(&pagestone::File);
    let changes: [(&str, Change); 7] = [
        ("another commit", |f| {
            let mut other = f.map_atomic(0..60 * PAGE).unwrap();
            other.store(10 * PAGE + 8, 9u8).unwrap();
            assert_eq!(other.commit().unwrap(), 1);
        }),
        ("write_at", |f| f.write_all_at(&[9], 10 * PAGE + 8).unwrap()),
        ("write_at, known", |f| (0..2).for_each(|_| f.write_all_at(&[9], 10 * PAGE + 8).unwrap())),
        ("write_at over a hole too", |f| f.write_all_at(&vec![9; 20 * PAGE as usize], 10 * PAGE + 8).unwrap()),
        ("write_atomic", |f| f.write_atomic(&[(10 * PAGE + 8, &[9])]).unwrap()),
        ("zero", |f| f.zero_range_keep_size(10 * PAGE + 8..10 * PAGE + 8 + 100).unwrap()),
        ("punch", |f| f.punch_hole(10 * PAGE + 8..10 * PAGE + 8 + 100).unwrap()),
    ];
    Place::each(|place: &Place| {
        for (name, change) in changes {
            let file = filled(place, name, &vec![1; 60 * PAGE as usize]);
            file.punch_hole(20 * PAGE..20 * PAGE + PAGE).unwrap();
            let mut atomic = file.map_atomic(0..60 * PAGE).unwrap();
            atomic.store(10 * PAGE, 2u8).unwrap();
            atomic.store(40 * PAGE, 2u8).unwrap();
            change(&file);
            let now = bytes(&file);
            for _ in 0..2 {
                assert!(conflicts(atomic.commit(), &file, &[10]), "{}, {name}", place.name);
                assert!(bytes(&file) == now, "{}, {name}", place.name);
                assert_eq!(atomic.load::<u8>(40 * PAGE).unwrap(), 2, "the stores are still here");
            }
            atomic.discard().unwrap();
            assert_eq!(atomic.load::<u8>(10 * PAGE + 8).unwrap(), now[10 * PAGE as usize + 8]);
            atomic.store(10 * PAGE, 2u8).unwrap();
            assert_eq!(atomic.commit().unwrap(), 1, "{}, {name}", place.name);
        }
    });
}

/// Fails if changes are taken for conflicts that undo nothing: of other pages, before the store, of nothing but where
/// pages lie, or by the mapping itself.
#[test]
fn a_commit_on_pages_that_nobody_has_changed_since_is_none() {
    Place::each(|place: &Place| {
        let file = filled(place, "atomic", &vec![1; 60 * PAGE as usize]);
        let mut atomic = file.map_atomic(0..60 * PAGE).unwrap();
        for round in 2..5u8 {
            file.write_all_at(&[round; 20], 10 * PAGE).unwrap();
            assert_eq!(atomic.load::<u8>(10 * PAGE).unwrap(), round, "seen, and not copied");
            file.write_all_at(&[round + 1; 20], 10 * PAGE).unwrap();
            atomic.store(10 * PAGE + 8, round).unwrap();
            file.write_all_at(&[round; PAGE as usize], 9 * PAGE).unwrap();
            file.write_atomic(&[(11 * PAGE, &[round; 10])]).unwrap();
            let mut other = file.map_atomic(0..60 * PAGE).unwrap();
            other.store(12 * PAGE, round).unwrap();
            assert_eq!(other.commit().unwrap(), 1);
            place.pool.root().clone_file(&[b'a' + round], file.ino()).unwrap();
            file.set_len(60 * PAGE + 100).unwrap();
            file.set_len(60 * PAGE).unwrap();
            assert_eq!(atomic.commit().unwrap(), 1, "{}, round {round}", place.name);
        }
    });
}

/// Fails if a commit lengthens a file that a truncate has shortened since the store, or brings back what it cut off.
#[test]
fn a_commit_does_not_undo_a_truncate() {
    Place::each(|place: &Place| {
        let file = filled(place, "atomic", &vec![1; 60 * PAGE as usize]);
        let mut atomic = file.map_atomic(0..60 * PAGE).unwrap();
        for page in [10, 20, 30u64] {
            atomic.store(page * PAGE, 2u8).unwrap();
        }
        file.set_len(20 * PAGE + 100).unwrap();
        atomic.commit().unwrap();
        let mut wanted = vec![1; 20 * PAGE as usize + 100];
        (wanted[10 * PAGE as usize], wanted[20 * PAGE as usize]) = (2, 2);
        assert!(bytes(&file) == wanted, "{}", place.name);
        // Cut, and grown again: there are zeros now where the copy has what was cut off.
        atomic.store(20 * PAGE, 3u8).unwrap();
        file.set_len(20 * PAGE + 50).unwrap();
        file.set_len(60 * PAGE).unwrap();
        assert!(conflicts(atomic.commit(), &file, &[20]), "{}", place.name);
        atomic.discard().unwrap();
        atomic.store(20 * PAGE, 3u8).unwrap();
        assert_eq!(atomic.commit().unwrap(), 1, "{}", place.name);
    });
}

/// Fails if a commit keeps quiet about stores that a punch, or a truncate and a growth, has taken away: all or none.
#[test]
fn a_commit_whose_stores_were_cut_off_in_part_is_a_conflict() {
    type Change = fn(&pagestone::File);
    let changes: [(&str, Change, u64); 3] = [
        ("punched whole", |f| f.punch_hole(10 * PAGE..10 * PAGE + PAGE).unwrap(), 10),
        (
            "cut and grown again",
            |f| {
                f.set_len(8 * PAGE).unwrap();
                f.set_len(60 * PAGE).unwrap();
            },
            10,
        ),
        (
            "punched and filled again",
            |f| f.punch_hole(9 * PAGE..9 * PAGE + 3 * PAGE).and(f.write_all_at(b"new", 10 * PAGE)).unwrap(),
            10,
        ),
    ];
    Place::each(|place: &Place| {
        for (name, change, page) in changes {
            let file = filled(place, name, &vec![1; 60 * PAGE as usize]);
            let mut atomic = file.map_atomic(0..60 * PAGE).unwrap();
            atomic.store(10 * PAGE, 2u8).unwrap();
            atomic.store(40 * PAGE, 2u8).unwrap();
            change(&file);
            let now = bytes(&file);
            assert!(conflicts(atomic.commit(), &file, &[page]), "{}, {name}", place.name);
            assert!(bytes(&file) == now, "{}, {name}", place.name);
            atomic.discard().unwrap();
            atomic.store(40 * PAGE, 3u8).unwrap();
            assert_eq!(atomic.commit().unwrap(), 1, "{}, {name}", place.name);
        }
        // The only store, and behind the end at the commit: it is dropped.
        let file = filled(place, "shortened", &vec![1; 60 * PAGE as usize]);
        let mut atomic = file.map_atomic(0..60 * PAGE).unwrap();
        atomic.store(50 * PAGE, 2u8).unwrap();
        file.set_len(8 * PAGE).unwrap();
        atomic.commit().unwrap();
        // The only store, and inside.
        atomic.store(5 * PAGE, 2u8).unwrap();
        file.punch_hole(5 * PAGE..5 * PAGE + PAGE).unwrap();
        assert!(conflicts(atomic.commit(), &file, &[5]), "{}", place.name);
    });
}
