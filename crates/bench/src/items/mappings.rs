//! Mappings compared with the page cache: the measurements that reviewers of the kernel's DAX patches asked for.
//!
//! ```text
//!   first byte     of a mapping of 1 GiB                       mmap of a tmpfs file
//!   hole           a store to a hole, single and in order      the same on tmpfs
//!   commit         a store to each of 100 pages, and a commit       the same pages by write_atomic
//!   8 bytes        store, flush, drain                         libpmem2; msync on tmpfs and on disk
//!   processor      per GiB read and written                    read, write and mmap on tmpfs and on disk
//!   memory         per GiB that was read, besides the storage  the page cache of the file on disk
//! ```
//!
//! The storage of both sides is on tmpfs, except where the table says "on disk". So only the access path differs.

use std::hint::black_box;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use pagestone::mmap::{MapOptions, Mapping};
use procfs::process::Process;
use rustix::fs::{Advice, fadvise};

use super::Report;
use crate::config::Config;
use crate::figure::{Figure, Target, Unit};
use crate::place::{Bed, on_disk, plain_file};
use crate::race::{offsets, race, race_by};
use crate::sys::{Plain, Pmem2};

pub(super) const NAME: &str = "mappings";

const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;
const CHUNK: usize = 64 << 10;

pub(super) fn run(config: &Config, report: Report<'_>) -> Result<()> {
    // A quarter of a GiB for a quick run; the result is per GiB in both cases.
    let len = if config.quick { GIB / 4 } else { GIB };
    first_byte(config, len, report)?;
    holes(config, report)?;
    commits(config, report)?;
    eight_bytes(config, report)?;
    processor(config, len, report)?;
    memory(len, report)
}

fn info(what: &str, unit: Unit, ours: f64, peer: (&str, f64)) -> Figure {
    let ratio = ours / peer.1;
    Figure::new(NAME, what, unit, ours, peer, ratio, Target::None)
}

fn first_byte(config: &Config, len: u64, report: Report<'_>) -> Result<()> {
    let bed = Bed::of_size(len + (256 << 20), false)?;
    let file = bed.file("ours", len)?;
    let peer = plain_file(bed.dir.path(), "peer", len)?;
    let mut ours = |_| {
        let map = file.map(0..len, &MapOptions::shared())?;
        black_box(map.load::<u64>(0)?);
        Ok(())
    };
    let mut mmap = |_| {
        black_box(Plain::map(&peer, len)?.load(0));
        Ok(())
    };
    let times = race(config.rounds(31), 1, &mut [&mut ours, &mut mmap])?;
    let figure = info(
        "first byte of a mapping, made and taken away",
        Unit::Nanoseconds,
        times[0].median(),
        ("mmap of a tmpfs file", times[1].median()),
    );
    report(figure.note(format!("{} MiB", len >> 20)));
    Ok(())
}

/// Stores to holes of a new sparse file each round. Unmapping is not measured.
fn holes(config: &Config, report: Report<'_>) -> Result<()> {
    const LEN: u64 = 64 << 20;
    let bed = Bed::of_size(512 << 20, false)?;
    // 2 MiB apart, so that no fault resolves the page of another store.
    let single: Vec<u64> = (0..LEN / (2 << 20)).map(|i| i * (2 << 20) + i * PAGE).collect();
    let in_order: Vec<u64> = (0..2048).map(|i| i * PAGE).collect();
    let items = [
        ("a store to a hole, single", &single, Target::AtMost(30_000.0)),
        ("stores to holes in order, each 4 KiB", &in_order, Target::RatioAtMost(1.5)),
    ];
    for (what, places, target) in items {
        let times = race_by(config.rounds(21), 2, |runner, round| {
            let name = format!("{runner}-{round}-{}", places.len());
            if runner == 0 {
                let file = bed.file(&name, 0)?;
                file.set_len(LEN)?;
                let map = file.map(0..LEN, &MapOptions::shared())?;
                time(places, |at| Ok(map.store(at, 1u64)?))
            } else {
                let file = plain_file(bed.dir.path(), &name, 0)?;
                file.set_len(LEN)?;
                let map = Plain::map(&file, LEN)?;
                let spent = time(places, |at| {
                    map.store(at, 1);
                    Ok(())
                });
                std::fs::remove_file(bed.dir.path().join(&name))?;
                spent
            }
        })?;
        let peer = ("mmap of a tmpfs file", times[1].median());
        let figure =
            Figure::new(NAME, what, Unit::Nanoseconds, times[0].median(), peer, times[0].ratio(&times[1]), target);
        report(figure.note(format!("the fault is answered by {}", mechanism(&bed)?)));
    }
    Ok(())
}

