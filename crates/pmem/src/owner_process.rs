//! Whether this process is the one that opened a pool, or a child of it.
//!
//! ```text
//!   open a pool --- fork ---> child: locks may be held by threads that it does not have
//!        |                      every operation is refused, nothing is written at the end
//!        `-- goes on
//! ```

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Forks between the first process that asked and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::SeqCst);
}

/// The process that something belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnerProcess(u32);

impl OwnerProcess {
    /// This process.
    pub fn current() -> OwnerProcess {
        static WATCHED: OnceLock<()> = OnceLock::new();
        WATCHED.get_or_init(|| {
            // SAFETY: the handler only adds to a number.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
        OwnerProcess(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is still that process, and not a child of it.
    pub fn is_current(self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.0
    }
}
