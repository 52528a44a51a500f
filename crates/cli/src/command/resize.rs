//! `pagestone grow` and `pagestone shrink`: here, or by the server that has the pool in use.
//!
//! ```text
//!   pool free      open --> grow or shrink, a step at a time --> close      Ctrl-C: stops after the step
//!   pool in use    its server starts --> state, state, ... --> done         Ctrl-C: cancel
//! ```

use std::borrow::Cow;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use pagestone::{Error, FRAME_SIZE, Info, PAGE_SIZE, Pool};
use pagestone_server::api::{Change, Face};
use pagestone_server::{Client, Store, StoreError};
use serde::Serialize;

use crate::command::pool::{self, Place, explain};
use crate::command::signals::Interrupt;
use crate::exit::{Exit, Interrupted};
use crate::options::Common;
use crate::output;
use crate::progress::Progress;
use crate::size::{self, show};

/// Bytes of the smallest pool.
const LEAST_POOL: u64 = 8 << 20;

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
        let resized = loop {
            match pool::find(self.pool, false, self.common.media)? {
                Place::Here(pool) => break self.here(pool)?,
                Place::Server(client) => match self.on_server(&client) {
                    Err(e) if pool::has_ended(&client, &e) => {}
                    resized => break resized?,
                },
            }
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

    /// Lets the server that has the pool in use do it.
    fn on_server(&self, client: &Client) -> Result<Resized<'_>> {
        let status = client.status().with_context(|| self.pool.display().to_string())?;
        let mounted = status.faces.into_iter().find(|face| face.kind == Face::MOUNT);
        let mounted = mounted.map(|face| face.at.to_string());
        let shown = || match &mounted {
            Some(dir) => format!("{}, mounted on {dir}", self.pool.display()),
            None => self.pool.display().to_string(),
        };
        let before = client.info().with_context(shown)?;
        self.check(before.size).with_context(shown)?;
        let mut bar = Progress::bytes("moving", 0);
        let mut moved = 0;
        self.begin();
        let done = client.resize(self.change, self.size, &mut |done, total| {
            moved = done * PAGE_SIZE;
            bar.set(moved, total * PAGE_SIZE);
            if self.interrupted().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(bar);
        done.map_err(|e| self.failure(e, &before).context(shown()))?;
        let after = client.info().with_context(shown)?;
        Ok(self.resized(before.size, after.size, moved, mounted))
    }

    /// What the library answered.
    fn refusal(&self, error: Error, before: &Info) -> anyhow::Error {
        match error {
            Error::NoSpace if self.change == Change::Shrink => {
                anyhow!("{}: {}", self.pool.display(), self.too_full(before))
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
    fn failure(&self, error: StoreError, before: &Info) -> anyhow::Error {
        let size = show(before.size);
        match (error.errno(), self.interrupted()) {
            (libc::EINTR, Some(signal)) => {
                let left = format!("interrupted; the pool keeps its size of {size}");
                Interrupted { signal, left }.into()
            }
            (libc::EINTR, None) => anyhow!("cancelled; the pool keeps its size of {size}"),
            (libc::ENOSPC, _) if self.change == Change::Shrink => anyhow!(self.too_full(before)),
            (libc::EBUSY, _) => anyhow!("{error}; try again, the pool keeps its size of {size}"),
            _ => error.into(),
        }
    }

    fn too_full(&self, info: &Info) -> String {
        let used = info.space.pages.saturating_sub(info.space.free) * PAGE_SIZE;
        let (used, wanted, enough) = (show(used), show(self.size), sufficient_size(info));
        format!(
            "what it holds ({used} in use) does not fit into {wanted}; it fits into {} ({enough} bytes)",
            show(enough)
        )
    }

    fn resized(&self, old_size: u64, size: u64, moved: u64, mounted: Option<String>) -> Resized<'_> {
        Resized { pool: self.pool.to_string_lossy(), old_size, size, moved, mounted }
    }
}

/// A size that the pool can be shrunk to, as far as the counts of pages say. It is the least one, but for the frames of
/// descriptors that would go too.
fn sufficient_size(info: &Info) -> u64 {
    let frames = info.space.available * PAGE_SIZE / FRAME_SIZE;
    info.size.saturating_sub(frames * FRAME_SIZE).max(LEAST_POOL)
}
