//! `pagestone serve`: a pool in use by one server alone, which every other command works through.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use pagestone::OpenOptions;
use pagestone_server::Control;
use pagestone_server::supervisor::Worker;
use pmem::PoolLock;
use serde::Serialize;

use crate::command::background::{self, Started};
use crate::command::mount;
use crate::command::pool::{self, explain};
use crate::command::supervised::{self, CONTROL, Plan, lasting};
use crate::exit::Exit;
use crate::logging::Logging;
use crate::options::Common;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// The pool
    pool: PathBuf,
    /// Change nothing
    #[arg(long)]
    read_only: bool,
    /// Show a page for people, and /metrics for Prometheus, on this port of this machine, for example 127.0.0.1:9360
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Mount it on this directory too, as `pagestone mount` does, which has more options
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Let other users into the mount, as far as owners and modes allow
    #[arg(long, requires = "mount")]
    allow_other: bool,
    /// Return when the pool is served; a process of its own serves it
    #[arg(long)]
    background: bool,
    /// Be that process
    #[arg(long, hide = true)]
    detached: bool,
    /// Be the process that does the work of a server
    #[arg(long, hide = true)]
    worker: bool,
    #[command(flatten)]
    log: Logging,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints once the pool is served.
#[derive(Serialize)]
struct Serving {
    pool: String,
    pid: u32,
    control: String,
}

pub(crate) fn serve(args: &Serve) -> Result<Exit> {
    args.log.start(args.detached);
    if args.worker {
        return worker(args);
    }
    if let Some(dir) = &args.mount {
        return mount::mount_by(mount_words(args, dir));
    }
    if args.background {
        return in_background(args);
    }
    if args.detached {
        background::leave_session().context("a session of its own")?;
    }
    let plan = Plan {
        pool: &args.pool,
        read_only: args.read_only,
        detached: args.detached,
        what: args.pool.display().to_string(),
        first: words(args, "--worker", &args.pool),
        later: words(args, "--worker", &lasting(&args.pool)?),
    };
    Ok(plan.run()?.0)
}

/// Lets a process of its own serve the pool.
fn in_background(args: &Serve) -> Result<Exit> {
    let (pid, line) = match background::start(&words(args, "--detached", &args.pool))? {
        Started::Ready { pid, line } => (pid, line),
        Started::Ended(code) => return Ok(code.map_or(Exit::Failed, Exit::of_code)),
    };
    if args.common.json {
        output::line(line.trim_end())?;
    } else {
        let pool = args.pool.display();
        output::line(&format!("{pool}: served to the other commands by process {pid} (stop: kill {pid})"))?;
    }
    Ok(Exit::Ok)
}

/// The command line of a process of ours, which is told `what` it is.
fn words(args: &Serve, what: &str, pool: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["serve".into(), what.into()];
    // Whoever waits for a detached one reads its JSON.
    line.extend((args.detached && !args.common.json).then(|| "--json".into()));
    line.extend(given(args));
    line.extend(["--".into(), pool.into()]);
    line
}

/// The command line of a mount that does the same.
fn mount_words(args: &Serve, dir: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["mount".into()];
    line.extend(args.allow_other.then(|| "--allow-other".into()));
    line.extend(args.background.then(|| "--background".into()));
    line.extend(given(args));
    line.extend(["--".into(), (&args.pool).into(), dir.into()]);
    line
}

/// What a server and a mount are both told.
fn given(args: &Serve) -> Vec<OsString> {
    let media = args.common.media.and_then(|media| media.to_possible_value());
    let mut line: Vec<OsString> = Vec::new();
    line.extend(args.log.words());
    line.extend(args.read_only.then(|| "--read-only".into()));
    line.extend(args.common.json.then(|| "--json".into()));
    line.extend(args.http.map(|http| format!("--http={http}").into()));
    line.extend(media.map(|media| format!("--media={}", media.get_name()).into()));
    line
}

fn worker(args: &Serve) -> Result<Exit> {
    let mut worker = Worker::begin().context("--worker is for the server's own use")?;
    let lock = worker.take(supervised::LOCK).map(PoolLock::from_fd);
    let media = args.common.media.map(Into::into);
    let options = OpenOptions::new().read_only(args.read_only).media(media).lock(lock);
    let pool = pool::open_how(&args.pool, &options)?;
    let listener = worker.take(CONTROL);
    let first = listener.is_none();
    let control = Control::start_on(&args.pool, pool.clone(), listener).context("the control socket");
    let ended = control.and_then(|control| {
        control.set_server(Worker::supervisor());
        let control = Arc::new(control);
        supervised::restart_by(&control);
        if let Some(address) = args.http {
            supervised::add_http(&mut worker, &control, address)?;
        }
        worker.keep(CONTROL, control.listener()).context("the supervisor")?;
        if first {
            announce(args, &control)?;
        }
        worker.ready(true).context("the supervisor")?;
        let stops = worker.stops();
        stops.wait();
        // A second one: what is under way takes too long for them.
        let now = move || {
            stops.wait();
            std::process::exit(1);
        };
        std::thread::Builder::new().name("stop".into()).spawn(now).context("starting a thread")?;
        control.end();
        Ok(())
    });
    // Not `close`: a request that has not ended may have a clone still. The process ends now anyway.
    let closed = pool.checkpoint().map_err(|e| explain(&args.pool, e));
    ended.and(closed)?;
    if !args.common.json {
        output::line(&format!("{}: free, everything is durable", args.pool.display()))?;
    }
    Ok(Exit::Ok)
}

fn announce(args: &Serve, control: &Control) -> Result<()> {
    let (pool, socket) = (args.pool.display().to_string(), control.socket().display().to_string());
    if args.common.json {
        return output::json(&Serving { pool, pid: Worker::supervisor(), control: socket });
    }
    output::line(&format!("{pool}: served to the other commands by {socket} (stop: Ctrl-C)"))
}
