//! A finished recording: its crash points, and the states of each.
//!
//! ```text
//!   events   W  W  Pe  mark  S  F  W  Pe  mark
//!                 ^               ^        ^        power cuts: where most is pending, because
//!            ^  ^     ^    ^       ^   ^        ^   an earlier crash leaves a subset of it
//!                                                   kills: between any two events, and within
//! ```
//! Between two fences pending stores are only added, and every state after an early crash is possible after a late
//! one. So power cuts are tried just before each fence (or sync) and at the end.

use std::io;
use std::sync::Arc;

use crate::config::{Budget, Flavour};
use crate::log::{Event, Op};
use crate::moment::{CrashState, Moment};
use crate::pages::scramble;
use crate::recording::{CrashKind, CrashPoint, Recording};
use crate::replay::Replay;
use crate::simulator::{IdleSimulators, Simulator, Violation};

/// A finished recording.
pub struct Trace {
    pub(crate) recording: Recording,
    violations: Vec<Violation>,
    cache_id: [u8; 16],
    pub(crate) idle: Arc<IdleSimulators>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let events = self.recording.log.events.len();
        f.debug_struct("Trace")
            .field("events", &events)
            .field("marks", &self.recording.log.marks)
            .finish_non_exhaustive()
    }
}

impl Simulator {
    /// Ends the recording. Without a recording, the trace has no events.
    pub fn finish(&self) -> Trace {
        let (recording, violations) = self.take_recording();
        Trace { recording, violations, cache_id: self.cache_id(), idle: self.idle() }
    }
}

impl Trace {
    /// Number of events recorded.
    pub fn events(&self) -> usize {
        self.recording.log.events.len()
    }

    /// The labels of all marks, in order.
    pub fn marks(&self) -> &[String] {
        &self.recording.log.marks
    }

    /// Violations of the media's contract.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The seed of all random choices.
    pub fn seed(&self) -> u64 {
        self.recording.seed
    }

    /// One line per event, to search for a missing flush.
    pub fn listing(&self) -> String {
        let mut marks = self.recording.log.marks.iter();
        let mut text = String::new();
        for (i, event) in self.recording.log.events.iter().enumerate() {
            let label = if event.op == Op::Mark { marks.next().map_or("", String::as_str) } else { "" };
            text += &format!("{i:5}  {event} {label}\n");
        }
        text
    }

    /// All crash points, in order.
    pub fn crash_points(&self) -> Vec<CrashPoint> {
        let mut points = Vec::new();
        let mut add = |event, kind| points.push(CrashPoint { number: points.len(), event, kind });
        for (event, Event { op, .. }) in self.recording.log.events.iter().enumerate() {
            match op {
                Op::Write { .. } | Op::Zero { .. } => add(event, CrashKind::ProcessKill),
                Op::PersistEnd | Op::Fence | Op::Sync => add(event, CrashKind::PowerCut),
                Op::Flush { .. } if self.recording.flavour == Flavour::Pages => add(event, CrashKind::PowerCut),
                Op::Flush { .. } | Op::Mark => {}
            }
        }
        add(self.recording.log.events.len(), CrashKind::PowerCut);
        add(self.recording.log.events.len(), CrashKind::ProcessKill);
        points
    }

    /// The possible states after a crash at `point`, including equal images.
    pub fn states(&self, point: CrashPoint, budget: &Budget) -> impl Iterator<Item = CrashState> + use<> {
        let mut replay = Replay::new(&self.recording.base, &self.recording.log, self.recording.flavour);
        replay.advance_to(point.event);
        let moment = Arc::new(Moment::new(&self.recording, &replay, point, budget));
        (0..moment.count()).map(move |number| Moment::state(&moment, number))
    }

    /// A simulator that contains a state and records from there.
    ///
    /// # Errors
    /// If the kernel denies the address space.
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
        self.idle.with_image(state.image.clone(), cache_id)
    }
}
