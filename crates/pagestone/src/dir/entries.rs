//! A listing of a directory: batches of entries, and no lock between them.
//!
//! ```text
//!   cookie 0 --read_entries--> [e1 .. e128]   the lock is released
//!   cookie of e128 ----------> [e129 ..   ]   until a batch is short
//! ```

use std::iter::FusedIterator;

use super::Dir;
use crate::attr::DirEntry;
use crate::error::Result;

/// Entries that are read while the directory is locked once.
const BATCH: usize = 128;

/// The entries of a directory; see [`Dir::entries`]. After an error it ends.
#[derive(Debug)]
pub struct Entries {
    dir: Dir,
    batch: std::vec::IntoIter<DirEntry>,
    cookie: u64,
    /// How many are read at once: one at a time up to an error, so that everything in front of it is listed.
    at_once: usize,
    ended: bool,
}

impl Entries {
    pub(super) fn new(dir: Dir) -> Entries {
        Entries { dir, batch: Vec::new().into_iter(), cookie: 0, at_once: BATCH, ended: false }
    }
}

impl Iterator for Entries {
    type Item = Result<DirEntry>;

    fn next(&mut self) -> Option<Result<DirEntry>> {
        while self.batch.len() == 0 && !self.ended {
            match self.dir.read_entries(self.cookie, self.at_once) {
                Ok(batch) => {
                    self.ended = batch.len() < self.at_once;
                    self.cookie = batch.last().map_or(self.cookie, |last| last.cookie);
                    self.batch = batch.into_iter();
                }
                Err(_) if self.at_once > 1 => self.at_once = 1,
                Err(e) => {
                    self.ended = true;
                    return Some(Err(e));
                }
            }
        }
        self.batch.next().map(Ok)
    }
}

impl FusedIterator for Entries {}
