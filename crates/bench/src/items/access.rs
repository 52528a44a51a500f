//! Clients of a mount, or of any directory: the operations of a round, and the threads that execute them.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;
use rustix::fs::{AtFlags, statat, unlinkat};

use super::names::{many, open_dir, touch};
use crate::race::{offsets, together};

/// Size of the files that are read and written.
pub(super) const LEN: u64 = 32 << 20;

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
}

/// One directory's files under measurement.
pub(super) struct Side {
    files: Vec<File>,
    dir: OwnedFd,
}

impl Side {
    /// The named files of `dir`, one for each client thread.
    pub(super) fn open(dir: &Path, names: [&str; 2]) -> Result<Side> {
        let open = |name: &str| File::options().read(true).write(true).open(dir.join(name));
        Ok(Side { files: names.map(open).into_iter().collect::<std::io::Result<_>>()?, dir: open_dir(dir)? })
    }

    /// Nanoseconds per operation (over all threads) for `ops` transfers by each thread.
    pub(super) fn transfer(&self, way: Way, block: u64, threads: usize, ops: usize, first: usize) -> Result<f64> {
        let places = offsets(ops, LEN, block);
        let span = together(threads, first, &|i| {
            let mut bytes = vec![0x5a; block as usize];
            let file = &self.files[i];
            for &at in &places {
                match way {
                    Way::Read => file.read_exact_at(&mut bytes, at)?,
                    Way::Write => file.write_all_at(&bytes, at)?,
                }
            }
            Ok(())
        })?;
        Ok(span / (ops * threads) as f64)
    }

    /// Nanoseconds for creating, querying and removing an empty file.
    pub(super) fn churn(&self, ops: usize, first: usize) -> Result<f64> {
        let names: Vec<CString> = many("churn", ops);
        let span = together(1, first, &|_| {
            for name in &names {
                touch(&self.dir, name)?;
                statat(&self.dir, name, AtFlags::empty())?;
                unlinkat(&self.dir, name, AtFlags::empty())?;
            }
            Ok(())
        })?;
        Ok(span / ops as f64)
    }
}
