//! An ordinary file (or a block device) as media: commits are atomic and ordered at once, and durable at `sync`.
//!
//! ```text
//!      store            persist          sync
//!        |                 |               |  1. fdatasync, if anything was persisted
//!   +----+----+   pwrite   |               |  2. flushed copies --pwrite--> page cache; dropped
//!   | overlay |  - - - - ->|               |  3. fdatasync
//!   | (meta)  |            v               v
//!   +---------+-------+---------------------------+
//!   |     page cache of the file (data view)      |
//!   +----------------------+----------------------+
//!                          v  written back by the kernel at any time
//!                        disk
//! ```
//!
//! Step 1 ensures the engine's order whatever the disk does: what was persisted before a page was flushed (its
//! journal record) is durable before the page can reach the file. Pages that are flushed during a sync wait for the
//! next one, for the same reason.
//!
//! Stores go through `pwrite`, so a full or failing disk is an error and not a signal. Reads go through the
//! mappings. A page that the disk cannot return, or a file that another process truncates while it is open, is a
//! SIGBUS. All accesses of the engine go through [`crate::fault_tolerant`], which turns it into an error of the
//! operation.
//!
//! A machine with `vm.overcommit_memory=2` rejects the private view of a file larger than its memory. Two views of
//! more than 63 TiB each do not fit into the 128 TiB of address space that x86-64 gives a process.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::io::retry_on_intr;
use smallvec::SmallVec;

use super::file_len::{self, FileLen};
use super::mapped_range::MAX_ROOM;
use super::overlay::Overlay;
use super::{
    Description, Durability, Granularity, MapMode, MappedRange, Media, MediaKind, Part, PersistMethod, Share, Views,
    cache_id,
};
use crate::{Open, PAGE_SIZE, PoolLock};

/// The source of zeros. Longer parts refer to it several times.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Limit on the buffers of one `pwritev` (the kernel's limit is 1,024).
const MAX_STRETCHES: usize = 64;

/// A pool in an ordinary file; see the module's picture.
#[derive(Debug)]
pub struct FileMedia {
    file: File,
    /// The lock, if `file` does not hold it.
    _lock: Option<PoolLock>,
    data: MappedRange,
    overlay: Overlay,
    len: FileLen,
    /// Whether something was written that no fdatasync has covered yet.
    unsynced: AtomicBool,
    /// Whether pages were mapped for a program to store to. If so, every sync has to cover stores that are not
    /// reported.
    mapped_writable: AtomicBool,
    /// Held during a sync, so that each call returns only when what it covers is durable. Contains the error number
    /// of the first failed fdatasync: the kernel reports a lost write only once, so no later success can be
    /// trusted.
    lost: Mutex<Option<i32>>,
    description: Description,
}

impl FileMedia {
    /// The first `len` bytes (a multiple of 4 KiB) of `file`, which is locked and long enough.
    pub(super) fn new(file: File, len: u64, how: &Open) -> io::Result<FileMedia> {
        let read_only = how.read_only;
        let map = |share| match read_only {
            true => MappedRange::file(file.as_fd(), len, share),
            false => MappedRange::file_with_room(file.as_fd(), len, (how.room, MAX_ROOM / 2), PAGE_SIZE, share),
        };
        let (data, meta) = (map(Share::ReadOnly)?, map(Share::Private)?);
        // Otherwise the first store to a page of a hole would also read 31 neighbours into the page cache.
        meta.advise_random();
        let overlay = Overlay::new(meta)?;
        let cache_id = cache_id::id(&file);
        let promise = match read_only {
            true => "opened read-only: nothing is changed",
            false => {
                "a commit is atomic and ordered at once and survives the process; \
                 it survives a power cut once synced (fsync, the sync interval, or close)"
            }
        };
        Ok(FileMedia {
            file,
            _lock: how.lock.clone(),
            data,
            overlay,
            len: FileLen::new(),
            // The first sync has to make durable what an earlier process left in the page cache.
            unsynced: AtomicBool::new(true),
            mapped_writable: AtomicBool::new(false),
            lost: Mutex::new(None),
            description: Description {
                kind: MediaKind::File,
                granularity: Granularity::Page,
                method: PersistMethod::Fdatasync,
                durability: Durability::AtSync,
                promise: promise.into(),
                cache_id,
                read_only,
            },
        })
    }

