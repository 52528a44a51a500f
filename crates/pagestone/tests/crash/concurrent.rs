//! Several threads at once, each in a directory of its own: after a crash every directory must be
//! what some number of its thread's operations leaves, whatever became of the others.

use std::time::Instant;

use crashlab::{Budget, CrashKind, Flavour, Simulator, Trace, explore};

use crate::model::World;
use crate::ops::{Driver, Op, Path};
use crate::random::sequence_of_thread;
use crate::run::{self, Effort, Template};
use crate::seen::{self, Span};

const BASES: [Path; 3] = ["t0", "t1", "t2"];

/// What one thread did.
struct Story {
    base: Path,
    ops: Vec<Op>,
    worlds: Vec<World>,
}

impl Story {
    fn new(base: Path, seed: u64) -> Story {
        Story { base, ops: sequence_of_thread(seed), worlds: vec![World::empty(run::LEN)] }
    }

    fn run(&mut self, driver: &mut Driver, sim: &Simulator) -> Result<(), String> {
        for op in &self.ops {
            let before = &self.worlds[self.worlds.len() - 1];
            let mut world = before.clone();
            let (wanted, done) = (world.run(*op), driver.run(*op));
            match (&done, wanted) {
                (Ok(()), Ok(())) => {}
                (Err(e), Err(errno)) if e.errno() == errno => world = before.clone(),
                _ => return Err(format!("{}: {op:?} answers {done:?}, the model {wanted:?}", self.base)),
            }
            self.worlds.push(world);
            sim.mark(self.base);
        }
        Ok(())
    }

    /// Whether the thread's directory is what `must` to `begun` operations leave.
    fn survives(&self, tree: &seen::Tree, root: pagestone::Ino, must: usize, in_order: bool) -> Result<(), String> {
        let mine = tree[&root].child(self.base).ok_or_else(|| format!("{} is missing", self.base))?;
        let worlds = &self.worlds[..];
        let mut wrong = String::new();
        let begun = if in_order { (must + 1).min(self.ops.len()) } else { self.ops.len() };
        for k in (must..=begun).rev() {
            let from = if in_order { k } else { must };
            match seen::compare(tree, mine, k, Span { worlds, from, to: begun }) {
                Ok(()) => return Ok(()),
                Err(e) => wrong += &format!("\n    after {k} operations: {e}"),
            }
        }
        Err(format!("{} is none of{wrong}\n{:?}", self.base, self.ops))
    }
}

fn record(template: &Template, seed: u64) -> Result<(Vec<Story>, Trace), String> {
    let sim = template.media();
    let driver = Driver::new(sim.clone()).map_err(|e| format!("opening: {e}"))?;
    let mut stories: Vec<Story> = (0..3).map(|i| Story::new(BASES[i], seed * 3 + i as u64)).collect();
    sim.start_recording();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for story in &mut stories {
            let (mut driver, sim) = (driver.below(story.base), &sim);
            threads.push(scope.spawn(move || story.run(&mut driver, sim)));
        }
        threads.into_iter().try_for_each(|thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().expect("operations do not panic")
        })
    })?;
    if !sim.violations().is_empty() {
        return Err(format!("the media was misused: {:?}", sim.violations()));
    }
    let tree = seen::read(driver.pool())?;
    for story in &stories {
        story.survives(&tree, driver.pool().root().ino(), story.ops.len(), true)?;
    }
    Ok((stories, sim.finish()))
}

fn try_one(template: &Template, seed: u64) -> Result<usize, String> {
    let (stories, trace) = record(template, seed)?;
    let budget = Budget { exhaustive_up_to: 24, sampled: 20, points: 30, ..Budget::default() };
    let mut number = 0;
    let summary = explore(&trace, &budget, |state, sim| {
        let pool = run::open(sim)?;
        let tree = seen::read(&pool)?;
        let in_order = template.flavour == Flavour::Lines || state.point.kind == CrashKind::ProcessKill;
        for story in &stories {
            let done = trace.marks()[..state.acknowledged].iter().filter(|mark| **mark == story.base).count();
            story.survives(&tree, pool.root().ino(), if in_order { done } else { 0 }, in_order)?;
        }
        drop(pool);
        number += 1;
        if number % 9 == 0 {
            run::is_clean(sim)?;
            run::is_usable(&run::open(sim)?, template.free())?;
        }
        Ok(())
    });
    summary.map(|summary| summary.states).map_err(|failure| format!("seed {seed}: {failure}"))
}

#[test]
fn threads_in_directories_of_their_own_survive() {
    let started = Instant::now();
    let templates =
        [Flavour::Lines, Flavour::Pages].map(|flavour| Template::new(flavour, 0x7EAD, &BASES.map(Op::Mkdir)));
    let seeds: Vec<u64> = (0..Effort::of(80, 400, 2000)).collect();
    let states = run::in_parallel(&seeds, |seed| try_one(&templates[*seed as usize % 2], *seed));
    let seconds = started.elapsed().as_secs_f64();
    println!("threads: {} runs, {states} states in {seconds:.1} s, {:.0}/s", seeds.len(), states as f64 / seconds);
}
