//! `pagestone scrub`: everything in a pool is read, also while it is in use.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use pagestone::PAGE_SIZE;
use pagestone_server::api::Scrubbed;

use crate::command::pool;
use crate::command::signals::Interrupt;
use crate::exit::{Exit, Interrupted};
use crate::options::Common;
use crate::output;
use crate::pool_error::PoolError;
use crate::progress::Progress;
use crate::size::show;

#[derive(Args, Debug)]
pub(crate) struct Scrub {
    /// The pool
    ///
    /// Names of files, attributes and data are read, and metadata verified. What cannot be read is named with its place; the
    /// exit code is 4 then. Ctrl-C stops the command.
    pool: PathBuf,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn scrub(args: &Scrub) -> Result<Exit> {
    let interrupt = Interrupt::listen().context("signals")?;
    let found = read(args, &interrupt, false);
    // A pool that may only be read is read.
    let is_refusal = |e: &anyhow::Error| e.downcast_ref().is_some_and(PoolError::is_refusal);
    let found = found.or_else(|e| if is_refusal(&e) { read(args, &interrupt, true) } else { Err(e) })?;
    let exit = if found.lost == 0 { Exit::Ok } else { Exit::Damaged };
    if args.common.json {
        output::json(&found)?;
    } else {
        print(args, &found)?;
    }
    Ok(exit)
}

fn read(args: &Scrub, interrupt: &Interrupt, read_only: bool) -> Result<Scrubbed> {
    pool::with(&args.pool, read_only, &args.common, |store| {
        let mut bar = Progress::bytes("reading", 0);
        interrupt.begin();
        let found = store.scrub(&mut |done, total| {
            bar.set(done * PAGE_SIZE, total * PAGE_SIZE);
            if interrupt.arrived().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match (found, interrupt.arrived()) {
            (Err(e), Some(signal)) if e.errno() == libc::EINTR => {
                let left = format!("{}: interrupted; a part was read", args.pool.display());
                Err(Interrupted { signal, left }.into())
            }
            (found, _) => found.with_context(|| args.pool.display().to_string()),
        }
    })
}

fn print(args: &Scrub, found: &Scrubbed) -> Result<()> {
    for place in &found.places {
        let at = place.offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
        output::line(&format!("{}{at}: {}", place.path, place.what))?;
    }
    let lost = match found.lost {
        0 => "nothing is lost".into(),
        1 => "1 place is lost".into(),
        n => format!("{n} places are lost"),
    };
    let (pool, files, bytes) = (args.pool.display(), found.files, show(found.bytes));
    output::line(&format!("{pool}: {files} files and directories, {bytes} read; {lost}"))
}
