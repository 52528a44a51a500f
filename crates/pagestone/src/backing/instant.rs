//! Backings that answer at once, from nothing.
//!
//! ```text
//!   0   ZeroBacking       0 0 0 0 ...          every ordinary file
//!   1   NoopBacking       a5 a5 a5 a5 ...      to measure the layers above a backing
//!   2   PatternBacking    by page and byte     to test them
//! ```

use super::Backing;
use crate::error::Result;
use crate::units::PAGE_SIZE;

/// Zeros: an absent page is a hole.
pub(super) struct ZeroBacking;

impl Backing for ZeroBacking {
    fn identity(&self) -> u32 {
        0
    }
    fn is_zeros(&self) -> bool {
        true
    }
    #[inline]
    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        Ok(())
    }
}

/// Reads no device: what a file with this backing costs is the cost of the layers above a backing. Every byte that it
/// answers is [`NoopBacking::BYTE`], so that a test can tell an answer from zeros and from memory that nobody filled.
pub(super) struct NoopBacking;

impl NoopBacking {
    /// Every byte of every page.
    pub(super) const BYTE: u8 = 0xa5;
}

impl Backing for NoopBacking {
    fn identity(&self) -> u32 {
        1
    }
    fn is_zeros(&self) -> bool {
        false
    }
    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(NoopBacking::BYTE);
        Ok(())
    }
}

/// For tests: each byte follows from its page number and its place in the page, and none is zero. An answer for another
/// page, from another place in the page, or of zeros, is seen.
pub(super) struct PatternBacking;

impl PatternBacking {
    /// The byte at `offset` of a file.
    fn byte(offset: u64) -> u8 {
        let (page, within) = (offset / PAGE_SIZE, offset % PAGE_SIZE);
        ((page * 7 + within) % 255) as u8 + 1
    }
}

impl Backing for PatternBacking {
    fn identity(&self) -> u32 {
        2
    }
    fn is_zeros(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = PatternBacking::byte(at));
        Ok(())
    }
}
