//! The order in which locks are taken, and a check of it in debug builds.
//!
//! ```text
//!   Position     the cursor of one open file
//!   Trees        one tree is copied, removed or restored at a time
//!   Renames      renames that could make a directory its own ancestor
//!   Mappings     the list of mappings of the process
//!   Pause        read: wait until another thread does not work alone; write: work alone
//!   Inode        stripes of inode locks, in the order of their numbers
//!   ------------ the fault reader waits for MapState and for ranks from Chain on; all earlier locks it only tries
//!   MapState     the page states of one mapping
//!   Chain        read: a file is read through its bases; write: a base is merged
//!   Layout       the frames of the pool and the forwarding table are changed
//!   Marks        the right to write the journal's marks: checkpoint, sync
//!   Lane         journal lanes, in the order of their numbers
//!   Cursor       the frame that a lane allocates from
//!   Frame        stripes of frame descriptors, in the order of their numbers
//!   Search       the search for free frames
//!   Quarantine   pages that were freed since the last checkpoint
//!   OpenFiles    shards of the table of open files
//!   Observers    the mappings of one open file
//!   Leaf         no other lock is taken while one of these is held
//! ```
//!
//! A thread waits only for a lock that is later than all locks it holds. A lock that is tried without waiting
//! counts as held, but may be taken in any order. A thread that calls `mremap` waits for the fault reader. A debug
//! build panics at the first violation, whether or not another thread holds the lock. A release build contains none
//! of this.

/// The position of a lock in the order. Locks of one rank are ordered by a number.
pub(crate) trait Rank {
    /// Earlier locks have smaller numbers.
    #[cfg_attr(not(debug_assertions), allow(dead_code))]
    const ORDER: u8;
    /// The name in reports.
    const NAME: &'static str;
}

macro_rules! ranks {
    ($($(#[$doc:meta])* $name:ident = $order:literal,)*) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) enum $name {}
        impl Rank for $name {
            const ORDER: u8 = $order;
            const NAME: &'static str = stringify!($name);
        }
    )* };
}

ranks! {
    /// The cursor of one open file.
    Position = 0,
    /// One tree is copied, removed or restored at a time.
    Trees = 1,
    /// Renames that could make a directory its own ancestor.
    Renames = 2,
    /// The list of mappings of the process.
    Mappings = 3,
    /// Operations wait for the end of a pause.
    Pause = 4,
    /// Stripes of inode locks.
    Inode = 5,
    /// The page states of one mapping.
    MapState = 6,
    /// Bases: shared to read through them, exclusive to merge one.
    Chain = 7,
    /// The state of the layout and the forwarding table are changed.
    Layout = 8,
    /// The journal's marks.
    Marks = 9,
    /// Journal lanes.
    Lane = 10,
    /// The frame that a lane allocates from.
    Cursor = 11,
    /// Stripes of frame descriptors.
    Frame = 12,
    /// The search for free frames.
    Search = 13,
    /// Pages that were freed since the last checkpoint.
    Quarantine = 14,
    /// Shards of the table of open files.
    OpenFiles = 15,
    /// The mappings of one open file.
    Observers = 16,
    /// No other lock is taken while one of these is held.
    Leaf = 17,
}

#[cfg(debug_assertions)]
pub(crate) use checked::{FaultReader, Held, check_remap, check_wait};
#[cfg(not(debug_assertions))]
pub(crate) use unchecked::{FaultReader, Held, check_remap, check_wait};

#[cfg(debug_assertions)]
mod checked {
    use std::cell::{Cell, RefCell};

    use super::{Chain, Inode, MapState, Rank};

    /// A lock that a thread holds.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Entry {
        order: u8,
        number: usize,
        name: &'static str,
    }

    thread_local! {
        static HELD: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
        static READER: Cell<bool> = const { Cell::new(false) };
    }

    /// Part of a guard: the lock is in the thread's list until this is dropped.
    #[derive(Debug)]
    #[must_use]
    pub(crate) struct Held(Entry);

    impl Held {
        /// The thread is about to wait for a lock of this rank.
        #[track_caller]
        pub(crate) fn wait<R: Rank>(number: usize) -> Held {
            let new = Entry { order: R::ORDER, number, name: R::NAME };
            check(new);
            Held::add(new)
        }

        /// The thread has taken a lock of this rank without waiting.
        pub(crate) fn tried<R: Rank>(number: usize) -> Held {
            Held::add(Entry { order: R::ORDER, number, name: R::NAME })
        }

        fn add(new: Entry) -> Held {
            HELD.with_borrow_mut(|held| held.push(new));
            Held(new)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            // The guard was moved to another thread, which does not happen: the list of the first thread keeps the
            // entry.
            HELD.with_borrow_mut(|held| {
                if let Some(i) = held.iter().rposition(|entry| *entry == self.0) {
                    held.swap_remove(i);
                }
            });
        }
    }

    #[track_caller]
    fn check(new: Entry) {
        let late = HELD.with_borrow(|held| {
            held.iter().copied().find(|entry| (entry.order, entry.number) >= (new.order, new.number))
        });
        if let Some(late) = late {
            panic!("lock order: {} {} is waited for while {} {} is held", new.name, new.number, late.name, late.number);
        }
        if READER.get() && new.order < MapState::ORDER {
            panic!("lock order: the fault reader waits for {} {}", new.name, new.number);
        }
    }

    /// The thread is about to wait for something that another thread does with a lock of this rank.
    #[track_caller]
    pub(crate) fn check_wait<R: Rank>() {
        check(Entry { order: R::ORDER, number: 0, name: R::NAME });
    }

    /// The thread is about to call `mremap` on a mapping, which waits for the fault reader.
    ///
    /// The reader may be waiting for any lock from [`Chain`] on. It also waits for a mapping's state, but only
    /// while it holds the inode. So a thread that holds the state here must also hold an inode, unless `alone` is
    /// set: no reader of this process takes locks, as in a child.
    #[track_caller]
    pub(crate) fn check_remap(alone: bool) {
        HELD.with_borrow(|held| {
            if let Some(late) = held.iter().find(|entry| entry.order >= Chain::ORDER) {
                panic!("lock order: mremap waits for the fault reader while {} {} is held", late.name, late.number);
            }
            let has = |order| held.iter().any(|entry| entry.order == order);
            assert!(
                alone || !has(MapState::ORDER) || has(Inode::ORDER),
                "lock order: mremap waits for the fault reader with a mapping's state and without its inode"
            );
        });
        assert!(!READER.get(), "the fault reader waits for itself");
    }

    /// While this exists, the thread acts as the fault reader.
    #[derive(Debug)]
    pub(crate) struct FaultReader(());

    impl FaultReader {
        /// The calling thread is the fault reader.
        pub(crate) fn enter() -> FaultReader {
            READER.set(true);
            FaultReader(())
        }
    }

    impl Drop for FaultReader {
        fn drop(&mut self) {
            READER.set(false);
        }
    }
}

