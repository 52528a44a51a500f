//! Memory of this process as media: for tests, for the model checker, and for data that need not outlive the
//! process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::MemfdFlags;

use super::mapped_range::MAX_ROOM;
use super::{
    Description, Durability, Granularity, MapMode, MappedRange, Media, MediaKind, Part, PersistMethod, Share, Views,
};
use crate::{HUGE_PAGE_SIZE, PAGE_SIZE};

/// Anonymous memory. Everything counts as durable until the value is dropped.
#[derive(Debug)]
pub struct Memory {
    /// The file that `bytes` maps, so that parts of it can be mapped a second time.
    file: OwnedFd,
    bytes: MappedRange,
    description: Description,
}

impl Memory {
    /// `len` zero bytes; pages that are never stored to take no memory.
    pub fn new(len: u64) -> io::Result<Memory> {
        let file = rustix::fs::memfd_create("pagestone", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len)?;
        let bytes = MappedRange::file_with_room(file.as_fd(), len, (0, MAX_ROOM), HUGE_PAGE_SIZE, Share::Shared)?;
        bytes.advise_huge();
        Ok(Memory {
            file,
            bytes,
            description: Description {
                kind: MediaKind::Memory,
                granularity: Granularity::Byte,
                method: PersistMethod::None,
                durability: Durability::AtFence,
                promise: "nothing survives the end of this process".into(),
                cache_id: [0; 16],
                read_only: false,
            },
        })
    }

    /// The bytes, for tests that damage or compare them.
    pub fn bytes(&self) -> &MappedRange {
        &self.bytes
    }
}

impl Media for Memory {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn takes_transfers(&self) -> bool {
        true
    }

    fn views(&self) -> Views<'_> {
        Views { meta: &self.bytes, data: &self.bytes }
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        for part in parts {
            let inside = match *part {
                Part::Bytes { at, bytes } => self.bytes.write(at, bytes),
                Part::Zero { at, len } => self.bytes.zero(at, len),
            };
            if !inside {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        Ok(())
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        debug_assert!(self.bytes.contains(at, bytes.len() as u64), "Region checks bounds");
        // A fault is noted, and the next read there returns an error.
        let _ = self.bytes.write(at, bytes);
    }
    fn flush(&self, _at: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn fence(&self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn reserve(&self, _at: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn ensure_len(&self, len: u64) -> io::Result<()> {
        if len > self.bytes.len() {
            self.bytes.check_room(len)?;
            rustix::fs::ftruncate(&self.file, len)?;
            self.bytes.extend(self.file.as_fd(), len, Share::Shared)?;
            self.bytes.advise_huge();
        }
        Ok(())
    }
    fn next_data(&self, at: u64, len: u64) -> Option<u64> {
        super::file_len::next_data(self.file.as_fd(), at, len)
    }
    fn map_alignment(&self) -> Option<u64> {
        Some(PAGE_SIZE)
    }
    unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> io::Result<()> {
        // SAFETY: the caller guarantees it.
        unsafe { MappedRange::map_at(self.file.as_fd(), at, len, to, how, false) }
    }
}
