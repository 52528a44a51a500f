//! Long operations of a server: one at a time, each in a thread of its own.
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

use parking_lot::Mutex;

use crate::Problem;
use crate::api::{Job, JobState, Moved, Scrubbed};
use crate::problem::Code;

/// What an operation has to tell when it is done.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Nothing,
    Scrubbed(Scrubbed),
    Moved(Moved),
}

/// The work of an operation, which may have something to tell. It calls back with work done and work in all, and stops after a step on `Break`.
pub(crate) type Work = Box<dyn FnOnce(&mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<Outcome, Problem> + Send>;

/// The operations of one server.
#[derive(Default)]
pub(crate) struct Jobs(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<Started>,
    count: u64,
    ended: bool,
}

struct Started {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
    outcome: Mutex<Option<Result<Outcome, Problem>>>,
}

impl Jobs {
    /// Starts an operation. Another one that runs is a conflict.
    pub(crate) fn start(&self, work: Work) -> Result<Job, Problem> {
        let mut state = self.0.lock();
        if state.ended {
            return Err(Problem::new(503, libc::EBUSY, Code::Failed, "the server is ending"));
        }
        if state.last.as_ref().is_some_and(|job| job.shared.outcome.lock().is_none()) {
            return Err(Problem::new(
                409,
                libc::EBUSY,
                Code::Failed,
                "another long operation (grow, shrink, scrub, import, export) runs already",
            ));
        }
        let shared = Arc::new(Shared::default());
        let of_the_thread = shared.clone();
        let thread = thread::Builder::new().name("job".into()).spawn(move || of_the_thread.run(work));
        let thread = thread.map_err(|e| Problem::new(500, libc::EAGAIN, Code::Failed, e.to_string()))?;
        state.count += 1;
        let job = shared.job(state.count);
        state.last = Some(Started { shared, thread: Some(thread) });
        Ok(job)
    }

    /// The state of an operation. Only the last one is known.
    pub(crate) fn get(&self, number: u64) -> Result<Job, Problem> {
        let state = self.0.lock();
        let last = state.last.as_ref().filter(|_| state.count == number);
        last.map(|started| started.shared.job(number)).ok_or_else(|| unknown(number))
    }

    /// Lets an operation stop after its step. Returns at once.
    pub(crate) fn cancel(&self, number: u64) -> Result<Job, Problem> {
        let state = self.0.lock();
        let last = state.last.as_ref().filter(|_| state.count == number).ok_or_else(|| unknown(number))?;
        last.shared.cancelled.store(true, Ordering::Relaxed);
        Ok(last.shared.job(number))
    }

    /// Lets whatever runs stop after its step. Returns at once.
    pub(crate) fn cancel_last(&self) {
        if let Some(last) = &self.0.lock().last {
            last.shared.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Cancels what runs, waits for its step, and starts nothing more.
    pub(crate) fn end(&self) {
        let thread = {
            let mut state = self.0.lock();
            state.ended = true;
            state.last.as_mut().and_then(|last| {
                last.shared.cancelled.store(true, Ordering::Relaxed);
                last.thread.take()
            })
        };
        // It catches its panics.
        thread.map(JoinHandle::join);
    }
}

fn unknown(number: u64) -> Problem {
    Problem::new(404, libc::ENOENT, Code::Failed, format!("there is no operation {number}; only the last one is known"))
}

impl Shared {
    fn run(&self, work: Work) {
        let mut progress = |done, total| {
            self.done.store(done, Ordering::Relaxed);
            self.total.store(total, Ordering::Relaxed);
            if self.cancelled.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let ended = catch_unwind(AssertUnwindSafe(|| work(&mut progress)));
        let panicked = || Err(Problem::new(500, libc::EIO, Code::Failed, "the operation panicked"));
        *self.outcome.lock() = Some(ended.unwrap_or_else(|_| panicked()));
    }

    fn job(&self, number: u64) -> Job {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        let running = Job { number, done, total, state: JobState::Running, problem: None, scrubbed: None, moved: None };
        let ended = Job { state: JobState::Done, ..running.clone() };
        match &*self.outcome.lock() {
            None => running,
            Some(Ok(Outcome::Nothing)) => ended,
            Some(Ok(Outcome::Scrubbed(found))) => Job { scrubbed: Some(found.clone()), ..ended },
            Some(Ok(Outcome::Moved(moved))) => Job { moved: Some(*moved), ..ended },
            Some(Err(problem)) => Job { state: JobState::Failed, problem: Some(problem.clone()), ..ended },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn one_operation_runs_at_a_time_and_a_cancelled_one_stops_after_its_step() {
        let jobs = Jobs::default();
        let (send, steps) = mpsc::channel();
        let work: Work = Box::new(move |progress| {
            while progress(1, 2).is_continue() {
                let _ = send.send(());
            }
            Err(Problem::from(&pagestone::Error::Interrupted))
        });
        let job = jobs.start(work).expect("starts");
        steps.recv().expect("a step");
        assert_eq!(jobs.get(job.number).map(|job| (job.state, job.done, job.total)), Ok((JobState::Running, 1, 2)));
        assert_eq!(jobs.start(Box::new(|_| Ok(Outcome::Nothing))).map_err(|p| p.status), Err(409));
        assert!(jobs.get(job.number + 1).is_err() && jobs.cancel(7).is_err());
        jobs.cancel(job.number).expect("is known");
        jobs.end();
        let ended = jobs.get(job.number).expect("is known");
        assert_eq!((ended.state, ended.problem.map(|p| p.code)), (JobState::Failed, Some(Code::Interrupted)));
        assert_eq!(jobs.start(Box::new(|_| Ok(Outcome::Nothing))).map_err(|p| p.status), Err(503));
    }

    #[test]
    fn a_panic_is_a_failed_operation() {
        let jobs = Jobs::default();
        let number = jobs.start(Box::new(|_| panic!("surprise"))).expect("starts").number;
        while jobs.get(number).is_ok_and(|job| job.state == JobState::Running) {
            thread::yield_now();
        }
        assert_eq!(jobs.get(number).map(|job| job.state), Ok(JobState::Failed));
        jobs.start(Box::new(|_| Ok(Outcome::Nothing))).expect("starts");
    }
}
