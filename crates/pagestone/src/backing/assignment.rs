//! Which backing a file has.
//!
//! ```text
//!   ordinary file        base 0, base_pages 0              zeros
//!   file with a backing  base 0, base_pages n              [0, n): its backing    from n on: zeros
//!   file on a base       base X, base_pages n              [0, n): X answers      from n on: zeros
//! ```
//!
//! The inode record names the backing by its number. What a file shares with its clones keeps the backing in the lowest
//! base; a file on a base names none.

use super::Answer;
use crate::attr::FileType;
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Result};
use crate::layout::InodeRec;
use crate::units::PAGE_SIZE;

/// Who answers for the pages in front of `rec.base_pages`, if `rec` has no base: the backing of the file.
#[inline]
pub(crate) fn answer_of(rec: &InodeRec) -> Answer {
    match rec.backing {
        0 => Answer::Zeros,
        other => Answer::of_identity(other).unwrap_or_default(),
    }
}

/// Whether anything lies below the map of `rec` that a void has to hide: a base, or a backing that is not zeros.
#[inline]
pub(crate) fn has_below(rec: &InodeRec) -> bool {
    rec.base != 0 || !answer_of(rec).is_zeros()
}

impl Engine {
    /// Gives a regular file another backing, which answers for its absent pages up to its present end.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that no backing has; [`Error::NotSupported`] for anything but a regular file, for
    /// one that has a base or a backing, or that is mapped: mappings show what was absent.
    pub(crate) fn set_backing(&self, held: InodeWrite<'_>, identity: u32) -> Result<()> {
        let ino = held.ino();
        Answer::of_identity(identity).ok_or(Error::Invalid("no backing has this number"))?;
        if !self.opens.observers(ino).is_empty() {
            return Err(Error::NotSupported("a new backing for a file that is mapped"));
        }
        self.alloc.transact(false, |tx| {
            let mut rec = tx.inode(ino)?;
            if rec.kind() != Some(FileType::File) || has_below(&rec) {
                return Err(Error::NotSupported("a backing for anything but a file without base and backing").into());
            }
            rec.base_pages = rec.size.div_ceil(PAGE_SIZE);
            rec.backing = identity;
            tx.put_inode(&rec)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::InodeRec;
    use crate::units::Ino;

    #[test]
    fn a_file_has_the_backing_that_its_record_names() {
        let mut rec = InodeRec::free(Ino(0));
        assert!(answer_of(&rec) == Answer::Zeros && !has_below(&rec));
        rec.backing = 1;
        assert!(answer_of(&rec) == Answer::Noop && has_below(&rec));
    }
}
