//! The line flavour: what may survive, and that the lab catches who relies on more.

use std::collections::BTreeSet;
use std::sync::Arc;

use crashlab::{Budget, CrashKind, Failure, Flavour, Lab, Simulator, Summary, Trace, explore, explore_nested};
use pmem::{Media, Part};

const LEN: u64 = 1 << 20;

fn lab(seed: u64) -> (Lab, Arc<Simulator>) {
    let lab = Lab::new(LEN, Flavour::Lines, seed);
    let media = lab.media().expect("address space");
    media.start_recording();
    (lab, media)
}

fn word(sim: &Simulator, at: u64) -> u64 {
    let mut bytes = [0; 8];
    assert!(sim.views().data.read(at, &mut bytes));
    u64::from_le_bytes(bytes)
}

fn store(sim: &Simulator, at: u64, value: u64) {
    sim.store(at, &value.to_le_bytes());
}

/// Everything that can be found at the given words after a power cut at the last point.
fn leftovers(trace: &Trace, words: &[u64]) -> BTreeSet<Vec<u64>> {
    let points = trace.crash_points();
    let last = points.iter().rfind(|p| p.kind == CrashKind::PowerCut).expect("the end is a point");
    trace
        .states(*last, &Budget::default())
        .map(|state| {
            let read = |at: &u64| {
                let mut bytes = [0; 8];
                state.image.read(*at, &mut bytes);
                u64::from_le_bytes(bytes)
            };
            words.iter().map(read).collect()
        })
        .collect()
}

#[test]
fn three_pending_words_leave_eight_images() {
    let (_lab, sim) = lab(1);
    for (at, value) in [(0, 1), (8, 2), (4096, 3)] {
        store(&sim, at, value);
    }
    let trace = sim.finish();
    assert_eq!(leftovers(&trace, &[0, 8, 4096]).len(), 8);
    let summary = explore(&trace, &Budget::default(), |_, _| Ok(())).expect("nothing is checked");
    assert_eq!(summary.states, 8, "each image is tried once");
}

#[test]
fn versions_of_one_word_survive_one_at_a_time() {
    let (_lab, sim) = lab(1);
    [5, 6, 7].iter().for_each(|value| store(&sim, 64, *value));
    assert_eq!(leftovers(&sim.finish(), &[64]), [0, 5, 6, 7].map(|v| vec![v]).into());
}

#[test]
fn flushed_and_fenced_is_durable_and_flushed_alone_is_not() {
    let (_lab, sim) = lab(1);
    store(&sim, 0, 1);
    store(&sim, 64, 2);
    store(&sim, 128, 3);
    sim.flush(0, 72).expect("flush");
    sim.fence();
    sim.flush(128, 8).expect("flush");
    assert_eq!(leftovers(&sim.finish(), &[0, 64, 128]), [vec![1, 2, 0], vec![1, 2, 3]].into());
}

#[test]
fn a_store_after_the_flush_is_not_covered_by_it() {
    let (_lab, sim) = lab(1);
    store(&sim, 0, 1);
    sim.flush(0, 8).expect("flush");
    store(&sim, 0, 2);
    sim.fence();
    assert_eq!(leftovers(&sim.finish(), &[0]), [vec![1], vec![2]].into());
}

#[test]
fn storing_the_same_value_again_and_fencing_makes_it_durable() {
    let (_lab, sim) = lab(1);
    store(&sim, 0, 1);
    sim.persist(&[Part::Bytes { at: 0, bytes: &1u64.to_le_bytes() }]).expect("persist");
    assert_eq!(leftovers(&sim.finish(), &[0]), [vec![1]].into());
}

#[test]
fn a_persist_fences_earlier_flushes_of_its_own_thread_only() {
    let (_lab, sim) = lab(1);
    store(&sim, 0, 1);
    sim.flush(0, 8).expect("flush");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store(&sim, 64, 2);
            sim.flush(64, 8).expect("flush");
        });
    });
    sim.persist(&[Part::Bytes { at: 128, bytes: &[3; 8] }]).expect("persist");
    assert_eq!(leftovers(&sim.finish(), &[0, 64]), [vec![1, 0], vec![1, 2]].into());
}

#[test]
fn a_partial_word_keeps_its_neighbours() {
    let (_lab, sim) = lab(1);
    sim.persist(&[Part::Bytes { at: 0, bytes: &[0xff; 16] }]).expect("persist");
    sim.store(6, &[0; 4]);
    let low = u64::MAX >> 16;
    let high = u64::MAX << 16;
    let all = [vec![u64::MAX, u64::MAX], vec![low, u64::MAX], vec![u64::MAX, high], vec![low, high]];
    assert_eq!(leftovers(&sim.finish(), &[0, 8]), all.into());
}

