//! `pagestone restart`: a new process takes over the work of a server, of the program as it is installed now.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::command::pool;
use crate::exit::Exit;
use crate::options::Common;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct Restart {
    /// The pool, or where it is mounted
    pool: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Report {
    pool: String,
    version: String,
    worker: u32,
    milliseconds: u128,
}

pub(crate) fn restart(args: &Restart) -> Result<Exit> {
    let shown = || args.pool.display().to_string();
    let Some(client) = pool::server(&args.pool).with_context(shown)? else {
        bail!("{}: not in use: there is nothing to restart", shown());
    };
    let begun = Instant::now();
    let restarted = client.restart().with_context(shown)?;
    let milliseconds = begun.elapsed().as_millis();
    let (version, worker) = (restarted.version, restarted.worker);
    if args.common.json {
        output::json(&Report { pool: shown(), version, worker, milliseconds })?;
    } else {
        let text = format!("process {worker}, version {version}, serves it after {milliseconds} ms");
        output::line(&format!("{}: {text}", shown()))?;
    }
    Ok(Exit::Ok)
}
