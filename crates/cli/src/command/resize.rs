//! `pagestone grow` and `pagestone shrink`: here, or by the server of the mount that has the pool in use.
//!
//! ```text
//!   pool free      open --> grow or shrink, a step at a time --> close      Ctrl-C: stops after the step
//!   pool mounted   start --> status, status, ... --> done                   Ctrl-C: cancel
//! ```

use std::borrow::Cow;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use pagestone::{Error, Info, PAGE_SIZE, Pool};
use pagestone_mount::resize::{Change, Control, Space, State, Status};
use serde::Serialize;

use crate::command::holder::Holder;
use crate::command::pool::{self, explain};
use crate::command::signals::Interrupt;
use crate::exit::{Exit, Interrupted};
use crate::options::Common;
use crate::output;
use crate::pool_error::PoolError;
use crate::progress::Progress;
use crate::size::{self, show};

/// Time between two looks at what a server does.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LATER_LOOK: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(crate) struct Grow {
    /// The pool
    pool: PathBuf,
    /// How large the pool is to be, for example 2G; rounded down to 2 MiB
    ///
    /// A file is made longer where it is shorter. A device must be large enough.
    #[arg(value_parser = size::parse)]
    size: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Shrink {
    /// The pool
    pool: PathBuf,
    /// How large the pool is to be, for example 512M; rounded up to 2 MiB
    ///
    /// Ctrl-C stops the command after the step that is under way; the pool keeps its size then. A file is made shorter
    /// when the pool is closed.
    #[arg(value_parser = size::parse)]
    size: u64,
    #[command(flatten)]
    common: Common,
}

/// What is asked for.
struct Task<'a> {
    pool: &'a Path,
    size: u64,
    change: Change,
    common: &'a Common,
    /// A grow is one record: there is nothing to stop.
    interrupt: Option<Interrupt>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Resized<'a> {
    pool: Cow<'a, str>,
    /// Bytes that the pool had, and has.
    old_size: u64,
    size: u64,
    /// Bytes that were moved.
    moved: u64,
    /// The directory that the pool is mounted on, if its server did it.
    mounted: Option<String>,
}

pub(crate) fn grow(args: &Grow) -> Result<Exit> {
    let (pool, common) = (args.pool.as_path(), &args.common);
    Task { pool, size: args.size, change: Change::Grow, common, interrupt: None }.run()
}

pub(crate) fn shrink(args: &Shrink) -> Result<Exit> {
    let (pool, common) = (args.pool.as_path(), &args.common);
    let interrupt = Some(Interrupt::listen().context("signals")?);
    Task { pool, size: args.size, change: Change::Shrink, common, interrupt }.run()
}

