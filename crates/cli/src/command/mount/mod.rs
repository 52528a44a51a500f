//! `pagestone mount`: the directory, the pool, and the processes that serve it.
//!
//! ```text
//!   --background   starts a process of its own, and returns when the mount stands
//!   (nothing)      directory ready? -> pool made, locked -> supervisor, until the last worker ends
//!   --worker       serves (worker.rs, face.rs)
//!   pool in use    its server serves the mount too (added.rs)
//! ```

mod added;
mod face;
mod worker;

pub(super) use added::{AddedMount, sync_server};
pub(super) use face::Inherited;

use std::borrow::Cow;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, FromArgMatches, ValueEnum};
use pagestone::{CreateOptions, Info, Pool};
use pagestone_mount::{Mounted, Options, PageCache, Prepared, can_mount, prepare, source_name};
use pagestone_server::supervisor::Worker;
use pmem::MediaKind;
use serde::Serialize;

use crate::command::background::{self, Started};
use crate::command::holder::patiently;
use crate::command::pool::{self, explain};
use crate::command::supervised::{Plan, lasting};
use crate::exit::Exit;
use crate::helper::mount_options as words_of_options;
use crate::logging::Logging;
use crate::options::Common;
use crate::output;
use crate::size::{self, show};

#[derive(Args, Clone, Debug)]
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
    /// What the kernel keeps of the bytes of files (read for a pool in an ordinary file, none for one in memory)
    #[arg(long, value_name = "WHAT")]
    cache: Option<Cache>,
    /// Show a page for people, and /metrics for Prometheus, on this port of this machine, for example 127.0.0.1:9360
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Return when the mount stands; a process of its own serves it
    #[arg(long)]
    background: bool,
    /// With --background: say nothing if all goes well
    #[arg(long, requires = "background")]
    quiet: bool,
    /// Be that process
    #[arg(long, hide = true)]
    detached: bool,
    /// Be the process that does the work of a server
    #[arg(long, hide = true)]
    worker: bool,
    /// Server threads (one for each processor if this is left out), at most 64
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// Bind each server thread to a processor (yes where there are two or more)
    #[arg(long, value_name = "YES|NO", value_parser = clap::builder::BoolishValueParser::new())]
    pin: Option<bool>,
    #[command(flatten)]
    log: Logging,
    #[command(flatten)]
    common: Common,
}

/// What the kernel keeps in its page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Cache {
    /// Nothing: reads and writes go straight to the pool
    None,
    /// What was read: reading it again is quick; writes go to the pool
    Read,
    /// Writes too: they reach the pool at fsync, close, or seconds later
    Writeback,
}

impl Cache {
    /// What is quicker for most programs, as measured by `tests/programs/cache`. Of a pool in memory, the kernel's pages
    /// would be a second copy.
    fn of_media(kind: MediaKind) -> Cache {
        match kind {
            MediaKind::File => Cache::Read,
            _ => Cache::None,
        }
    }
}

impl Cache {
    /// As the option has it.
    fn name(self) -> Option<String> {
        self.to_possible_value().map(|value| value.get_name().to_owned())
    }
}

impl From<Cache> for PageCache {
    fn from(cache: Cache) -> PageCache {
        match cache {
            Cache::None => PageCache::Off,
            Cache::Read => PageCache::Read,
            Cache::Writeback => PageCache::Writeback,
        }
    }
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
    args.log.start(args.detached);
    if args.worker {
        return worker::run(args);
    }
    if let Some(exit) = added::to_server(args)? {
        return Ok(exit);
    }
    if args.background { in_background(args) } else { supervise(args) }
}

/// The arguments of a command line, which begins with the name of the command.
fn parse_words(line: Vec<OsString>) -> Result<Mount> {
    let command = Mount::augment_args(clap::Command::new("mount"));
    Ok(Mount::from_arg_matches(&command.try_get_matches_from(line)?)?)
}

/// Prepares all that a worker needs, and has the pool served.
fn supervise(args: &Mount) -> Result<Exit> {
    if args.detached {
        background::leave_session().context("a session of its own")?;
    }
    options(args).permitted()?;
    can_mount()?;
    let prepared = prepare(&args.dir)?;
    let served = create(args).and_then(|created| {
        if prepared.was_dead {
            let dir = args.dir.display();
            tracing::warn!(mount = %dir, "a dead mount was taken away first (its server had been killed)");
        }
        if prepared.not_empty {
            tracing::warn!(mount = %args.dir.display(), "is not empty; what is in it is hidden until the unmount");
        }
        let later = Words { detached: args.detached, worker: true, ..Words::default() };
        let first = Words { create: created, ..later };
        let plan = Plan {
            pool: &args.pool,
            read_only: args.read_only,
            detached: args.detached,
            what: format!("{} on {}", args.pool.display(), args.dir.display()),
            first: words(args, first, &args.pool, &args.dir),
            later: words(args, later, &lasting(&args.pool)?, &prepared.dir),
        };
        plan.run()
    });
    if !matches!(served, Ok((_, true))) {
        made_dir_goes(&prepared);
    }
    Ok(served?.0)
}

