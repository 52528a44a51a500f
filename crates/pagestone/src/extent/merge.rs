//! Letting go of a base, and merging one that only one dependent is left of.
//!
//! ```text
//!   D [own]--\                           D goes: its reference with it, in the same record
//!             >-- X [map] --> Z          one left: X is entered as an orphan, and merged:
//!   E [own]--/
//!                                        E [own]-- X [map] --> Z
//!     what E hides of X is freed;        E [   ]-- X [map'] --> Z      piece by piece
//!     what E has moves into X            E [map'] --> Z                one record
//! ```
//!
//! Where commits are durable only at sync, merging waits for the next one. Else a power cut could undo
//! that D went, but not what E has meanwhile written in place into a page that was X's: D would come back
//! with E's bytes.
//!
//! Each step is a record and leaves what E reads as it is, so a crash in the middle needs no more than
//! going on. The cost is that of what E has of its own and of what it hides.

use pmem::Durability;

use crate::alloc::{Stop, TxResult};
use crate::engine::{Engine, OrphansWrite, WriteGuards};
use crate::error::{Error, Result};
use crate::extent::clone::{put_extents_back, take_extents_behind};
use crate::extent::extent_map::{self, Mapped, in_tx, join};
use crate::extent::orphans::{add_orphan, remove_orphan};
use crate::extent::resolve::{ChainWrite, cover_with_void};
use crate::layout::{InodeRec, ORPHANS, PageUse};
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE, PAGES_PER_FRAME};

/// What an error of a merge is noted as.
const MERGING: &str = "merging what clones shared";

/// What a step of a merge leaves.
enum Step {
    More,
    Done,
}