fn mechanism(bed: &Bed) -> Result<String> {
    let file = bed.file(&format!("mechanism-{}", bed.pool.statfs().inodes), PAGE)?;
    Ok(format!("{:?}", file.map(0..PAGE, &MapOptions::shared())?.mechanism()).to_lowercase())
}

/// Nanoseconds for each position.
fn time(places: &[u64], mut each: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let begun = std::time::Instant::now();
    places.iter().try_for_each(|&at| each(at))?;
    Ok(begun.elapsed().as_nanos() as f64 / places.len() as f64)
}

/// 100 pages of an atomic mapping, adjacent and scattered, compared with the same bytes passed to one call.
fn commits(config: &Config, report: Report<'_>) -> Result<()> {
    const LEN: u64 = 64 << 20;
    let bed = Bed::of_size(512 << 20, false)?;
    for (what, step) in [("100 pages in a row", 1), ("100 pages, scattered", 163)] {
        let places: Vec<u64> = (0..100).map(|i| i * step * PAGE).collect();
        let (file, peer) = (bed.file(&format!("{what}, mapped"), LEN)?, bed.file(&format!("{what}, written"), LEN)?);
        let mut map = file.map_atomic(0..LEN)?;
        let times = race_by(config.rounds(31), 2, |runner, round| {
            let begun = std::time::Instant::now();
            if runner == 0 {
                places.iter().try_for_each(|&at| map.store(at, round as u64))?;
                map.commit()?;
            } else {
                let page = [round as u8; PAGE as usize];
                let parts: Vec<(u64, &[u8])> = places.iter().map(|&at| (at, &page[..])).collect();
                peer.write_atomic(&parts)?;
            }
            Ok(begun.elapsed().as_nanos() as f64)
        })?;
        let peer = ("write_atomic of the same pages", times[1].median());
        let what = format!("a store to each of {what}, and a commit");
        let ratio = times[0].ratio(&times[1]);
        report(Figure::new(NAME, what, Unit::Nanoseconds, times[0].median(), peer, ratio, Target::RatioAtMost(2.0)));
    }
    Ok(())
}

fn eight_bytes(config: &Config, report: Report<'_>) -> Result<()> {
    const LEN: u64 = 16 << 20;
    let bed = Bed::temporary(true)?;
    let file = bed.file("words", LEN)?;
    let map = file.map(0..LEN, &MapOptions::shared())?;
    let places = offsets(2000, LEN, 64);
    let tmpfs = Plain::map(&plain_file(bed.dir.path(), "tmpfs", LEN)?, LEN)?;
    let disk_dir = on_disk()?;
    let disk = Plain::map(&plain_file(disk_dir.path(), "disk", LEN)?, LEN)?;
    let pmem2 = Pmem2::map(&plain_file(bed.dir.path(), "pmem2", LEN)?, LEN);
    let few = &places[..20];
    let times = race_by(config.rounds(21), 4, |runner, round| match (runner, &pmem2) {
        (0, _) => time(&places, |at| {
            map.store(at, round as u64)?;
            map.flush(at..at + 8)?;
            Ok(map.drain()?)
        }),
        (1, _) => time(&places, |at| {
            tmpfs.store(at, round as u64);
            tmpfs.msync(at)
        }),
        (2, _) => time(few, |at| {
            disk.store(at, round as u64);
            disk.msync(at)
        }),
        (_, Ok(pmem2)) => time(&places, |at| {
            pmem2.store(at, round as u64);
            Ok(())
        }),
        (_, Err(_)) => Ok(f64::NAN),
    })?;
    let what = "8 durable bytes in a mapping";
    let mut figure = |peer: usize, name: &str| {
        let cost = times[0].ratio(&times[peer]);
        let peer = (name, times[peer].median());
        report(
            Figure::new(NAME, what, Unit::Nanoseconds, times[0].median(), peer, cost, Target::None).note(bed.method()),
        );
    };
    figure(1, "msync, tmpfs (makes nothing durable)");
    figure(2, "msync, on disk");
    match &pmem2 {
        Ok(_) => figure(3, "libpmem2, pmem2_persist"),
        Err(e) => report(Figure::skipped(NAME, what, format!("libpmem2: {e} (package libpmem2-1)"))),
    }
    Ok(())
}

/// Processor time of this process so far, in nanoseconds.
fn spent() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

