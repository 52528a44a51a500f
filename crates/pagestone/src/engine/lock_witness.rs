//! Lock witnesses: a proof that an inode is locked, as a parameter of the functions that rely on it.
//!
//! ```text
//!   Locks::write(&[a, b]) --> WriteGuards --- of(a) --> InodeWrite(a) --- shared() --> InodeRead(a)
//!   Locks::read(a) ---------> ReadGuard ----- held() ----------------------------------^
//!   Locks::write(&[.., ORPHANS]) ------------ orphans() -> OrphansWrite
//! ```
//!
//! A witness names its inode. A function that takes one needs no inode number beside it, so it cannot work on an
//! inode that is not locked. The witness borrows from the guard and cannot outlive it. Debug builds check, where
//! the witness is made, that the guard holds the inode's stripe.

use std::marker::PhantomData;

use crate::units::Ino;

/// Proves at least a shared lock of an inode: its record and its map do not change, and it is not freed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InodeRead<'a> {
    ino: Ino,
    guard: PhantomData<&'a ()>,
}

/// Proves an exclusive lock of an inode: the holder may change it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InodeWrite<'a>(InodeRead<'a>);

impl<'a> InodeRead<'a> {
    /// Called by the guards only. The witness borrows from the guard.
    pub(super) fn new(ino: Ino) -> InodeRead<'a> {
        InodeRead { ino, guard: PhantomData }
    }

    /// The inode.
    pub(crate) fn ino(self) -> Ino {
        self.ino
    }
}

impl<'a> InodeWrite<'a> {
    /// As [`InodeRead::new`].
    pub(super) fn new(ino: Ino) -> InodeWrite<'a> {
        InodeWrite(InodeRead::new(ino))
    }

    /// The inode.
    pub(crate) fn ino(self) -> Ino {
        self.0.ino
    }

    /// An exclusive lock implies a shared one.
    pub(crate) fn shared(self) -> InodeRead<'a> {
        self.0
    }
}

/// Proves an exclusive lock of the orphan index: the holder may add and remove entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrphansWrite<'a>(PhantomData<&'a ()>);

impl<'a> OrphansWrite<'a> {
    /// As [`InodeRead::new`].
    pub(super) fn new() -> OrphansWrite<'a> {
        OrphansWrite(PhantomData)
    }
}
