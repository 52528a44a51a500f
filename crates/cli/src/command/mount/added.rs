//! A mount that is added to a server while it runs.
//!
//! ```text
//!   pagestone mount POOL DIR     pool free           a server of its own, which ends with the mount
//!                                served, no mount    the server mounts it: POST /v1/mounts     AddedMount
//!                                mounted already     the kernel shows that mount on DIR, too
//!   umount DIR                                       the face goes, the server stays
//! ```
//!
//! A server has one filesystem, however many directories show it: so what is changed through one directory is seen through the
//! other at once, and the kernel keeps one copy of what it caches.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pagestone::{Info, Pool};
use pagestone_mount::{MountError, bind, can_mount, mount_at, prepare};
use pagestone_server::api::{Face, Name, NewMount, Status};
use pagestone_server::supervisor::Keeper;
use pagestone_server::{Client, Code, Control, Problem, Store, StoreError};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::face::{self, Inherited, MountFace};
use super::{Cache, Mount, made_dir_goes, options, parse_words, words_of_options};
use crate::command::{pool, supervised};
use crate::exit::{self, Exit, WrongUsage};
use crate::output;

/// How long a mount that was unmounted just now may take to end.
const LAST_MOMENT: Duration = Duration::from_secs(10);

/// The mount that a server may have, and lose, while it runs.
pub(crate) struct AddedMount {
    pool: Pool,
    path: PathBuf,
    info: Info,
    keeper: Keeper,
    control: Weak<Control>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Where it is mounted, or is about to be.
    dir: Option<PathBuf>,
    /// On which directories it can be seen, once it is mounted.
    seen_on: Option<Box<dyn Fn() -> Vec<PathBuf> + Send + Sync>>,
    /// No more mounts.
    ending: bool,
}

impl AddedMount {
    /// For the pool at `path`, which is absolute. `control` tells of the mount.
    pub(crate) fn new(pool: Pool, path: PathBuf, keeper: Keeper, control: &Arc<Control>) -> Result<Arc<AddedMount>> {
        let info = pool.info()?;
        let control = Arc::downgrade(control);
        let (state, changed) = (Mutex::default(), Condvar::new());
        Ok(Arc::new(AddedMount { pool, path, info, keeper, control, state, changed }))
    }

    /// Lets clients of the control socket mount.
    pub(crate) fn offer(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        let mount = move |new: &NewMount| match weak.upgrade() {
            Some(added) => added.mount(new),
            None => Err(Problem::new(503, libc::EBUSY, Code::Failed, "the server is ending")),
        };
        if let Some(control) = self.control.upgrade() {
            control.on_mount(mount);
        }
    }

