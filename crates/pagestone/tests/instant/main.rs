//! A snapshot is the state of the pool at one moment, whatever others do meanwhile.
//!
//! What can go wrong: a change is in the snapshot without one that came before it (a name without its contents, a file
//! without one that was written earlier, a store through a mapping); a file that was moved during the copy is there
//! twice or not at all; attributes are those of another moment; what was set aside stays; an operation waits for ever,
//! or the pause does not end after an error; the counts are those of the first round.
//!
//! `PAGESTONE_INSTANT_SEED=7` repeats a run, `PAGESTONE_INSTANT_SECONDS=60` takes longer,
//! `PAGESTONE_INSTANT_FILES=100000` shows how long others wait in a large pool.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod order;
mod states;
mod tree;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pagestone::check::{self, CheckOptions};
use pagestone::{CreateOptions, Pool};

/// Pools on the kinds of media that differ in how a mapping is frozen.
pub(crate) fn each_media(size: u64, test: impl Fn(&str, &Pool)) {
    let memory = Arc::new(pmem::Memory::new(size).unwrap());
    test("memory", &Pool::create_on(memory, &CreateOptions::new()).unwrap());
    for (name, dir) in [("tmpfs", "/dev/shm"), ("an ordinary file", "/var/tmp")] {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let path = dir.path().join("pool");
        let pool = Pool::create(&path, &CreateOptions::new().size(size)).unwrap();
        test(name, &pool);
        pool.close().unwrap();
        let report = check::check(&path, &CheckOptions::new().data(true), &mut |_, _| {}).unwrap();
        assert!(report.is_clean(), "{name}: {report:?}");
    }
}

/// How long each part takes.
pub(crate) fn time() -> Duration {
    let seconds = std::env::var("PAGESTONE_INSTANT_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(2.0))
}

/// How many files are changed all the time.
pub(crate) fn files() -> u64 {
    std::env::var("PAGESTONE_INSTANT_FILES").ok().and_then(|s| s.parse().ok()).unwrap_or(2000)
}

/// A seed that is printed if the test fails, and taken from the environment to repeat it.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("PAGESTONE_INSTANT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("PAGESTONE_INSTANT_SEED={seed}");
    seed
}

/// Ends the threads of a test, also when it fails.
pub(crate) struct EndsThreads<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndsThreads<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
