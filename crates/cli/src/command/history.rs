//! `pagestone history`: what administrators have done to a pool, as the pool remembers it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use pagestone::inode::Time;
use pagestone_server::api::Event;

use crate::columns::{Cell, Columns};
use crate::command::pool;
use crate::exit::Exit;
use crate::options::Common;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct History {
    /// The pool
    pool: PathBuf,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    common: Common,
}

/// Stable: scripts name them.
const COLUMNS: [&str; 4] = ["time", "user", "version", "what"];

pub(crate) fn history(args: &History) -> Result<Exit> {
    args.columns.check(&COLUMNS)?;
    let events = pool::with(&args.pool, true, &args.common, |store| {
        store.history().with_context(|| args.pool.display().to_string())
    })?;
    if args.common.json {
        output::json_list("events", &events)?;
        return Ok(Exit::Ok);
    }
    args.columns.print(&COLUMNS, events.into_iter().map(row).collect())?;
    Ok(Exit::Ok)
}

fn row(event: Event) -> Vec<Cell> {
    let time = Time { sec: i64::try_from(event.time).unwrap_or(i64::MAX), nsec: 0 };
    vec![Cell::Date(time), Cell::Text(event.user.to_string()), Cell::Text(event.version), Cell::Text(event.what)]
}
