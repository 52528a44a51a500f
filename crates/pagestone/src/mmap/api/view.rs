//! Loads and stores through a mapping: copies of bytes and values, and atomic words. A fault becomes an error
//! instead of a signal.
//!
//! ```text
//!   read, write, fill      bytes            get, put      values with a fixed layout (zerocopy)
//!  load, store, swap,     words, atomic    slice         a part, with offsets from 0: `VolatileSlice`
//!   compare_exchange
//! ```

use std::mem::MaybeUninit;
use std::ops::Range;

use pmem::{MapMode, fault_tolerant};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::{Error, Result};
use crate::mmap::Mapping;

mod sealed {
    pub trait Sealed {}
}

/// A word that is loaded and stored atomically: `u8`, `u16`, `u32`, `u64`.
pub trait Word: Copy + sealed::Sealed {
    #[doc(hidden)]
    fn widen(self) -> u64;
    #[doc(hidden)]
    fn narrow(wide: u64) -> Self;
}

macro_rules! word {
    ($($t:ty)*) => { $(
        impl sealed::Sealed for $t {}
        impl Word for $t {
            fn widen(self) -> u64 {
                u64::from(self)
            }
            fn narrow(wide: u64) -> $t {
                wide as $t
            }
        }
    )* };
}
word!(u8 u16 u32 u64);

impl Mapping {
    /// The address of `len` bytes at `at`, if the range lies inside the mapping and `write` is allowed.
    fn place(&self, at: u64, len: u64, write: bool) -> Result<*mut u8> {
        if write && self.area.mode == MapMode::Read {
            return Err(Error::ReadOnly);
        }
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.first_byte().wrapping_add(at as usize)),
            _ => Err(Error::Invalid("a range outside the mapping")),
        }
    }

    fn word(&self, at: u64, size: usize, write: bool) -> Result<*mut u8> {
        let addr = self.place(at, size as u64, write)?;
        if addr.addr().is_multiple_of(size) {
            Ok(addr)
        } else {
            Err(Error::Invalid("a word that is not aligned in the file"))
        }
    }

    pub(in crate::mmap) fn retry_faults(
        &self,
        write: bool,
        mut access: impl FnMut() -> fault_tolerant::Reached,
    ) -> Result<()> {
        let mut tries = 0;
        while let Err(addr) = access() {
            self.recover(addr, write, tries)?;
            tries += 1;
        }
        Ok(())
    }

    /// Copies bytes out, starting at `at` (in bytes of the mapping). With concurrent stores, only single bytes are
    /// atomic.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::BeyondEnd`]: `buf` may hold a part then. [`Error::Invalid`] outside the
    /// mapping.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let from = self.place(at, buf.len() as u64, false)?;
        let to = buf.as_mut_ptr();
        // SAFETY: `buf` is valid and exclusive; the source lies in this mapping.
        self.retry_faults(false, || unsafe { fault_tolerant::copy(to, from, buf.len()) })
    }

    /// Stores bytes, starting at `at` (in bytes of the mapping). Only single bytes are atomic.
    ///
    /// # Errors
    /// As [`Mapping::read`], with a part stored. [`Error::ReadOnly`] for a mapping without stores.
    /// [`Error::NoSpace`] if a hole could not be allocated.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let to = self.place(at, bytes.len() as u64, true)?;
        let from = bytes.as_ptr();
        // SAFETY: `bytes` is valid; the target lies in this mapping, to which no reference exists.
        self.retry_faults(true, || unsafe { fault_tolerant::copy(to, from, bytes.len()) })
    }

    /// Stores one byte value over a range.
    ///
    /// # Errors
    /// As [`Mapping::write`]; [`Error::Invalid`] also for a range that ends before it begins.
    pub fn fill(&self, range: Range<u64>, byte: u8) -> Result<()> {
        let len = len_of(&range)?;
        let to = self.place(range.start, len, true)?;
        // SAFETY: as in `write`.
        self.retry_faults(true, || unsafe { fault_tolerant::fill(to, byte, len as usize) })
    }

    /// Copies a value out.
    ///
    /// # Errors
    /// As [`Mapping::read`].
    pub fn get<T: FromBytes>(&self, at: u64) -> Result<T> {
        let from = self.place(at, size_of::<T>() as u64, false)?;
        let mut value = MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast();
        // SAFETY: `value` is memory of its size; the source lies in this mapping.
        self.retry_faults(false, || unsafe { fault_tolerant::copy(to, from, size_of::<T>()) })?;
        // SAFETY: all its bytes were copied, and any bytes are a valid T.
        Ok(unsafe { value.assume_init() })
    }

    /// Stores a value.
    ///
    /// # Errors
    /// As [`Mapping::write`].
    pub fn put<T: IntoBytes + Immutable>(&self, at: u64, value: &T) -> Result<()> {
        self.write(at, value.as_bytes())
    }

    /// Loads a word that is aligned in the file, atomically. All operations on words are sequentially consistent.
    ///
    /// # Errors
    /// As [`Mapping::read`]; [`Error::Invalid`] also for a word that is not aligned.
    pub fn load<W: Word>(&self, at: u64) -> Result<W> {
        let addr = self.word(at, size_of::<W>(), false)?;
        let mut out = 0;
        // SAFETY: the word lies in this mapping and is aligned.
        self.retry_faults(false, || unsafe { fault_tolerant::load(addr, size_of::<W>(), &mut out) })?;
        Ok(W::narrow(out))
    }

    /// Stores a word atomically.
    ///
    /// # Errors
    /// As [`Mapping::write`]; [`Error::Invalid`] also for a word that is not aligned.
    pub fn store<W: Word>(&self, at: u64, value: W) -> Result<()> {
        self.swap(at, value).map(drop)
    }

    /// Stores a word and returns its previous value.
    ///
    /// # Errors
    /// As [`Mapping::store`].
    pub fn swap<W: Word>(&self, at: u64, value: W) -> Result<W> {
        let addr = self.word(at, size_of::<W>(), true)?;
        let mut word = value.widen();
        // SAFETY: as in `load`.
        self.retry_faults(true, || unsafe { fault_tolerant::swap(addr, size_of::<W>(), &mut word) })?;
        Ok(W::narrow(word))
    }

    /// Stores `new` if the word equals `expected`: `Ok(Ok(expected))`. Otherwise returns `Ok(Err(actual))`. For
    /// words of 4 and 8 bytes.
    ///
    /// # Errors
    /// As [`Mapping::store`]; [`Error::Invalid`] also for shorter words.
    pub fn compare_exchange<W: Word>(&self, at: u64, expected: W, new: W) -> Result<Result<W, W>> {
        let size = size_of::<W>();
        if size < 4 {
            return Err(Error::Invalid("words of 4 or 8 bytes are compared"));
        }
        let addr = self.word(at, size, true)?;
        let mut seen = expected.widen();
        self.retry_faults(true, || {
            seen = expected.widen();
            // SAFETY: as in `load`.
            unsafe { fault_tolerant::compare(addr, size, &mut seen, new.widen()) }
        })?;
        let seen = W::narrow(seen);
        Ok(if seen.widen() == expected.widen() { Ok(seen) } else { Err(seen) })
    }

    /// The whole mapping, as a [`VolatileSlice`].
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        VolatileSlice { mapping: self, at: 0, len: self.len }
    }

    /// A part of the mapping (in bytes of the mapping). Offsets in it start at 0.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a range outside the mapping, or one that ends before it begins.
    pub fn slice(&self, range: Range<u64>) -> Result<VolatileSlice<'_>> {
        self.as_volatile_slice().subslice(range)
    }
}

