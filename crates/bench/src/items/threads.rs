//! Two threads on different files compared with one, and the scaling that peers reach on this machine.
//!
//! ```text
//!   round:   1 thread, ours | 2 threads, ours | 1 thread, peer | 2 threads, peer
//!   scaling = 2 x (time of one thread) / (time of two), each with the same work per thread
//! ```
//!
//! A loop that only computes is measured too. If other processes use the processors, it shows how much of the
//! second one was available.

use std::hint::black_box;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use pagestone::FileType;
use pagestone::inode::NewNode;
use pmem::Part;
use rustix::fs::{AtFlags, unlinkat};

use super::Report;
use super::names::{many, open_dir, touch};
use crate::config::Config;
use crate::figure::{Figure, Target, Unit};
use crate::place::{Bed, plain_file};
use crate::race::{median, offsets, processors, together};

pub(super) const NAME: &str = "threads";

const LEN: u64 = 32 << 20;
const PAGE: usize = 4096;
const OPS: usize = 4000;
const FILES: usize = 400;
const TARGET: Target = Target::AtLeast(1.7);

/// The work of one thread in a round.
type Work<'a> = &'a (dyn Fn(usize) -> Result<()> + Sync);

/// Measures several kinds of work in turn. Between rounds, calls `tidy` for each, for both threads. Returns the
/// scaling of each: the median over rounds.
fn scaling(rounds: usize, works: &[(Work<'_>, Work<'_>)]) -> Result<Vec<f64>> {
    let mut seen = vec![Vec::new(); works.len()];
    for round in 0..=rounds {
        for ((work, tidy), seen) in works.iter().zip(&mut seen) {
            let mut spent = [0.0; 2];
            for turn in 0..2 {
                let threads = if round % 2 == 0 { 2 - turn } else { 1 + turn };
                spent[threads - 1] = together(threads, round, *work)?;
                (0..threads).try_for_each(tidy)?;
            }
            if round > 0 {
                seen.push(2.0 * spent[0] / spent[1]);
            }
        }
    }
    Ok(seen.into_iter().map(median).collect())
}

fn nothing(_: usize) -> Result<()> {
    Ok(())
}

fn compute(_: usize) -> Result<()> {
    let mut n = 1u64;
    for i in 0..3_000_000u64 {
        n = black_box(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ i);
    }
    black_box(n);
    Ok(())
}

pub(super) fn run(config: &Config, report: Report<'_>) -> Result<()> {
    if processors() < 2 {
        report(Figure::skipped(NAME, "two threads", "there is one processor".into()));
        return Ok(());
    }
    let bed = Bed::new(config)?;
    writes_and_reads(config, &bed, report)?;
    creates(config, &bed, report)
}

fn figure(what: &str, peer_name: &str, scaling: &[f64]) -> Figure {
    let (ours, peer) = (scaling[0], scaling[1]);
    let note = format!("a computing loop reached {:.2}x", scaling[2]);
    Figure::new(NAME, what, Unit::Times, ours, (peer_name, peer), ours / peer, TARGET).note(note)
}

fn writes_and_reads(config: &Config, bed: &Bed, report: Report<'_>) -> Result<()> {
    let places = offsets(OPS, LEN, PAGE as u64);
    let bytes = [0xa5; PAGE];
    let files = [bed.file("w0", LEN)?, bed.file("w1", LEN)?];
    let raw = [bed.raw("r0", LEN)?, bed.raw("r1", LEN)?];
    let tmpfs = [plain_file(bed.dir.path(), "p0", LEN)?, plain_file(bed.dir.path(), "p1", LEN)?];
    let ours = |i: usize| places.iter().try_for_each(|&o| Ok(files[i].write_all_at(&bytes, o)?));
    let store = |i: usize| {
        let (region, at) = &raw[i];
        places.iter().try_for_each(|&o| Ok(region.persist(&[Part::Bytes { at: at(o), bytes: &bytes }])?))
    };
    let found = scaling(config.rounds(41), &[(&ours, &nothing), (&store, &nothing), (&compute, &nothing)])?;
    report(figure("durable 4 KiB writes, 2 threads", "raw store and fence, 2 threads", &found));
    let read = |i: usize| {
        let mut buf = [0; PAGE];
        places.iter().try_for_each(|&o| Ok(files[i].read_at(&mut buf, o).map(drop)?))
    };
    let pread = |i: usize| {
        let mut buf = [0; PAGE];
        places.iter().try_for_each(|&o| Ok(tmpfs[i].read_exact_at(&mut buf, o)?))
    };
    let found = scaling(config.rounds(41), &[(&read, &nothing), (&pread, &nothing), (&compute, &nothing)])?;
    report(figure("4 KiB reads, 2 threads", "pread from tmpfs, 2 threads", &found));
    Ok(())
}

fn creates(config: &Config, bed: &Bed, report: Report<'_>) -> Result<()> {
    let new = NewNode::new(FileType::File, 0o600);
    let dirs = [bed.make_dir("d0")?, bed.make_dir("d1")?];
    let peers: Result<Vec<_>> = ["d0", "d1"]
        .iter()
        .map(|name| {
            std::fs::create_dir(bed.dir.path().join(name))?;
            open_dir(&bed.dir.path().join(name))
        })
        .collect();
    let peers = peers?;
    let names = many("new", FILES);
    let make = |i: usize| names.iter().try_for_each(|n| Ok(dirs[i].create(n.as_bytes(), &new).map(drop)?));
    let unmake = |i: usize| names.iter().try_for_each(|n| Ok(dirs[i].unlink(n.as_bytes())?));
    let touch_all = |i: usize| names.iter().try_for_each(|n| touch(&peers[i], n));
    let unlink_all = |i: usize| names.iter().try_for_each(|n| Ok(unlinkat(&peers[i], n, AtFlags::empty())?));
    let works: [(Work<'_>, Work<'_>); 3] = [(&make, &unmake), (&touch_all, &unlink_all), (&compute, &nothing)];
    let found = scaling(config.rounds(41), &works)?;
    report(figure("creates, 2 threads", "creates on tmpfs, 2 threads", &found));
    Ok(())
}