    fn mount(self: &Arc<Self>, new: &NewMount) -> Result<(), Problem> {
        let args = self.args(new).map_err(|e| Problem::bad_request(e.to_string()))?;
        self.begin(args).map_err(|e| {
            if let Some(problem) = e.downcast_ref::<Problem>() {
                return problem.clone();
            }
            // Whatever it is, it comes of the directory that was asked for.
            let errno = e.chain().find_map(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
            Problem::new(409, errno.unwrap_or(libc::EBUSY), Code::Failed, exit::message(&e))
        })
    }

    /// The mount as a command line would ask for it.
    fn args(&self, new: &NewMount) -> Result<Mount> {
        let dir = Path::new(OsStr::from_bytes(&new.at.0));
        if !dir.is_absolute() {
            return Err(WrongUsage(format!("'{}': a directory's path begins with /", dir.display())).into());
        }
        let mut line = vec!["mount".into()];
        line.extend(words_of_options(&new.options)?);
        line.extend(["--".into(), (&self.path).into(), dir.into()]);
        let args = parse_words(line)?;
        options(&args).permitted()?;
        if args.http.is_some() || args.common.media.is_some() {
            return Err(WrongUsage("http and media are options of the server".into()).into());
        }
        Ok(args)
    }

    /// As a client does, for a server that is told so at its start.
    pub(crate) fn begin_at(self: &Arc<Self>, dir: &Path, allow_other: bool) -> Result<()> {
        let (at, options) = (Name::from(dir.as_os_str().as_bytes()), if allow_other { "allow_other" } else { "" });
        self.begin(self.args(&NewMount { at, options: options.into() })?)
    }

    /// Mounts, and serves from now on.
    fn begin(self: &Arc<Self>, mut args: Mount) -> Result<()> {
        can_mount()?;
        self.reserve(&args.dir)?;
        let prepared = prepare(&args.dir).map_err(anyhow::Error::from).and_then(|prepared| {
            args.dir.clone_from(&prepared.dir);
            args.read_only |= self.info.media.read_only;
            if self.path.starts_with(&args.dir) {
                made_dir_goes(&prepared);
                bail!("{}: the pool itself lies below it", args.dir.display());
            }
            Ok(prepared)
        });
        let begun = prepared.and_then(|prepared| {
            let face = MountFace::begin(&args, &self.pool, &self.info);
            face.and_then(|face| self.serve(&args, face)).inspect_err(|_| made_dir_goes(&prepared))
        });
        begun.inspect_err(|_| self.free())
    }

    /// Goes on with a mount of a process that has died.
    pub(crate) fn take_over(self: &Arc<Self>, inherited: Inherited) -> Result<()> {
        let args = inherited.args.clone().context("the options of the mount are missing")?;
        self.reserve(&args.dir)?;
        let face = MountFace::take_over(inherited, &args, &self.pool, &self.info);
        face.and_then(|face| self.serve(&args, face)).inspect_err(|_| self.free())
    }

    /// One mount at a time. One that is being mounted, or was unmounted just now, is waited for.
    fn reserve(&self, dir: &Path) -> Result<()> {
        let deadline = Instant::now() + LAST_MOMENT;
        let mut state = self.state.lock();
        let is_changing =
            |state: &State| state.dir.is_some() && state.seen_on.as_ref().is_none_or(|dirs| dirs().is_empty());
        while is_changing(&state) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        if state.ending {
            return Err(Problem::new(503, libc::EBUSY, Code::Failed, "the server is ending").into());
        }
        if let Some(other) = &state.dir {
            let text = format!("it is mounted on {} already", other.display());
            return Err(Problem::new(409, libc::EBUSY, Code::Failed, text).into());
        }
        state.dir = Some(dir.to_path_buf());
        Ok(())
    }

    fn free(&self) {
        let mut state = self.state.lock();
        (state.dir, state.seen_on) = (None, None);
        self.changed.notify_all();
    }

    fn serve(self: &Arc<Self>, args: &Mount, face: MountFace) -> Result<()> {
        let dirs = face.served.dirs_later();
        self.serve_or_fail(args, face).inspect_err(|_| {
            // Who keeps a copy of the connection keeps the mount.
            let _ = face::forget(&self.keeper);
            face::end_on(&dirs());
        })
    }

    fn serve_or_fail(self: &Arc<Self>, args: &Mount, mut face: MountFace) -> Result<()> {
        let survives = face.keep(args, &self.keeper).context("the supervisor")?;
        if !survives && let Some(control) = self.control.upgrade() {
            // Not until it is unmounted.
            control.forbid_restart();
        }
        let (served, dir) = (face.served, args.dir.clone());
        self.control.upgrade().iter().for_each(|control| control.add_mount(&served));
        {
            let mut state = self.state.lock();
            state.dir = Some(dir.clone());
            state.seen_on = Some(Box::new(served.dirs_later()));
            self.changed.notify_all();
            if state.ending {
                face::end_on(&served.dirs());
            }
        }
        let this = self.clone();
        let wait = move || {
            match served.wait() {
                Ok(()) => tracing::info!(mount = %dir.display(), "unmounted"),
                Err(e) => tracing::error!(mount = %dir.display(), "serving the mount: {e}"),
            }
            if let Err(e) = face::forget(&this.keeper) {
                tracing::error!("{e:#}");
            }
            if let Some(control) = this.control.upgrade() {
                control.remove_mount(&dir);
                supervised::restart_by(&control);
            }
            this.free();
        };
        thread::Builder::new().name("mounted".into()).spawn(wait).context("starting a thread")?;
        Ok(())
    }

    /// Unmounts, and waits for the last user. No other mount can be added.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.ending = true;
        // One that is being prepared ends when it is mounted.
        let Some(dirs) = state.seen_on.as_ref().map(|dirs| dirs()) else { return };
        drop(state);
        face::end_on(&dirs);
        let mut state = self.state.lock();
        while state.seen_on.is_some() {
            self.changed.wait(&mut state);
        }
    }
}

/// What `--json` prints of a mount that another server serves.
#[derive(Serialize)]
struct Added<'a> {
    mounted: &'a str,
    pool: &'a str,
    created: bool,
    pid: u32,
    info: &'a Info,
}

/// Adds a mount to the server that has the pool in use. `None` if there is none, or one that ends with its own mount, which is
/// gone.
pub(super) fn to_server(args: &Mount) -> Result<Option<Exit>> {
    let Some(client) = pool::server(&args.pool).ok().flatten() else { return Ok(None) };
    // It has ended, or is of another version.
    let Ok(status) = client.status() else { return Ok(None) };
    let mut seen = seen_mount(args, &status);
    let mut added = match &seen {
        Some(dir) => show_too(args, dir),
        None => ask(args, &client),
    };
    if added.as_ref().is_err_and(is_mounted_already) {
        // Somebody else was quicker.
        seen = client.status().ok().and_then(|status| seen_mount(args, &status));
        added = seen.as_ref().map_or(added, |dir| show_too(args, dir));
    }
    match added {
        Err(e) if is_for_another_server(&e, args, &status) => return Ok(None),
        added => added.with_context(|| args.pool.display().to_string())?,
    }
    let dir = args.dir.canonicalize().with_context(|| args.dir.display().to_string())?;
    let (dir, pool, pid) = (dir.to_string_lossy(), args.pool.to_string_lossy(), status.pid);
    if args.common.json || args.detached {
        let info = &client.info().with_context(|| args.pool.display().to_string())?;
        output::json(&Added { mounted: &dir, pool: &pool, created: false, pid, info })?;
    } else if !args.quiet {
        let too = seen.map_or(String::new(), |dir| format!(", as on {}", dir.display()));
        output::line(&format!("{pool}: mounted on {dir}{too}, by process {pid} (stop: pagestone umount {dir})"))?;
    }
    Ok(Some(Exit::Ok))
}

