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
//! longer than a second is behind. What is cut stays pinned until it answers or dies, so that it
//! goes on seeing its old page and never another file's.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::area::Area;
use crate::frame::Run;
use crate::pool::WeakPool;

/// How long a change waits for a child.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What a child is told of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum News {
    /// They were taken away: an error until refreshed.
    Cut = 1,
    /// They are something else now: ask again at the next touch.
    Again = 2,
    /// They are the file's again, though they were cut.
    Grown = 3,
}

impl News {
    pub(super) fn of(word: u64) -> Option<News> {
        [News::Cut, News::Again, News::Grown].into_iter().find(|&news| news as u64 == word)
    }
}

/// A child that inherited mappings.
#[derive(Debug)]
pub(super) struct Link(Mutex<Control>);

#[derive(Debug)]
struct Control {
    socket: OwnedFd,
    sent: u64,
    done: u64,
    dead: bool,
    /// Pages that it may still show, and the message after whose answer it does not.
    pins: Vec<(u64, WeakPool, Run)>,
}

/// Two ends of a new connection that keeps messages apart.
pub(super) fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message of words.
pub(super) fn send(socket: &OwnedFd, words: &[u64], flags: SendFlags) -> rustix::io::Result<()> {
    let bytes = zerocopy::IntoBytes::as_bytes(words);
    rustix::io::retry_on_intr(|| rustix::net::send(socket, bytes, flags | SendFlags::NOSIGNAL)).map(drop)
}

/// Receives a message of words; returns how many, 0 at the end of the connection.
pub(super) fn receive(socket: &OwnedFd, words: &mut [u64], flags: RecvFlags) -> rustix::io::Result<usize> {
    let bytes = zerocopy::IntoBytes::as_mut_bytes(words);
    let (n, _) = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *bytes, flags))?;
    Ok(n / 8)
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> Link {
        Link(Mutex::new(Control { socket, sent: 0, done: 0, dead: false, pins: Vec::new() }))
    }

    /// Tells the child; whether it has done its part.
    pub(super) fn tell(&self, news: News, area: &Area, pages: &Range<u64>) -> bool {
        let mut control = self.0.lock();
        if control.dead {
            return true;
        }
        let patience = if control.done == control.sent { PATIENCE } else { Timespec { tv_sec: 0, tv_nsec: 0 } };
        control.sent += 1;
        let message = [control.sent, news as u64, area.id, pages.start, pages.end];
        match send(&control.socket, &message, SendFlags::DONTWAIT) {
            Ok(()) => {}
            // It will never answer this one: what is cut now is pinned until it dies.
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(_) => control.dead = true,
        }
        while !control.dead && control.done < control.sent {
            if !control.wait(patience) {
                return false;
            }
        }
        true
    }

    /// Keeps pages that the child may still show from reuse.
    pub(super) fn pin(&self, pool: &WeakPool, runs: &[Run]) {
        let mut control = self.0.lock();
        let Some(open) = pool.upgrade().filter(|_| !control.dead) else { return };
        let sent = control.sent;
        for &run in runs {
            open.inner().frames.pin(run);
            control.pins.push((sent, pool.clone(), run));
        }
    }

    /// The child is gone, or has become another program.
    pub(super) fn bury(&self) {
        let mut control = self.0.lock();
        control.dead = true;
        control.done = u64::MAX;
        control.release();
    }
}

impl Control {
    /// Waits for an answer; false if none came in time.
    fn wait(&mut self, patience: Timespec) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&patience)));
        if !matches!(ready, Ok(1..)) {
            return false;
        }
        let mut answer = [0];
        match receive(&self.socket, &mut answer, RecvFlags::DONTWAIT) {
            Ok(1) => self.done = answer[0],
            _ => self.dead = true,
        }
        self.release();
        true
    }

    fn release(&mut self) {
        let done = self.done;
        self.pins.retain(|(sent, pool, run)| {
            if *sent <= done
                && let Some(pool) = pool.upgrade()
            {
                pool.inner().frames.unpin(*run);
            }
            *sent > done
        });
    }
}

/// The children of one mapping.
pub(super) type Links = Vec<Arc<Link>>;
