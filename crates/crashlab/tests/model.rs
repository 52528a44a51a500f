//! The lab against a second, naive description of the same rules: on random traces every state
//! that the lab makes is legal, every legal value of a word is made, and the hash by which states
//! are told apart does tell them apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crashlab::{Budget, CrashKind, Flavour, Lab, Simulator, explore, explore_nested};
use pmem::{Media, Part};

const PAGE: usize = 4096;
const LEN: usize = 4 * PAGE;

/// A small generator of its own, so that the test shares nothing with what it tests.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// What the rules allow before one event: for each unit all values that may be found.
#[derive(Clone)]
struct Naive {
    unit: usize,
    seen: Vec<u8>,
    /// Values a unit has had since it was last durable, oldest (the durable one) first.
    values: BTreeMap<usize, Vec<Vec<u8>>>,
    /// How many of them the flush has covered.
    flushed: BTreeMap<usize, usize>,
}

impl Naive {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let unit = (at + i) / self.unit;
            let range = unit * self.unit..(unit + 1) * self.unit;
            let fresh = i == 0 || (at + i).is_multiple_of(self.unit);
            let old = self.seen[range.clone()].to_vec();
            self.seen[at + i] = *byte;
            let values = self.values.entry(unit).or_insert_with(|| vec![old]);
            // One write makes one version of each unit, however many bytes of it change.
            if !fresh {
                values.pop();
            }
            values.push(self.seen[range].to_vec());
        }
    }
    fn flush(&mut self, at: usize, len: usize) {
        for unit in at / self.unit..(at + len).div_ceil(self.unit) {
            if let Some(values) = self.values.get(&unit) {
                self.flushed.insert(unit, values.len() - 1);
            }
        }
    }
    fn fence(&mut self) {
        for (unit, covered) in std::mem::take(&mut self.flushed) {
            if let Some(values) = self.values.get_mut(&unit) {
                values.drain(..covered);
            }
        }
    }
    fn allows(&self, image: &[u8]) -> Result<(), String> {
        for (unit, found) in image.chunks(self.unit).enumerate() {
            let seen = &self.seen[unit * self.unit..][..self.unit];
            let legal = match self.values.get(&unit) {
                Some(values) => values.iter().any(|value| value == found),
                None => seen == found,
            };
            if !legal {
                return Err(format!("unit {unit}"));
            }
        }
        Ok(())
    }
}

/// Runs random calls; returns for each event what was legal before it.
fn run(sim: &Simulator, flavour: Flavour, dice: &mut Lcg) -> Vec<Naive> {
    let unit = if flavour == Flavour::Lines { 8 } else { 512 };
    let mut now = Naive { unit, seen: vec![0; LEN], values: BTreeMap::new(), flushed: BTreeMap::new() };
    let mut history = vec![now.clone()];
    for _ in 0..12 {
        let longest = if dice.below(4) == 0 { 700 } else { 20 };
        let len = 1 + dice.below(longest) as usize;
        let at = (dice.below(24) as usize * 680).min(LEN - len);
        let bytes: Vec<u8> = (0..len).map(|_| dice.below(3) as u8).collect();
        match dice.below(8) {
            0..3 if flavour == Flavour::Lines => {
                sim.store(at as u64, &bytes);
                now.write(at, &bytes);
            }
            3 if flavour == Flavour::Lines => {
                sim.flush(at as u64, len as u64).expect("flush");
                now.flush(at, len);
            }
            4 if flavour == Flavour::Lines => {
                sim.fence();
                now.fence();
            }
            5 => {
                sim.sync().expect("sync");
                match flavour {
                    Flavour::Lines => now.fence(),
                    Flavour::Pages => now.values.clear(),
                }
            }
            6 => {
                sim.persist(&[Part::Zero { at: at as u64, len: len as u64 }]).expect("persist");
                now.write(at, &vec![0; len]);
                now.flush(at, len);
                history.push(now.clone());
                if flavour == Flavour::Lines {
                    now.fence();
                }
            }
            _ => {
                sim.persist(&[Part::Bytes { at: at as u64, bytes: &bytes }]).expect("persist");
                now.write(at, &bytes);
                now.flush(at, len);
                history.push(now.clone());
                if flavour == Flavour::Lines {
                    now.fence();
                }
            }
        }
        history.push(now.clone());
    }
    history
}

