//! One run: operations recorded on the simulator, then every crash compared with the model.
//!
//! ```text
//!   Template   a closed pool with a few files      --copied--> simulator
//!   record     op, mark, op, mark ...              model: world 0, 1, 2 ...
//!   check      crash -> open -> read all -> is it world k, must <= k <= begun?
//!                    -> empty it -> is all space free? -> does something new work?
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crashlab::{Budget, CrashKind, CrashState, Flavour, Lab, Simulator, Trace, explore, explore_nested};
use pagestone::check::check_on;
use pagestone::inode::NewNode;
use pagestone::{CreateOptions, FileType, OpenOptions, Pool};
use parking_lot::Mutex;
use pmem::{Media, Part};

use crate::model::World;
use crate::ops::{Driver, Op};
use crate::seen::{self, Span};

/// Bytes of the pools.
pub(crate) const LEN: u64 = 16 << 20;
/// Pages that may stay taken in a pool without files: for each of the two lanes an inode page and
/// the table of the frame it stands in, before the crash and after it.
const LEFT_OVER: u64 = 8;
/// Forwarding tables that may stay in a pool whose inodes were moved: one of each level.
const FORWARDING: u64 = 4;

/// How much is tried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Effort {
    /// A minute on two processors.
    Quick,
    /// `PAGESTONE_CRASH=more`: some minutes.
    More,
    /// `PAGESTONE_CRASH=full`: a quarter of an hour.
    Full,
}

impl Effort {
    /// What the environment asks for.
    ///
    /// # Panics
    /// If it is no effort: a shorter run would not be the one that was asked for.
    pub(crate) fn asked() -> Effort {
        match std::env::var("PAGESTONE_CRASH").as_deref() {
            Ok("full") => Effort::Full,
            Ok("more") => Effort::More,
            Ok("") | Err(std::env::VarError::NotPresent) => Effort::Quick,
            other => panic!("PAGESTONE_CRASH is 'more', 'full' or not set, not {other:?}"),
        }
    }

    /// What to take for this effort.
    pub(crate) fn of<T>(quick: T, more: T, full: T) -> T {
        match Effort::asked() {
            Effort::Quick => quick,
            Effort::More => more,
            Effort::Full => full,
        }
    }
}

/// The seed that the environment asks for.
///
/// # Panics
/// If it is no number: a run with other seeds would not be the one that was asked for.
pub(crate) fn seed() -> Option<u64> {
    match std::env::var("PAGESTONE_SEED") {
        Err(std::env::VarError::NotPresent) => None,
        Ok(seed) => Some(seed.parse().unwrap_or_else(|e| panic!("PAGESTONE_SEED={seed}: {e}"))),
        Err(e) => panic!("PAGESTONE_SEED: {e}"),
    }
}

/// A pool to start from, and its model.
pub(crate) struct Template {
    pub(crate) lab: Lab,
    pub(crate) flavour: Flavour,
    pages: Vec<(u64, Vec<u8>)>,
    world: World,
    /// Pages free in the pool when it was made.
    free: u64,
    /// Bytes that it had then.
    len: u64,
}

impl Template {
    /// A pool to which `ops` have been done, closed again.
    pub(crate) fn new(flavour: Flavour, seed: u64, ops: &[Op]) -> Template {
        Template::of_size(LEN, flavour, seed, ops)
    }

    /// As [`Template::new`], a pool of so many bytes.
    pub(crate) fn of_size(len: u64, flavour: Flavour, seed: u64, ops: &[Op]) -> Template {
        let lab = Lab::new(len, flavour, seed);
        let sim = lab.media().expect("address space");
        let media: Arc<dyn Media> = sim.clone();
        let free = Pool::create_on(media.clone(), &CreateOptions::default()).expect("a pool").statfs().free;
        fix_identity(&sim, seed);
        let mut driver = Driver::new(media).expect("the pool opens");
        let mut world = World::empty(len);
        for op in ops {
            driver.run(*op).unwrap_or_else(|e| panic!("{op:?}: {e}"));
            world.run(*op).unwrap_or_else(|e| panic!("{op:?}: errno {e}"));
        }
        driver.pool().checkpoint().expect("the pool closes");
        drop(driver);
        Template { lab, flavour, pages: pages(&sim), world, free, len }
    }

