//! The configuration of a run: what to measure, and how long.

use std::ffi::OsString;
use std::path::PathBuf;

/// The configuration of a run.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The pool to measure the library in; `None` creates temporary ones.
    pub pool: Option<PathBuf>,
    /// Fewer rounds, fewer files.
    pub quick: bool,
    /// Run only the item with this name.
    pub only: Option<String>,
    /// The command (program and first arguments) that runs a [`Job`](crate::Job) in another process. A job and the
    /// path of a pool are appended.
    pub child: Vec<OsString>,
}

impl Config {
    /// Number of rounds: `many`, or a third of it for a quick run.
    pub(crate) fn rounds(&self, many: usize) -> usize {
        if self.quick { (many / 3).max(3) } else { many }
    }
}
