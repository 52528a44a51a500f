//! Makes simulated media.

use std::io;
use std::sync::Arc;

use crate::config::Flavour;
use crate::simulator::{IdleSimulators, Simulator};

/// Makes simulated media of one length and flavour.
///
/// A lab is cheap to clone; clones share the idle simulators.
#[derive(Clone, Debug)]
pub struct Lab {
    idle: Arc<IdleSimulators>,
}

impl Lab {
    /// A lab for media of `len` bytes. The same seed gives the same crash states.
    pub fn new(len: u64, flavour: Flavour, seed: u64) -> Lab {
        Lab { idle: IdleSimulators::new(len, flavour, seed) }
    }

    /// Media full of zeros, not yet recording.
    ///
    /// # Errors
    /// When the kernel refuses the address space.
    pub fn media(&self) -> io::Result<Arc<Simulator>> {
        self.idle.fresh().map(Arc::new)
    }
}