    /// Pages that have to be free once the pool is emptied.
    pub(crate) fn free(&self) -> Free {
        Free { pages: self.free, size: self.len, left_over: LEFT_OVER }
    }

    /// A simulator that holds the pool.
    pub(crate) fn media(&self) -> Arc<Simulator> {
        let sim = self.lab.media().expect("address space");
        for (at, bytes) in &self.pages {
            sim.persist(&[Part::Bytes { at: *at, bytes }]).expect("it lies inside");
        }
        sim
    }
}

/// All pages that are not zero.
fn pages(sim: &Simulator) -> Vec<(u64, Vec<u8>)> {
    let read = |at: u64| {
        let mut bytes = vec![0; 4096];
        assert!(sim.views().data.read(at, &mut bytes));
        (at, bytes)
    };
    let len = sim.views().data.len();
    (0..len / 4096).map(|page| read(page * 4096)).filter(|(_, bytes)| bytes.iter().any(|b| *b != 0)).collect()
}

/// Gives a new pool an identity, a hash seed and a salt that are the same every time.
fn fix_identity(sim: &Simulator, seed: u64) {
    for at in [0, 255 * 4096] {
        let mut bytes = [0; 128];
        assert!(sim.views().data.read(at, &mut bytes));
        bytes[24..32].copy_from_slice(&(seed ^ 0x5EED).to_le_bytes());
        bytes[32..40].copy_from_slice(&seed.to_le_bytes());
        bytes[80..88].copy_from_slice(&seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        bytes[96..104].copy_from_slice(&seed.rotate_left(7).to_le_bytes());
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..124]) as u32;
        bytes[124..].copy_from_slice(&sum.to_le_bytes());
        sim.persist(&[Part::Bytes { at, bytes: &bytes }]).expect("it lies inside");
    }
}

/// A recorded run.
pub(crate) struct Run {
    pub(crate) ops: Vec<Op>,
    /// Before each operation, and after the last.
    worlds: Vec<World>,
    /// The media is durable at a fence, not only at a sync.
    at_fence: bool,
    pub(crate) trace: Trace,
    /// Transactions that were committed.
    pub(crate) committed: usize,
}

/// Does the operations and records what reaches the media.
pub(crate) fn record(template: &Template, ops: &[Op]) -> Result<Run, String> {
    record_with(template, ops, |driver, op| driver.run(op))
}

/// As [`record`], each operation on a thread of its own: threads prefer different lanes.
pub(crate) fn record_on_threads(template: &Template, ops: &[Op]) -> Result<Run, String> {
    let run = |driver: &mut Driver, op: Op| {
        std::thread::scope(|scope| scope.spawn(|| driver.run(op)).join().expect("an operation does not panic"))
    };
    record_with(template, ops, run)
}

