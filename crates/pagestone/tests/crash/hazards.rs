//! The hazards of the journal that the design names, and the bugs that the crash tests found:
//! one test each. Every one fails when the guard it names is taken out.

use crashlab::{Budget, CrashKind, Flavour, Simulator};
use pagestone::{Error, OpenOptions, Place, Pool};
use pmem::{Media, Part};

use crate::ops::{At, Driver, Op};
use crate::pairs::BEFORE;
use crate::run::{self, Care, Template};

const BOTH: [Flavour; 2] = [Flavour::Lines, Flavour::Pages];
/// Where the first lane of a small pool lies, and how long a lane is.
const LANES: u64 = 256 * 4096;
const LANE: u64 = 64 * 4096;

fn care(sampled: usize) -> Care {
    let budget = Budget { exhaustive_up_to: sampled, sampled, ..Budget::default() };
    Care { budget, from: 0, nested: 0, emptied: 50 }
}

/// Records the operations and checks what is left of them; returns how many states there were.
fn survive(flavour: Flavour, ops: &[Op], care: &Care) -> usize {
    let template = Template::new(flavour, 0xDA7A, &BEFORE);
    let run = run::record(&template, ops).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
    run::check(&template, &run, care).unwrap_or_else(|e| panic!("{flavour:?}: {e}"))
}

/// Guard: freed pages stay in quarantine until the next checkpoint (`Allocator::quarantine_pages`).
#[test]
fn an_old_record_is_not_replayed_over_what_has_become_data() {
    // The node of directory `a` is in the journal. Then it is free, and two files outgrow their
    // frames, so that whatever looks free is taken.
    let pages = 600 * 4096;
    let ops = [
        Op::Mkdir("a"),
        Op::Create("a/x"),
        Op::Unlink("a/x"),
        Op::Rmdir("a"),
        Op::Write("f", At::Offset(8192), pages, 1),
        Op::Write("d/x", At::Offset(4096), pages, 2),
    ];
    for flavour in BOTH {
        let budget = Budget { points: 1, sampled: 4, exhaustive_up_to: 4, ..Budget::default() };
        let tried = survive(flavour, &ops, &Care { budget, from: 0, nested: 0, emptied: 1 });
        assert!(tried > 0);
    }
}

/// Guard: replay goes by sequence number, whatever the lane (`replay`, the sort).
#[test]
fn records_of_two_lanes_that_touch_one_place_are_replayed_in_order() {
    let ops: Vec<Op> = (0..12).map(|i| Op::SetAttr("f", 0o600 + i, i)).collect();
    for flavour in BOTH {
        let template = Template::new(flavour, 0xDA7A, &BEFORE);
        let run = run::record_on_threads(&template, &ops).unwrap();
        let listing = run.trace.listing();
        let lane = |i: u64| in_lane(&listing, i);
        assert!(lane(0) && lane(1), "both lanes are used:\n{listing}");
        run::check(&template, &run, &care(40)).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
    }
}

/// Whether something was persisted into a lane.
fn in_lane(listing: &str, lane: u64) -> bool {
    let range = LANES + lane * LANE..LANES + (lane + 1) * LANE;
    let persisted = listing.lines().filter(|line| line.contains("persist of"));
    persisted
        .filter_map(|line| line.rsplit_once("at 0x"))
        .any(|(_, at)| u64::from_str_radix(at.trim(), 16).is_ok_and(|at| range.contains(&at)))
}

/// Guard: what replay stored is flushed before the mark says it is history (`start_session`).
#[test]
fn a_recovery_may_crash_like_anything_else() {
    let ops = [
        Op::Create("a"),
        Op::Write("a", At::Offset(100), 9000, 1),
        Op::Rename("d/x", "e/x", pagestone::inode::RenameMode::Replace),
        Op::SetXattr("f", "user.a", 2500, 2),
        Op::Unlink("f"),
    ];
    for flavour in BOTH {
        let care = Care { nested: 3, ..care(6) };
        let tried = survive(flavour, &ops, &care);
        assert!(tried > 500, "{tried}");
    }
}

/// Guards: a checkpoint flushes what the records describe (`flush_lane`) before its mark.
#[test]
fn a_full_lane_is_checkpointed_without_a_gap() {
    let xattr = |i: u8| Op::SetXattr(["f", "d/x"][usize::from(i % 2)], "user.big", 9000, i);
    let mut ops: Vec<Op> = (0..14).map(xattr).collect();
    ops.extend([Op::Create("a"), Op::Write("a", At::Offset(0), 6000, 9), Op::Unlink("f")]);
    for flavour in BOTH {
        let template = Template::new(flavour, 0xDA7A, &BEFORE);
        let run = run::record(&template, &ops).unwrap();
        let marks = ["persist of 64 bytes at 0x1000", "persist of 64 bytes at 0x1200"];
        assert!(marks.iter().any(|mark| run.trace.listing().contains(mark)), "the lane was full once");
        run::check(&template, &run, &care(6)).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
    }
}

