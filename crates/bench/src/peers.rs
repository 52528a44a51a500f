//! One workload on a pool, and on a directory of any filesystem: the cost of each operation by the clock.
//!
//! ```text
//!   pool PATH    through the library            create, unlink, write, open and read, stores to holes
//!   dir PATH     through system calls           the same, with and without the sync that makes it durable;
//!                and through MAP_SYNC           if the filesystem supports it
//!   clock        a loop of known length         the clock's value for it
//! ```
//!
//! Intended for a guest whose clock advances by a nanosecond for each instruction (`tests/guest/peers.py`). There
//! the clock counts the instructions of program and kernel. Nothing is subtracted.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use pagestone::inode::NewNode;
use pagestone::mmap::MapOptions;
use pagestone::{FileType, OpenOptions, Pool};
use pmem::{MediaKind, Part};
use rustix::fs::{AtFlags, unlinkat};

use crate::items::names::{many, open_dir, touch};
use crate::race::{median, offsets};
use crate::sys::countdown;

/// Number of rounds, after one that is not counted.
const ROUNDS: usize = 7;
const NAMES: usize = 200;
const WRITES: usize = 500;
const READS: usize = 200;
const LEN: u64 = 16 << 20;
const PAGE: u64 = 4096;
const FRAME: u64 = 2 << 20;

/// One line: operation, number per round, and nanoseconds for each: median, minimum and maximum of the rounds.
pub type Row = (String, usize, f64, f64, f64);

/// Receives each row.
type Out<'a> = &'a mut dyn FnMut(Row);

/// A loop of `n` rounds of two instructions each: nanoseconds by the clock for each instruction.
pub fn clock(out: Out<'_>) -> Result<()> {
    const N: u64 = 10_000_000;
    row(out, "instructions by the clock for each executed", 2 * N as usize, |_| {
        timed(|| {
            countdown(N);
            Ok(())
        })
    })
}

/// The library on the existing pool at `path`.
pub fn pool(path: &Path, out: Out<'_>) -> Result<()> {
    let pool = Pool::open(path, &OpenOptions::default())?;
    let root = pool.root();
    let new = |name: &str| -> Result<pagestone::File> {
        let attr = root.create(name.as_bytes(), &NewNode::new(FileType::File, 0o600))?;
        Ok(pool.node(attr.ino)?.open()?)
    };
    names(
        out,
        ["create, durable", "unlink, durable"],
        &|name| Ok(root.create(name.as_bytes(), &NewNode::new(FileType::File, 0o600)).map(drop)?),
        &|name| Ok(root.unlink(name.as_bytes())?),
    )?;
    let file = new("file")?;
    (0..LEN / FRAME).try_for_each(|i| file.write_all_at(&vec![1; FRAME as usize], i * FRAME))?;
    writes(out, "write 4 KiB, durable", &mut |at, bytes| Ok(file.write_all_at(bytes, at)?))?;
    reads(out, &mut |buf| Ok(pool.resolve(b"/file")?.open()?.read_at(buf, 0).map(drop)?))?;
    for (what, len, places) in holes() {
        row(out, what, places.len(), |round| {
            let name = format!("hole-{round}");
            let file = new(&name)?;
            file.set_len(len)?;
            let map = file.map(0..len, &MapOptions::shared())?;
            let spent = timed(|| places.iter().try_for_each(|&at| Ok(map.store(at, 1u64)?)))?;
            drop((map, file));
            root.unlink(name.as_bytes())?;
            Ok(spent)
        })?;
    }
    root.unlink(b"file")?;
    Ok(())
}

/// System calls in the directory `path`.
pub fn dir(path: &Path, out: Out<'_>) -> Result<()> {
    let dir = open_dir(path)?;
    let unlink = |name: &CString| Ok(unlinkat(&dir, name, AtFlags::empty())?);
    names(out, ["create", "unlink"], &|name| touch(&dir, name), &unlink)?;
    let sync = || Ok(rustix::fs::fsync(&dir)?);
    names(out, ["create, durable", "unlink, durable"], &|name| touch(&dir, name).and_then(|()| sync()), &|name| {
        unlink(name).and_then(|()| sync())
    })?;
    let place = path.join("file");
    let file = crate::place::plain_file(path, "file", LEN)?;
    file.sync_all()?;
    writes(out, "write 4 KiB", &mut |at, bytes| Ok(file.write_all_at(bytes, at)?))?;
    writes(out, "write 4 KiB, durable", &mut |at, bytes| {
        file.write_all_at(bytes, at)?;
        Ok(file.sync_all()?)
    })?;
    writes(out, "write 4 KiB, durable by fdatasync", &mut |at, bytes| {
        file.write_all_at(bytes, at)?;
        Ok(file.sync_data()?)
    })?;
    reads(out, &mut |buf| Ok(File::open(&place)?.read_exact_at(buf, 0)?))?;
    drop(file);
    let mapped = mapped(path, out);
    std::fs::remove_file(&place)?;
    // A filesystem without DAX has none of these rows.
    mapped.or_else(|e| if e.is::<NoDax>() { Ok(()) } else { Err(e) })
}

