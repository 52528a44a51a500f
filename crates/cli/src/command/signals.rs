//! Ctrl-C and its relatives, taken by one thread instead of breaking into whatever runs.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

/// The signals that ask a mount to end.
const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The ending signals, held back from every thread that is started after [`Signals::hold`].
#[derive(Clone, Copy)]
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    /// From now on the signals wait for [`Signals::wait`].
    pub(crate) fn hold() -> io::Result<Signals> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set it is given; the pointer is to a live value.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in ENDING {
            // SAFETY: `set` is initialized and the signal number is a valid one.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is initialized; the old mask is not asked for.
        let refused = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if refused == 0 { Ok(Signals(set)) } else { Err(io::Error::from_raw_os_error(refused)) }
    }

    /// Returns when one of them has arrived: which.
    pub(crate) fn wait(&self) -> io::Result<libc::c_int> {
        let mut signal = 0;
        // SAFETY: the set is initialized and `signal` is a live value for the answer.
        let refused = unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        if refused == 0 { Ok(signal) } else { Err(io::Error::from_raw_os_error(refused)) }
    }
}

/// Ends the process by this signal. Returns if the process ignores the signal.
pub(crate) fn end_by(signal: libc::c_int) {
    // SAFETY: `set` is initialized by sigemptyset before it is used, and the pointers are to a live value; raise and
    // the mask concern this thread alone.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::raise(signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// The ending signals as requests to a long operation, which stops after its step. A second signal, or one that arrives
/// before the operation has begun, ends the process.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    signal: Arc<AtomicI32>,
    begun: Arc<AtomicBool>,
}

impl Interrupt {
    /// Starts the thread that takes the signals. To be called before any other thread is started.
    pub(crate) fn listen() -> io::Result<Interrupt> {
        let signals = Signals::hold()?;
        let interrupt = Interrupt::default();
        let Interrupt { signal, begun } = interrupt.clone();
        let take = move || {
            while let Ok(arrived) = signals.wait() {
                if !begun.load(Ordering::Acquire) || signal.swap(arrived, Ordering::AcqRel) != 0 {
                    end_by(arrived);
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(take)?;
        Ok(interrupt)
    }

    /// The operation begins.
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// The signal that has arrived since.
    pub(crate) fn arrived(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::Acquire)).filter(|&signal| signal != 0)
    }
}
