//! Reclaiming whole files: a small file at once, a larger one as an orphan and in steps.
//!
//! ```text
//!   last name removed   small and closed: frees pages and inode in the same record
//!                       open, or large:   enters the orphan index in the same record
//!   last close, or the next open of the pool:  frees the pages in steps, then inode and index entry in one record
//! ```
//!
//! A base without dependents is reclaimed in the same way. A base with one dependent is in the index until it is
//! merged (`merge.rs`).

use crate::alloc::TxResult;
use crate::attr::FileType;
use crate::btree::{self, TreeId};
use crate::engine::{Engine, OrphansWrite};
use crate::error::{Error, Result};
use crate::layout::{InodeRec, ORPHANS};
use crate::txn::Tx;
use crate::units::{Ino, PAGES_PER_FRAME};

use crate::extent::extent_map;
use crate::extent::merge::detach;

/// Limit on the runs of a file that is freed together with its name.
const SMALL_RUNS: usize = 3;

/// Whether one record can free all of it.
pub(crate) fn is_small(rec: &InodeRec) -> bool {
    let runs = &rec.inline[..usize::from(rec.inline_count).min(rec.inline.len())];
    let pages = runs.iter().fold(0u64, |sum, x| sum.saturating_add(x.pages));
    let bare = rec.map().depth == 0 && rec.xattrs().depth <= 1 && rec.base == 0;
    bare && runs.len() <= SMALL_RUNS && pages <= 16 * PAGES_PER_FRAME
}

/// Handles the removal of the last name of an inode. Returns true if it has become an orphan. The caller then has
/// to reclaim it once the record is committed, unless it is open. `orphans` is required if the inode is open or not
/// small.
pub(crate) fn drop_inode(
    tx: &mut Tx<'_>,
    orphans: Option<OrphansWrite<'_>>,
    mut rec: InodeRec,
    open: bool,
) -> TxResult<bool> {
    rec.nlink = 0;
    let ino = rec.ino();
    if !open && is_small(&rec) {
        free_small(tx, &mut rec)?;
        tx.free_ino(ino)?;
        return Ok(false);
    }
    let orphans = orphans.ok_or(Error::NotSupported("an orphan while their index is not locked"))?;
    tx.put_inode(&rec)?;
    add_orphan(tx, orphans, ino)?;
    Ok(true)
}

/// Adds `ino` to the orphan index.
pub(crate) fn add_orphan(tx: &mut Tx<'_>, _held: OrphansWrite<'_>, ino: Ino) -> TxResult<()> {
    let mut orphans = tx.inode(ORPHANS)?;
    let tree = btree::insert(tx, TreeId::map(ORPHANS.place()), orphans.map(), ino.place(), &ino.0.to_le_bytes())?;
    orphans.set_map(tree);
    tx.put_inode(&orphans)
}

/// Removes `ino` from the orphan index.
pub(crate) fn remove_orphan(tx: &mut Tx<'_>, _held: OrphansWrite<'_>, ino: Ino) -> TxResult<()> {
    let mut orphans = tx.inode(ORPHANS)?;
    let (tree, _) = btree::remove(tx, TreeId::map(ORPHANS.place()), orphans.map(), ino.place())?;
    orphans.set_map(tree);
    tx.put_inode(&orphans)
}

/// Frees a small file, whatever else the record holds. Three runs touch at most six split tables, and the
/// attributes one node. Every record has room for that besides its names.
fn free_small(tx: &mut Tx<'_>, rec: &mut InodeRec) -> TxResult<()> {
    let id = TreeId::xattrs(rec.ino().place());
    let left = btree::destroy_leaf(tx, id, rec.xattrs(), |_, _, _| Ok(()))?;
    rec.set_xattrs(left);
    if has_map(rec) { extent_map::remove_all_inline(tx, rec) } else { Ok(()) }
}

/// Whether the record has a map. A short symlink has its target in place of it.
fn has_map(rec: &InodeRec) -> bool {
    rec.kind() == Some(FileType::File) || rec.is_base() || rec.size > InodeRec::INLINE_TARGET as u64
}

