//! `pagestone mount --background` and `serve --background`: the server as a process of its own, from the moment it serves.
//!
//! ```text
//!   parent: start the server --> read its one line of JSON --> say so, exit 0
//!   server: leaves its caller    serves: prints the line      serves until the unmount
//!                                failed: says why, ends  ----> parent passes that on
//! ```
//!
//! What the server says goes to memory, not to a terminal or a pipe that may be gone by then.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long a server that has nothing more to say may take to end.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// How a server started.
pub(super) enum Started {
    /// It serves. It has printed this line.
    Ready { pid: u32, line: String },
    /// It ended with this code, after it said why.
    Ended(Option<i32>),
}

/// Starts a server with these arguments, and returns when it serves.
pub(super) fn start(arguments: &[OsString]) -> Result<Started> {
    let messages = memory().context("memory for the server's messages")?;
    let mut server = Command::new(std::env::current_exe().context("finding this program")?)
        // By this name others know it (`holder`), and not by one that mount(8) has for its helpers.
        .arg0("pagestone")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(messages.try_clone().context("starting the server")?))
        .spawn()
        .context("starting the server")?;
    let mut line = String::new();
    let stdout = server.stdout.take().context("starting the server")?;
    BufReader::new(stdout).read_line(&mut line).context("waiting for the server")?;
    pass_on(messages).context("standard error")?;
    if line.is_empty() {
        // The first worker died when all was ready, and another one goes on, which has nothing to say.
        if server.try_wait().context("waiting for the server")?.is_none() {
            std::thread::sleep(LAST_MOMENT);
        }
        if server.try_wait().context("waiting for the server")?.is_none() {
            return Ok(Started::Ready { pid: server.id(), line });
        }
        let status = server.wait().context("waiting for the server")?;
        return Ok(Started::Ended(status.code()));
    }
    Ok(Started::Ready { pid: server.id(), line })
}

/// The server leaves what it has of its caller: the session, and descriptors, on which others may wait (`$(...)`, a
/// lock) for as long as it lives. The first thing that it does.
pub(super) fn leave_session() -> io::Result<()> {
    rustix::process::setsid()?;
    // SAFETY: nothing in this process has opened a descriptor yet, beside the standard ones.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    match io::Error::last_os_error() {
        // Before Linux 5.9, or refused by a container: they stay.
        e if closed != 0 && !matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Err(e),
        _ => Ok(()),
    }
}

/// Leaves the working directory, which could not be unmounted, once the paths that the caller gave are open. What is
/// returned takes the place of the standard output. What can fail is done before the caller hears of success.
pub(super) fn leave_directory() -> io::Result<File> {
    std::env::set_current_dir("/")?;
    File::options().write(true).open("/dev/null")
}

/// Closes the pipe to the caller.
pub(super) fn close_output(null: &File) -> io::Result<()> {
    // SAFETY: the standard output of a process is nobody's own; whoever prints from now on does so to nothing.
    match unsafe { libc::dup2(null.as_raw_fd(), libc::STDOUT_FILENO) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn memory() -> io::Result<File> {
    let memory: OwnedFd = rustix::fs::memfd_create("messages", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(memory))
}

fn pass_on(mut messages: File) -> io::Result<()> {
    let mut text = String::new();
    // The server shares the offset, and goes on behind what is there.
    messages.rewind()?;
    messages.read_to_string(&mut text)?;
    eprint!("{text}");
    Ok(())
}
