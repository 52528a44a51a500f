//! The pause: for a moment one thread works alone, so that it copies one state of the pool.
//!
//! ```text
//!   any operation   lock its inodes --> does another thread pause? --no--> go on
//!                         ^                    | yes
//!                         `--- wait <--- unlock'
//!
//!   Slowdown::pause lock Renames, Pause --> say so --> take and release each stripe: nobody is inside any more
//! ```
//!
//! In the normal case an operation reads one word that hardly ever changes. The thread that pauses takes inode locks as
//! always. An operation that waits for the end of a pause holds no inode and no lock of a later rank: who holds one of these
//! waits for no inode. Of the earlier ones, the pausing thread needs `Renames`, and has it.
//!
//! Others wait as long as the pause, and as the longest operation that began just before it: a write of a gigabyte holds its
//! inode to its end.
//!
//! Stores through mappings do not lock an inode. Whoever copies a file freezes its mappings; a store faults then, and the
//! fault waits for the inode.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pmem::OwnerProcess;

use super::Engine;
use crate::lock::{MutexGuard, RwLock, WriteGuard, rank, this_thread};

/// Where operations learn of a pause.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// [`this_thread`] of the thread that works alone or slows others down; 0: none.
    by: AtomicUsize,
    /// Whether it works alone.
    closed: AtomicBool,
    /// How long a change waits before it begins, in microseconds.
    delay: AtomicU32,
    /// Held by the thread that works alone.
    pause: RwLock<rank::Pause, ()>,
}

impl Gate {
    /// Whether the caller, who has just locked an inode, must unlock it, wait and begin again.
    #[inline]
    pub(super) fn is_closed(&self, owner: &OwnerProcess) -> bool {
        self.by.load(Ordering::Relaxed) != 0 && self.is_closed_to_this_thread(owner)
    }

    #[cold]
    fn is_closed_to_this_thread(&self, owner: &OwnerProcess) -> bool {
        // A child has a copy of this from the moment of the fork. The thread that pauses is not in it.
        self.closed.load(Ordering::Relaxed) && self.by.load(Ordering::Relaxed) != this_thread() && owner.is_current()
    }

    /// Debug builds: the caller could wait for the end of a pause here, whether there is one or not.
    #[inline]
    #[track_caller]
    pub(super) fn check_order(&self) {
        if cfg!(debug_assertions) && self.by.load(Ordering::Relaxed) != this_thread() {
            rank::check_wait::<rank::Pause>();
        }
    }

    /// Waits for the end of the pause.
    #[cold]
    #[track_caller]
    pub(super) fn wait(&self) {
        drop(self.pause.read());
    }

    /// Waits as long as changes are delayed.
    #[inline]
    pub(super) fn delay_change(&self) {
        if self.by.load(Ordering::Relaxed) != 0 {
            self.delay_this_thread();
        }
    }

    #[cold]
    fn delay_this_thread(&self) {
        let delay = self.delay.load(Ordering::Relaxed);
        if delay > 0 && self.by.load(Ordering::Relaxed) != this_thread() {
            std::thread::sleep(Duration::from_micros(delay.into()));
        }
    }
}

/// Changes by other threads are slowed down. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Slowdown<'e>(&'e Engine);

/// No other thread is inside an operation, and none begins one. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Pause<'e> {
    engine: &'e Engine,
    begun: Instant,
    _alone: WriteGuard<'e, ()>,
    /// Proves that the ancestors of no directory change.
    renames: MutexGuard<'e, ()>,
}

impl Engine {
    /// Lets other threads go on, with a delay before each change that [`Slowdown::set`] sets. One thread at a time.
    pub(crate) fn slow_down(&self) -> Slowdown<'_> {
        self.locks.gate().by.store(this_thread(), Ordering::Relaxed);
        Slowdown(self)
    }
}

impl<'e> Slowdown<'e> {
    /// Lets every change of another thread wait so long before it begins.
    pub(crate) fn set(&self, delay: Duration) {
        let micros = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
        self.0.locks.gate().delay.store(micros, Ordering::Relaxed);
    }

    /// Waits until no other thread is inside an operation on inodes, and lets none begin one before the pause is dropped.
    /// The caller holds no inode.
    pub(crate) fn pause(&self) -> Pause<'e> {
        let engine = self.0;
        // Once without stopping anybody: what takes long is over then, and others wait for what has begun since.
        engine.locks.wait_for_all();
        let renames = engine.renames.lock();
        let gate = engine.locks.gate();
        let alone = gate.pause.write();
        let begun = Instant::now();
        // An operation that locks a stripe after the round below has released it sees this.
        gate.closed.store(true, Ordering::Relaxed);
        engine.locks.wait_for_all();
        Pause { engine, begun, _alone: alone, renames }
    }
}

impl Pause<'_> {
    /// How long it has lasted.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The lock of renames, which this thread must not lock again.
    pub(crate) fn renames(&self) -> &MutexGuard<'_, ()> {
        &self.renames
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.engine.locks.gate().closed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Slowdown<'_> {
    fn drop(&mut self) {
        let gate = self.0.locks.gate();
        gate.delay.store(0, Ordering::Relaxed);
        gate.by.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests end at the first surprise
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use pmem::Memory;

    use crate::{CreateOptions, Pool};

    /// Fails if an operation of another thread goes on during a pause, whether it changes something or only looks, or if
    /// it does not go on afterwards; or if the pausing thread stops itself.
    #[test]
    fn others_wait_for_the_end_of_a_pause_and_the_pausing_thread_does_not() {
        let pool = Pool::create_on(Arc::new(Memory::new(16 << 20).unwrap()), &CreateOptions::default()).unwrap();
        pool.write("/file", "old").unwrap();
        pool.create_dir_all("/a/b").unwrap();
        let file = pool.open_file("/file").unwrap();
        let done: [AtomicBool; 4] = Default::default();
        let run = |i: usize, operation: &(dyn Fn() + Sync)| {
            operation();
            done[i].store(true, Ordering::SeqCst);
        };
        std::thread::scope(|threads| {
            let slow = pool.engine().slow_down();
            let pause = slow.pause();
            threads.spawn(|| run(0, &|| pool.write("/file", "new").unwrap()));
            threads.spawn(|| run(1, &|| drop(pool.read("/file").unwrap())));
            threads.spawn(|| run(2, &|| pool.rename("/a/b", "/c").unwrap()));
            threads.spawn(|| run(3, &|| assert_eq!(file.metadata().unwrap().len(), 3)));
            std::thread::sleep(Duration::from_millis(50));
            assert!(done.iter().all(|done| !done.load(Ordering::SeqCst)));
            assert_eq!(pool.read("/file").unwrap(), b"old");
            pool.write("/own", "here").unwrap();
            assert!(pause.elapsed() >= Duration::from_millis(50));
            drop(pause);
        });
        assert!(done.iter().all(|done| done.load(Ordering::SeqCst)));
        assert_eq!(pool.read("/file").unwrap(), b"new");
        pool.rename("/c", "/a/b").unwrap();
    }
}
