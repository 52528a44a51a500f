//! A server that outlives the death of the process that does its work.
//!
//! ```text
//!   supervisor   keeps descriptors: the pool's lock, /dev/fuse, the table of handles, the control socket
//!       |  ^
//!    start |  keep, ready          one socket, the worker's standard input
//!       v  |
//!   worker       has the pool open and serves it
//!       x        killed, aborted, or asked for a restart: another worker gets what is kept, and goes on
//! ```
//!
//! The supervisor is small, so that it has little to die of. It reads nothing that comes from a client or from a pool.
//! The idea is that of systemd's descriptor store. If the supervisor is killed, the worker is killed with it.

mod message;
mod worker;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::flag;
use signal_hook::low_level::pipe;

use message::Message;
pub use worker::{Keeper, RESTART, Stops, Worker};

/// A worker that lives this long after it was ready has answered the requests that were sent again.
const AT_ONCE: Duration = Duration::from_millis(100);
/// After so many workers in a row that died at once, none is started. The notes of done requests last as long: the fourth
/// would write over those of the last worker that lived (`pagestone-mount`, `once.rs`).
const MOST_AT_ONCE: u32 = 3;

/// How long a worker that takes over may take to be ready.
const START_TIME: Duration = Duration::from_secs(60);

/// The exit code of a program whose main thread has panicked.
const PANICKED: i32 = 101;

/// Signals that end a server. The supervisor takes them; the worker is told by a message.
const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// What a supervisor tells.
#[derive(Debug)]
pub enum Event {
    /// The first worker is ready.
    Ready,
    /// The worker was told to end, or says that it does.
    Ending,
    /// A worker has ended with this status, and another one is started.
    Restarting(ExitStatus),
    /// It cannot be started now; that is tried again.
    NotStarted(io::Error),
    /// It is ready, so long after the other ended.
    Restarted(Duration),
    /// One after the other has died at once, or was not started.
    GivenUp,
}

/// How a server ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The status of the last worker.
    pub status: ExitStatus,
    /// Whether any worker was ever ready.
    pub was_ready: bool,
}

/// A worker to be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// The first one.
    First,
    /// One that takes over, of the program as it is installed now.
    Later,
    /// One that takes over after that one has failed: of the program that this process runs, whatever has become of its file.
    LaterOfOurs,
}

/// Runs a server until a worker ends by itself. `command` makes the command line of a worker. `kept` is passed to each,
/// besides what they keep themselves.
///
/// # Errors
/// The system's, where a worker cannot be started.
pub fn supervise(
    kept: Vec<(String, OwnedFd)>,
    mut command: impl FnMut(Start) -> Command,
    mut tell: impl FnMut(Event),
) -> io::Result<Ended> {
    let signals = Signals::catch()?;
    let mut server = Server { kept: kept.into_iter().collect(), was_ready: false, survives: false, died: None };
    let (mut at_once, mut last) = (0, None);
    loop {
        let start = match (server.was_ready, at_once) {
            (false, _) => Start::First,
            (true, 0 | 1) => Start::Later,
            (true, _) => Start::LaterOfOurs,
        };
        let lived = match Running::start(command(start), &server.kept) {
            Ok(mut running) => {
                let status = running.watch(&mut server, &signals, &mut tell)?;
                last = Some(status);
                let died = status.signal().is_some() || matches!(status.code(), Some(RESTART | PANICKED));
                if running.ending || !server.survives || !died && server.died.is_none() {
                    return Ok(Ended { status, was_ready: server.was_ready });
                }
                tell(Event::Restarting(status));
                running.ready.is_some_and(|since| since.elapsed() >= AT_ONCE)
            }
            Err(e) if !server.survives => return Err(e),
            Err(e) => {
                tell(Event::NotStarted(e));
                false
            }
        };
        at_once = if lived { 0 } else { at_once + 1 };
        if let Some(status) = last.filter(|_| at_once >= MOST_AT_ONCE) {
            tell(Event::GivenUp);
            return Ok(Ended { status, was_ready: server.was_ready });
        }
        server.died = server.died.or(Some(Instant::now()));
        // The first at once; then 50, 100 ms.
        std::thread::sleep(Duration::from_millis(50) * at_once.saturating_sub(1));
    }
}

/// What outlives the workers.
struct Server {
    kept: BTreeMap<String, OwnedFd>,
    was_ready: bool,
    /// Another worker can take over.
    survives: bool,
    /// When a worker died, if none was ready since.
    died: Option<Instant>,
}

