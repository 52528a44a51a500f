//! The process that serves a mount: the first one mounts, later ones take over.
//!
//! ```text
//!   first    pool open -> mounted -> said so ---------+--> server threads end --> pool closed --> exit 0
//!   later    pool open, with what was open, resumed --+
//!
//!   Ctrl-C: unmount; busy: taken out of sight, ends with its last user
//! ```

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use pagestone::{Info, OpenOptions, Pool};
use pagestone_mount::{
    FuseTransport, HandleTable, Mounted, NodeId, Options, PoolFs, Survival, Transport, unmount, unmount_lazily,
};
use pagestone_server::Control;
use pagestone_server::supervisor::{Stops, Worker};
use pmem::PoolLock;

use super::{Cache, Mount, announce, options};
use crate::command::pool::{self, explain};
use crate::command::supervised::CONTROL;
use crate::command::{background, supervised};
use crate::exit::Exit;
use crate::output;

/// Names of what the supervisor keeps.
const CONNECTION: &str = "connection";
const HANDLES: &str = "handles";

/// What this process has from those before it.
struct Inherited {
    connection: OwnedFd,
    table: HandleTable,
}

pub(super) fn run(args: &Mount) -> Result<Exit> {
    let mut worker = Worker::begin().context("--worker is for the server's own use")?;
    let inherited = inherited(&mut worker)?;
    let first = inherited.is_none();
    let takeovers = inherited.as_ref().map_or(0, |inherited| inherited.table.generation());
    let (pool, path) = open(args, &mut worker, !first)?;
    let info = pool.info().map_err(|e| explain(&args.pool, e))?;
    // Before the mount hides it.
    let hidden = first && args.pool.canonicalize().is_ok_and(|pool| is_below(&pool, &args.dir));
    let (mut served, table) = serve(args, &pool, &info, inherited)?;
    let control = control(&path, &pool, &served, worker.take(CONTROL));
    control.iter().for_each(|control| control.set_takeovers(takeovers));
    if let (Some(address), Some(control)) = (args.http, control.as_deref()) {
        supervised::add_http(&mut worker, control, address)?;
    }
    let survives = match hidden {
        true => {
            say_mortal(args, "the pool lies below the directory that it is mounted on");
            false
        }
        false => keep(args, &worker, &mut served, table, control.as_ref()).context("the supervisor")?,
    };
    let open_pool = OpenPool::new(pool.clone());
    let ready = worker.ready(survives).context("the supervisor");
    let ended = ready
        .and_then(|()| if first { begin(args, &served, &info) } else { reclaim(args, &pool) })
        .and_then(|()| end_when_told(worker.stops(), served.dir().to_path_buf(), open_pool.clone(), control.clone()))
        .inspect_err(|_| end(served.dir()))
        .and_then(|()| served.wait().context("serving the mount"));
    worker.ending();
    control.iter().for_each(|control| control.end());
    finish(args, ended, &open_pool, pool)?;
    if !args.common.json && !args.detached {
        output::line(&format!("{}: unmounted, everything is durable", args.dir.display()))?;
    }
    Ok(Exit::Ok)
}

fn inherited(worker: &mut Worker) -> Result<Option<Inherited>> {
    let Some(connection) = worker.take(CONNECTION) else { return Ok(None) };
    let table = worker.take(HANDLES).context("the table of handles is missing")?;
    let table = HandleTable::take_over(table).context("the table of handles")?;
    Ok(Some(Inherited { connection, table }))
}

/// Whether the path is one below the directory. What cannot be looked at is none.
fn is_below(path: &Path, dir: &Path) -> bool {
    dir.canonicalize().is_ok_and(|dir| path.starts_with(dir))
}

/// Opens the pool; also returns a path that leads to it.
fn open(args: &Mount, worker: &mut Worker, takes_over: bool) -> Result<(Pool, PathBuf)> {
    let lock = worker.take(supervised::LOCK).map(PoolLock::from_fd);
    let media = args.common.media.map(Into::into);
    let options = OpenOptions::new().read_only(args.read_only).media(media).lock(lock.clone());
    let Some(lock) = lock.filter(|_| takes_over) else {
        return Ok((pool::open_how(&args.pool, &options)?, args.pool.clone()));
    };
    // Not by its name, which may have changed. The media keep the descriptor open.
    let path = PathBuf::from(format!("/proc/self/fd/{}", lock.as_fd().as_raw_fd()));
    let pool = Pool::open(&path, &options.leave_orphans(true)).map_err(|e| explain(&args.pool, e))?;
    Ok((pool, path))
}

