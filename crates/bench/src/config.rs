//! What to measure, and how thoroughly.

use std::ffi::OsString;
use std::path::PathBuf;

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// A pool to measure the library in, instead of temporary ones.
    pub pool: Option<PathBuf>,
    /// Fewer rounds, fewer files.
    pub quick: bool,
    /// Only the item of this name.
    pub only: Option<String>,
    /// The command (program and first arguments) that runs a [`Job`](crate::Job) in a process of its own: a
    /// job and the path of a pool are appended.
    pub child: Vec<OsString>,
}

impl Config {
    /// Rounds of a race: `many`, or a third of it when in a hurry.
    pub(crate) fn rounds(&self, many: usize) -> usize {
        if self.quick { (many / 3).max(3) } else { many }
    }
}
