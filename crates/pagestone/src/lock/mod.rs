//! Locks with a rank, their place in the order of all locks ([`rank`]).
//!
//! ```text
//!   Mutex<rank, T>      parking_lot's, for everything that a forked child never accesses
//!   RwLock<rank, T>
//!   StdMutex, StdRwLock the standard library's: a child can unlock them, even if threads of the parent wait
//!   Guard               the locked value, and the entry in the thread's list of locks (debug builds only)
//! ```

pub(crate) mod rank;

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{PoisonError, TryLockError};

use rank::{Held, Rank};

/// A number of the calling thread that no other one has while it lives. Never 0.
pub(crate) fn this_thread() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| std::ptr::from_ref(place) as usize)
}

/// The locked value. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub(crate) struct Guard<G> {
    guard: G,
    _held: Held,
}

/// Exclusive access to what a [`Mutex`] protects.
pub(crate) type MutexGuard<'a, T> = Guard<parking_lot::MutexGuard<'a, T>>;
/// Shared access to what a [`RwLock`] protects.
pub(crate) type ReadGuard<'a, T> = Guard<parking_lot::RwLockReadGuard<'a, T>>;
/// Exclusive access to what a [`RwLock`] protects.
pub(crate) type WriteGuard<'a, T> = Guard<parking_lot::RwLockWriteGuard<'a, T>>;
/// Exclusive access to what a [`StdMutex`] protects.
pub(crate) type StdMutexGuard<'a, T> = Guard<std::sync::MutexGuard<'a, T>>;
/// Shared access to what a [`StdRwLock`] protects.
pub(crate) type StdReadGuard<'a, T> = Guard<std::sync::RwLockReadGuard<'a, T>>;
/// Exclusive access to what a [`StdRwLock`] protects.
pub(crate) type StdWriteGuard<'a, T> = Guard<std::sync::RwLockWriteGuard<'a, T>>;

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;
    #[inline]
    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    #[inline]
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl<G: fmt::Debug> fmt::Debug for Guard<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

/// A lock, its number within its rank, and the rank.
struct Ranked<R, L> {
    lock: L,
    #[cfg(debug_assertions)]
    number: usize,
    rank: PhantomData<fn() -> R>,
}

impl<R: Rank, L> Ranked<R, L> {
    #[cfg_attr(not(debug_assertions), allow(unused_variables))]
    const fn new(number: usize, lock: L) -> Ranked<R, L> {
        Ranked {
            lock,
            #[cfg(debug_assertions)]
            number,
            rank: PhantomData,
        }
    }

    #[inline]
    fn number(&self) -> usize {
        #[cfg(debug_assertions)]
        return self.number;
        #[cfg(not(debug_assertions))]
        return 0;
    }

    #[inline]
    #[track_caller]
    fn wait<'a, G>(&'a self, lock: impl FnOnce(&'a L) -> G) -> Guard<G> {
        let held = Held::wait::<R>(self.number());
        Guard { guard: lock(&self.lock), _held: held }
    }

    #[inline]
    fn tried<'a, G>(&'a self, lock: impl FnOnce(&'a L) -> Option<G>) -> Option<Guard<G>> {
        let guard = lock(&self.lock)?;
        Some(Guard { guard, _held: Held::tried::<R>(self.number()) })
    }
}

macro_rules! lock {
    ($(#[$doc:meta])* $name:ident over $inner:ty, $new:path) => {
        $(#[$doc])*
        pub(crate) struct $name<R, T>(Ranked<R, $inner>);

        impl<R: Rank, T> $name<R, T> {
            /// A lock that is the only one of its rank, or has number 0.
            pub(crate) const fn new(value: T) -> Self {
                Self::numbered(0, value)
            }
            /// One of several locks of a rank.
            pub(crate) const fn numbered(number: usize, value: T) -> Self {
                $name(Ranked::new(number, $new(value)))
            }
        }

        impl<R: Rank, T: Default> Default for $name<R, T> {
            fn default() -> Self {
                Self::new(T::default())
            }
        }

        impl<R: Rank, T: fmt::Debug> fmt::Debug for $name<R, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} ", R::NAME)?;
                self.0.lock.fmt(f)
            }
        }
    };
}

lock! {
    /// A mutex of `parking_lot` with a rank.
    Mutex over parking_lot::Mutex<T>, parking_lot::Mutex::new
}
lock! {
    /// A reader-writer lock of `parking_lot` with a rank. It is fair: a reader waits behind a waiting writer. So no
    /// thread may read-lock one twice.
    RwLock over parking_lot::RwLock<T>, parking_lot::RwLock::new
}
lock! {
    /// A mutex of the standard library with a rank.
    StdMutex over std::sync::Mutex<T>, std::sync::Mutex::new
}
lock! {
    /// A reader-writer lock of the standard library with a rank.
    StdRwLock over std::sync::RwLock<T>, std::sync::RwLock::new
}

impl<R: Rank, T> Mutex<R, T> {
    #[inline]
    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.wait(parking_lot::Mutex::lock)
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.tried(parking_lot::Mutex::try_lock)
    }
}

impl<R: Rank, T> RwLock<R, T> {
    #[inline]
    #[track_caller]
    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        self.0.wait(parking_lot::RwLock::read)
    }

    #[inline]
    #[track_caller]
    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        self.0.wait(parking_lot::RwLock::write)
    }

    #[inline]
    pub(crate) fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        self.0.tried(parking_lot::RwLock::try_write)
    }
}

// Poisoning is ignored: the state of a mapping is set before each step, so a panic does not leave it inconsistent.

impl<R: Rank, T> StdMutex<R, T> {
    #[inline]
    #[track_caller]
    pub(crate) fn lock(&self) -> StdMutexGuard<'_, T> {
        self.0.wait(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<R: Rank, T> StdRwLock<R, T> {
    #[inline]
    #[track_caller]
    pub(crate) fn read(&self) -> StdReadGuard<'_, T> {
        self.0.wait(|lock| lock.read().unwrap_or_else(PoisonError::into_inner))
    }

    #[inline]
    #[track_caller]
    pub(crate) fn write(&self) -> StdWriteGuard<'_, T> {
        self.0.wait(|lock| lock.write().unwrap_or_else(PoisonError::into_inner))
    }

    #[inline]
    pub(crate) fn try_read(&self) -> Option<StdReadGuard<'_, T>> {
        self.0.tried(|lock| match lock.try_read() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        })
    }
}
