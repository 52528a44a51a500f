//! `Region`: all accesses of the layers above to the media. Checks every range, and every page against the known
//! bad pages.
//!
//! ```text
//!   caller --> inside the length? --> a known bad page? --> Media --> a fault? --> Error::BadPage
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::bad_pages::BadPages;
use super::direct::{DirectFile, Direction, Lifetime, Run};
use super::{Description, MapMode, MappedRange, Media, PageRef, Part, fault_tolerant};
use crate::{Error, PAGE_SIZE, Result};

/// A media of a known length; all offsets are pool bytes.
#[derive(Clone, Debug)]
pub struct Region {
    media: Arc<dyn Media>,
    len: Arc<AtomicU64>,
    bad_pages: Arc<BadPages>,
}

impl Region {
    /// Wraps `media`. The length is that of the shorter view. Pages that the media report as bad are lost. From the
    /// first region of a process on, faults of the engine's accesses are errors and not signals.
    pub fn new(media: Arc<dyn Media>) -> Region {
        // Without the handlers a fault ends the process, as it would without this library.
        let _ = fault_tolerant::install();
        let views = media.views();
        let len = views.meta.len().min(views.data.len());
        let bad_pages = BadPages::new();
        for bad in media.bad() {
            bad_pages.add(bad.start..bad.end.min(len));
        }
        Region { media, len: Arc::new(AtomicU64::new(len)), bad_pages: Arc::new(bad_pages) }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The properties of the media.
    pub fn describe(&self) -> &Description {
        self.media.describe()
    }

    fn guard(&self, at: u64, len: u64) -> Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(self.out_of_range(at, len)),
        }
    }

    /// The first page of the range that is known to be lost, by its first byte.
    #[inline]
    pub fn first_lost(&self, at: u64, len: u64) -> Option<u64> {
        self.bad_pages.first_in(self.media.views(), at, len)
    }

    /// Number of pages known to be lost.
    pub fn lost_pages(&self) -> usize {
        self.bad_pages.count()
    }

    fn there(&self, at: u64, len: u64) -> Result<()> {
        self.first_lost(at, len).map_or(Ok(()), |page| Err(Error::BadPage(page)))
    }

    /// The metadata page at the byte `at`, a multiple of 4 KiB.
    pub fn page(&self, at: u64) -> Result<PageRef<'_>> {
        self.guard(at, PAGE_SIZE)?;
        self.there(at, PAGE_SIZE)?;
        self.media.views().meta.page(at).ok_or_else(|| self.out_of_range(at, PAGE_SIZE))
    }

    fn out_of_range(&self, at: u64, len: u64) -> Error {
        Error::OutOfRange { at, len, media: self.len() }
    }

    /// Copies metadata.
    pub fn read_meta(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.guard(at, buf.len() as u64)?;
        self.read(self.media.views().meta, at, buf)
    }

    /// Copies file data or journal bytes.
    pub fn read_data(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.guard(at, buf.len() as u64)?;
        self.read(self.media.views().data, at, buf)
    }

    fn read(&self, view: &MappedRange, at: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        self.there(at, len)?;
        if view.read(at, buf) {
            return Ok(());
        }
        // The range lies inside, so the memory has failed.
        Err(Error::BadPage(self.first_lost(at, len).unwrap_or(at)))
    }

    /// The address of file data in this process, for system calls. A byte of each page was readable just before the
    /// return.
    pub fn data_addr(&self, at: u64, len: u64) -> Result<*mut u8> {
        self.guard(at, len)?;
        self.there(at, len)?;
        let data = self.media.views().data;
        if !data.reaches(at, len) {
            return Err(Error::BadPage(self.first_lost(at, len).unwrap_or(at)));
        }
        data.addr(at, len).ok_or_else(|| self.out_of_range(at, len))
    }

    /// See [`Media::persist`].
    pub fn persist(&self, parts: &[Part<'_>]) -> Result<()> {
        self.writable()?;
        for part in parts {
            match *part {
                Part::Bytes { at, bytes } => self.guard(at, bytes.len() as u64)?,
                Part::Zero { at, len } => self.guard(at, len)?,
            }
            self.there(part.at(), part.len())?;
        }
        self.media.persist(parts).map_err(|e| match parts.iter().find_map(|p| self.first_lost(p.at(), p.len())) {
            Some(page) => Error::BadPage(page),
            None => e.into(),
        })
    }

    /// See [`Media::store`]. Allowed on read-only media: it reaches only the private overlay.
    pub fn store(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.guard(at, bytes.len() as u64)?;
        self.media.store(at, bytes);
        Ok(())
    }

    /// See [`Media::flush`].
    pub fn flush(&self, at: u64, len: u64) -> Result<()> {
        self.guard(at, len)?;
        Ok(self.media.flush(at, len)?)
    }

    /// See [`Media::fence`].
    pub fn fence(&self) {
        self.media.fence();
    }

    /// See [`Media::sync`].
    pub fn sync(&self) -> Result<()> {
        Ok(self.media.sync()?)
    }

    /// See [`Media::reserve`].
    pub fn reserve(&self, at: u64, len: u64) -> Result<()> {
        self.writable()?;
        self.guard(at, len)?;
        self.media.reserve(at, len).map_err(of_space)
    }

    /// See [`Media::ensure_len`]. A longer one is the length of the region from then on.
    pub fn ensure_len(&self, len: u64) -> Result<()> {
        self.writable()?;
        self.media.ensure_len(len).map_err(of_space)?;
        let views = self.media.views();
        let reached = views.meta.len().min(views.data.len());
        self.len.fetch_max(reached.min(len), Ordering::AcqRel);
        Ok(())
    }

    /// See [`Media::len_at_close`].
    pub fn len_at_close(&self) -> Result<u64> {
        Ok(self.media.len_at_close()?)
    }

    /// See [`Media::release_from`].
    pub fn release_from(&self, len: u64) -> Result<()> {
        self.writable()?;
        Ok(self.media.release_from(len)?)
    }

    /// See [`Media::next_data`].
    pub fn next_data(&self, at: u64, len: u64) -> Result<Option<u64>> {
        self.guard(at, len)?;
        Ok(self.media.next_data(at, len))
    }

    /// See [`Media::map_alignment`].
    pub fn map_alignment(&self) -> Option<u64> {
        self.media.map_alignment()
    }

    /// See [`Media::prepare_for_mapping`].
    pub fn prepare_for_mapping(&self, at: u64, len: u64) -> Result<()> {
        self.guard(at, len)?;
        Ok(self.media.prepare_for_mapping(at, len)?)
    }

    /// See [`Media::map_at`].
    ///
    /// # Safety
    /// See [`Media::map_at`].
    pub unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> Result<()> {
        // Not compared with the length: a child of the process that has opened the media does not learn of its growth,
        // and maps what that process has told it.
        at.checked_add(len).ok_or(Error::OutOfRange { at, len, media: self.len() })?;
        // SAFETY: the caller's promise is handed on.
        unsafe { self.media.map_at(at, len, to, how) }?;
        Ok(())
    }

    /// Moves bytes between file data and a file or device, past the kernel's page cache. Those read are durable on return as
    /// persisted ones are. Returns when none is in flight.
    ///
    /// Where the kernel may not store to the media, which is so for ordinary files, what is read goes through a buffer of fixed
    /// size.
    ///
    /// # Errors
    /// [`Error::Io`] for the file and the media, also of the kind `Interrupted` after `cancel` is set; [`Error::BadPage`].
    pub fn transfer(
        &self,
        file: &DirectFile,
        direction: Direction,
        runs: &[Transfer],
        cancel: &AtomicBool,
    ) -> Result<()> {
        if direction == Direction::Read {
            self.writable()?;
        }
        let data = self.media.views().data;
        let mut memory = Vec::with_capacity(runs.len());
        for &Transfer { at, len, offset } in runs {
            self.guard(at, len)?;
            self.there(at, len)?;
            let addr = data.addr(at, len).ok_or_else(|| self.out_of_range(at, len))?;
            memory.push(Run { addr, len: len as usize, offset });
        }
        if direction == Direction::Read && !self.media.takes_transfers() {
            return self.read_through_buffer(file, runs, cancel);
        }
        // SAFETY: the data view stays mapped as long as `self`; there is no reference into it, ever.
        unsafe { file.transfer(direction, &memory, Lifetime::Outlives, cancel) }?;
        if direction == Direction::Read {
            runs.iter().try_for_each(|run| self.flush(run.at, run.len))?;
            self.fence();
        }
        Ok(())
    }

    /// A buffer at a time: read directly, then persisted.
    fn read_through_buffer(&self, file: &DirectFile, runs: &[Transfer], cancel: &AtomicBool) -> Result<()> {
        let buffer = MappedRange::anonymous(BUFFER)?;
        for run in runs {
            let mut done = 0;
            while done < run.len {
                let len = (run.len - done).min(BUFFER);
                let addr = buffer.addr(0, len).ok_or_else(|| self.out_of_range(0, len))?;
                let piece = Run { addr, len: len as usize, offset: run.offset + done };
                // SAFETY: the buffer is ours; there is no reference into it.
                unsafe { file.transfer(Direction::Read, &[piece], Lifetime::Process, cancel) }?;
                // SAFETY: it is ours, `len` bytes are mapped, and nothing stores to it until the next transfer.
                let bytes = unsafe { std::slice::from_raw_parts(addr, len as usize) };
                self.persist(&[Part::Bytes { at: run.at + done, bytes }])?;
                done += len;
            }
        }
        Ok(())
    }

    fn writable(&self) -> Result<()> {
        if self.describe().read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

/// Bytes of [`Region::transfer`].
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The first pool byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Where they are in the file.
    pub offset: u64,
}

/// Bytes of the buffer of a transfer.
const BUFFER: u64 = 4 << 20;

/// The error of a request for space.
fn of_space(e: std::io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::ENOSPC) => Error::NoSpace,
        _ => e.into(),
    }
}
