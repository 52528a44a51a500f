//! What was recorded of one run, and the moments at which it can be cut off.

use std::sync::Arc;

use crate::config::Flavour;
use crate::log::Log;
use crate::pages::PageMap;

/// What went away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CrashKind {
    /// The power: caches and page cache are gone, and the media's `cache_id` is a new one.
    PowerCut,
    /// The process: everything it had stored is there, except a private overlay. Same `cache_id`.
    ProcessKill,
}

/// A moment of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashPoint {
    /// Its number in [`Trace::crash_points`](crate::Trace::crash_points).
    pub number: usize,
    /// The event that has not happened yet (the number of events: the end).
    pub event: usize,
    /// What goes away here.
    pub kind: CrashKind,
}

/// The image at the start, and everything that was done to the media since.
pub(crate) struct Recording {
    pub(crate) base: Arc<PageMap>,
    pub(crate) log: Log,
    pub(crate) flavour: Flavour,
    pub(crate) seed: u64,
}
