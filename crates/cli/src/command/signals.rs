//! Ctrl-C and its relatives, taken by one thread instead of breaking into whatever runs.

use std::io;
use std::mem::MaybeUninit;

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

    /// Returns when one of them has arrived.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut signal = 0;
        // SAFETY: the set is initialized and `signal` is a live value for the answer.
        let refused = unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        if refused == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(refused)) }
    }
}
