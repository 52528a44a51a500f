//! Opening a path as media: detects the kind, locks the file, and determines the length.
//!
//! ```text
//!   path --> stat (before opening: an open of a fifo or a tape has side effects)
//!              |-- regular file --> open or create --> lock --> filesystem? --> tmpfs, hugetlbfs,
//!              |                                                  DAX file, ordinary file
//!              |-- block device --> open with O_EXCL --> lock --> ordinary file
//!              |-- device DAX ----> open --------------> lock --> device DAX
//!              `-- anything else: rejected, with its type
//! ```
//!
//! This never truncates or overwrites existing data. A file that it has created is removed again if it cannot be
//! used.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::{ByteMedia, FileMedia, MappedRange, Media, MediaKind, Persister, PoolLock, Share, pool_lock};
use crate::{Error, Result};
use crate::{HUGE_PAGE_SIZE, PAGE_SIZE};

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Options for opening media.
#[derive(Clone, Debug, Default)]
pub struct Open {
    /// Change nothing: stores stay in this process. Other processes may have the media open read-only too.
    pub read_only: bool,
    /// The kind of media; `None` detects it.
    pub kind: Option<MediaKind>,
    /// Size of the pool in bytes. Creates the file if it is missing and extends it if it is shorter; of a longer
    /// file, only this many bytes are used. `None` uses the whole file.
    pub size: Option<u64>,
    /// The least length that the media can have later, in bytes: address space is set aside for it. The media set aside
    /// more where that is not much, and nothing where so much is not available.
    pub room: u64,
    /// The lock, if the caller has it. `None` takes it.
    pub lock: Option<PoolLock>,
}

/// Open media, locked until the last clone of `media` is dropped.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The media.
    pub media: Arc<dyn Media>,
    /// Their length in bytes.
    pub len: u64,
    /// Whether this call has created the file.
    pub created: bool,
}

/// Opens the media at `path` with the options `how`.
///
/// # Errors
/// [`Error::InUse`] if another open holds the lock (also in this process); [`Error::NotFound`] if the path does not
/// exist and no size was given; [`Error::Size`] for an impossible size; otherwise [`Error::Path`] with the error of
/// the system.
pub fn open(path: &Path, how: &Open) -> Result<Opened> {
    match how.kind {
        Some(MediaKind::Memory | MediaKind::Simulator) => {
            return Err(Error::Invalid("this kind of media has no path to open"));
        }
        _ if how.read_only && how.size.is_some() => {
            return Err(Error::Invalid("a size is for making or lengthening a pool, not for reading one"));
        }
        _ => {}
    }
    let mut place = Place::find(path, how)?;
    // Lock before any change, and before the kind is detected.
    let locked = match &how.lock {
        Some(lock) => lock.check(&place.file, path),
        None => pool_lock::take(&place.file, path, how.read_only),
    };
    match locked.and_then(|()| place.finish(how)) {
        Ok(opened) => Ok(opened),
        Err(e) => {
            if place.created && !matches!(e, Error::InUse { .. }) {
                let _ = std::fs::remove_file(path);
            }
            Err(e)
        }
    }
}

/// Opens the file or device at `path` to lock it, without a change.
pub(super) fn open_to_lock(path: &Path) -> Result<File> {
    Ok(Place::find(path, &Open { read_only: true, ..Open::default() })?.file)
}

/// The type of the path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Regular,
    Block,
    DaxDevice,
}

/// An open path, before it becomes media.
struct Place {
    path: PathBuf,
    file: File,
    node: Node,
    created: bool,
}

