//! Errors of work that no caller waits for: giving back space after a name or a handle has gone,
//! merging bases, the sync at an interval. The operation that left the work has happened, so it
//! does not answer with them; [`Info`](crate::Info) tells.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// How many there were, and the last one.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    count: AtomicU64,
    last: Mutex<Option<String>>,
}

impl Failures {
    /// Takes note of an error; `what` was tried.
    pub(crate) fn note(&self, what: &str, result: Result<()>) {
        if let Err(e) = result {
            self.add(what, &e);
        }
    }

    fn add(&self, what: &str, error: &Error) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *self.last.lock() = Some(format!("{what}: {error}"));
    }

    /// Errors since the pool was opened; a step that is tried again and fails again counts again.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// What the last one said.
    pub(crate) fn last(&self) -> Option<String> {
        self.last.lock().clone()
    }
}
