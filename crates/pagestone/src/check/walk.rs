//! The walk from the root: every reachable inode, node and run is claimed for its owner.

use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, Range};

use super::paths::{PathId, Paths};
use super::{Pass, Progress, repair::Fix};
use crate::alloc::{Allocator, FrameBits, Run, bit, by_frame, set_bits};
use crate::attr::FileType;
use crate::btree::{self, TreeId};
use crate::dir::parse_entry;
use crate::engine::Engine;
use crate::error::{Error, Place, Result};
use crate::extent::extent_map::{Map, Mapped};
use crate::layout::{
    FORWARD_LEVELS, ForwardEntry, FrameState, InodeRec, ORPHANS, PageEntry, PageUse, ROOT, ROOT_INODES, TreeRef,
};
use crate::units::{FrameNo, Ino, PAGE_SIZE, PageNo};

const LOST: &str = "the bytes there are lost";
const SHARED: &str = "two owners overwrite each other";

/// What was reached.
#[derive(Default)]
pub(super) struct Claims {
    pub(super) pages: HashMap<FrameNo, FrameBits>,
    /// By address: names found, link count, path of the first name.
    pub(super) inodes: HashMap<u64, Reached>,
    pub(super) inode_pages: HashSet<PageNo>,
    /// Bases, and the pages they own by their records.
    pub(super) bases: (i64, i64),
}

/// An inode that was reached.
pub(super) struct Reached {
    pub(super) ino: Ino,
    names: u32,
    nlink: u32,
    path: PathId,
    /// For a base: the xor of its dependents, as found and as recorded.
    kin: Option<(u64, u64)>,
}

struct Walk<'a, 'p> {
    engine: &'a Engine,
    pass: &'a mut Pass,
    claims: Claims,
    paths: Paths,
    /// Directories to be read: number, parent, path.
    todo: Vec<(Ino, Ino, PathId)>,
    /// Bases to be visited: number, dependent, path of the file that uses it.
    bases: Vec<(Ino, Ino, PathId)>,
    progress: Progress<'p>,
    buffer: Vec<u8>,
    /// Pages of data read so far.
    read: u64,
}

pub(super) fn walk(engine: &Engine, pass: &mut Pass, progress: Progress<'_>) -> Claims {
    let buffer = vec![0; 256 * PAGE_SIZE as usize];
    let (claims, todo, bases) = (Claims::default(), Vec::new(), Vec::new());
    let mut walk = Walk { engine, pass, claims, paths: Paths::new(), todo, bases, progress, buffer, read: 0 };
    walk.reach(ROOT, None, None, Paths::ROOT);
    walk.todo.push((ROOT, ROOT, Paths::ROOT));
    while let Some((dir, parent, path)) = walk.todo.pop() {
        walk.directory(dir, parent, path);
    }
    walk.orphans();
    while let Some((base, dependent, path)) = walk.bases.pop() {
        walk.base(base, dependent, path);
    }
    walk.links();
    walk.forwarding();
    walk.pass.report.inodes = walk.claims.inodes.len() as u64;
    walk.claims
}

impl Walk<'_, '_> {
    fn alloc(&self) -> &Allocator {
        &self.engine.alloc
    }

