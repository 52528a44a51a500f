//! Which handle stands for which file, in memory that outlives this process.
//!
//! ```text
//!   header   magic | client | generation | places used         64 bytes
//!   place    inode | request that opened it | handle | 0       32 bytes each; inode 0: free
//! ```
//!
//! A process that takes over a mount finds here what the kernel has open. The memory is a file without a name; another
//! process keeps its descriptor. A place is in use from the store of its inode on, which comes last, and free again from
//! the store of a zero on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pmem::{MappedRange, Share};
use rustix::fs::MemfdFlags;

/// Open files that a table has room for. Its memory is taken as places are used.
const PLACES: u64 = 1 << 22;
const PLACE: u64 = 32;
const HEADER: u64 = 64;
const LEN: u64 = HEADER + PLACES * PLACE;
/// "PSHANDL" and the version of this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"PSHANDL2");
const CLIENT_AT: u64 = 8;
const GENERATION_AT: u64 = 16;
const USED_AT: u64 = 24;

/// The handles of one mount, by place.
#[derive(Debug)]
pub struct HandleTable {
    memory: MappedRange,
    file: File,
    client: u64,
    generation: u32,
    /// Places below this one have been used.
    used: AtomicU64,
    growing: Mutex<()>,
}

/// What a place holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) ino: u64,
    /// The request that opened the file.
    pub(crate) request: u64,
    /// Its handle.
    pub(crate) handle: u64,
}

impl HandleTable {
    /// An empty table, for a new mount.
    ///
    /// # Errors
    /// The system's, where there is no memory.
    pub fn new() -> io::Result<HandleTable> {
        let file = File::from(rustix::fs::memfd_create("pagestone-handles", MemfdFlags::CLOEXEC)?);
        file.set_len(LEN)?;
        let mut client = [0; 8];
        rustix::rand::getrandom(&mut client, rustix::rand::GetRandomFlags::empty())?;
        let client = u64::from_le_bytes(client).max(1);
        let table = HandleTable::map(file, client, 0)?;
        table.put(CLIENT_AT, client)?;
        table.put(0, MAGIC)?;
        Ok(table)
    }

    /// The table of a process that has died. This process is the next generation.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a file that is no table of this version.
    pub fn take_over(fd: OwnedFd) -> io::Result<HandleTable> {
        let file = File::from(fd);
        if file.metadata()?.len() != LEN {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a table of handles of this version"));
        }
        let mut table = HandleTable::map(file, 0, 0)?;
        if table.at(0)? != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a table of handles of this version"));
        }
        table.client = table.at(CLIENT_AT)?;
        let next = table.at(GENERATION_AT)? + 1;
        table.generation = u32::try_from(next).map_err(io::Error::other)?;
        table.put(GENERATION_AT, next)?;
        table.used = AtomicU64::new(table.at(USED_AT)?.min(PLACES));
        Ok(table)
    }

    fn map(file: File, client: u64, generation: u32) -> io::Result<HandleTable> {
        let memory = MappedRange::file(file.as_fd(), LEN, Share::Shared)?;
        Ok(HandleTable { memory, file, client, generation, used: AtomicU64::new(0), growing: Mutex::default() })
    }

    /// The number of the mount as a client of its pool: another one for each mount.
    pub fn client(&self) -> u64 {
        self.client
    }

    /// How many processes have served the mount before this one.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Puts a file at a free place.
    pub(crate) fn insert(&self, place: u64, entry: Entry) -> io::Result<()> {
        if place >= PLACES {
            return Err(rustix::io::Errno::NFILE.into());
        }
        if place >= self.used.load(Ordering::Acquire) {
            let _one = self.growing.lock();
            if place >= self.used.load(Ordering::Relaxed) {
                self.put(USED_AT, place + 1)?;
                self.used.store(place + 1, Ordering::Release);
            }
        }
        let at = HEADER + place * PLACE;
        self.put(at + 16, entry.handle)?;
        self.put(at + 8, entry.request)?;
        self.put(at, entry.ino)
    }

    /// Frees a place.
    pub(crate) fn remove(&self, place: u64) {
        if place < PLACES {
            // It fails for a place outside the memory only.
            let _ = self.put(HEADER + place * PLACE, 0);
        }
    }

    /// The places in use.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, Entry)> {
        (0..self.used.load(Ordering::Relaxed)).filter_map(|place| {
            let at = HEADER + place * PLACE;
            let ino = self.at(at).ok().filter(|&ino| ino != 0)?;
            Some((place, Entry { ino, request: self.at(at + 8).ok()?, handle: self.at(at + 16).ok()? }))
        })
    }

    fn at(&self, at: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        let there = self.memory.read(at, &mut word);
        there.then_some(u64::from_le_bytes(word)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn put(&self, at: u64, word: u64) -> io::Result<()> {
        let done = self.memory.write(at, &word.to_le_bytes());
        done.then_some(()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl AsFd for HandleTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_finds_what_was_open_and_refuses_what_is_no_table() -> io::Result<()> {
        let table = HandleTable::new()?;
        let client = table.client();
        let entry = |ino| Entry { ino, request: ino + 100, handle: ino + 200 };
        for (place, ino) in [(0, 7), (3, 8), (900, 9)] {
            table.insert(place, entry(ino))?;
        }
        table.remove(3);
        assert!(table.insert(PLACES, entry(1)).is_err());
        let fd = table.as_fd().try_clone_to_owned()?;
        drop(table);
        let table = HandleTable::take_over(fd)?;
        assert_eq!((table.client(), table.generation()), (client, 1));
        assert_eq!(table.entries().collect::<Vec<_>>(), [(0, entry(7)), (900, entry(9))]);
        let again = HandleTable::take_over(table.as_fd().try_clone_to_owned()?)?;
        assert_eq!(again.generation(), 2);

        let other = File::from(rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC)?);
        assert!(HandleTable::take_over(other.try_clone()?.into()).is_err());
        other.set_len(LEN)?;
        assert!(HandleTable::take_over(other.into()).is_err());
        Ok(())
    }
}