/// Makes the pool if it is missing and `--create` says so. Returns whether it has.
fn create(args: &Mount) -> Result<bool> {
    let missing = !args.pool.try_exists().with_context(|| args.pool.display().to_string())?;
    let Some(size) = args.create.filter(|_| missing) else { return Ok(false) };
    let options = CreateOptions::new().size(size).media(args.common.media.map(pmem::MediaKind::from));
    let created = patiently(&args.pool, || Pool::create(&args.pool, &options)?.close());
    created.map_err(|e| explain(&args.pool, e))?;
    Ok(true)
}

/// Lets a process of its own serve the mount.
fn in_background(args: &Mount) -> Result<Exit> {
    let given = Words { detached: true, create: true, ..Words::default() };
    let (pid, line) = match background::start(&words(args, given, &args.pool, &args.dir))? {
        Started::Ready { pid, line } => (pid, line),
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

/// What a process of ours is told besides what the user said.
#[derive(Clone, Copy, Default)]
struct Words {
    detached: bool,
    worker: bool,
    /// `--create`: the user's, or that the pool has been made just now.
    create: bool,
}

/// The command line of a process of ours.
fn words(args: &Mount, given: Words, pool: &Path, dir: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["mount".into()];
    line.extend(args.log.words());
    let flags = [
        (given.detached, "--detached"),
        (given.worker, "--worker"),
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
        ("create", args.create.filter(|_| given.create).map(|size| size.to_string())),
        ("threads", args.threads.map(|threads| threads.to_string())),
        ("pin", args.pin.map(|pin| pin.to_string())),
        ("media", media),
        ("http", args.http.map(|http| http.to_string())),
        ("cache", args.cache.and_then(Cache::name)),
    ];
    line.extend(values.into_iter().filter_map(|(name, value)| Some(format!("--{name}={}", value?).into())));
    line.extend(["--".into(), pool.into(), dir.into()]);
    line
}

/// A directory that was made for a mount that did not come about goes again.
fn made_dir_goes(prepared: &Prepared) {
    if prepared.made {
        // If it cannot go it is an empty directory too many, which is not worth a second error.
        let _ = std::fs::remove_dir(&prepared.dir);
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
        page_cache: args.cache.unwrap_or(Cache::None).into(),
        ..Options::default()
    }
}

/// Says that the mount stands.
fn announce(args: &Mount, served: &Mounted, info: &Info) -> Result<()> {
    let (dir, created) = (args.dir.display(), args.create.is_some());
    if let Some(lost) = pool::lost(info.lost) {
        tracing::warn!(pool = %args.pool.display(), "lost {lost}");
    }
    if args.common.json || args.detached {
        let (mounted, pool) = (served.dir().to_string_lossy(), args.pool.to_string_lossy());
        let pid = Worker::supervisor();
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

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    /// An option that is forgotten in [`words`] would be lost in every worker.
    #[test]
    fn every_option_reaches_the_worker() -> Result<()> {
        let command = Mount::augment_args(clap::Command::new("mount"));
        let ours = ["create", "background", "quiet", "detached", "worker"];
        let options = command.get_arguments().filter(|arg| arg.get_long().is_some_and(|name| !ours.contains(&name)));
        let options: Vec<Arg> = options.cloned().collect();
        assert!(options.len() > 10);
        for option in options {
            let name = format!("--{}", option.get_long().unwrap_or_default());
            let value = option.get_possible_values().first().map(|value| value.get_name().to_owned());
            let value = value.unwrap_or(if name == "--http" { "127.0.0.1:9".into() } else { "7".into() });
            let given = match option.get_action() {
                ArgAction::SetTrue | ArgAction::Count => name.clone(),
                _ => format!("{name}={value}"),
            };
            let matches = command.clone().try_get_matches_from(["mount", &given, "pool", "dir"])?;
            let args = Mount::from_arg_matches(&matches)?;
            let words = words(&args, Words { worker: true, ..Words::default() }, &args.pool, &args.dir);
            assert!(
                words.iter().any(|word| *word == *given || word.to_string_lossy().starts_with(&format!("{name}="))),
                "{given}: {words:?}"
            );
        }
        Ok(())
    }
}
