//! Whole files in and out of a pool past the page cache: `import` and `export`.
//!
//! ```text
//!   import   file, device --STEP--> NAME.pagestone-import in the pool --> renamed
//!   export   file in the pool --STEP--> NAME.pagestone-export beside the target --> renamed; a device: in place
//! ```
//!
//! Holes are not moved. A copy that is interrupted stays under its own name, with a note of what it is a copy of and how far it
//! came; `resume` goes on from there if the source is still the same.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use pagestone::inode::{Attr, Dir, NewNode, Node, SetAttr, Time, XattrMode};
use pagestone::io::{DirectFile, Purpose};
use pagestone::{Error, File, FileType, PAGE_SIZE, Pool};
use rustix::fs::{FallocateFlags, SeekFrom, XattrFlags};

use crate::StoreError;
use crate::api::{Moved, TransferHow};
use crate::problem::{Code, Problem};
use crate::store::{Progress, Result};

/// Bytes moved between two looks at whether to go on: a copy is interrupted at multiples of it.
const STEP: u64 = 64 << 20;
/// Bytes compared at a time.
const COMPARED: usize = 1 << 20;
/// The note on a copy that is not complete.
const NOTE: &str = "user.pagestone.transfer";
const IMPORTED: &str = ".pagestone-import";
const EXPORTED: &str = ".pagestone-export";

/// Transfers cannot be cancelled in the middle of a step.
static GO_ON: AtomicBool = AtomicBool::new(false);

fn failed(path: &Path, e: io::Error) -> StoreError {
    Problem::of_path(path, &e).into()
}

fn refused(path: &Path, why: &str) -> StoreError {
    Problem::new(409, libc::EINVAL, Code::Failed, format!("{}: {why}", path.display())).into()
}

