//! The seam between a mount's transport and what is mounted: requests and replies, independent of FUSE.
//!
//! ```text
//!    Transport::serve(fs, dir, options) -> Mounted -> wait
//!        |  calls, from several threads at once
//!        v
//!    FileSystem   lookup, read, write, ... -> Reply<T>
//! ```
//!
//! Every operation takes borrowed arguments and returns a value, so nothing is allocated on the
//! way; bytes that are read are handed to a callback while they still lie in the pool.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagestone::inode::{Attr, NewNode, RenameMode, SetAttr, XattrMode};
use pagestone::{FileType, StatFs};

use crate::mountpoint::{self, MountError};
use crate::mounts;
use crate::statistics::Statistics;

/// What a C program would find in `errno`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl From<pagestone::Error> for Errno {
    fn from(error: pagestone::Error) -> Errno {
        let number = error.errno();
        if number == libc::EIO {
            say(&error);
        }
        Errno(number)
    }
}

/// Says what the program on the mount cannot be told: to it, all these are "input/output error". At most ten a second.
fn say(error: &pagestone::Error) {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = BEGUN.get_or_init(Instant::now).elapsed().as_millis() as u64;
    let next = NEXT.load(Ordering::Relaxed);
    if now >= next && NEXT.compare_exchange(next, now + 100, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        tracing::error!("{error}");
    }
}

/// The answer to an operation.
pub type Reply<T> = Result<T, Errno>;

/// A file as the transport numbers it; the root is always [`NodeId::ROOT`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The directory that is mounted.
    pub const ROOT: NodeId = NodeId(1);
}

/// An open file, as a [`FileSystem`] numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(pub u64);

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread, which waits for the answer; 0 if this process cannot see it.
    pub pid: u32,
}

/// The number of a request. No two requests of a mount have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RequestNumber {
    /// The number.
    pub number: u64,
    /// The request was passed to a process before this one, which died before it was answered.
    pub again: bool,
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenHow {
    /// The request that asks for it.
    pub request: RequestNumber,
    /// The new file must not exist yet (`O_EXCL`).
    pub exclusive: bool,
    /// Cut to nothing (`O_TRUNC`).
    pub truncate: bool,
}

/// What else a write has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteHow {
    /// Take away set-user-id and set-group-id: whoever writes is not entitled to keep them.
    pub kill_set_id: bool,
    /// The kernel writes back what was stored through a mapping, or with [`PageCache::Writeback`] written, some time ago.
    pub from_mapping: bool,
    /// Who writes.
    pub caller: Caller,
}

/// What a change of a file's contents has done besides that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// Nothing.
    Bytes,
    /// It has taken mode bits away (see [`WriteHow::kill_set_id`]).
    BytesAndMode,
}

/// What to do to a range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallocate {
    /// Give it storage.
    Allocate {
        /// The length stays as it is.
        keep_size: bool,
    },
    /// Take its storage away.
    Punch,
    /// Make it zeros with storage.
    Zero {
        /// The length stays as it is.
        keep_size: bool,
    },
}

/// What to look for in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// The next offset with storage.
    Data,
    /// The next offset without.
    Hole,
}

/// One entry of a directory that is being listed.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// What it names.
    pub node: NodeId,
    /// Its kind.
    pub kind: FileType,
    /// The name.
    pub name: &'a [u8],
    /// Where the listing goes on after this entry.
    pub cookie: u64,
    /// The attributes, where they were asked for; `ino` is the node.
    pub attr: Option<&'a Attr>,
}

const NOT_IMPLEMENTED: Errno = Errno(libc::ENOSYS);

