//! Each FUSE request as one call of a [`FileSystem`].
//!
//! Nothing is decided here that a pool would have to know; what is decided is how FUSE's requests
//! read: which flags mean what, how attribute sizes are asked for.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileHandle, Filesystem, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use pagestone::FileType;
use pagestone::inode::{NewNode, RenameMode, SetAttr, XattrMode};

use super::convert::{file_attr, file_type, sent_time};
use crate::statistics::Operation;
use crate::transport::{Errno, Fallocate, FileSystem, NodeId, OpenHow, Reply, Seek, WriteHow};

use super::adapter::{Adapter, GENERATION, absent, caller, chosen_time, empty, fuse, handle, node, sized};
use super::once::number;

/// The answer to a request that has been done: it made no node.
fn was_done<F>(_: &F, _: Option<NodeId>) -> Reply<()> {
    Ok(())
}

impl<F: FileSystem> Filesystem for Adapter<F> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        super::agree(config, self.page_cache);
        self.resends.store(config.capabilities().contains(InitFlags::FUSE_HAS_RESEND), Ordering::Release);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _guard = self.guard(req);
        let answer = match self.ask(req, Operation::Lookup, |fs| fs.lookup(node(parent), name.as_bytes())) {
            Err(Errno(libc::ENOENT)) => Ok(absent()),
            answer => answer,
        };
        self.entry(reply, answer);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        self.fs.forget(node(ino));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _guard = self.guard(req);
        self.attr(reply, self.ask(req, Operation::GetAttr, |fs| fs.getattr(node(ino), fh.map(handle))));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.slow();
        let mut change = SetAttr::new();
        change.perm = mode.map(|mode| mode & 0o7777);
        (change.uid, change.gid, change.size) = (uid, gid, size);
        (change.atime, change.mtime, change.ctime) = (chosen_time(atime), chosen_time(mtime), ctime.map(sent_time));
        self.attr(
            reply,
            self.ask(req, Operation::SetAttr, |fs| fs.setattr(node(ino), fh.map(handle), &change, caller(req))),
        );
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.ask(req, Operation::ReadLink, |fs| fs.readlink(node(ino))) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(fuse(e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let answer = match FileType::from_mode(mode) {
            Some(kind) => {
                let device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
                let rdev = if device { rdev.into() } else { 0 };
                self.make(req, parent, name, NewNode::new(kind, mode & 0o7777).rdev(rdev))
            }
            None => Err(Errno(libc::EINVAL)),
        };
        self.entry(reply, answer);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let _guard = self.guard(req);
        self.entry(reply, self.make(req, parent, name, NewNode::new(FileType::Dir, mode & 0o7777)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        self.entry(reply, self.make(req, parent, name, NewNode::new(FileType::Symlink, 0o777).target(target)));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _guard = self.guard(req);
        let (exclusive, truncate) = (flags & libc::O_EXCL != 0, flags & libc::O_TRUNC != 0);
        let how = OpenHow { request: number(req), exclusive, truncate };
        let create = |fs: &F| {
            let new = self.owned(fs, req, node(parent), NewNode::new(FileType::File, mode & 0o7777))?;
            fs.create(node(parent), name.as_bytes(), &new, how)
        };
        let open = |fs: &F, made: Option<NodeId>| {
            let made = made.ok_or(Errno(libc::EIO))?;
            let handle = fs.open(made, OpenHow { truncate: false, ..how })?;
            Ok((fs.getattr(made, Some(handle))?, handle))
        };
        let answer = self.once(req, Operation::Create, create, open);
        match answer {
            Ok((attr, handle)) => {
                reply.created(&self.cache, &file_attr(&attr), GENERATION, FileHandle(handle.0), self.open_flags);
            }
            Err(e) => reply.error(fuse(e)),
        }
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let link = |fs: &F| fs.link(node(ino), node(newparent), newname.as_bytes());
        self.entry(reply, self.once(req, Operation::Link, link, |fs, _| fs.getattr(node(ino), None)));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _guard = self.guard(req);
        empty(reply, self.once(req, Operation::Remove, |fs| fs.unlink(node(parent), name.as_bytes()), was_done));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.once(req, Operation::Remove, |fs| fs.rmdir(node(parent), name.as_bytes()), was_done));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (node(parent), node(newparent));
        let mode = match flags.bits() {
            libc::RENAME_WHITEOUT => {
                let whiteout = |fs: &F| fs.rename_with_whiteout(from, name.as_bytes(), to, newname.as_bytes());
                return empty(reply, self.once(req, Operation::Rename, whiteout, was_done));
            }
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(FuseErrno::EINVAL),
        };
        let rename = |fs: &F| fs.rename(from, name.as_bytes(), to, newname.as_bytes(), mode);
        empty(reply, self.once(req, Operation::Rename, rename, was_done));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _guard = self.guard(req);
        let how = OpenHow { request: number(req), exclusive: false, truncate: flags.0 & libc::O_TRUNC != 0 };
        match self.ask(req, Operation::Open, |fs| fs.open(node(ino), how)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), self.open_flags),
            Err(e) => reply.error(fuse(e)),
        }
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _guard = self.guard(req);
        let mut reply = Some(reply);
        let answer = self.ask(req, Operation::Read, |fs| {
            fs.read(handle(fh), offset, size, &mut |bytes| {
                if let Some(reply) = reply.take() {
                    self.statistics.count_read(bytes.len() as u64);
                    reply.data(bytes);
                }
            })
        });
        if let Some(reply) = reply {
            reply.error(fuse(answer.err().unwrap_or(Errno(libc::EIO))));
        }
    }

    /// `offset` is right for a file that is opened for appending as well: the kernel lets one
    /// appender in at a time and knows the length, because every change of it goes through here.
    /// (Appending by the pool's own length would put the pieces of one large asynchronous write
    /// in the order in which they happen to arrive.)
    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _guard = self.guard(req);
        let how = WriteHow {
            kill_set_id: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            from_mapping: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            caller: caller(req),
        };
        match self.ask(req, Operation::Write, |fs| fs.write(handle(fh), offset, data, how)) {
            Ok(written) => {
                self.changed(req, ino, written);
                self.statistics.count_written(data.len() as u64);
                reply.written(data.len() as u32);
            }
            Err(e) => reply.error(fuse(e)),
        }
    }

    /// Nothing is held back, so the kernel need not ask again (it does not after `ENOSYS`).
    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(FuseErrno::ENOSYS);
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _guard = self.guard(req);
        let answer = self.ask(req, Operation::Release, |fs| {
            fs.release(handle(fh));
            Ok(())
        });
        empty(reply, answer);
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.slow();
        empty(reply, self.ask(req, Operation::Sync, |fs| fs.fsync(handle(fh))));
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.slow();
        empty(reply, self.ask(req, Operation::Sync, |fs| fs.fsync_dir(node(ino))));
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let answer = self.ask(req, Operation::List, |fs| {
            fs.list(node(ino), offset, false, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                !reply.add(INodeNo(entry.node.0), entry.cookie, file_type(entry.kind), name)
            })
        });
        match answer {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(fuse(e)),
        }
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let answer = self.ask(req, Operation::List, |fs| {
            fs.list(node(ino), offset, true, &mut |entry| {
                let Some(attr) = entry.attr else { return true };
                let name = OsStr::from_bytes(entry.name);
                let ino = INodeNo(entry.node.0);
                !reply.add(ino, entry.cookie, name, &self.cache, &file_attr(attr), GENERATION)
            })
        });
        match answer {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(fuse(e)),
        }
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        /// Inode records in a page: as many files could still be made, if they were empty.
        const INODES_PER_PAGE: u64 = 16;
        const PAGE: u32 = pagestone::PAGE_SIZE as u32;
        match self.ask(req, Operation::StatFs, F::statfs) {
            Ok(s) => {
                let more = s.available.saturating_mul(INODES_PER_PAGE);
                let files = s.inodes.saturating_add(more);
                reply.statfs(s.pages, s.free, s.available, files, more, PAGE, 255, PAGE);
            }
            Err(e) => reply.error(fuse(e)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(FuseErrno::EINVAL),
        };
        let set = |fs: &F| fs.set_xattr(node(ino), name.as_bytes(), value, mode);
        empty(reply, self.once(req, Operation::Xattr, set, was_done));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _guard = self.guard(req);
        sized(reply, size, self.ask(req, Operation::Xattr, |fs| fs.xattr(node(ino), name.as_bytes())));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.ask(req, Operation::Xattr, |fs| fs.xattrs(node(ino), caller(req)));
        sized(reply, size, names.map(|names| names.into_iter().flat_map(|name| [name, vec![0]].concat()).collect()));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.once(req, Operation::Xattr, |fs| fs.remove_xattr(node(ino), name.as_bytes()), was_done));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.slow();
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        let what = match mode {
            0 => Fallocate::Allocate { keep_size: false },
            KEEP => Fallocate::Allocate { keep_size: true },
            PUNCH => Fallocate::Punch,
            ZERO => Fallocate::Zero { keep_size: false },
            ZERO_KEEP => Fallocate::Zero { keep_size: true },
            _ => return reply.error(FuseErrno::EOPNOTSUPP),
        };
        let answer =
            self.ask(req, Operation::Allocate, |fs| fs.fallocate(handle(fh), offset, length, what, caller(req)));
        empty(reply, answer.map(|written| self.changed(req, ino, written)));
    }

    fn lseek(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(FuseErrno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(FuseErrno::ENXIO) };
        match self.ask(req, Operation::Seek, |fs| fs.seek(handle(fh), offset, what)) {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(e) => reply.error(fuse(e)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.slow();
        let (from, to) = ((handle(fh_in), offset_in), (handle(fh_out), offset_out));
        match self.ask(req, Operation::Copy, |fs| fs.copy(from, to, len, caller(req))) {
            Ok((copied, written)) => {
                self.changed(req, ino_out, written);
                reply.written(copied);
            }
            Err(e) => reply.error(fuse(e)),
        }
    }
}
