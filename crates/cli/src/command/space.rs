//! `pagestone du`.

use anyhow::{Context, Result};
use clap::Args;
use pagestone_server::api::Usage;
use serde::Serialize;

use crate::columns::{Cell, Columns};
use crate::command::pool;
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
    columns: Columns,
    #[command(flatten)]
    common: Common,
}

/// Stable: scripts name them.
const COLUMNS: [&str; 5] = ["bytes", "own", "shared", "files", "name"];

/// What `--json` prints: the figures, in bytes.
#[derive(Serialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    usage: Usage,
}

pub(crate) fn du(args: &Du) -> Result<Exit> {
    args.columns.check(&COLUMNS)?;
    let mut all = Vec::new();
    for target in &args.targets {
        let usage = pool::with(&target.pool, true, &args.common, |store| {
            store.usage(&target.path).with_context(|| target.show())
        })?;
        all.push(Named { name: target.show(), usage });
    }
    if args.common.json {
        output::json_list("trees", &all)?;
        return Ok(Exit::Ok);
    }
    if args.columns.are_asked_for() {
        let row = |Named { name, usage }| {
            let Usage { bytes, own, shared, files } = usage;
            let files = Cell::Count(files as f64);
            vec![Cell::Bytes(bytes), Cell::Bytes(own), Cell::Bytes(shared), files, Cell::Text(name)]
        };
        args.columns.print(&COLUMNS, all.into_iter().map(row).collect())?;
        return Ok(Exit::Ok);
    }
    for Named { name, usage: Usage { bytes, own, shared, files } } in &all {
        let (own, shared) = (show(*own), show(*shared));
        output::line(&format!("{}  ({own} own, {shared} shared, {files} files)  {name}", show(*bytes)))?;
    }
    Ok(Exit::Ok)
}