    /// Visits an inode that was found under a name. Returns its record on the first visit.
    fn reach(
        &mut self,
        ino: Ino,
        kind: Option<FileType>,
        name: Option<(Ino, &[u8])>,
        path: PathId,
    ) -> Option<InodeRec> {
        if let Some(reached) = self.claims.inodes.get_mut(&ino.place()) {
            reached.names += 1;
            if kind == Some(FileType::Dir) {
                let at = format!("{ino} ({})", self.paths.show(path));
                let also = self.paths.show(reached.path);
                self.pass.find(at, format!("the directory is also {also}"), "one of its names has to go");
                self.pass.fixes.extend(name.map(|(dir, name)| Fix::RemoveName(dir, name.to_vec())));
            }
            return None;
        }
        let rec = match self.alloc().inode(ino) {
            Ok(rec) if ino != ORPHANS || path == Paths::ORPHANS => rec,
            Ok(_) => return None,
            Err(e) => {
                self.pass.add_error(&self.paths.show(path), &e, "the name leads nowhere; its file is lost");
                // A name with a damaged record may still be needed; a name without an inode is not.
                let nothing = name.filter(|_| matches!(e, Error::Stale(_)));
                self.pass.fixes.extend(nothing.map(|(dir, name)| Fix::RemoveName(dir, name.to_vec())));
                return None;
            }
        };
        if name.is_some() && rec.is_base() {
            let what = "a name leads to what files share";
            self.pass.find(format!("directory entry {}", self.paths.show(path)), what, "the name leads nowhere");
            self.pass.fixes.extend(name.map(|(dir, name)| Fix::RemoveName(dir, name.to_vec())));
            return None;
        }
        if kind.is_some() && kind != rec.kind() {
            self.pass.find(
                format!("directory entry {}", self.paths.show(path)),
                "it says another kind than the inode",
                "listings are wrong",
            );
        }
        let (bases, pages) = rec.counts_as_base();
        self.claims.bases = (self.claims.bases.0 + bases, self.claims.bases.1.saturating_add(pages));
        let kin = rec.is_base().then_some((0, rec.parent));
        let reached = Reached { ino, names: 1, nlink: rec.nlink, path, kin };
        self.claims.inodes.insert(ino.place(), reached);
        let page = self.alloc().inode_page(ino.page()).unwrap_or(ino.page());
        if page != ROOT_INODES && self.claims.inode_pages.insert(page) {
            self.claim(Run { page, pages: 1 }, PageUse::Inodes, 0, path);
        }
        let total = self.total();
        (self.progress)(self.claims.inodes.len() as u64, total);
        self.contents(&rec, path);
        Some(rec)
    }

    fn total(&self) -> u64 {
        let inodes = self.alloc().counts().inodes.max(0) as u64;
        let pages = if self.pass.data { self.alloc().counts().pages.max(0) as u64 } else { 0 };
        inodes.max(self.claims.inodes.len() as u64) + self.alloc().frames() + pages.max(self.read)
    }

    /// Claims the inode's trees and runs.
    fn contents(&mut self, rec: &InodeRec, path: PathId) {
        let place = rec.ino().place();
        self.nodes(TreeId::xattrs(place), rec.xattrs(), place, path);
        if rec.kind() == Some(FileType::Symlink) && rec.size <= InodeRec::INLINE_TARGET as u64 {
            return;
        }
        self.nodes(TreeId::map(rec.owner()), rec.map(), rec.owner(), path);
        if rec.base != 0 {
            self.bases.push((Ino(rec.base), rec.ino(), path));
            self.borrowed(rec, path);
        }
        if rec.kind() == Some(FileType::Dir) || rec.ino() == ORPHANS {
            return;
        }
        let mut page = 0;
        let mut pages = 0;
        loop {
            let map = Map { nodes: self.alloc(), alloc: self.alloc(), rec };
            match map.at_or_after(page) {
                Ok(Some(m)) if m.file_page >= page => {
                    page = m.end();
                    if !m.is_void() {
                        pages += m.run.pages;
                        self.claim(m.run, PageUse::Data, rec.owner(), path);
                        self.data(&m, path);
                    }
                }
                Ok(Some(_)) => {
                    self.pass.find(
                        format!("map of {}", self.paths.show(path)),
                        "runs overlap or are out of order",
                        LOST,
                    );
                    break;
                }
                Ok(None) => break,
                Err(e) => {
                    self.pass.add_error(&self.paths.show(path), &e, LOST);
                    break;
                }
            }
        }
        if pages != rec.pages {
            let what = format!("the record counts {} pages, its map has {pages}", rec.pages);
            self.pass.find(format!("{} ({})", rec.ino(), self.paths.show(path)), what, "figures of space are wrong");
            self.pass.fixes.push(Fix::Pages(rec.ino(), pages));
        }
    }

