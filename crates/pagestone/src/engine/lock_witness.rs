//! Witnesses: what is locked, as a parameter of whoever relies on it.
//!
//! ```text
//!   Locks::write(&[a, b]) --> WriteGuards --- of(a) --> InodeWrite(a) --- shared() --> InodeRead(a)
//!   Locks::read(a) ---------> ReadGuard ----- held() ----------------------------------^
//!   Locks::write(&[.., ORPHANS]) ------------ orphans() -> OrphansWrite
//! ```
//!
//! A witness names its inode, so a function that takes one needs no number beside it, and works on no inode but the
//! one that is locked. It borrows from the guard and cannot outlive it. That the guard has that inode's stripe is checked
//! where the witness is made, in debug builds.

use std::marker::PhantomData;

use crate::units::Ino;

/// An inode is locked, shared at least: its record and its map stay as they are, and it does not go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InodeRead<'a> {
    ino: Ino,
    guard: PhantomData<&'a ()>,
}

/// An inode is locked exclusively: whoever has this may change it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InodeWrite<'a>(InodeRead<'a>);

impl<'a> InodeRead<'a> {
    /// For guards alone, which lend it for as long as they are there.
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

    /// What is locked exclusively is locked.
    pub(crate) fn shared(self) -> InodeRead<'a> {
        self.0
    }
}

/// The orphan index is locked exclusively: whoever has this may put something in or take something out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrphansWrite<'a>(PhantomData<&'a ()>);

impl<'a> OrphansWrite<'a> {
    /// As [`InodeRead::new`].
    pub(super) fn new() -> OrphansWrite<'a> {
        OrphansWrite(PhantomData)
    }
}
