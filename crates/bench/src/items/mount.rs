//! The mount compared with filesystems that do nothing, on the same transport with the same thread placement; and
//! with tmpfs and the ordinary filesystem, which need no transport.
//!
//! There are two filesystems that do nothing. `Still` reads from as much memory as the file has, and copies writes
//! into it: the same bytes are moved. `NullFs` reads from one small buffer that stays in the cache, and discards
//! writes. Both are reported. The target compares reads with the first, whose bytes come from memory too, and
//! writes with the second.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use pagestone::inode::NewNode;
use pagestone::{CreateOptions, FileType, Pool};
use pagestone_mount::{FileSystem, FuseTransport, Mounted, NullFs, Options, PoolFs, Transport, can_mount};

use super::Report;
use super::access::{LEN, Side, Way};
use super::still::Still;
use crate::config::Config;
use crate::figure::{Figure, Target, Unit};
use crate::place::{on_disk, on_tmpfs, plain_file};
use crate::race::{processors, race_by};

pub(super) const NAME: &str = "mount";

/// At least 0.9 of the rate is at most 1 / 0.9 of the time.
const TARGET: Target = Target::FasterAtLeast(0.9);

/// A served filesystem. It is unmounted before its directory is removed.
pub(super) fn serve<F: FileSystem>(fs: F, dir: &Path) -> Result<Mounted> {
    std::fs::create_dir(dir)?;
    let options = Options { source: "pagestone-bench".into(), ..Options::default() };
    Ok(FuseTransport.serve(Arc::new(fs), dir, &options, None)?)
}

pub(super) fn run(config: &Config, report: Report<'_>) -> Result<()> {
    if let Err(e) = can_mount() {
        report(Figure::skipped(NAME, "all of it", e.to_string()));
        return Ok(());
    }
    let (base, disk) = (on_tmpfs()?, on_disk()?);
    let size = 512 << 20;
    let pool = Pool::create(base.path().join("pool"), &CreateOptions::new().size(size))?;
    for name in ["f0", "f1"] {
        let attr = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o600))?;
        pool.node(attr.ino)?.open()?.write_all_at(&vec![0x5a; LEN as usize], 0)?;
        plain_file(base.path(), name, LEN)?;
        plain_file(disk.path(), name, LEN)?;
    }
    let ours = serve(PoolFs::new(pool), &base.path().join("mount"))?;
    let null = serve(NullFs::new(LEN), &base.path().join("null"))?;
    let still = serve(Still::new(LEN)?, &base.path().join("still"))?;
    let sides = [
        Side::open(ours.dir(), ["f0", "f1"])?,
        Side::open(null.dir(), ["file", "file"])?,
        Side::open(still.dir(), ["file", "file"])?,
        Side::open(base.path(), ["f0", "f1"])?,
        Side::open(disk.path(), ["f0", "f1"])?,
    ];
    against_nothing(config, report, &sides)?;
    against_others(config, report, &sides)?;
    drop(sides);
    for mounted in [ours, null, still] {
        pagestone_mount::unmount(mounted.dir()).context("unmounting")?;
        mounted.wait()?;
    }
    Ok(())
}

fn against_nothing(config: &Config, report: Report<'_>, sides: &[Side; 5]) -> Result<()> {
    for (block, ops) in [(4 << 10, 400), (128 << 10, 60), (1 << 20, 16)] {
        for way in [Way::Read, Way::Write] {
            for threads in 1..=processors().min(2) {
                let times =
                    race_by(config.rounds(31), 3, |side, round| sides[side].transfer(way, block, threads, ops, round))?;
                let verb = if way == Way::Read { "reads" } else { "writes" };
                let peers = [(1, "nothing behind the same mount"), (2, "memory behind the same mount")];
                for (side, name) in peers {
                    let what = format!("{verb} of {} KiB, clients: {threads}", block >> 10);
                    let peer = (name, times[side].median());
                    let cost = times[0].ratio(&times[side]);
                    let target = if (way == Way::Read) == (side == 2) { TARGET } else { Target::None };
                    report(Figure::new(NAME, what, Unit::Nanoseconds, times[0].median(), peer, cost, target));
                }
            }
        }
    }
    Ok(())
}

fn against_others(config: &Config, report: Report<'_>, sides: &[Side; 5]) -> Result<()> {
    type Measure = fn(&Side, usize) -> Result<f64>;
    let measures: [(&str, Measure); 3] = [
        ("read of 4 KiB", |side, round| side.transfer(Way::Read, 4096, 1, 400, round)),
        ("write of 4 KiB", |side, round| side.transfer(Way::Write, 4096, 1, 400, round)),
        ("create, stat, unlink", |side, round| side.churn(60, round)),
    ];
    for (what, measure) in measures {
        let times = race_by(config.rounds(31), 5, |side, round| measure(&sides[side], round))?;
        for (side, name) in [(1, "nothing behind the same mount"), (3, "tmpfs"), (4, "the ordinary filesystem")] {
            let peer = (name, times[side].median());
            let cost = times[0].ratio(&times[side]);
            report(Figure::new(NAME, what, Unit::Nanoseconds, times[0].median(), peer, cost, Target::None));
        }
    }
    Ok(())
}
