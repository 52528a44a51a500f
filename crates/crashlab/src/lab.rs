//! The lab: which kind of memory is simulated, and the simulators that wait to be used again.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::moment::CrashImage;
use crate::simulator::Simulator;

/// How a store becomes durable on the simulated media.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// Byte-addressable memory behind a processor cache: 8 aligned bytes at a time, in any order,
    /// until flushed and fenced by one thread. One window; durable at the fence.
    Lines,
    /// An ordinary file: what is in the page cache may be on the disk or not, page by page (and,
    /// if torn, sector by sector), in any version since the last sync. Two windows; durable at
    /// the sync.
    Pages,
}

/// Makes simulated media of one length and flavour.
///
/// A lab is cheap to clone; clones share the idle simulators.
#[derive(Clone, Debug)]
pub struct Lab {
    nursery: Arc<Nursery>,
}

impl Lab {
    /// A lab for media of `len` bytes. The same seed gives the same crash states.
    pub fn new(len: u64, flavour: Flavour, seed: u64) -> Lab {
        Lab { nursery: Nursery::new(len, flavour, seed) }
    }

    /// Media full of zeros, not yet recording.
    ///
    /// # Errors
    /// When the kernel refuses the address space.
    pub fn media(&self) -> io::Result<Arc<Simulator>> {
        self.nursery.fresh().map(Arc::new)
    }
}

/// Simulators that nobody uses. Loading the next image into one of them copies only what differs,
/// which is what makes tens of thousands of crash states per second possible.
#[derive(Debug)]
pub(crate) struct Nursery {
    len: u64,
    flavour: Flavour,
    seed: u64,
    idle: Mutex<Vec<Arc<Simulator>>>,
}

impl Nursery {
    pub(crate) fn new(len: u64, flavour: Flavour, seed: u64) -> Arc<Nursery> {
        Arc::new(Nursery { len, flavour, seed, idle: Mutex::default() })
    }

    fn fresh(self: &Arc<Self>) -> io::Result<Simulator> {
        Simulator::new(self.len, self.flavour, self.seed, Arc::downgrade(self))
    }

    /// A simulator that holds `image` and records from there.
    pub(crate) fn revive(self: &Arc<Self>, image: CrashImage, cache_id: [u8; 16]) -> io::Result<Arc<Simulator>> {
        let idle = self.idle.lock().pop();
        let mut sim = match idle {
            Some(sim) => sim,
            None => Arc::new(self.fresh()?),
        };
        match Arc::get_mut(&mut sim) {
            Some(free) => free.load(image, cache_id),
            None => {
                let mut other = self.fresh()?;
                other.load(image, cache_id);
                sim = Arc::new(other);
            }
        }
        Ok(sim)
    }

    /// Takes a simulator back, unless somebody still holds it.
    pub(crate) fn give_back(&self, mut sim: Arc<Simulator>) {
        if Arc::get_mut(&mut sim).is_some() {
            self.idle.lock().push(sim);
        }
    }
}
