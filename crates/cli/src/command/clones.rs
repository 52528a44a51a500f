//! `pagestone clone` and `pagestone snapshot`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use pagestone::snapshot::{Change, Copied, What};
use pagestone::{Error, FileType, Pool};

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
    let made = pool::with(&args.from.pool, false, &args.common, |pool| {
        let from = args.from.resolve(pool)?;
        let to = match args.from.name() {
            Some(name) => files::into_directory(pool, &args.to, name),
            None => args.to.clone(),
        };
        let (dir, name) = to.place(pool)?;
        let what = || format!("{} to {}", args.from.show(), to.show());
        if from.attr().with_context(what)?.kind == FileType::File && from.xattrs().with_context(what)?.is_empty() {
            dir.clone_file(name, from.ino()).with_context(what)?;
            let mut made = Copied::default();
            made.files = 1;
            return Ok(made);
        }
        pool.snapshots().clone_tree(from.ino(), dir.ino(), name).with_context(what)
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
    common: Common,
}

pub(crate) fn snapshot(args: &Snapshot) -> Result<Exit> {
    match &args.what {
        SnapshotCommand::Create(args) => one(args, "kept as", |pool, name| pool.snapshots().create(name)),
        SnapshotCommand::Restore(args) => one(args, "brought back from", |pool, name| pool.snapshots().restore(name)),
        SnapshotCommand::Delete(args) => delete(args),
        SnapshotCommand::List(args) => list(args),
        SnapshotCommand::Diff(args) => diff(args),
    }
}

fn one(args: &OneSnapshot, verb: &str, work: impl FnOnce(&Pool, &[u8]) -> Result<Copied, Error>) -> Result<Exit> {
    let made =
        pool::with(&args.pool, false, &args.common, |pool| work(pool, args.name.as_bytes()).with_context(|| at(args)))?;
    if args.common.json {
        output::json(&made)?;
    } else {
        let Copied { files, directories, others, .. } = made;
        let name = args.name.display();
        output::line(&format!("{files} files, {directories} directories and {others} others {verb} {name}"))?;
    }
    Ok(Exit::Ok)
}

fn at(args: &OneSnapshot) -> String {
    format!("{}, snapshot {}", args.pool.display(), args.name.display())
}

fn delete(args: &OneSnapshot) -> Result<Exit> {
    pool::with(&args.pool, false, &args.common, |pool| {
        pool.snapshots().delete(args.name.as_bytes()).with_context(|| at(args))
    })?;
    if args.common.json {
        output::json(&Copied::default())?;
    }
    Ok(Exit::Ok)
}

fn list(args: &Snapshots) -> Result<Exit> {
    let found = pool::with(&args.pool, true, &args.common, |pool| {
        pool.snapshots().list().with_context(|| args.pool.display().to_string())
    })?;
    if args.common.json {
        output::json(&found)?;
        return Ok(Exit::Ok);
    }
    for snapshot in found {
        output::line(&format!("{} UTC  {}", output::time(snapshot.created), snapshot.name))?;
    }
    Ok(Exit::Ok)
}

fn diff(args: &SnapshotDiff) -> Result<Exit> {
    let changes = pool::with(&args.pool, true, &args.common, |pool| {
        let other = args.other.as_deref().map(|name| name.as_bytes());
        pool.snapshots()
            .diff(args.name.as_bytes(), other)
            .with_context(|| format!("{}, snapshot {}", args.pool.display(), args.name.display()))
    })?;
    if args.common.json {
        output::json(&changes)?;
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
