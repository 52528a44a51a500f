//! Binds the server threads to processors, and lets a single one serve a single client.
//!
//! ```text
//!   several clients, or no requests       one client that sends request after request
//!
//!   thread 0 ----+                        thread 0 ---- /dev/fuse     the client runs on
//!   thread 1 ----+- /dev/fuse             thread 1                    processor 0
//!   thread 2 ----+                        thread 2 } parked
//! ```
//!
//! Each thread is bound to a processor. The kernel wakes the thread that has waited longest, so with one client every
//! request would go to the next processor. Waking a thread there costs more than the rest of a small request.
//! Therefore a thread goes *solo* while there is one client: it alone waits at the device, and the others park after
//! they have answered their request. They return when another client comes, when a request is slow, or when nothing
//! has been answered for a few milliseconds.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::sched::{processor_of, switches};

/// After this many requests in a row from one client a thread tries to go solo.
const STREAK: u32 = 16;
/// The longest streak that is asked for, after solo serving has been too short again and again.
const MAX_STREAK: u32 = 1 << 14;
/// Requests between two checks of the client's processor: at first, and at most.
const CHECK_INTERVAL: (u32, u32) = (8, 128);
/// After this many requests solo serving has paid for itself. A client that then moves to another processor is
/// followed there.
const WORTHWHILE: u64 = 64;
/// After this time without an answer all threads go back to the device.
const TICK: Duration = Duration::from_millis(4);

/// Value of `solo` while all threads wait at the device.
const ALL: usize = usize::MAX;

/// What a thread publishes to the others. Only that thread writes here.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Worker {
    client: AtomicU32,
    served: AtomicU64,
}

/// The server threads of a mount.
#[derive(Debug)]
pub(crate) struct ThreadPlacement {
    /// The processors that this process may use; thread `n` is bound to the `n`th, in turn.
    processors: Vec<usize>,
    workers: Box<[Worker]>,
    /// How many threads have been bound.
    bound: AtomicUsize,
    /// The only thread that waits at the device, or [`ALL`].
    solo: AtomicUsize,
    /// The length of a streak after which a thread tries to go solo, at present.
    streak: AtomicU32,
    /// Whether one of the parked threads is watching the clock.
    watched: Mutex<bool>,
    changed: Condvar,
}

/// State that only its thread uses.
#[derive(Debug)]
struct ThreadState {
    /// Index into `workers`.
    worker: usize,
    client: u32,
    streak: u32,
    /// What the others had served when this thread last tried to go solo.
    seen: Vec<u64>,
    /// Requests since this thread went solo.
    solo_for: u64,
    /// When the client's processor is checked next, in such requests, and the interval.
    check_at: u64,
    check_interval: u32,
    switches: u64,
}

thread_local! {
    static THREAD: RefCell<Option<ThreadState>> = const { RefCell::new(None) };
}

