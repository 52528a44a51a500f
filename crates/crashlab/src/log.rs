//! The log of the operations on a simulator, in order.
//!
//! ```text
//!   ops    Write  Write  PersistEnd  Write  Flush  Mark  Fence ...
//!            |      |                  |
//!   bytes  [....][......]            [...]              one arena, so recording allocates little
//! ```
//! A persist call is one `Write` or `Zero` per part and a `PersistEnd`, which is its fence. So the moments *during*
//! the call are normal moments between two events.

use std::thread::ThreadId;

/// How bytes reached the media.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    /// A part of a persist call; fenced by the `PersistEnd` of the same thread.
    Persist,
    /// A store, to be flushed and fenced by the thread that made it (line flavour only: in the page flavour a store
    /// changes nothing outside the process and is not logged).
    Store,
    /// An overlay page that a flush writes to the page cache (page flavour only).
    Writeback,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// `len` bytes from the arena at `data`.
    Write {
        via: Via,
        at: u64,
        len: u64,
        data: usize,
    },
    /// `len` zeros (a part of a persist call).
    Zero {
        at: u64,
        len: u64,
    },
    Flush {
        at: u64,
        len: u64,
    },
    Fence,
    PersistEnd,
    Sync,
    Mark,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) op: Op,
    pub(crate) thread: ThreadId,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.op {
            Op::Write { via, at, len, .. } => {
                let what = match via {
                    Via::Persist => "persist",
                    Via::Store => "store",
                    Via::Writeback => "write back",
                };
                write!(f, "{what} of {len} bytes at {at:#x}")
            }
            Op::Zero { at, len } => write!(f, "persist of {len} zeros at {at:#x}"),
            Op::Flush { at, len } => write!(f, "flush of {len} bytes at {at:#x}"),
            Op::Fence => f.write_str("fence"),
            Op::PersistEnd => f.write_str("fence that ends a persist"),
            Op::Sync => f.write_str("sync"),
            Op::Mark => f.write_str("mark"),
        }
    }
}

#[derive(Default, Debug)]
pub(crate) struct Log {
    pub(crate) events: Vec<Event>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) marks: Vec<String>,
}

impl Log {
    pub(crate) fn push(&mut self, op: Op) {
        self.events.push(Event { op, thread: std::thread::current().id() });
    }
    pub(crate) fn write(&mut self, via: Via, at: u64, bytes: &[u8]) {
        let data = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.push(Op::Write { via, at, len: bytes.len() as u64, data });
    }
    pub(crate) fn mark(&mut self, label: String) {
        self.marks.push(label);
        self.push(Op::Mark);
    }
    /// Removes everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.events.clear();
        self.bytes.clear();
        self.marks.clear();
    }
    /// The bytes of a write.
    pub(crate) fn data(&self, data: usize, len: u64) -> &[u8] {
        &self.bytes[data..data + len as usize]
    }
}
