//! `pagestone mount`: pool, directory, server, and a clean end.
//!
//! ```text
//!   directory ready? -> pool open (or made) -> mounted -> said so ----------+
//!                                                                           |
//!   Ctrl-C: unmount; busy: taken out of sight, ends with its last user      |
//!   umount DIR from outside                                                 v
//!                                     server threads end -> pool closed -> exit 0
//! ```

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use pagestone::{CreateOptions, Info, Pool};
use pagestone_mount::resize::Resizes;
use pagestone_mount::{FuseTransport, Mounted, Options, PoolFs, Prepared, Transport, can_mount, prepare, source_name};
use serde::Serialize;

use crate::command::background::{self, Started};
use crate::command::holder::patiently;
use crate::command::pool::{self, explain};
use crate::command::signals::Signals;
use crate::exit::Exit;
use crate::options::Common;
use crate::output;
use crate::size::{self, show};

#[derive(Args, Debug)]
pub(crate) struct Mount {
    /// The pool
    pool: PathBuf,
    /// The directory to mount it on; made if it is missing
    dir: PathBuf,
    /// Make the pool with this size if it is missing, for example 1G
    #[arg(long, value_name = "SIZE", value_parser = size::parse, conflicts_with = "read_only")]
    create: Option<u64>,
    /// Change nothing
    #[arg(long)]
    read_only: bool,
    /// Let other users in, as far as owners and modes allow
    #[arg(long)]
    allow_other: bool,
    /// Let no program be started from it
    #[arg(long)]
    no_exec: bool,
    /// Let device nodes in it be devices (root only)
    #[arg(long)]
    dev: bool,
    /// Let set-user-id and set-group-id bits of programs in it count (root only)
    #[arg(long)]
    suid: bool,
    /// Return when the mount stands; a process of its own serves it
    #[arg(long)]
    background: bool,
    /// With --background: say nothing if all goes well
    #[arg(long, requires = "background")]
    quiet: bool,
    /// Be that process
    #[arg(long, hide = true)]
    detached: bool,
    /// Server threads (one for each processor if this is left out)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Bind each server thread to a processor (yes where there are two or more)
    #[arg(long, value_name = "YES|NO", value_parser = clap::builder::BoolishValueParser::new())]
    pin: Option<bool>,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints once the mount stands.
#[derive(Serialize)]
struct Standing<'a> {
    mounted: Cow<'a, str>,
    pool: Cow<'a, str>,
    created: bool,
    pid: u32,
    threads: usize,
    info: &'a Info,
}

pub(crate) fn mount(args: &Mount) -> Result<Exit> {
    if args.background {
        return in_background(args);
    }
    if args.detached {
        background::leave_session().context("a session of its own")?;
    }
    let options = options(args);
    options.permitted()?;
    can_mount()?;
    let prepared = prepare(&args.dir)?;
    let signals = Signals::hold().context("signals")?;
    let (pool, created) = open_or_create(args).inspect_err(|_| undo(&prepared))?;
    let info = pool.info().map_err(|e| explain(&args.pool, e))?;
    let fs = PoolFs::new(pool.clone());
    let resizes = fs.resizes();
    let served = FuseTransport.serve(Arc::new(fs), &prepared.dir, &options).inspect_err(|_| undo(&prepared))?;
    let kept = Kept::new(pool.clone());
    let null = args.detached.then(background::leave_directory).transpose().context("leaving the working directory");
    let ended = null
        .and_then(|null| announce(args, &prepared, &served, &info, created).map(|()| null))
        .and_then(|null| Ok(null.as_ref().map_or(Ok(()), background::close_output)?))
        .and_then(|()| end_on_signal(signals, served.dir().to_path_buf(), kept.clone(), resizes.clone()))
        .and_then(|()| served.wait().context("serving the mount"));
    resizes.end();
    finish(args, ended, &kept, pool)?;
    if !args.common.json && !args.detached {
        output::line(&format!("{}: unmounted, everything is durable", args.dir.display()))?;
    }
    Ok(Exit::Ok)
}

/// Lets a process of its own serve the mount.
fn in_background(args: &Mount) -> Result<Exit> {
    let (pid, line) = match background::start(&server_arguments(args))? {
        Started::Mounted { pid, line } => (pid, line),
        Started::Ended(code) => return Ok(code.map_or(Exit::Failed, Exit::of_code)),
    };
    if args.common.json {
        output::line(line.trim_end())?;
    } else if !args.quiet {
        let (pool, dir) = (args.pool.display(), args.dir.display());
        output::line(&format!("{pool}: mounted on {dir} by process {pid} (stop: pagestone umount {dir})"))?;
    }
    Ok(Exit::Ok)
}

