//! The fault service of the process: one fault reader, two helper threads, and the list of all mappings.
//!
//! ```text
//!   kernel --userfaultfd--> reader --- a store to a hole, all locks free: resolved at once
//!                              |
//!                              `- queue -> helpers     may block on locks, and call mremap
//! ```
//!
//! A thread that calls `mremap` on a mapping blocks until the reader has read the event. The reader waits
//! for `MapState` and for ranks from `Chain` on; all earlier locks it only tries. `lock::rank::FaultReader` checks this.
//!
//! None of these threads accesses a mapping. No thread accesses one while it holds a lock of the engine:
//! `File::read_at` and `write_at` go through a bounce buffer when their memory is itself a mapping of this library.
//! The exception is [`Area::populate`], for pages that are known to be mapped.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pmem::{MapMode, fault_tolerant};
use serde::{Deserialize, Serialize};

use crate::data::FileHandle;
use crate::engine::MappingObserver;
use crate::error::{Error, Result};
use crate::lock::{StdReadGuard, StdRwLock, StdWriteGuard, rank};
use crate::mmap::address_space::area::Area;
use crate::mmap::fault::answer;
use crate::mmap::fork::parent;
use crate::mmap::kernel::userfault::{Fault, Userfault, spawn};

/// Limit on hole pages mapped at a time in the process (8 GiB): their page tables take 16 MiB.
const MAX_MAPPED_HOLES: u64 = 2 << 20;
/// Limit on windows in the list; beyond it the oldest are unmapped.
const MAX_WINDOWS: usize = 16 << 10;
const HELPERS: usize = 2;
/// Delay before the reader reads again after an error.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// How this process is notified of faults.
#[derive(Debug)]
pub(in crate::mmap) enum Mechanism {
    /// By userfaultfd.
    Userfault(Userfault),
    /// It is not: what a mapping shows is determined when it is mapped.
    Signals,
}

/// How faults in mappings are resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MapMechanism {
    /// userfaultfd: everything in the table of `docs/mappings.md` holds, including the kernel's stores to holes.
    Userfaultfd,
    /// Signals only: the methods of a mapping work. A store to a hole through a raw pointer or by the kernel needs
    /// [`Mapping::populate`](crate::mmap::Mapping::populate) first.
    Signals,
}

impl MapMechanism {
    /// The mechanism that a new mapping in this process would use.
    pub fn here() -> MapMechanism {
        match Service::existing() {
            Some(service) => service.mechanism.name(),
            None => Userfault::new().map_or(MapMechanism::Signals, |_| MapMechanism::Userfaultfd),
        }
    }
}

impl std::fmt::Display for MapMechanism {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MapMechanism::Userfaultfd => "userfaultfd: the kernel's own stores to holes work too",
            MapMechanism::Signals => "signals: the kernel stores to a hole only once it has storage",
        })
    }
}

impl Mechanism {
    pub(in crate::mmap) fn name(&self) -> MapMechanism {
        match self {
            Mechanism::Userfault(_) => MapMechanism::Userfaultfd,
            Mechanism::Signals => MapMechanism::Signals,
        }
    }
}

/// A mapping in the service's list.
#[derive(Clone, Debug)]
pub(in crate::mmap) struct Entry {
    pub(in crate::mmap) area: Arc<Area>,
    pub(in crate::mmap) file: FileHandle,
}

impl Entry {
    /// The mapping stops observing changes of its file.
    pub(in crate::mmap) fn remove_observer(&self) {
        self.area.unpin(self.file.engine());
        let observer: Arc<dyn MappingObserver> = self.area.clone();
        self.file.engine().opens.remove_observer(self.file.opened(), &observer);
    }
}

pub(in crate::mmap) type Entries = BTreeMap<usize, Entry>;

/// Pages of a mapping that were mapped at one fault.
#[derive(Debug)]
struct Window {
    area: Arc<Area>,
    pages: Range<u64>,
    /// How many of them were holes.
    holes: u64,
}