    /// Reports the pages of a run that the media have lost: the known ones, or, if data is to be read, all.
    fn data(&mut self, m: &Mapped, path: PathId) {
        const AT_ONCE: u64 = 256;
        let region = self.engine.alloc.region.clone();
        let mut lost: Vec<Range<u64>> = Vec::new();
        for first in (0..m.run.pages).step_by(AT_ONCE as usize) {
            let run = Run { page: m.run.page.plus(first), ..m.run }.first(AT_ONCE.min(m.run.pages - first));
            let whole = match self.pass.data {
                true => region.read_data(run.page.byte(), &mut self.buffer[..(run.pages * PAGE_SIZE) as usize]).is_ok(),
                false => region.first_lost(run.page.byte(), run.pages * PAGE_SIZE).is_none(),
            };
            for page in (0..run.pages).filter(|_| !whole) {
                if region.read_data(run.page.plus(page).byte(), &mut self.buffer[..PAGE_SIZE as usize]).is_err() {
                    let at = m.file_page + first + page;
                    match lost.last_mut().filter(|before| before.end == at) {
                        Some(before) => before.end += 1,
                        None => lost.push(at..at + 1),
                    }
                }
            }
            if self.pass.data {
                self.read += run.pages;
                let total = self.total();
                (self.progress)(self.claims.inodes.len() as u64 + self.read, total);
            }
        }
        for pages in lost {
            let (from, to) = (pages.start * PAGE_SIZE, pages.end * PAGE_SIZE);
            let path = self.paths.show(path);
            self.pass.find(format!("{path}, bytes {from} to {}", to - 1), "the media have lost them", super::DATA_LOST);
        }
    }

    /// Compares what a file reads from its bases with its record.
    fn borrowed(&mut self, rec: &InodeRec, path: PathId) {
        let map = Map { nodes: self.alloc(), alloc: self.alloc(), rec };
        match map.borrowed_in(0, rec.base_pages) {
            Ok(pages) if pages == rec.borrowed() || rec.is_base() => {}
            Ok(pages) => {
                let what = format!("the record counts {} shared pages, its bases have {pages}", rec.borrowed());
                self.pass.find(
                    format!("{} ({})", rec.ino(), self.paths.show(path)),
                    what,
                    "figures of space are wrong",
                );
                self.pass.fixes.push(Fix::Borrowed(rec.ino(), pages));
            }
            Err(e) => self.pass.add_error(&self.paths.show(path), &e, LOST),
        }
    }

    /// Visits the base of a file, or of another base.
    fn base(&mut self, base: Ino, dependent: Ino, path: PathId) {
        let shared = self.paths.shared_by(path);
        let rec = self.reach(base, None, None, shared);
        if rec.is_some_and(|rec| !rec.is_base()) {
            self.pass.find(
                format!("{dependent} ({})", self.paths.show(path)),
                format!("its base is none: {base}"),
                LOST,
            );
        }
        if let Some((found, _)) = self.claims.inodes.get_mut(&base.place()).and_then(|r| r.kin.as_mut()) {
            *found ^= dependent.0;
        }
    }

    fn nodes(&mut self, id: TreeId, root: TreeRef, owner: u64, path: PathId) {
        let mut found = Vec::new();
        let mut errors = Vec::new();
        // A node that is reached twice is claimed twice, but visited once.
        let mut seen = HashSet::new();
        btree::walk_nodes(self.alloc(), id, root, &mut |page, node| match node {
            Ok(_) => {
                found.push(page);
                seen.insert(page)
            }
            Err(e) => {
                errors.push(e);
                false
            }
        });
        for page in found {
            self.claim(Run { page, pages: 1 }, PageUse::Node, owner, path);
        }
        for e in errors {
            self.pass.add_error(&self.paths.show(path), &e, "the names or runs below it are lost");
        }
    }

