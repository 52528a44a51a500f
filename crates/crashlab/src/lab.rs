//! `Lab`: creates simulated media.

use std::io;
use std::sync::Arc;

use crate::config::Flavour;
use crate::simulator::{IdleSimulators, Simulator};

/// Creates simulated media of one length and flavour.
///
/// Cloning a lab is cheap. Clones share the idle simulators.
#[derive(Clone, Debug)]
pub struct Lab {
    idle: Arc<IdleSimulators>,
}

impl Lab {
    /// A lab for media of `len` bytes. The same seed gives the same crash states.
    pub fn new(len: u64, flavour: Flavour, seed: u64) -> Lab {
        Lab { idle: IdleSimulators::new(len, flavour, seed) }
    }

    /// Media of zeros, not recording yet.
    ///
    /// # Errors
    /// If the kernel denies the address space.
    pub fn media(&self) -> io::Result<Arc<Simulator>> {
        self.idle.fresh().map(Arc::new)
    }
}