fn record_with(
    template: &Template,
    ops: &[Op],
    mut run: impl FnMut(&mut Driver, Op) -> Result<(), pagestone::Error>,
) -> Result<Run, String> {
    let sim = template.media();
    let mut driver = Driver::new(sim.clone()).map_err(|e| format!("opening: {e}"))?;
    let mut worlds = vec![template.world.clone()];
    let mut committed = 0;
    sim.start_recording();
    for op in ops {
        let mut world = worlds[worlds.len() - 1].clone();
        let before = world.clone();
        let wanted = world.run(*op);
        let done = run(&mut driver, *op);
        match (&done, wanted) {
            (Ok(()), Ok(())) => committed += usize::from(matches!(op, Op::Transaction(_))),
            (Err(e), Err(errno)) if e.errno() == errno => world = before,
            _ => return Err(format!("{op:?} answers {done:?}, the model {wanted:?}")),
        }
        worlds.push(world);
        sim.mark(format!("{op:?}"));
    }
    if !sim.violations().is_empty() {
        return Err(format!("the media was misused: {:?}", sim.violations()));
    }
    let (at_fence, trace) = (template.flavour == Flavour::Lines, sim.finish());
    let run = Run { ops: ops.to_vec(), worlds, at_fence, trace, committed };
    let last = run.worlds.len() - 1;
    let span = Span { worlds: &run.worlds, from: last, to: last };
    seen::read(driver.pool())
        .and_then(|tree| is_world(&tree, driver.pool(), last, span))
        .map_err(|e| format!("without any crash: {e}"))?;
    Ok(run)
}

/// How thoroughly to look.
#[derive(Clone, Copy)]
pub(crate) struct Care {
    pub(crate) budget: Budget,
    /// Skip crashes before this many operations were acknowledged (other runs try them).
    pub(crate) from: usize,
    /// Every how many states to crash the recovery, too; 0 never.
    pub(crate) nested: usize,
    /// Every how many states to empty the pool and count its space; 0 never.
    pub(crate) emptied: usize,
}

/// Tries the crash states of a run. Returns how many.
pub(crate) fn check(template: &Template, run: &Run, care: &Care) -> Result<usize, String> {
    let states = AtomicUsize::new(0);
    let mut free = template.free();
    if run.ops.iter().any(|op| matches!(op, Op::Resize(_))) {
        free.left_over += FORWARDING;
    }
    let explored = explore(&run.trace, &care.budget, |state, sim| {
        if state.acknowledged < care.from {
            return Ok(());
        }
        let number = states.fetch_add(1, Ordering::Relaxed) + 1;
        let mut pool = open(sim)?;
        if care.nested > 0 && number.is_multiple_of(care.nested) {
            let small = Budget { exhaustive_up_to: 16, sampled: 12, points: 12, ..Budget::default() };
            let summary = explore_nested(state, sim, &small, |inner, sim| {
                survives(run, state, inner.point.kind == CrashKind::PowerCut, &open(sim)?)
            })?;
            states.fetch_add(summary.states, Ordering::Relaxed);
        }
        survives(run, state, false, &pool)?;
        if care.emptied > 0 && number.is_multiple_of(care.emptied) {
            drop(pool);
            is_clean(sim)?;
            pool = open(sim)?;
            survives(run, state, false, &pool).map_err(|e| format!("opened once more: {e}"))?;
            is_usable(&pool, free)?;
            drop(pool);
            is_clean(sim).map_err(|e| format!("emptied: {e}"))?;
        }
        match sim.violations() {
            violations if violations.is_empty() => Ok(()),
            violations => Err(format!("recovery misused the media: {violations:?}")),
        }
    });
    let listing = if std::env::var_os("PAGESTONE_LISTING").is_some() { run.trace.listing() } else { String::new() };
    explored.map_err(|failure| format!("{:?}\n{failure}\n{listing}", run.ops))?;
    Ok(states.into_inner())
}

pub(crate) fn open(sim: &Arc<Simulator>) -> Result<Pool, String> {
    Pool::open_on(sim.clone(), &OpenOptions::default()).map_err(|e| format!("it does not open: {e}"))
}

/// Whether the pool's own check finds nothing.
pub(crate) fn is_clean(sim: &Arc<Simulator>) -> Result<(), String> {
    let report = check_on(sim.clone(), &pagestone::check::CheckOptions::default(), &mut |_, _| {})
        .map_err(|e| format!("checking it: {e}"))?;
    if report.is_clean() { Ok(()) } else { Err(format!("check finds {:?}", report.findings)) }
}

