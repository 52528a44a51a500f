//! Timing: all runners in turn, many short rounds, medians.
//!
//! ```text
//!   round 0   A B C   (not counted: warms caches up)
//!   round 1   A B C
//!   round 2   C B A   ...
//! ```
//!
//! A ratio is the median of the ratios of single rounds. A disturbance of the machine that is longer than a round
//! affects both sides of the ratio.

use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Result, anyhow};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One side of a race. Gets the number of the round and executes its operations.
pub(crate) type Runner<'a> = &'a mut dyn FnMut(usize) -> Result<()>;

/// The times of one runner, in nanoseconds per operation, by round.
#[derive(Clone, Debug)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    /// The median.
    pub(crate) fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// The median of this divided by `other`, round by round.
    pub(crate) fn ratio(&self, other: &Times) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

/// The median of the values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs the runners in turn, each with `ops` operations per round.
pub(crate) fn race(rounds: usize, ops: usize, runners: &mut [Runner<'_>]) -> Result<Vec<Times>> {
    race_by(rounds, runners.len(), |runner, round| {
        let begun = Instant::now();
        runners[runner](round)?;
        Ok(begun.elapsed().as_nanos() as f64 / ops as f64)
    })
}

/// As [`race`]; `run(runner, round)` returns the time of an operation.
pub(crate) fn race_by(
    rounds: usize,
    runners: usize,
    mut run: impl FnMut(usize, usize) -> Result<f64>,
) -> Result<Vec<Times>> {
    let mut times = vec![Times(Vec::with_capacity(rounds)); runners];
    for round in 0..=rounds {
        for turn in 0..runners {
            let runner = if round % 2 == 0 { runners - 1 - turn } else { turn };
            let ns = run(runner, round)?;
            if round > 0 {
                times[runner].0.push(ns);
            }
        }
    }
    Ok(times)
}

/// Runs `body(thread)` on `threads` threads at once, each bound to a processor. Returns the nanoseconds from the
/// first start to the last end.
pub(crate) fn together(threads: usize, first: usize, body: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<f64> {
    let barrier = Barrier::new(threads);
    let spans: Result<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let barrier = &barrier;
        let run = |i: usize| {
            scope.spawn(move || {
                bind(first + i);
                barrier.wait();
                let begun = Instant::now();
                body(i)?;
                Ok((begun, Instant::now()))
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().map(|t| t.join().map_err(|_| anyhow!("a measuring thread panicked"))?).collect()
    });
    let spans = spans?;
    let begun = spans.iter().map(|s| s.0).min();
    let ended = spans.iter().map(|s| s.1).max();
    Ok(begun.zip(ended).map_or(f64::NAN, |(b, e)| (e - b).as_nanos() as f64))
}

/// Binds the calling thread to the `n`-th processor that it may use.
pub(crate) fn bind(n: usize) {
    let Ok(set) = sched_getaffinity(None) else { return };
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    if usable.is_empty() {
        return;
    }
    let mut one = CpuSet::new();
    one.set(usable[n % usable.len()]);
    // If it is not permitted, the kernel chooses the processor.
    let _ = sched_setaffinity(None, &one);
}

/// Processors that this process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `count` scattered offsets, multiples of `step` below `len`; the same ones at each call.
pub(crate) fn offsets(count: usize, len: u64, step: u64) -> Vec<u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (len / step) * step
    };
    std::iter::repeat_with(next).take(count).collect()
}
