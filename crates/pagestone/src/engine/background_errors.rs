//! Errors of work that no caller waits for: freeing space after a name or a handle was removed, merging bases, the
//! sync at an interval. The operation that caused the work has already succeeded and cannot return them;
//! [`Info`](crate::Info) reports them.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// The number of errors and the last one.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    count: AtomicU64,
    last: Mutex<Option<String>>,
}

impl Failures {
    /// Records an error of the operation `what`.
    pub(crate) fn note(&self, what: &str, result: Result<()>) {
        if let Err(e) = result {
            self.add(what, &e);
        }
    }

    fn add(&self, what: &str, error: &Error) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *self.last.lock() = Some(format!("{what}: {error}"));
    }

    /// Errors since the pool was opened. A retry that fails again counts again.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The last error.
    pub(crate) fn last(&self) -> Option<String> {
        self.last.lock().clone()
    }
}
