//! Open files by number: what a transport gives back with each read and write.
//!
//! ```text
//!   handle = generation (20 bits) | use of the place (22) | place (22)
//!   place  = index in shard * SHARDS + shard                            64 shards, each with its own lock
//! ```
//!
//! The generation is that of the process that opened the file. So a number is not used again, also after a process has taken
//! over: a close that is sent again must not close what has the place by now. Two threads on different files take different locks, on different cache lines.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::handle_table::{Entry, HandleTable};
use crate::transport::{Errno, Handle, Reply, RequestNumber};

const SHARDS: usize = 64;
const PLACE_BITS: u32 = 22;
const USE_BITS: u32 = 22;
const GENERATION_BITS: u32 = 20;

#[derive(Debug)]
struct Slot<T> {
    file: Option<(u64, T)>,
    /// How often the place was used.
    uses: u64,
}

#[derive(Debug)]
struct Slots<T> {
    /// With the number of its handle.
    places: Vec<Slot<T>>,
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
    table: Option<HandleTable>,
    /// The handles of those before this process, by the request that opened them.
    earlier: Mutex<HashMap<u64, Handle>>,
}

impl<T: Clone> Handles<T> {
    /// No file is open. `table` remembers what will be.
    pub(crate) fn new(table: Option<HandleTable>) -> Handles<T> {
        let shard = || Shard(RwLock::new(Slots { places: Vec::new(), free: Vec::new() }));
        let shards = (0..SHARDS).map(|_| shard()).collect();
        Handles { shards, next: AtomicUsize::new(0), table, earlier: Mutex::default() }
    }

    /// The files that a table has, opened again by `open`. What cannot be opened is not there any more.
    pub(crate) fn restored(table: HandleTable, mut open: impl FnMut(u64) -> Option<T>) -> Handles<T> {
        let handles = Handles::new(None);
        let mut earlier = HashMap::new();
        for (place, Entry { ino, request, handle }) in table.entries() {
            let (shard, index) = Self::place(place);
            let mut slots = handles.shards[shard].0.write();
            while slots.places.len() <= index {
                slots.places.push(Slot { file: None, uses: 0 });
            }
            match open(ino).filter(|_| Self::place(handle) == (shard, index)) {
                Some(file) => {
                    slots.places[index].file = Some((handle, file));
                    earlier.insert(request, Handle(handle));
                }
                None => table.remove(place),
            }
        }
        for shard in &handles.shards {
            let mut slots = shard.0.write();
            let free = (0..slots.places.len()).filter(|&index| slots.places[index].file.is_none()).collect();
            slots.free = free;
        }
        Handles { table: Some(table), earlier: Mutex::new(earlier), ..handles }
    }

    /// What the request has opened already, in a process before this one.
    pub(crate) fn opened_by(&self, request: RequestNumber) -> Option<Handle> {
        if request.again { self.earlier.lock().get(&request.number).copied() } else { None }
    }

    /// Takes in a file that this request has opened; `ENFILE` if there are too many.
    pub(crate) fn insert(&self, file: T, ino: u64, request: RequestNumber) -> Reply<Handle> {
        let generation = u64::from(self.table.as_ref().map_or(0, HandleTable::generation));
        let shard = self.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut slots = self.shards[shard].0.write();
        let index = slots.free.last().copied().unwrap_or(slots.places.len());
        let (place, uses) = ((index * SHARDS + shard) as u64, slots.places.get(index).map_or(0, |slot| slot.uses));
        if place >= 1 << PLACE_BITS {
            return Err(Errno(libc::ENFILE));
        }
        let number = (generation % (1 << GENERATION_BITS)) << (USE_BITS + PLACE_BITS)
            | (uses % (1 << USE_BITS)) << PLACE_BITS
            | place;
        if let Some(table) = &self.table {
            table
                .insert(place, Entry { ino, request: request.number, handle: number })
                .map_err(|_| Errno(libc::ENFILE))?;
        }
        let slot = Slot { file: Some((number, file)), uses: uses + 1 };
        match slots.free.pop() {
            Some(index) => slots.places[index] = slot,
            None => slots.places.push(slot),
        }
        Ok(Handle(number))
    }

