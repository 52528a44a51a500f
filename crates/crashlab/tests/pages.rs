//! The page flavour: an ordinary file, its page cache and its disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use crashlab::{
    Budget, Call, CrashKind, Failure, Fault, Faulty, Flavour, Lab, Simulator, Summary, Trace, Violation, explore,
};
use pmem::{Durability, MappedRange, Media, Part};

const PAGE: u64 = 4096;
const LEN: u64 = 1 << 20;

fn media(seed: u64) -> (Lab, Arc<Simulator>) {
    let lab = Lab::new(LEN, Flavour::Pages, seed);
    let media = lab.media().expect("address space");
    media.start_recording();
    (lab, media)
}

fn word(window: &MappedRange, at: u64) -> u64 {
    let mut bytes = [0; 8];
    assert!(window.read(at, &mut bytes));
    u64::from_le_bytes(bytes)
}

fn persist(sim: &Simulator, at: u64, value: u64) {
    sim.persist(&[Part::Bytes { at, bytes: &value.to_le_bytes() }]).expect("persist");
}

/// Everything that can be found at the given words after a crash at the end.
fn leftovers(trace: &Trace, kind: CrashKind, budget: &Budget, words: &[u64]) -> BTreeSet<Vec<u64>> {
    let points = trace.crash_points();
    let last = points.iter().rfind(|point| point.kind == kind).expect("the end is a point");
    let read = |image: &crashlab::CrashImage, at: u64| {
        let mut bytes = [0; 8];
        image.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    trace.states(*last, budget).map(|state| words.iter().map(|at| read(&state.image, *at)).collect()).collect()
}

#[test]
fn any_page_in_any_version_may_be_on_the_disk_and_a_kill_leaves_the_cache() {
    let (_lab, sim) = media(1);
    assert_eq!(sim.describe().durability, Durability::AtSync);
    persist(&sim, 0, 1);
    sim.sync().expect("sync");
    persist(&sim, 0, 2);
    persist(&sim, 0, 3);
    persist(&sim, PAGE, 4);
    let trace = sim.finish();
    let cut = leftovers(&trace, CrashKind::PowerCut, &Budget::default(), &[0, PAGE]);
    assert_eq!(cut, [[1, 0], [2, 0], [3, 0], [1, 4], [2, 4], [3, 4]].map(Vec::from).into());
    let kill = leftovers(&trace, CrashKind::ProcessKill, &Budget::default(), &[0, PAGE]);
    assert_eq!(kill, [vec![3, 4]].into());
}

#[test]
fn pages_are_torn_at_sectors_only_if_asked() {
    let (_lab, sim) = media(1);
    sim.persist(&[Part::Bytes { at: 0, bytes: &[0xff; 4096] }]).expect("persist");
    let trace = sim.finish();
    let whole = Budget { tear_pages: false, ..Budget::default() };
    let words: Vec<u64> = (0..8).map(|sector| sector * 512).collect();
    assert_eq!(leftovers(&trace, CrashKind::PowerCut, &whole, &words).len(), 2);
    assert_eq!(leftovers(&trace, CrashKind::PowerCut, &Budget::default(), &words).len(), 256);
}

#[test]
fn stores_stay_in_the_overlay_until_flushed_and_synced() {
    let (_lab, sim) = media(1);
    persist(&sim, 8, 7);
    assert_eq!(word(sim.views().meta, 8), 7, "the page cache shows through");
    sim.persist(&[Part::Zero { at: 8, len: 8 }]).expect("persist");
    assert_eq!(word(sim.views().meta, 8), 0, "zeros, too");
    persist(&sim, 8, 7);
    sim.sync().expect("sync");
    sim.store(0, &1u64.to_le_bytes());
    sim.store(PAGE, &2u64.to_le_bytes());
    assert_eq!((word(sim.views().meta, 0), word(sim.views().data, 0)), (1, 0));
    sim.sync().expect("sync");
    sim.flush(0, 8).expect("flush");
    let trace = sim.finish();
    let words = [0, 8, PAGE];
    let cut = leftovers(&trace, CrashKind::PowerCut, &Budget::default(), &words);
    assert_eq!(cut, [vec![0, 7, 0], vec![1, 7, 0]].into());

    sim.start_recording();
    sim.sync().expect("sync");
    persist(&sim, 0, 9);
    assert_eq!(word(sim.views().meta, 0), 9, "the private copy is gone after its sync");
    assert_eq!(word(sim.views().meta, PAGE), 2, "and the other is still there");
    assert!(sim.violations().is_empty());
    let trace = sim.finish();
    let cut = leftovers(&trace, CrashKind::PowerCut, &Budget::default(), &words);
    assert_eq!(cut, [vec![1, 7, 0], vec![9, 7, 0]].into());
}

#[test]
fn misuse_of_the_two_windows_is_reported() {
    let (_lab, sim) = media(1);
    sim.store(PAGE + 5, &[1]);
    persist(&sim, PAGE + 8, 1);
    sim.store(0, &[1]);
    sim.flush(0, 1).expect("flush");
    sim.store(1, &[1]);
    let expected = [Violation::PersistUnderOverlay { page: PAGE }, Violation::StoreAfterFlush { page: 0 }];
    assert_eq!(sim.finish().violations(), expected);
}

#[test]
fn a_power_cut_changes_the_cache_id_and_a_kill_does_not() {
    let (_lab, sim) = media(1);
    persist(&sim, 0, 1);
    let before = sim.describe().cache_id;
    explore(&sim.finish(), &Budget::default(), |state, sim| {
        let same = sim.describe().cache_id == before;
        if same == (state.point.kind == CrashKind::ProcessKill) { Ok(()) } else { Err("wrong id".into()) }
    })
    .expect("ids");
}

#[test]
fn what_was_changed_through_an_address_can_be_declared() {
    let (_lab, sim) = media(1);
    assert!(sim.views().data.write(PAGE - 8, &[0xff; 16]));
    sim.absorb(PAGE - 8, 16);
    assert_eq!(word(sim.views().meta, PAGE), u64::MAX);
    let trace = sim.finish();
    assert_eq!(leftovers(&trace, CrashKind::PowerCut, &Budget::default(), &[PAGE - 8, PAGE]).len(), 4);
    assert!(trace.violations().is_empty());
}

/// A journal of one sector per record, and two pages that must hold the same number.
const A: u64 = 8 * PAGE;
const B: u64 = 9 * PAGE;

/// How the toy below goes about a checkpoint.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    JournalFirst,
    AllAtOnce,
}