fn contents(sim: &Simulator) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    assert!(sim.views().data.read(0, &mut bytes));
    let mut meta = vec![0; LEN];
    assert!(sim.views().meta.read(0, &mut meta));
    assert_eq!(bytes, meta, "nothing is in the overlay after a crash");
    bytes
}

fn compare(flavour: Flavour, seed: u64) {
    let lab = Lab::new(LEN as u64, flavour, seed);
    let media = lab.media().expect("address space");
    media.start_recording();
    let mut dice = Lcg(seed);
    let history = run(&media, flavour, &mut dice);
    let trace = media.finish();
    assert_eq!(trace.events() + 1, history.len(), "the test counts events as the lab does");
    let mut by_hash: HashMap<u64, Vec<u8>> = HashMap::new();
    let budget = Budget { exhaustive_up_to: 100, sampled: 60, ..Budget::default() };
    let check = |state: &crashlab::CrashState, sim: &Arc<Simulator>| {
        let bytes = contents(sim);
        let naive = &history[state.point.event];
        if let Some(same) = by_hash.insert(state.hash, bytes.clone()) {
            assert_eq!(same, bytes, "one hash, one image");
        }
        match state.point.kind {
            CrashKind::PowerCut => naive.allows(&bytes)?,
            CrashKind::ProcessKill => {
                let after = &history[(state.point.event + 1).min(history.len() - 1)].seen;
                let torn = (0..LEN).all(|i| bytes[i] == naive.seen[i] || bytes[i] == after[i]);
                assert!(torn, "a kill leaves bytes from before or after one write");
            }
        }
        // Use the simulator and crash it again: the next state must not see any of it.
        run(sim, flavour, &mut dice);
        explore_nested(state, sim, &Budget { sampled: 3, exhaustive_up_to: 2, points: 3, ..budget }, |inner, sim| {
            let mut want = vec![0; LEN];
            inner.image.read(0, &mut want);
            if contents(sim) == want { Ok(()) } else { Err("a simulator was not reset".into()) }
        })
        .map(|_| ())
    };
    explore(&trace, &budget, check).expect("only legal states");
    let distinct: BTreeSet<&Vec<u8>> = by_hash.values().collect();
    assert_eq!(distinct.len(), by_hash.len(), "one image, one hash");
    all_values_are_made(&trace, &history, flavour, &budget);
}

/// At the end of the trace, every unit is found in every value that it may have.
fn all_values_are_made(trace: &crashlab::Trace, history: &[Naive], flavour: Flavour, budget: &Budget) {
    let points = trace.crash_points();
    let end = points.iter().rfind(|point| point.kind == CrashKind::PowerCut).expect("the end is a point");
    let naive = &history[end.event];
    let budget = Budget { sampled: 400, ..*budget };
    let images: Vec<Vec<u8>> = trace
        .states(*end, &budget)
        .map(|state| {
            let mut bytes = vec![0; LEN];
            state.image.read(0, &mut bytes);
            bytes
        })
        .collect();
    for (unit, values) in &naive.values {
        for value in values {
            let range = unit * naive.unit..(unit + 1) * naive.unit;
            assert!(images.iter().any(|image| image[range.clone()] == **value), "{flavour:?}: unit {unit} never so");
        }
    }
}

#[test]
fn lines_agree_with_the_rules() {
    (0..40).for_each(|seed| compare(Flavour::Lines, seed));
}

#[test]
fn pages_agree_with_the_rules() {
    (0..40).for_each(|seed| compare(Flavour::Pages, seed));
}