/// The command line of a server in the background.
fn server_arguments(args: &Mount) -> Vec<OsString> {
    let mut line: Vec<OsString> = ["mount", "--detached"].map(OsString::from).to_vec();
    let flags = [
        (args.read_only, "--read-only"),
        (args.allow_other, "--allow-other"),
        (args.no_exec, "--no-exec"),
        (args.dev, "--dev"),
        (args.suid, "--suid"),
        (args.common.json, "--json"),
    ];
    for (given, flag) in flags {
        line.extend(given.then(|| flag.into()));
    }
    let media = args.common.media.and_then(|media| media.to_possible_value()).map(|media| media.get_name().to_owned());
    let values = [
        ("create", args.create.map(|size| size.to_string())),
        ("threads", args.threads.map(|threads| threads.to_string())),
        ("pin", args.pin.map(|pin| pin.to_string())),
        ("media", media),
    ];
    line.extend(values.into_iter().filter_map(|(name, value)| Some(format!("--{name}={}", value?).into())));
    line.extend(["--".into(), args.pool.clone().into(), args.dir.clone().into()]);
    line
}

/// Closes the pool, however the mount has ended.
fn finish(args: &Mount, ended: Result<()>, kept: &Kept, pool: Pool) -> Result<()> {
    kept.release();
    // Not `close`: a server thread that ends later than the mount may have a clone still. The process ends now anyway.
    let closed = pool.checkpoint().map_err(|e| explain(&args.pool, e));
    ended.and(closed)
}

/// The pool in the hands of a thread that lives as long as the process, which must not keep it open.
#[derive(Clone)]
struct Kept(Arc<Mutex<Option<Pool>>>);

impl Kept {
    fn new(pool: Pool) -> Kept {
        Kept(Arc::new(Mutex::new(Some(pool))))
    }

    /// What the lock guards is whole whoever has panicked.
    fn lock(&self) -> MutexGuard<'_, Option<Pool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self) {
        drop(self.lock().take());
    }
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
            let options = CreateOptions::new().size(size).media(media);
            let pool = patiently(&args.pool, || Pool::create(&args.pool, &options));
            let pool = pool.map_err(|e| explain(&args.pool, e))?;
            Ok((pool, true))
        }
        _ => Ok((pool::open(&args.pool, args.read_only, args.common.media)?, false)),
    }
}

fn options(args: &Mount) -> Options {
    Options {
        source: source_name(&args.pool),
        read_only: args.read_only,
        allow_other: args.allow_other,
        no_exec: args.no_exec,
        dev: args.dev,
        suid: args.suid,
        threads: args.threads.map(usize::from),
        pin: args.pin,
        ..Options::default()
    }
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
    if args.common.json || args.detached {
        let (mounted, pool) = (served.dir().to_string_lossy(), args.pool.to_string_lossy());
        let pid = std::process::id();
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
    output::line(&format!("stop     with Ctrl-C, or: pagestone umount {dir}"))
}

/// Starts the thread that waits for Ctrl-C.
fn end_on_signal(signals: Signals, dir: PathBuf, kept: Kept, resizes: Resizes) -> Result<()> {
    let wait = move || {
        if signals.wait().is_ok() {
            resizes.cancel();
            end(&dir);
        }
        // A second one: the last user does not leave, and ours does not want to wait.
        if signals.wait().is_ok() {
            // None: it is being closed, which is as quick.
            let Some(pool) = &*kept.lock() else { return };
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

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;
    use pagestone::{Error, OpenOptions};

    use super::*;

    #[test]
    fn a_mount_that_ends_with_an_error_closes_its_pool_all_the_same() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("test.pool");
        let line = ["mount".as_ref(), path.as_os_str(), "m".as_ref()];
        let args =
            Mount::from_arg_matches(&Mount::augment_args(clap::Command::new("mount")).try_get_matches_from(line)?)?;
        let pool = Pool::create(&path, &CreateOptions::new().size(16 << 20))?;
        let kept = Kept::new(pool.clone());
        let of_the_thread = kept.clone();
        pool.root().create(b"file", &pagestone::inode::NewNode::new(pagestone::FileType::File, 0o644))?;
        let opened = || Pool::open(&path, &OpenOptions::default());
        assert!(matches!(opened(), Err(Error::InUse { .. })));
        let ended = finish(&args, Err(anyhow::anyhow!("the connection broke")), &kept, pool);
        assert!(ended.is_err_and(|e| e.to_string() == "the connection broke"));
        assert_eq!(opened()?.info()?.replayed, 0, "it was closed, and nobody has it open");
        drop(of_the_thread);
        Ok(())
    }
}
