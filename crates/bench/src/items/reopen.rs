//! Opening after the process was killed: small and huge pools, none and a million files; and the size of a pool's
//! metadata, in DRAM and on the media.
//!
//! Each open runs in a new process, so it includes everything (also the measurement of the store methods). The
//! process is killed afterwards.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;

use super::Report;
use crate::child::{Job, delegate};
use crate::config::Config;
use crate::figure::{Figure, Target, Unit};
use crate::place::on_tmpfs;
use crate::race::median;

pub(super) const NAME: &str = "reopen";

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const TEN_MS: Target = Target::AtMost(10e6);

/// The results of an open.
struct Opened {
    ns: f64,
    worst: f64,
    grown: f64,
    dram: f64,
    replayed: f64,
}

struct Case {
    path: std::path::PathBuf,
    made_ns: f64,
    blocks: u64,
    _dir: TempDir,
}

fn make(config: &Config, size: u64) -> Result<Case> {
    let dir = on_tmpfs()?;
    let path = dir.path().join("pool");
    let made_ns = delegate(config, Job::Make(size), &path)?.first().copied().unwrap_or(f64::NAN);
    let blocks = std::fs::metadata(&path)?.blocks() * 512;
    Ok(Case { path, made_ns, blocks, _dir: dir })
}

/// Kills and opens several times, with different amounts of work in the journal.
fn open(config: &Config, path: &Path) -> Result<Opened> {
    let mut all: [Vec<f64>; 4] = Default::default();
    for round in 0..config.rounds(12) as u64 {
        delegate(config, Job::FillAndDie(round * 211 % 1500), path)?;
        for (all, value) in all.iter_mut().zip(delegate(config, Job::Open, path)?) {
            all.push(value);
        }
    }
    let worst = all[0].iter().copied().fold(0.0, f64::max);
    let [ns, grown, dram, replayed] = all.map(median);
    Ok(Opened { ns, worst, grown, dram, replayed })
}

pub(super) fn run(config: &Config, report: Report<'_>) -> Result<()> {
    let small = make(config, GIB)?;
    let base = open(config, &small.path)?;
    for size in [TIB, 64 * TIB] {
        let case = make(config, size)?;
        let what = |text: &str| format!("{text} {} TiB pool", size / TIB);
        let peer = ("making a 1 GiB pool", small.made_ns);
        let cost = case.made_ns / small.made_ns;
        report(Figure::new(NAME, what("making a sparse"), Unit::Nanoseconds, case.made_ns, peer, cost, TEN_MS));
        let opened = open(config, &case.path)?;
        report(open_figure(what("opening an empty"), &opened, &base));
        let peer = ("opening 1 GiB", base.grown);
        let cost = opened.grown / base.grown;
        let target = Target::RatioAtMost(1.25);
        report(
            Figure::new(NAME, what("DRAM taken by opening a"), Unit::Bytes, opened.grown, peer, cost, target)
                .note(format!("the engine counts {:.0} KiB", opened.dram / 1024.0)),
        );
        let blocks = case.blocks as f64;
        let peer = ("a new 1 GiB pool", small.blocks as f64);
        report(
            Figure::new(NAME, what("media taken by a new"), Unit::Bytes, blocks, peer, f64::NAN, Target::None)
                .note("blocks of the sparse file"),
        );
    }
    descriptors(report);
    files(config, report, &base)
}

/// The size of the descriptors is fixed by the format: 64 bytes for each 2 MiB.
fn descriptors(report: Report<'_>) {
    let (ours, kernel) = ((TIB / pagestone::FRAME_SIZE * 64) as f64, (TIB / pagestone::PAGE_SIZE * 64) as f64);
    let target = Target::AtMost(32.0 * 1_048_576.0);
    let peer = ("the kernel's struct page", kernel);
    report(Figure::new(NAME, "descriptors per TiB at rest", Unit::Bytes, ours, peer, ours / kernel, target));
}

fn open_figure(what: String, opened: &Opened, base: &Opened) -> Figure {
    let peer = ("opening an empty 1 GiB pool", base.ns);
    let note = format!("worst {:.2} ms, {:.0} records replayed", opened.worst / 1e6, opened.replayed);
    Figure::new(NAME, what, Unit::Nanoseconds, opened.ns, peer, opened.ns / base.ns, TEN_MS).note(note)
}

fn files(config: &Config, report: Report<'_>, base: &Opened) -> Result<()> {
    let counts: &[u64] = if config.quick { &[100_000] } else { &[100_000, 1_000_000] };
    let case = make(config, TIB)?;
    let mut there = 0;
    for &count in counts {
        delegate(config, Job::FillAndDie(count - there), &case.path)?;
        there = count;
        let opened = open(config, &case.path)?;
        report(open_figure(format!("opening a 1 TiB pool with {count} files"), &opened, base));
    }
    Ok(())
}