fn is_mounted_already(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Server(problem)) if problem.status == 409)
}

/// A directory on which this process sees the mount of the server.
fn seen_mount(args: &Mount, status: &Status) -> Option<PathBuf> {
    let mounted = status.faces.iter().filter(|face| face.kind == Face::MOUNT);
    let mut dirs = mounted.map(|face| PathBuf::from(OsStr::from_bytes(&face.at.0)));
    dirs.find(|dir| mount_at(dir).is_some_and(|mount| mount.is_trusted() && mount.is_of(&args.pool)))
}

/// Asks the server to mount. Its worker may die before it answers: then the next one serves the mount, or is asked once more.
fn ask(args: &Mount, client: &Client) -> Result<()> {
    let new = asked_for(args)?;
    match client.mount(&new) {
        Err(StoreError::Connection(_)) => {}
        done => return Ok(done?),
    }
    let dir = args.dir.canonicalize().unwrap_or_default();
    let is_ours = |face: &Face| face.kind == Face::MOUNT && face.at.0 == dir.as_os_str().as_bytes();
    if client.status()?.faces.iter().any(is_ours) {
        return Ok(());
    }
    Ok(client.mount(&new)?)
}

/// Whether a server of its own is to try it.
fn is_for_another_server(error: &anyhow::Error, args: &Mount, status: &Status) -> bool {
    match (error.downcast_ref(), error.downcast_ref()) {
        // It is ending, or adds none: then whoever comes waits for its end, or hears who has the pool.
        (Some(StoreError::Connection(_)), _) => true,
        (Some(StoreError::Server(problem)), _) => matches!(problem.status, 501 | 503),
        // One that only reads leaves room for others that do.
        (_, Some(MountError::OnlyRootTwice(_))) => status.read_only && args.read_only,
        _ => false,
    }
}

/// Shows on another directory what is mounted on `from`.
fn show_too(args: &Mount, from: &Path) -> Result<()> {
    let of_the_server = [
        (args.allow_other, "--allow-other"),
        (args.dev, "--dev"),
        (args.suid, "--suid"),
        (args.cache.is_some(), "--cache"),
        (args.threads.is_some(), "--threads"),
        (args.pin.is_some(), "--pin"),
        (args.http.is_some(), "--http"),
    ];
    if let Some((_, option)) = of_the_server.iter().find(|(given, _)| *given) {
        let text = "it is mounted already, and another directory shows the same mount";
        return Err(WrongUsage(format!("{option}: {text} (on {})", from.display())).into());
    }
    let prepared = prepare(&args.dir)?;
    if args.pool.canonicalize().is_ok_and(|pool| pool.starts_with(&prepared.dir)) {
        made_dir_goes(&prepared);
        bail!("{}: the pool itself lies below it", prepared.dir.display());
    }
    Ok(bind(from, &prepared, args.read_only, args.no_exec).inspect_err(|_| made_dir_goes(&prepared))?)
}

/// The same mount, as a server is asked for it.
fn asked_for(args: &Mount) -> Result<NewMount> {
    if args.http.is_some() {
        return Err(WrongUsage("--http: the pool has a server, which takes it when it is started".into()).into());
    }
    let dir = std::path::absolute(&args.dir).with_context(|| args.dir.display().to_string())?;
    let flags = [
        (args.read_only, "ro"),
        (args.allow_other, "allow_other"),
        (args.no_exec, "noexec"),
        (args.dev, "dev"),
        (args.suid, "suid"),
    ];
    let mut options: Vec<String> =
        flags.into_iter().filter(|(given, _)| *given).map(|(_, name)| name.to_owned()).collect();
    options.extend(args.cache.and_then(Cache::name).map(|name| format!("cache={name}")));
    options.extend(args.threads.map(|threads| format!("threads={threads}")));
    options.extend(args.pin.map(|pin| format!("pin={pin}")));
    Ok(NewMount { at: Name::from(dir.as_os_str().as_bytes()), options: options.join(",") })
}

/// Makes durable what a server has that goes on after an unmount.
pub(crate) fn sync_server(pool: &Path) -> Result<()> {
    let shown = || format!("{}: unmounted, but what was written may not be durable yet", pool.display());
    match pool::server(pool).with_context(shown)? {
        Some(client) => client.sync().with_context(shown),
        // It has ended meanwhile, and everything is durable.
        None if pmem::holder(pool).is_none() => Ok(()),
        None => bail!("{}: its server cannot be asked", shown()),
    }
}