#[test]
fn zeroing_is_persisted_like_bytes() {
    let (_lab, sim) = lab(1);
    sim.persist(&[Part::Bytes { at: 0, bytes: &[0xff; 9000] }]).expect("persist");
    sim.persist(&[Part::Zero { at: 4096, len: LEN - 4096 }]).expect("persist");
    let trace = sim.finish();
    assert_eq!(leftovers(&trace, &[0, 4096, 8192]), [vec![u64::MAX, 0, 0]].into());
    explore(&trace, &Budget::small(), |state, sim| {
        let kept = (0..512).all(|i| word(sim, i * 8) == u64::MAX);
        if state.acknowledged == 0 && state.point.event >= 2 && !kept { Err("first page lost".into()) } else { Ok(()) }
    })
    .expect("the first page was fenced before the zeroing began");
}

/// Two cells and a flag that says which one counts; `careful` fences the cell before the flag.
fn flip(sim: &Simulator, value: u64, careful: bool) {
    let flag = word(sim, 0);
    let cell = 4096 * (2 - flag % 2);
    store(sim, cell, value);
    store(sim, cell + 8, !value);
    sim.flush(cell, 16).expect("flush");
    if careful {
        sim.fence();
    }
    store(sim, 0, flag + 1);
    sim.flush(0, 8).expect("flush");
    sim.fence();
    sim.mark(format!("value {value}"));
}

fn run_cells(seed: u64, careful: bool) -> Trace {
    let lab = Lab::new(LEN, Flavour::Lines, seed);
    let sim = lab.media().expect("address space");
    flip(&sim, 100, true);
    sim.start_recording();
    (1..=4).for_each(|n| flip(&sim, 100 + n, careful));
    sim.finish()
}

fn check_cells(trace: &Trace) -> Result<Summary, Box<Failure>> {
    explore(trace, &Budget::default(), |state, sim| {
        let cell = 4096 * (1 + word(sim, 0) % 2);
        let (value, copy) = (word(sim, cell), !word(sim, cell + 8));
        let found = value.wrapping_sub(100);
        let expected = state.must_survive as u64..=state.acknowledged as u64 + 1;
        if value == copy && expected.contains(&found) { Ok(()) } else { Err(format!("{value} and {copy}")) }
    })
}

#[test]
fn two_cells_with_both_fences_survive() {
    let summary = check_cells(&run_cells(3, true)).expect("correct");
    // The start, and per flip: three of the cell, one of the flag, and that one acknowledged.
    assert_eq!(summary.states, 1 + 4 * (3 + 1 + 1), "{summary}");
}

#[test]
fn a_missing_fence_is_caught_and_found_again_by_its_number() {
    let trace = run_cells(3, false);
    let failure = check_cells(&trace).expect_err("the flag can be durable before the cell");
    let budget = Budget::default().only(failure.point, failure.number);
    let mut tried = 0;
    explore(&trace, &budget, |state, _| {
        tried += 1;
        assert_eq!(state.to_string(), failure.state);
        Ok(())
    })
    .expect("nothing is checked");
    assert_eq!(tried, 1);
    assert!(failure.to_string().contains("pending 8-byte units survive"), "{failure}");
}

/// A log of `n` records of one page each, each complete (its checksum word last) or ignored.
/// Returns a trace in which too much is pending to try every combination.
fn run_log(seed: u64, forget: Option<u64>) -> Trace {
    let (_lab, sim) = lab(seed);
    for n in 0..4u64 {
        let at = 4096 * (n + 1);
        (0..64).for_each(|i| store(&sim, at + i * 64, n * 64 + i + 1));
        for i in (0..64).filter(|i| Some(*i) != forget) {
            sim.flush(at + i * 64, 8).expect("flush");
        }
        sim.fence();
        sim.persist(&[Part::Bytes { at: 0, bytes: &(n + 1).to_le_bytes() }]).expect("persist");
        sim.mark("record");
    }
    sim.finish()
}

fn check_log(trace: &Trace, budget: &Budget) -> Result<Summary, Box<Failure>> {
    explore(trace, budget, |state, sim| {
        let count = word(sim, 0);
        if count < state.must_survive as u64 {
            return Err(format!("{count} records"));
        }
        let lost = (0..count * 64).find(|i| word(sim, 4096 * (1 + i / 64) + i % 64 * 64) != i + 1);
        lost.map_or(Ok(()), |i| Err(format!("word {i} of {count} records")))
    })
}

