//! Fault injection: media whose nth call of a kind returns an error.
//!
//! ```text
//!   engine -> Faulty -> any other Media
//!               |  persist #0 ok   persist #1 ok   persist #2 EIO  ...
//!               `- counts calls, so that a test can first count and then fail each in turn
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pmem::{Description, Media, Part, Views};

/// A call that can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// [`Media::persist`].
    Persist,
    /// [`Media::flush`].
    Flush,
    /// [`Media::sync`].
    Sync,
    /// [`Media::reserve`].
    Reserve,
}

/// A fault: which call fails, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The kind of call.
    pub call: Call,
    /// Its number, counted from 0 over the lifetime of the wrapper.
    pub nth: u64,
    /// The error, such as [`Fault::EIO`].
    pub errno: i32,
    /// The call takes effect nevertheless: the caller cannot know.
    pub but_done: bool,
    /// All later calls of the kind fail too.
    pub from_then_on: bool,
}

impl Fault {
    /// Input/output error.
    pub const EIO: i32 = 5;
    /// No space left on device.
    pub const ENOSPC: i32 = 28;

    /// The nth call fails once, without effect.
    pub const fn once(call: Call, nth: u64, errno: i32) -> Fault {
        Fault { call, nth, errno, but_done: false, from_then_on: false }
    }
}

/// Wraps any media and injects faults.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Media>,
    faults: Mutex<Vec<Fault>>,
    calls: [AtomicU64; 4],
}

impl Faulty {
    /// A wrapper with this list of faults.
    pub fn new(inner: Arc<dyn Media>, faults: impl Into<Vec<Fault>>) -> Faulty {
        Faulty { inner, faults: Mutex::new(faults.into()), calls: Default::default() }
    }

    /// Number of calls of a kind, including failed ones.
    pub fn calls(&self, call: Call) -> u64 {
        self.calls[call as usize].load(Ordering::Relaxed)
    }

    /// Replaces the list of faults. The counts continue.
    pub fn set_faults(&self, faults: impl Into<Vec<Fault>>) {
        *self.faults.lock() = faults.into();
    }

    fn run(&self, call: Call, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let nth = self.calls[call as usize].fetch_add(1, Ordering::Relaxed);
        let hit = |fault: &&Fault| fault.call == call && (fault.nth == nth || fault.from_then_on && fault.nth < nth);
        let fault = self.faults.lock().iter().find(hit).copied();
        match fault {
            None => work(),
            Some(fault) => {
                if fault.but_done {
                    work()?;
                }
                Err(io::Error::from_raw_os_error(fault.errno))
            }
        }
    }
}

impl Media for Faulty {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }
    fn views(&self) -> Views<'_> {
        self.inner.views()
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        self.run(Call::Persist, || self.inner.persist(parts))
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        self.inner.store(at, bytes);
    }
    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        self.run(Call::Flush, || self.inner.flush(at, len))
    }
    fn fence(&self) {
        self.inner.fence();
    }
    fn sync(&self) -> io::Result<()> {
        self.run(Call::Sync, || self.inner.sync())
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.run(Call::Reserve, || self.inner.reserve(at, len))
    }
}
