//! The recording of one run, and the points at which it can be crashed.

use std::sync::Arc;

use crate::config::Flavour;
use crate::log::Log;
use crate::pages::PageMap;

/// The kind of crash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CrashKind {
    /// Power cut: the caches and the page cache are lost, and the media get a new `cache_id`.
    PowerCut,
    /// Kill of the process: everything it has stored remains, except a private overlay. Same `cache_id`.
    ProcessKill,
}

/// A moment of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashPoint {
    /// Its index in [`Trace::crash_points`](crate::Trace::crash_points).
    pub number: usize,
    /// The first event that does not happen (the number of events means the end).
    pub event: usize,
    /// The kind of crash.
    pub kind: CrashKind,
}

/// The image at the start, and everything done to the media since.
pub(crate) struct Recording {
    pub(crate) base: Arc<PageMap>,
    pub(crate) log: Log,
    pub(crate) flavour: Flavour,
    pub(crate) seed: u64,
}