    /// Writes one run of bytes, all of it.
    fn write(&self, at: u64, stretches: &mut [IoSlice<'_>]) -> io::Result<()> {
        let result = self.write_all(at, stretches);
        // Set after the write: if it were set before, a sync in between would clear it without covering the write.
        // Set after a failure too, since a part may have been written.
        self.unsynced.store(true, Ordering::Release);
        result
    }

    fn write_all(&self, mut at: u64, mut stretches: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Remove empty buffers: a write of them would look like no progress.
        IoSlice::advance_slices(&mut stretches, 0);
        while !stretches.is_empty() {
            let n = retry_on_intr(|| rustix::io::pwritev(&self.file, stretches, at))?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += n as u64;
            IoSlice::advance_slices(&mut stretches, n);
        }
        Ok(())
    }

    /// Writes the parts; adjacent ones in one system call.
    fn write_parts(&self, parts: &[Part<'_>]) -> io::Result<()> {
        let mut run: SmallVec<[IoSlice<'_>; 8]> = SmallVec::new();
        let (mut start, mut end) = (0, 0);
        for part in parts {
            let mut done = 0;
            while done < part.len() {
                let at = part.at() + done;
                if (at != end && !run.is_empty()) || run.len() == MAX_STRETCHES {
                    self.write(start, &mut run)?;
                    run.clear();
                }
                if run.is_empty() {
                    start = at;
                }
                let stretch = match *part {
                    Part::Bytes { bytes, .. } => bytes,
                    Part::Zero { len, .. } => &ZEROS[..(len - done).min(ZEROS.len() as u64) as usize],
                };
                run.push(IoSlice::new(stretch));
                done += stretch.len() as u64;
                end = at + stretch.len() as u64;
            }
        }
        self.write(start, &mut run)
    }

    /// Makes what was written durable, if anything was. `lost` is the value of the sync lock.
    fn fdatasync(&self, lost: &mut Option<i32>) -> io::Result<()> {
        if !self.unsynced.swap(false, Ordering::AcqRel) && !self.mapped_writable.load(Ordering::Acquire) {
            return Ok(());
        }
        retry_on_intr(|| rustix::fs::fdatasync(&self.file)).map_err(|e| {
            *lost = Some(e.raw_os_error());
            e.into()
        })
    }
}

impl Media for FileMedia {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn views(&self) -> Views<'_> {
        Views { meta: self.overlay.view(), data: &self.data }
    }

    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        if self.description.read_only {
            return Err(rustix::io::Errno::ROFS.into());
        }
        // A write outside the range would not fail but extend the file.
        if !parts.iter().all(|part| self.data.contains(part.at(), part.len())) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let shadows = self.overlay.shadows(parts);
        self.write_parts(parts)?;
        match shadows {
            None => Ok(()),
            Some(mut flushed) => parts.iter().try_for_each(|part| self.overlay.stored_below(&mut flushed, part)),
        }
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        debug_assert!(self.data.contains(at, bytes.len() as u64), "Region checks bounds");
        // A fault is noted, and the next read there returns an error.
        let _ = self.overlay.store(at, bytes);
    }

    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        if !self.data.contains(at, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if !self.description.read_only {
            self.overlay.flush(at, len);
        }
        Ok(())
    }

    fn fence(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    fn sync(&self) -> io::Result<()> {
        if self.description.read_only {
            return Ok(());
        }
        let mut lost = self.lost.lock();
        if let Some(code) = *lost {
            return Err(io::Error::from_raw_os_error(code));
        }
        if self.overlay.begin() {
            self.fdatasync(&mut lost)?;
            self.overlay.write_out(|at, bytes| self.write(at, &mut [IoSlice::new(bytes)]))?;
        }
        self.fdatasync(&mut lost)
    }

    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        if self.description.read_only {
            return Err(rustix::io::Errno::ROFS.into());
        }
        allocate(&self.file, &self.data, at, len, PAGE_SIZE)
    }

    fn ensure_len(&self, len: u64) -> io::Result<()> {
        if self.description.read_only {
            return Err(rustix::io::Errno::ROFS.into());
        }
        self.data.check_room(len)?;
        self.overlay.view().check_room(len)?;
        self.len.lengthen(&self.file, len)?;
        self.overlay.extend(self.file.as_fd(), len)?;
        self.data.extend(self.file.as_fd(), len, Share::ReadOnly)
    }

    fn len_at_close(&self) -> io::Result<u64> {
        self.len.at_close(&self.file)
    }

    fn release_from(&self, len: u64) -> io::Result<()> {
        if self.description.read_only {
            return Ok(());
        }
        self.overlay.forget(len, self.data.len().saturating_sub(len))?;
        self.len.shorten(&self.file, len)
    }

    fn next_data(&self, at: u64, len: u64) -> Option<u64> {
        // First the bytes that are only in the overlay. A sync may move them to the file at any time: looked for in the
        // other order, they would be in neither.
        let above = self.overlay.next_stored(at, len);
        let below = file_len::next_data(&self.file, at, len);
        below.into_iter().chain(above).min()
    }

    fn map_alignment(&self) -> Option<u64> {
        Some(PAGE_SIZE)
    }

    fn prepare_for_mapping(&self, at: u64, len: u64) -> io::Result<()> {
        self.mapped_writable.store(!self.description.read_only, Ordering::Release);
        // A copy of a page that was metadata before must not overwrite the program's stores.
        if self.description.read_only { Ok(()) } else { self.overlay.forget(at, len) }
    }

    unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> io::Result<()> {
        // SAFETY: the caller guarantees it.
        unsafe { MappedRange::map_at(self.file.as_fd(), at, len, to, how, false) }
    }
}

impl Drop for FileMedia {
    fn drop(&mut self) {
        self.len.close(&self.file);
    }
}

/// Allocates space in the filesystem for a range of `view`, in whole units. Changes no byte and no length. Does
/// nothing if the filesystem does not support it.
pub(super) fn allocate(file: &File, view: &MappedRange, at: u64, len: u64, unit: u64) -> io::Result<()> {
    if !view.contains(at, len) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if len == 0 {
        return Ok(());
    }
    let first = at / unit * unit;
    let end = (at + len).next_multiple_of(unit).min(view.len());
    let allocated = retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, first, end - first));
    match allocated {
        // ENODEV: a block device whose driver has no fallocate.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::NODEV) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
