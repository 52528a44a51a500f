//! Serving a connection to the kernel that another process has set up.
//!
//! ```text
//!   Session <--- INIT ---- a socket of ours      the kernel sends INIT once, when it mounts
//!      |  ---- reply ----> (not read)
//!   its descriptor becomes a copy of the connection
//!      `--- RESEND -----> kernel: what was read and not answered comes again, first
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use fuser::{Config, InitFlags, Session};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::adapter::Adapter;
use crate::transport::FileSystem;

/// From `linux/fuse.h`.
const OP_INIT: u32 = 26;
const VERSION: (u32, u32) = (7, 42);
const NOTIFY_RESEND: i32 = 7;
const NOTIFY_INC_EPOCH: i32 = 8;

/// A session on `connection`. Before it reads a request, the kernel is told to send again what was not answered.
pub(super) fn session<F: FileSystem>(
    adapter: Adapter<F>,
    connection: OwnedFd,
    config: Config,
) -> io::Result<Session<Adapter<F>>> {
    let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    send(&ours, &init_request(), SendFlags::empty())?;
    let session = Session::from_fd(adapter, its, config.acl, config)?;
    // SAFETY: the descriptor stays the session's; from now on it is a copy of ours. Nobody else has its number.
    if unsafe { libc::dup3(connection.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut connection = File::from(connection);
    connection.write_all(&notification(NOTIFY_RESEND))?;
    // Names that another face has changed, of which the process before did not tell any more. Before Linux 6.16 the kernel
    // refuses this, and keeps names until they are too old.
    let _ = connection.write_all(&notification(NOTIFY_INC_EPOCH));
    Ok(session)
}

/// A header and the body of INIT: all that a kernel may offer.
fn init_request() -> Vec<u8> {
    let flags = InitFlags::all().bits() | InitFlags::FUSE_INIT_EXT.bits();
    let header: [u32; 10] = [104, OP_INIT, 1, 0, 0, 0, 0, 0, 0, 0];
    let mut body = [0; 16];
    body[..5].copy_from_slice(&[VERSION.0, VERSION.1, 128 << 10, flags as u32, (flags >> 32) as u32]);
    header.iter().chain(&body).flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

/// The header of a notification without a body.
fn notification(code: i32) -> Vec<u8> {
    let (len, number) = (16u32.to_ne_bytes(), 0u64.to_ne_bytes());
    [&len[..], &code.to_ne_bytes(), &number].concat()
}
