//! A value on cache lines of its own, so that threads which use neighbours do not slow each other.

use std::ops::Deref;

/// Aligned to two lines: processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}
