//! The consistency check: verifies that every page in use has exactly one owner, and repairs what can be repaired.
//!
//! ```text
//!   fixed.rs    superblock and pool state: both copies
//!   walk.rs     names -> inodes -> maps: claims every reachable page once; its descriptor must
//!               have the same owner
//!   owners.rs   descriptors -> claims: every page with an owner was claimed; counts agree
//!   repair.rs   the repair of each finding, as a transaction
//! ```
//!
//! A check needs exclusive access to the pool: nobody else has it open, or everybody else waits. Unlike the rest of the
//! library it takes DRAM in proportion to what is in use (about 100 bytes per frame, and per inode 100 bytes and the
//! length of its name).

mod fixed;
mod owners;
mod paths;
mod repair;
mod walk;

use std::path::Path;
use std::sync::Arc;

use pmem::{Media, MediaKind, Region};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pool::{OpenOptions, Pool, open_existing};
use crate::resize::Resizing;

/// The result of a check.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Report {
    /// The findings, in the order in which they were made.
    pub findings: Vec<Finding>,
    /// Number of inodes reached.
    pub inodes: u64,
    /// Number of pages in use.
    pub pages: u64,
    /// How many of these are retired because the media have lost them.
    pub retired: u64,
    /// Of a check of a pool in use: how long all other operations had to wait, in nanoseconds.
    #[serde(default)]
    pub pause_ns: u64,
}

impl Report {
    /// Whether there are no findings.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether all findings were repaired.
    pub fn is_repaired(&self) -> bool {
        self.findings.iter().all(|f| f.repaired)
    }
}

/// One inconsistency.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Finding {
    /// The structure and its place; with the path of the file if one is affected.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
    /// The consequence for the user's data.
    pub consequence: String,
    /// Whether it was repaired.
    pub repaired: bool,
}

/// Called with the work done and the total work (in inodes and frames).
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Options for a check.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CheckOptions {
    repair: bool,
    data: bool,
    media: Option<MediaKind>,
}

impl CheckOptions {
    /// A check that changes nothing and does not read the data of files.
    pub fn new() -> CheckOptions {
        CheckOptions::default()
    }

    /// Whether to repair what can be repaired, and check again.
    pub fn repair(mut self, repair: bool) -> CheckOptions {
        self.repair = repair;
        self
    }

    /// Whether to read the data of all files too, and report what the media have lost of it.
    pub fn data(mut self, data: bool) -> CheckOptions {
        self.data = data;
        self
    }

    /// The kind of media at the path; `None` detects it.
    pub fn media(mut self, kind: impl Into<Option<MediaKind>>) -> CheckOptions {
        self.media = kind.into();
        self
    }
}

/// Checks the pool at `path`. `progress` is called with the work done and the total work. The check has exclusive
/// access to the pool, so the callback cannot deadlock with it.
///
/// Without `repair` the media are opened read-only and not changed: the journal is replayed into private memory.
///
/// # Errors
/// Those of [`Pool::open`], except damage, which is a finding.
pub fn check(path: impl AsRef<Path>, options: &CheckOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    let opened = open_existing(
        path.as_ref(),
        &pmem::Open { read_only: !options.repair, kind: options.media, size: None, room: 0, lock: None },
    )?;
    check_on(opened.media, options, progress)
}

/// Checks a pool that is in use, without its data. Nothing is repaired. All other operations on the pool wait until it
/// is done, as [`Report::pause_ns`] says: some microseconds for each inode. Waits for a snapshot or a clone of a tree that
/// is being created or removed. The calling thread must not have memory in a mapping of the pool.
///
/// # Errors
/// [`Error::Busy`] while the pool is grown or shrunk, [`Error::Forked`] in a child of the process.
pub fn check_in_use(pool: &Pool) -> Result<Report> {
    let engine = pool.engine();
    engine.alloc.check_process()?;
    let _one = engine.trees.lock();
    let _size_stays = Resizing::begin(&engine.resizing)?;
    let slowdown = engine.slow_down();
    let pause = slowdown.pause();
    engine.alloc.verify_again();
    let mut report = pass(pool, false, &mut |_, _| {}).report;
    report.pause_ns = u64::try_from(pause.elapsed().as_nanos()).unwrap_or(u64::MAX);
    drop(pause);
    report.findings.splice(0..0, fixed::check_superblocks(&engine.alloc.region, false)?);
    Ok(report)
}

