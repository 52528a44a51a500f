//! The one way in which the floors above reach the media: every range is checked here.

use std::sync::Arc;

use super::lost::Lost;
use super::{Description, Lend, Mapping, Media, PageRef, Part, reach};
use crate::error::{Error, Result};
use crate::units::PageNo;

/// A media of a known length; all offsets are pool bytes.
#[derive(Clone, Debug)]
pub struct Region {
    media: Arc<dyn Media>,
    len: u64,
    lost: Arc<Lost>,
}

impl Region {
    /// Wraps `media`; its length is that of its shorter window. What it says is bad is lost. From the first
    /// region of a process on, faults at the engine's accesses are errors and not signals.
    pub fn new(media: Arc<dyn Media>) -> Region {
        // Without handlers a fault ends the process, as it would anyway.
        let _ = reach::install();
        let windows = media.windows();
        let len = windows.meta.len().min(windows.data.len());
        let lost = Lost::new();
        for bad in media.bad() {
            lost.add(bad.start..bad.end.min(len));
        }
        Region { media, len, lost: Arc::new(lost) }
    }

    /// Bytes of the media.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the media has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the media is and promises.
    pub fn describe(&self) -> &Description {
        self.media.describe()
    }

    fn guard(&self, at: u64, len: u64) -> Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::corrupt(
                format!("pool byte {at:#x}"),
                format!("{len} bytes from here lie outside the pool ({:#x} bytes)", self.len),
            )),
        }
    }

    /// The first page of the range that the media have lost, as far as that is known, by its first
    /// byte.
    #[inline]
    pub fn first_lost(&self, at: u64, len: u64) -> Option<u64> {
        self.lost.first_in(self.media.windows(), at, len)
    }

    /// Pages known to be lost.
    pub fn lost_pages(&self) -> usize {
        self.lost.count()
    }

    fn there(&self, at: u64, len: u64) -> Result<()> {
        self.first_lost(at, len).map_or(Ok(()), |page| Err(Error::Lost(page)))
    }

    /// A metadata page.
    pub fn page(&self, page: PageNo) -> Result<PageRef<'_>> {
        let at = page.0.saturating_mul(crate::units::PAGE_SIZE);
        self.guard(at, crate::units::PAGE_SIZE)?;
        self.there(at, crate::units::PAGE_SIZE)?;
        self.media.windows().meta.page(at).ok_or_else(|| Error::corrupt(page.to_string(), "outside the pool"))
    }

    /// Copies metadata out.
    pub fn read_meta(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.guard(at, buf.len() as u64)?;
        self.read(self.media.windows().meta, at, buf)
    }

    /// Copies file data or journal bytes out.
    pub fn read_data(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.guard(at, buf.len() as u64)?;
        self.read(self.media.windows().data, at, buf)
    }

    fn read(&self, window: &Mapping, at: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        self.there(at, len)?;
        if window.read(at, buf) {
            return Ok(());
        }
        // The range lies inside, so it was the memory.
        Err(Error::Lost(self.first_lost(at, len).unwrap_or(at)))
    }

    /// Where file data lies in this process, for system calls that take an address. A byte of each
    /// page was there to be read just now.
    pub fn data_addr(&self, at: u64, len: u64) -> Result<*mut u8> {
        self.guard(at, len)?;
        self.there(at, len)?;
        let data = self.media.windows().data;
        if !data.reaches(at, len) {
            return Err(Error::Lost(self.first_lost(at, len).unwrap_or(at)));
        }
        data.addr(at, len).ok_or_else(|| Error::corrupt(format!("pool byte {at:#x}"), "outside the pool"))
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
            Some(page) => Error::Lost(page),
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
        self.media.reserve(at, len).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOSPC) => Error::NoSpace,
            _ => e.into(),
        })
    }

    /// See [`Media::granule`].
    pub fn granule(&self) -> Option<u64> {
        self.media.granule()
    }

    /// See [`Media::settle`].
    pub fn settle(&self, at: u64, len: u64) -> Result<()> {
        self.guard(at, len)?;
        Ok(self.media.settle(at, len)?)
    }

    /// See [`Media::map_at`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: Lend) -> Result<()> {
        self.guard(at, len)?;
        // SAFETY: the caller's promise is handed on.
        unsafe { self.media.map_at(at, len, to, how) }?;
        Ok(())
    }

    fn writable(&self) -> Result<()> {
        if self.describe().read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }
}
