//! The inode locks: a fixed number of stripes, so their cost does not depend on the number of files.
//!
//! ```text
//!   stripe   [ lock | generation ]    generation: how often it was held exclusively
//!                                     same number under two shared locks: nothing changed between
//! ```
//!
//! An operation that needs several locks takes them in one call, in the order of the stripes. No thread waits for
//! one while it holds another. An operation looks up which inodes it needs before it locks them, and checks again
//! under the locks.
//!
//! What is cached about an inode (see `last_extent.rs`) is valid for one generation. Every exclusive lock changes
//! the generation, so no operation has to invalidate such a cache.

use pmem::OwnerProcess;
use smallvec::SmallVec;

use super::lock_witness::{InodeRead, InodeWrite, OrphansWrite};
use super::pause::Gate;
use crate::layout::ORPHANS;
use crate::lock::{self, RwLock, rank};
use crate::units::Ino;

const STRIPES: usize = 1024;

/// All stripes of a pool.
#[derive(Debug)]
pub(crate) struct Locks {
    stripes: Vec<Stripe>,
    owner: OwnerProcess,
    /// The stripe that a child of the process uses. Its operations are rejected, but must not wait for a thread
    /// that does not exist in it.
    in_child: Stripe,
    gate: Gate,
}

/// On a cache line of its own, so that neighbours do not share one.
#[derive(Debug)]
#[repr(align(64))]
struct Stripe(RwLock<rank::Inode, u64>);

/// A shared lock: what it covers does not change.
pub(crate) struct ReadGuard<'a> {
    ino: Ino,
    guard: lock::ReadGuard<'a, u64>,
}

/// Shared locks of two inodes, which may share a stripe.
pub(crate) struct ReadGuards<'a>(#[allow(dead_code)] SmallVec<[lock::ReadGuard<'a, u64>; 2]>);

/// Exclusive locks of several inodes.
pub(crate) struct WriteGuards<'a> {
    locks: &'a Locks,
    /// The stripes held, with their guards.
    held: SmallVec<[(usize, WriteGuard<'a>); 4]>,
}

/// An exclusive lock of one stripe. Only [`Stripe`] constructs it.
struct WriteGuard<'a>(#[allow(dead_code)] lock::WriteGuard<'a, u64>);

impl ReadGuard<'_> {
    /// How often the inode's stripe has been held exclusively.
    pub(crate) fn generation(&self) -> u64 {
        *self.guard
    }

    /// Witness that the inode is locked.
    pub(crate) fn held(&self) -> InodeRead<'_> {
        InodeRead::new(self.ino)
    }
}

impl<'a> WriteGuard<'a> {
    fn new(mut generation: lock::WriteGuard<'a, u64>) -> WriteGuard<'a> {
        *generation += 1;
        WriteGuard(generation)
    }
}

impl WriteGuards<'_> {
    /// Witness that `ino`, one of the inodes passed to the lock call, is locked.
    pub(crate) fn of(&self, ino: Ino) -> InodeWrite<'_> {
        debug_assert!(self.covers(ino), "{ino} is not among the inodes that are locked");
        InodeWrite::new(ino)
    }

    /// Witness that the orphan index, which was passed to the lock call, is locked.
    pub(crate) fn orphans(&self) -> OrphansWrite<'_> {
        debug_assert!(self.covers(ORPHANS), "the orphan index is not among what is locked");
        OrphansWrite::new()
    }

    /// As [`WriteGuards::orphans`], or `None` if it was not passed to the lock call.
    pub(crate) fn orphans_if_held(&self) -> Option<OrphansWrite<'_>> {
        self.covers(ORPHANS).then(OrphansWrite::new)
    }

    /// A child locks nothing: its operations are rejected.
    fn covers(&self, ino: Ino) -> bool {
        let stripe = Locks::stripe(ino);
        !self.locks.owner.is_current() || self.held.iter().any(|&(held, _)| held == stripe)
    }

    /// Locks one more inode exclusively if that does not block. So its place in the order does not matter. Returns
    /// whether it is locked, including by this guard before.
    #[must_use]
    pub(crate) fn try_also(&mut self, ino: Ino) -> bool {
        let stripe = Locks::stripe(ino);
        if self.held.iter().any(|&(held, _)| held == stripe) {
            return true;
        }
        match self.locks.at(stripe).try_write() {
            Some(guard) => {
                self.held.push((stripe, guard));
                true
            }
            None => false,
        }
    }
}

impl Stripe {
    fn new(number: usize) -> Stripe {
        Stripe(RwLock::numbered(number, 0))
    }

