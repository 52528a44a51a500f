//! The process that serves a mount: the first one mounts, later ones take over.
//!
//! ```text
//!   first    pool open -> mounted -> said so ---------+--> server threads end --> pool closed --> exit 0
//!   later    pool open, with what was open, resumed --+
//!
//!   Ctrl-C: unmount; busy: taken out of sight, ends with its last user
//! ```

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use pagestone::{Info, OpenOptions, Pool};
use pagestone_mount::Mounted;
use pagestone_server::Control;
use pagestone_server::supervisor::{Stops, Worker};

use super::face::{Inherited, MountFace, end_on, say_mortal};
use super::{Mount, announce};
use crate::command::pool::explain;
use crate::command::supervised::CONTROL;
use crate::command::{background, supervised};
use crate::exit::Exit;
use crate::output;

pub(super) fn run(args: &Mount) -> Result<Exit> {
    let mut worker = Worker::begin().context("--worker is for the server's own use")?;
    let inherited = Inherited::take(&mut worker)?;
    let first = inherited.is_none();
    let takeovers = inherited.as_ref().map_or(0, Inherited::takeovers);
    let media = args.common.media.map(Into::into);
    let how = OpenOptions::new().read_only(args.read_only).media(media);
    let (pool, path) = supervised::open(&args.pool, how, &mut worker, !first)?;
    let info = pool.info().map_err(|e| explain(&args.pool, e))?;
    // Before the mount hides it.
    let hidden = first && args.pool.canonicalize().is_ok_and(|pool| is_below(&pool, &args.dir));
    let mut face = match inherited {
        None => MountFace::begin(args, &pool, &info)?,
        Some(inherited) => MountFace::take_over(inherited, args, &pool, &info)?,
    };
    let control = control(&path, &pool, &face.served, worker.take(CONTROL));
    control.iter().for_each(|control| control.set_takeovers(takeovers));
    if let (Some(address), Some(control)) = (args.http, control.as_deref()) {
        supervised::add_http(&mut worker, control, address)?;
    }
    let survives = match hidden {
        true => {
            say_mortal(&args.dir, "the pool lies below the directory that it is mounted on");
            false
        }
        false => keep(args, &worker, &mut face, control.as_ref()).context("the supervisor")?,
    };
    let served = face.served;
    let open_pool = OpenPool::new(pool.clone());
    let ready = worker.ready(survives).context("the supervisor");
    let ended = ready
        .and_then(|()| if first { begin(args, &served, &info) } else { reclaim(args, &pool) })
        .and_then(|()| end_when_told(worker.stops(), served.dirs_later(), open_pool.clone(), control.clone()))
        .inspect_err(|_| end_on(&served.dirs()))
        .and_then(|()| served.wait().context("serving the mount"));
    worker.ending();
    control.iter().for_each(|control| control.end());
    finish(args, ended, &open_pool, pool)?;
    if !args.common.json && !args.detached {
        output::line(&format!("{}: unmounted, everything is durable", args.dir.display()))?;
    }
    Ok(Exit::Ok)
}

/// Whether the path is one below the directory. What cannot be looked at is none.
fn is_below(path: &Path, dir: &Path) -> bool {
    dir.canonicalize().is_ok_and(|dir| path.starts_with(dir))
}

/// Lets other commands use the pool. A mount without that is worth having all the same.
fn control(path: &Path, pool: &Pool, mounted: &Mounted, listener: Option<OwnedFd>) -> Option<Arc<Control>> {
    match Control::start_on(path, pool.clone(), listener) {
        Ok(control) => {
            control.set_server(Worker::supervisor());
            control.add_mount(mounted);
            Some(Arc::new(control))
        }
        Err(e) => {
            tracing::warn!(pool = %path.display(), "other commands cannot use it while it is mounted: {e}");
            None
        }
    }
}

