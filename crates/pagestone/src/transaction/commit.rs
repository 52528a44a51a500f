//! Commits a list of operations: locks, plan, mappings, run, record.

use std::collections::BTreeMap;

use super::Operation;
use super::run::{Depth, FileChange, Progress, Run};
use crate::alloc::{Stop, TxResult};
use crate::engine::{Engine, EngineRef, MappingObservers, WriteGuards};
use crate::error::{Error, Result};
use crate::units::{Ino, PAGE_SIZE};

/// How often the locks are taken anew, before all of them are.
const TRIES: usize = 8;
/// How often a place for the table of a frame is looked for.
const PLACES: usize = 8;

/// What a try comes to.
enum Tried {
    Done(Progress),
    /// Nothing has happened: these locks are needed from the beginning.
    Wants(Vec<Ino>),
}

/// A file that is mapped, while its pages are replaced.
struct Mapped {
    ino: Ino,
    observers: MappingObservers,
    before: u64,
    change: FileChange,
}

impl Mapped {
    /// The first page that the file loses, if it loses any.
    fn first_lost(&self) -> Option<u64> {
        self.change.shortens().then(|| self.change.shortest.div_ceil(PAGE_SIZE))
    }
}

/// Does all operations, or none.
pub(super) fn commit(engine: &EngineRef, operations: &[Operation<'_>]) -> Result<()> {
    if operations.is_empty() {
        return Ok(());
    }
    let renames = operations.iter().any(|op| matches!(op, Operation::Rename { .. }));
    let ancestors = renames.then(|| engine.renames.lock());
    let (mut inos, mut tries) = (Vec::new(), 0);
    let done = loop {
        let mut locks = if tries < TRIES { engine.locks.write(&inos) } else { engine.locks.write_all() };
        match try_locked(engine, &mut locks, operations)? {
            Tried::Done(done) => break done,
            Tried::Wants(all) => inos = all,
        }
        tries += 1;
    };
    drop(ancestors);
    done.orphans.iter().for_each(|&ino| engine.reclaim_beside(ino));
    for (&ino, change) in &done.files {
        if change.shortest == 0 && change.has_base {
            match engine.detach_unused_base(ino) {
                Err(Error::Stale(_)) => {}
                detached => engine.failures.note("giving up a base that a file does not need", detached),
            }
        }
    }
    Ok(())
}

fn try_locked(engine: &Engine, locks: &mut WriteGuards<'_>, operations: &[Operation<'_>]) -> Result<Tried> {
    let mut plan = Progress::default();
    let planned = run(engine, locks, operations, &mut plan, &Depth::Plan);
    if let Some(all) = plan.wants() {
        return Ok(Tried::Wants(all));
    }
    if !plan.finished {
        return planned.map(|()| Tried::Wants(Vec::new())).map_err(|stop| named(&plan, stop));
    }
    let mut mapped = Vec::new();
    let mut done = Progress::default();
    let ended = match keep_mappings_away(engine, locks, &plan, &mut mapped) {
        Ok(()) => run_for_good(engine, locks, operations, &plan, &mut done),
        Err(error) => Err(Stop::Failed(error)),
    };
    let shown = show_mappings(engine, locks, &mapped, ended.is_ok());
    if let Some(all) = done.wants() {
        return Ok(Tried::Wants(all));
    }
    ended.map_err(|stop| named(&done, stop))?;
    // It has happened, whatever becomes of the mappings.
    engine.failures.note("mapping the pages of a transaction", shown);
    done.files.keys().for_each(|&ino| engine.opens.clear_touched(ino));
    Ok(Tried::Done(done))
}