    fn read(&self) -> lock::ReadGuard<'_, u64> {
        self.0.read()
    }

    fn write(&self) -> WriteGuard<'_> {
        WriteGuard::new(self.0.write())
    }

    fn try_write(&self) -> Option<WriteGuard<'_>> {
        self.0.try_write().map(WriteGuard::new)
    }
}

impl Locks {
    pub(super) fn new() -> Locks {
        Locks {
            stripes: (0..STRIPES).map(Stripe::new).collect(),
            owner: OwnerProcess::current(),
            in_child: Stripe::new(0),
            gate: Gate::default(),
        }
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Takes and releases each stripe: who has locked one before this was called has unlocked it on return.
    pub(super) fn wait_for_all(&self) {
        self.stripes.iter().for_each(|stripe| drop(stripe.0.write()));
    }

    /// Locks by `lock`, outside of a pause of another thread.
    #[inline]
    #[track_caller]
    fn outside_pauses<G>(&self, lock: impl Fn() -> G) -> G {
        self.gate.check_order();
        loop {
            let guard = lock();
            if !self.gate.is_closed(&self.owner) {
                return guard;
            }
            drop(guard);
            self.gate.wait();
        }
    }

    fn stripe(ino: Ino) -> usize {
        (ino.place().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54) as usize % STRIPES
    }

    fn at(&self, stripe: usize) -> &Stripe {
        if self.owner.is_current() { &self.stripes[stripe] } else { &self.in_child }
    }

    /// In a child every stripe is the same one.
    fn distinct<A: smallvec::Array<Item = usize>>(&self, stripes: &mut SmallVec<A>) {
        stripes.sort_unstable();
        stripes.dedup();
        if !self.owner.is_current() {
            stripes.truncate(1);
        }
    }

    /// An exclusive lock of one inode, or `None` if another thread holds it or pauses.
    pub(crate) fn try_write(&self, ino: Ino) -> Option<WriteGuards<'_>> {
        let mut guards = WriteGuards { locks: self, held: SmallVec::new() };
        (guards.try_also(ino) && !self.gate.is_closed(&self.owner)).then_some(guards)
    }

    /// Shared lock of one inode.
    pub(crate) fn read(&self, ino: Ino) -> ReadGuard<'_> {
        ReadGuard { ino, guard: self.outside_pauses(|| self.at(Self::stripe(ino)).read()) }
    }

    /// Shared locks of two inodes.
    pub(crate) fn read_two(&self, a: Ino, b: Ino) -> ReadGuards<'_> {
        let mut order: SmallVec<[usize; 2]> = [a, b].map(Self::stripe).into_iter().collect();
        self.distinct(&mut order);
        self.outside_pauses(|| ReadGuards(order.iter().map(|&i| self.at(i).read()).collect()))
    }

    /// Exclusive locks of all inodes.
    pub(crate) fn write_all(&self) -> WriteGuards<'_> {
        self.write_stripes((0..STRIPES).collect())
    }

    /// Exclusive locks of all of `inos`.
    pub(crate) fn write(&self, inos: &[Ino]) -> WriteGuards<'_> {
        self.write_stripes(inos.iter().map(|&ino| Self::stripe(ino)).collect())
    }

    fn write_stripes(&self, mut order: SmallVec<[usize; 6]>) -> WriteGuards<'_> {
        if order.len() > 1 {
            self.distinct(&mut order);
        }
        self.gate.delay_change();
        let lock = || order.iter().map(|&i| (i, self.at(i).write())).collect();
        WriteGuards { locks: self, held: self.outside_pauses(lock) }
    }
}

#[cfg(test)]
mod tests {
    use super::Locks;
    use crate::units::{Ino, PageNo};

    /// Two inodes with different stripes.
    fn two(locks: &Locks) -> (Ino, Ino) {
        let ino = |slot| Ino::new(PageNo(100), slot, 1);
        assert_ne!(Locks::stripe(ino(0)), Locks::stripe(ino(1)));
        assert_eq!(locks.stripes.len(), super::STRIPES);
        (ino(0), ino(1))
    }

    #[test]
    fn a_witness_names_the_inode_that_is_locked() {
        let locks = Locks::new();
        let (a, b) = two(&locks);
        assert_eq!(locks.read(a).held().ino(), a);
        let guards = locks.write(&[a, b]);
        assert_eq!((guards.of(a).ino(), guards.of(b).shared().ino()), (a, b));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "is not among the inodes that are locked")]
    fn there_is_no_witness_of_an_inode_that_is_not_locked() {
        let locks = Locks::new();
        let (a, b) = two(&locks);
        let guards = locks.write(&[a]);
        let _ = guards.of(b);
    }
}