/// Gives the supervisor what another process needs to take over. Returns whether one can.
fn keep(args: &Mount, worker: &Worker, face: &mut MountFace, control: Option<&Arc<Control>>) -> Result<bool> {
    // The connection last: it is what tells a worker that it takes over.
    if let Some(control) = control {
        worker.keep(CONTROL, control.listener())?;
    }
    let survives = face.keep(args, &worker.keeper())?;
    if survives && let Some(control) = control {
        supervised::restart_by(control);
    }
    Ok(survives)
}

/// The first process says that the mount stands, and leaves its caller.
fn begin(args: &Mount, served: &Mounted, info: &Info) -> Result<()> {
    let null = args.detached.then(background::leave_directory).transpose().context("leaving the working directory")?;
    announce(args, served, info)?;
    Ok(null.as_ref().map_or(Ok(()), background::close_output)?)
}

/// See [`supervised::reclaim`].
fn reclaim(args: &Mount, pool: &Pool) -> Result<()> {
    if args.read_only { Ok(()) } else { supervised::reclaim(pool) }
}

/// Closes the pool, however the mount has ended.
fn finish(args: &Mount, ended: Result<()>, open_pool: &OpenPool, pool: Pool) -> Result<()> {
    open_pool.release();
    // Not `close`: a server thread that ends later than the mount may have a clone still. The process ends now anyway.
    let closed = pool.checkpoint().map_err(|e| explain(&args.pool, e));
    ended.and(closed)
}

/// The pool in the hands of a thread that lives as long as the process, which must not keep it open.
#[derive(Clone)]
struct OpenPool(Arc<Mutex<Option<Pool>>>);

impl OpenPool {
    fn new(pool: Pool) -> OpenPool {
        OpenPool(Arc::new(Mutex::new(Some(pool))))
    }

    /// What the lock guards is whole whoever has panicked.
    fn lock(&self) -> MutexGuard<'_, Option<Pool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self) {
        drop(self.lock().take());
    }
}

/// Starts the thread that waits for the order to end.
fn end_when_told(
    stops: Stops,
    dirs: impl Fn() -> Vec<PathBuf> + Send + 'static,
    open_pool: OpenPool,
    control: Option<Arc<Control>>,
) -> Result<()> {
    let wait = move || {
        stops.wait();
        control.iter().for_each(|control| control.cancel());
        end_on(&dirs());
        // A second one: the last user does not leave, and ours does not want to wait.
        stops.wait();
        // None: it is being closed, which is as quick.
        let Some(pool) = &*open_pool.lock() else { return };
        let synced = pool.sync();
        tracing::warn!("ended while the mount was in use; what had been written is in the pool");
        std::process::exit(i32::from(synced.is_err()));
    };
    thread::Builder::new().name("stop".into()).spawn(wait).context("starting a thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches};
    use pagestone::{CreateOptions, Error};

    use super::*;

    #[test]
    fn a_mount_that_ends_with_an_error_closes_its_pool_all_the_same() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("test.pool");
        let line = ["mount".as_ref(), path.as_os_str(), "m".as_ref()];
        let args =
            Mount::from_arg_matches(&Mount::augment_args(clap::Command::new("mount")).try_get_matches_from(line)?)?;
        let pool = Pool::create(&path, &CreateOptions::new().size(16 << 20))?;
        let open_pool = OpenPool::new(pool.clone());
        let of_the_thread = open_pool.clone();
        pool.root().create(b"file", &pagestone::inode::NewNode::new(pagestone::FileType::File, 0o644))?;
        let opened = || Pool::open(&path, &OpenOptions::default());
        assert!(matches!(opened(), Err(Error::InUse { .. })));
        let ended = finish(&args, Err(anyhow::anyhow!("the connection broke")), &open_pool, pool);
        assert!(ended.is_err_and(|e| e.to_string() == "the connection broke"));
        assert_eq!(opened()?.info()?.replayed, 0, "it was closed, and nobody has it open");
        drop(of_the_thread);
        Ok(())
    }
}