impl Place {
    fn find(path: &Path, how: &Open) -> Result<Place> {
        let fail = |what| move |source: io::Error| Error::Path { what, path: path.to_path_buf(), source };
        let mut flags = if how.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        // NONBLOCK: if the path was replaced by a fifo meanwhile, the open must not block.
        flags |= OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let node = match std::fs::metadata(path) {
            Ok(meta) => Some(node(path, &meta)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail("cannot look at")(e)),
        };
        match (node, how.size) {
            (None, None) => return Err(Error::NotFound),
            // A missing device must not become a file in devtmpfs.
            (None, Some(_)) if is_dev(path) => {
                let why = io::Error::new(io::ErrorKind::NotFound, "there is no such device");
                return Err(fail("cannot make")(why));
            }
            (None, Some(_)) => flags |= OFlags::CREATE | OFlags::EXCL,
            // With O_EXCL a block device that is mounted or part of an array is rejected.
            (Some(Node::Block), _) if !how.read_only => flags |= OFlags::EXCL,
            _ => {}
        }
        let what = if node.is_none() { "cannot make" } else { "cannot open" };
        let file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => File::from(fd),
            Err(e) => return Err(whose(path).unwrap_or_else(|| fail(what)(e.into()))),
        };
        let meta = file.metadata().map_err(fail("cannot look at"))?;
        let opened_node = self::node(path, &meta)?;
        Ok(Place { path: path.to_path_buf(), file, node: opened_node, created: node.is_none() })
    }

    fn finish(&mut self, how: &Open) -> Result<Opened> {
        let (kind, unit) = self.kind(how)?;
        let len = self.fit(how, unit)?;
        if self.created {
            self.make_durable()?;
        }
        let file = self.file.try_clone().map_err(|e| self.fail("cannot open", e))?;
        let media: io::Result<Arc<dyn Media>> = match kind {
            MediaKind::File => FileMedia::new(file, len, how).map(|m| Arc::new(m) as Arc<dyn Media>),
            _ => ByteMedia::new(file, kind, (len, unit), how).map(|m| Arc::new(m) as Arc<dyn Media>),
        };
        let media = media.map_err(|e| {
            let what = match kind {
                MediaKind::Hugetlbfs => "cannot map (are enough huge pages set aside?)",
                MediaKind::DaxFile => "cannot map with MAP_SYNC",
                _ => "cannot map",
            };
            self.fail(what, e)
        })?;
        Ok(Opened { media, len, created: self.created })
    }

    /// The kind of media, and their page size.
    fn kind(&self, how: &Open) -> Result<(MediaKind, u64)> {
        let (found, unit) = match self.node {
            Node::DaxDevice => {
                (MediaKind::DaxDevice, self.dax_number("align").unwrap_or(HUGE_PAGE_SIZE).max(PAGE_SIZE))
            }
            Node::Block => (MediaKind::File, PAGE_SIZE),
            Node::Regular => self.filesystem(how.read_only)?,
        };
        if found == MediaKind::DaxDevice && !how.read_only && Persister::durable().is_none() {
            return Err(self.unfit("this processor has no known instruction that makes a store durable"));
        }
        match how.kind {
            None => Ok((found, unit)),
            Some(forced) if forced == found => Ok((found, unit)),
            // All files with a page cache, and tmpfs, can be written with `pwrite`.
            Some(MediaKind::File) if matches!(found, MediaKind::Tmpfs | MediaKind::DaxFile) => {
                Ok((MediaKind::File, unit))
            }
            Some(forced) => {
                Err(self.unfit(&format!("cannot be used as \"{forced}\": it is \"{found}\"{}", hint(forced))))
            }
        }
    }

    fn filesystem(&self, read_only: bool) -> Result<(MediaKind, u64)> {
        let about = rustix::fs::fstatfs(&self.file).map_err(|e| self.fail("cannot look at", e.into()))?;
        // The field's type differs between architectures; the magic numbers are 32 bits.
        match about.f_type as u64 & 0xffff_ffff {
            TMPFS_MAGIC => return Ok((MediaKind::Tmpfs, PAGE_SIZE)),
            HUGETLBFS_MAGIC => return Ok((MediaKind::Hugetlbfs, (about.f_bsize as u64).max(PAGE_SIZE))),
            _ => {}
        }
        // The kernel permits MAP_SYNC exactly where flushed stores are durable without a system call. virtio-pmem
        // has DAX but needs fsync, so it is treated as an ordinary file.
        let share = if read_only { Share::ReadOnlySync } else { Share::SharedSync };
        let granted = MappedRange::file(self.file.as_fd(), PAGE_SIZE, share).is_ok();
        let dax = granted && (read_only || Persister::durable().is_some());
        Ok((if dax { MediaKind::DaxFile } else { MediaKind::File }, PAGE_SIZE))
    }

    /// The length of the pool. Extends a file that is shorter than requested.
    fn fit(&self, how: &Open, unit: u64) -> Result<u64> {
        let there = self.current_len()?;
        let too_large = |size: u64| Error::Size(format!("{size} bytes are more than {} can have", self.path.display()));
        let Some(size) = how.size else {
            // A last partial unit cannot be mapped safely and is not used.
            let len = there / unit * unit;
            usize::try_from(len).map_err(|_| too_large(len))?;
            return if len > 0 { Ok(len) } else { Err(self.too_short(there)) };
        };
        if size == 0 {
            return Err(Error::Size(format!("a pool of 0 bytes was asked for at {}", self.path.display())));
        }
        let len = size.checked_next_multiple_of(unit).filter(|&len| len <= i64::MAX as u64);
        let len = len.ok_or_else(|| too_large(size))?;
        if len <= there {
            return Ok(len);
        }
        if self.node != Node::Regular {
            let text = format!("{size} bytes were asked for, but {} has {there}", self.path.display());
            return Err(Error::Size(text));
        }
        match rustix::fs::ftruncate(&self.file, len) {
            Ok(()) => Ok(len),
            Err(rustix::io::Errno::FBIG | rustix::io::Errno::INVAL) => Err(too_large(size)),
            Err(e) => Err(self.fail("cannot lengthen", e.into())),
        }
    }

    fn current_len(&self) -> Result<u64> {
        match self.node {
            Node::Regular => self.file.metadata().map(|meta| meta.len()),
            Node::Block => (&self.file).seek(SeekFrom::End(0)),
            Node::DaxDevice => self.dax_number("size"),
        }
        .map_err(|e| self.fail("cannot find the size of", e))
    }

    /// Makes the length and the name of a new file durable.
    fn make_durable(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| self.fail("cannot sync", e))?;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // If permissions do not allow opening or syncing the directory, continue without it.
        let _ = File::open(parent).and_then(|dir| dir.sync_all());
        Ok(())
    }

    /// A number from the sysfs directory of a DAX device.
    fn dax_number(&self, name: &str) -> io::Result<u64> {
        let text = std::fs::read_to_string(sys_char(self.file.metadata()?.rdev()).join(name))?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("its {name} reads {text:?}")))
    }

    fn too_short(&self, there: u64) -> Error {
        let path = self.path.display();
        match there {
            0 => Error::Size(format!("{path} is empty; give a size to make a pool there")),
            _ => Error::Size(format!("{path} has only {there} bytes")),
        }
    }

    fn fail(&self, what: &'static str, source: io::Error) -> Error {
        Error::Path { what, path: self.path.clone(), source }
    }

    fn unfit(&self, why: &str) -> Error {
        self.fail("cannot use", io::Error::new(io::ErrorKind::Unsupported, why.to_owned()))
    }
}