/// Refuses a path on the filesystem with this number, as which this process has the pool mounted: it would wait for itself.
pub(crate) fn check_elsewhere(mounted_as: Option<&str>, path: &Path) -> Result<()> {
    let above = || fs::metadata(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")));
    let Ok(meta) = fs::metadata(path).or_else(|_| above()) else { return Ok(()) };
    let device = format!("{}:{}", rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    match mounted_as {
        Some(ours) if ours == device => {
            Err(refused(path, "lies on the mount of the pool itself (use cp, or pagestone clone)"))
        }
        _ => Ok(()),
    }
}

/// Which of the two ends an error of a transfer belongs to: what the library says of the pool stays as it is.
fn of_source(path: &Path, e: Error) -> StoreError {
    match e {
        Error::Media(e) => failed(path, e),
        e => e.into(),
    }
}

/// The parts of a copy: where data are, in whole pages, none longer than [`STEP`] and none over a multiple of it.
fn step_end(at: u64, end: u64) -> u64 {
    end.min((at / STEP + 1) * STEP)
}

fn interrupted() -> StoreError {
    Error::Interrupted.into()
}

// ---- into the pool ---------------------------------------------------------------------------

/// A file or device of the system.
struct Outside {
    path: PathBuf,
    file: DirectFile,
    len: u64,
    is_device: bool,
    /// Changes when it does.
    identity: String,
    perm: u32,
    modified: Time,
}

impl Outside {
    fn open(path: &Path) -> Result<Outside> {
        let kind = fs::metadata(path).map_err(|e| failed(path, e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(refused(path, "neither a file nor a block device (pagestone put takes other things)"));
        }
        if pagestone::is_pool(path) && pagestone::pmem::holder(path).is_some() {
            return Err(refused(path, "is a pool in use, which changes while it is read"));
        }
        let file = DirectFile::open(path, Purpose::Read).map_err(|e| failed(path, e))?;
        let meta = file.file().metadata().map_err(|e| failed(path, e))?;
        let len = rustix::fs::seek(file.file(), SeekFrom::End(0)).map_err(|e| failed(path, e.into()))?;
        let is_device = meta.file_type().is_block_device();
        let identity = identity(&file).map_err(|e| failed(path, e))?;
        let modified = Time { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 };
        let perm = if is_device { 0o600 } else { meta.permissions().mode() & 0o777 };
        Ok(Outside { path: path.to_path_buf(), file, len, is_device, identity, perm, modified })
    }

    /// Fails if the file is not what it was when it was opened.
    fn check_unchanged(&self) -> Result<()> {
        match identity(&self.file) {
            Ok(now) if now == self.identity => Ok(()),
            Ok(_) => Err(refused(&self.path, "it was changed while it was read")),
            Err(e) => Err(failed(&self.path, e)),
        }
    }

    /// The first byte of data from `at` on, and the end of that data, in whole pages. `None`: nothing but a hole follows.
    fn data_from(&self, at: u64) -> Option<(u64, u64)> {
        if self.is_device {
            return (at < self.len).then_some((at, self.len));
        }
        let file = self.file.file();
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return None,
            // A filesystem that knows no holes.
            Err(_) => return (at < self.len).then_some((at, self.len)),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(self.len);
        let (data, end) = ((data / PAGE_SIZE * PAGE_SIZE).max(at), end.next_multiple_of(PAGE_SIZE).min(self.len));
        (data < self.len).then_some((data, end))
    }
}

/// Which file it is, and when it was changed. A device does not say when.
fn identity(file: &DirectFile) -> io::Result<String> {
    let meta = file.file().metadata()?;
    let (dev, ino, len) = (meta.dev(), meta.ino(), meta.len());
    Ok(format!("{dev:x}:{ino:x}:{:x}:{len}:{}.{}", meta.rdev(), meta.mtime(), meta.mtime_nsec()))
}

/// The name of a copy until it is complete.
pub(crate) fn partial_name(name: &[u8]) -> Vec<u8> {
    with_suffix(name, IMPORTED)
}

/// A name that is no longer than a name may be.
fn with_suffix(name: &[u8], suffix: &str) -> Vec<u8> {
    [&name[..name.len().min(255 - suffix.len())], suffix.as_bytes()].concat()
}

/// Copies a file or device of the system into the directory, under the partial name of `name`.
pub(crate) fn import(
    pool: &Pool,
    from: &Path,
    (dir, name): (&Dir, &[u8]),
    how: TransferHow,
    user: u32,
    progress: Progress<'_>,
) -> Result<Moved> {
    let source = Outside::open(from)?;
    if source.is_device && how.resume {
        return Err(refused(
            from,
            "a device does not say whether it was changed meanwhile: begin anew, without --resume",
        ));
    }
    if dir.lookup(name).is_ok_and(|attr| attr.kind == FileType::Dir) {
        return Err(Error::IsDirectory.into());
    }
    let partial = partial_name(name);
    let node = match dir.lookup(&partial).ok().filter(|_| how.resume) {
        Some(attr) if is_copy_of(&pool.node(attr.ino)?, &source, user) => pool.node(attr.ino)?,
        _ => begin(pool, dir, &partial, &source, user)?,
    };
    let file = node.open()?;
    let mut moved = Moved { bytes: source.len, resumed_at: file.attr()?.size, ..Moved::default() };
    let mut at = moved.resumed_at;
    while at < source.len {
        let data = source.data_from(at);
        let start = data.map_or(source.len, |(start, _)| start);
        if start > at {
            file.set_len(start)?;
            at = start;
        }
        if let Some((_, end)) = data.filter(|&(start, end)| start < end) {
            let end = step_end(at, end);
            file.extend_from(&source.file, at..end, &GO_ON).map_err(|e| of_source(from, e))?;
            moved.moved += end - at;
            at = end;
        }
        if progress(at / PAGE_SIZE, source.len.div_ceil(PAGE_SIZE)).is_break() {
            file.sync_all()?;
            return Err(interrupted());
        }
    }
    source.check_unchanged()?;
    file.sync_all()?;
    if how.verify {
        compare(&file, &source.file, &source.path, source.len, progress)?;
        source.check_unchanged()?;
        moved.verified = true;
    }
    node.remove_xattr(NOTE.as_bytes())?;
    node.set_attr(&SetAttr::new().perm(source.perm).mtime(source.modified))?;
    moved.direct = source.file.is_direct();
    Ok(moved)
}

/// An empty file with the note on it, in place of what has the name.
fn begin(pool: &Pool, dir: &Dir, partial: &[u8], source: &Outside, user: u32) -> Result<Node> {
    match dir.unlink(partial) {
        Err(Error::NotFound) | Ok(()) => {}
        Err(e) => return Err(e.into()),
    }
    let mut new = NewNode::new(FileType::File, 0o600);
    (new.uid, new.gid) = (user, if user == 0 { 0 } else { rustix::process::getegid().as_raw() });
    let node = pool.node(dir.create(partial, &new)?.ino)?;
    node.set_xattr(NOTE.as_bytes(), source.identity.as_bytes(), XattrMode::Set)?;
    Ok(node)
}

fn is_copy_of(node: &Node, source: &Outside, user: u32) -> bool {
    let is_ours = |attr: Attr| {
        let goes_on = attr.size.is_multiple_of(PAGE_SIZE) || attr.size == source.len;
        attr.kind == FileType::File && attr.uid == user && goes_on
    };
    node.xattr(NOTE.as_bytes()).is_ok_and(|note| note == source.identity.as_bytes()) && node.attr().is_ok_and(is_ours)
}

/// Compares what a file of the pool and one of the system have, which is to be the same.
fn compare(ours: &File, theirs: &DirectFile, path: &Path, len: u64, progress: Progress<'_>) -> Result<()> {
    let (mut a, mut b) = (vec![0; COMPARED], vec![0; COMPARED + PAGE_SIZE as usize]);
    // A direct read needs memory that begins with a page.
    let skip = b.as_ptr().align_offset(PAGE_SIZE as usize).min(PAGE_SIZE as usize);
    let b = &mut b[skip..];
    let mut at = 0;
    while at < len {
        let part = COMPARED.min((len - at) as usize);
        ours.read_exact_at(&mut a[..part], at)?;
        theirs.read_exact_at(&mut b[..part], at).map_err(|e| failed(path, e))?;
        if progress(at / PAGE_SIZE, len.div_ceil(PAGE_SIZE)).is_break() {
            return Err(interrupted());
        }
        if let Some(byte) = a[..part].iter().zip(&b[..part]).position(|(a, b)| a != b) {
            let text = format!("{}: the copy differs at byte {}", path.display(), at + byte as u64);
            return Err(Problem::new(409, libc::EIO, Code::Failed, text).into());
        }
        at += part as u64;
    }
    Ok(())
}

// ---- out of the pool -------------------------------------------------------------------------

/// Where an export goes.
struct Target {
    /// The file that is written: beside the target, or the device itself.
    path: PathBuf,
    file: DirectFile,
    is_device: bool,
    /// How far a copy of the same file came before.
    done: u64,
}

impl Target {
    fn open(to: &Path, identity: &str, len: u64, resume: bool) -> Result<Target> {
        let there = fs::metadata(to).ok();
        if there.as_ref().is_some_and(|meta| meta.is_dir()) {
            return Err(refused(to, "is a directory"));
        }
        if pagestone::is_pool(to) {
            return Err(refused(to, "is a pool; remove it first, if it is to be overwritten"));
        }
        let is_device = there.as_ref().is_some_and(|meta| meta.file_type().is_block_device());
        if there.as_ref().is_some_and(|meta| !meta.is_file()) && !is_device {
            return Err(refused(to, "neither a file nor a block device"));
        }
        if is_device && resume {
            return Err(refused(to, "a device does not say how far a copy came: begin anew, without --resume"));
        }
        let path = if is_device { to.to_path_buf() } else { beside(to)? };
        let file = match is_device {
            true => DirectFile::open(&path, Purpose::Write),
            false => partial(&path, resume),
        };
        let file = file.map_err(|e| failed(&path, e))?;
        let mut target = Target { path, file, is_device, done: 0 };
        if is_device {
            let size = rustix::fs::seek(target.file.file(), SeekFrom::End(0)).map_err(|e| failed(to, e.into()))?;
            if size < len {
                return Err(refused(to, &format!("has {size} bytes, and the file {len}")));
            }
            return Ok(target);
        }
        target.done = target.noted(identity).filter(|_| resume).unwrap_or(0);
        let start = target.file.file().set_len(target.done);
        start.map_err(|e| failed(&target.path, e))?;
        Ok(target)
    }

    /// How far a copy of the file came, if this is one.
    fn noted(&self, identity: &str) -> Option<u64> {
        let mut value = [0u8; 256];
        let len = rustix::fs::fgetxattr(self.file.file(), NOTE, &mut value).ok()?;
        let text = std::str::from_utf8(&value[..len]).ok()?;
        let done = text.strip_prefix(identity)?.strip_prefix(" ")?.parse().ok()?;
        let len = self.file.file().metadata().ok()?.len();
        (done <= len).then_some(done)
    }

    /// Notes that all up to `done` is durable. Without attributes there is no resume.
    fn note(&self, identity: &str, done: u64) -> Result<()> {
        if self.is_device {
            return Ok(());
        }
        self.file.file().sync_data().map_err(|e| failed(&self.path, e))?;
        let _ =
            rustix::fs::fsetxattr(self.file.file(), NOTE, format!("{identity} {done}").as_bytes(), XattrFlags::empty());
        Ok(())
    }

    /// Lets `[from, to)` read as zeros.
    fn hole(&self, from: u64, to: u64, progress: Progress<'_>) -> Result<()> {
        // A new file has nothing there.
        if !self.is_device || from == to {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(self.file.file(), flags, from, to - from).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; COMPARED];
        let mut at = from;
        while at < to {
            let part = COMPARED.min((to - at) as usize);
            let done = std::os::unix::fs::FileExt::write_all_at(self.file.file(), &zeros[..part], at);
            done.map_err(|e| failed(&self.path, e))?;
            at += part as u64;
            if progress(at / PAGE_SIZE, to.div_ceil(PAGE_SIZE)).is_break() {
                return Err(interrupted());
            }
        }
        Ok(())
    }

    /// A device has its length.
    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.is_device { Ok(()) } else { self.file.file().set_len(len) }
    }

    /// Gives the copy its length and its name.
    fn finish(&self, to: &Path, len: u64, perm: u32) -> Result<()> {
        let end = || {
            if self.is_device {
                return self.file.file().sync_data();
            }
            self.set_len(len)?;
            let _ = rustix::fs::fremovexattr(self.file.file(), NOTE);
            self.file.file().set_permissions(fs::Permissions::from_mode(perm))?;
            self.file.file().sync_all()?;
            let (ours, named) = (self.file.file().metadata()?, fs::symlink_metadata(&self.path)?);
            if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
                return Err(io::Error::other("another copy to the same place has begun"));
            }
            fs::rename(&self.path, to)?;
            let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(dir)?.sync_all()
        };
        end().map_err(|e| failed(to, e))
    }
}

/// The file of a copy: the one of an interrupted copy of ours, or a new one. Others may write to the directory.
fn partial(path: &Path, resume: bool) -> io::Result<DirectFile> {
    if resume && let Ok(file) = DirectFile::open(path, Purpose::Write) {
        let meta = file.file().metadata()?;
        if meta.is_file() && meta.nlink() == 1 && meta.uid() == rustix::process::geteuid().as_raw() {
            return Ok(file);
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    DirectFile::open(path, Purpose::Create)
}

fn beside(to: &Path) -> Result<PathBuf> {
    let name = to.file_name().ok_or_else(|| refused(to, "is a directory"))?;
    Ok(to.with_file_name(OsStr::from_bytes(&with_suffix(name.as_bytes(), EXPORTED))))
}

/// Copies a file of the pool to a file of the system, which it replaces when it is complete, or onto a block device.
pub(crate) fn export(
    pool: &Pool,
    (from, to): (&[u8], &Path),
    how: TransferHow,
    progress: Progress<'_>,
) -> Result<Moved> {
    let node = pool.resolve(from)?;
    let attr = node.attr()?;
    if attr.kind == FileType::Dir {
        return Err(Error::IsDirectory.into());
    }
    // What others change from now on is not in the copy, and they do not wait for it.
    let file = frozen(pool, &node.open()?).unwrap_or(node.open()?);
    let len = attr.size.min(file.attr()?.size);
    let uuid = pool.info()?.uuid;
    let identity = format!("{uuid}:{:x}:{len}:{}.{}", attr.ino.0, attr.mtime.sec, attr.mtime.nsec);
    let target = Target::open(to, &identity, len, how.resume)?;
    let moved = write_out(&file, &target, &identity, (len, how.verify), progress);
    if !how.resume && !target.is_device && moved.as_ref().is_err_and(|e| e.errno() != libc::EINTR) {
        // The error does not name it, so it must not stay.
        let _ = fs::remove_file(&target.path);
    }
    let moved = moved?;
    target.finish(to, len, attr.perm & 0o777)?;
    Ok(moved)
}

/// A clone that nobody else has, and that has no name: it is freed when it is closed.
fn frozen(pool: &Pool, file: &File) -> pagestone::Result<File> {
    let (root, name) = (pool.root(), format!(".pagestone-export-{}-{:x}", std::process::id(), file.ino().0));
    let clone = pool.node(root.create(name.as_bytes(), &NewNode::new(FileType::File, 0o600))?.ino)?.open()?;
    root.unlink(name.as_bytes())?;
    clone.clone_from_file(file)?;
    Ok(clone)
}

/// Writes all of the file from where the copy came to.
fn write_out(
    file: &File,
    target: &Target,
    identity: &str,
    (len, verify): (u64, bool),
    progress: Progress<'_>,
) -> Result<Moved> {
    let mut moved = Moved { bytes: len, resumed_at: target.done, ..Moved::default() };
    let mut at = target.done;
    while at < len {
        let end = step_end(at, len);
        let extents = file.pinned_extents(at..end)?;
        let mut behind = at;
        for extent in extents.iter() {
            target.hole(behind, extent.offset, progress)?;
            behind = extent.offset + extent.len;
            moved.moved += extent.len;
        }
        target.hole(behind, end, progress)?;
        extents.write_to(&target.file, 0, &GO_ON).map_err(|e| of_source(&target.path, e))?;
        at = end;
        let stops = progress(at / PAGE_SIZE, len.div_ceil(PAGE_SIZE)).is_break();
        if stops || at.is_multiple_of(16 * STEP) {
            target.note(identity, at)?;
        }
        if stops {
            return Err(interrupted());
        }
    }
    if verify {
        target.set_len(len).map_err(|e| failed(&target.path, e))?;
        compare(file, &target.file, &target.path, len, progress)?;
        moved.verified = true;
    }
    moved.direct = target.file.is_direct();
    Ok(moved)
}