/// Calls `each(offset, chunk)` over `len` bytes. Returns the processor time per GiB.
fn per_gib(len: u64, mut each: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<f64> {
    let mut chunk = vec![0x5a; CHUNK];
    let begun = spent();
    for at in (0..len).step_by(CHUNK) {
        each(at, &mut chunk)?;
    }
    Ok((spent() - begun) * GIB as f64 / len as f64)
}

fn processor(config: &Config, len: u64, report: Report<'_>) -> Result<()> {
    let bed = Bed::of_size(len + (256 << 20), false)?;
    let file = bed.file("ours", len)?;
    let tmpfs = plain_file(bed.dir.path(), "tmpfs", len)?;
    let dir = on_disk()?;
    let disk = plain_file(dir.path(), "disk", len)?;
    disk.sync_all()?;
    let whole = |file: &pagestone::File| -> Result<Mapping> { Ok(file.map(0..len, &MapOptions::shared())?) };
    for write in [false, true] {
        let times = race_by(config.rounds(9), 5, |runner, _| match (runner, write) {
            (0, false) => per_gib(len, |at, buf| Ok(file.read_at(buf, at).map(drop)?)),
            (0, true) => per_gib(len, |at, buf| Ok(file.write_all_at(buf, at)?)),
            (1, false) => {
                let map = whole(&file)?;
                per_gib(len, |at, buf| Ok(map.read(at, buf)?))
            }
            (1, true) => {
                let map = whole(&file)?;
                per_gib(len, |at, buf| Ok(map.write(at, buf)?))
            }
            (2, false) => per_gib(len, |at, buf| Ok(tmpfs.read_exact_at(buf, at)?)),
            (2, true) => per_gib(len, |at, buf| Ok(tmpfs.write_all_at(buf, at)?)),
            (3, _) => {
                let map = Plain::map(&tmpfs, len)?;
                per_gib(len, |at, buf| {
                    if write {
                        map.write(at, buf)
                    } else {
                        map.read(at, buf)
                    }
                    Ok(())
                })
            }
            (_, false) => per_gib(len, |at, buf| Ok(disk.read_exact_at(buf, at)?)),
            (_, true) => per_gib(len, |at, buf| Ok(disk.write_all_at(buf, at)?)),
        })?;
        let what = if write { "written" } else { "read" };
        let call = if write { "write" } else { "read" };
        for (ours, how) in [(0, "library"), (1, "mapping")] {
            let peers = [
                (2, format!("{call}, tmpfs")),
                (3, "mmap, tmpfs".into()),
                (4, format!("{call}, page cache of a disk")),
            ];
            for (peer, name) in peers {
                let cost = times[ours].ratio(&times[peer]);
                let figure = Figure::new(
                    NAME,
                    format!("processor time per GiB {what}, {how}"),
                    Unit::Nanoseconds,
                    times[ours].median(),
                    (&name, times[peer].median()),
                    cost,
                    Target::None,
                );
                report(figure.note(bed.method()));
            }
        }
    }
    Ok(())
}

/// Memory that reading needs besides the storage: page tables for a mapping, the page cache for a file.
fn memory(len: u64, report: Report<'_>) -> Result<()> {
    let dir = on_disk()?;
    let disk = plain_file(dir.path(), "disk", len)?;
    disk.sync_all()?;
    fadvise(&disk, 0, None, Advice::DontNeed)?;
    let peer = Plain::map(&disk, len)?;
    let before = peer.resident()?;
    per_gib(len, |at, buf| Ok(disk.read_exact_at(buf, at)?))?;
    let cached = peer.resident()?.saturating_sub(before) as f64 * GIB as f64 / len as f64;
    drop(peer);

    let bed = Bed::of_size(len + (256 << 20), false)?;
    let file = bed.file("ours", len)?;
    for mapped in [false, true] {
        let before = taken()?;
        let map = if mapped { Some(file.map(0..len, &MapOptions::shared())?) } else { None };
        per_gib(len, |at, buf| match &map {
            Some(map) => Ok(map.read(at, buf)?),
            None => Ok(file.read_at(buf, at).map(drop)?),
        })?;
        let taken = taken()?.saturating_sub(before);
        let what = if mapped { "memory per GiB read, mapping" } else { "memory per GiB read, library" };
        let ours = taken as f64 * GIB as f64 / len as f64;
        report(info(what, Unit::Bytes, ours, ("page cache of a file on disk", cached)));
    }
    Ok(())
}

/// Page tables and anonymous memory of this process, in bytes.
fn taken() -> Result<u64> {
    let status = Process::myself()?.status()?;
    Ok((status.vmpte.unwrap_or(0) + status.rssanon.unwrap_or(0)) << 10)
}