/// The error that names the process that has a pool open on a block device, if there is one.
fn whose(path: &Path) -> Option<Error> {
    std::fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device())?;
    let file = File::open(path).ok()?;
    pool_lock::take(&file, path, true).err().filter(|e| matches!(e, Error::InUse { .. }))
}

/// Whether a missing path would be the name of a device.
fn is_dev(path: &Path) -> bool {
    path.parent().and_then(|parent| parent.canonicalize().ok()).is_some_and(|parent| parent == Path::new("/dev"))
}

/// Advice for a user whose requested kind is not possible.
fn hint(forced: MediaKind) -> &'static str {
    match forced {
        MediaKind::DaxFile => " (the filesystem must be mounted with DAX on memory that takes MAP_SYNC)",
        MediaKind::DaxDevice => " (a namespace in devdax mode appears as /dev/daxN.M)",
        MediaKind::File => " (it takes no pwrite)",
        _ => "",
    }
}

/// The type of the path; a specific error if it cannot contain a pool.
fn node(path: &Path, meta: &std::fs::Metadata) -> Result<Node> {
    let kind = meta.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(Node::Regular),
        () if kind.is_block_device() => return Ok(Node::Block),
        () if kind.is_char_device() && is_dax(meta.rdev()) => return Ok(Node::DaxDevice),
        () if kind.is_char_device() => "it is a character device, and not a DAX device",
        () if kind.is_dir() => "it is a directory; a pool is a file or a device",
        () if kind.is_fifo() => "it is a fifo",
        () if kind.is_socket() => "it is a socket",
        () => "it is neither a file nor a device",
    };
    let kind = if kind.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::Unsupported };
    Err(Error::Path { what: "cannot use", path: path.to_path_buf(), source: io::Error::new(kind, what) })
}

fn sys_char(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/char/{}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
}

/// Whether a character device belongs to the kernel's dax subsystem.
fn is_dax(device: u64) -> bool {
    std::fs::read_link(sys_char(device).join("subsystem")).is_ok_and(|bus| bus.ends_with("dax"))
}
