//! Random overwrites of 4 KiB in a file with storage: the library, the store alone, and tmpfs.
//!
//! All three use the same offsets in files of the same length, with all pages allocated. The raw store writes
//! another file's pages on the same media, through the same mapping, with the same instructions, and ends with a
//! fence as well.

use std::os::unix::fs::FileExt;

use anyhow::Result;
use pmem::Part;

use super::Report;
use crate::config::Config;
use crate::figure::{Figure, Target, Unit};
use crate::place::{Bed, plain_file};
use crate::race::{offsets, race};

pub(super) const NAME: &str = "overwrite";

const LEN: u64 = 64 << 20;
const PAGE: usize = 4096;
const OPS: usize = 2000;

pub(super) fn run(config: &Config, report: Report<'_>) -> Result<()> {
    let bed = Bed::new(config)?;
    measure(config, report, &bed)?;
    if config.pool.is_none() {
        drop(bed);
        measure(config, report, &Bed::temporary(false)?)?;
    }
    Ok(())
}

fn measure(config: &Config, report: Report<'_>, bed: &Bed) -> Result<()> {
    let file = bed.file("ours", LEN)?;
    let (region, at) = bed.raw("raw", LEN)?;
    let tmpfs = plain_file(bed.dir.path(), "peer", LEN)?;
    let places = offsets(OPS, LEN, PAGE as u64);
    let bytes = [0xa5; PAGE];
    let mut ours = |_| places.iter().try_for_each(|&o| Ok(file.write_all_at(&bytes, o)?));
    let mut raw = |_| places.iter().try_for_each(|&o| Ok(region.persist(&[Part::Bytes { at: at(o), bytes: &bytes }])?));
    let mut pwrite = |_| places.iter().try_for_each(|&o| Ok(tmpfs.write_all_at(&bytes, o)?));
    let times = race(config.rounds(61), OPS, &mut [&mut ours, &mut raw, &mut pwrite])?;
    let figure = |what: &str, peer: (&str, usize), target| {
        let (name, peer) = peer;
        let cost = times[0].ratio(&times[peer]);
        let peer = (name, times[peer].median());
        Figure::new(NAME, what, Unit::Nanoseconds, times[0].median(), peer, cost, target).note(bed.method())
    };
    report(figure("durable 4 KiB, library", ("raw store and fence", 1), Target::RatioAtMost(1.15)));
    report(figure("durable 4 KiB, library", ("pwrite to tmpfs", 2), Target::FasterAtLeast(4.0)));

    let (mut a, mut b) = ([0; PAGE], [0; PAGE]);
    let mut ours = |_| places.iter().try_for_each(|&o| Ok(file.read_at(&mut a, o).map(drop)?));
    let mut pread = |_| places.iter().try_for_each(|&o| Ok(tmpfs.read_exact_at(&mut b, o)?));
    let times = race(config.rounds(31), OPS, &mut [&mut ours, &mut pread])?;
    let peer = ("pread from tmpfs", times[1].median());
    let cost = times[0].ratio(&times[1]);
    report(
        Figure::new(NAME, "read 4 KiB, library", Unit::Nanoseconds, times[0].median(), peer, cost, Target::None)
            .note(bed.method()),
    );
    Ok(())
}
