//! Open files by number: what a transport gives back with each read and write.
//!
//! ```text
//!   handle = index in shard * SHARDS + shard       64 shards, each with its own lock
//! ```
//!
//! Two threads on different files take different locks, on different cache lines.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::transport::{Errno, Handle, Reply};

const SHARDS: usize = 64;

#[derive(Debug)]
struct Slots<T> {
    open: Vec<Option<T>>,
    free: Vec<usize>,
}

#[derive(Debug)]
#[repr(align(128))]
struct Shard<T>(RwLock<Slots<T>>);

/// A table of open files. `T` is cheap to clone: a lookup clones it and releases the lock, so
/// that closing one file never waits for the reading of another.
#[derive(Debug)]
pub(crate) struct Handles<T> {
    shards: Box<[Shard<T>]>,
    next: AtomicUsize,
}

impl<T: Clone> Handles<T> {
    pub(crate) fn new() -> Handles<T> {
        let shard = || Shard(RwLock::new(Slots { open: Vec::new(), free: Vec::new() }));
        Handles { shards: (0..SHARDS).map(|_| shard()).collect(), next: AtomicUsize::new(0) }
    }

    /// Takes a file in.
    pub(crate) fn insert(&self, file: T) -> Handle {
        let shard = self.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut slots = self.shards[shard].0.write();
        let index = match slots.free.pop() {
            Some(index) => {
                slots.open[index] = Some(file);
                index
            }
            None => {
                slots.open.push(Some(file));
                slots.open.len() - 1
            }
        };
        Handle((index * SHARDS + shard) as u64)
    }

    /// The file of a handle; `EBADF` if there is none.
    pub(crate) fn get(&self, handle: Handle) -> Reply<T> {
        let (shard, index) = Self::place(handle);
        let slots = self.shards[shard].0.read();
        slots.open.get(index).and_then(Clone::clone).ok_or(Errno(libc::EBADF))
    }

    /// Gives the file back; the handle is free.
    pub(crate) fn remove(&self, handle: Handle) -> Option<T> {
        let (shard, index) = Self::place(handle);
        let mut slots = self.shards[shard].0.write();
        let file = slots.open.get_mut(index)?.take()?;
        slots.free.push(index);
        Some(file)
    }

    fn place(handle: Handle) -> (usize, usize) {
        (handle.0 as usize % SHARDS, handle.0 as usize / SHARDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_finds_its_file_until_it_is_closed_and_is_then_used_again() {
        let handles = Handles::new();
        let all: Vec<Handle> = (0..1000).map(|n| handles.insert(n)).collect();
        for (n, handle) in all.iter().enumerate() {
            assert_eq!(handles.get(*handle), Ok(n));
        }
        assert_eq!(handles.remove(all[7]), Some(7));
        assert_eq!(handles.remove(all[7]), None, "closing twice does nothing");
        assert_eq!(handles.get(all[7]), Err(Errno(libc::EBADF)));
        assert_eq!(handles.get(Handle(u64::MAX)), Err(Errno(libc::EBADF)), "any number may be asked for");
        let again: Vec<Handle> = (0..SHARDS).map(|n| handles.insert(n)).collect();
        assert!(again.contains(&all[7]), "a free place is taken before the table grows");
    }
}
