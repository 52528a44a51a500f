//! Byte-addressable memory as media: DAX devices and files; also tmpfs and hugetlbfs files, for data that need not
//! outlive the machine.
//!
//! ```text
//!    store, flush, fence     persist          (both views are one mapping)
//!            |                  |
//!        +---+------------------+---+
//!        |   one shared mapping     |   opened read-only: the data view takes no stores,
//!        +--------------------------+   the meta view is private to this process
//!            |  cache lines written back
//!        persistent memory
//! ```
//!
//! Stores are processor instructions, so an error of the memory or the filesystem is a SIGBUS, which
//! [`crate::fault_tolerant`] turns into an error. [`Media::reserve`] prevents that a store fails because the
//! filesystem is full. It cannot prevent that another process truncates the file, or that memory fails. On tmpfs
//! even a *read* of a hole allocates a page: where that matters, read only what was reserved or stored.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use parking_lot::Mutex;

use super::file_len::{self, FileLen};
use super::mapped_range::MAX_ROOM;
use super::ordinary_file::allocate;
use super::{
    Description, Durability, Granularity, MapMode, MappedRange, Media, MediaKind, Part, Persister, Share, Views,
    cache_id, nvdimm,
};
use crate::{HUGE_PAGE_SIZE, Open, PAGE_SIZE, PoolLock};

/// A pool in byte-addressable memory; see the module's picture.
#[derive(Debug)]
pub struct ByteMedia {
    /// `reserve` allocates space in it.
    file: File,
    /// The lock, if `file` does not hold it.
    _lock: Option<PoolLock>,
    shared: MappedRange,
    share: Share,
    private: Option<Private>,
    persister: Persister,
    len: FileLen,
    /// Page size of the media, in bytes.
    unit: u64,
    description: Description,
}

/// The meta view of a pool that is open read-only.
#[derive(Debug)]
enum Private {
    /// A private mapping: the kernel copies pages at the first store.
    Pages(MappedRange),
    /// Used where the kernel has no private mappings (device DAX) or no memory for their copies (hugetlbfs): units
    /// are copied at the first store.
    Units { view: MappedRange, copied: Mutex<Copied> },
}

#[derive(Debug, Default)]
struct Copied {
    units: BTreeSet<u64>,
    /// A unit could not be copied, so a store to it was lost; `flush` returns this error.
    failed: Option<i32>,
}

impl ByteMedia {
    /// The first `len` bytes of `file`, which is locked and long enough. `unit` is the page size of the media, and
    /// `len` a multiple of it.
    pub(super) fn new(file: File, kind: MediaKind, (len, unit): (u64, u64), how: &Open) -> io::Result<ByteMedia> {
        let read_only = how.read_only;
        let share = match (kind, read_only) {
            (MediaKind::DaxFile, false) => Share::SharedSync,
            (MediaKind::DaxFile, true) => Share::ReadOnlySync,
            (_, false) => Share::Shared,
            (_, true) => Share::ReadOnly,
        };
        let shared = match read_only {
            true => MappedRange::file(file.as_fd(), len, share)?,
            false => MappedRange::file_with_room(file.as_fd(), len, (how.room, MAX_ROOM), unit, share)?,
        };
        if kind == MediaKind::Tmpfs {
            shared.advise_huge();
        }
        let private = read_only.then(|| Private::new(&file, kind, len)).transpose()?;
        let outlives = matches!(kind, MediaKind::DaxFile | MediaKind::DaxDevice);
        let granularity =
            if !outlives || nvdimm::caches_survive(&file) { Granularity::Byte } else { Granularity::CacheLine };
        let persister = match granularity {
            Granularity::Byte => Persister::volatile(),
            _ => Persister::durable().ok_or(io::ErrorKind::Unsupported)?,
        };
        let description = Description {
            kind,
            granularity,
            method: persister.method(),
            durability: Durability::AtFence,
            promise: promise(kind, read_only).into(),
            cache_id: cache_id::id(&file),
            read_only,
        };
        let (len, _lock) = (FileLen::new(), how.lock.clone());
        Ok(ByteMedia { file, _lock, shared, share, private, persister, len, unit, description })
    }
}

impl Private {
    fn new(file: &File, kind: MediaKind, len: u64) -> io::Result<Private> {
        match kind {
            MediaKind::DaxDevice | MediaKind::Hugetlbfs => {
                let view = MappedRange::file(file.as_fd(), len, Share::ReadOnly)?;
                Ok(Private::Units { view, copied: Mutex::default() })
            }
            _ => Ok(Private::Pages(MappedRange::file(file.as_fd(), len, Share::Private)?)),
        }
    }

    fn view(&self) -> &MappedRange {
        match self {
            Private::Pages(view) | Private::Units { view, .. } => view,
        }
    }

    fn store(&self, unit: u64, at: u64, bytes: &[u8]) -> bool {
        let (view, copied) = match self {
            Private::Pages(view) => return view.write(at, bytes),
            Private::Units { view, copied } => (view, copied),
        };
        if bytes.is_empty() || !view.contains(at, bytes.len() as u64) {
            return bytes.is_empty();
        }
        let mut copied = copied.lock();
        for n in at / unit..=(at + bytes.len() as u64 - 1) / unit {
            if copied.units.contains(&n) {
                continue;
            }
            if let Err(e) = view.privatize(n * unit, unit) {
                copied.failed = Some(e.raw_os_error().unwrap_or(libc::ENOMEM));
                // The view takes no stores where it was not copied.
                return true;
            }
            copied.units.insert(n);
        }
        view.write(at, bytes)
    }