/// The length of a range of bytes.
fn len_of(range: &Range<u64>) -> Result<u64> {
    range.end.checked_sub(range.start).ok_or(Error::Invalid("a range that ends before it begins"))
}

/// A part of a mapping, or all of it, for code that would otherwise take a `&mut [u8]`. (The crate `vm-memory` has a type
/// of this name and purpose.) Others may store to the bytes at any time, so no reference to them is made. Every access
/// goes to memory (volatile), and a fault in it is an error.
///
/// Stores reach the file if the mapping is shared, and are as durable as those of [`Mapping::write`]: after
/// [`Mapping::persist`]. An access may block as one through the mapping does: a store to a hole waits for storage.
#[derive(Clone, Copy, Debug)]
pub struct VolatileSlice<'m> {
    mapping: &'m Mapping,
    at: u64,
    len: u64,
}

impl<'m> VolatileSlice<'m> {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, at: u64, len: u64) -> Result<u64> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.at + at),
            _ => Err(Error::Invalid("a range outside the slice")),
        }
    }

    fn has_len(&self, len: usize) -> Result<()> {
        match len as u64 == self.len {
            true => Ok(()),
            false => Err(Error::Invalid("the buffer has another length than the slice")),
        }
    }

    /// A part of this slice (in bytes of the slice).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a range outside the slice, or one that ends before it begins.
    pub fn subslice(&self, range: Range<u64>) -> Result<VolatileSlice<'m>> {
        let len = len_of(&range)?;
        Ok(VolatileSlice { mapping: self.mapping, at: self.at(range.start, len)?, len })
    }
    /// Copies all bytes into `buf`, which has the length of the slice. With concurrent stores, only single bytes are
    /// atomic.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another length. [`Error::Revoked`], [`Error::BeyondEnd`]: `buf` may hold a part then.
    pub fn copy_to(&self, buf: &mut [u8]) -> Result<()> {
        self.has_len(buf.len())?;
        self.read(0, buf)
    }
    /// Stores `bytes`, which have the length of the slice, over all of it. Only single bytes are atomic.
    ///
    /// # Errors
    /// As [`VolatileSlice::copy_to`], with a part stored. [`Error::ReadOnly`] in a mapping without stores.
    /// [`Error::NoSpace`] if a hole could not be allocated.
    pub fn copy_from(&self, bytes: &[u8]) -> Result<()> {
        self.has_len(bytes.len())?;
        self.write(0, bytes)
    }
    /// See [`Mapping::read`].
    ///
    /// # Errors
    /// As there; [`Error::Invalid`] outside the slice.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.mapping.read(self.at(at, buf.len() as u64)?, buf)
    }
    /// See [`Mapping::write`].
    ///
    /// # Errors
    /// As there; [`Error::Invalid`] outside the slice.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.mapping.write(self.at(at, bytes.len() as u64)?, bytes)
    }
    /// See [`Mapping::load`].
    ///
    /// # Errors
    /// As there; [`Error::Invalid`] outside the slice.
    pub fn load<W: Word>(&self, at: u64) -> Result<W> {
        self.mapping.load(self.at(at, size_of::<W>() as u64)?)
    }
    /// See [`Mapping::store`].
    ///
    /// # Errors
    /// As there; [`Error::Invalid`] outside the slice.
    pub fn store<W: Word>(&self, at: u64, value: W) -> Result<()> {
        self.mapping.store(self.at(at, size_of::<W>() as u64)?, value)
    }
    /// Copies all bytes into a new vector.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for more than an address space; [`Error::Revoked`], [`Error::BeyondEnd`].
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let len = usize::try_from(self.len).map_err(|_| Error::TooLarge)?;
        let mut bytes = vec![0; len];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }
}
