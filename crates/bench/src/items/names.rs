//! Operations on names: create and unlink, and querying a file, in a directory with a thousand others.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use anyhow::Result;
use pagestone::FileType;
use pagestone::inode::NewNode;
use rustix::fs::{AtFlags, Mode, OFlags, open, openat, statat, unlinkat};

use super::Report;
use crate::config::Config;
use crate::figure::{Figure, Target, Unit};
use crate::place::Bed;
use crate::race::race;

pub(super) const NAME: &str = "names";

const OTHERS: usize = 1000;
const OPS: usize = 500;

/// Opens a directory of the system, for calls relative to it.
pub(crate) fn open_dir(path: &std::path::Path) -> Result<OwnedFd> {
    Ok(open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Creates an empty file as a program does: open and close.
pub(crate) fn touch(dir: &OwnedFd, name: &CString) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    drop(openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
    Ok(())
}

/// Names, in the types that the library and the system take.
pub(crate) fn many(prefix: &str, count: usize) -> Vec<CString> {
    // The prefix has no NUL, so the name has none.
    (0..count).filter_map(|i| CString::new(format!("{prefix}-{i:05}.txt")).ok()).collect()
}

pub(super) fn run(config: &Config, report: Report<'_>) -> Result<()> {
    let bed = Bed::new(config)?;
    let new = NewNode::new(FileType::File, 0o600);
    let dir = bed.make_dir("names")?;
    std::fs::create_dir(bed.dir.path().join("names"))?;
    let peer = open_dir(&bed.dir.path().join("names"))?;
    let (there, fresh) = (many("there", OTHERS), many("new", OPS));
    for name in &there {
        dir.create(name.as_bytes(), &new)?;
        touch(&peer, name)?;
    }
    let mut ours = |_| {
        fresh.iter().try_for_each(|name| {
            dir.create(name.as_bytes(), &new)?;
            Ok(dir.unlink(name.as_bytes())?)
        })
    };
    let mut tmpfs = |_| {
        fresh.iter().try_for_each(|name| {
            touch(&peer, name)?;
            Ok(unlinkat(&peer, name, AtFlags::empty())?)
        })
    };
    let times = race(config.rounds(61), OPS, &mut [&mut ours, &mut tmpfs])?;
    let figure = |what: &str, name: &str, times: &[crate::race::Times], target| {
        let peer = (name, times[1].median());
        let cost = times[0].ratio(&times[1]);
        Figure::new(NAME, what, Unit::Nanoseconds, times[0].median(), peer, cost, target).note(bed.method())
    };
    report(figure("create + unlink, library", "open, close, unlink on tmpfs", &times, Target::FasterAtLeast(4.0)));

    let mut ours = |_| there.iter().try_for_each(|name| Ok(dir.lookup(name.as_bytes()).map(drop)?));
    let mut tmpfs = |_| there.iter().try_for_each(|name| Ok(statat(&peer, name, AtFlags::empty()).map(drop)?));
    let times = race(config.rounds(61), OTHERS, &mut [&mut ours, &mut tmpfs])?;
    report(figure("lookup + attributes, library", "fstatat on tmpfs", &times, Target::None));

    let base = open_dir(bed.dir.path())?;
    let text = |name: &CString| name.to_string_lossy().into_owned();
    let ours: Vec<Vec<u8>> = there.iter().map(|name| bed.path(&format!("names/{}", text(name)))).collect();
    let peer: Vec<CString> = there.iter().filter_map(|n| CString::new(format!("names/{}", text(n))).ok()).collect();
    let mut by_path = |_| ours.iter().try_for_each(|path| Ok(bed.pool.resolve(path)?.attr().map(drop)?));
    let mut tmpfs = |_| peer.iter().try_for_each(|path| Ok(statat(&base, path, AtFlags::empty()).map(drop)?));
    let times = race(config.rounds(61), OTHERS, &mut [&mut by_path, &mut tmpfs])?;
    report(figure("stat by path, library", "fstatat on tmpfs", &times, Target::None));
    Ok(())
}