/// Runs the list once as one transaction, which a plan does not commit.
fn run(
    engine: &Engine,
    locks: &mut WriteGuards<'_>,
    operations: &[Operation<'_>],
    progress: &mut Progress,
    depth: &Depth<'_>,
) -> TxResult<()> {
    let deleting = |op: &Operation<'_>| matches!(op, Operation::Remove { .. } | Operation::Rename { .. });
    engine.alloc.attempt(operations.iter().all(deleting), |tx| {
        *progress = Progress::default();
        Run { engine, locks, progress, depth }.all(tx, operations)?;
        match depth {
            Depth::Plan => Err(Stop::Failed(Error::Interrupted)),
            Depth::Run(_) => Ok(()),
        }
    })
}

/// Runs the list and commits it. All inodes that it looks at are locked.
fn run_for_good(
    engine: &Engine,
    locks: &mut WriteGuards<'_>,
    operations: &[Operation<'_>],
    plan: &Progress,
    done: &mut Progress,
) -> TxResult<()> {
    let mut zeroed = BTreeMap::new();
    for (&ino, change) in &plan.files {
        if let Some(before) = change.before.filter(|&before| before < change.longest && !change.shortens()) {
            zeroed.insert(ino, engine.zero_before_growing(locks.of(ino), before, change.longest)?);
        }
    }
    let depth = Depth::Run(&zeroed);
    let based = plan.files.iter().find(|(_, change)| change.has_base).map(|(&ino, _)| ino);
    for _ in 0..PLACES {
        let ended = {
            let _chain = based.map(|ino| engine.chain_of(locks.of(ino))).transpose()?;
            run(engine, locks, operations, done, &depth)
        };
        match ended {
            Err(Stop::Pinned) if makes_places(engine, locks, plan)? => {}
            ended => return ended,
        }
    }
    Err(Stop::Pinned)
}

/// Whether a frame of one of the files has a place for its table now that it did not have.
fn makes_places(engine: &Engine, locks: &WriteGuards<'_>, plan: &Progress) -> TxResult<bool> {
    let mut any = false;
    for (&ino, change) in plan.files.iter().filter(|(_, change)| change.before.is_some()) {
        let end = if change.shortens() { change.longest.div_ceil(PAGE_SIZE) } else { 0 };
        let pages = change.hull();
        any |= engine.make_place_for_table(locks.of(ino), pages.start..pages.end.max(end))?;
    }
    Ok(any)
}

/// Keeps mappings from what will be replaced: nobody may store to it any more, as it is copied.
fn keep_mappings_away(
    engine: &Engine,
    locks: &WriteGuards<'_>,
    plan: &Progress,
    mapped: &mut Vec<Mapped>,
) -> Result<()> {
    for (&ino, change) in &plan.files {
        let Some(before) = change.before else { continue };
        let (held, observers) = (locks.of(ino), engine.opens.observers(ino));
        let change = change.clone();
        if change.shortens() {
            engine.opens.claim_ahead(ino, &(change.shortest.div_ceil(PAGE_SIZE)..u64::MAX));
        }
        if observers.is_empty() {
            continue;
        }
        let file = Mapped { ino, observers, before, change };
        if let Some(first) = file.first_lost() {
            file.observers.iter().for_each(|w| w.invalidate(held, first..u64::MAX));
        }
        mapped.push(file);
        let Some(Mapped { observers, change, .. }) = mapped.last() else { continue };
        if !change.replaced.is_empty() {
            let rec = engine.alloc.inode(ino)?;
            observers.iter().try_for_each(|w| w.freeze(held, engine, &rec, Some(&change.replaced)))?;
        }
    }
    Ok(())
}

/// Lets mappings see the files as they are now: changed, or as they were. The first error is the result.
fn show_mappings(engine: &Engine, locks: &WriteGuards<'_>, mapped: &[Mapped], changed: bool) -> Result<()> {
    let mut first_error = Ok(());
    for file in mapped {
        let (held, Mapped { observers, change, .. }) = (locks.of(file.ino), file);
        let mut old_len = file.before;
        match (file.first_lost(), changed) {
            (Some(_), true) => {
                old_len = change.shortest;
                observers.iter().for_each(|w| w.shortened(held, old_len));
            }
            (Some(first), false) => observers.iter().for_each(|w| w.revalidate(held, first..u64::MAX)),
            (None, _) => {}
        }
        if changed {
            observers.iter().for_each(|w| w.changed(held.shared(), &change.replaced));
        }
        let shown = engine.notify_mappings(held, observers, old_len, change.hull());
        first_error = first_error.and(shown);
    }
    first_error
}

/// The error of the operation that stopped the run.
fn named(progress: &Progress, stop: Stop) -> Error {
    let error = match stop {
        Stop::RecordFull => Error::TransactionTooLarge,
        stop => Error::from(stop),
    };
    match progress.at {
        Some(operation) if !progress.finished => Error::InTransaction { operation, source: Box::new(error) },
        _ => error,
    }
}