/// As [`check`], for media that are open already. `repair` needs media that take changes.
pub fn check_on(media: Arc<dyn Media>, options: &CheckOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    let region = Region::new(media.clone());
    let superblocks = fixed::check_superblocks(&region, options.repair)?;
    let read_only = region.describe().read_only;
    let pool = match Pool::open_on(media, &OpenOptions::new().read_only(read_only)) {
        Ok(pool) => pool,
        Err(e @ (Error::Corrupt { .. } | Error::Lost(_))) => {
            let (place, what) = match e {
                Error::Corrupt { place, what } => (place.to_string(), what),
                other => ("the pool".into(), other.to_string()),
            };
            let consequence = "the pool cannot be opened".into();
            let fatal = Finding { place, what, consequence, repaired: false };
            return Ok(Report { findings: superblocks.into_iter().chain([fatal]).collect(), ..Report::default() });
        }
        Err(e) => return Err(e),
    };
    let mut report = pass(&pool, options.data, progress);
    if options.repair && !report.report.is_clean() {
        repair::repair(pool.engine(), &report)?;
        let again = pass(&pool, false, progress);
        let lost = |f: &&Finding| f.consequence == DATA_LOST;
        let lost: Vec<Finding> = report.report.findings.iter().filter(lost).cloned().collect();
        let left: Vec<Finding> = again.report.findings.into_iter().chain(lost).collect();
        for finding in &mut report.report.findings {
            finding.repaired = !left.iter().any(|f| f.place == finding.place && f.what == finding.what);
        }
        let known = report.report.findings.clone();
        report
            .report
            .findings
            .extend(left.iter().filter(|f| !known.iter().any(|k| k.place == f.place && k.what == f.what)).cloned());
        pool.sync()?;
    }
    report.report.findings.splice(0..0, superblocks);
    Ok(report.report)
}

/// One pass over the pool, with what a repair needs.
pub(crate) struct Pass {
    report: Report,
    /// Whether to read the data.
    data: bool,
    fixes: Vec<repair::Fix>,
    /// The forwarding table is damaged, so inodes may be where nobody finds them. What they seem not to use or name is
    /// not to be given up.
    inodes_missing: bool,
}

impl Pass {
    fn find(&mut self, place: impl Into<String>, what: impl Into<String>, consequence: &str) {
        let (place, what) = (place.into(), what.into());
        // Report a finding once, however often it is encountered.
        if !self.report.findings.iter().rev().take(64).any(|f| f.place == place && f.what == what) {
            self.report.findings.push(Finding { place, what, consequence: consequence.into(), repaired: false });
        }
    }

    /// Reports an error of an access.
    fn add_error(&mut self, context: &str, error: &Error, consequence: &str) {
        match error {
            Error::Corrupt { place, what } => self.find(format!("{place} ({context})"), what.clone(), consequence),
            other => self.find(context, other.to_string(), consequence),
        }
    }
}

/// The consequence of bytes that the media have lost. Only a write over them repairs it.
const DATA_LOST: &str = "reads of it are errors; the rest of the file is there; written over, it gets new storage";

fn pass(pool: &Pool, data: bool, progress: Progress<'_>) -> Pass {
    let mut pass = Pass { report: Report::default(), data, fixes: Vec::new(), inodes_missing: false };
    let engine = pool.engine();
    fixed::compare_states(engine, &mut pass);
    let claims = walk::walk(engine, &mut pass, progress);
    owners::compare(engine, &mut pass, &claims, progress);
    pass
}
