//! `pagestone serve`: a pool in use by one server, which every other command works through, and which can be mounted meanwhile.
//!
//! ```text
//!   worker   pool open -> control socket -> [ mounted ] -> ready     mounts come and go (mount/added.rs)
//!   Ctrl-C   unmounted -> requests done -> everything durable
//! ```

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use pagestone::{OpenOptions, Pool};
use pagestone_server::Control;
use pagestone_server::supervisor::Worker;
use serde::Serialize;

use crate::command::background::{self, Started};
use crate::command::mount::{AddedMount, Inherited};
use crate::command::pool::explain;
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
    /// Mount it on this directory too, as `pagestone mount` does, which has more options. The server stays when that is unmounted
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
    #[serde(skip_serializing_if = "Option::is_none")]
    mounted: Option<String>,
}

pub(crate) fn serve(args: &Serve) -> Result<Exit> {
    args.log.start(args.detached);
    if args.worker {
        return worker(args);
    }
    if args.background {
        return in_background(args);
    }
    if args.detached {
        background::leave_session().context("a session of its own")?;
    }
    let dir = args.mount.as_deref().map(lasting).transpose()?;
    let plan = Plan {
        pool: &args.pool,
        read_only: args.read_only,
        detached: args.detached,
        what: args.pool.display().to_string(),
        first: words(args, "--worker", &args.pool, dir.as_deref()),
        later: words(args, "--worker", &lasting(&args.pool)?, None),
    };
    Ok(plan.run()?.0)
}

/// Lets a process of its own serve the pool.
fn in_background(args: &Serve) -> Result<Exit> {
    let (pid, line) = match background::start(&words(args, "--detached", &args.pool, args.mount.as_deref()))? {
        Started::Ready { pid, line } => (pid, line),
        Started::Ended(code) => return Ok(code.map_or(Exit::Failed, Exit::of_code)),
    };
    if args.common.json {
        output::line(line.trim_end())?;
    } else {
        let pool = args.pool.display();
        let mounted = args.mount.as_ref().map_or(String::new(), |dir| format!(", mounted on {}", dir.display()));
        output::line(&format!("{pool}: served to the other commands{mounted} by process {pid} (stop: kill {pid})"))?;
    }
    Ok(Exit::Ok)
}

/// The command line of a process of ours, which is told `what` it is, and where to mount.
fn words(args: &Serve, what: &str, pool: &Path, dir: Option<&Path>) -> Vec<OsString> {
    let media = args.common.media.and_then(|media| media.to_possible_value());
    let mut line: Vec<OsString> = vec!["serve".into(), what.into()];
    line.extend(args.log.words());
    line.extend(args.read_only.then(|| "--read-only".into()));
    // Whoever waits for a detached one reads its JSON.
    line.extend((args.detached || args.common.json).then(|| "--json".into()));
    line.extend(args.http.map(|http| format!("--http={http}").into()));
    line.extend(media.map(|media| format!("--media={}", media.get_name()).into()));
    if let Some(dir) = dir {
        line.extend(["--mount".into(), dir.into()]);
        line.extend(args.allow_other.then(|| "--allow-other".into()));
    }
    line.extend(["--".into(), pool.into()]);
    line
}

fn worker(args: &Serve) -> Result<Exit> {
    let mut worker = Worker::begin().context("--worker is for the server's own use")?;
    let (listener, inherited) = (worker.take(CONTROL), Inherited::take(&mut worker)?);
    let first = listener.is_none();
    let options = OpenOptions::new().read_only(args.read_only).media(args.common.media.map(Into::into));
    let (pool, path) = supervised::open(&args.pool, options, &mut worker, !first)?;
    let control = Control::start_on(&path, pool.clone(), listener).context("the control socket");
    let ended = control.and_then(|control| {
        let control = Arc::new(control);
        control.set_server(Worker::supervisor());
        control.set_takeovers(inherited.as_ref().map_or(0, Inherited::takeovers));
        serve_until_told(args, worker, &pool, &control, inherited, first)
    });
    // Not `close`: a request that has not ended may have a clone still. The process ends now anyway.
    let closed = pool.checkpoint().map_err(|e| explain(&args.pool, e));
    ended.and(closed)?;
    if !args.common.json {
        output::line(&format!("{}: free, everything is durable", args.pool.display()))?;
    }
    Ok(Exit::Ok)
}

fn serve_until_told(
    args: &Serve,
    mut worker: Worker,
    pool: &Pool,
    control: &Arc<Control>,
    inherited: Option<Inherited>,
    first: bool,
) -> Result<()> {
    supervised::restart_by(control);
    if let Some(address) = args.http {
        supervised::add_http(&mut worker, control, address)?;
    }
    let path = args.pool.canonicalize().unwrap_or(lasting(&args.pool)?);
    let mount = AddedMount::new(pool.clone(), path, worker.keeper(), control)?;
    worker.keep(CONTROL, control.listener()).context("the supervisor")?;
    match (inherited, &args.mount) {
        (Some(inherited), _) => mount.take_over(inherited)?,
        (None, Some(dir)) if first => mount.begin_at(dir, args.allow_other)?,
        (None, _) => {}
    }
    mount.offer();
    if first {
        announce(args, control)?;
    } else if !args.read_only {
        supervised::reclaim(pool)?;
    }
    worker.ready(true).context("the supervisor")?;
    let stops = worker.stops();
    stops.wait();
    // A second one: what is under way takes too long for them, or the last user of the mount does not leave.
    let open = pool.clone();
    let now = move || {
        stops.wait();
        let synced = open.sync();
        std::process::exit(i32::from(synced.is_err()));
    };
    std::thread::Builder::new().name("stop".into()).spawn(now).context("starting a thread")?;
    control.cancel();
    mount.end();
    control.end();
    Ok(())
}

fn announce(args: &Serve, control: &Control) -> Result<()> {
    let (pool, socket) = (args.pool.display().to_string(), control.socket().display().to_string());
    let mounted = args.mount.as_ref().map(|dir| dir.display().to_string());
    if args.common.json {
        return output::json(&Serving { pool, pid: Worker::supervisor(), control: socket, mounted });
    }
    let mounted = mounted.map_or(String::new(), |dir| format!(", mounted on {dir}"));
    output::line(&format!("{pool}: served to the other commands by {socket}{mounted} (stop: Ctrl-C)"))
}
