//! Detaching a file from its base, and merging a base that has one dependent left.
//!
//! ```text
//!   D [own]--\                           D is detached: its reference is dropped in the same record
//!             >-- X [map] --> Z          one dependent left: X becomes an orphan and is merged:
//!   E [own]--/
//!                                        E [own]-- X [map] --> Z
//!     trim_base: free what E hides of X  E [   ]-- X [map'] --> Z      in steps
//!     push_down: move E's extents to X   E [map'] --> Z                one record (replace_base)
//! ```
//!
//! Where commits are durable only at sync, a merge waits for the next sync. Otherwise a power cut could undo the
//! detachment of D but not what E has written since, in place, into a page that belonged to X: D would be a
//! dependent again and read E's bytes.
//!
//! Each step is one record and changes nothing that E reads, so recovery after a crash only continues. The cost is
//! in proportion to what E owns and what it hides.

use pmem::Durability;

use crate::alloc::{Stop, TxResult};
use crate::engine::{Engine, OrphansWrite, WriteGuards};
use crate::error::{Error, Place, Result};
use crate::extent::clone::{put_extents_back, take_extents_behind};
use crate::extent::extent_map::{self, Mapped, in_tx, join};
use crate::extent::orphans::{add_orphan, remove_orphan};
use crate::extent::resolve::{ChainWrite, cover_with_void};
use crate::layout::{InodeRec, ORPHANS, PageUse};
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE, PAGES_PER_FRAME};

/// The name under which errors of a merge are recorded.
const MERGING: &str = "merging what clones shared";

/// Whether another step of a merge is needed.
enum Step {
    More,
    Done,
}

/// Removes `dependent` from the dependents of `base`. Returns the base if at most one dependent is left; the caller
/// then has to reclaim it once the record is committed. `locks` must cover the base and the orphan index.
pub(crate) fn detach(tx: &mut Tx<'_>, locks: &WriteGuards<'_>, base: Ino, dependent: Ino) -> TxResult<Option<Ino>> {
    let mut rec = tx.inode(locks.of(base).ino())?;
    if !rec.is_base() {
        return Err(Error::corrupt(Place::Inode(base), "it is no base, but a file stands on it").into());
    }
    rec.nlink = rec.nlink.saturating_sub(1);
    rec.parent ^= dependent.0;
    tx.put_inode(&rec)?;
    if rec.nlink > 1 {
        return Ok(None);
    }
    add_orphan(tx, locks.orphans(), base)?;
    Ok(Some(base))
}

impl Engine {
    /// Detaches `ino` from its base if it reads nothing from it any more.
    pub(crate) fn detach_unused_base(&self, ino: Ino) -> Result<()> {
        loop {
            let rec = self.peek(ino)?;
            if rec.base == 0 || rec.base_pages > 0 {
                return Ok(());
            }
            let base = Ino(rec.base);
            let left = {
                let locks = self.locks.write(&[ino, base, ORPHANS]);
                if self.alloc.inode(ino)?.base != base.0 {
                    continue;
                }
                self.alloc.transact(true, |tx| {
                    let mut rec = tx.inode(ino)?;
                    if rec.base_pages > 0 {
                        return Ok(None);
                    }
                    (rec.base, rec.height) = (0, 0);
                    rec.set_borrowed(0);
                    tx.put_inode(&rec)?;
                    detach(tx, &locks, base, ino)
                })?
            };
            if let Some(base) = left {
                self.reclaim_beside(base);
            }
            return Ok(());
        }
    }

    /// Frees a base that has no dependents, whatever its count says. For `check`.
    pub(crate) fn discard_base(&self, base: Ino) -> Result<()> {
        {
            let locks = self.locks.write(&[base, ORPHANS]);
            self.alloc.transact(true, |tx| {
                let mut rec = tx.inode(base)?;
                (rec.nlink, rec.parent) = (0, 0);
                tx.put_inode(&rec)?;
                add_orphan(tx, locks.orphans(), base)
            })?;
        }
        self.reclaim(base)
    }

    /// Merges `base`, an orphan, once it is durable that no other file depends on it.
    pub(crate) fn merge_when_durable(&self, base: Ino) {
        self.merge_later(&[base]);
        if self.alloc.region.describe().durability != Durability::AtSync {
            self.merge_pending();
        }
    }

    /// Queues bases for the next sync or merge.
    pub(crate) fn merge_later(&self, bases: &[Ino]) {
        let mut merges = self.merges.lock();
        for &base in bases {
            merges.pinned.retain(|&(other, _)| other != base);
            if !merges.next.contains(&base) {
                merges.next.push(base);
            }
        }
    }

    /// Removes and returns the bases that a merge can make progress on now.
    pub(crate) fn take_merges(&self) -> Vec<Ino> {
        let dropped = self.alloc.pins_dropped();
        let mut merges = self.merges.lock();
        let mut ready = std::mem::take(&mut merges.next);
        ready.extend(merges.pinned.extract_if(.., |&mut (_, then)| then != dropped).map(|(base, _)| base));
        ready
    }

