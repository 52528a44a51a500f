//! `pagestone mkdir`, `rm` and `mv`.

use anyhow::{Context, Result, bail};
use clap::Args;
use pagestone::inode::{NewNode, Node, RenameMode};
use pagestone::{Error, FileType, Pool};
use serde::Serialize;

use crate::command::pool;
use crate::exit::{Exit, WrongUsage};
use crate::options::Common;
use crate::output;
use crate::target::{self, Target};

#[derive(Serialize)]
struct Done {
    done: u64,
}

/// New files belong to whoever runs the command.
pub(crate) fn owned(kind: FileType, perm: u32) -> NewNode<'static> {
    NewNode::new(kind, perm).owner(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// The user's file creation mask.
pub(crate) fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    mask.as_raw_mode()
}

/// All targets of one command lie in one pool, which is opened once.
fn one_pool(targets: &[Target]) -> Result<&Target> {
    let Some((first, rest)) = targets.split_first() else {
        return Err(WrongUsage("nothing to do".into()).into());
    };
    match rest.iter().find(|t| t.pool != first.pool) {
        Some(other) => {
            let (a, b) = (first.pool.display(), other.pool.display());
            Err(WrongUsage(format!("{a} and {b} are different pools; one at a time")).into())
        }
        None => Ok(first),
    }
}

fn report(json: bool, done: u64) -> Result<Exit> {
    if json {
        output::json(&Done { done })?;
    }
    Ok(Exit::Ok)
}

#[derive(Args, Debug)]
pub(crate) struct Mkdir {
    /// The directories
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser(), required = true)]
    targets: Vec<Target>,
    /// Make the directories above as well; what exists is no error
    #[arg(short)]
    parents: bool,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn mkdir(args: &Mkdir) -> Result<Exit> {
    let first = one_pool(&args.targets)?;
    let new = owned(FileType::Dir, 0o777 & !umask());
    let done = pool::with(&first.pool, false, &args.common, |pool| {
        let mut done = 0;
        for target in &args.targets {
            done += if args.parents { make_all(pool, target, &new)? } else { make(pool, target, &new)? };
        }
        Ok(done)
    })?;
    report(args.common.json, done)
}

fn make(pool: &Pool, target: &Target, new: &NewNode<'_>) -> Result<u64> {
    let (dir, name) = target.place(pool)?;
    dir.create(name, new).with_context(|| target.show())?;
    Ok(1)
}

/// Makes the directory and those above it; says how many were missing.
pub(crate) fn make_all(pool: &Pool, target: &Target, new: &NewNode<'_>) -> Result<u64> {
    let mut at = Target { pool: target.pool.clone(), path: b"/".to_vec() };
    let mut made = 0;
    for name in target.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        at = at.join(name);
        let (dir, name) = at.place(pool)?;
        match dir.create(name, new) {
            Ok(_) => made += 1,
            Err(Error::Exists) => {
                at.resolve(pool)?.dir().with_context(|| at.show())?;
            }
            Err(e) => return Err(e).with_context(|| at.show()),
        }
    }
    Ok(made)
}

#[derive(Args, Debug)]
pub(crate) struct Rm {
    /// The files
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser(), required = true)]
    targets: Vec<Target>,
    /// Directories too, with everything in them
    #[arg(short)]
    recursive: bool,
    /// What does not exist is no error
    #[arg(short)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn rm(args: &Rm) -> Result<Exit> {
    let first = one_pool(&args.targets)?;
    let done = pool::with(&first.pool, false, &args.common, |pool| {
        let mut done = 0;
        for target in &args.targets {
            match target.place(pool).and_then(|_| target.resolve(pool)) {
                Err(e) if args.force && is_missing(&e) => {}
                other => done += remove(pool, target, &other?, args.recursive)?,
            }
        }
        Ok(done)
    })?;
    report(args.common.json, done)
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|e| matches!(e, Error::NotFound))
}

/// Removes what is named, the deepest first; says how many names that were.
fn remove(pool: &Pool, target: &Target, node: &Node, recursive: bool) -> Result<u64> {
    let (dir, name) = target.place(pool)?;
    if node.attr().with_context(|| target.show())?.kind != FileType::Dir {
        dir.unlink(name).with_context(|| target.show())?;
        return Ok(1);
    }
    if !recursive {
        bail!("{}: is a directory (remove it with -r)", target.show());
    }
    dir.remove_tree(name).with_context(|| target.show())
}

#[derive(Args, Debug)]
pub(crate) struct Mv {
    /// What to rename
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    from: Target,
    /// Its new name, in the same pool; into it if it is a directory
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    to: Target,
    /// Fail if the new name exists
    #[arg(short, long)]
    no_clobber: bool,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn mv(args: &Mv) -> Result<Exit> {
    if args.from.pool != args.to.pool {
        return Err(WrongUsage("mv renames within one pool; use get and put between two".into()).into());
    }
    pool::with(&args.from.pool, false, &args.common, |pool| {
        let (dir, name) = args.from.place(pool)?;
        args.from.resolve(pool)?;
        let to = into_directory(pool, &args.to, name);
        let (to_dir, to_name) = to.place(pool)?;
        let mode = if args.no_clobber { RenameMode::NoReplace } else { RenameMode::Replace };
        dir.rename(name, to_dir.ino(), to_name, mode).with_context(|| format!("{} to {}", args.from.show(), to.show()))
    })?;
    report(args.common.json, 1)
}

/// `to`, or `to/name` if `to` is a directory.
pub(crate) fn into_directory(pool: &Pool, to: &Target, name: &[u8]) -> Target {
    let is_dir = pool.resolve(&to.path).and_then(|node| node.dir()).is_ok();
    if is_dir { to.join(name) } else { to.clone() }
}
