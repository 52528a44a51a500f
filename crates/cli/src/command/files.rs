//! `pagestone mkdir`, `rm` and `mv`.

use anyhow::{Context, Result, bail};
use clap::Args;
use pagestone::{Error, FileType};
use pagestone_server::Store;
use pagestone_server::api::{Name, NewEntry};
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
pub(crate) fn owned(kind: FileType, perm: u32) -> NewEntry {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    NewEntry { kind, perm, uid, gid, rdev: 0, target: Name::default() }
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
    let new = new_dir();
    let done = pool::with(&first.pool, false, &args.common, |store| {
        let mut done = 0;
        for target in &args.targets {
            done += if args.parents { make_all(store, target, &new)? } else { make(store, target, &new)? };
        }
        Ok(done)
    })?;
    report(args.common.json, done)
}

/// A directory of whoever runs the command.
pub(crate) fn new_dir() -> NewEntry {
    owned(FileType::Dir, 0o777 & !umask())
}

fn make(store: &dyn Store, target: &Target, new: &NewEntry) -> Result<u64> {
    target.last_name()?;
    store.create(&target.path, new).with_context(|| target.show())?;
    Ok(1)
}

/// Makes the directory and those above it; says how many were missing.
pub(crate) fn make_all(store: &dyn Store, target: &Target, new: &NewEntry) -> Result<u64> {
    let mut at = Target { pool: target.pool.clone(), path: b"/".to_vec() };
    let mut made = 0;
    for name in target.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        at = at.join(name);
        made += make_or_keep(store, &at, new)?;
    }
    Ok(made)
}

/// Makes the directory if it is missing; says how many that were.
pub(crate) fn make_or_keep(store: &dyn Store, target: &Target, new: &NewEntry) -> Result<u64> {
    match store.create(&target.path, new) {
        Ok(_) => Ok(1),
        Err(e) if e.errno() == libc::EEXIST => {
            match store.entry(&target.path).with_context(|| target.show())?.attr.kind {
                FileType::Dir => Ok(0),
                _ => Err(Error::NotDirectory).with_context(|| target.show()),
            }
        }
        Err(e) => Err(e).with_context(|| target.show()),
    }
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
    let done = pool::with(&first.pool, false, &args.common, |store| {
        let mut done = 0;
        for target in &args.targets {
            target.last_name()?;
            match store.entry(&target.path) {
                Err(e) if args.force && e.errno() == libc::ENOENT => {}
                Err(e) => return Err(e).with_context(|| target.show()),
                Ok(entry) if entry.attr.kind == FileType::Dir && !args.recursive => {
                    bail!("{}: is a directory (remove it with -r)", target.show())
                }
                Ok(_) => done += store.remove(&target.path, args.recursive).with_context(|| target.show())?,
            }
        }
        Ok(done)
    })?;
    report(args.common.json, done)
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
    pool::with(&args.from.pool, false, &args.common, |store| {
        let name = args.from.last_name()?;
        store.entry(&args.from.path).with_context(|| args.from.show())?;
        let to = into_directory(store, &args.to, name);
        to.last_name()?;
        let renamed = store.rename(&args.from.path, &to.path, !args.no_clobber);
        renamed.with_context(|| format!("{} to {}", args.from.show(), to.show()))
    })?;
    report(args.common.json, 1)
}

/// `to`, or `to/name` if `to` is a directory.
pub(crate) fn into_directory(store: &dyn Store, to: &Target, name: &[u8]) -> Target {
    let is_dir = store.entry(&to.path).is_ok_and(|entry| entry.attr.kind == FileType::Dir);
    if is_dir { to.join(name) } else { to.clone() }
}