impl Task<'_> {
    fn run(&self) -> Result<Exit> {
        let resized = match pool::open(self.pool, false, self.common.media) {
            Ok(pool) => self.here(pool)?,
            Err(e) => match mounted_on(self.pool, &e) {
                Some(dir) => self.on_mount(&dir)?,
                None => return Err(e),
            },
        };
        if self.common.json {
            output::json(&resized)?;
            return Ok(Exit::Ok);
        }
        let done = if self.change == Change::Grow { "grown" } else { "shrunk" };
        let (old, new) = (show(resized.old_size), show(resized.size));
        let moved = if resized.moved > 0 { format!("; {} moved", show(resized.moved)) } else { String::new() };
        output::line(&format!("{}: {done} from {old} to {new}{moved}", self.pool.display()))?;
        Ok(Exit::Ok)
    }

    /// The other command is for that.
    fn check(&self, old_size: u64) -> Result<()> {
        let (old, new) = (show(old_size), show(self.size));
        match self.change {
            Change::Grow if self.size < old_size => {
                bail!("the pool has {old}, more than {new} (make it smaller with: pagestone shrink)")
            }
            Change::Shrink if self.size > old_size => {
                bail!("the pool has {old}, less than {new} (give it more space with: pagestone grow)")
            }
            _ => Ok(()),
        }
    }

    fn here(&self, pool: Pool) -> Result<Resized<'_>> {
        let explained = |e| explain(self.pool, e);
        let before = pool.info().map_err(explained)?;
        self.check(before.size).with_context(|| self.pool.display().to_string())?;
        let (pool, done) = match self.change {
            Change::Grow => self.grow_here(pool)?,
            Change::Shrink => {
                let done = self.shrink_here(&pool);
                (pool, done)
            }
        };
        let after = pool.info();
        let closed = pool.close();
        let moved = done.map_err(|e| self.refusal(e, &before))?;
        closed.map_err(explained)?;
        Ok(self.resized(before.size, after.map_err(explained)?.size, moved, None))
    }

    /// The pool may be another one afterwards: it is opened again, with room for its new size, if it has too little.
    fn grow_here(&self, pool: Pool) -> Result<(Pool, Result<u64, Error>)> {
        match pool.grow(self.size) {
            Err(Error::Media(e)) if e.kind() == ErrorKind::Unsupported => {
                pool.close().map_err(|e| explain(self.pool, e))?;
                let pool = pool::open_with_room(self.pool, self.common.media, self.size)?;
                let grown = pool.grow(self.size);
                Ok((pool, grown.map(|()| 0)))
            }
            grown => Ok((pool, grown.map(|()| 0))),
        }
    }

    /// Answers the bytes moved.
    fn shrink_here(&self, pool: &Pool) -> Result<u64, Error> {
        let mut bar = Progress::bytes("moving", 0);
        let mut moved = 0;
        self.begin();
        pool.shrink(self.size, &mut |done, total| {
            moved = done * PAGE_SIZE;
            bar.set(moved, total * PAGE_SIZE);
            if self.interrupted().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(moved)
    }

    fn begin(&self) {
        self.interrupt.as_ref().inspect(|interrupt| interrupt.begin());
    }

    fn interrupted(&self) -> Option<i32> {
        self.interrupt.as_ref().and_then(Interrupt::arrived)
    }

    /// Lets the server of the mount on `dir` do it.
    fn on_mount(&self, dir: &Path) -> Result<Resized<'_>> {
        let shown = || format!("{}, mounted on {}", self.pool.display(), dir.display());
        let control = Control::new(dir);
        let before = control.status().map_err(|e| refused_by_server(e).context(shown()))?;
        self.check(before.space.size).with_context(shown)?;
        self.begin();
        let number = control.start(self.change, self.size).map_err(|e| refused_by_server(e).context(shown()))?;
        let status = self.follow(&control, number).with_context(shown)?;
        if let State::Failed(errno) = status.state {
            return Err(self.failure(errno, &status).context(shown()));
        }
        let (size, moved) = (status.space.size, status.moved * PAGE_SIZE);
        Ok(self.resized(before.space.size, size, moved, Some(dir.to_string_lossy().into_owned())))
    }

    /// Looks at the operation until it has ended.
    fn follow(&self, control: &Control<'_>, number: u32) -> Result<Status> {
        let mut bar = Progress::bytes("moving", 0);
        let (mut pause, mut cancelled) = (FIRST_LOOK, false);
        loop {
            let status = control.status().context("the server has ended; pagestone info shows the size of the pool")?;
            if status.number != number {
                bail!("another process had the pool resized meanwhile; pagestone info shows its size");
            }
            if status.state != State::Running {
                return Ok(status);
            }
            bar.set(status.moved * PAGE_SIZE, status.total * PAGE_SIZE);
            if self.interrupted().is_some() && !cancelled {
                control.cancel().context("cancelling")?;
                cancelled = true;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LATER_LOOK);
        }
    }

    /// What the library answered.
    fn refusal(&self, error: Error, before: &Info) -> anyhow::Error {
        match error {
            Error::NoSpace if self.change == Change::Shrink => {
                anyhow!("{}: {}", self.pool.display(), self.too_full(Space::from(before)))
            }
            Error::Interrupted => match self.interrupted() {
                Some(signal) => Interrupted {
                    signal,
                    left: format!(
                        "{}: interrupted; the pool keeps its size of {}",
                        self.pool.display(),
                        show(before.size)
                    ),
                }
                .into(),
                None => explain(self.pool, error),
            },
            error => explain(self.pool, error),
        }
    }

    /// What the server answered.
    fn failure(&self, errno: i32, status: &Status) -> anyhow::Error {
        let size = show(status.space.size);
        match (errno, self.interrupted()) {
            (libc::EINTR, Some(signal)) => {
                let left = format!("interrupted; the pool keeps its size of {size}");
                Interrupted { signal, left }.into()
            }
            (libc::EINTR, None) => anyhow!("cancelled; the pool keeps its size of {size}"),
            (libc::ENOSPC, _) if self.change == Change::Shrink => anyhow!(self.too_full(status.space)),
            (libc::EBUSY, _) => anyhow!("{}; try again, the pool keeps its size of {size}", status.text),
            _ => anyhow!(status.text.clone()),
        }
    }

    fn too_full(&self, space: Space) -> String {
        let (used, wanted) = (show(space.used), show(self.size));
        let enough = space.sufficient_size();
        format!(
            "what it holds ({used} in use) does not fit into {wanted}; it fits into {} ({enough} bytes)",
            show(enough)
        )
    }

    fn resized(&self, old_size: u64, size: u64, moved: u64, mounted: Option<String>) -> Resized<'_> {
        Resized { pool: self.pool.to_string_lossy(), old_size, size, moved, mounted }
    }
}

/// Where this process sees the mount of a pool that could not be opened because that mount has it in use.
fn mounted_on(pool: &Path, error: &anyhow::Error) -> Option<PathBuf> {
    let pid = error.downcast_ref().and_then(PoolError::holder)?;
    let Holder::Mounted(dir) = Holder::of(pool, pid) else { return None };
    // The server may be in another mount namespace.
    pagestone_mount::mount_at(&dir).filter(|mount| mount.is_of(pool)).map(|mount| mount.dir)
}

/// An ioctl failed.
fn refused_by_server(error: std::io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => anyhow!("only root and the user who runs the server may change its size"),
        Some(libc::EBUSY) => anyhow!("it is being resized already"),
        Some(libc::EROFS) => anyhow!("it is mounted read-only"),
        Some(libc::ENOTTY) => anyhow!("its server is of a version that cannot change the size; unmount it first"),
        _ => error.into(),
    }
}