impl ThreadPlacement {
    /// `threads` threads over the processors that this process may use.
    pub(crate) fn new(threads: usize) -> ThreadPlacement {
        ThreadPlacement {
            processors: usable(),
            workers: (0..threads).map(|_| Worker::default()).collect(),
            bound: AtomicUsize::new(0),
            solo: AtomicUsize::new(ALL),
            streak: AtomicU32::new(STREAK),
            watched: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// Binds the calling thread to a processor on its first call.
    pub(crate) fn bind_current_thread(&self) {
        THREAD.with_borrow_mut(|thread| {
            if thread.is_none() {
                *thread = Some(self.bind_next());
            }
        });
    }

    #[cold]
    fn bind_next(&self) -> ThreadState {
        let worker = self.bound.fetch_add(1, Ordering::Relaxed);
        if let Some(processor) = self.processor(worker) {
            let mut one = CpuSet::new();
            one.set(processor);
            // A container may refuse this. The thread then runs where the kernel puts it.
            let _ = sched_setaffinity(None, &one);
        }
        let seen = vec![0; self.workers.len()];
        ThreadState { worker, client: 0, streak: 0, seen, solo_for: 0, check_at: 0, check_interval: 0, switches: 0 }
    }

    fn processor(&self, worker: usize) -> Option<usize> {
        self.processors.get(worker.checked_rem(self.processors.len())?).copied()
    }

    /// Counts an answered request of `client`. Returns when this thread is to wait for the next request.
    pub(crate) fn request_answered(&self, client: u32) {
        THREAD.with_borrow_mut(|thread| {
            let Some(thread) = thread else { return };
            let Some(worker) = self.workers.get(thread.worker) else { return };
            worker.served.store(worker.served.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            if thread.client != client {
                thread.client = client;
                thread.streak = 0;
                worker.client.store(client, Ordering::Relaxed);
            }
            thread.streak = thread.streak.wrapping_add(1);
            match self.solo.load(Ordering::Relaxed) {
                ALL if thread.streak.is_multiple_of(self.streak.load(Ordering::Relaxed)) => self.try_go_solo(thread),
                ALL => thread.solo_for = 0,
                solo if solo == thread.worker => self.continue_solo(thread),
                _ => {}
            }
            if self.is_parked(thread.worker) {
                thread.solo_for = 0;
                self.park(thread.worker);
            }
        });
    }

    fn is_parked(&self, worker: usize) -> bool {
        !matches!(self.solo.load(Ordering::Relaxed), solo if solo == ALL || solo == worker)
    }

    /// After a streak: if no thread has served another client, the thread on the client's processor goes solo.
    #[cold]
    fn try_go_solo(&self, thread: &mut ThreadState) {
        thread.solo_for = 0;
        let mut only_client = true;
        for (n, worker) in self.workers.iter().enumerate().filter(|(n, _)| *n != thread.worker) {
            let served = worker.served.load(Ordering::Relaxed);
            let idle = std::mem::replace(&mut thread.seen[n], served) == served;
            only_client &= idle || worker.client.load(Ordering::Relaxed) == thread.client;
        }
        if only_client
            && self.workers.len() > 1
            && let Some(there) = self.worker_on_processor_of(thread.client)
        {
            self.set_solo(there);
        }
    }

    /// The thread that is bound to the processor on which the client runs.
    fn worker_on_processor_of(&self, client: u32) -> Option<usize> {
        let processor = processor_of(client)?;
        let bound = self.bound.load(Ordering::Relaxed).min(self.workers.len());
        (0..bound).find(|worker| self.processor(*worker) == Some(processor))
    }

    /// Counts a request that this thread has answered solo, and ends solo serving if another client has come.
    fn continue_solo(&self, thread: &mut ThreadState) {
        thread.solo_for += 1;
        match thread.solo_for {
            1 => {
                thread.streak = thread.streak.max(2);
                (thread.check_interval, thread.switches) = (CHECK_INTERVAL.0, switches());
                thread.check_at = u64::from(thread.check_interval);
            }
            // Another client has come.
            _ if thread.streak == 1 => self.end_solo(thread.solo_for),
            now if now == thread.check_at => self.recheck_client(thread),
            _ => {}
        }
    }

    /// Checks that the client still sends one request at a time, and on which processor it runs.
    #[cold]
    fn recheck_client(&self, thread: &mut ThreadState) {
        let switches = switches();
        let slept = switches.saturating_sub(thread.switches);
        thread.switches = switches;
        if slept < u64::from(thread.check_interval) / 4 {
            // The thread hardly slept: the client has several requests in flight at once.
            return self.end_solo(0);
        }
        match self.worker_on_processor_of(thread.client) {
            Some(there) if there == thread.worker => {
                thread.check_interval = (thread.check_interval * 2).min(CHECK_INTERVAL.1);
                thread.check_at += u64::from(thread.check_interval);
            }
            Some(there) if thread.solo_for >= WORTHWHILE => self.set_solo(there),
            _ => self.end_solo(thread.solo_for),
        }
    }

    /// All threads return to the device. If solo serving was too short to pay for itself, the next streak must be
    /// longer.
    fn end_solo(&self, solo_for: u64) {
        let streak = match solo_for {
            WORTHWHILE.. => STREAK,
            _ => (self.streak.load(Ordering::Relaxed) * 2).min(MAX_STREAK),
        };
        self.streak.store(streak, Ordering::Relaxed);
        self.set_solo(ALL);
    }

    /// All threads return to the device, because a slow request is about to be served.
    pub(crate) fn wake_all(&self) {
        if self.solo.load(Ordering::Relaxed) != ALL {
            self.set_solo(ALL);
        }
    }

    #[cold]
    fn set_solo(&self, solo: usize) {
        let _watched = self.watched.lock();
        self.solo.store(solo, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Waits while another thread is solo. One of the parked threads checks at every tick that the solo thread makes
    /// progress.
    #[cold]
    fn park(&self, worker: usize) {
        let mut watched = self.watched.lock();
        let mut before = (ALL, 0);
        while self.is_parked(worker) {
            if *watched {
                self.changed.wait(&mut watched);
                continue;
            }
            *watched = true;
            let late = self.changed.wait_for(&mut watched, TICK).timed_out();
            *watched = false;
            let solo = self.solo.load(Ordering::Relaxed);
            let Some(soloist) = self.workers.get(solo) else { continue };
            let now = (solo, soloist.served.load(Ordering::Relaxed));
            if late && now == before {
                self.solo.store(ALL, Ordering::Relaxed);
                self.changed.notify_all();
            }
            before = now;
        }
        // The watching thread may be the one that leaves, so another has to take over.
        self.changed.notify_all();
    }
}

/// The processors that this process may use.
pub(crate) fn usable() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => Vec::new(),
    }
}
