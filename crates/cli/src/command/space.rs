//! `pagestone du`.

use std::collections::HashSet;

use anyhow::{Context, Result};
use clap::Args;
use pagestone::{FileType, PAGE_SIZE, Pool};
use serde::Serialize;

use crate::command::{list, pool};
use crate::exit::Exit;
use crate::options::Common;
use crate::output;
use crate::size::show;
use crate::target::{self, Target};

#[derive(Args, Debug)]
pub(crate) struct Du {
    /// The files and trees
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser(), required = true)]
    targets: Vec<Target>,
    #[command(flatten)]
    common: Common,
}

/// What a tree takes, in bytes.
#[derive(Default, Serialize)]
struct Usage {
    name: String,
    /// Storage of files, as often as it can be seen.
    bytes: u64,
    /// Of that, what only these files have.
    own: u64,
    /// Of that, what a clone has, or had, in common with another.
    shared: u64,
    files: u64,
}

pub(crate) fn du(args: &Du) -> Result<Exit> {
    let mut all = Vec::new();
    for target in &args.targets {
        all.push(pool::with(&target.pool, true, &args.common, |pool| usage(pool, target))?);
    }
    if args.common.json {
        output::json(&all)?;
        return Ok(Exit::Ok);
    }
    for Usage { name, bytes, own, shared, files } in &all {
        let (own, shared) = (show(*own), show(*shared));
        output::line(&format!("{}  ({own} own, {shared} shared, {files} files)  {name}", show(*bytes)))?;
    }
    Ok(Exit::Ok)
}

fn usage(pool: &Pool, target: &Target) -> Result<Usage> {
    let mut usage = Usage { name: target.show(), ..Usage::default() };
    let mut seen = HashSet::new();
    let mut todo = vec![target.resolve(pool)?.ino()];
    while let Some(ino) = todo.pop() {
        let node = pool.node(ino).with_context(|| target.show())?;
        let attr = node.attr().with_context(|| target.show())?;
        // A file with several names counts once.
        if attr.nlink > 1 && attr.kind != FileType::Dir && !seen.insert(ino) {
            continue;
        }
        usage.files += u64::from(attr.kind != FileType::Dir);
        usage.bytes = usage.bytes.saturating_add(attr.pages.saturating_mul(PAGE_SIZE));
        usage.shared = usage.shared.saturating_add(attr.shared.saturating_mul(PAGE_SIZE));
        if attr.kind == FileType::Dir {
            todo.extend(list::entries(&node).with_context(|| target.show())?.into_iter().map(|entry| entry.ino));
        }
    }
    usage.own = usage.bytes.saturating_sub(usage.shared);
    Ok(usage)
}
