//! Files by the traits of the standard library: a cursor, and [`FileExt`].
//!
//! ```text
//!   Read, Write, Seek    hold the cursor while they run: two threads on one file take turns
//!   FileExt              the file's methods with `io::Error`; the cursor does not count
//! ```

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::File;
use crate::error::Result;
use crate::lock::MutexGuard;

impl File {
    /// The cursor. A child of the process has none: the lock may be held by a thread that the child does not have.
    fn cursor(&self) -> Result<MutexGuard<'_, u64>> {
        self.handle().engine().alloc.check_process()?;
        Ok(self.position.lock())
    }

    fn read_next(&self, buf: &mut [u8]) -> Result<usize> {
        let mut at = self.cursor()?;
        let got = self.read_at(buf, *at)?;
        *at += got as u64;
        Ok(got)
    }

    fn write_next(&self, buf: &[u8]) -> Result<usize> {
        let mut at = self.cursor()?;
        if self.appends() {
            *at = self.append(buf)?;
        } else {
            self.write_all_at(buf, *at)?;
        }
        *at += buf.len() as u64;
        Ok(buf.len())
    }

    fn seek_to(&self, to: SeekFrom) -> io::Result<u64> {
        let mut at = self.cursor()?;
        let new = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(by) => self.metadata()?.len().checked_add_signed(by),
            SeekFrom::Current(by) => at.checked_add_signed(by),
        };
        let too_far = || io::Error::new(io::ErrorKind::InvalidInput, "a seek to a negative or too large offset");
        *at = new.filter(|&new| i64::try_from(new).is_ok()).ok_or_else(too_far)?;
        Ok(*at)
    }
}

impl Read for &File {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.read_next(buf)?)
    }
}

impl Write for &File {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(self.write_next(buf)?)
    }

    /// Nothing waits in a buffer. [`File::sync_all`] makes what was written durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.seek_to(to)
    }
}

impl Read for File {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Write for File {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }

    /// Nothing waits in a buffer. [`File::sync_all`] makes what was written durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.seek_to(to)
    }
}

impl FileExt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(File::read_at(self, buf, offset)?)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        Ok(File::write_at(self, buf, offset)?)
    }
}