/// What can be mounted. Operations run on several threads at once.
///
/// In every [`Attr`] that goes out, `ino` is the [`NodeId`]. Owners and modes have been checked by
/// the kernel before an operation arrives here. What is not overridden answers "not implemented".
#[allow(unused_variables)]
pub trait FileSystem: Send + Sync + 'static {
    /// Finds a name in a directory. `.` means the node itself, whatever its kind, and `..` the
    /// directory above: the kernel asks for these when a program comes with a file handle.
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Reply<Attr>;
    /// The attributes of a node.
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Reply<Attr>;
    /// The kernel no longer knows the node.
    fn forget(&self, node: NodeId) {}
    /// Changes attributes; answers the new ones.
    fn setattr(&self, node: NodeId, handle: Option<Handle>, change: &SetAttr, caller: Caller) -> Reply<Attr> {
        Err(NOT_IMPLEMENTED)
    }
    /// The target of a symbolic link.
    fn readlink(&self, node: NodeId) -> Reply<Vec<u8>> {
        Err(NOT_IMPLEMENTED)
    }
    /// Makes a file, directory, link or device.
    fn make(&self, parent: NodeId, name: &[u8], new: &NewNode<'_>) -> Reply<Attr> {
        Err(NOT_IMPLEMENTED)
    }
    /// Makes a regular file and opens it.
    fn create(&self, parent: NodeId, name: &[u8], new: &NewNode<'_>, how: OpenHow) -> Reply<(Attr, Handle)> {
        Err(NOT_IMPLEMENTED)
    }
    /// Gives a node another name.
    fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Reply<Attr> {
        Err(NOT_IMPLEMENTED)
    }
    /// Takes away a name of anything but a directory.
    fn unlink(&self, parent: NodeId, name: &[u8]) -> Reply<()> {
        Err(NOT_IMPLEMENTED)
    }
    /// Takes away an empty directory.
    fn rmdir(&self, parent: NodeId, name: &[u8]) -> Reply<()> {
        Err(NOT_IMPLEMENTED)
    }
    /// Gives what is called `name` another name.
    fn rename(&self, parent: NodeId, name: &[u8], to: NodeId, to_name: &[u8], mode: RenameMode) -> Reply<()> {
        Err(NOT_IMPLEMENTED)
    }
    /// As [`FileSystem::rename`] with [`RenameMode::Replace`], and leaves a character device 0, 0 at the old name.
    fn rename_with_whiteout(&self, parent: NodeId, name: &[u8], to: NodeId, to_name: &[u8]) -> Reply<()> {
        Err(Errno(libc::EINVAL))
    }
    /// Opens a regular file.
    fn open(&self, node: NodeId, how: OpenHow) -> Reply<Handle>;
    /// Closes it.
    fn release(&self, handle: Handle);
    /// Calls `send` once with up to `len` bytes, fewer only at end of file.
    fn read(&self, handle: Handle, offset: u64, len: u32, send: &mut dyn FnMut(&[u8])) -> Reply<()>;
    /// Writes all of `bytes`.
    fn write(&self, handle: Handle, offset: u64, bytes: &[u8], how: WriteHow) -> Reply<Written>;
    /// Durable on return: the open file's data and attributes.
    fn fsync(&self, handle: Handle) -> Reply<()> {
        Ok(())
    }
    /// Durable on return: the names in a directory.
    fn fsync_dir(&self, node: NodeId) -> Reply<()> {
        Ok(())
    }
    /// Calls `add` for each entry after `cookie` until it answers false.
    fn list(&self, node: NodeId, cookie: u64, attrs: bool, add: &mut dyn FnMut(&Listed<'_>) -> bool) -> Reply<()> {
        Err(NOT_IMPLEMENTED)
    }
    /// Space and inodes.
    fn statfs(&self) -> Reply<StatFs>;
    /// The value of an extended attribute.
    fn xattr(&self, node: NodeId, name: &[u8]) -> Reply<Vec<u8>> {
        Err(NOT_IMPLEMENTED)
    }
    /// Sets an extended attribute.
    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Reply<()> {
        Err(NOT_IMPLEMENTED)
    }
    /// Takes an extended attribute away.
    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Reply<()> {
        Err(NOT_IMPLEMENTED)
    }
    /// The names of the extended attributes that `caller` may see.
    fn xattrs(&self, node: NodeId, caller: Caller) -> Reply<Vec<Vec<u8>>> {
        Err(NOT_IMPLEMENTED)
    }
    /// Allocates, frees or zeroes a range.
    fn fallocate(&self, handle: Handle, offset: u64, len: u64, what: Fallocate, caller: Caller) -> Reply<Written> {
        Err(NOT_IMPLEMENTED)
    }
    /// Looks for data or a hole.
    fn seek(&self, handle: Handle, offset: u64, what: Seek) -> Reply<u64> {
        Err(NOT_IMPLEMENTED)
    }
    /// Copies `len` bytes at an offset of one open file to an offset of another; answers how much.
    fn copy(&self, from: (Handle, u64), to: (Handle, u64), len: u64, caller: Caller) -> Reply<(u32, Written)> {
        Err(NOT_IMPLEMENTED)
    }
}

