//! `pagestone import` and `pagestone export`: whole files and devices in and out of a pool, past the page cache.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use pagestone::PAGE_SIZE;
use pagestone_server::api::{Moved, TransferHow};
use pagestone_server::{Store, StoreError};

use crate::command::files::into_directory;
use crate::command::pool;
use crate::command::signals::Interrupt;
use crate::exit::{Exit, Interrupted};
use crate::options::Common;
use crate::output;
use crate::progress::Progress;
use crate::size::show;
use crate::target::{self, Target};

#[derive(Args, Debug)]
struct How {
    /// Go on with a copy of the same file that was interrupted
    #[arg(long)]
    resume: bool,
    /// Read both afterwards and compare
    #[arg(long)]
    verify: bool,
}

impl From<&How> for TransferHow {
    fn from(how: &How) -> TransferHow {
        TransferHow { resume: how.resume, verify: how.verify }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// The file or block device
    ///
    /// Its bytes are read straight into the pool, many requests at a time. Holes stay holes. The copy has another name until
    /// it is complete. Ctrl-C leaves it there, and --resume goes on.
    from: PathBuf,
    /// The file in the pool, which is replaced if it is there, or a directory
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    to: Target,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// The file in the pool
    ///
    /// Its bytes are written straight out of the pool, many requests at a time. Holes stay holes; on a device they become
    /// zeros. The copy is the file as it was when the export began, whatever programs change meanwhile.
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    from: Target,
    /// The file, which is replaced if it is there, or a block device that is large enough and not in use
    to: PathBuf,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn import(args: &Import) -> Result<Exit> {
    run(&args.to, false, &args.common, "importing", &|store, progress| {
        let to = match args.from.file_name() {
            Some(name) => into_directory(store, &args.to, name.as_bytes()),
            None => args.to.clone(),
        };
        store.import(&args.from, &to.path, (&args.how).into(), progress)
    })
}

pub(crate) fn export(args: &Export) -> Result<Exit> {
    run(&args.from, true, &args.common, "exporting", &|store, progress| {
        store.export(&args.from.path, &args.to, (&args.how).into(), progress)
    })
}

type Work<'a> = &'a dyn Fn(&dyn Store, &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<Moved, StoreError>;

fn run(target: &Target, read_only: bool, common: &Common, what: &str, work: Work<'_>) -> Result<Exit> {
    let interrupt = Interrupt::listen().context("signals")?;
    let begun = Instant::now();
    let moved = pool::with(&target.pool, read_only, common, |store| {
        let mut bar = Progress::bytes(what, 0);
        interrupt.begin();
        let moved = work(store, &mut |done, total| {
            bar.set(done * PAGE_SIZE, total * PAGE_SIZE);
            if interrupt.arrived().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match (moved, interrupt.arrived()) {
            (Err(e), Some(signal)) if e.errno() == libc::EINTR => {
                let left = format!(
                    "{}: interrupted; what was copied is kept for --resume, where that is possible",
                    target.show()
                );
                Err(Interrupted { signal, left }.into())
            }
            (moved, _) => moved.with_context(|| target.show()),
        }
    })?;
    if common.json {
        output::json(&moved)?;
    } else {
        print(target, what, &moved, begun.elapsed())?;
    }
    Ok(Exit::Ok)
}

fn print(target: &Target, what: &str, moved: &Moved, time: Duration) -> Result<()> {
    let rate = show((moved.moved as f64 / time.as_secs_f64().max(1e-6)) as u64);
    let mut line = format!("{}: {} {}", target.show(), show(moved.bytes), what.replace("ing", "ed"));
    if moved.resumed_at > 0 {
        line += &format!(", {} of it before", show(moved.resumed_at));
    }
    line += &format!(", {} of data at {rate}/s", show(moved.moved));
    if moved.verified {
        line += ", verified";
    }
    if !moved.direct {
        line += " (through the page cache: direct I/O is not possible there)";
    }
    output::line(&line)
}
