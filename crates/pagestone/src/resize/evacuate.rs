//! Moving what one inode has behind the new end: nodes of its trees, and runs of its map.
//!
//! ```text
//!   a file, a directory    its own lock, a step at a time; mappings of the moved pages are unmapped first
//!   a base                 all locks: any file on top of it may be read or mapped, and nobody knows which these are
//! ```

use std::ops::Range;

use super::shrink::Shrink;
use crate::alloc::{Run, Stop, TxResult};
use crate::attr::FileType;
use crate::btree::{TreeId, relocate_path};
use crate::data::relocate::move_into_one;
use crate::engine::{Engine, WriteGuards};
use crate::error::Result;
use crate::extent::extent_map::{Map, in_tx};
use crate::layout::{InodeRec, ORPHANS, TreeRef};
use crate::txn::Tx;
use crate::units::{FrameNo, Ino, PAGE_SIZE, PAGES_PER_FRAME, PageNo};

/// Room that a record must have for one more path of a tree.
const PATH: u64 = 40 << 10;

/// What is left of one inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    /// Paths of the attributes' tree from this key on, then the map.
    Xattrs(u64),
    /// Paths of the map's tree from this key on, then the runs.
    Map(u64),
    /// Runs from this file page on.
    Runs(u64),
    Nothing,
}

impl Shrink<'_, '_> {
    /// Moves everything that the inode has behind the new end.
    pub(super) fn evacuate(&mut self, ino: Ino) -> Result<()> {
        let mut left = Left::Xattrs(0);
        while left != Left::Nothing {
            let (next, moved) = self.evacuate_some(ino, left)?;
            left = next;
            if moved > 0 {
                self.step(moved)?;
            }
        }
        Ok(())
    }

    /// One step, with what has to be locked for it.
    fn evacuate_some(&self, ino: Ino, left: Left) -> Result<(Left, u64)> {
        let engine = self.engine;
        let peeked = engine.peek(ino)?;
        let is_base = peeked.is_base();
        let locks = match is_base {
            true => engine.locks.write_all(),
            // Whoever fills a file without a name holds the index of orphans.
            false if peeked.nlink == 0 => engine.locks.write(&[ino, ORPHANS]),
            false => engine.locks.write(&[ino]),
        };
        // It may have become one, or be another inode by now: `Stale` then, or the next pass finds it.
        let rec = engine.alloc.inode(ino)?;
        if rec.is_base() != is_base || (rec.nlink == 0) != (peeked.nlink == 0) {
            return Ok((left, 0));
        }
        match left {
            Left::Runs(page) => self.evacuate_run(&locks, &rec, page),
            _ => {
                let _chain = is_base.then(|| engine.chain_to_merge());
                engine.alloc.transact(true, |tx| self.evacuate_paths(tx, ino, left))
            }
        }
    }

    fn evacuate_paths(&self, tx: &mut Tx<'_>, ino: Ino, left: Left) -> TxResult<(Left, u64)> {
        let leaves = self.leaves();
        let mut rec = tx.inode(ino)?;
        let (mut left, mut moved) = (left, 0);
        while tx.has_room(PATH) {
            let (id, tree, key) = match left {
                Left::Xattrs(key) => (TreeId::xattrs(ino.place()), rec.xattrs(), key),
                Left::Map(key) => (TreeId::map(rec.owner()), rec.map(), key),
                _ => break,
            };
            let done = match tree.depth {
                0 => None,
                _ => Some(relocate_path(tx, id, tree, key, &leaves)?),
            };
            let next = done.and_then(|done| done.next);
            moved += done.map_or(0, |done| done.moved);
            if let Some(done) = done.filter(|done| done.tree != tree) {
                set_tree(&mut rec, left, done.tree);
            }
            left = match (left, next) {
                (Left::Xattrs(_), Some(key)) => Left::Xattrs(key),
                (Left::Xattrs(_), None) => Left::Map(0),
                (_, Some(key)) => Left::Map(key),
                (_, None) => Left::Runs(0),
            };
        }
        if moved > 0 {
            tx.put_inode(&rec)?;
        }
        Ok((left, moved))
    }