fn run_journal(seed: u64, order: Order) -> Trace {
    let (_lab, sim) = media(seed);
    for n in 1..=5u64 {
        let record: Vec<u8> = [n, !n].iter().flat_map(|word| word.to_le_bytes()).collect();
        sim.persist(&[Part::Bytes { at: n * 512, bytes: &record }]).expect("persist");
        sim.mark(format!("record {n}"));
        sim.store(A, &n.to_le_bytes());
        sim.store(B, &n.to_le_bytes());
        if n % 2 == 0 {
            if order == Order::JournalFirst {
                sim.sync().expect("sync");
            }
            sim.flush(A, 2 * PAGE).expect("flush");
            sim.sync().expect("sync");
        }
    }
    sim.finish()
}

fn check_journal(trace: &Trace) -> Result<Summary, Box<Failure>> {
    assert!(trace.violations().is_empty());
    explore(trace, &Budget::default(), |state, sim| {
        let windows = sim.views();
        let valid = |n: &u64| word(windows.data, n * 512) == *n && word(windows.data, n * 512 + 8) == !*n;
        // Records of unsynced operations may survive in any subset: only an unbroken run counts.
        let recorded = (1..=6).find(|n| !valid(n)).map_or(0, |n| n - 1);
        let (a, b) = (word(windows.meta, A), word(windows.meta, B));
        if a.max(b) > recorded {
            return Err(format!("{a} and {b} in place, {recorded} in the journal"));
        }
        let expected = state.must_survive as u64..=state.acknowledged as u64 + 1;
        if expected.contains(&recorded) { Ok(()) } else { Err(format!("{recorded}, not in {expected:?}")) }
    })
}

#[test]
fn a_journal_synced_before_the_pages_it_describes_survives() {
    let summary = check_journal(&run_journal(1, Order::JournalFirst)).expect("correct");
    assert!(summary.states > 40, "{summary}");
}

