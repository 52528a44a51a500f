//! The library against a reference in memory: random operations of every kind, the same answers,
//! the same errors, the same bytes; then threads, and trees under stress.
//!
//! `PAGESTONE_MODEL_CASES=1000` runs more cases, `PAGESTONE_MODEL_SEED=7` repeats a run; a failure
//! prints its seed and the shortest sequence of operations that still fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod concurrent;
mod files;
mod ops;
mod place;
mod reference;
mod regressions;
mod trees;
mod verify;
mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use place::On;
use world::World;

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// A seed that is printed if the test fails, and taken from the environment to repeat it.
pub(crate) fn seed() -> u64 {
    let seed = setting("PAGESTONE_MODEL_SEED", rand::random());
    println!("PAGESTONE_MODEL_SEED={seed}");
    seed
}

fn run(on: On, sizes: &'static [u64], cases: u64, ops: usize) {
    let cases = match setting("PAGESTONE_MODEL_CASES", 0) {
        0 => cases,
        wanted => wanted * cases / 100 + 1,
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let config = Config {
        cases: cases as u32,
        max_shrink_iters: 3000,
        max_shrink_time: setting("PAGESTONE_MODEL_SHRINK_MS", 60_000) as u32,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let strategy = (prop::sample::select(sizes), prop::collection::vec(ops::op(), 1..ops));
    let outcome = runner.run(&strategy, |(size, ops)| {
        let mut world = World::new(on, size);
        for op in &ops {
            world.apply(op);
        }
        world.verify();
        world.reopen(ops.len() % 2 == 0);
        world.delete_everything();
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, (size, ops))) => {
            let ops: Vec<String> = ops.iter().map(|op| format!("  {op:?}")).collect();
            panic!("after\n{}\non {on:?}, {} MiB: {why}", ops.join("\n"), size >> 20);
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn small_pools_in_memory() {
    run(On::Memory, &[8 << 20, 10 << 20, 12 << 20], 60, 250);
}

#[test]
fn larger_pools_in_memory() {
    run(On::Memory, &[16 << 20, 32 << 20, 64 << 20, 66 << 20], 60, 250);
}

#[test]
fn pools_in_ordinary_files() {
    run(On::File, &[8 << 20, 24 << 20], 8, 120);
}

#[test]
fn pools_in_tmpfs() {
    run(On::Shm, &[8 << 20, 16 << 20], 10, 150);
}