    /// Claims pages and compares them with their descriptors.
    fn claim(&mut self, run: Run, what: PageUse, owner: u64, path: PathId) {
        for (frame, first, count) in by_frame(run) {
            let bits = self.claims.pages.entry(frame).or_default();
            if (first..first + count).any(|i| bit(bits, i)) {
                self.pass.find(
                    format!("{} ({})", frame.page(first), self.paths.show(path)),
                    "it is claimed twice",
                    SHARED,
                );
            }
            set_bits(bits, first, count, true);
            if let Err(e) = self.owned_by(frame, first, count, what, owner) {
                self.pass.add_error(&self.paths.show(path), &e, SHARED);
            }
        }
    }

    fn owned_by(&self, frame: FrameNo, first: usize, count: usize, what: PageUse, owner: u64) -> Result<()> {
        let desc = self.alloc().descriptor(frame)?;
        let wrong =
            |i: usize, who: String| Error::corrupt(Place::Owner(frame.page(i)), format!("it names {who} as owner"));
        match desc.state() {
            FrameState::Whole if desc.owner == owner && what == PageUse::Data => Ok(()),
            FrameState::Whole => Err(wrong(first, format!("inode {:#x}", desc.owner))),
            FrameState::Split => {
                let table = self.alloc().page(desc.table())?;
                for i in first..first + count {
                    match PageEntry(table.u64(i * 8)).parse(frame.page(i))? {
                        Some(entry) if entry == (what, owner) => {}
                        Some((_, other)) => return Err(wrong(i, format!("inode {other:#x}"))),
                        None => return Err(wrong(i, "nobody".into())),
                    }
                }
                Ok(())
            }
            state => Err(wrong(first, format!("nobody ({state:?})"))),
        }
    }

    fn directory(&mut self, dir: Ino, parent: Ino, path: PathId) {
        let Ok(rec) = self.alloc().inode(dir) else { return };
        if rec.parent != parent.0 {
            self.pass.find(
                format!("{dir} ({})", self.paths.show(path)),
                "it names another parent",
                "`..` leads astray",
            );
            self.pass.fixes.push(Fix::Parent(dir, parent));
        }
        let mut entries = Vec::new();
        let mut wrong = Vec::new();
        let scanned = btree::scan(self.alloc(), TreeId::map(dir.place()), rec.map(), 0, |entry| {
            match parse_entry(&entry) {
                Ok(entry) => entries.push(entry),
                Err(e) => wrong.push(e),
            }
            Ok(ControlFlow::<()>::Continue(()))
        });
        for e in wrong.iter().chain(scanned.as_ref().err()) {
            self.pass.add_error(&self.paths.show(path), e, "names in this directory are lost");
        }
        if entries.len() as u64 != rec.size {
            let what = format!("the record counts {} names, {} are there", rec.size, entries.len());
            self.pass.find(format!("{dir} ({})", self.paths.show(path)), what, "it may not be removable");
            if scanned.is_ok() && wrong.is_empty() {
                self.pass.fixes.push(Fix::Names(dir, entries.len() as u64));
            }
        }
        let mut subdirs = 0;
        for entry in entries {
            let child = self.paths.below(path, &entry.name);
            subdirs += u32::from(entry.kind == FileType::Dir);
            if let Some(rec) = self.reach(entry.ino, Some(entry.kind), Some((dir, &entry.name)), child)
                && rec.kind() == Some(FileType::Dir)
            {
                self.todo.push((entry.ino, dir, child));
            }
        }
        if let Some(reached) = self.claims.inodes.get_mut(&dir.place()) {
            reached.names = 2 + subdirs;
        }
    }