/// What the kernel keeps of the bytes of files. Mapped pages it always keeps, in step with all else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PageCache {
    /// Nothing: every read and write comes here.
    #[default]
    Off,
    /// What was read and written. A read of that is answered by the kernel; every write comes here before it returns.
    Read,
    /// Writes too. They come here later: at fsync, at close, after some seconds, or when memory is short. What a program
    /// wrote and did not sync is lost with the machine, on all media.
    Writeback,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// What `mount` and `df` call the source.
    pub source: String,
    /// Refuse every change.
    pub read_only: bool,
    /// Users other than the one who mounts get in, as far as owners and modes let them.
    pub allow_other: bool,
    /// No program can be started from it.
    pub no_exec: bool,
    /// Device nodes in it are devices. Takes root.
    pub dev: bool,
    /// Programs in it may bear set-user-id and set-group-id bits, and capabilities. Takes root.
    pub suid: bool,
    /// Server threads; `None`: one for each processor this process may use, at least two.
    pub threads: Option<usize>,
    /// Bind each server thread to a processor; `None`: where there are two or more.
    pub pin: Option<bool>,
    /// How long the kernel may answer names and attributes by itself. It knows of every change that goes through the
    /// mount; who changes the pool by another way has to tell [`Mounted::kernel_cache`].
    pub cache: Duration,
    /// What it keeps of the bytes of files.
    pub page_cache: PageCache,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            source: "pagestone".into(),
            read_only: false,
            allow_other: false,
            no_exec: false,
            dev: false,
            suid: false,
            threads: None,
            pin: None,
            cache: Duration::from_secs(3600),
            page_cache: PageCache::default(),
        }
    }
}

impl Options {
    /// Whether this process may ask for all of this. Who may not would be mounted without it, silently.
    pub fn permitted(&self) -> Result<(), MountError> {
        let privileged = self.dev || self.suid;
        if privileged && !rustix::process::geteuid().is_root() { Err(MountError::OnlyRoot) } else { Ok(()) }
    }
}

/// What a mount needs to outlive the process that serves it.
#[derive(Debug)]
pub struct Survival {
    /// The mount as a client of its pool.
    pub client: u64,
    /// How many processes have served it before.
    pub generation: u32,
    /// Requests that those have done and may not have answered, by number, with the nodes they made.
    pub done: HashMap<u64, Option<NodeId>>,
    /// The connection of the process before: the mount stands, and the directory is absolute and not looked at. `None`
    /// mounts.
    pub connection: Option<OwnedFd>,
}

/// Passes the requests of the kernel on to a [`FileSystem`].
pub trait Transport {
    /// Mounts `fs` on the directory and serves it from threads of its own. With `survival`, a change that has another
    /// result the second time is done once, even if its request comes again.
    fn serve<F: FileSystem>(
        &self,
        fs: Arc<F>,
        dir: &Path,
        options: &Options,
        survival: Option<Survival>,
    ) -> Result<Mounted, MountError>;
}

