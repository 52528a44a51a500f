//! The pass over the descriptors: every page with an owner was claimed, and the counts agree.

use super::walk::Claims;
use super::{Pass, Progress, repair::Fix};
use crate::alloc::{Run, bit, read_counters};
use crate::engine::Engine;
use crate::error::Result;
use crate::layout::{Counts, FrameDesc, FrameState, PageEntry, PageUse};
use crate::units::{FrameNo, Ino, PAGES_PER_FRAME, PageNo};

const LEAK: &str = "space is lost, no data";

pub(super) fn compare(engine: &Engine, pass: &mut Pass, claims: &Claims, progress: Progress<'_>) {
    let mut pages = 0;
    let mut damaged = false;
    for frame in engine.alloc.used_frames_from(FrameNo(0)) {
        if frame.0.is_multiple_of(1024) {
            let done = claims.inodes.len() as u64;
            progress(done + frame.0, done + engine.alloc.frames());
        }
        let used = engine.alloc.descriptor(frame).and_then(|desc| compare_frame(engine, pass, claims, frame, &desc));
        match used {
            Ok(used) => pages += used,
            Err(e) => {
                damaged = true;
                pass.add_error("owners", &e, "nothing more is allocated there");
            }
        }
    }
    pass.report.pages = pages;
    if !damaged {
        compare_counters(engine, pass, pages, claims);
    }
}

/// Compares a frame with the claims. Returns how many of its pages are in use.
fn compare_frame(engine: &Engine, pass: &mut Pass, claims: &Claims, frame: FrameNo, desc: &FrameDesc) -> Result<u64> {
    let claimed = claims.pages.get(&frame).copied().unwrap_or_default();
    match desc.state() {
        // Lent frames are counted separately and end with their session.
        FrameState::Free | FrameState::Lent => Ok(0),
        FrameState::Retired => {
            pass.report.retired += PAGES_PER_FRAME;
            Ok(PAGES_PER_FRAME)
        }
        FrameState::Whole => {
            leaked(pass, frame, &claimed, PageUse::Data, &[desc.owner; PAGES_PER_FRAME as usize].map(Some));
            Ok(PAGES_PER_FRAME)
        }
        FrameState::Split => compare_split(engine, pass, claims, frame, desc),
    }
}

fn compare_split(engine: &Engine, pass: &mut Pass, claims: &Claims, frame: FrameNo, desc: &FrameDesc) -> Result<u64> {
    let table = engine.alloc.page(desc.table())?;
    let claimed = claims.pages.get(&frame).copied().unwrap_or_default();
    let mut used = 0;
    let mut owners = [[None; PAGES_PER_FRAME as usize]; 3];
    let pages = (0..PAGES_PER_FRAME as usize).map(|i| (i, frame.page(i)));
    for (i, page) in pages {
        match PageEntry(table.u64(i * 8)).parse(page)? {
            None => continue,
            Some((PageUse::Table, _)) if page == desc.table() => {}
            Some((PageUse::Table, _)) => pass.find(page.to_string(), "a split table that no frame uses", LEAK),
            Some((PageUse::Retired, _)) => pass.report.retired += 1,
            Some((PageUse::Inodes, _)) => unreached(engine, pass, claims, page),
            Some((PageUse::Data, owner)) => owners[0][i] = Some(owner),
            Some((PageUse::Node, owner)) => owners[1][i] = Some(owner),
            Some((PageUse::Forward, owner)) => owners[2][i] = Some(owner),
        }
        used += 1;
    }
    leaked(pass, frame, &claimed, PageUse::Data, &owners[0]);
    leaked(pass, frame, &claimed, PageUse::Node, &owners[1]);
    leaked(pass, frame, &claimed, PageUse::Forward, &owners[2]);
    if used != u64::from(desc.used) {
        let what = format!("it counts {} pages in use, its table has {used}", desc.used);
        pass.find(format!("descriptor of {frame}"), what, "space may be lost");
        pass.fixes.push(Fix::Used(frame, used as u16));
    }
    Ok(used)
}

/// Reports runs that have an owner but were not claimed by it.
fn leaked(pass: &mut Pass, frame: FrameNo, claimed: &[u64; 8], what: PageUse, owners: &[Option<u64>; 512]) {
    let lost = |i: usize| owners[i].filter(|_| !bit(claimed, i));
    let mut i = 0;
    while i < 512 {
        let Some(owner) = lost(i) else {
            i += 1;
            continue;
        };
        let first = i;
        while i < 512 && lost(i) == Some(owner) {
            i += 1;
        }
        let run = Run { page: frame.page(first), pages: (i - first) as u64 };
        let said = format!("{} pages name inode {owner:#x} as owner, which does not have them", run.pages);
        pass.find(run.page.to_string(), said, LEAK);
        pass.fixes.push(Fix::Free(run, what, owner));
    }
}

/// Reports inodes that are not reachable by a name.
fn unreached(engine: &Engine, pass: &mut Pass, claims: &Claims, page: PageNo) {
    let number = engine.alloc.number_of_inode_page(page).unwrap_or(page);
    for slot in 0..Ino::SLOTS_PER_PAGE as usize {
        let place = Ino::new(number, slot, 0);
        if claims.inodes.contains_key(&place.place()) {
            continue;
        }
        match engine.alloc.inode_at_place(place) {
            Ok(rec) if rec.is_free() => {}
            Ok(rec) => {
                pass.find(rec.ino().to_string(), "no name leads to it", "the file cannot be reached");
                pass.fixes.push(Fix::Reattach(rec.ino()));
            }
            Err(e) => pass.add_error("an inode without a name", &e, "the file cannot be reached"),
        }
    }
}

fn compare_counters(engine: &Engine, pass: &mut Pass, pages: u64, claims: &Claims) {
    let mut counted = Counts::default();
    for lane in 0..engine.alloc.geometry.lanes {
        if let Ok(counters) = read_counters(&engine.alloc.region, lane) {
            counted = counted.plus(counters.counts);
        }
    }
    // The root and the orphan index are not counted.
    let inodes = claims.inodes.len() as i64 - 2;
    let there = Counts { pages: pages as i64, inodes, bases: claims.bases.0, shared: claims.bases.1 };
    if counted != there {
        pass.find(
            "counters of the lanes",
            format!("they say {counted:?}, there are {there:?}"),
            "figures of space are wrong",
        );
        pass.fixes.push(Fix::Counters);
    }
}