#[test]
fn one_line_of_many_without_a_flush_is_caught_by_samples() {
    for seed in 0..20 {
        check_log(&run_log(seed, None), &Budget::small()).expect("correct");
        check_log(&run_log(seed, Some(seed * 3)), &Budget::small()).expect_err("a line was never flushed");
    }
}

#[test]
fn the_same_seed_gives_the_same_states() {
    let hashes = |seed| {
        let mut hashes = Vec::new();
        let trace = run_log(seed, Some(1));
        explore(&trace, &Budget::small(), |state, _| {
            hashes.push(state.hash);
            Ok(())
        })
        .expect("nothing is checked");
        hashes
    };
    assert_eq!(hashes(5), hashes(5));
    assert_ne!(hashes(5), hashes(6));
}

#[test]
fn each_simulator_holds_exactly_its_image() {
    let trace = run_log(9, Some(7));
    let mut n = 0u64;
    explore(&trace, &Budget::small(), |state, sim| {
        // Dirty the simulator, so that a bad reset of the next one shows.
        for page in 0..8 {
            let (mut got, mut want) = ([0; 4096], [0; 4096]);
            assert!(sim.views().meta.read(page * 4096, &mut got));
            state.image.read(page * 4096, &mut want);
            assert_eq!(got, want, "page {page} of {state}");
        }
        n += 1;
        store(sim, 4096 * (n % 8) + 8 * (n % 512), n);
        sim.persist(&[Part::Zero { at: 4096 * (n % 7), len: 8192 }]).expect("persist");
        Ok(())
    })
    .expect("images agree");
}

#[test]
fn a_recovery_that_is_not_idempotent_is_caught_when_crashed() {
    // Recovery adds what the journal (word 8) says to the counter (word 0) and clears the journal.
    fn recover(sim: &Simulator, careful: bool) {
        let (counter, journal) = (word(sim, 0), word(sim, 64));
        if journal != 0 {
            let sum = if careful { journal } else { counter + 1 };
            sim.persist(&[Part::Bytes { at: 0, bytes: &sum.to_le_bytes() }]).expect("persist");
            sim.persist(&[Part::Zero { at: 64, len: 8 }]).expect("persist");
        }
    }
    let run = |careful: bool| {
        let (_lab, sim) = lab(4);
        sim.persist(&[Part::Bytes { at: 64, bytes: &1u64.to_le_bytes() }]).expect("persist");
        sim.mark("journalled");
        explore(&sim.finish(), &Budget::default(), |outer, sim| {
            recover(sim, careful);
            explore_nested(outer, sim, &Budget::small(), |_, sim| {
                recover(sim, careful);
                let counter = word(sim, 0);
                if counter == outer.must_survive as u64 || outer.must_survive == 0 && counter == 1 {
                    return Ok(());
                }
                Err(format!("counted to {counter}"))
            })
            .map(|_| ())
        })
    };
    run(true).expect("setting a value twice is harmless");
    let failure = run(false).expect_err("adding twice is not");
    assert!(failure.message.starts_with("recovery from ["), "{failure}");
}

#[test]
fn a_panic_in_the_check_is_a_failure() {
    let (_lab, sim) = lab(1);
    store(&sim, 0, 1);
    let failure = explore(&sim.finish(), &Budget::default(), |_, _| panic!("boom")).expect_err("it panics");
    assert_eq!(failure.message, "panicked: boom");
}

#[test]
fn thousands_of_states_per_second() {
    let lab = Lab::new(8 << 20, Flavour::Lines, 2);
    let sim = lab.media().expect("address space");
    (0..100).for_each(|page| sim.store(page * 65536, &[7; 4096]));
    sim.start_recording();
    for n in 0..40u64 {
        sim.persist(&[Part::Bytes { at: n * 65536, bytes: &[n as u8; 1024] }]).expect("persist");
        (0..8).for_each(|i| store(&sim, (n + i) * 65536 + 2048, n + 1));
        sim.flush(n * 65536, 4096).expect("flush");
    }
    let budget = Budget { sampled: 200, ..Budget::default() };
    let summary = explore(&sim.finish(), &budget, |_, sim| {
        (0..10).for_each(|page| store(sim, page * 65536, 1));
        Ok(())
    })
    .expect("nothing is checked");
    println!("{summary}");
    assert!(summary.states > 5000);
}

#[test]
fn a_fence_orders_nothing_that_another_thread_flushed() {
    let (_lab, sim) = lab(1);
    store(&sim, 0, 1);
    sim.flush(0, 8).expect("flush");
    std::thread::scope(|scope| {
        scope.spawn(|| sim.fence());
    });
    assert_eq!(leftovers(&sim.finish(), &[0]), [vec![0], vec![1]].into());
}
