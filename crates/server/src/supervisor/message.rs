//! What supervisor and worker say to each other: one packet for each message, with at most one descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// One message.
#[derive(Debug)]
pub(super) enum Message {
    /// A descriptor that outlives the worker, by its name; in place of one that has the name already.
    Keep(String, OwnedFd),
    /// Nothing is kept under this name any more.
    Forget(String),
    /// To a worker: it has got all that is kept, from this process.
    AllSent {
        /// The supervisor.
        from: u32,
    },
    /// To a worker: it is to end. The second one means "at once".
    Stop,
    /// Of a worker: it serves.
    Ready {
        /// Another one could take over.
        survives: bool,
    },
    /// Of a worker: it is about to end by itself.
    Ending,
}

/// Longest message.
const LONGEST: usize = 128;

/// The two ends of a link.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

pub(super) fn send(link: &OwnedFd, message: &Message) -> io::Result<()> {
    let (text, fd) = match message {
        Message::Keep(name, fd) => (format!("keep {name}"), Some(fd.as_fd())),
        Message::Forget(name) => (format!("forget {name}"), None),
        Message::AllSent { from } => (format!("all {from}"), None),
        Message::Stop => ("stop".into(), None),
        Message::Ending => ("ending".into(), None),
        Message::Ready { survives: true } => ("ready survives".into(), None),
        Message::Ready { survives: false } => ("ready".into(), None),
    };
    if text.len() > LONGEST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(link, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message; `None` once the other end is closed.
pub(super) fn receive(link: &OwnedFd) -> io::Result<Option<Message>> {
    let mut bytes = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(link, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.flatten().next();
    let text = String::from_utf8_lossy(&bytes[..got.bytes]);
    Ok(Some(match (text.split_once(' ').unwrap_or((&*text, "")), fd) {
        (("", _), _) => return Ok(None),
        (("keep", name), Some(fd)) => Message::Keep(name.to_owned(), fd),
        (("forget", name), _) => Message::Forget(name.to_owned()),
        (("all", from), _) => Message::AllSent { from: from.parse().map_err(|_| io::ErrorKind::InvalidData)? },
        (("stop", _), _) => Message::Stop,
        (("ending", _), _) => Message::Ending,
        (("ready", how), _) => Message::Ready { survives: how == "survives" },
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }))
}
