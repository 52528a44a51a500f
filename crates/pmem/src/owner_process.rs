//! The identity of the process that opened a pool, to distinguish it from its children.
//!
//! ```text
//!   open a pool --- fork ---> child: locks may be held by threads that do not exist there
//!        |                      every operation is rejected, nothing is written at exit
//!        `-- continues
//! ```

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Number of forks between the first process that called [`OwnerProcess::current`] and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::SeqCst);
}

/// The process that owns something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnerProcess(u32);

impl OwnerProcess {
    /// This process.
    pub fn current() -> OwnerProcess {
        static WATCHED: OnceLock<()> = OnceLock::new();
        WATCHED.get_or_init(|| {
            // SAFETY: the handler only increments a number.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
        OwnerProcess(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this process is that one, and not a child of it.
    pub fn is_current(self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.0
    }
}