/// The service of the process. Created with the first mapping, never destroyed.
#[derive(Debug)]
pub(in crate::mmap) struct Service {
    pub(in crate::mmap) mechanism: Mechanism,
    entries: StdRwLock<rank::Mappings, Entries>,
    queue: Mutex<VecDeque<Fault>>,
    waiting: Condvar,
    /// Mapped windows, oldest first.
    windows: Mutex<VecDeque<Window>>,
    /// Kernel mappings of the process: the last count plus those added since.
    pieces: AtomicUsize,
    most_pieces: usize,
    /// Children that have mappings.
    children: AtomicUsize,
    /// Mappings that were dropped in this process and that a child still has.
    retired: Mutex<Vec<Entry>>,
}

static SERVICE: OnceLock<Service> = OnceLock::new();

impl Service {
    /// The service of this process.
    pub(in crate::mmap) fn get() -> io::Result<&'static Service> {
        static START: Mutex<()> = Mutex::new(());
        if let Some(service) = SERVICE.get() {
            return Ok(service);
        }
        let _one = START.lock();
        if let Some(service) = SERVICE.get() {
            return Ok(service);
        }
        fault_tolerant::install()?;
        let mechanism = Userfault::new().map_or(Mechanism::Signals, Mechanism::Userfault);
        // Start the threads first: a published service without them would never resolve a fault.
        let threads = match mechanism {
            Mechanism::Userfault(_) => Threads::start()?,
            Mechanism::Signals => Threads::default(),
        };
        let service = SERVICE.get_or_init(|| Service {
            mechanism,
            entries: StdRwLock::default(),
            queue: Mutex::default(),
            waiting: Condvar::new(),
            windows: Mutex::default(),
            pieces: AtomicUsize::new(0),
            most_pieces: half_of_limit(),
            children: AtomicUsize::new(0),
            retired: Mutex::default(),
        });
        parent::watch();
        threads.begin(service);
        Ok(service)
    }

    /// The service, if it exists.
    pub(in crate::mmap) fn existing() -> Option<&'static Service> {
        SERVICE.get()
    }

    /// Whether a child has mappings of this process.
    pub(in crate::mmap) fn has_children(&self) -> bool {
        self.children.load(Ordering::SeqCst) > 0
    }

    /// Registers one more such child.
    pub(in crate::mmap) fn add_child(&self) {
        self.children.fetch_add(1, Ordering::SeqCst);
    }

    /// Unregisters one.
    pub(in crate::mmap) fn remove_child(&self) {
        self.children.fetch_sub(1, Ordering::SeqCst);
    }

    /// The list of mappings, exclusively. No fault is resolved meanwhile.
    pub(in crate::mmap) fn entries_mut(&self) -> StdWriteGuard<'_, Entries> {
        self.entries.write()
    }

    /// The mapping with this number, including one that only a child still has.
    pub(in crate::mmap) fn by_id(&self, id: u64) -> Option<Entry> {
        let here = self.entries().values().find(|entry| entry.area.id == id).cloned();
        here.or_else(|| self.retired.lock().iter().find(|entry| entry.area.id == id).cloned())
    }

    /// The mapping is about to be dropped in this process. It keeps receiving changes for the children that still
    /// have it.
    pub(in crate::mmap) fn retire(&self, entry: Entry) {
        self.retired.lock().push(entry);
    }

    /// Drops retired mappings that no child has any more and that have left the list of this process.
    pub(in crate::mmap) fn drop_retired(&self) {
        let gone: Vec<Entry> = {
            let entries = self.entries();
            let mut retired = self.retired.lock();
            let listed = |area: &Arc<Area>| entries.get(&area.base).is_some_and(|e| Arc::ptr_eq(&e.area, area));
            retired.extract_if(.., |e| e.area.links.lock().is_empty() && !listed(&e.area)).collect()
        };
        for entry in gone {
            entry.remove_observer();
        }
    }

    /// The requested mechanism, or the best one available.
    pub(in crate::mmap) fn mechanism(&self, wanted: Option<MapMechanism>) -> Result<&Mechanism> {
        match (wanted, &self.mechanism) {
            (Some(MapMechanism::Signals), _) => Ok(&Mechanism::Signals),
            (Some(MapMechanism::Userfaultfd), Mechanism::Signals) => {
                Err(Error::NotSupported("userfaultfd is not allowed here"))
            }
            (_, best) => Ok(best),
        }
    }

    /// The list of mappings, shared. No mapping is added or removed while the guard exists.
    pub(in crate::mmap) fn entries(&self) -> StdReadGuard<'_, Entries> {
        self.entries.read()
    }

    pub(in crate::mmap) fn try_entries(&self) -> Option<StdReadGuard<'_, Entries>> {
        self.entries.try_read()
    }

    pub(in crate::mmap) fn add(&self, entry: Entry) {
        self.entries_mut().insert(entry.area.base, entry);
    }

    /// Removes a mapping from the list. Waits until no fault of it is being resolved.
    pub(in crate::mmap) fn remove(&self, area: &Arc<Area>) {
        let entry = self.entries_mut().remove(&area.base);
        // Dropping the entry may close the file: not under the lock.
        let here = entry.as_ref().is_none_or(|entry| entry.file.engine().alloc.check_process().is_ok());
        drop(entry);
        if !here {
            // In a child, a thread that does not exist there may hold the lock.
            return;
        }
        self.windows.lock().retain(|window| !Arc::ptr_eq(&window.area, area));
    }

    fn read(&self, uffd: &Userfault) {
        let mut faults = Vec::new();
        loop {
            if let Err(e) = uffd.read(&mut faults) {
                // No other thread reads faults. A persistent error must not keep a processor busy.
                if e.kind() != io::ErrorKind::Interrupted {
                    std::thread::sleep(RETRY_DELAY);
                }
                continue;
            }
            for &fault in &faults {
                if !answer::try_resolve(self, uffd, fault) {
                    self.queue.lock().push_back(fault);
                    self.waiting.notify_one();
                }
            }
        }
    }

    fn help(&self, uffd: &Userfault) {
        loop {
            let fault = {
                let mut queue = self.queue.lock();
                loop {
                    match queue.pop_front() {
                        Some(fault) => break fault,
                        None => self.waiting.wait(&mut queue),
                    }
                }
            };
            answer::resolve(self, uffd, fault);
            self.trim_windows();
        }
    }

    /// Whether windows should be unmapped, which takes locks.
    pub(in crate::mmap) fn is_crowded(&self) -> bool {
        self.pieces.load(Ordering::Relaxed) > self.most_pieces || self.windows.lock().len() > MAX_WINDOWS
    }

    /// Records a window that was mapped in `pieces` kernel mappings.
    pub(in crate::mmap) fn note_window(&self, area: &Arc<Area>, window: Range<u64>, pieces: usize) {
        self.pieces.fetch_add(pieces, Ordering::Relaxed);
        if area.mode != MapMode::Private {
            let holes = area.holes_in(window.clone());
            self.windows.lock().push_back(Window { area: area.clone(), pages: window, holes });
        }
    }

    /// Unmaps the oldest windows if there are too many; the next access maps them again. The caller must hold no
    /// lock.
    pub(in crate::mmap) fn trim_windows(&self) {
        let mut all = self.too_many_pieces();
        loop {
            let oldest: Vec<Window> = {
                let mut windows = self.windows.lock();
                let len = windows.len();
                all &= len > 1;
                match surplus(windows.iter().map(|window| window.holes)) {
                    _ if all => windows.drain(..len - len * 3 / 4).collect(),
                    Some(at) => windows.remove(at).into_iter().collect(),
                    None => return,
                }
            };
            let entries = self.entries();
            for Window { area, pages, .. } in oldest {
                if let Some(entry) = entries.get(&area.base).filter(|entry| Arc::ptr_eq(&entry.area, &area)) {
                    let _lock = entry.file.engine().locks.write(&[area.ino]);
                    // A window that stays mapped is unmapped another time.
                    let _ = area.take_down(pages, all);
                }
            }
            drop(entries);
            all = all && self.too_many_pieces();
        }
    }

    /// Whether the process has more than half of the kernel mappings allowed. They are counted only when the
    /// estimate exceeds that.
    fn too_many_pieces(&self) -> bool {
        if self.pieces.load(Ordering::Relaxed) <= self.most_pieces {
            return false;
        }
        let count = std::fs::read("/proc/self/maps").map_or(0, |text| text.iter().filter(|&&b| b == b'\n').count());
        self.pieces.store(count, Ordering::Relaxed);
        count > self.most_pieces
    }
}

