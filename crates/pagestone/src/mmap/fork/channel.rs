//! The two sockets between a process and its child: the parent's side.
//!
//! ```text
//!   parent                                             child
//!     |  <---- request: mapping, page, store? -------  |    a fault in the child
//!     |  ----- reply: contents of the window ------->  |
//!     |  -- invalidation: revoke, unresolve, allow ->  |    a change of the file
//!     |  <---- acknowledgement ----------------------  |
//! ```
//!
//! A change waits for the child's acknowledgement, for at most one second. If the child fails to acknowledge in
//! time, later changes do not wait for it. Messages that do not fit into the socket are queued and sent in order
//! once the child reads again. Pages that the child may still map stay pinned until it acknowledges that
//! invalidation or ends. Until then it sees the old page, never a page of another file.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::alloc::Run;
use crate::engine::WeakEngine;
use crate::lock::{Mutex, rank};
use crate::mmap::address_space::area::Area;

/// How long a change waits for a child's acknowledgement.
const ACKNOWLEDGE_TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What a child has to do with pages that have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::mmap) enum Invalidation {
    /// The pages were revoked: an access is an error until they are refreshed.
    Revoke = 1,
    /// The pages may have changed: the next access resolves them again.
    Unresolve = 2,
    /// The pages belong to the file again after a revocation.
    Allow = 3,
}

impl Invalidation {
    pub(in crate::mmap) fn of(word: u64) -> Option<Invalidation> {
        [Invalidation::Revoke, Invalidation::Unresolve, Invalidation::Allow]
            .into_iter()
            .find(|&change| change as u64 == word)
    }
}

/// Limit on messages queued for a child that does not read.
const MAX_UNSENT: usize = 4096;

/// A message: number, invalidation, mapping, first page and end.
type Message = [u64; 5];

/// Pages that a child may map until it acknowledges the message with this number.
type Pinned = (u64, WeakEngine, Run);

/// A child that inherited mappings.
#[derive(Debug)]
pub(in crate::mmap) struct Link {
    socket: OwnedFd,
    control: Mutex<rank::Leaf, Control>,
}

#[derive(Debug, Default)]
struct Control {
    /// Number of the last message, sent or queued.
    last: u64,
    /// Number of the last acknowledged message.
    done: u64,
    /// Messages that did not fit into the socket, in order.
    unsent: VecDeque<Message>,
    /// The queue has overflowed: what the child maps is unknown from then on.
    overflowed: bool,
    /// The child has ended or has called `exec`.
    exited: bool,
    pins: Vec<Pinned>,
    /// Runs that are pinned until the child ends: pool, first page, count.
    kept: BTreeSet<(usize, u64, u64)>,
}

/// A new connected pair of sockets that preserve message boundaries.
pub(in crate::mmap) fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message of words.
pub(in crate::mmap) fn send(socket: &OwnedFd, words: &[u64], flags: SendFlags) -> rustix::io::Result<()> {
    let bytes = zerocopy::IntoBytes::as_bytes(words);
    rustix::io::retry_on_intr(|| rustix::net::send(socket, bytes, flags | SendFlags::NOSIGNAL)).map(drop)
}

/// Receives a message of words. Returns its length, 0 at the end of the connection.
pub(in crate::mmap) fn receive(socket: &OwnedFd, words: &mut [u64], flags: RecvFlags) -> rustix::io::Result<usize> {
    let bytes = zerocopy::IntoBytes::as_mut_bytes(words);
    let (n, _) = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *bytes, flags))?;
    Ok(n / 8)
}

impl Link {
    pub(in crate::mmap) fn new(socket: OwnedFd) -> Link {
        Link { socket, control: Mutex::default() }
    }

    /// Sends an invalidation. Returns whether the child has applied it.
    pub(in crate::mmap) fn send(&self, change: Invalidation, area: &Area, pages: &Range<u64>) -> bool {
        let (done, free) = self.send_locked(&mut self.control.lock(), change, area, pages);
        unpin(free);
        done
    }