/// MAP_SYNC is not supported.
#[derive(Debug)]
struct NoDax;

impl std::fmt::Display for NoDax {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the filesystem has no MAP_SYNC")
    }
}

impl std::error::Error for NoDax {}

/// The same through mappings with MAP_SYNC: stores, and flushes.
fn mapped(path: &Path, out: Out<'_>) -> Result<()> {
    let open = |name: &str, size: u64| -> Result<_> {
        let how =
            pmem::Open { read_only: false, kind: Some(MediaKind::DaxFile), size: Some(size), room: 0, lock: None };
        Ok(pmem::open(&path.join(name), &how).map_err(|_| NoDax)?.media)
    };
    let file = open("file", LEN)?;
    writes(out, "write 4 KiB, durable by MAP_SYNC and the stores of Pagestone", &mut |at, bytes| {
        Ok(file.persist(&[Part::Bytes { at, bytes }])?)
    })?;
    for (what, len, places) in holes() {
        row(out, what, places.len(), |round| {
            let name = format!("hole-{round}");
            let map = open(&name, len)?;
            let spent = timed(|| {
                places.iter().for_each(|&at| map.store(at, &[1; 8]));
                Ok(())
            })?;
            drop(map);
            std::fs::remove_file(path.join(&name)).context("a sparse file")?;
            Ok(spent)
        })?;
    }
    Ok(())
}

/// The offsets to store to in each sparse file.
fn holes() -> [(&'static str, u64, Vec<u64>); 2] {
    [
        ("store to a hole, each 4 KiB in order", LEN, (0..LEN / PAGE).map(|i| i * PAGE).collect()),
        ("store to a hole, 2 MiB from the last", 16 * FRAME, (0..16).map(|i| i * FRAME + i * PAGE).collect()),
    ]
}

type OfName<'a> = &'a dyn Fn(&CString) -> Result<()>;

fn names(out: Out<'_>, what: [&str; 2], create: OfName<'_>, unlink: OfName<'_>) -> Result<()> {
    let names = many("new", NAMES);
    let mut unlinking = Vec::new();
    row(out, what[0], NAMES, |_| {
        let spent = timed(|| names.iter().try_for_each(create))?;
        unlinking.push(timed(|| names.iter().try_for_each(unlink))?);
        Ok(spent)
    })?;
    let mut spent = unlinking.into_iter();
    row(out, what[1], NAMES, |_| spent.next().context("a round of unlinks"))
}

fn writes(out: Out<'_>, what: &str, write: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let (places, bytes) = (offsets(WRITES, LEN, PAGE), [0xa5; PAGE as usize]);
    row(out, what, WRITES, |_| timed(|| places.iter().try_for_each(|&at| write(at, &bytes))))
}

fn reads(out: Out<'_>, read: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut buf = [0; PAGE as usize];
    row(out, "open, read 4 KiB, close", READS, |_| timed(|| (0..READS).try_for_each(|_| read(&mut buf))))
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed().as_nanos() as f64)
}

/// Rounds of `ops` operations; `run` returns the time of each.
fn row(out: Out<'_>, what: &str, ops: usize, mut run: impl FnMut(usize) -> Result<f64>) -> Result<()> {
    let spent: Vec<f64> = (0..=ROUNDS).map(&mut run).collect::<Result<_>>()?;
    let each: Vec<f64> = spent[1..].iter().map(|ns| ns / ops as f64).collect();
    let (least, most) = each.iter().fold((f64::MAX, 0.0), |(a, b): (f64, f64), &x| (a.min(x), b.max(x)));
    out((what.to_owned(), ops, median(each), least, most));
    Ok(())
}