/// Whether what is found is what some number of operations leaves, and no acknowledged one is
/// missing. `cut_again`: the recovery from a kill lost its power.
fn survives(run: &Run, state: &CrashState, cut_again: bool, pool: &Pool) -> Result<(), String> {
    let tree = seen::read(pool)?;
    let begun = (state.acknowledged + 1).min(run.ops.len());
    let cut = cut_again || state.point.kind == CrashKind::PowerCut;
    let in_order = run.at_fence || !cut;
    let must = if in_order { state.acknowledged } else { synced(&run.ops[..state.acknowledged]) };
    let mut wrong = String::new();
    for k in (must..=begun).rev() {
        let from = if in_order { k } else { must };
        match is_world(&tree, pool, k, Span { worlds: &run.worlds, from, to: begun }) {
            Ok(()) => return Ok(()),
            Err(e) => wrong += &format!("\n    after {k} operations: {e}"),
        }
    }
    Err(format!("what is there is none of{wrong}"))
}

/// Whether the pool has the size and the tree of world `k`.
fn is_world(tree: &seen::Tree, pool: &Pool, k: usize, span: Span<'_>) -> Result<(), String> {
    let (there, wanted) = (size_of(pool)?, span.worlds[k].size);
    if there != wanted {
        return Err(format!("the pool has {there} bytes, not {wanted}"));
    }
    seen::compare(tree, pool.root().ino(), k, span)
}

fn size_of(pool: &Pool) -> Result<u64, String> {
    pool.info().map(|info| info.size).map_err(|e| format!("info: {e}"))
}

/// How many operations the last sync among these made durable.
fn synced(ops: &[Op]) -> usize {
    ops.iter().rposition(|op| op.syncs()).map_or(0, |last| last + 1)
}

/// What a pool has to have free without files.
#[derive(Clone, Copy)]
pub(crate) struct Free {
    /// Pages at this size.
    pages: u64,
    size: u64,
    /// Pages that may be taken all the same.
    left_over: u64,
}

impl Free {
    /// The pages at the size that the crash has left: the model has allowed it before.
    fn at(self, size: u64) -> u64 {
        self.pages + size / 4096 - self.size / 4096
    }
}

/// Whether a new file works, and nothing is lost when all are gone.
pub(crate) fn is_usable(pool: &Pool, free: Free) -> Result<(), String> {
    let new = || -> Result<bool, pagestone::Error> {
        let file = pool.root().create(b"made after the crash", &NewNode::new(FileType::File, 0o600))?.ino;
        let file = pool.node(file)?.open()?;
        file.write_all_at(&[7; 6000], 0)?;
        let mut bytes = [0; 6000];
        Ok(file.read_at(&mut bytes, 0)? == 6000 && bytes == [7; 6000])
    };
    if !new().map_err(|e| format!("a new file: {e}"))? {
        return Err("a new file reads otherwise than it was written".into());
    }
    seen::empty(pool).map_err(|e| format!("emptying it: {e}"))?;
    let (now, wanted) = (pool.statfs(), free.at(size_of(pool)?));
    if now.inodes != 0 || now.free + free.left_over < wanted || now.free > wanted {
        return Err(format!("emptied, {} pages of {wanted} are free and {} inodes left", now.free, now.inodes));
    }
    Ok(())
}

/// Runs `each` on all items, on as many threads as there are processors, and adds up the states.
pub(crate) fn in_parallel<T: Sync>(items: &[T], each: impl Fn(&T) -> Result<usize, String> + Sync) -> usize {
    const ENOUGH: usize = 4;
    let (next, states) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures: Mutex<Vec<String>> = Mutex::default();
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            match each(item) {
                Ok(tried) => drop(states.fetch_add(tried, Ordering::Relaxed)),
                Err(e) => {
                    let mut failures = failures.lock();
                    failures.push(e);
                    if failures.len() >= ENOUGH {
                        return;
                    }
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "{}", failures.join("\n----\n"));
    states.into_inner()
}
