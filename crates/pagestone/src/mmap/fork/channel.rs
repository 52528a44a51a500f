//! The two sockets between a process and its child, from the parent's side.
//!
//! ```text
//!   parent                                        child
//!     |  <---- asks: mapping, page, store? -------  |    a fault there
//!     |  ----- what the window is --------------->  |
//!     |  ----- control: cut, again, grown ------->  |    a change here
//!     |  <---- done ------------------------------  |
//! ```
//!
//! A change waits for the child's answer, but not for ever: a child that is stopped, or busy, for
//! longer than a second is behind, and later changes do not wait for it. What does not fit into the
//! socket is kept and sent in order once the child reads again. Pages that it may still show stay pinned
//! until it has answered *that* message, or is gone: it goes on seeing its old page and never another
//! file's.

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

/// How long a change waits for a child.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What a child has to do with pages that have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::mmap) enum Invalidation {
    /// They were taken away: an error until refreshed.
    Revoke = 1,
    /// They are something else now: ask again at the next touch.
    Unresolve = 2,
    /// They are the file's again, though they were cut.
    Allow = 3,
}

impl Invalidation {
    pub(in crate::mmap) fn of(word: u64) -> Option<Invalidation> {
        [Invalidation::Revoke, Invalidation::Unresolve, Invalidation::Allow]
            .into_iter()
            .find(|&change| change as u64 == word)
    }
}

/// Messages that are kept for a child that does not read.
const MOST_UNSENT: usize = 4096;

/// A message: its number, the invalidation, the mapping, and the pages.
type Message = [u64; 5];

/// Pages that a child may show, and the message after whose answer it does not.
type Pinned = (u64, WeakEngine, Run);

/// A child that inherited mappings.
#[derive(Debug)]
pub(in crate::mmap) struct Link {
    socket: OwnedFd,
    control: Mutex<rank::Leaf, Control>,
}

#[derive(Debug, Default)]
struct Control {
    /// Number of the last message, sent or not.
    last: u64,
    /// Number of the last one that was answered.
    done: u64,
    /// What the socket had no room for, in order.
    unsent: VecDeque<Message>,
    /// More were lost than are kept: what the child shows is not known any more.
    overflowed: bool,
    /// The process is gone, or has become another program.
    gone: bool,
    pins: Vec<Pinned>,
    /// Runs that are pinned until the child is gone: whose pool, first page, count.
    kept: BTreeSet<(usize, u64, u64)>,
}

/// Two ends of a new connection that keeps messages apart.
pub(in crate::mmap) fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message of words.
pub(in crate::mmap) fn send(socket: &OwnedFd, words: &[u64], flags: SendFlags) -> rustix::io::Result<()> {
    let bytes = zerocopy::IntoBytes::as_bytes(words);
    rustix::io::retry_on_intr(|| rustix::net::send(socket, bytes, flags | SendFlags::NOSIGNAL)).map(drop)
}

/// Receives a message of words; returns how many, 0 at the end of the connection.
pub(in crate::mmap) fn receive(socket: &OwnedFd, words: &mut [u64], flags: RecvFlags) -> rustix::io::Result<usize> {
    let bytes = zerocopy::IntoBytes::as_mut_bytes(words);
    let (n, _) = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *bytes, flags))?;
    Ok(n / 8)
}

impl Link {
    pub(in crate::mmap) fn new(socket: OwnedFd) -> Link {
        Link { socket, control: Mutex::default() }
    }

