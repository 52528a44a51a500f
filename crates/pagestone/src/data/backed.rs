//! A file with another backing than zeros: for tests and measurements, until a pool can say so by itself.

use crate::data::File;
use crate::error::Result;

impl File {
    /// Lets the backing with this number answer for the absent pages of the file, up to its present end: 1 answers with
    /// one fixed byte, `u32::MAX` with bytes that follow from their offset (`backing/instant.rs`). Nothing of it is on
    /// the media: in another process the file reads as zeros there.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a number that no backing has;
    /// [`Error::NotSupported`](crate::Error::NotSupported) for a file that has a backing or a base, or is mapped.
    #[doc(hidden)]
    pub fn set_backing(&self, identity: u32) -> Result<()> {
        let engine = self.engine();
        let lock = engine.locks.write(&[self.ino()]);
        engine.set_backing(lock.of(self.ino()), identity)
    }
}