#[cfg(not(debug_assertions))]
mod unchecked {
    use super::Rank;

    /// Nothing in a release build.
    #[derive(Debug)]
    pub(crate) struct Held(());

    impl Held {
        #[inline(always)]
        pub(crate) fn wait<R: Rank>(_: usize) -> Held {
            Held(())
        }
        #[inline(always)]
        pub(crate) fn tried<R: Rank>(_: usize) -> Held {
            Held(())
        }
    }

    /// Nothing in a release build.
    #[inline(always)]
    pub(crate) fn check_wait<R: Rank>() {}

    /// Nothing in a release build.
    #[inline(always)]
    pub(crate) fn check_remap(_: bool) {}

    /// Nothing in a release build.
    #[derive(Debug)]
    pub(crate) struct FaultReader(());

    impl FaultReader {
        #[inline(always)]
        pub(crate) fn enter() -> FaultReader {
            FaultReader(())
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::super::{Mutex, RwLock};
    use super::*;

    fn refused(what: impl FnOnce()) -> String {
        let panic =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(what)).expect_err("the order was not checked");
        panic.downcast_ref::<String>().expect("a message").clone()
    }

    #[test]
    fn a_lock_that_comes_earlier_is_not_waited_for() {
        let (chain, lane) = (RwLock::<Chain, ()>::new(()), Mutex::<Lane, ()>::new(()));
        drop((chain.read(), lane.lock()));
        let said = refused(|| drop((lane.lock(), chain.read())));
        assert_eq!(said, "lock order: Chain 0 is waited for while Lane 0 is held");
        drop((chain.read(), lane.lock()));
    }

    #[test]
    fn a_shared_lock_is_not_taken_twice() {
        // A writer may have come in between: the second reader waits for it, and the writer for the first.
        let chain = RwLock::<Chain, ()>::new(());
        assert!(refused(|| drop((chain.read(), chain.read()))).contains("Chain 0 is held"));
    }

    #[test]
    fn locks_of_one_rank_go_by_number() {
        let frames = [Mutex::<Frame, ()>::numbered(0, ()), Mutex::<Frame, ()>::numbered(1, ())];
        drop((frames[0].lock(), frames[1].lock()));
        assert!(refused(|| drop((frames[1].lock(), frames[0].lock()))).contains("Frame 0 is waited for"));
        drop((frames[1].lock(), frames[0].try_lock()));
    }

    #[test]
    fn nobody_calls_mremap_with_a_lock_that_the_fault_reader_may_wait_for() {
        let (inode, state, chain) =
            (RwLock::<Inode, ()>::new(()), Mutex::<MapState, ()>::new(()), RwLock::<Chain, ()>::new(()));
        let _inode = inode.write();
        {
            let _state = state.lock();
            check_remap(false);
        }
        let said = refused(|| {
            let _chain = chain.read();
            check_remap(false);
        });
        assert!(said.contains("while Chain 0 is held"), "{said}");
    }

    #[test]
    fn the_fault_reader_waits_for_no_inode() {
        let inode = RwLock::<Inode, ()>::new(());
        let said = refused(|| {
            let _reader = FaultReader::enter();
            drop(inode.write());
        });
        assert_eq!(said, "lock order: the fault reader waits for Inode 0");
        let _reader = FaultReader::enter();
        assert!(inode.try_write().is_some());
    }
}
