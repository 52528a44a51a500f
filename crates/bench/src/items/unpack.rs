//! An ordinary file as media: thousands of small files unpacked through the mount and synced, compared with the
//! same on the filesystem beneath.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use pagestone::{CreateOptions, Pool};
use pagestone_mount::{PoolFs, can_mount};
use rustix::fs::syncfs;

use super::Report;
use super::mount::serve;
use super::names::open_dir;
use crate::config::Config;
use crate::figure::{Figure, Target, Unit};
use crate::place::on_disk;
use crate::race::{offsets, race};

pub(super) const NAME: &str = "unpack";

const PER_DIR: usize = 100;

/// Unpacks an archive of `lens.len()` files.
fn unpack(into: &Path, lens: &[u64], bytes: &[u8]) -> Result<()> {
    for (d, lens) in lens.chunks(PER_DIR).enumerate() {
        let dir = into.join(format!("dir-{d:03}"));
        fs::create_dir(&dir)?;
        for (i, &len) in lens.iter().enumerate() {
            fs::File::create_new(dir.join(format!("file-{i:02}.c")))?.write_all(&bytes[..len as usize])?;
        }
    }
    Ok(())
}

pub(super) fn run(config: &Config, report: Report<'_>) -> Result<()> {
    if let Err(e) = can_mount() {
        report(Figure::skipped(NAME, "small files", e.to_string()));
        return Ok(());
    }
    let count = if config.quick { 2000 } else { 10_000 };
    // 512 bytes to 16 KiB.
    let lens: Vec<u64> = offsets(count, 16 << 10, 512).iter().map(|len| len + 512).collect();
    let bytes = vec![0x63; 16 << 10];
    let base = on_disk()?;
    let size = 2 << 30;
    let pool = Pool::create(base.path().join("pool"), &CreateOptions::new().size(size))?;
    let what = format!("{count} small files onto an ordinary file, then sync");
    let kind = pool.info()?.media.kind;
    let mounted = serve(PoolFs::new(pool), &base.path().join("mount"))?;
    let mut ours = |round: usize| {
        let top = mounted.dir().join(format!("round-{round}"));
        fs::create_dir(&top)?;
        unpack(&top, &lens, &bytes)?;
        Ok(fs::File::open(&top)?.sync_all()?)
    };
    let mut below = |round: usize| {
        let top = base.path().join(format!("round-{round}"));
        fs::create_dir(&top)?;
        unpack(&top, &lens, &bytes)?;
        Ok(syncfs(open_dir(&top)?)?)
    };
    let times = race(config.rounds(9), 1, &mut [&mut ours, &mut below])?;
    let peer = ("the filesystem below", times[1].median());
    let cost = times[0].ratio(&times[1]);
    report(
        Figure::new(NAME, what, Unit::Nanoseconds, times[0].median(), peer, cost, Target::RatioAtMost(2.0))
            .note(format!("media: {kind}")),
    );
    pagestone_mount::unmount(mounted.dir()).context("unmounting")?;
    Ok(mounted.wait()?)
}
