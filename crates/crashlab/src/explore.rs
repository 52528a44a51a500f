//! Exploration: runs a check on the crash states of a trace, one after the other.
//!
//! ```text
//!   trace -> crash points -> states -> (known image? skip) -> simulator -> check
//!                                                                 |           |
//!                                                  idle simulators <--- Ok ---+--- Err: report, with
//!                                                                               how to reproduce it
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Budget;
use crate::moment::{CrashState, Moment};
use crate::pages::{Dice, FastSet, scramble};
use crate::recording::{CrashKind, CrashPoint};
use crate::replay::Replay;
use crate::simulator::Simulator;
use crate::trace::Trace;

/// Statistics of an exploration.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Number of crash points.
    pub points: usize,
    /// Number of states checked.
    pub states: usize,
    /// States skipped because an equal image, with as much acknowledged, was checked before.
    pub repeated: usize,
    /// Duration.
    pub elapsed: Duration,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Summary { points, states, repeated, elapsed } = self;
        let rate = *states as f64 / elapsed.as_secs_f64().max(1e-9);
        write!(f, "{states} states at {points} points ({repeated} repeated) in {elapsed:.2?}, {rate:.0}/s")
    }
}

/// A state for which the check failed.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    /// Description of the state.
    pub state: String,
    /// The error of the check.
    pub message: String,
    /// For [`Budget::only`].
    pub point: usize,
    /// For [`Budget::only`].
    pub number: usize,
    /// For [`crate::Lab::new`].
    pub seed: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Failure { state, message, point, number, seed } = self;
        write!(f, "{message}\n  after {state}\n  again: Lab::new(.., {seed:#x}), budget.only({point}, {number})")
    }
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Readable also if a test only calls `expect`.
        write!(f, "{self}")
    }
}

impl std::error::Error for Failure {}

/// Calls `check` for every crash state within the budget, on a simulator that records from there.
///
/// The check opens what is on the simulator, compares it with the expected contents, and closes it. A panic in it
/// counts as a failure.
///
/// # Errors
/// The first state for which `check` failed.
pub fn explore<F>(trace: &Trace, budget: &Budget, mut check: F) -> Result<Summary, Box<Failure>>
where
    F: FnMut(&CrashState, &Arc<Simulator>) -> Result<(), String>,
{
    let start = Instant::now();
    let mut summary = Summary::default();
    let mut seen = FastSet::default();
    let mut take = Vec::new();
    let mut replay = Replay::new(&trace.recording.base, &trace.recording.log, trace.recording.flavour);
    for point in chosen_points(trace, budget) {
        replay.advance_to(point.event);
        let moment = Arc::new(Moment::new(&trace.recording, &replay, point, budget));
        summary.points += 1;
        for number in 0..moment.count() {
            if budget.only.is_some_and(|(_, only)| only != number) {
                continue;
            }
            let hash = moment.hash(number, &mut take);
            if !seen.insert(moment.identity(hash, trace.recording.flavour)) {
                summary.repeated += 1;
                continue;
            }
            try_state(trace, &moment.state(number), &mut check)?;
            summary.states += 1;
        }
    }
    summary.elapsed = start.elapsed();
    Ok(summary)
}

/// Crashes a recovery: ends the recording of `sim`, on which something was just opened, and explores it. `outer` is
/// the state that was recovered from; the report includes it.
///
/// # Errors
/// The first state for which `check` failed.
pub fn explore_nested<F>(outer: &CrashState, sim: &Simulator, budget: &Budget, check: F) -> Result<Summary, String>
where
    F: FnMut(&CrashState, &Arc<Simulator>) -> Result<(), String>,
{
    let trace = sim.finish();
    explore(&trace, budget, check).map_err(|failure| format!("recovery from [{outer}] was crashed: {failure}"))
}

fn try_state<F>(trace: &Trace, state: &CrashState, check: &mut F) -> Result<(), Box<Failure>>
where
    F: FnMut(&CrashState, &Arc<Simulator>) -> Result<(), String>,
{
    let outcome = match trace.simulator(state) {
        Ok(sim) => {
            let outcome = catch_unwind(AssertUnwindSafe(|| check(state, &sim)));
            trace.idle.put_back(sim);
            outcome.unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic))))
        }
        Err(error) => Err(format!("no memory for the simulator: {error}")),
    };
    outcome.map_err(|message| {
        Box::new(Failure {
            state: state.to_string(),
            message,
            point: state.point.number,
            number: state.number,
            seed: trace.recording.seed,
        })
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

/// The crash points within the budget, in order.
fn chosen_points(trace: &Trace, budget: &Budget) -> Vec<CrashPoint> {
    let mut points = trace.crash_points();
    if let Some((only, _)) = budget.only {
        points.retain(|point| point.number == only);
        return points;
    }
    points.retain(|point| budget.kills || point.kind == CrashKind::PowerCut);
    if points.len() > budget.points {
        // One random point from each of equal parts, and the end.
        let mut dice = Dice::new(scramble(trace.recording.seed ^ 0x5eed));
        let (all, wanted) = (points.len(), budget.points.max(1));
        let mut kept: Vec<CrashPoint> = (0..wanted)
            .map(|i| (i * all / wanted, (i + 1) * all / wanted))
            .map(|(from, end)| points[from + dice.below((end - from) as u64) as usize])
            .collect();
        if let (Some(slot), Some(last)) = (kept.last_mut(), points.iter().rfind(|p| p.kind == CrashKind::PowerCut)) {
            *slot = *last;
        }
        kept.dedup();
        kept.sort_by_key(|point| point.number);
        points = kept;
    }
    points
}
