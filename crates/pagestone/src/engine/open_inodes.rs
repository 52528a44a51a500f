//! The open inodes: their handles, their observers, and what of them is not on the media yet.
//!
//! ```text
//!   OpenInodes   shards: inode -> (OpenInode, handles)
//!   OpenInode    time of the last overwrite | preallocated pages | privileges | LastExtent
//!                observers (mappings) | pages that dropped mappings may have stored to
//! ```
//!
//! An overwrite in place changes no metadata except the times. These are kept here and written with the next record
//! of the inode, at a sync, or at the last close (as Linux does with lazytime).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use super::LastExtent;
use crate::address_hash::AddressMap;
use crate::attr::{Privileges, Time};
use crate::error::Result;
use crate::layout::InodeRec;
use crate::lock::{Mutex, rank};
use crate::units::Ino;

use super::{Engine, InodeRead, InodeWrite};

const SHARDS: usize = 64;

/// An observer of a file whose pages are visible elsewhere (a mapping). It has to follow changes of the file. Most
/// methods are called with the inode locked: exclusively, except where the signature says otherwise. Pages are
/// pages of the file.
pub(crate) trait MappingObserver: Send + Sync + std::fmt::Debug {
    /// These pages are about to be freed. On return they must be inaccessible.
    fn invalidate(&self, held: InodeWrite<'_>, pages: Range<u64>);
    /// What `invalidate` announced did not happen: the pages belong to the file as before.
    fn revalidate(&self, held: InodeWrite<'_>, pages: Range<u64>);
    /// These pages got storage, or other storage.
    fn filled(&self, held: InodeWrite<'_>, engine: &Engine, rec: &InodeRec, pages: Range<u64>);
    /// Whether `filled` calls no `mremap`, so that the fault reader may call it.
    fn fills_in_place(&self) -> bool;
    /// Makes the file's pages unresolved and not writable: from now on they may be shared with a clone or be
    /// relocated. The pages `replaced` will be freed.
    fn freeze(
        &self,
        held: InodeWrite<'_>,
        engine: &Engine,
        rec: &InodeRec,
        replaced: Option<&[Range<u64>]>,
    ) -> Result<()>;
    /// Unmaps and unpins the pages that the observer has pinned to map them, where no store is lost. Returns true
    /// if there were any. The next access maps them again.
    fn unpin(&self, held: InodeWrite<'_>, engine: &Engine) -> bool;
    /// These pages will be relocated: makes them unresolved.
    fn unmap_for_relocation(&self, held: InodeWrite<'_>, pages: Range<u64>) -> Result<()>;
    /// The file has grown over these pages.
    fn grown(&self, held: InodeWrite<'_>, pages: Range<u64>);
    /// The contents of these pages have changed.
    fn changed(&self, held: InodeRead<'_>, pages: &[Range<u64>]);
    /// The file was truncated to `len`.
    fn shortened(&self, held: InodeWrite<'_>, len: u64);
    /// Pages that may be stored to through the observer and whose stores have to be flushed; empty if none have to.
    /// The inode need not be locked.
    fn stores(&self) -> Range<u64>;
}

/// The observers of one file at one moment.
pub(crate) type MappingObservers = Vec<Arc<dyn MappingObserver>>;

/// An open inode.
#[derive(Debug)]
pub(crate) struct OpenInode {
    ino: Ino,
    /// Nanoseconds since 1970 of the last overwrite that is not in a record yet; 0: none.
    touched: AtomicI64,
    /// File pages that were preallocated. Those beyond the end are freed at the last close.
    ahead: Mutex<rank::Leaf, Range<u64>>,
    /// The [`Privileges`] of the file, in the bits below; 0: not looked up since they changed.
    privileges: AtomicU8,
    /// The extent used last.
    pub(crate) hint: LastExtent,
    observers: Mutex<rank::Observers, MappingObservers>,
    /// Whether there are observers.
    watched: AtomicBool,
    /// Pages that dropped mappings may have stored to and that were not flushed since.
    stored: Mutex<rank::Leaf, Vec<Range<u64>>>,
    /// Whether a thread is flushing them.
    flushing: AtomicBool,
}

/// Limit on the ranges of stored pages in the list. Beyond it they are replaced by one range that covers them.
const MAX_STORED_RANGES: usize = 64;

const LOOKED_UP: u8 = 1;
const SET_ID: u8 = 2;
const CAPABILITY: u8 = 4;

impl OpenInode {
    fn new(ino: Ino) -> OpenInode {
        OpenInode {
            ino,
            touched: AtomicI64::new(0),
            ahead: Mutex::new(0..0),
            privileges: AtomicU8::new(0),
            hint: LastExtent::default(),
            observers: Mutex::default(),
            watched: AtomicBool::new(false),
            stored: Mutex::default(),
            flushing: AtomicBool::new(false),
        }
    }

    /// Sets the time of the last overwrite to now.
    pub(crate) fn touch(&self) {
        let now = Time::now();
        let nanos = now.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(now.nsec));
        if self.touched.load(Ordering::Relaxed) != nanos {
            self.touched.store(nanos, Ordering::Relaxed);
        }
    }

    /// Notifies the observers that these pages were written in place. An observer is added under the inode's lock,
    /// so none is missed.
    pub(crate) fn notify_changed(&self, held: InodeRead<'_>, pages: Range<u64>) {
        if self.watched.load(Ordering::Acquire) {
            let observers = self.observers.lock().clone();
            observers.iter().for_each(|w| w.changed(held, std::slice::from_ref(&pages)));
        }
    }

    /// The privileges of the file, if they are known.
    pub(crate) fn privileges(&self) -> Option<Privileges> {
        let bits = self.privileges.load(Ordering::Relaxed);
        let known = Privileges { set_id: bits & SET_ID != 0, capability: bits & CAPABILITY != 0 };
        (bits & LOOKED_UP != 0).then_some(known)
    }

    /// Stores privileges that were looked up.
    pub(crate) fn remember_privileges(&self, held: InodeRead<'_>, found: Privileges) {
        debug_assert_eq!(held.ino(), self.ino);
        let set_id = if found.set_id { SET_ID } else { 0 };
        let capability = if found.capability { CAPABILITY } else { 0 };
        self.privileges.store(LOOKED_UP | set_id | capability, Ordering::Relaxed);
    }

    /// The time is in a record now.
    pub(crate) fn clear_touched(&self) {
        self.touched.store(0, Ordering::Relaxed);
    }

    /// Records pages that were preallocated.
    pub(crate) fn note_ahead(&self, held: InodeWrite<'_>, pages: Range<u64>) {
        debug_assert_eq!(held.ino(), self.ino);
        *self.ahead.lock() = pages;
    }

    /// Removes and returns the preallocated pages.
    pub(crate) fn take_ahead(&self, held: InodeWrite<'_>) -> Range<u64> {
        debug_assert_eq!(held.ino(), self.ino);
        std::mem::take(&mut *self.ahead.lock())
    }

    /// Whether the last close has work to do.
    fn has_pending(&self) -> bool {
        let ahead = !self.ahead.lock().is_empty();
        let stored = !self.stored.lock().is_empty();
        ahead || stored || self.touched.load(Ordering::Relaxed) != 0
    }

    /// A mapping that may have stored to these pages was dropped.
    fn note_stored(&self, pages: Range<u64>) {
        let mut stored = self.stored.lock();
        if pages.is_empty() || stored.iter().any(|known| known.start <= pages.start && pages.end <= known.end) {
            return;
        }
        stored.push(pages);
        if stored.len() > MAX_STORED_RANGES {
            let all = stored.drain(..).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
            stored.extend(all);
        }
    }

    /// Pages that current or dropped mappings may have stored to since the last call.
    fn take_stored(&self) -> Vec<Range<u64>> {
        // In this order, so that a mapping that is dropped meanwhile is not missed.
        let mut here: Vec<_> = self.observers.lock().iter().map(|w| w.stores()).collect();
        here.retain(|pages| !pages.is_empty());
        here.append(&mut self.stored.lock());
        here
    }

    /// Ends a flush of stored pages, after its fence. `failed` still has to be flushed.
    pub(crate) fn end_flush(&self, failed: Vec<Range<u64>>) {
        failed.into_iter().for_each(|pages| self.note_stored(pages));
        self.flushing.store(false, Ordering::SeqCst);
    }

    fn has_stored(&self) -> bool {
        if self.flushing.load(Ordering::SeqCst) {
            return true;
        }
        let here = self.observers.lock().iter().any(|w| !w.stores().is_empty());
        here || !self.stored.lock().is_empty()
    }

    fn touched(&self) -> Option<Time> {
        match self.touched.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Time { sec: nanos.div_euclid(1_000_000_000), nsec: nanos.rem_euclid(1_000_000_000) as u32 }),
        }
    }
}

/// Open inodes by address, with the number of handles.
type Shard = AddressMap<u64, (Arc<OpenInode>, usize)>;

/// All open inodes.
#[derive(Debug)]
pub(crate) struct OpenInodes {
    shards: Vec<CachePadded<Mutex<rank::OpenFiles, Shard>>>,
    /// Number of observers of all files. While it is 0, no lookup is needed.
    watched: AtomicUsize,
}

impl Default for OpenInodes {
    fn default() -> OpenInodes {
        OpenInodes { shards: (0..SHARDS).map(|_| CachePadded::default()).collect(), watched: AtomicUsize::new(0) }
    }
}

impl OpenInodes {
    fn shard(&self, ino: Ino) -> &Mutex<rank::OpenFiles, Shard> {
        &self.shards[ino.place() as usize % SHARDS]
    }

    /// Adds a handle. The lock ensures that the file is not freed meanwhile.
    pub(crate) fn open(&self, held: InodeRead<'_>) -> Arc<OpenInode> {
        let ino = held.ino();
        let mut shard = self.shard(ino).lock();
        let (open, handles) = shard.entry(ino.place()).or_insert_with(|| (Arc::new(OpenInode::new(ino)), 0));
        *handles += 1;
        open.clone()
    }

    /// Removes a handle. Returns true if it was the last.
    pub(crate) fn close(&self, ino: Ino) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some((_, handles)) = shard.get_mut(&ino.place()) else { return true };
        *handles -= 1;
        let last = *handles == 0;
        if last {
            shard.remove(&ino.place());
        }
        last
    }

    /// Whether exactly one handle is left. No handle is added while the lock is held.
    pub(crate) fn is_last(&self, held: InodeWrite<'_>) -> bool {
        let ino = held.ino();
        self.shard(ino).lock().get(&ino.place()).is_some_and(|(_, handles)| *handles == 1)
    }

    /// Removes a handle, unless the last close of the inode has work to do under its lock. Returns `None` then,
    /// otherwise whether it was the last handle.
    pub(crate) fn close_unless_pending(&self, ino: Ino) -> Option<bool> {
        let mut shard = self.shard(ino).lock();
        match shard.get_mut(&ino.place()) {
            Some((open, _)) if open.has_pending() => None,
            Some((_, handles)) if *handles > 1 => {
                *handles -= 1;
                Some(false)
            }
            _ => {
                shard.remove(&ino.place());
                Some(true)
            }
        }
    }

    /// These pages were requested by the program, or are freed: they no longer count as preallocated, nor do the
    /// pages before them.
    pub(crate) fn claim_ahead(&self, ino: Ino, pages: &Range<u64>) {
        if let Some((open, _)) = self.shard(ino).lock().get(&ino.place()) {
            let mut ahead = open.ahead.lock();
            if ahead.start < pages.end && pages.start < ahead.end {
                ahead.start = pages.end.min(ahead.end);
            }
        }
    }

    /// The inode, if it is open.
    pub(crate) fn get(&self, ino: Ino) -> Option<Arc<OpenInode>> {
        self.shard(ino).lock().get(&ino.place()).map(|(open, _)| open.clone())
    }

    /// Whether it is open.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        self.shard(ino).lock().contains_key(&ino.place())
    }

    /// The time of an overwrite that is not in a record yet.
    pub(crate) fn touched(&self, ino: Ino) -> Option<Time> {
        self.shard(ino).lock().get(&ino.place()).and_then(|(open, _)| open.touched())
    }

    /// Every open inode with such a time.
    pub(crate) fn all_touched(&self) -> Vec<Ino> {
        let touched = |(open, _): &(Arc<OpenInode>, usize)| open.touched().map(|_| open.ino);
        self.shards.iter().flat_map(|s| s.lock().values().filter_map(touched).collect::<Vec<_>>()).collect()
    }

    /// Pages that mappings may have stored to since the last call, for a flush that [`OpenInode::end_flush`] ends.
    /// The inode must stay locked until then.
    pub(crate) fn begin_flush(&self, held: InodeWrite<'_>) -> Option<(Arc<OpenInode>, Vec<Range<u64>>)> {
        let ino = held.ino();
        let open = self.shard(ino).lock().get(&ino.place()).map(|(open, _)| open.clone())?;
        open.flushing.store(true, Ordering::SeqCst);
        let stored = open.take_stored();
        if stored.is_empty() {
            open.flushing.store(false, Ordering::SeqCst);
            return None;
        }
        Some((open, stored))
    }

    /// Whether there are such pages.
    pub(crate) fn has_stored(&self, ino: Ino) -> bool {
        self.shard(ino).lock().get(&ino.place()).is_some_and(|(open, _)| open.has_stored())
    }

    /// Every open inode with such pages.
    pub(crate) fn all_stored(&self) -> Vec<Ino> {
        let stored = |(open, _): &(Arc<OpenInode>, usize)| open.has_stored().then_some(open.ino);
        self.shards.iter().flat_map(|s| s.lock().values().filter_map(stored).collect::<Vec<_>>()).collect()
    }

    /// The time is in a record now.
    pub(crate) fn clear_touched(&self, ino: Ino) {
        if let Some((open, _)) = self.shard(ino).lock().get(&ino.place()) {
            open.clear_touched();
        }
    }

    /// The privileges of the file are about to change: the next query looks them up.
    pub(crate) fn forget_privileges(&self, held: InodeWrite<'_>) {
        let ino = held.ino();
        if let Some((open, _)) = self.shard(ino).lock().get(&ino.place()) {
            open.privileges.store(0, Ordering::Relaxed);
        }
    }

    /// The observers of this file.
    pub(crate) fn observers(&self, ino: Ino) -> MappingObservers {
        if self.watched.load(Ordering::SeqCst) == 0 {
            return MappingObservers::new();
        }
        let open = self.shard(ino).lock().get(&ino.place()).map(|(open, _)| open.clone());
        open.map_or_else(MappingObservers::new, |open| open.observers.lock().clone())
    }

    /// Every open inode with observers.
    pub(crate) fn all_observed(&self) -> Vec<Ino> {
        if self.watched.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let observed = |(open, _): &(Arc<OpenInode>, usize)| open.watched.load(Ordering::Acquire).then_some(open.ino);
        self.shards.iter().flat_map(|s| s.lock().values().filter_map(observed).collect::<Vec<_>>()).collect()
    }

    /// Adds an observer. It is notified of every change from now on.
    pub(crate) fn watch(&self, held: InodeWrite<'_>, open: &OpenInode, observer: Arc<dyn MappingObserver>) {
        debug_assert_eq!(held.ino(), open.ino);
        self.watched.fetch_add(1, Ordering::SeqCst);
        let mut observers = open.observers.lock();
        observers.push(observer);
        open.watched.store(true, Ordering::Release);
    }

    /// Removes an observer. It is not notified of changes that start from now on.
    pub(crate) fn remove_observer(&self, open: &OpenInode, observer: &Arc<dyn MappingObserver>) {
        let mut observers = open.observers.lock();
        if let Some(i) = observers.iter().position(|w| Arc::ptr_eq(w, observer)) {
            // Before it leaves the list: `take_stored` reads the list first.
            open.note_stored(observer.stores());
            observers.swap_remove(i);
            open.watched.store(!observers.is_empty(), Ordering::Release);
            self.watched.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