/// One worker.
struct Running {
    child: Child,
    link: Option<OwnedFd>,
    started: Instant,
    ready: Option<Instant>,
    ending: bool,
}

impl Running {
    fn start(mut command: Command, kept: &BTreeMap<String, OwnedFd>) -> io::Result<Running> {
        let (ours, its) = message::pair()?;
        let child = command.stdin(Stdio::from(its)).spawn()?;
        for (name, fd) in kept {
            // A worker that has ended already is seen as such.
            let _ = message::send(&ours, &Message::Keep(name.clone(), fd.as_fd().try_clone_to_owned()?));
        }
        let _ = message::send(&ours, &Message::AllSent { from: std::process::id() });
        Ok(Running { child, link: Some(ours), started: Instant::now(), ready: None, ending: false })
    }

    /// Returns when the worker has ended.
    fn watch(
        &mut self,
        server: &mut Server,
        signals: &Signals,
        tell: &mut impl FnMut(Event),
    ) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                // What it has sent before it ended.
                while self.link.is_some() {
                    self.receive(server, tell);
                }
                return Ok(status);
            }
            if server.was_ready && self.ready.is_none() && self.started.elapsed() > START_TIME {
                self.child.kill()?;
            }
            let link_ready = signals.wait(self.link.as_ref())?;
            if signals.take_ending() {
                self.stop(tell)?;
            }
            if link_ready {
                self.receive(server, tell);
            }
        }
    }

    /// Tells the worker to end. One that is not ready, and is told twice, may never be.
    fn stop(&mut self, tell: &mut impl FnMut(Event)) -> io::Result<()> {
        if self.ending && self.ready.is_none() {
            return self.child.kill();
        }
        self.ending = true;
        tell(Event::Ending);
        if let Some(link) = &self.link {
            // It may have ended.
            let _ = message::send(link, &Message::Stop);
        }
        Ok(())
    }

    /// Takes one message, or the end of all messages.
    fn receive(&mut self, server: &mut Server, tell: &mut impl FnMut(Event)) {
        let Some(link) = &self.link else { return };
        match message::receive(link) {
            Ok(Some(Message::Keep(name, fd))) => {
                server.kept.insert(name, fd);
            }
            Ok(Some(Message::Forget(name))) => _ = server.kept.remove(&name),
            Ok(Some(Message::Ready { survives })) => {
                server.survives = survives;
                self.ready = Some(Instant::now());
                match server.died.take() {
                    Some(died) => tell(Event::Restarted(died.elapsed())),
                    None if !server.was_ready => tell(Event::Ready),
                    None => {}
                }
                server.was_ready = true;
            }
            Ok(Some(Message::Ending)) => tell(Event::Ending),
            Ok(Some(Message::AllSent { .. } | Message::Stop)) => {}
            Ok(None) | Err(_) => self.link = None,
        }
    }
}

/// Signals as descriptors that become readable.
struct Signals {
    child: UnixStream,
    ending: Vec<UnixStream>,
}

impl Signals {
    fn catch() -> io::Result<Signals> {
        let catch = |signal| {
            let (ours, its) = UnixStream::pair()?;
            pipe::register(signal, its)?;
            ours.set_nonblocking(true)?;
            Ok::<_, io::Error>(ours)
        };
        // Sent by mistake, they would end what is to outlive all else.
        for signal in [SIGUSR1, SIGUSR2] {
            flag::register(signal, Arc::default())?;
        }
        let ending = ENDING.into_iter().map(catch).collect::<io::Result<_>>()?;
        Ok(Signals { child: catch(SIGCHLD)?, ending })
    }

    /// Waits for a signal, or for something on `link`, and returns whether that came. Looks about once a second anyway.
    fn wait(&self, link: Option<&OwnedFd>) -> io::Result<bool> {
        let mut all: Vec<PollFd<'_>> = vec![PollFd::new(&self.child, PollFlags::IN)];
        all.extend(self.ending.iter().map(|stream| PollFd::new(stream, PollFlags::IN)));
        all.extend(link.map(|link| PollFd::new(link, PollFlags::IN)));
        match poll(&mut all, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let on_link = link.is_some() && all.last().is_some_and(|last| !last.revents().is_empty());
        drop(all);
        let mut bytes = [0; 64];
        // There may be none.
        let _ = (&self.child).read(&mut bytes);
        Ok(on_link)
    }

    /// Whether a signal has arrived that ends a server.
    fn take_ending(&self) -> bool {
        let mut byte = [0];
        self.ending.iter().any(|stream| {
            let mut stream: &UnixStream = stream;
            matches!(stream.read(&mut byte), Ok(1))
        })
    }
}