    /// Visits the orphans: they have no name, but own storage until they are reclaimed.
    fn orphans(&mut self) {
        if self.reach(ORPHANS, None, None, Paths::ORPHANS).is_none() {
            return;
        }
        let Ok(rec) = self.alloc().inode(ORPHANS) else { return };
        let mut found = Vec::new();
        let scanned = btree::scan(self.alloc(), TreeId::map(ORPHANS.place()), rec.map(), 0, |entry| {
            found.push(Ino(entry.u64(0)?));
            Ok(ControlFlow::<()>::Continue(()))
        });
        if let Err(e) = scanned {
            self.pass.add_error("orphan index", &e, "space of deleted files is not given back");
        }
        for ino in found {
            self.reach(ino, None, None, Paths::DELETED);
            if let Some(reached) = self.claims.inodes.get_mut(&ino.place()) {
                reached.names -= 1;
            }
        }
    }

    /// Visits the forwarding tables. Anything wrong there means that inodes may be missing.
    fn forwarding(&mut self) {
        // Each table with its level, and the number of the first inode page below it.
        let mut tables: Vec<(PageNo, u32, u64)> = Vec::new();
        tables.extend(self.alloc().state().forward_root().map(|root| (root, FORWARD_LEVELS - 1, 0)));
        let (mut forwarded, mut seen) = (0, HashSet::new());
        while let Some((table, level, first_number)) = tables.pop() {
            // A hostile table that refers to itself is claimed twice, but visited once.
            let first = seen.insert(table);
            self.claim(Run { page: table, pages: 1 }, PageUse::Forward, 0, Paths::FORWARDING);
            let Some(view) = self.engine.alloc.page(table).ok().filter(|_| first) else {
                self.pass.inodes_missing = true;
                continue;
            };
            for index in 0..512 {
                let number = first_number | (index as u64) << (9 * level);
                match ForwardEntry(view.u64(index * 8)).parse(table, index) {
                    Ok(None) => {}
                    Ok(Some(next)) if level == 0 && self.holds_inodes_of(next, PageNo(number)) => forwarded += 1,
                    Ok(Some(next)) if level > 0 && self.alloc().owns(next.frame()) => {
                        tables.push((next, level - 1, number));
                    }
                    Ok(Some(next)) => {
                        self.pass.inodes_missing = true;
                        let wanted = match level {
                            0 => format!("which does not hold the inodes of {}", PageNo(number)),
                            _ => "which lies outside the pool".to_owned(),
                        };
                        let what = format!("a table of moved inodes leads to {next}, {wanted}");
                        self.pass.find(table.to_string(), what, LOST);
                    }
                    Err(e) => {
                        self.pass.inodes_missing = true;
                        self.pass.add_error("forwarding table", &e, LOST);
                    }
                }
            }
        }
        let said = self.alloc().state().forwarded;
        if said != forwarded {
            let what = format!("the pool counts {said} moved inode pages, {forwarded} are there");
            self.pass.inodes_missing = true;
            let consequence = "files may be unreachable though they are there; nothing else is repaired until this is";
            self.pass.find("forwarding table", what, consequence);
        }
    }

    /// Whether the page has the records of the inodes whose numbers name the page `number`.
    fn holds_inodes_of(&self, page: PageNo, number: PageNo) -> bool {
        self.alloc().owns(page.frame()) && self.alloc().number_of_inode_page(page).is_ok_and(|found| found == number)
    }

    fn links(&mut self) {
        let wrong = |r: &&Reached| r.names != r.nlink || r.kin.is_some_and(|(found, said)| found != said);
        for reached in self.claims.inodes.values().filter(|r| r.ino != ORPHANS).filter(wrong) {
            let at = format!("{} ({})", reached.ino, self.paths.show(reached.path));
            if let Some((found, _)) = reached.kin {
                let what = format!("the record counts {} dependents, {} were found", reached.nlink, reached.names);
                self.pass.find(at, what, "it may go too early, or never");
                self.pass.fixes.push(Fix::Dependents(reached.ino, reached.names, found));
                continue;
            }
            let what = format!("the record counts {} links, {} were found", reached.nlink, reached.names);
            self.pass.find(at, what, "it may go too early, or never");
            self.pass.fixes.push(Fix::Links(reached.ino, reached.names));
        }
    }
}