/// The window to unmap if there are too many windows or holes. To reduce holes, windows of storage alone are
/// skipped: unmapping them frees no hole, and they keep the number of kernel mappings low.
fn surplus(holes: impl ExactSizeIterator<Item = u64> + Clone) -> Option<usize> {
    match () {
        () if holes.clone().sum::<u64>() > MAX_MAPPED_HOLES => holes.clone().position(|holes| holes > 0),
        () => (holes.len() > MAX_WINDOWS).then_some(0),
    }
}

/// The reader and the helpers. They wait until the service is published, and end if its creation fails.
#[derive(Default)]
struct Threads(Arc<(Mutex<Start>, Condvar)>);

#[derive(Clone, Copy, Default)]
enum Start {
    #[default]
    Wait,
    Work(&'static Service),
    GiveUp,
}

impl Threads {
    /// Starts all threads, or none.
    fn start() -> io::Result<Threads> {
        let threads = Threads::default();
        threads.spawn(c"pagestone-fault", Service::read)?;
        for _ in 0..HELPERS {
            threads.spawn(c"pagestone-map", Service::help)?;
        }
        Ok(threads)
    }

    fn spawn(&self, name: &'static CStr, work: fn(&Service, &Userfault)) -> io::Result<()> {
        let start = self.0.clone();
        spawn(name, move || {
            let (start, changed) = &*start;
            let mut start = start.lock();
            changed.wait_while(&mut start, |start| matches!(start, Start::Wait));
            if let Start::Work(service) = *start
                && let Mechanism::Userfault(uffd) = &service.mechanism
            {
                drop(start);
                work(service, uffd);
            }
        })
    }