    /// Merges the bases that have had one dependent since before the last sync.
    pub(crate) fn merge_pending(&self) {
        let waiting = self.take_merges();
        self.merge_bases(&waiting);
    }

    /// See [`Engine::merge_pending`]. A base that cannot be merged now waits for the next sync. It stays in the
    /// orphan index, so the next open of the pool merges it at the latest.
    pub(crate) fn merge_bases(&self, bases: &[Ino]) {
        for &base in bases {
            let dropped = self.alloc.pins_dropped();
            match self.merge(base) {
                Ok(()) => {}
                Err(Stop::NoSpace) => self.merge_later(&[base]),
                // A private mapping may still map what would be freed.
                Err(Stop::Pinned) => self.merges.lock().pinned.push((base, dropped)),
                // Damage is permanent; `check` reports it.
                Err(Stop::Failed(damage @ Error::Corrupt { .. })) => self.failures.note(MERGING, Err(damage)),
                Err(failed) => {
                    self.failures.note(MERGING, Err(failed.into()));
                    self.merge_later(&[base]);
                }
            }
        }
    }

    /// Merges `base` into its dependent, if it has exactly one.
    fn merge(&self, base: Ino) -> TxResult<()> {
        loop {
            let Ok(rec) = self.peek(base) else { return Ok(()) };
            let dependent = Ino(rec.parent);
            let mut inos: smallvec::SmallVec<[Ino; 4]> = smallvec::smallvec![base, dependent, ORPHANS];
            inos.extend((rec.base != 0).then_some(Ino(rec.base)));
            let locks = self.locks.write(&inos);
            match self.alloc.inode(base) {
                Ok(now) if now.nlink != 1 => {
                    // It was cloned again meanwhile, or freed.
                    return self.alloc.attempt(true, |tx| remove_orphan(tx, locks.orphans(), base));
                }
                Ok(now) if (now.parent, now.base) != (rec.parent, rec.base) => continue,
                Ok(_) => {}
                Err(Error::Stale(_)) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            if self.alloc.region.map_alignment().is_some_and(|bytes| bytes > PAGE_SIZE) {
                // A whole frame is mapped there, across the end of the file. The storage beyond the end is freed
                // below.
                let (rec, observers) = (self.alloc.inode(dependent)?, self.opens.observers(dependent));
                observers.iter().try_for_each(|w| w.freeze(locks.of(dependent), self, &rec, None))?;
            }
            // Not earlier: freezing a mapping reads through the chain and waits for the fault reader.
            let chain = self.chain_to_merge();
            let done = self.alloc.attempt(true, |tx| step(tx, (&chain, locks.orphans()), base, dependent));
            drop(chain);
            match done {
                Ok(Step::More) => {}
                Ok(Step::Done) => return Ok(()),
                Err(Stop::Pinned) if self.unpin_mapped(locks.of(dependent)) => {}
                Err(stop) => return Err(stop),
            }
        }
    }
}

/// Merges `base` into `dependent` as far as one record allows.
fn step(
    tx: &mut Tx<'_>,
    (_chain, orphans): (&ChainWrite<'_>, OrphansWrite<'_>),
    base: Ino,
    dependent: Ino,
) -> TxResult<Step> {
    let mut x = tx.inode(base)?;
    let mut d = match tx.inode(dependent) {
        Ok(d) if d.base == base.0 => d,
        Ok(_) | Err(Error::Stale(_)) => {
            return Err(Error::corrupt(Place::Inode(base), "its only dependent does not stand on it").into());
        }
        Err(e) => return Err(e.into()),
    };
    let done = if trim_base(tx, &mut x, &mut d)? && push_down(tx, &mut x, &mut d)? {
        replace_base(tx, orphans, &x, &mut d)?
    } else {
        false
    };
    if !done {
        tx.put_inode(&x)?;
    }
    tx.put_inode(&d)?;
    Ok(if done { Step::Done } else { Step::More })
}

/// The first page beyond the end of the dependent. Storage from there on was allocated by request and must not
/// become part of a base. The length of a base means nothing once extents were pushed down into it.
fn seen_end(d: &InodeRec) -> u64 {
    if d.is_base() { u64::MAX } else { d.size.div_ceil(PAGE_SIZE) }
}

/// Frees the storage of the base beyond the visible part. Also frees the storage of the dependent beyond its end,
/// if it cannot be kept: the runs of a map have one owner, and the dependent is about to take over the base's.
/// Returns false if there is more.
fn trim_base(tx: &mut Tx<'_>, x: &mut InodeRec, d: &mut InodeRec) -> TxResult<bool> {
    let stays = x.owner() == d.owner() && tx.map_alignment() == 1;
    if !stays && extent_map::remove(tx, d, seen_end(d), u64::MAX)?.is_some() {
        return Ok(false);
    }
    if extent_map::remove(tx, x, d.base_pages, u64::MAX)?.is_some() {
        return Ok(false);
    }
    x.base_pages = x.base_pages.min(d.base_pages);
    Ok(true)
}

/// Moves the dependent's extents into the base, from the end to the start. Returns false if there is more.
fn push_down(tx: &mut Tx<'_>, x: &mut InodeRec, d: &mut InodeRec) -> TxResult<bool> {
    let Some(last) = seen_end(d).checked_sub(1) else { return Ok(true) };
    while let Some(m) = in_tx(tx, d).at_or_before(last)? {
        if !tx.has_room(32 << 10) {
            return Ok(false);
        }
        let inside = m.part(m.file_page, m.end().min(last.saturating_add(1)));
        // A whole frame has one owner, so it is moved in one piece.
        let piece = if m.is_void() || x.owner() == d.owner() { inside } else { last_frame_of(&inside) };
        if extent_map::remove(tx, x, piece.file_page, piece.end())?.is_some() {
            return Ok(false);
        }
        if !m.is_void() && !tx.has_room(32 << 10) {
            return Ok(false);
        }
        extent_map::cut(tx, d, m, piece.file_page, piece.end())?;
        if piece.is_void() {
            cover_with_void(tx, x, piece.file_page, piece.end())?;
            continue;
        }
        if x.owner() != d.owner() {
            tx.change_owner(piece.run, PageUse::Data, d.owner(), x.owner());
        }
        let pages = piece.run.pages;
        join(tx, x, piece)?;
        x.pages += pages;
        d.pages = d.pages.saturating_sub(pages);
        d.set_borrowed(d.borrowed() + pages);
        d.base_pages = d.base_pages.max(piece.end());
    }
    Ok(true)
}

/// Replaces the base by the dependent, which has no extents left except beyond its end. Returns false if more of
/// these have to be freed first.
fn replace_base(tx: &mut Tx<'_>, orphans: OrphansWrite<'_>, x: &InodeRec, d: &mut InodeRec) -> TxResult<bool> {
    if in_tx(tx, d).first_after(seen_end(d))?.is_some() && !tx.has_room(48 << 10) {
        // The extents beyond the end have to fit into the same record. They fit into the next one.
        return Ok(false);
    }
    let behind = take_extents_behind(tx, d, seen_end(d))?;
    // Only extents above the limit are left beyond the end now.
    if extent_map::remove(tx, d, 0, u64::MAX)?.is_some() {
        put_extents_back(tx, d, behind)?;
        return Ok(false);
    }
    let seen = d.borrowed();
    d.adopt_map(x);
    d.backing = x.backing;
    d.set_borrowed(seen.saturating_sub(d.pages));
    put_extents_back(tx, d, behind)?;
    (d.base, d.base_pages, d.height) = (x.base, x.base_pages, x.height);
    if x.base != 0 {
        let mut older = tx.inode(Ino(x.base))?;
        older.parent ^= x.ino().0 ^ d.ino().0;
        tx.put_inode(&older)?;
    }
    tx.free_ino(x.ino())?;
    remove_orphan(tx, orphans, x.ino())?;
    Ok(true)
}

/// The part of a run in the last frame that it reaches.
fn last_frame_of(m: &Mapped) -> Mapped {
    let last = m.run.page.plus(m.run.pages - 1);
    let in_frame = (last.index_in_frame() as u64 + 1).min(m.run.pages);
    debug_assert!(in_frame <= PAGES_PER_FRAME);
    m.part(m.end() - in_frame, m.end())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::attr::{FileType, NewNode};
    use crate::mmap::MapOptions;
    use crate::pool::{CreateOptions, Pool};
    use pmem::Memory;

    #[test]
    fn a_base_that_stays_pinned_is_left_alone_until_a_pin_is_dropped() -> Result<()> {
        let pool = Pool::create_on(Arc::new(Memory::new(64 << 20).map_err(Error::Media)?), &CreateOptions::default())?;
        let root = pool.root();
        let a = pool.node(root.create(b"a", &NewNode::new(FileType::File, 0o600))?.ino)?.open()?;
        a.write_all_at(&[1; 8 << 20], 0)?;
        let b = pool.node(root.clone_file(b"b", a.ino())?.ino)?.open()?;
        drop(a);
        let pin = b.map(0..8 << 20, &MapOptions::read_only())?.pin(0..8 << 20)?;
        // This hides a part of a whole frame of the base, and all of that part is pinned.
        b.write_all_at(&[2; 8192], 6 << 20)?;
        let engine = pool.engine();
        let base = Ino(engine.peek(b.ino())?.base);
        root.unlink(b"a")?;
        assert!(engine.peek(base)?.nlink == 1 && engine.merges.lock().pinned.len() == 1, "it waits");
        let locked = || engine.locks.read(base).generation();
        let before = locked();
        for name in [b"c", b"d", b"e"] {
            // Each of these merges another base.
            let c = pool.node(root.create(name, &NewNode::new(FileType::File, 0o600))?.ino)?.open()?;
            c.write_all_at(&[3; 4096], 0)?;
            root.clone_file(b"copy", c.ino())?;
            root.unlink(b"copy")?;
            assert_eq!(engine.peek(c.ino())?.base, 0, "merged");
            pool.sync()?;
        }
        assert_eq!(locked() - before, 0, "nobody looked at it in between");
        drop(pin);
        pool.sync()?;
        assert_eq!(engine.peek(b.ino())?.base, 0, "merged");
        Ok(())
    }
}
