//! `pagestone df`: how full pools are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use pagestone::PAGE_SIZE;
use pagestone_mount::mounts;
use serde::Serialize;

use crate::columns::{Cell, Columns};
use crate::command::pool;
use crate::exit::{self, Exit};
use crate::options::Common;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct Df {
    /// The pools, or where they are mounted; all that are mounted if none is given
    pools: Vec<PathBuf>,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    common: Common,
}

/// Stable: scripts name them.
const COLUMNS: [&str; 8] = ["pool", "size", "used", "available", "use_percent", "shared", "inodes", "mounted"];

/// One pool. Sizes are bytes.
#[derive(Serialize)]
struct Space {
    pool: String,
    size: u64,
    used: u64,
    available: u64,
    shared: u64,
    inodes: u64,
    mounted: Option<String>,
}

pub(crate) fn df(args: &Df) -> Result<Exit> {
    args.columns.check(&COLUMNS)?;
    let mounted = mounts(None).context("what is mounted")?;
    let mut pools = args.pools.clone();
    if pools.is_empty() {
        pools.extend(mounted.iter().filter(|mount| mount.kind == "fuse.pagestone").map(|mount| mount.pool()));
        pools.sort();
        pools.dedup();
    }
    let at = |pool: &Path| mounted.iter().rfind(|mount| mount.is_of(pool)).map(|mount| mount.dir.display().to_string());
    let mut all = Vec::new();
    let mut exit = Exit::Ok;
    for path in &pools {
        let shown = || path.display().to_string();
        let info = match pool::with(path, true, &args.common, |store| store.info().with_context(shown)) {
            Ok(info) => info,
            Err(e) if !args.pools.is_empty() => return Err(e),
            // One that cannot be asked keeps nobody from the others.
            Err(e) => {
                output::note(&exit::message(&e));
                exit = Exit::Failed;
                continue;
            }
        };
        let space = &info.space;
        all.push(Space {
            pool: path.display().to_string(),
            size: info.size,
            used: space.pages.saturating_sub(space.free) * PAGE_SIZE,
            available: space.available * PAGE_SIZE,
            shared: info.shared * PAGE_SIZE,
            inodes: space.inodes,
            mounted: at(path),
        });
    }
    if args.common.json {
        output::json_list("pools", &all)?;
        return Ok(exit);
    }
    args.columns.print(&COLUMNS, all.into_iter().map(row).collect())?;
    Ok(exit)
}

fn row(space: Space) -> Vec<Cell> {
    let Space { pool, size, used, available, shared, inodes, mounted } = space;
    let percent = 100.0 * used as f64 / (used + available).max(1) as f64;
    vec![
        Cell::Text(pool),
        Cell::Bytes(size),
        Cell::Bytes(used),
        Cell::Bytes(available),
        Cell::Count(percent.ceil()),
        Cell::Bytes(shared),
        Cell::Count(inodes as f64),
        Cell::Text(mounted.unwrap_or_else(|| "-".into())),
    ]
}
