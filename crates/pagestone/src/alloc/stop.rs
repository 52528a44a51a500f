//! Why a transaction stops short of its commit.
//!
//! ```text
//!   raised in the transaction        answered by
//!   NoSpace      no page to reserve  Allocator::attempt: a checkpoint frees what was freed before; again
//!   LostPage     a read of the media Allocator::attempt: the page is known to be lost now; again
//!   Pinned       the commit          Engine::with_lost_page_evacuated: a place for the table; the merge: later
//!   RecordFull   the operation       Engine::make_contiguous: fewer pieces first; Engine::write_atomic: an orphan
//!   Failed       anything else       nobody
//! ```
//!
//! What nobody has an answer to becomes an [`Error`] where the transaction is given up.

use crate::error::Error;

/// Why a transaction is not committed: nothing of it has happened.
#[derive(Debug)]
pub(crate) enum Stop {
    /// One record does not hold the change, which its operation must not divide. Raised by `data/relocate.rs` and
    /// `data/shadow_commit.rs`, which have another way each.
    RecordFull,
    /// There is no page for it. Raised where pages are reserved. If pages
    /// wait for a checkpoint, [`Allocator::attempt`](super::Allocator::attempt) does that and runs the transaction again.
    NoSpace,
    /// Pages of a whole frame are to be given back, and none of them can hold the frame's table: all are pinned, or
    /// lost. Raised at commit. `Engine::with_lost_page_evacuated` makes a place for the table if lost pages are the reason; a merge
    /// waits until the pins are gone.
    Pinned,
    /// The media have lost the page at this pool byte. Raised by whoever reads it. Once the page is known, another run
    /// of the transaction does without it: [`Allocator::attempt`](super::Allocator::attempt) runs it again.
    LostPage(u64),
    /// The operation has failed. The caller gets the error.
    Failed(Error),
}

/// The result of everything that changes a transaction.
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

/// The transaction is given up.
impl From<Stop> for Error {
    fn from(stop: Stop) -> Error {
        match stop {
            // Whoever raises it answers it, or divides what it does by itself.
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

    /// What a transaction meets on its way is answered as such, and means the same to the caller if nobody answers.
    #[test]
    fn an_error_that_somebody_answers_is_a_stop_of_its_own_and_comes_back_as_it_was() {
        assert!(matches!(Stop::from(Error::NoSpace), Stop::NoSpace));
        assert!(matches!(Stop::from(Error::Pinned), Stop::Pinned));
        assert!(matches!(Stop::from(Error::Lost(4096)), Stop::LostPage(4096)));
        assert!(matches!(Error::from(Stop::NoSpace), Error::NoSpace));
        assert!(matches!(Error::from(Stop::Pinned), Error::Pinned));
        assert!(matches!(Error::from(Stop::LostPage(4096)), Error::Lost(4096)));
    }

    /// A value that is too large for the caller is no record that is full, which would be tried another way.
    #[test]
    fn a_value_too_large_is_told_from_a_full_record() {
        assert!(matches!(Stop::from(Error::TooLarge), Stop::Failed(Error::TooLarge)));
        assert!(!matches!(Error::from(Stop::RecordFull), Error::TooLarge));
    }
}
