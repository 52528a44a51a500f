//! The side of the server: one operation at a time, in a thread.
//!
//! ```text
//!   none --> running --> done            end of the server: cancel, then wait for the thread
//!              |  cancel
//!              +-------> failed
//! ```

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use pagestone::{Error, Pool};
use parking_lot::Mutex;

use super::protocol::{CANCEL, Change, START, STATUS, Space, State, Status, encode_number};
use crate::transport::{Caller, Errno, Reply};

/// Answers the ioctls of one mount. Clones are of the same mount.
#[derive(Clone, Debug, Default)]
pub struct Resizes(Arc<Mutex<Jobs>>);

#[derive(Debug, Default)]
struct Jobs {
    last: Option<Job>,
    /// Started so far.
    count: u32,
    /// The mount has ended.
    ended: bool,
}

/// An operation that was started.
#[derive(Debug)]
struct Job {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread of an operation and those who look at it have in common.
#[derive(Debug, Default)]
struct Shared {
    moved: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
    /// The state, and an error in words.
    outcome: Mutex<(State, String)>,
}

impl Resizes {
    /// Answers an ioctl on the root directory; the bytes to be copied to the caller.
    pub(crate) fn control(&self, pool: &Pool, command: u32, input: &[u8], caller: Caller) -> Reply<Vec<u8>> {
        if ![START, STATUS, CANCEL].contains(&command) {
            return Err(Errno(libc::ENOTTY));
        }
        if caller.uid != 0 && caller.uid != rustix::process::geteuid().as_raw() {
            return Err(Errno(libc::EPERM));
        }
        match command {
            START => {
                let (change, size) = Change::decode(input).ok_or(Errno(libc::EINVAL))?;
                Ok(encode_number(self.start(pool, change, size)?).to_vec())
            }
            STATUS => Ok(self.status(pool)?.encode().to_vec()),
            _ => {
                self.cancel();
                Ok(Vec::new())
            }
        }
    }

    fn start(&self, pool: &Pool, change: Change, size: u64) -> Reply<u32> {
        if pool.info()?.media.read_only {
            return Err(Errno(libc::EROFS));
        }
        let mut jobs = self.0.lock();
        if jobs.ended || jobs.last.as_ref().is_some_and(|job| job.shared.outcome.lock().0 == State::Running) {
            return Err(Errno(libc::EBUSY));
        }
        let shared = Arc::new(Shared { outcome: Mutex::new((State::Running, String::new())), ..Shared::default() });
        let (pool, of_the_thread) = (pool.clone(), shared.clone());
        let work = move || of_the_thread.run(pool, change, size);
        let thread = thread::Builder::new().name("resize".into()).spawn(work).map_err(|_| Errno(libc::EAGAIN))?;
        jobs.last = Some(Job { shared, thread: Some(thread) });
        jobs.count = jobs.count.wrapping_add(1);
        Ok(jobs.count)
    }

    fn status(&self, pool: &Pool) -> Reply<Status> {
        let jobs = self.0.lock();
        let mut status = Status { number: jobs.count, ..Status::default() };
        if let Some(Job { shared, .. }) = &jobs.last {
            (status.state, status.text) = shared.outcome.lock().clone();
            status.moved = shared.moved.load(Ordering::Relaxed);
            status.total = shared.total.load(Ordering::Relaxed);
        }
        // After the state: what is done has its size.
        status.space = Space::from(&pool.info()?);
        Ok(status)
    }

    /// A shrink that runs ends after its step. Returns at once.
    pub fn cancel(&self) {
        if let Some(job) = &self.0.lock().last {
            job.shared.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// The mount has ended: cancels what runs, waits for its step, and starts nothing more. The pool is free of these
    /// operations on return.
    pub fn end(&self) {
        self.cancel();
        let thread = {
            let mut jobs = self.0.lock();
            jobs.ended = true;
            jobs.last.as_mut().and_then(|job| job.thread.take())
        };
        if let Some(thread) = thread {
            // It catches its panics.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, pool: Pool, change: Change, size: u64) {
        let work = AssertUnwindSafe(|| self.work(&pool, change, size));
        let done = catch_unwind(work);
        // Whoever sees the end may close the pool.
        drop(pool);
        *self.outcome.lock() = match done {
            Ok(Ok(())) => (State::Done, String::new()),
            Ok(Err(e)) => (State::Failed(e.errno()), e.to_string()),
            Err(_) => (State::Failed(libc::EIO), "the operation panicked".into()),
        };
    }

    fn work(&self, pool: &Pool, change: Change, size: u64) -> Result<(), Error> {
        match change {
            Change::Grow => pool.grow(size),
            Change::Shrink => pool.shrink(size, &mut |moved, total| {
                self.moved.store(moved, Ordering::Relaxed);
                self.total.store(total, Ordering::Relaxed);
                if self.cancelled.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }),
        }
    }
}