    fn send_locked(
        &self,
        control: &mut Control,
        change: Invalidation,
        area: &Area,
        pages: &Range<u64>,
    ) -> (bool, Vec<Pinned>) {
        let mut free = self.poll_socket(control);
        if control.exited || control.overflowed {
            return (control.exited, free);
        }
        let behind = control.done != control.last;
        let timeout = if behind { Timespec { tv_sec: 0, tv_nsec: 0 } } else { ACKNOWLEDGE_TIMEOUT };
        control.last += 1;
        if control.unsent.len() >= MAX_UNSENT {
            control.overflowed = true;
            return (false, free);
        }
        control.unsent.push_back([control.last, change as u64, area.id, pages.start, pages.end]);
        self.deliver(control);
        while control.unsent.is_empty() && !control.exited && control.done < control.last {
            if !self.wait(&timeout) {
                break;
            }
            free.extend(self.poll_socket(control));
        }
        (control.exited || control.done == control.last, free)
    }

    /// Pins pages that the child may still map, until it has acknowledged the last message.
    pub(in crate::mmap) fn pin(&self, pool: &WeakEngine, runs: &[Run]) {
        let Some(open) = pool.upgrade() else { return };
        runs.iter().for_each(|&run| open.alloc.pin(run));
        let mut control = self.control.lock();
        let until = if control.overflowed { u64::MAX } else { control.last };
        control.pins.extend(runs.iter().map(|&run| (until, pool.clone(), run)));
        let free = control.take_acknowledged();
        drop(control);
        unpin(free);
    }

    /// Pins pages that the child is about to map, until it ends.
    pub(in crate::mmap) fn pin_until_exit(&self, pool: &WeakEngine, run: Run) {
        let Some(open) = pool.upgrade() else { return };
        open.alloc.pin(run);
        let mut control = self.control.lock();
        let new = !control.exited && control.kept.insert((pool.identity(), run.page.0, run.pages));
        if new {
            control.pins.push((u64::MAX, pool.clone(), run));
        }
        drop(control);
        if !new {
            open.alloc.unpin(run);
        }
    }

    /// Handles acknowledgements and sends queued messages, without blocking.
    pub(in crate::mmap) fn poll_control(&self) {
        let free = self.poll_socket(&mut self.control.lock());
        unpin(free);
    }

    /// Waits until the child sends a request. Handles acknowledgements meanwhile. Returns false if the child has
    /// ended.
    pub(in crate::mmap) fn wait_for_request(&self, requests: &OwnedFd) -> bool {
        loop {
            // Poll for room in the socket only while messages are queued.
            let unsent = !self.control.lock().unsent.is_empty();
            let events = if unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let mut fds = [PollFd::new(requests, PollFlags::IN), PollFd::new(&self.socket, events)];
            if rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None)).is_err() {
                return false;
            }
            let (asked, answered) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if answered {
                self.poll_control();
            }
            if asked {
                return true;
            }
            if self.control.lock().exited {
                return false;
            }
        }
    }

    /// The child has ended or has called `exec`.
    pub(in crate::mmap) fn close(&self) {
        let mut control = self.control.lock();
        control.exited = true;
        control.done = u64::MAX;
        let free = control.take_acknowledged();
        drop(control);
        unpin(free);
    }

    /// Receives pending acknowledgements and sends queued messages. Returns the pins that are no longer needed.
    fn poll_socket(&self, control: &mut Control) -> Vec<Pinned> {
        let mut answer = [0];
        while !control.exited {
            match receive(&self.socket, &mut answer, RecvFlags::DONTWAIT) {
                Ok(1) => control.done = answer[0],
                Err(rustix::io::Errno::AGAIN) => break,
                _ => control.exited = true,
            }
        }
        self.deliver(control);
        control.take_acknowledged()
    }

    fn deliver(&self, control: &mut Control) {
        while let Some(message) = control.unsent.front().filter(|_| !control.exited) {
            match send(&self.socket, message, SendFlags::DONTWAIT) {
                Ok(()) => drop(control.unsent.pop_front()),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => control.exited = true,
            }
        }
    }

    /// Waits for an acknowledgement. Returns false on timeout.
    fn wait(&self, timeout: &Timespec) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        matches!(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(timeout))), Ok(1..))
    }
}

impl Control {
    /// Pins whose message was acknowledged. A child that closed its socket may continue as another process: its
    /// pins end with [`Link::close`].
    fn take_acknowledged(&mut self) -> Vec<Pinned> {
        let done = self.done;
        self.pins.extract_if(.., |(until, ..)| *until <= done).collect()
    }
}

/// Must not be called under the link's lock: dropping the last reference closes the pool.
fn unpin(pins: Vec<Pinned>) {
    for (_, pool, run) in pins {
        if let Some(pool) = pool.upgrade() {
            pool.alloc.unpin(run);
        }
    }
}

/// The children of one mapping.
pub(in crate::mmap) type Links = Vec<Arc<Link>>;