#[test]
fn a_journal_synced_together_with_the_pages_it_describes_is_caught() {
    let failure = check_journal(&run_journal(1, Order::AllAtOnce)).expect_err("a page can overtake its record");
    assert!(failure.message.contains("in the journal"), "{failure}");
}

#[test]
fn a_kill_tears_a_record_that_is_being_written() {
    let (_lab, sim) = media(1);
    sim.persist(&[Part::Bytes { at: 4, bytes: &[0xff; 64] }]).expect("persist");
    let trace = sim.finish();
    let kill = trace.crash_points()[0];
    assert_eq!(kill.kind, CrashKind::ProcessKill);
    let mut lengths = BTreeSet::new();
    for state in trace.states(kill, &Budget::default()) {
        let mut bytes = [0; 128];
        state.image.read(0, &mut bytes);
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(4, |last| last + 1);
        assert!(bytes[4..end].iter().all(|byte| *byte == 0xff), "a prefix in order");
        assert!(end == 4 || end % 8 == 0 && end < 68, "cut between words");
        lengths.insert(end);
    }
    assert!(lengths.len() >= 2);
}

#[test]
fn the_same_seed_gives_the_same_states_and_every_image_is_loaded_exactly() {
    let run = |seed| {
        let mut hashes = Vec::new();
        let budget = Budget { exhaustive_up_to: 4, ..Budget::small() };
        explore(&run_journal(seed, Order::AllAtOnce), &budget, |state, sim| {
            for page in 0..10 {
                let (mut meta, mut data, mut want) = ([0; 4096], [0; 4096], [0; 4096]);
                assert!(sim.views().meta.read(page * PAGE, &mut meta));
                assert!(sim.views().data.read(page * PAGE, &mut data));
                state.image.read(page * PAGE, &mut want);
                assert!(meta == want && data == want, "page {page} of {state}");
            }
            sim.store(A, &[9; 100]);
            persist(sim, B, 11);
            hashes.push(state.hash);
            Ok(())
        })
        .expect("images agree");
        hashes
    };
    assert_eq!(run(3), run(3));
}

#[test]
fn thousands_of_states_per_second() {
    let lab = Lab::new(8 << 20, Flavour::Pages, 2);
    let sim = lab.media().expect("address space");
    (0..100).for_each(|page| persist(&sim, page * 65536, 7));
    sim.start_recording();
    for n in 0..60u64 {
        sim.persist(&[Part::Bytes { at: n % 20 * PAGE, bytes: &[n as u8; 1024] }]).expect("persist");
        sim.store((n % 30 + 100) * PAGE, &[n as u8; 64]);
        if n % 15 == 14 {
            sim.sync().expect("sync");
            sim.flush(100 * PAGE, 30 * PAGE).expect("flush");
            sim.sync().expect("sync");
        }
    }
    let budget = Budget { sampled: 200, ..Budget::default() };
    let summary = explore(&sim.finish(), &budget, |_, sim| {
        (0..10).for_each(|page| persist(sim, page * 65536, 1));
        Ok(())
    })
    .expect("nothing is checked");
    println!("{summary}");
    assert!(summary.states > 5000);
}

#[test]
fn the_nth_call_fails_as_told() {
    let (_lab, sim) = media(1);
    let part = |value: &'static [u8]| [Part::Bytes { at: 0, bytes: value }];
    let late = Fault { but_done: true, from_then_on: true, ..Fault::once(Call::Persist, 2, Fault::EIO) };
    let faulty = Faulty::new(sim.clone(), [Fault::once(Call::Reserve, 0, Fault::ENOSPC), late]);
    let code = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    assert_eq!(code(faulty.reserve(0, 8)), Some(Fault::ENOSPC));
    assert_eq!(code(faulty.reserve(0, 8)), None);
    let codes = [b"a", b"b", b"c", b"d"].map(|value| code(faulty.persist(&part(value))));
    assert_eq!(codes, [None, None, Some(Fault::EIO), Some(Fault::EIO)]);
    assert_eq!(word(faulty.views().data, 0), u64::from(b'd'), "done, though it failed");
    assert_eq!(faulty.calls(Call::Persist), 4);
    faulty.set_faults([]);
    assert_eq!(code(faulty.persist(&part(b"e"))), None);
}
