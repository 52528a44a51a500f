//! Ctrl-C and its relatives, taken by one thread instead of ending the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Catches the signals that ask a command to end. From now on they wait for the reader of [`Signals`].
pub(super) fn catch() -> io::Result<Signals> {
    Signals::new([SIGINT, SIGTERM, SIGHUP])
}

/// Ends the process by this signal.
pub(crate) fn end_by(signal: i32) {
    // It fails for an unknown signal only, and the caller then ends with an exit code.
    let _ = emulate_default_handler(signal);
}

/// The ending signals as requests to a long operation, which stops after its step. A second signal, or one that arrives
/// before the operation has begun, ends the process.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    signal: Arc<AtomicI32>,
    begun: Arc<AtomicBool>,
}

impl Interrupt {
    /// Starts the thread that takes the signals.
    pub(crate) fn listen() -> io::Result<Interrupt> {
        let mut signals = catch()?;
        let interrupt = Interrupt::default();
        let Interrupt { signal, begun } = interrupt.clone();
        let take = move || {
            for arrived in signals.forever() {
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
