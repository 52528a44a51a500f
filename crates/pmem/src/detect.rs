//! From a path to media: what lies there, whose it is, how long it is.
//!
//! ```text
//!   path --> look (before opening: an open of a fifo or a tape does things)
//!              |-- regular file --> open or make --> lock --> filesystem? --> tmpfs, hugetlbfs,
//!              |                                                  DAX file, ordinary file
//!              |-- block device --> open, alone ---> lock --> ordinary file
//!              |-- device DAX ----> open ----------> lock --> device DAX
//!              `-- anything else: refused, by name
//! ```
//!
//! Nothing that was there is ever shortened or overwritten here; a file that was made here is
//! removed again if it cannot be used.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::{ByteMedia, FileMedia, MappedRange, Media, MediaKind, Persister, Share, pool_lock};
use crate::{Error, Result};
use crate::{HUGE_PAGE_SIZE, PAGE_SIZE};

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// How to open media.
#[derive(Clone, Debug, Default)]
pub struct Open {
    /// Change nothing: what is stored stays in this process. Others may have it open read-only too.
    pub read_only: bool,
    /// Treat the path as this kind of media instead of finding out.
    pub kind: Option<MediaKind>,
    /// Bytes of the pool: makes the file if it is missing, and lengthens it if it is shorter; of
    /// what is longer, the first so many bytes are used. `None` takes all of what is there.
    pub size: Option<u64>,
}

/// Open media, locked until the last clone of `media` is gone.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The media.
    pub media: Arc<dyn Media>,
    /// Bytes of it.
    pub len: u64,
    /// Whether the file was made by this call.
    pub created: bool,
}

/// Opens the media at `path` as `how` says.
///
/// # Errors
/// [`Error::InUse`] if somebody else (in this process too) has it open; [`Error::NotFound`] if
/// nothing is there and no size was given; [`Error::Size`] for a size that cannot be; otherwise
/// [`Error::Path`] with what the system refused.
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
    // The lock comes before any change, and before the kind is probed.
    match pool_lock::take(&place.file, path, how.read_only).and_then(|()| place.finish(how)) {
        Ok(opened) => Ok(opened),
        Err(e) => {
            if place.created && !matches!(e, Error::InUse { .. }) {
                let _ = std::fs::remove_file(path);
            }
            Err(e)
        }
    }
}

/// What kind of thing the path names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Regular,
    Block,
    DaxDevice,
}

/// An opened path on its way to becoming media.
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
        // NONBLOCK: should the path have become a fifo since the look at it, the open must not hang.
        flags |= OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let node = match std::fs::metadata(path) {
            Ok(meta) => Some(node(path, &meta)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail("cannot look at")(e)),
        };
        match (node, how.size) {
            (None, None) => return Err(Error::NotFound),
            // A device that is not there must not become a file in the memory that /dev is made of.
            (None, Some(_)) if is_dev(path) => {
                let why = io::Error::new(io::ErrorKind::NotFound, "there is no such device");
                return Err(fail("cannot make")(why));
            }
            (None, Some(_)) => flags |= OFlags::CREATE | OFlags::EXCL,
            // Alone: a block device that is mounted, or part of an array, is refused.
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
            self.settle()?;
        }
        let file = self.file.try_clone().map_err(|e| self.fail("cannot open", e))?;
        let media: io::Result<Arc<dyn Media>> = match kind {
            MediaKind::File => FileMedia::new(file, len, how.read_only).map(|m| Arc::new(m) as Arc<dyn Media>),
            _ => ByteMedia::new(file, kind, len, unit, how.read_only).map(|m| Arc::new(m) as Arc<dyn Media>),
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

    /// The kind of media, and the size of its own page.
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
            // Whatever has a page cache, or is one, takes pwrite.
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
        // The kernel grants MAP_SYNC exactly where flushed stores are durable without a system
        // call; virtio-pmem, for one, has DAX but needs fsync, and is an ordinary file to us.
        let share = if read_only { Share::ReadOnlySync } else { Share::SharedSync };
        let granted = MappedRange::file(self.file.as_fd(), PAGE_SIZE, share).is_ok();
        let dax = granted && (read_only || Persister::durable().is_some());
        Ok((if dax { MediaKind::DaxFile } else { MediaKind::File }, PAGE_SIZE))
    }

    /// The pool's length, after lengthening a file that is shorter than asked.
    fn fit(&self, how: &Open, unit: u64) -> Result<u64> {
        let there = self.current_len()?;
        let too_large = |size: u64| Error::Size(format!("{size} bytes are more than {} can have", self.path.display()));
        let Some(size) = how.size else {
            // A last part of a unit cannot be mapped safely: it is left alone.
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

    /// Makes a new file's length and name durable, so that what is promised later has a place.
    fn settle(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| self.fail("cannot sync", e))?;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // A directory that cannot be opened or synced for lack of permission is not ours to judge.
        let _ = File::open(parent).and_then(|dir| dir.sync_all());
        Ok(())
    }

    /// A number that the kernel tells about a DAX device.
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

/// Who keeps a block device from being opened alone, if it is somebody with a pool on it.
fn whose(path: &Path) -> Option<Error> {
    std::fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device())?;
    let file = File::open(path).ok()?;
    pool_lock::take(&file, path, true).err().filter(|e| matches!(e, Error::InUse { .. }))
}

/// Whether a name that is not there would be one of a device.
fn is_dev(path: &Path) -> bool {
    path.parent().and_then(|parent| parent.canonicalize().ok()).is_some_and(|parent| parent == Path::new("/dev"))
}

/// What a user may do about a kind that was forced in vain.
fn hint(forced: MediaKind) -> &'static str {
    match forced {
        MediaKind::DaxFile => " (the filesystem must be mounted with DAX on memory that takes MAP_SYNC)",
        MediaKind::DaxDevice => " (a namespace in devdax mode appears as /dev/daxN.M)",
        MediaKind::File => " (it takes no pwrite)",
        _ => "",
    }
}

/// What kind of thing `meta` describes; a clear refusal if no pool can lie on it.
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
