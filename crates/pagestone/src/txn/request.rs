//! Requests that are done once, however often they are sent.
//!
//! ```text
//!   face      Request { client, number, line }.run(|| dir.unlink(name))
//!   here      the record of the change has the line too: which request it was, which inode it made
//!   restart   Pool::done_requests(client) ---> a request that comes again is answered from this
//! ```
//!
//! So a change and the note of it are durable together or not at all. Changes that give the same result twice (bytes at
//! an offset, attributes, lengths) bear no note.

use std::cell::Cell;

use super::Tx;
use crate::alloc::{Allocator, TxResult};
use crate::error::Result;
use crate::layout::{LastRequest, REQUEST_PAGES, REQUESTS};
use crate::units::{Ino, LINE, PAGE_SIZE};

thread_local! {
    static CURRENT: Cell<Option<Request>> = const { Cell::new(None) };
}

/// A request of a client that may be sent again, after the process that had it has died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Whose it is. Not 0. The numbers of one client do not repeat.
    pub client: u64,
    /// Its number.
    pub number: u64,
    /// Where it is noted, below [`Request::LINES`]. A line has one request, the last; no two threads use one line.
    pub line: u16,
}

impl Request {
    /// Lines that a pool has.
    pub const LINES: u16 = (REQUEST_PAGES * PAGE_SIZE / LINE) as u16;

    /// Runs `f`. A change of names or extended attributes that `f` commits on this thread bears a note of the request,
    /// durable with the change. `f` makes one such change at most.
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        /// Also after a panic.
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                CURRENT.set(None);
            }
        }
        debug_assert!(self.client != 0 && self.line < Request::LINES);
        CURRENT.set(Some(self));
        let _leave = Leave;
        f()
    }
}

/// A request that a pool has a note of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DoneRequest {
    /// The request.
    pub request: Request,
    /// The inode that it made.
    pub made: Option<Ino>,
}

impl Tx<'_> {
    /// This transaction does what the current request of the thread asks for, and makes this inode.
    pub(crate) fn note_request(&mut self, made: Option<Ino>) -> TxResult<()> {
        let Some(Request { client, number, line }) = CURRENT.get() else { return Ok(()) };
        let done = LastRequest::new(client, number, made.map_or(0, |ino| ino.0));
        self.stage_line(REQUESTS.byte() + u64::from(line) * LINE, &done.sealed())
    }
}

impl Allocator {
    /// The requests of a client that the pool has a note of: the last of each line. A damaged line has none.
    pub(crate) fn done_requests(&self, client: u64) -> Result<Vec<DoneRequest>> {
        let mut done = Vec::new();
        for line in 0..Request::LINES {
            let mut bytes = [0; LINE as usize];
            self.region.read_meta(REQUESTS.byte() + u64::from(line) * LINE, &mut bytes)?;
            let Some(last) = LastRequest::parse(bytes).filter(|last| last.client == client) else { continue };
            let request = Request { client, number: last.number, line };
            done.push(DoneRequest { request, made: Some(Ino(last.made)).filter(|ino| ino.0 != 0) });
        }
        Ok(done)
    }
}