    /// Sends an invalidation; whether the child has applied it.
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
        let mut free = self.catch_up(control);
        if control.gone || control.overflowed {
            return (control.gone, free);
        }
        let behind = control.done != control.last;
        let patience = if behind { Timespec { tv_sec: 0, tv_nsec: 0 } } else { PATIENCE };
        control.last += 1;
        if control.unsent.len() >= MOST_UNSENT {
            control.overflowed = true;
            return (false, free);
        }
        control.unsent.push_back([control.last, change as u64, area.id, pages.start, pages.end]);
        self.deliver(control);
        while control.unsent.is_empty() && !control.gone && control.done < control.last {
            if !self.wait(&patience) {
                break;
            }
            free.extend(self.catch_up(control));
        }
        (control.gone || control.done == control.last, free)
    }

    /// Keeps pages that the child may still show from reuse, until it has answered the last message.
    pub(in crate::mmap) fn pin(&self, pool: &WeakEngine, runs: &[Run]) {
        let Some(open) = pool.upgrade() else { return };
        runs.iter().for_each(|&run| open.alloc.pin(run));
        let mut control = self.control.lock();
        let until = if control.overflowed { u64::MAX } else { control.last };
        control.pins.extend(runs.iter().map(|&run| (until, pool.clone(), run)));
        let free = control.take_done();
        drop(control);
        unpin(free);
    }

    /// Keeps pages that the child is about to show from reuse until it is gone.
    pub(in crate::mmap) fn pin_for_good(&self, pool: &WeakEngine, run: Run) {
        let Some(open) = pool.upgrade() else { return };
        open.alloc.pin(run);
        let mut control = self.control.lock();
        let new = !control.gone && control.kept.insert((pool.identity(), run.page.0, run.pages));
        if new {
            control.pins.push((u64::MAX, pool.clone(), run));
        }
        drop(control);
        if !new {
            open.alloc.unpin(run);
        }
    }

    /// The child may have answered, or have room for what was not sent.
    pub(in crate::mmap) fn look_up(&self) {
        let free = self.catch_up(&mut self.control.lock());
        unpin(free);
    }

    /// Waits until the child asks something or answers; false if it is gone.
    pub(in crate::mmap) fn wait_for_asks(&self, asks: &OwnedFd) -> bool {
        loop {
            // Room in the socket matters only while something waits to be sent.
            let unsent = !self.control.lock().unsent.is_empty();
            let events = if unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let mut fds = [PollFd::new(asks, PollFlags::IN), PollFd::new(&self.socket, events)];
            if rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None)).is_err() {
                return false;
            }
            let (asked, answered) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if answered {
                self.look_up();
            }
            if asked {
                return true;
            }
            if self.control.lock().gone {
                return false;
            }
        }
    }

    /// The child is gone, or has become another program.
    pub(in crate::mmap) fn close(&self) {
        let mut control = self.control.lock();
        control.gone = true;
        control.done = u64::MAX;
        let free = control.take_done();
        drop(control);
        unpin(free);
    }

    /// Takes the answers that are there, and sends what waits; returns pins that are over.
    fn catch_up(&self, control: &mut Control) -> Vec<Pinned> {
        let mut answer = [0];
        while !control.gone {
            match receive(&self.socket, &mut answer, RecvFlags::DONTWAIT) {
                Ok(1) => control.done = answer[0],
                Err(rustix::io::Errno::AGAIN) => break,
                _ => control.gone = true,
            }
        }
        self.deliver(control);
        control.take_done()
    }

    fn deliver(&self, control: &mut Control) {
        while let Some(message) = control.unsent.front().filter(|_| !control.gone) {
            match send(&self.socket, message, SendFlags::DONTWAIT) {
                Ok(()) => drop(control.unsent.pop_front()),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => control.gone = true,
            }
        }
    }

    /// Waits for an answer; false if none came in time.
    fn wait(&self, patience: &Timespec) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        matches!(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(patience))), Ok(1..))
    }
}

impl Control {
    /// Pins whose message was answered. A child that closed its socket may live on as another process: its
    /// pins end with [`Link::close`].
    fn take_done(&mut self) -> Vec<Pinned> {
        let done = self.done;
        self.pins.extract_if(.., |(until, ..)| *until <= done).collect()
    }
}

/// Not under the link's lock: the pool may be closed by this.
fn unpin(pins: Vec<Pinned>) {
    for (_, pool, run) in pins {
        if let Some(pool) = pool.upgrade() {
            pool.alloc.unpin(run);
        }
    }
}

/// The children of one mapping.
pub(in crate::mmap) type Links = Vec<Arc<Link>>;