/// Frees as much of the file as one record allows. Returns true if there is more.
fn free_some(tx: &mut Tx<'_>, rec: &mut InodeRec) -> TxResult<bool> {
    let id = TreeId::xattrs(rec.ino().place());
    while rec.xattrs().depth > 0 {
        if !tx.has_room(24 << 10) {
            return Ok(true);
        }
        let left = btree::destroy_leaf(tx, id, rec.xattrs(), |_, _, _| Ok(()))?;
        rec.set_xattrs(left);
    }
    if has_map(rec) {
        return Ok(extent_map::remove(tx, rec, 0, u64::MAX)?.is_some());
    }
    Ok(false)
}

/// Whether another step is needed.
enum Step {
    More,
    /// Complete. Has the base if that must be reclaimed next.
    Done(Option<Ino>),
}

impl Engine {
    /// Reclaims an orphan, unless it is open. If it was the last dependent of its base, reclaims the base too, and
    /// so on.
    pub(crate) fn reclaim(&self, ino: Ino) -> Result<()> {
        let mut next = Some(ino);
        while let Some(ino) = next {
            next = self.reclaim_one(ino)?;
        }
        Ok(())
    }

    /// As [`Engine::reclaim`], for an operation that has already succeeded. An error is recorded. The orphan stays
    /// in the index, so the next open of the pool tries again.
    pub(crate) fn reclaim_beside(&self, ino: Ino) {
        self.failures.note("giving back the space of a deleted file", self.reclaim(ino));
    }

    /// As [`Engine::reclaim`], but does not reclaim the base: returns it.
    fn reclaim_one(&self, ino: Ino) -> Result<Option<Ino>> {
        loop {
            let peeked = match self.peek(ino) {
                // The last unlink and the last close both call this; the second finds the inode freed.
                Err(Error::Stale(_)) => return Ok(None),
                rec => rec?,
            };
            if peeked.is_base() && peeked.nlink > 0 {
                self.merge_when_durable(ino);
                return Ok(None);
            }
            let base = Ino(peeked.base);
            let mut inos: smallvec::SmallVec<[Ino; 3]> = smallvec::smallvec![ino, ORPHANS];
            inos.extend((peeked.base != 0).then_some(base));
            let locks = self.locks.write(&inos);
            if self.opens.is_open(ino) {
                return Ok(None);
            }
            let step = self.alloc.transact(true, |tx| {
                let mut rec = match tx.inode(ino) {
                    Err(Error::Stale(_)) => return Ok(Step::Done(None)),
                    rec => rec?,
                };
                if rec.base != peeked.base {
                    return Ok(Step::More);
                }
                if rec.nlink > 0 {
                    return Ok(Step::Done(None));
                }
                if free_some(tx, &mut rec)? {
                    tx.put_inode(&rec)?;
                    return Ok(Step::More);
                }
                tx.free_ino(ino)?;
                remove_orphan(tx, locks.orphans(), ino)?;
                let left = if rec.base == 0 { None } else { detach(tx, &locks, base, ino)? };
                Ok(Step::Done(left))
            })?;
            if let Step::Done(base) = step {
                return Ok(base);
            }
        }
    }

    /// Reclaims the orphans of an earlier session. If one fails, the others are still reclaimed.
    pub(crate) fn reclaim_orphans(&self, keep_going: impl Fn() -> bool) -> Result<()> {
        let mut from = 0;
        while keep_going() {
            let Some((place, ino)) = self.orphan_from(from)? else { break };
            self.reclaim_beside(ino);
            let Some(after) = place.checked_add(1) else { return Ok(()) };
            from = after;
        }
        Ok(())
    }

    /// Whether there are orphans.
    pub(crate) fn has_orphans(&self) -> Result<bool> {
        self.orphan_from(0).map(|found| found.is_some())
    }

    fn orphan_from(&self, place: u64) -> Result<Option<(u64, Ino)>> {
        let _lock = self.locks.read(ORPHANS);
        let orphans = self.alloc.inode(ORPHANS)?;
        let entry = btree::seek_ge(&self.alloc, TreeId::map(ORPHANS.place()), orphans.map(), place)?;
        entry.map(|e| Ok((e.key, Ino(e.u64(0)?)))).transpose()
    }
}