    /// The error of a store that was lost.
    fn failure(&self) -> io::Result<()> {
        match self {
            Private::Units { copied, .. } => match copied.lock().failed {
                Some(code) => Err(io::Error::from_raw_os_error(code)),
                None => Ok(()),
            },
            Private::Pages(_) => Ok(()),
        }
    }
}

impl Media for ByteMedia {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn takes_transfers(&self) -> bool {
        !self.description.read_only
    }

    fn views(&self) -> Views<'_> {
        Views { meta: self.private.as_ref().map_or(&self.shared, Private::view), data: &self.shared }
    }

    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        if self.private.is_some() {
            return Err(rustix::io::Errno::ROFS.into());
        }
        self.persister.persist(&self.shared, parts)
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        debug_assert!(self.shared.contains(at, bytes.len() as u64), "Region checks bounds");
        // A fault is noted, and the next read there returns an error.
        let _ = match &self.private {
            Some(private) => private.store(self.unit, at, bytes),
            None => self.shared.write(at, bytes),
        };
    }

    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        match &self.private {
            Some(private) => private.failure()?,
            None => self.persister.flush(&self.shared, at, len),
        }
        Ok(())
    }

    fn fence(&self) {
        self.persister.fence();
    }

    fn sync(&self) -> io::Result<()> {
        // With MAP_SYNC the filesystem makes its metadata durable before a page becomes writable.
        self.persister.fence();
        Ok(())
    }

    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        match self.description.kind {
            _ if self.private.is_some() => Err(rustix::io::Errno::ROFS.into()),
            MediaKind::DaxDevice => Ok(()),
            _ => allocate(&self.file, &self.shared, at, len, self.unit.max(PAGE_SIZE)),
        }
    }

    fn ensure_len(&self, len: u64) -> io::Result<()> {
        if self.private.is_some() {
            return Err(rustix::io::Errno::ROFS.into());
        }
        let len = len.next_multiple_of(self.unit);
        if self.is_device() {
            let there = self.shared.len();
            let more =
                || format!("{there} bytes of the device are open; if it has more, close the pool and grow it then");
            return if len <= there { Ok(()) } else { Err(io::Error::new(io::ErrorKind::Unsupported, more())) };
        }
        self.shared.check_room(len)?;
        self.len.lengthen(&self.file, len)?;
        self.shared.extend(self.file.as_fd(), len, self.share)?;
        if self.description.kind == MediaKind::Tmpfs {
            self.shared.advise_huge();
        }
        Ok(())
    }

    fn len_at_close(&self) -> io::Result<u64> {
        if self.is_device() { Ok(self.shared.len()) } else { self.len.at_close(&self.file) }
    }

    fn release_from(&self, len: u64) -> io::Result<()> {
        if self.private.is_some() || self.is_device() { Ok(()) } else { self.len.shorten(&self.file, len) }
    }

    fn next_data(&self, at: u64, len: u64) -> Option<u64> {
        match self.is_device() || self.private.is_some() {
            true => (len > 0).then_some(at),
            false => file_len::next_data(&self.file, at, len),
        }
    }

    fn bad(&self) -> Vec<Range<u64>> {
        match self.description.kind {
            MediaKind::DaxFile | MediaKind::DaxDevice => nvdimm::bad_bytes(&self.file),
            _ => Vec::new(),
        }
    }

    fn map_alignment(&self) -> Option<u64> {
        Some(self.unit.max(PAGE_SIZE))
    }

    unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> io::Result<()> {
        let sync = self.description.kind == MediaKind::DaxFile;
        // SAFETY: the caller guarantees it.
        unsafe { MappedRange::map_at(self.file.as_fd(), at, len, to, how, sync)? };
        if self.description.kind == MediaKind::Tmpfs && len >= HUGE_PAGE_SIZE {
            // SAFETY: changes no byte, only how the kernel backs the range.
            let _ = unsafe { rustix::mm::madvise(to.cast(), len as usize, rustix::mm::Advice::LinuxHugepage) };
        }
        Ok(())
    }
}

impl ByteMedia {
    /// Whether a device determines the length.
    fn is_device(&self) -> bool {
        self.description.kind == MediaKind::DaxDevice
    }
}

impl Drop for ByteMedia {
    fn drop(&mut self) {
        self.len.close(&self.file);
    }
}

/// The durability that a user may rely on.
fn promise(kind: MediaKind, read_only: bool) -> &'static str {
    match kind {
        _ if read_only => "opened read-only: nothing is changed",
        MediaKind::Tmpfs => "survives the process (SIGKILL), not a power cut or reboot: tmpfs is memory",
        MediaKind::Hugetlbfs => "survives the process (SIGKILL), not a power cut or reboot: hugetlbfs is memory",
        _ => "every operation is durable when it returns, also through a power cut",
    }
}