    fn begin(&self, service: &'static Service) {
        self.set(Start::Work(service));
    }

    fn set(&self, what: Start) {
        let (start, changed) = &*self.0;
        let mut start = start.lock();
        if matches!(*start, Start::Wait) {
            *start = what;
            changed.notify_all();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.set(Start::GiveUp);
    }
}

/// Half of the kernel mappings that a process may have.
fn half_of_limit() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|n| n.trim().parse().ok());
    limit.unwrap_or(65_530) / 2
}

/// The mapping that contains `addr`.
pub(in crate::mmap) fn find(entries: &Entries, addr: usize) -> Option<&Entry> {
    let (&base, entry) = entries.range(..=addr).next_back()?;
    (addr - base < (entry.area.pages * crate::units::PAGE_SIZE) as usize).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::{MAX_MAPPED_HOLES, MAX_WINDOWS, surplus};

    #[test]
    fn windows_of_storage_do_not_count_as_holes() {
        let storage = vec![0; MAX_WINDOWS - 2];
        let with = |more: &[u64]| surplus(storage.iter().chain(more).copied().collect::<Vec<_>>().into_iter());
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[MAX_MAPPED_HOLES]), None);
        assert_eq!(with(&[0, MAX_MAPPED_HOLES + 1]), Some(MAX_WINDOWS - 1), "the first that has holes");
        assert_eq!(with(&[0, 0, 0]), Some(0), "too many to remember");
        assert_eq!(surplus([].into_iter()), None);
    }
}
