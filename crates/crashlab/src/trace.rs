//! A finished recording: the moments at which it could have been cut off, and what each leaves.
//!
//! ```text
//!   events   W  W  Pe  mark  S  F  W  Pe  mark
//!                 ^               ^        ^        power cuts: where most is pending, because
//!            ^  ^     ^    ^       ^   ^        ^   a crash before that leaves a subset of it
//!                                                   kills: between any two events, and within
//! ```
//! Between two fences the pending stores only grow, and what an early crash can leave, a late one
//! can leave too. So power cuts are tried just before each fence (or sync) and at the end.

use std::io;
use std::sync::Arc;

use crate::explore::Budget;
use crate::lab::{Flavour, Nursery};
use crate::log::{Event, Log, Op};
use crate::moment::{CrashState, Moment};
use crate::pages::{PageMap, scramble};
use crate::replay::Replay;
use crate::simulator::{Simulator, Violation};

/// What went away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CrashKind {
    /// The power: caches and page cache are gone, and the media's `cache_id` is a new one.
    PowerCut,
    /// The process: everything it had stored is there, except a private overlay. Same `cache_id`.
    ProcessKill,
}

/// A moment of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashPoint {
    /// Its number in [`Trace::crash_points`].
    pub number: usize,
    /// The event that has not happened yet (the number of events: the end).
    pub event: usize,
    /// What goes away here.
    pub kind: CrashKind,
}

/// A finished recording.
pub struct Trace {
    pub(crate) base: Arc<PageMap>,
    pub(crate) log: Log,
    pub(crate) flavour: Flavour,
    pub(crate) seed: u64,
    violations: Vec<Violation>,
    cache_id: [u8; 16],
    pub(crate) nursery: Arc<Nursery>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let events = self.log.events.len();
        f.debug_struct("Trace").field("events", &events).field("marks", &self.log.marks).finish_non_exhaustive()
    }
}

impl Trace {
    #[allow(clippy::too_many_arguments, reason = "made in one place, from the fields of a simulator")]
    pub(crate) fn new(
        base: Arc<PageMap>,
        log: Log,
        violations: Vec<Violation>,
        flavour: Flavour,
        seed: u64,
        cache_id: [u8; 16],
        nursery: Arc<Nursery>,
    ) -> Trace {
        Trace { base, log, flavour, seed, violations, cache_id, nursery }
    }

    /// How many events were recorded.
    pub fn events(&self) -> usize {
        self.log.events.len()
    }

    /// The labels of all marks, in order.
    pub fn marks(&self) -> &[String] {
        &self.log.marks
    }

    /// Uses of the media that its contract forbids.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The seed of all random choices.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// One line per event, for a person who looks for a missing flush.
    pub fn listing(&self) -> String {
        let mut marks = self.log.marks.iter();
        let mut text = String::new();
        for (i, event) in self.log.events.iter().enumerate() {
            let label = if event.op == Op::Mark { marks.next().map_or("", String::as_str) } else { "" };
            text += &format!("{i:5}  {event} {label}\n");
        }
        text
    }

    /// All moments worth crashing at, in order.
    pub fn crash_points(&self) -> Vec<CrashPoint> {
        let mut points = Vec::new();
        let mut add = |event, kind| points.push(CrashPoint { number: points.len(), event, kind });
        for (event, Event { op, .. }) in self.log.events.iter().enumerate() {
            match op {
                Op::Write { .. } | Op::Zero { .. } => add(event, CrashKind::ProcessKill),
                Op::PersistEnd | Op::Fence | Op::Sync => add(event, CrashKind::PowerCut),
                Op::Flush { .. } if self.flavour == Flavour::Pages => add(event, CrashKind::PowerCut),
                Op::Flush { .. } | Op::Mark => {}
            }
        }
        add(self.log.events.len(), CrashKind::PowerCut);
        add(self.log.events.len(), CrashKind::ProcessKill);
        points
    }

    /// What may be found after a crash at `point`, equal images included.
    pub fn states(&self, point: CrashPoint, budget: &Budget) -> impl Iterator<Item = CrashState> + use<> {
        let mut replay = Replay::new(&self.base, &self.log, self.flavour);
        replay.advance_to(point.event);
        let moment = Arc::new(Moment::new(self, &replay, point, budget));
        (0..moment.count()).map(move |number| Moment::state(&moment, number))
    }

    /// The simulator that holds a state, recording from there on.
    ///
    /// # Errors
    /// When the kernel refuses the address space.
    pub fn simulator(&self, state: &CrashState) -> io::Result<Arc<Simulator>> {
        let cache_id = match state.point.kind {
            CrashKind::ProcessKill => self.cache_id,
            CrashKind::PowerCut => {
                let old = self.cache_id.iter().fold(0u64, |sum, byte| scramble(sum ^ u64::from(*byte)));
                let name = scramble(old ^ scramble(state.point.number as u64) ^ state.number as u64);
                let mut id = *b"crashlab        ";
                id[8..].copy_from_slice(&name.to_le_bytes());
                id
            }
        };
        self.nursery.revive(state.image.clone(), cache_id)
    }
}
