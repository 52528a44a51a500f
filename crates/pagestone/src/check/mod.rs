//! Proves that nothing is lost and nothing owned twice, and repairs what can be repaired.
//!
//! ```text
//!   walk.rs     names -> inodes -> maps: every page that is reached is claimed once, and its
//!               descriptor must name that owner
//!   owners.rs   descriptors -> claims: every page that is owned was claimed; counts agree
//!   repair.rs   what follows from a finding, as ordinary transactions
//! ```
//!
//! A check has the pool for itself. It takes DRAM in proportion to what is in use (about 100 bytes
//! per frame and 60 per inode), unlike everything else here.

mod fixed;
mod owners;
mod paths;
mod repair;
mod walk;

use std::path::Path;
use std::sync::Arc;

use pmem::{Media, MediaKind, Region};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::pool::{OpenOptions, Pool, open_existing};

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What is wrong, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// Inodes reached.
    pub inodes: u64,
    /// Pages owned.
    pub pages: u64,
    /// Pages, among them, that were taken out of use because the media had lost them.
    pub retired: u64,
}

impl Report {
    /// Nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Everything that was found is repaired.
    pub fn is_repaired(&self) -> bool {
        self.findings.iter().all(|f| f.repaired)
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Which structure, where; with the path of the file if one is concerned.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
    /// What that means for the user's data.
    pub consequence: String,
    /// Whether it was repaired.
    pub repaired: bool,
}

/// Called with work done and work in all (inodes and frames).
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What a check is to do.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CheckOptions {
    repair: bool,
    data: bool,
    media: Option<MediaKind>,
}

impl CheckOptions {
    /// A check that changes nothing, and reads no data of files.
    pub fn new() -> CheckOptions {
        CheckOptions::default()
    }

    /// Whether to mend what can be mended, and check again.
    pub fn repair(mut self, repair: bool) -> CheckOptions {
        self.repair = repair;
        self
    }

    /// Whether to read the data of all files, too, and name what the media have lost of them.
    pub fn data(mut self, data: bool) -> CheckOptions {
        self.data = data;
        self
    }

    /// What kind of media the path is; `None` finds out.
    pub fn media(mut self, kind: impl Into<Option<MediaKind>>) -> CheckOptions {
        self.media = kind.into();
        self
    }
}

/// Checks the pool at `path`. `progress` is called with the work done and the work in all. Nobody else has the pool
/// then, so whatever it does, it cannot wait for a lock of ours.
///
/// Without `repair` the media is opened read-only and not changed: a journal is replayed in
/// private memory.
///
/// # Errors
/// What [`Pool::open`] answers, except damage, which is a finding.
pub fn check(path: impl AsRef<Path>, options: &CheckOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    let opened =
        open_existing(path.as_ref(), &pmem::Open { read_only: !options.repair, kind: options.media, size: None })?;
    check_on(opened.media, options, progress)
}

/// As [`check`], of media that are open already; `repair` needs media that take changes.
pub fn check_on(media: Arc<dyn Media>, options: &CheckOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    let region = Region::new(media.clone());
    let superblocks = fixed::check_superblocks(&region, options.repair)?;
    let read_only = region.describe().read_only;
    let pool = match Pool::open_on(media, &OpenOptions::new().read_only(read_only)) {
        Ok(pool) => pool,
        Err(e @ (Error::Corrupt { .. } | Error::Lost(_))) => {
            let (place, what) = match e {
                Error::Corrupt { place, what } => (place, what),
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

/// One look at everything, and what repair needs to know.
pub(crate) struct Pass {
    report: Report,
    /// Whether to read the data.
    data: bool,
    fixes: Vec<repair::Fix>,
}

impl Pass {
    fn find(&mut self, place: impl Into<String>, what: impl Into<String>, consequence: &str) {
        let (place, what) = (place.into(), what.into());
        // One finding for one thing, however often it is met.
        if !self.report.findings.iter().rev().take(64).any(|f| f.place == place && f.what == what) {
            self.report.findings.push(Finding { place, what, consequence: consequence.into(), repaired: false });
        }
    }

    /// Reports an error that an access met.
    fn add_error(&mut self, context: &str, error: &Error, consequence: &str) {
        match error {
            Error::Corrupt { place, what } => self.find(format!("{place} ({context})"), what.clone(), consequence),
            other => self.find(context, other.to_string(), consequence),
        }
    }
}

/// What a finding says of bytes that the media have lost. Only a write over them mends it.
const DATA_LOST: &str = "reads of it are errors; the rest of the file is there; written over, it gets new storage";

fn pass(pool: &Pool, data: bool, progress: Progress<'_>) -> Pass {
    let mut pass = Pass { report: Report::default(), data, fixes: Vec::new() };
    let engine = pool.engine();
    fixed::compare_states(engine, &mut pass);
    let claims = walk::walk(engine, &mut pass, progress);
    owners::compare(engine, &mut pass, &claims, progress);
    pass
}
