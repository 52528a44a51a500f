//! The worker's end of the link to its supervisor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use signal_hook::flag;

use super::ENDING;
use super::message::{self, Message};

/// The exit code by which a worker asks for another one in its place.
pub const RESTART: i32 = 75;

/// A worker, as it sees its supervisor.
#[derive(Debug)]
pub struct Worker {
    link: Arc<OwnedFd>,
    kept: BTreeMap<String, OwnedFd>,
}

impl Worker {
    /// Gets what is kept, by the socket that is the standard input of this process. From now on the process is killed if
    /// its supervisor dies.
    ///
    /// # Errors
    /// The system's, for a process that no supervisor has started.
    pub fn begin() -> io::Result<Worker> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // A terminal, a service manager and `killall` send signals to both processes. The supervisor passes on what it
        // gets, once.
        for signal in ENDING {
            flag::register(signal, Arc::default())?;
        }
        let link = io::stdin().as_fd().try_clone_to_owned()?;
        let mut kept = BTreeMap::new();
        loop {
            match message::receive(&link)? {
                Some(Message::Keep(name, fd)) => _ = kept.insert(name, fd),
                // It may have died before the first line of this function: then nobody kills this process.
                Some(Message::AllSent { from }) if from == Worker::supervisor() => {
                    return Ok(Worker { link: Arc::new(link), kept });
                }
                Some(Message::Ready { .. } | Message::Forget(_) | Message::Ending | Message::Stop) => {}
                Some(Message::AllSent { .. }) | None => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the supervisor has ended"));
                }
            }
        }
    }

    /// The process of the supervisor, which users know as the server.
    pub fn supervisor() -> u32 {
        getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Takes out what is kept under a name: by the supervisor, or by a worker before this one.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.kept.remove(name)
    }

    /// See [`Keeper::keep`].
    ///
    /// # Errors
    /// The system's.
    pub fn keep(&self, name: &str, fd: impl AsFd) -> io::Result<()> {
        self.keeper().keep(name, fd)
    }

    /// What passes descriptors to the supervisor.
    pub fn keeper(&self) -> Keeper {
        Keeper(self.link.clone())
    }

    /// This worker is about to end by itself. What is said of the end is no reason not to end.
    pub fn ending(&self) {
        let _ = message::send(&self.link, &Message::Ending);
    }

    /// What says when this worker is to end.
    pub fn stops(&self) -> Stops {
        Stops(self.link.clone())
    }

    /// This worker serves. `survives`: all is kept that another one needs to take over.
    ///
    /// # Errors
    /// The system's.
    pub fn ready(&self, survives: bool) -> io::Result<()> {
        message::send(&self.link, &Message::Ready { survives })
    }
}

/// Passes descriptors to the supervisor.
#[derive(Clone, Debug)]
pub struct Keeper(Arc<OwnedFd>);

impl Keeper {
    /// Lets the supervisor keep a descriptor for the workers that follow, in place of one of that name.
    ///
    /// # Errors
    /// The system's.
    pub fn keep(&self, name: &str, fd: impl AsFd) -> io::Result<()> {
        message::send(&self.0, &Message::Keep(name.to_owned(), fd.as_fd().try_clone_to_owned()?))
    }

    /// Lets it close what it keeps under a name.
    ///
    /// # Errors
    /// The system's.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        message::send(&self.0, &Message::Forget(name.to_owned()))
    }
}

/// Requests of the supervisor to end.
#[derive(Debug)]
pub struct Stops(Arc<OwnedFd>);

impl Stops {
    /// Returns when the worker is asked to end: once more each time that a user does.
    pub fn wait(&self) {
        loop {
            match message::receive(&self.0) {
                Ok(Some(Message::Stop)) => return,
                Ok(Some(_)) => {}
                // The supervisor is gone, and this process with it.
                Ok(None) | Err(_) => std::thread::park(),
            }
        }
    }
}
