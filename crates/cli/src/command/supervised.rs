//! The process that users know as the server: it keeps what must not be lost, and starts a worker that does the work.
//!
//! ```text
//!   pagestone mount POOL DIR            takes the pool's lock, tells systemd, passes signals on
//!     `-- pagestone mount --worker ...  has the pool open, and serves it
//! ```

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pagestone::{Error, OpenOptions, Pool};
use pagestone_server::supervisor::{Ended, Event, RESTART, Start, Worker, supervise};
use pagestone_server::{Control, listen_http};
use pmem::PoolLock;

use crate::command::holder::patiently;
use crate::command::pool::{self, explain};
use crate::command::{background, service};
use crate::exit::Exit;
use crate::named;

/// The name under which a worker gets the lock of its pool.
const LOCK: &str = "lock";

/// A server to be run.
pub(super) struct Plan<'a> {
    pub(super) pool: &'a Path,
    pub(super) read_only: bool,
    /// It leaves its caller once it is ready.
    pub(super) detached: bool,
    /// What it serves, for the service manager.
    pub(super) what: String,
    /// The command line of the first worker.
    pub(super) first: Vec<OsString>,
    /// That of a worker which takes over: with paths that hold in any directory.
    pub(super) later: Vec<OsString>,
}

impl Plan<'_> {
    /// Serves until the end. Returns whether it was ever ready, too.
    pub(super) fn run(&self) -> Result<(Exit, bool)> {
        let lock = self.lock()?;
        let program = std::env::current_exe().context("finding this program")?;
        let command = |start| {
            let (program, line) = match start {
                Start::First => (program.as_path(), &self.first),
                Start::Later => (program.as_path(), &self.later),
                Start::LaterOfOurs => (Path::new("/proc/self/exe"), &self.later),
            };
            let mut command = Command::new(program);
            // By this name others know it (`holder`).
            command.arg0("pagestone").args(line);
            command
        };
        let kept = vec![(LOCK.to_owned(), lock)];
        let Ended { status, was_ready } = supervise(kept, command, |event| self.tell(event)).context("the server")?;
        if let Some(signal) = status.signal() {
            tracing::error!(pool = %self.pool.display(), "the server was ended by signal {signal}");
        }
        let exit = match status.code() {
            Some(code) => Exit::of_code(code),
            None => Exit::Failed,
        };
        Ok((exit, was_ready))
    }

    fn lock(&self) -> Result<std::os::fd::OwnedFd> {
        let path = &*named::pool(self.pool);
        let take = || PoolLock::take(path, self.read_only).map_err(Error::from);
        let lock = patiently(path, take).map_err(|e| explain(path, e))?;
        std::os::fd::AsFd::as_fd(&lock).try_clone_to_owned().context("the lock")
    }

    fn tell(&self, event: Event) {
        let pool = self.pool.display();
        match event {
            Event::Ready => {
                tracing::info!(%pool, "ready");
                service::ready(&self.what);
                // A directory that this process stands in, or a pipe that it has, would be missed by others. It serves
                // all the same if that fails.
                if self.detached
                    && let Ok(null) = background::leave_directory()
                {
                    let _ = background::close_output(&null);
                }
            }
            Event::Ending => {
                tracing::info!(%pool, "ending");
                service::stopping();
            }
            Event::Restarting(status) if status.code() == Some(RESTART) => {
                tracing::info!(%pool, "a new process takes over, as was asked for");
            }
            Event::Restarting(status) => {
                let died = died(status);
                tracing::error!(%pool, "the process that served it {died}; another one takes over");
            }
            Event::NotStarted(e) => tracing::error!(%pool, "another process cannot be started: {e}"),
            Event::Restarted(after) => {
                tracing::warn!(%pool, "served again after {} ms", after.as_millis());
            }
            Event::GivenUp => {
                let text = "one process after another has ended at once; given up (the messages above say more)";
                tracing::error!(%pool, "{text}");
            }
        }
    }
}

fn died(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, code) => format!("ended with code {}", code.unwrap_or(-1)),
    }
}

/// Opens the pool of a worker. Also returns a path that leads to it. One that takes over leaves files without a name, which
/// programs may have open: [`reclaim`].
pub(super) fn open(
    pool: &Path,
    options: OpenOptions,
    worker: &mut Worker,
    takes_over: bool,
) -> Result<(Pool, PathBuf)> {
    let lock = worker.take(LOCK).map(PoolLock::from_fd);
    let options = options.lock(lock.clone());
    let Some(lock) = lock.filter(|_| takes_over) else {
        return Ok((pool::open_how(pool, &options)?, pool.to_path_buf()));
    };
    // Not by its name, which may have changed. The media keep the descriptor open.
    let path = PathBuf::from(format!("/proc/self/fd/{}", lock.as_fd().as_raw_fd()));
    let opened = Pool::open(&path, &options.leave_orphans(true)).map_err(|e| explain(pool, e))?;
    Ok((opened, path))
}

/// Frees files that nobody has open any more, and that have no name: beside the work, which does not wait for it.
pub(super) fn reclaim(pool: &Pool) -> Result<()> {
    let pool = pool.clone();
    let work = move || {
        if let Err(e) = pool.reclaim_orphans() {
            tracing::error!("files without a name could not be freed: {e}");
        }
    };
    std::thread::Builder::new().name("reclaim".into()).spawn(work).context("starting a thread")?;
    Ok(())
}

/// The control socket.
pub(super) const CONTROL: &str = "control";

/// A worker that lives for less counts as one that cannot, so a restart is not done earlier.
const LEAST_LIFE: Duration = Duration::from_millis(150);

/// Lets this process end by `pagestone restart`, once what was asked for on the control socket is done.
pub(super) fn restart_by(control: &Arc<Control>) {
    let (weak, begun) = (Arc::downgrade(control), Instant::now());
    control.on_restart(move || {
        let weak = weak.clone();
        // In a thread of its own: the caller is one that has to end first.
        let end = move || {
            std::thread::sleep(LEAST_LIFE.saturating_sub(begun.elapsed()));
            weak.upgrade().iter().for_each(|control| control.hand_over());
            std::process::exit(RESTART);
        };
        // Where there is no thread, there is no restart; the client says so.
        let _ = std::thread::Builder::new().name("restart".into()).spawn(end);
    });
}

/// The name of the port that shows the state.
const HTTP: &str = "http";

/// Shows the state of a server on a port, which is kept for the workers that follow.
pub(super) fn add_http(worker: &mut Worker, control: &Control, address: SocketAddr) -> Result<()> {
    let shown = || format!("--http {address}");
    let listener = match worker.take(HTTP) {
        Some(listener) => listener.into(),
        None => listen_http(address).with_context(shown)?,
    };
    worker.keep(HTTP, &listener).context("the supervisor")?;
    control.add_http(listener).with_context(shown)
}

/// A path that holds in any directory.
pub(super) fn lasting(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}
