//! Why a transaction stops before its commit.
//!
//! ```text
//!   stop         raised by             handled by
//!   NoSpace      a reservation         Allocator::attempt: a checkpoint releases freed pages, then retry
//!   LostPage     a read of the media   Allocator::attempt: the page is recorded as lost, then retry
//!   Pinned       the commit            Engine::with_lost_page_evacuated: relocate a page for the table; a merge: later
//!   RecordFull   the operation         Engine::make_contiguous: fewer pieces first; Engine::write_atomic: an orphan
//!   Failed       anything else         the caller
//! ```
//!
//! A stop that is not handled becomes an [`Error`] when the transaction is aborted.

use crate::error::Error;

/// Why a transaction does not commit. None of its changes has happened.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The change does not fit into one record, and its operation must not split it. Raised by `data/relocate.rs`
    /// and `data/shadow_commit.rs`, which then use another method.
    RecordFull,
    /// No page is available. Raised when pages are reserved. If freed pages wait for a checkpoint,
    /// [`Allocator::attempt`](super::Allocator::attempt) runs it and retries the transaction.
    NoSpace,
    /// A part of a whole frame is to be freed, and none of its pages can hold the frame's table: all are pinned or
    /// lost. Raised at commit. If lost pages are the reason, `Engine::with_lost_page_evacuated` relocates a healthy
    /// page of the frame and puts the table there. A merge waits until the pins are dropped.
    Pinned,
    /// The media have lost the page at this pool byte. Raised by a read.
    /// [`Allocator::attempt`](super::Allocator::attempt) retries the transaction, which does not use the page once
    /// it is recorded as lost.
    LostPage(u64),
    /// The operation has failed. The error is returned to the caller.
    Failed(Error),
}

/// The result of every function that changes a transaction.
pub(crate) type TxResult<T> = std::result::Result<T, Stop>;

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        match error {
            Error::NoSpace => Stop::NoSpace,
            Error::Pinned => Stop::Pinned,
            Error::Lost(at) => Stop::LostPage(at),
            other => Stop::Failed(other),
        }
    }
}

impl From<pmem::Error> for Stop {
    fn from(error: pmem::Error) -> Stop {
        Error::from(error).into()
    }
}

/// A stop that was not handled.
impl From<Stop> for Error {
    fn from(stop: Stop) -> Error {
        match stop {
            // The operation that raises it handles it or splits the change.
            Stop::RecordFull => Error::NotSupported("a change in more places than one record names"),
            Stop::NoSpace => Error::NoSpace,
            Stop::Pinned => Error::Pinned,
            Stop::LostPage(at) => Error::Lost(at),
            Stop::Failed(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Stop;
    use crate::error::Error;

    /// An error that has a handler becomes its own kind of stop, and turns into the same error again if it is not
    /// handled.
    #[test]
    fn an_error_that_somebody_answers_is_a_stop_of_its_own_and_comes_back_as_it_was() {
        assert!(matches!(Stop::from(Error::NoSpace), Stop::NoSpace));
        assert!(matches!(Stop::from(Error::Pinned), Stop::Pinned));
        assert!(matches!(Stop::from(Error::Lost(4096)), Stop::LostPage(4096)));
        assert!(matches!(Error::from(Stop::NoSpace), Error::NoSpace));
        assert!(matches!(Error::from(Stop::Pinned), Error::Pinned));
        assert!(matches!(Error::from(Stop::LostPage(4096)), Error::Lost(4096)));
    }

    /// A value that is too large for the caller must not become `RecordFull`, which is handled by another method.
    #[test]
    fn a_value_too_large_is_told_from_a_full_record() {
        assert!(matches!(Stop::from(Error::TooLarge), Stop::Failed(Error::TooLarge)));
        assert!(!matches!(Error::from(Stop::RecordFull), Error::TooLarge));
    }
}