/// `dependent` stands on `base` no more. Returns the base if it is nobody's or one's only now, for the
/// caller to reclaim once the record is committed. Of the `locks`, those of the base and of the orphan index count.
pub(crate) fn detach(tx: &mut Tx<'_>, locks: &WriteGuards<'_>, base: Ino, dependent: Ino) -> TxResult<Option<Ino>> {
    let mut rec = tx.inode(locks.of(base).ino())?;
    if !rec.is_base() {
        return Err(Error::corrupt(base.to_string(), "it is no base, but a file stands on it").into());
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
    /// Lets go of the base of `ino`, if it answers for nothing any more.
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

    /// Gives back a base that nothing stands on, whatever it counts: for `check`.
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

    /// Merges `base`, an orphan, as soon as it is durable that others do not need it.
    pub(crate) fn merge_when_durable(&self, base: Ino) {
        self.merge_later(&[base]);
        if self.alloc.region.describe().durability != Durability::AtSync {
            self.merge_pending();
        }
    }

    /// Leaves bases for the next sync or merge.
    pub(crate) fn merge_later(&self, bases: &[Ino]) {
        let mut merges = self.merges.lock();
        for &base in bases {
            merges.pinned.retain(|&(other, _)| other != base);
            if !merges.next.contains(&base) {
                merges.next.push(base);
            }
        }
    }

    /// Takes the bases of which a merge may do something now.
    pub(crate) fn take_merges(&self) -> Vec<Ino> {
        let dropped = self.alloc.pins_dropped();
        let mut merges = self.merges.lock();
        let mut taken = std::mem::take(&mut merges.next);
        taken.extend(merges.pinned.extract_if(.., |&mut (_, then)| then != dropped).map(|(base, _)| base));
        taken
    }

    /// Merges the bases whose last but one dependent has gone before the last sync.
    pub(crate) fn merge_pending(&self) {
        let waiting = self.take_merges();
        self.merge_bases(&waiting);
    }

    /// See [`Engine::merge_pending`]. What cannot be merged now waits for the next sync, or, as it stays in the
    /// orphan index, for the next open.
    pub(crate) fn merge_bases(&self, bases: &[Ino]) {
        for &base in bases {
            let dropped = self.alloc.pins_dropped();
            match self.merge(base) {
                Ok(()) => {}
                Err(Stop::NoSpace) => self.merge_later(&[base]),
                // A private mapping may still show what would be given back.
                Err(Stop::Pinned) => self.merges.lock().pinned.push((base, dropped)),
                // Damage does not go away, and is for `check` to report.
                Err(Stop::Failed(damage @ Error::Corrupt { .. })) => self.failures.note(MERGING, Err(damage)),
                Err(failed) => {
                    self.failures.note(MERGING, Err(failed.into()));
                    self.merge_later(&[base]);
                }
            }
        }
    }

    /// Merges `base` into its only dependent, if it has only one.
    fn merge(&self, base: Ino) -> TxResult<()> {
        loop {
            let Ok(rec) = self.peek(base) else { return Ok(()) };
            let dependent = Ino(rec.parent);
            let mut inos: smallvec::SmallVec<[Ino; 4]> = smallvec::smallvec![base, dependent, ORPHANS];
            inos.extend((rec.base != 0).then_some(Ino(rec.base)));
            let locks = self.locks.write(&inos);
            match self.alloc.inode(base) {
                Ok(now) if now.nlink != 1 => {
                    // Cloned again meanwhile, or given back.
                    return self.alloc.attempt(true, |tx| remove_orphan(tx, locks.orphans(), base));
                }
                Ok(now) if (now.parent, now.base) != (rec.parent, rec.base) => continue,
                Ok(_) => {}
                Err(Error::Stale(_)) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            if self.alloc.region.map_alignment().is_some_and(|bytes| bytes > PAGE_SIZE) {
                // A whole frame is mapped there beyond the end of the file, and what lies behind the
                // end is given back below.
                let (rec, observers) = (self.alloc.inode(dependent)?, self.opens.observers(dependent));
                observers.iter().try_for_each(|w| w.freeze(locks.of(dependent), self, &rec, None))?;
            }
            // Only now: a mapping reads through its chain as it is frozen, and waits for the fault reader.
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

/// One record's worth of merging `base` into `dependent`.
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
            return Err(Error::corrupt(base.to_string(), "its only dependent does not stand on it").into());
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

/// Where what the dependent has to itself ends, and what somebody allocated behind its end begins: nothing of that may
/// come to lie in a base. A base's length says nothing once something has sunk into it.
fn seen_end(d: &InodeRec) -> u64 {
    if d.is_base() { u64::MAX } else { d.size.div_ceil(PAGE_SIZE) }
}

/// Gives back what the base has behind the part that is seen, and what the dependent has behind its end where that
/// cannot stay: the runs of a map have one owner, and the dependent is about to take the base's. False if there is more.
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

/// Moves what the dependent has into the base, from the back. False if there is more.
fn push_down(tx: &mut Tx<'_>, x: &mut InodeRec, d: &mut InodeRec) -> TxResult<bool> {
    let Some(last) = seen_end(d).checked_sub(1) else { return Ok(true) };
    while let Some(m) = in_tx(tx, d).at_or_before(last)? {
        if !tx.has_room(32 << 10) {
            return Ok(false);
        }
        let inside = m.part(m.file_page, m.end().min(last.saturating_add(1)));
        // A whole frame has one owner: it changes hands in one piece.
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

/// The dependent, which has nothing of its own any more but behind its end, takes the base's place. False if more of
/// that has to go before.
fn replace_base(tx: &mut Tx<'_>, orphans: OrphansWrite<'_>, x: &InodeRec, d: &mut InodeRec) -> TxResult<bool> {
    if in_tx(tx, d).first_after(seen_end(d))?.is_some() && !tx.has_room(48 << 10) {
        // What lies behind the end has to fit in the record too: in the next one it does.
        return Ok(false);
    }
    let behind = take_extents_behind(tx, d, seen_end(d))?;
    // Only what is more than can be kept is left behind the end now.
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

/// The part of a run that lies in the last frame it reaches.
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
    use crate::attr::{Kind, NewNode};
    use crate::mmap::MapOptions;
    use crate::pool::{CreateOptions, Pool};
    use pmem::Memory;

    #[test]
    fn a_base_that_stays_pinned_is_left_alone_until_a_pin_is_dropped() -> Result<()> {
        let pool = Pool::create_on(Arc::new(Memory::new(64 << 20).map_err(Error::Media)?), &CreateOptions::default())?;
        let root = pool.root();
        let a = pool.node(root.create(b"a", &NewNode::new(Kind::File, 0o600))?.ino)?.open()?;
        a.write_all_at(&[1; 8 << 20], 0)?;
        let b = pool.node(root.clone_file(b"b", a.ino())?.ino)?.open()?;
        drop(a);
        let pin = b.map(0..8 << 20, &MapOptions::read_only())?.pin(0..8 << 20)?;
        // What this hides in the base is a part of a whole frame, and all of it is pinned.
        b.write_all_at(&[2; 8192], 6 << 20)?;
        let engine = pool.engine();
        let base = Ino(engine.peek(b.ino())?.base);
        root.unlink(b"a")?;
        assert!(engine.peek(base)?.nlink == 1 && engine.merges.lock().pinned.len() == 1, "it waits");
        let locked = || engine.locks.read(base).generation();
        let before = locked();
        for name in [b"c", b"d", b"e"] {
            // Each of these merges a base of its own.
            let c = pool.node(root.create(name, &NewNode::new(Kind::File, 0o600))?.ino)?.open()?;
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
