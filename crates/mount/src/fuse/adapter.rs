//! Asking a [`FileSystem`], and turning its answers into replies; `requests.rs` has the requests.
//!
//! ```text
//!   request --> turn (who waits for the next one) --> ask (a panic is an I/O error) --> reply
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{
    Errno as FuseErrno, FileHandle, FopenFlags, Generation, INodeNo, Notifier, ReplyAttr, ReplyEmpty, ReplyEntry,
    ReplyXattr, Request, TimeOrNow,
};
use pagestone::inode::{Attr, NewNode, Time};
use pagestone::{FileType, Ino};

use super::convert::{file_attr, sent_time};
use super::once::{Once, number};
use crate::statistics::{Operation, Statistics};
use crate::thread_placement::ThreadPlacement;
use crate::transport::{Caller, Errno, FileSystem, Handle, NodeId, Options, PageCache, Reply, Written};

/// Generations are part of the node numbers.
pub(super) const GENERATION: Generation = Generation(0);

/// The exit code of a program that has panicked.
const PANICKED: i32 = 101;
/// See [`Adapter::may_leave`].
const LEAST_LIFE: Duration = Duration::from_millis(200);

const SET_GROUP_ID: u32 = libc::S_ISGID;

#[derive(Debug)]
pub(super) struct Adapter<F> {
    pub(super) fs: Arc<F>,
    pub(super) placement: Option<ThreadPlacement>,
    pub(super) cache: Duration,
    pub(super) page_cache: PageCache,
    pub(super) open_flags: FopenFlags,
    notifier: KernelNotifier,
    /// For a mount that outlives this process.
    once: Option<Once>,
    /// Whether the kernel can send requests again.
    pub(super) resends: Arc<AtomicBool>,
    pub(super) statistics: Arc<Statistics>,
    begun: Instant,
}

/// Sends notifications to the kernel. It is set when the mount stands.
pub(super) type KernelNotifier = Arc<OnceLock<Notifier>>;

pub(super) fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

pub(super) fn handle(fh: FileHandle) -> Handle {
    Handle(fh.0)
}

pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

pub(super) fn fuse(errno: Errno) -> FuseErrno {
    FuseErrno::from_i32(errno.0)
}

pub(super) fn empty(reply: ReplyEmpty, answer: Reply<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(fuse(e)),
    }
}

