//! What runs beside an open pool, in one thread that ends with it.
//!
//! ```text
//!   first     gives back what an earlier session left as orphans     (if there is any)
//!   then      syncs at an interval, for as long as the pool is open  (media durable at sync)
//! ```
//!
//! So opening takes as long as the journal is, however large a file was that lost its name before a
//! crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pmem::{Durability, OwnerProcess};

use super::Engine;
use crate::error::{Error, Result};

/// How long a commit may stay unsynced on media that are durable only at sync.
const INTERVAL: Duration = Duration::from_secs(1);

/// The thread; dropping it ends it and waits.
#[derive(Debug)]
pub(super) struct Background {
    stop: Arc<AtomicBool>,
    home: OwnerProcess,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts what `engine` needs, if it needs anything.
    pub(super) fn start(engine: &Arc<Engine>, reclaims: bool) -> Result<Option<Background>> {
        let describe = engine.alloc.region.describe();
        let syncs = describe.durability == Durability::AtSync;
        if describe.read_only || !(syncs || reclaims && engine.has_orphans()?) {
            return Ok(None);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, engine) = (stop.clone(), engine.clone());
        let work = move || {
            let go_on = || !stopped.load(Ordering::Acquire);
            // What fails here is tried again at the next open.
            if reclaims {
                engine.failures.note("reading the index of orphans", engine.reclaim_orphans(go_on));
            }
            if syncs {
                tick(&engine, go_on);
            }
        };
        let thread = std::thread::Builder::new().name("pagestone-background".into()).spawn(work);
        let thread = thread.map_err(Error::system("starting the background thread"))?;
        Ok(Some(Background { stop, home: OwnerProcess::current(), thread: Some(thread) }))
    }
}

fn tick(engine: &Engine, go_on: impl Fn() -> bool) {
    let mut next = Instant::now() + INTERVAL;
    while go_on() {
        let now = Instant::now();
        if now < next {
            std::thread::park_timeout(next - now);
            continue;
        }
        // The next sync that somebody asks for meets it again.
        engine.failures.note("sync at the interval", engine.sync_all());
        next = Instant::now() + INTERVAL;
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A child of the process has the handle, and not the thread.
        if let Some(thread) = self.thread.take().filter(|_| self.home.is_current()) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
