//! What is simulated, and how much of it is tried.

/// How a store becomes durable on the simulated media.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// Byte-addressable memory behind a processor cache: 8 aligned bytes at a time, in any order,
    /// until flushed and fenced by one thread. One view; durable at the fence.
    Lines,
    /// An ordinary file: what is in the page cache may be on the disk or not, page by page (and,
    /// if torn, sector by sector), in any version since the last sync. Two views; durable at
    /// the sync.
    Pages,
}

/// How much to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Try all combinations at a point where there are at most so many.
    pub exhaustive_up_to: usize,
    /// Otherwise so many chosen and random ones.
    pub sampled: usize,
    /// At most so many crash points, spread over the trace; the end is always among them.
    pub points: usize,
    /// Whether the process is killed, too.
    pub kills: bool,
    /// Whether a page on its way to a disk can be torn at 512-byte sectors. Memory is always torn
    /// at 8 bytes.
    pub tear_pages: bool,
    /// Only this point and state, as named by an earlier failure.
    pub only: Option<(usize, usize)>,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            exhaustive_up_to: 1 << 10,
            sampled: 1000,
            points: usize::MAX,
            kills: true,
            tear_pages: true,
            only: None,
        }
    }
}

impl Budget {
    /// A smaller one, for long traces and for recoveries that are crashed themselves.
    pub fn small() -> Budget {
        Budget { exhaustive_up_to: 64, sampled: 48, points: 24, ..Budget::default() }
    }

    /// This budget, but only one state: what a [`Failure`](crate::Failure) tells to run again. The other fields
    /// must be as they were.
    #[must_use]
    pub fn only(self, point: usize, state: usize) -> Budget {
        Budget { only: Some((point, state)), ..self }
    }
}