/// Attribute values and lists are asked for twice: with size 0 for their length, then for the
/// bytes.
pub(super) fn sized(reply: ReplyXattr, size: u32, answer: Reply<Vec<u8>>) {
    match answer {
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(FuseErrno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(e) => reply.error(fuse(e)),
    }
}

pub(super) fn chosen_time(time: Option<TimeOrNow>) -> Option<Time> {
    time.map(|t| match t {
        TimeOrNow::Now => Time::now(),
        TimeOrNow::SpecificTime(t) => sent_time(t),
    })
}

/// How the kernel treats an open file. What it has in its page cache stays there over a close: what changes
/// in another way than through the mount is invalidated.
fn open_flags(page_cache: PageCache) -> FopenFlags {
    match page_cache {
        // Reads and writes go past the page cache, several writers at once.
        PageCache::Off => {
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
        }
        PageCache::Read | PageCache::Writeback => FopenFlags::FOPEN_KEEP_CACHE,
    }
}

impl<F: FileSystem> Adapter<F> {
    pub(super) fn new(
        fs: Arc<F>,
        placement: Option<ThreadPlacement>,
        options: &Options,
        once: Option<Once>,
        statistics: Arc<Statistics>,
    ) -> Adapter<F> {
        let &Options { cache, page_cache, .. } = options;
        let open_flags = open_flags(page_cache);
        let (notifier, resends) = (KernelNotifier::default(), Arc::default());
        Adapter {
            fs,
            placement,
            cache,
            page_cache,
            open_flags,
            notifier,
            once,
            resends,
            statistics,
            begun: Instant::now(),
        }
    }

    pub(super) fn notifier(&self) -> KernelNotifier {
        self.notifier.clone()
    }

    /// Invalidates what the kernel has cached and a write has changed.
    pub(super) fn changed(&self, req: &Request, ino: INodeNo, written: Written) {
        // A process before this one may have taken them away, and died before it said so.
        if written == Written::BytesAndMode || number(req).again {
            self.mode_changed(ino);
        }
    }

    /// A write has cleared set-id bits. This is the only change that the kernel does not know of. An offset below
    /// zero means "the attributes, not the data".
    #[cold]
    fn mode_changed(&self, ino: INodeNo) {
        if let Some(notifier) = self.notifier.get() {
            // A kernel that cannot forget them will ask again when they are too old.
            let _ = notifier.inval_inode(ino, -1, 0);
        }
    }

    /// Calls the filesystem. After a panic in it, a mount that outlives this process goes on in another one, and the
    /// request is tried once more there. Otherwise a panic is an I/O error for one caller, and the server thread goes on.
    pub(super) fn ask<T>(&self, req: &Request, operation: Operation, call: impl FnOnce(&F) -> Reply<T>) -> Reply<T> {
        if let Some(placement) = &self.placement {
            placement.bind_current_thread();
        }
        let begun = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| call(&self.fs)));
        let failed = match &answer {
            Ok(Err(Errno(libc::ENOENT))) => operation != Operation::Lookup,
            Ok(Err(Errno(libc::ENODATA))) => operation != Operation::Xattr,
            answer => !matches!(answer, Ok(Ok(_))),
        };
        self.statistics.count(operation, begun.elapsed(), failed);
        if answer.is_err() && self.may_leave(req) {
            // Without a dump of all that is mapped, which could take minutes.
            // SAFETY: it does not return; nothing of this process has to be written.
            unsafe { libc::_exit(PANICKED) };
        }
        answer.unwrap_or(Err(Errno(libc::EIO)))
    }

    /// Whether another process may take over because of a panic: one that lives for less than this counts as one that
    /// cannot, and a request that was tried twice is an error.
    fn may_leave(&self, req: &Request) -> bool {
        let old_enough = self.begun.elapsed() >= LEAST_LIFE;
        self.once.is_some() && self.resends.load(Ordering::Acquire) && old_enough && !number(req).again
    }

    /// As [`Adapter::ask`], for a change that has another result the second time. `done` answers a request that a process
    /// before this one has done, by the node that it made.
    pub(super) fn once<T>(
        &self,
        req: &Request,
        operation: Operation,
        change: impl FnOnce(&F) -> Reply<T>,
        done: impl FnOnce(&F, Option<NodeId>) -> Reply<T>,
    ) -> Reply<T> {
        let Some(once) = &self.once else { return self.ask(req, operation, change) };
        match once.done(req) {
            Some(made) => self.ask(req, operation, |fs| done(fs, made)),
            None => self.ask(req, operation, |fs| once.noting(req, || change(fs))),
        }
    }

    /// To be kept until the request has been answered; the placement then decides which thread waits for the next.
    pub(super) fn guard(&self, req: &Request) -> RequestGuard<'_> {
        RequestGuard { placement: self.placement.as_ref(), client: req.pid() }
    }

    /// Call this before a request that may be slow.
    pub(super) fn slow(&self) {
        if let Some(placement) = &self.placement {
            placement.wake_all();
        }
    }

    pub(super) fn entry(&self, reply: ReplyEntry, answer: Reply<Attr>) {
        match answer {
            Ok(attr) => reply.entry(&self.cache, &file_attr(&attr), GENERATION),
            Err(e) => reply.error(fuse(e)),
        }
    }

    pub(super) fn attr(&self, reply: ReplyAttr, answer: Reply<Attr>) {
        match answer {
            Ok(attr) => reply.attr(&self.cache, &file_attr(&attr)),
            Err(e) => reply.error(fuse(e)),
        }
    }

    /// Owner and mode of a new node: in a set-group-id directory it gets the directory's group,
    /// and a directory the bit as well.
    pub(super) fn owned<'a>(&self, fs: &F, req: &Request, parent: NodeId, mut new: NewNode<'a>) -> Reply<NewNode<'a>> {
        let parent = fs.getattr(parent, None)?;
        new.uid = req.uid();
        new.gid = req.gid();
        if parent.perm & SET_GROUP_ID != 0 {
            new.gid = parent.gid;
            if new.kind == FileType::Dir {
                new.perm |= SET_GROUP_ID;
            }
        }
        Ok(new)
    }

    pub(super) fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, new: NewNode<'_>) -> Reply<Attr> {
        let make = |fs: &F| {
            let new = self.owned(fs, req, node(parent), new)?;
            fs.make(node(parent), name.as_bytes(), &new)
        };
        self.once(req, Operation::Make, make, |fs, made| fs.getattr(made.ok_or(Errno(libc::EIO))?, None))
    }
}

/// One request of a frequent kind, from its arrival until it has been answered.
pub(super) struct RequestGuard<'a> {
    placement: Option<&'a ThreadPlacement>,
    client: u32,
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        if let Some(placement) = self.placement {
            placement.request_answered(self.client);
        }
    }
}

/// What stands for "no such name, and you may remember that".
pub(super) fn absent() -> Attr {
    let mut attr = Attr::new(Ino(0), FileType::File, 0, Time::default());
    attr.nlink = 0;
    attr
}
