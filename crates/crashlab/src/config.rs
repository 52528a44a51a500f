//! Configuration: the simulated media, and the number of crash states to try.

/// How a store becomes durable on the simulated media.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// Byte-addressable memory beneath a processor cache. 8 aligned bytes become durable at a time, in any order,
    /// until flushed and fenced by one thread. One view; durable at the fence.
    Lines,
    /// An ordinary file. Contents of the page cache may be on the disk or not, page by page (if torn, sector by
    /// sector), in any version since the last sync. Two views; durable at the sync.
    Pages,
}

/// Limits on what to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Try all combinations at a point if there are at most this many.
    pub exhaustive_up_to: usize,
    /// Otherwise try this many selected and random ones.
    pub sampled: usize,
    /// Limit on crash points, spread over the trace; the end is always included.
    pub points: usize,
    /// Whether to simulate kills of the process too.
    pub kills: bool,
    /// Whether a page that is being written to a disk can be torn at 512-byte sectors. Memory is always torn at 8
    /// bytes.
    pub tear_pages: bool,
    /// Only this point and state, as reported by an earlier failure.
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
    /// A smaller budget, for long traces and for recoveries that are crashed themselves.
    pub fn small() -> Budget {
        Budget { exhaustive_up_to: 64, sampled: 48, points: 24, ..Budget::default() }
    }

    /// This budget, restricted to one state that a [`Failure`](crate::Failure) reported. The other fields must be
    /// as they were.
    #[must_use]
    pub fn only(self, point: usize, state: usize) -> Budget {
        Budget { only: Some((point, state)), ..self }
    }
}
