//! Crash images: the bytes on the media after a crash.
//!
//! ```text
//!   base (PageMap, shared between states)  +  patches (pool byte, bytes)
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::pages::{PageMap, by_page};

/// The bytes after a crash: an image shared with other states, and the differences from it.
#[derive(Clone)]
pub struct CrashImage {
    pub(crate) base: Arc<PageMap>,
    arena: Arc<Vec<u8>>,
    patches: Vec<(u64, Range<usize>)>,
}

impl CrashImage {
    pub(crate) fn new(base: Arc<PageMap>, arena: Arc<Vec<u8>>, patches: Vec<(u64, Range<usize>)>) -> CrashImage {
        CrashImage { base, arena, patches }
    }

    pub(crate) fn plain(base: Arc<PageMap>) -> CrashImage {
        CrashImage { base, arena: Arc::default(), patches: Vec::new() }
    }

    /// The bytes to store over the base. None crosses a page boundary.
    pub(crate) fn patches(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.patches.iter().map(|(at, range)| (*at, &self.arena[range.clone()]))
    }

    pub(crate) fn into_base(self) -> Arc<PageMap> {
        let mut base = self.base.clone();
        if !self.patches.is_empty() {
            let map = Arc::make_mut(&mut base);
            self.patches().for_each(|(at, bytes)| map.write_within(at, bytes));
        }
        base
    }

    /// Copies bytes out, without loading the image into a simulator.
    pub fn read(&self, at: u64, buf: &mut [u8]) {
        let image = self.clone().into_base();
        for (here, from, len) in by_page(at, buf.len() as u64) {
            buf[from..from + len].copy_from_slice(image.slice(here, len));
        }
    }
}

impl fmt::Debug for CrashImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrashImage").field("patches", &self.patches.len()).finish_non_exhaustive()
    }
}
