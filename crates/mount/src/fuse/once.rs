//! Changes that are done once, although the kernel sends their requests again after the process that had them has died.
//!
//! ```text
//!   done by a process before this one?   yes: answered from the note of it
//!                                        no:  done; the record of the change has a note (pagestone::inode::Request)
//! ```
//!
//! Each thread has a line of the pool for its last request. The lines are shared out in turn to four processes in a row.
//! So a note is written over by the fourth process after it, when its request was answered long ago: requests that are
//! sent again come first, and after three processes in a row that died at once no other is started.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU16, Ordering};

use fuser::Request;
use pagestone::inode::Request as Noted;

use crate::transport::{NodeId, RequestNumber, Survival};

/// Processes that have lines of their own.
const PROCESSES: u16 = 4;
/// Most server threads of a mount that outlives its process.
pub(super) const MAX_THREADS: usize = (Noted::LINES / PROCESSES) as usize;
/// Set in the number of a request that is sent again.
const SENT_AGAIN: u64 = 1 << 63;

thread_local! {
    /// The line of this thread, which serves one mount.
    static LINE: Cell<Option<u16>> = const { Cell::new(None) };
}

/// The requests of a mount that outlives its process.
#[derive(Debug)]
pub(super) struct Once {
    client: u64,
    done: HashMap<u64, Option<NodeId>>,
    first_line: u16,
    threads: AtomicU16,
}

/// The number of a request.
pub(super) fn number(request: &Request) -> RequestNumber {
    let unique = request.unique().0;
    RequestNumber { number: unique & !SENT_AGAIN, again: unique & SENT_AGAIN != 0 }
}

impl Once {
    /// Takes the notes out of `survival`.
    pub(super) fn new(survival: &mut Survival) -> Once {
        let turn = (survival.generation % u32::from(PROCESSES)) as u16;
        Once {
            client: survival.client,
            done: std::mem::take(&mut survival.done),
            first_line: turn * MAX_THREADS as u16,
            threads: AtomicU16::new(0),
        }
    }

    /// What the request has made, if it was done by a process before this one.
    pub(super) fn done(&self, request: &Request) -> Option<Option<NodeId>> {
        let request = number(request);
        if request.again { self.done.get(&request.number).copied() } else { None }
    }

    /// Runs `change`, which makes one change at most, with a note of the request in its record.
    pub(super) fn noting<R>(&self, request: &Request, change: impl FnOnce() -> R) -> R {
        let line = LINE.get().unwrap_or_else(|| {
            let thread = self.threads.fetch_add(1, Ordering::Relaxed);
            let line = self.first_line + thread % MAX_THREADS as u16;
            LINE.set(Some(line));
            line
        });
        Noted { client: self.client, number: number(request).number, line }.run(change)
    }
}