/// Found here: the checkpoint at the end of a session flushed what records described that a power
/// cut would have made void, because no sync mark said that their data was durable.
#[test]
fn a_power_cut_in_the_midst_of_an_unsynced_checkpoint() {
    survive(Flavour::Pages, &[Op::Create("a"), Op::Write("a", At::Offset(0), 5000, 3), Op::Drop], &care(200));
}

/// Found here: after a kill, recovery flushed what records described before they were durable
/// themselves; a power cut then left half of it.
#[test]
fn a_power_cut_in_the_midst_of_the_recovery_from_a_kill() {
    let care = Care { nested: 1, ..care(4) };
    survive(Flavour::Pages, &[Op::Create("a"), Op::SetXattr("f", "user.y", 3000, 9)], &care);
}

/// The record headers of a lane: where each lies and how long it is.
fn records(media: &dyn Media, lane: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = LANES + lane * LANE;
    loop {
        let mut head = [0; 32];
        assert!(media.views().data.read(at, &mut head));
        let len = u64::from(u32::from_le_bytes([head[16], head[17], head[18], head[19]]));
        if head[..4] != *b"PREC" || len == 0 {
            return found;
        }
        found.push((at, len));
        at += len;
    }
}

/// Found here, with threads: a kill between taking a number and writing its record made all later
/// records void on an ordinary file, those that had been acknowledged too.
#[test]
fn a_number_without_a_record_does_not_take_others_along() {
    let template = Template::new(Flavour::Pages, 0xDA7A, &BEFORE);
    // Threads prefer lanes in turn, but other tests have threads, too.
    let in_two_lanes = || {
        let media = template.media();
        let before = numbers(&media);
        let mut driver = Driver::new(media.clone()).unwrap();
        media.start_recording();
        for op in [Op::SetAttr("f", 0o600, 1), Op::SetAttr("d/x", 0o601, 2)] {
            std::thread::scope(|scope| scope.spawn(|| driver.run(op)).join()).unwrap().unwrap();
        }
        let trace = media.finish();
        let end = trace.crash_points().into_iter().rfind(|point| point.kind == CrashKind::ProcessKill);
        let state = trace.states(end.unwrap(), &Budget::default()).next().unwrap();
        let killed = trace.simulator(&state).unwrap();
        let after = numbers(&killed);
        (0..2).all(|lane| before[lane] != after[lane]).then_some((killed, after))
    };
    let (media, numbers) = (0..1000).find_map(|_| in_two_lanes()).expect("lanes differ in the end");
    let first = if numbers[0] < numbers[1] { LANES } else { LANES + LANE };
    media.persist(&[Part::Zero { at: first, len: 64 }]).unwrap();
    let pool = run::open(&media).unwrap();
    assert_eq!(pool.resolve(b"f").unwrap().attr().unwrap().uid, 0, "never acknowledged");
    assert_eq!(pool.resolve(b"d/x").unwrap().attr().unwrap().uid, 2, "acknowledged");
}

/// The number of the first record in each lane.
fn numbers(media: &Simulator) -> [u64; 2] {
    [0, 1].map(|lane| {
        let mut bytes = [0; 8];
        assert!(media.views().data.read(LANES + lane * LANE + 8, &mut bytes));
        u64::from_le_bytes(bytes)
    })
}

/// Chooses one of a lane's records.
type Pick = fn(&[(u64, u64)]) -> (u64, u64);

/// Guard: a scan that ends goes on looking for newer whole records (`scan_lane`).
#[test]
fn a_torn_record_is_the_end_of_its_lane_and_a_damaged_one_is_an_error() {
    let template = Template::new(Flavour::Lines, 0xDA7A, &[]);
    let damaged = |pick: Pick| {
        let media = template.media();
        let mut driver = Driver::new(media.clone()).unwrap();
        for path in ["a", "b", "c", "e"] {
            driver.run(Op::Create(path)).unwrap();
        }
        std::mem::forget(driver); // a kill
        let lane = (0..2).map(|lane| records(&*media, lane)).max_by_key(Vec::len).unwrap();
        assert!(lane.len() >= 4, "{lane:?}");
        let (at, len) = pick(&lane);
        let mut byte = [0];
        assert!(media.views().data.read(at + len / 2, &mut byte));
        media.persist(&[Part::Bytes { at: at + len / 2, bytes: &[!byte[0]] }]).unwrap();
        Pool::open_on(media, &OpenOptions::default())
    };
    let pool = damaged(|lane| lane[lane.len() - 1]).unwrap();
    assert!(pool.resolve(b"c").is_ok() && matches!(pool.resolve(b"e"), Err(Error::NotFound)));
    let before_the_last: [Pick; 2] = [|lane| lane[0], |lane| lane[lane.len() - 2]];
    for pick in before_the_last {
        match damaged(pick) {
            Err(Error::Corrupt { place, what }) => {
                let here = matches!(place, Place::JournalLane { .. });
                assert!(here && what.contains("damaged"), "{place}: {what}");
            }
            other => panic!("a damaged record is an error: {:?}", other.map(drop)),
        }
    }
}