    /// Moves the first run from `page` on that lies behind the end, or a part of it.
    fn evacuate_run(&self, locks: &WriteGuards<'_>, rec: &InodeRec, page: u64) -> Result<(Left, u64)> {
        let engine = self.engine;
        let has_runs =
            rec.is_base() || matches!(rec.kind(), Some(FileType::File | FileType::Symlink)) && rec.ino() != ORPHANS;
        let short_target = rec.kind() == Some(FileType::Symlink) && rec.size <= InodeRec::INLINE_TARGET as u64;
        if !has_runs || short_target {
            return Ok((Left::Nothing, 0));
        }
        let Some((pages, run)) = self.run_that_leaves(rec, page)? else { return Ok((Left::Nothing, 0)) };
        engine.unmap_everywhere(locks, rec, &pages)?;
        if engine.alloc.is_pinned(run) {
            // The next pass tries it again.
            self.pinned.set(true);
            return Ok((Left::Runs(pages.end), 0));
        }
        let whole = pages.start.is_multiple_of(PAGES_PER_FRAME) && pages.end - pages.start == PAGES_PER_FRAME;
        let moved = match engine.move_run(rec, pages.clone(), whole) {
            // There is no whole frame left below.
            Err(Stop::NoSpace) if whole && engine.alloc.region.map_alignment() == Some(PAGE_SIZE) => {
                engine.move_run(rec, pages.clone(), false)
            }
            moved => moved,
        };
        let reached = moved?;
        Ok((Left::Runs(reached), reached - pages.start))
    }

    /// The first file pages from `page` on that lie in one run, and one frame, behind the end.
    fn run_that_leaves(&self, rec: &InodeRec, mut page: u64) -> Result<Option<(Range<u64>, Run)>> {
        let leaves = self.leaves();
        let alloc = &self.engine.alloc;
        let map = Map { nodes: alloc, alloc, rec };
        while let Some(m) = map.first_after(page)? {
            let first = m.file_page.max(page);
            let skipped = first - m.file_page;
            if m.is_void() || !leaves(PageNo(m.run.page.0 + m.run.pages - 1)) {
                page = m.end();
                continue;
            }
            // A run may cross the end.
            let at = (m.run.page.0 + skipped).max(FrameNo(self.limit.frames()).first_page().0);
            let start = m.file_page + (at - m.run.page.0);
            let in_frame = PAGES_PER_FRAME - PageNo(at).index_in_frame() as u64;
            let pages = start..(start + in_frame).min(m.end());
            let run = Run { page: PageNo(at), pages: pages.end - pages.start };
            return Ok(Some((pages, run)));
        }
        Ok(None)
    }
}

fn set_tree(rec: &mut InodeRec, left: Left, tree: TreeRef) {
    match left {
        Left::Xattrs(_) => rec.set_xattrs(tree),
        _ => rec.set_map(tree),
    }
}

impl Engine {
    /// Keeps all mappings from these pages of the file, or of all files on top of a base.
    fn unmap_everywhere(&self, locks: &WriteGuards<'_>, rec: &InodeRec, pages: &Range<u64>) -> Result<()> {
        let inos = if rec.is_base() { self.opens.all_observed() } else { vec![rec.ino()] };
        for ino in inos {
            let held = locks.of(ino);
            self.opens.observers(ino).iter().try_for_each(|w| w.unmap_for_relocation(held, pages.clone()))?;
            // A mapping may have pinned them only to map them.
            self.unpin_mapped(held);
        }
        Ok(())
    }

    /// Moves file pages, all of the inode's own, into one new run; returns how far it came.
    fn move_run(&self, rec: &InodeRec, pages: Range<u64>, whole: bool) -> TxResult<u64> {
        let (shared, exclusive) = match rec.is_base() {
            true => (None, Some(self.chain_to_merge())),
            false => (Some(self.chain(rec)), None),
        };
        let moved = self.alloc.attempt(true, |tx| {
            let mut rec = tx.inode(rec.ino())?;
            debug_assert!(in_tx(tx, &rec).first_after(pages.start)?.is_some());
            let reached = move_into_one(tx, &mut rec, pages.clone(), whole)?;
            tx.put_inode(&rec)?;
            Ok(reached)
        });
        drop((shared, exclusive));
        moved
    }
}
