//! `pagestone mount`: pool, directory, server, and a clean end.
//!
//! ```text
//!   directory ready? -> pool open (or made) -> mounted -> said so ----------+
//!                                                                           |
//!   Ctrl-C: unmount; busy: taken out of sight, ends with its last user      |
//!   umount DIR from outside                                                 v
//!                                     server threads end -> pool closed -> exit 0
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use pagestone::{CreateOptions, Info, Pool};
use pagestone_mount::{FuseTransport, Mounted, Options, PoolFs, Prepared, Transport, can_mount, prepare};
use serde::Serialize;

use crate::args::Mount;
use crate::command::pool::{self, explain};
use crate::command::signals::Signals;
use crate::exit::Exit;
use crate::output;
use crate::size::show;

/// What `--json` prints once the mount stands.
#[derive(Serialize)]
struct Standing<'a> {
    mounted: &'a Path,
    pool: &'a Path,
    created: bool,
    pid: u32,
    threads: usize,
    info: &'a Info,
}

pub(crate) fn mount(args: &Mount) -> Result<Exit> {
    can_mount()?;
    let prepared = prepare(&args.dir)?;
    let signals = Signals::hold().context("signals")?;
    let (pool, created) = open_or_create(args).inspect_err(|_| undo(&prepared))?;
    let info = pool.info().map_err(|e| explain(&args.pool, e))?;
    let served = serve(args, &prepared, pool.clone()).inspect_err(|_| undo(&prepared))?;
    announce(args, &prepared, &served, &info, created)?;
    end_on_signal(signals, served.dir().to_path_buf(), pool.clone())?;
    served.wait().context("serving the mount")?;
    pool.close().map_err(|e| explain(&args.pool, e))?;
    if !args.common.json {
        output::line(&format!("{}: unmounted, everything is durable", args.dir.display()))?;
    }
    Ok(Exit::Ok)
}

/// A directory that was made for a mount that did not come about goes again.
fn undo(prepared: &Prepared) {
    if prepared.made {
        // If it cannot go it is an empty directory too many, which is not worth a second error.
        let _ = std::fs::remove_dir(&prepared.dir);
    }
}

fn open_or_create(args: &Mount) -> Result<(Pool, bool)> {
    let missing = !args.pool.try_exists().with_context(|| args.pool.display().to_string())?;
    match args.create {
        Some(size) if missing => {
            let media = args.common.media.map(Into::into);
            let options = CreateOptions { size: Some(size), force: false, media };
            let pool = Pool::create(&args.pool, &options).map_err(|e| explain(&args.pool, e))?;
            Ok((pool, true))
        }
        _ => Ok((pool::open(&args.pool, args.read_only, args.common.media)?, false)),
    }
}

fn serve(args: &Mount, prepared: &Prepared, pool: Pool) -> Result<Mounted> {
    let options = Options {
        source: args.pool.display().to_string(),
        read_only: args.read_only,
        allow_other: args.allow_other,
        threads: args.threads.map(usize::from),
        pin: args.pin,
        ..Options::default()
    };
    Ok(FuseTransport.serve(Arc::new(PoolFs::new(pool)), &prepared.dir, &options)?)
}

fn announce(args: &Mount, prepared: &Prepared, served: &Mounted, info: &Info, created: bool) -> Result<()> {
    let dir = args.dir.display();
    if prepared.was_dead {
        eprintln!("pagestone: {dir}: a dead mount was taken away first (its server had been killed)");
    }
    if prepared.not_empty {
        eprintln!("pagestone: {dir} is not empty; what is in it is hidden until the unmount");
    }
    if let Some(lost) = pool::lost(info.lost) {
        eprintln!("pagestone: {}: lost {lost}", args.pool.display());
    }
    if args.common.json {
        let (mounted, pool, pid) = (served.dir(), args.pool.as_path(), std::process::id());
        return output::json(&Standing { mounted, pool, created, pid, threads: served.threads(), info });
    }
    let pool = args.pool.display();
    let size = show(info.size);
    if created {
        output::line(&format!("made     {pool}, a pool of {size}"))?;
    } else if info.replayed > 0 {
        output::line(&format!("opened   {pool}, a pool of {size}; {} records replayed", info.replayed))?;
    } else {
        output::line(&format!("opened   {pool}, a pool of {size}"))?;
    }
    output::line(&format!("media    {}: {}", info.media.kind, info.media.promise))?;
    output::line(&format!("durable  {}", pool::durability(info.media.durability)))?;
    let how = if args.read_only { ", read-only" } else { "" };
    output::line(&format!("mounted  on {}{how}, {} server threads", served.dir().display(), served.threads()))?;
    output::line(&format!("stop     with Ctrl-C, or: umount {dir}"))
}

/// Starts the thread that waits for Ctrl-C.
fn end_on_signal(signals: Signals, dir: PathBuf, pool: Pool) -> Result<()> {
    let wait = move || {
        if signals.wait().is_ok() {
            end(&dir);
        }
        // A second one: the last user does not leave, and ours does not want to wait.
        if signals.wait().is_ok() {
            let synced = pool.sync();
            eprintln!("pagestone: ended while the mount was in use; what had been written is in the pool");
            std::process::exit(i32::from(synced.is_err()));
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("starting a thread")?;
    Ok(())
}

fn end(dir: &Path) {
    let Err(e) = pagestone_mount::unmount(dir) else { return };
    if e.raw_os_error() == Some(libc::EBUSY) {
        eprintln!(
            "pagestone: {} is in use; it is out of sight now and ends with its last user (Ctrl-C again: at once)",
            dir.display()
        );
    }
    if let Err(e) = pagestone_mount::unmount_lazily(dir) {
        eprintln!("pagestone: unmounting {}: {e}", dir.display());
    }
}