    /// The file of a handle; `EBADF` if there is none.
    pub(crate) fn get(&self, handle: Handle) -> Reply<T> {
        let (shard, index) = Self::place(handle.0);
        let slots = self.shards[shard].0.read();
        match slots.places.get(index).and_then(|slot| slot.file.as_ref()) {
            Some((number, file)) if *number == handle.0 => Ok(file.clone()),
            _ => Err(Errno(libc::EBADF)),
        }
    }

    /// Gives the file back; the handle is free.
    pub(crate) fn remove(&self, handle: Handle) -> Option<T> {
        let (shard, index) = Self::place(handle.0);
        let mut slots = self.shards[shard].0.write();
        let (_, file) = slots.places.get_mut(index)?.file.take_if(|(number, _)| *number == handle.0)?;
        if let Some(table) = &self.table {
            table.remove((index * SHARDS + shard) as u64);
        }
        slots.free.push(index);
        Some(file)
    }

    fn place(handle: u64) -> (usize, usize) {
        let place = (handle & ((1 << PLACE_BITS) - 1)) as usize;
        (place % SHARDS, place / SHARDS)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const FIRST: RequestNumber = RequestNumber { number: 1, again: false };

    #[test]
    fn a_handle_finds_its_file_until_it_is_closed_and_is_not_used_again() {
        let handles = Handles::new(None);
        let all: Vec<Handle> = (0..1000).map(|n| handles.insert(n, 1, FIRST).unwrap()).collect();
        for (n, handle) in all.iter().enumerate() {
            assert_eq!(handles.get(*handle), Ok(n));
        }
        assert_eq!(handles.remove(all[7]), Some(7));
        assert_eq!(handles.remove(all[7]), None, "closing twice does nothing");
        assert_eq!(handles.get(all[7]), Err(Errno(libc::EBADF)));
        assert_eq!(handles.get(Handle(u64::MAX)), Err(Errno(libc::EBADF)), "any number may be asked for");
        let again: Vec<Handle> = (0..SHARDS).map(|n| handles.insert(n, 1, FIRST).unwrap()).collect();
        let place = |handle: &Handle| handle.0 % (1 << PLACE_BITS);
        let reused = again.iter().find(|handle| place(handle) == place(&all[7])).expect("a free place is taken first");
        assert_ne!(*reused, all[7], "under another number: a close that comes again must not close it");
        assert_eq!(handles.remove(all[7]), None);
        assert!(handles.get(*reused).is_ok());
    }

    #[test]
    fn the_next_process_has_the_same_handles_and_no_new_one_is_equal_to_an_old_one() {
        let table = HandleTable::new().unwrap();
        let fd = table.as_fd().try_clone_to_owned().unwrap();
        let before = Handles::new(Some(table));
        let request = |number, again| RequestNumber { number, again };
        let all: Vec<Handle> = (0..200).map(|n| before.insert(n, n + 1, request(n + 500, false)).unwrap()).collect();
        assert_eq!(before.remove(all[9]), Some(9));
        drop(before);

        let open = |ino: u64| (ino != 21).then(|| ino - 1);
        let now = Handles::restored(HandleTable::take_over(fd).unwrap(), open);
        for (n, handle) in all.iter().enumerate() {
            let found = if n == 9 || n == 20 { Err(Errno(libc::EBADF)) } else { Ok(n as u64) };
            assert_eq!(now.get(*handle), found, "{n}");
        }
        assert_eq!(now.opened_by(request(503, true)), Some(all[3]));
        assert_eq!(now.opened_by(request(503, false)), None);
        // A close that comes again does not close what has the place by now.
        let new: Vec<Handle> = (0..500).map(|n| now.insert(n, 1, request(n, false)).unwrap()).collect();
        assert!(new.iter().all(|handle| !all.contains(handle)));
        assert_eq!(now.remove(all[9]), None);
        assert!(new.iter().all(|handle| now.get(*handle).is_ok()));
    }
}
