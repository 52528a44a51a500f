//! One crash point: its states by number, and the image of each.
//!
//! ```text
//!   power cut   durable image  +  the pending versions that survive in a pick
//!   kill        visible image  +  the first words of the write in progress
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::choose::{Frontier, Pick};
use crate::config::{Budget, Flavour};
use crate::image::CrashImage;
use crate::log::Op;
use crate::pages::{Dice, PAGE, PageMap, by_page, scramble, share};
use crate::recording::{CrashKind, CrashPoint, Recording};
use crate::replay::Replay;

/// One possible state after a crash. `Display` describes it.
#[derive(Clone)]
pub struct CrashState {
    /// The moment.
    pub point: CrashPoint,
    /// The number of the state at this moment.
    pub number: usize,
    /// Number of marks passed before the crash: what was acknowledged.
    pub acknowledged: usize,
    /// How many of those marks must have survived: all of them, except after a power cut on media that are durable
    /// at a sync: there, those before the last completed sync.
    pub must_survive: usize,
    /// Equal for equal images of one recording.
    pub hash: u64,
    /// The bytes on the media.
    pub image: CrashImage,
    moment: Arc<Moment>,
}

impl fmt::Debug for CrashState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CrashState({self})")
    }
}

impl fmt::Display for CrashState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.point.kind {
            CrashKind::PowerCut => "power cut",
            CrashKind::ProcessKill => "kill",
        };
        write!(
            f,
            "seed {:#x}, point {}, state {}: {what} before {}; {} acknowledged, {} must survive; {}",
            self.moment.seed,
            self.point.number,
            self.number,
            self.moment.next,
            self.acknowledged,
            self.must_survive,
            self.moment.describe(self.number),
        )
    }
}

/// A crash point with all its states.
pub(crate) struct Moment {
    point: CrashPoint,
    acknowledged: usize,
    must_survive: usize,
    seed: u64,
    /// Description of the event that did not happen.
    next: String,
    states: States,
}

enum States {
    Cut { frontier: Frontier, plan: Vec<Pick>, tear: bool },
    Kill { base: Arc<PageMap>, kills: Vec<Kill>, arena: Arc<Vec<u8>> },
}

/// The process ended after this many bytes of the write in progress.
struct Kill {
    bytes: u64,
    hash: u64,
    patches: Vec<(u64, Range<usize>)>,
}

impl Moment {
    /// The replay must be at the point.
    pub(crate) fn new(recording: &Recording, replay: &Replay<'_>, point: CrashPoint, budget: &Budget) -> Moment {
        let seed = scramble(recording.seed ^ scramble(point.number as u64 + 1));
        let all_survive = point.kind == CrashKind::ProcessKill || recording.flavour == Flavour::Lines;
        let next = match recording.log.events.get(point.event) {
            Some(event) => format!("event {} ({event})", point.event),
            None => "nothing more".to_string(),
        };
        let states = match point.kind {
            CrashKind::PowerCut => {
                let frontier = Frontier::at(replay);
                let tear = budget.tear_pages || recording.flavour == Flavour::Lines;
                let plan = frontier.plan(budget, tear, seed);
                States::Cut { frontier, plan, tear }
            }
            CrashKind::ProcessKill => kills(recording, replay, point, seed),
        };
        Moment {
            point,
            acknowledged: replay.marks,
            must_survive: if all_survive { replay.marks } else { replay.synced_marks },
            seed: recording.seed,
            next,
            states,
        }
    }

    pub(crate) fn count(&self) -> usize {
        match &self.states {
            States::Cut { plan, .. } => plan.len(),
            States::Kill { kills, .. } => kills.len(),
        }
    }

    /// The hash of a state's image, without building the state. Leaves the choice in `take`.
    pub(crate) fn hash(&self, number: usize, take: &mut Vec<u16>) -> u64 {
        match &self.states {
            States::Cut { frontier, plan, tear } => {
                frontier.take(plan[number], *tear, take);
                frontier.hash(take)
            }
            States::Kill { kills, .. } => kills[number].hash,
        }
    }

    /// The identity of a state. Of two states with the same one, only one need be tried. Covers the bytes, the kind
    /// of crash if it is observable afterwards, and what is expected.
    pub(crate) fn identity(&self, hash: u64, flavour: Flavour) -> u64 {
        let distinguishable = flavour == Flavour::Pages && self.point.kind == CrashKind::ProcessKill;
        let expected = scramble(scramble(self.acknowledged as u64 + 1) ^ self.must_survive as u64);
        scramble(hash ^ expected).wrapping_add(u64::from(distinguishable))
    }

    pub(crate) fn state(self: &Arc<Self>, number: usize) -> CrashState {
        let mut take = Vec::new();
        let hash = self.hash(number, &mut take);
        let image = match &self.states {
            States::Cut { frontier, .. } => {
                CrashImage::new(frontier.base.clone(), frontier.arena().clone(), frontier.patches(&take))
            }
            States::Kill { base, kills, arena } => {
                CrashImage::new(base.clone(), arena.clone(), kills[number].patches.clone())
            }
        };
        CrashState {
            point: self.point,
            number,
            acknowledged: self.acknowledged,
            must_survive: self.must_survive,
            hash,
            image,
            moment: self.clone(),
        }
    }

    fn describe(&self, number: usize) -> String {
        match &self.states {
            States::Cut { frontier, plan, tear } => {
                let mut take = Vec::new();
                frontier.take(plan[number], *tear, &mut take);
                format!("{} ({:?})", frontier.describe(&take), plan[number])
            }
            States::Kill { kills, .. } => format!("after {} bytes of it", kills[number].bytes),
        }
    }
}

/// Kills before the next event, and during it if it is a write.
fn kills(recording: &Recording, replay: &Replay<'_>, point: CrashPoint, seed: u64) -> States {
    let (at, len, data) = match recording.log.events.get(point.event).map(|event| event.op) {
        Some(Op::Write { at, len, data, .. }) => (at, len, Some(data)),
        Some(Op::Zero { at, len }) => (at, len, None),
        _ => (0, 0, None),
    };
    let mut dice = Dice::new(seed);
    let mut arena = Vec::new();
    let mut kills = vec![Kill { bytes: 0, hash: replay.visible_hash, patches: Vec::new() }];
    // Whole aligned words: a word is never half stored.
    let words = (at + len).div_ceil(8).saturating_sub(at / 8);
    for _ in 0..if words > 1 { 2 } else { 0 } {
        let bytes = (at / 8 + 1 + dice.below(words - 1)) * 8 - at;
        let mut kill = Kill { bytes, hash: replay.visible_hash, patches: Vec::new() };
        for (here, from, size) in by_page(at, bytes) {
            let (low, high) = (here & !7, (here + size as u64).next_multiple_of(8));
            let old = replay.visible.slice(low, (high - low) as usize);
            let place = arena.len();
            arena.extend_from_slice(old);
            let new = &mut arena[place + (here - low) as usize..][..size];
            match data {
                Some(data) => new.copy_from_slice(&recording.log.bytes[data + from..data + from + size]),
                None => new.fill(0),
            }
            let change = share(low, &arena[place..]).wrapping_sub(share(low, old));
            kill.hash = kill.hash.wrapping_add(change);
            kill.patches.push((low, place..arena.len()));
        }
        kills.push(kill);
    }
    debug_assert!(kills.iter().flat_map(|kill| &kill.patches).all(|(at, run)| *at as usize % PAGE + run.len() <= PAGE));
    States::Kill { base: replay.visible.clone(), kills, arena: Arc::new(arena) }
}
