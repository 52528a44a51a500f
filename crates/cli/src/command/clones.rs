//! `pagestone clone` and `pagestone snapshot`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use pagestone::snapshot::{Change, Copied, What};
use pagestone_server::{Store, StoreError};
use serde::Serialize;

use crate::columns::{Cell, Columns};
use crate::command::{files, pool};
use crate::exit::{Exit, WrongUsage};
use crate::options::Common;
use crate::output;
use crate::size::show;
use crate::target::{self, Target};

#[derive(Args, Debug)]
pub(crate) struct Clone {
    /// The file or directory
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    from: Target,
    /// The new name, in the same pool; into it if it is a directory
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    to: Target,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn clone(args: &Clone) -> Result<Exit> {
    if args.from.pool != args.to.pool {
        return Err(WrongUsage("a clone lies in the pool of what it shares; use get and put between two".into()).into());
    }
    let made = pool::with(&args.from.pool, false, &args.common, |store| {
        let to = match args.from.name() {
            Some(name) => files::into_directory(store, &args.to, name),
            None => args.to.clone(),
        };
        to.last_name()?;
        store.entry(&args.from.path).with_context(|| args.from.show())?;
        store.clone_tree(&args.from.path, &to.path).with_context(|| format!("{} to {}", args.from.show(), to.show()))
    })?;
    if args.common.json {
        output::json(&made)?;
    }
    Ok(Exit::Ok)
}

#[derive(Args, Debug)]
pub(crate) struct Snapshot {
    #[command(subcommand)]
    what: SnapshotCommand,
}

/// What can be done about snapshots; they lie in the pool's directory /.snapshots.
#[derive(Subcommand, Debug)]
pub(crate) enum SnapshotCommand {
    /// Make a snapshot of everything in the pool
    Create(OneSnapshot),
    /// List the snapshots
    List(Snapshots),
    /// Take a snapshot away
    Delete(OneSnapshot),
    /// Say what has changed since a snapshot, or between two
    Diff(SnapshotDiff),
    /// Bring back everything as it was; what is there now is removed
    Restore(OneSnapshot),
}

#[derive(Args, Debug)]
pub(crate) struct OneSnapshot {
    /// The pool
    pool: PathBuf,
    /// Name of the snapshot
    name: OsString,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Snapshots {
    /// The pool
    pool: PathBuf,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct SnapshotDiff {
    /// The pool
    pool: PathBuf,
    /// The older snapshot
    name: OsString,
    /// The newer one; the pool as it is now if this is left out
    other: Option<OsString>,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    common: Common,
}

/// Stable: scripts name them.
const DIFF_COLUMNS: [&str; 3] = ["what", "bytes", "path"];

pub(crate) fn snapshot(args: &Snapshot) -> Result<Exit> {
    match &args.what {
        SnapshotCommand::Create(args) => one(args, "kept as", true, |store, name| store.create_snapshot(name)),
        SnapshotCommand::Restore(args) => {
            one(args, "brought back from", false, |store, name| store.restore_snapshot(name))
        }
        SnapshotCommand::Delete(args) => delete(args),
        SnapshotCommand::List(args) => list(args),
        SnapshotCommand::Diff(args) => diff(args),
    }
}

/// `paused`: the others that use the pool want to know how long they had to wait.
fn one(
    args: &OneSnapshot,
    verb: &str,
    paused: bool,
    work: impl Fn(&dyn Store, &[u8]) -> Result<Copied, StoreError>,
) -> Result<Exit> {
    let made = pool::with(&args.pool, false, &args.common, |store| {
        work(store, args.name.as_bytes()).with_context(|| at(args))
    })?;
    if args.common.json {
        output::json(&made)?;
    } else {
        let Copied { files, directories, others, pause_ns, .. } = made;
        let name = args.name.display();
        let pause = if paused { format!("; others waited {:.1} ms", pause_ns as f64 / 1e6) } else { String::new() };
        output::line(&format!("{files} files, {directories} directories and {others} others {verb} {name}{pause}"))?;
    }
    Ok(Exit::Ok)
}

fn at(args: &OneSnapshot) -> String {
    format!("{}, snapshot {}", args.pool.display(), args.name.display())
}

/// What `snapshot delete --json` prints.
#[derive(Serialize)]
struct Deleted<'a> {
    deleted: Cow<'a, str>,
}

fn delete(args: &OneSnapshot) -> Result<Exit> {
    pool::with(&args.pool, false, &args.common, |store| {
        store.delete_snapshot(args.name.as_bytes()).with_context(|| at(args))
    })?;
    if args.common.json {
        output::json(&Deleted { deleted: args.name.to_string_lossy() })?;
    }
    Ok(Exit::Ok)
}

/// Stable: scripts name them.
const COLUMNS: [&str; 2] = ["created", "name"];

fn list(args: &Snapshots) -> Result<Exit> {
    args.columns.check(&COLUMNS)?;
    let found = pool::with(&args.pool, true, &args.common, |store| {
        store.snapshots().with_context(|| args.pool.display().to_string())
    })?;
    if args.common.json {
        output::json_list("snapshots", &found)?;
        return Ok(Exit::Ok);
    }
    let row = |snapshot: pagestone::snapshot::Snapshot| vec![Cell::Date(snapshot.created), Cell::Text(snapshot.name)];
    args.columns.print(&COLUMNS, found.into_iter().map(row).collect())?;
    Ok(Exit::Ok)
}

fn diff(args: &SnapshotDiff) -> Result<Exit> {
    args.columns.check(&DIFF_COLUMNS)?;
    let changes = pool::with(&args.pool, true, &args.common, |store| {
        let other = args.other.as_deref().map(|name| name.as_bytes());
        store
            .diff_snapshot(args.name.as_bytes(), other)
            .with_context(|| format!("{}, snapshot {}", args.pool.display(), args.name.display()))
    })?;
    if args.common.json {
        output::json_list("changes", &changes)?;
        return Ok(Exit::Ok);
    }
    if args.columns.are_asked_for() {
        let word = |what| match what {
            What::Added => "added",
            What::Removed => "removed",
            What::Attributes => "attributes",
            _ => "modified",
        };
        let row = |c: Change| vec![Cell::Text(word(c.what).into()), Cell::Bytes(c.bytes), Cell::Text(c.path)];
        args.columns.print(&DIFF_COLUMNS, changes.into_iter().map(row).collect())?;
        return Ok(Exit::Ok);
    }
    for Change { path, what, bytes, .. } in changes {
        match what {
            What::Added => output::line(&format!("+ {path}"))?,
            What::Removed => output::line(&format!("- {path}"))?,
            What::Attributes => output::line(&format!("a {path}"))?,
            What::Modified if bytes > 0 => output::line(&format!("m {path}  ({})", show(bytes)))?,
            _ => output::line(&format!("m {path}"))?,
        }
    }
    Ok(Exit::Ok)
}
