//! What fresh storage begins with: bytes, or zeros that take no memory.
//!
//! ```text
//!   Contents  zeros           --part(at, range)-->  Part::Zero
//!             bytes [.....]   --part(at, range)-->  Part::Bytes
//! ```

use std::ops::Range;

use pmem::Part;

/// Contents of pages that are about to get storage.
#[derive(Debug, Default)]
pub(crate) struct Contents(Option<Box<[u8]>>);

impl Contents {
    /// These bytes.
    pub(crate) fn bytes(bytes: Vec<u8>) -> Contents {
        Contents(Some(bytes.into_boxed_slice()))
    }

    /// Whether they are known to be zeros.
    pub(crate) fn is_zeros(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes of memory that they take.
    pub(crate) fn memory(&self) -> u64 {
        self.0.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }

    /// The bytes `range` of them, to be stored at `at`.
    pub(crate) fn part(&self, at: u64, range: Range<u64>) -> Part<'_> {
        match &self.0 {
            None => Part::Zero { at, len: range.end - range.start },
            Some(bytes) => Part::Bytes { at, bytes: &bytes[range.start as usize..range.end as usize] },
        }
    }
}