/// Mounts, or takes over. Also returns the descriptor of the table of handles, if there is one.
fn serve(args: &Mount, pool: &Pool, info: &Info, inherited: Option<Inherited>) -> Result<(Mounted, Option<OwnedFd>)> {
    let page_cache = args.cache.unwrap_or(Cache::of_media(info.media.kind)).into();
    let options = &Options { page_cache, ..options(args) };
    let Some(Inherited { connection, table }) = inherited else { return serve_first(args, pool, options) };
    let done = pool.done_requests(table.client()).map_err(|e| explain(&args.pool, e))?;
    let done = done.iter().map(|done| (done.request.number, done.made.map(|ino| NodeId(ino.0)))).collect();
    let survival =
        Survival { client: table.client(), generation: table.generation(), done, connection: Some(connection) };
    let kept = table.as_fd().try_clone_to_owned()?;
    let fs = Arc::new(PoolFs::take_over(pool.clone(), table));
    Ok((FuseTransport.serve(fs, &args.dir, options, Some(survival))?, Some(kept)))
}

fn serve_first(args: &Mount, pool: &Pool, options: &Options) -> Result<(Mounted, Option<OwnedFd>)> {
    let table = match HandleTable::new() {
        Ok(table) => table,
        Err(e) => {
            say_mortal(args, &format!("no memory for the table of open files: {e}"));
            let fs = Arc::new(PoolFs::new(pool.clone()));
            return Ok((FuseTransport.serve(fs, &args.dir, options, None)?, None));
        }
    };
    let (client, generation) = (table.client(), table.generation());
    let survival = Survival { client, generation, done: HashMap::new(), connection: None };
    let kept = table.as_fd().try_clone_to_owned()?;
    let fs = Arc::new(PoolFs::with_table(pool.clone(), table));
    Ok((FuseTransport.serve(fs, &args.dir, options, Some(survival))?, Some(kept)))
}

/// Says that the mount ends with this process, should that die.
fn say_mortal(args: &Mount, why: &str) {
    tracing::warn!(mount = %args.dir.display(), "a crash of the server will end this mount ({why})");
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
fn keep(
    args: &Mount,
    worker: &Worker,
    served: &mut Mounted,
    table: Option<OwnedFd>,
    control: Option<&Arc<Control>>,
) -> Result<bool> {
    let Some(table) = table else { return Ok(false) };
    let Some(connection) = served.take_connection() else {
        say_mortal(args, "this kernel cannot send requests again; Linux 6.9 can");
        return Ok(false);
    };
    worker.keep(HANDLES, table)?;
    if let Some(control) = control {
        worker.keep(CONTROL, control.listener())?;
        supervised::restart_by(control);
    }
    // Last: it is what tells a worker that it takes over.
    worker.keep(CONNECTION, connection)?;
    Ok(true)
}

/// The first process says that the mount stands, and leaves its caller.
fn begin(args: &Mount, served: &Mounted, info: &Info) -> Result<()> {
    let null = args.detached.then(background::leave_directory).transpose().context("leaving the working directory")?;
    announce(args, served, info)?;
    Ok(null.as_ref().map_or(Ok(()), background::close_output)?)
}

/// Files that nobody has open any more, and that have no name: beside the work, which does not wait for it.
fn reclaim(args: &Mount, pool: &Pool) -> Result<()> {
    if args.read_only {
        return Ok(());
    }
    let pool = pool.clone();
    let work = move || {
        if let Err(e) = pool.reclaim_orphans() {
            tracing::error!("files without a name could not be freed: {e}");
        }
    };
    thread::Builder::new().name("reclaim".into()).spawn(work).context("starting a thread")?;
    Ok(())
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
fn end_when_told(stops: Stops, dir: PathBuf, open_pool: OpenPool, control: Option<Arc<Control>>) -> Result<()> {
    let wait = move || {
        stops.wait();
        control.iter().for_each(|control| control.cancel());
        end(&dir);
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

fn end(dir: &Path) {
    let Err(e) = unmount(dir) else { return };
    if e.raw_os_error() == Some(libc::EBUSY) {
        let text = "is in use; it is out of sight now and ends with its last user (Ctrl-C again: at once)";
        tracing::warn!(mount = %dir.display(), "{text}");
    }
    if let Err(e) = unmount_lazily(dir) {
        tracing::error!(mount = %dir.display(), "unmounting it: {e}");
    }
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