/// What the kernel has cached of a mount. To be told after a change that did not go through the mount, with no lock of the
/// pool held: the kernel may wait for requests of the mount.
pub trait KernelCache: fmt::Debug + Send + Sync {
    /// The name in the directory leads somewhere else now, or nowhere. The directory's attributes have changed, too.
    fn name_changed(&self, dir: NodeId, name: &[u8]);
    /// The attributes of the node have changed; not its bytes.
    fn node_changed(&self, node: NodeId);
    /// The bytes of the node have changed, and its attributes.
    fn bytes_changed(&self, node: NodeId);
}

/// A mount that is being served. Dropping it unmounts (lazily, if it is busy).
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
    /// The number of the filesystem ([`crate::Mount::device`]); empty if it is not known.
    device: String,
    threads: usize,
    cache: Arc<dyn KernelCache>,
    connection: Option<OwnedFd>,
    /// Another process may serve the mount after this one.
    outlives: bool,
    statistics: Arc<Statistics>,
    server: Option<JoinHandle<io::Result<()>>>,
}

impl Mounted {
    pub(crate) fn new(
        dir: PathBuf,
        threads: usize,
        cache: Arc<dyn KernelCache>,
        connection: Option<OwnedFd>,
        statistics: Arc<Statistics>,
        server: JoinHandle<io::Result<()>>,
    ) -> Mounted {
        let device = mounts::mount_at(&dir).map_or(String::new(), |mount| mount.device);
        Mounted { dir, device, threads, cache, connection, outlives: false, statistics, server: Some(server) }
    }

    /// What has been counted since this process serves the mount.
    pub fn statistics(&self) -> Arc<Statistics> {
        self.statistics.clone()
    }

    /// What another process needs to serve the mount once this one is gone; taken out. `None` where the kernel has no
    /// way to send requests again. While a copy is open somewhere, the mount does not end with this process.
    /// Dropping this does not unmount any more, then.
    pub fn take_connection(&mut self) -> Option<OwnedFd> {
        self.outlives |= self.connection.is_some();
        self.connection.take()
    }

    /// For those who change what is mounted by another way.
    pub fn kernel_cache(&self) -> Arc<dyn KernelCache> {
        self.cache.clone()
    }
    /// Where it is mounted, as an absolute path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// The number of the filesystem, for the process that serves it after this one.
    pub fn device(&self) -> &str {
        &self.device
    }
    /// What a process before this one knows of the number. The first directory may not be mounted any more.
    pub fn set_device(&mut self, device: String) {
        self.device = device;
    }
    /// The directories on which it can be seen: where it was mounted, and on which it was shown too ([`crate::bind`]), in that
    /// order.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.dirs_later()()
    }
    /// What tells the same after this is gone.
    pub fn dirs_later(&self) -> impl Fn() -> Vec<PathBuf> + Send + Sync + use<> {
        let (device, dir) = (self.device.clone(), self.dir.clone());
        // Where the number is not known, the directory is.
        move || if device.is_empty() { vec![dir.clone()] } else { mounts::seen_on(&device) }
    }
    /// How many server threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }
    /// Returns when the filesystem has been unmounted and the last operation answered.
    pub fn wait(mut self) -> io::Result<()> {
        match self.server.take().map(JoinHandle::join) {
            Some(Ok(Err(e))) if mountpoint::is_dead(&e) => {
                // The kernel cut the connection: at an unmount while a request was on its way,
                // which is as good an end as any, or because somebody aborted it, which leaves a
                // dead mount behind.
                self.dirs().iter().try_for_each(|dir| mountpoint::clear_dead(dir))?;
                mountpoint::clear_dead(&self.dir)
            }
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(io::Error::other("a server thread of the mount panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(server) = self.server.take().filter(|_| !self.outlives) {
            // Whatever these answer, there is nobody left to tell.
            self.dirs().iter().rev().for_each(|dir| _ = mountpoint::unmount_lazily(dir));
            let _ = server.join();
        }
    }
}
