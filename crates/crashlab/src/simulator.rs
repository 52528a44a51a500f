//! The media that remembers what was done to it.
//!
//! ```text
//!              Lines                                   Pages
//!   meta = data = one mapping            store -> meta (private overlay of a page)
//!   store, persist -> mapping                        |  flush: write the page back
//!                                                    v
//!                                        persist -> data ("page cache") -> sync -> disk
//!                                                    |
//!                                                    +-> meta, where a page has no overlay
//! ```
//! The mappings show what the running program sees. What a crash would leave is worked out
//! later, from the log ([`crate::Trace`]).

use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pmem::{Description, Durability, Granularity, MappedRange, Media, MediaKind, Part, PersistMethod, Views};

use crate::config::Flavour;
use crate::image::CrashImage;
use crate::log::{Log, Op, Via};
use crate::pages::{FastMap, FastSet, PAGE, PageMap, by_page};
use crate::recording::Recording;

/// A use of the media that its contract forbids, seen while it ran.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A page was persisted through the data view while the meta view held changes to it
    /// that have not been synced: the two views now disagree.
    PersistUnderOverlay {
        /// First byte of the page.
        page: u64,
    },
    /// A page was stored to between its flush and the sync that should have covered it.
    StoreAfterFlush {
        /// First byte of the page.
        page: u64,
    },
}

/// Simulated persistent memory: a [`Media`] that records every call.
pub struct Simulator {
    meta: MappedRange,
    /// The page cache, in the page flavour; otherwise both views are `meta`.
    data: Option<MappedRange>,
    flavour: Flavour,
    seed: u64,
    description: Description,
    live: Mutex<Live>,
    idle: Weak<IdleSimulators>,
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator").field("flavour", &self.flavour).field("len", &self.meta.len()).finish()
    }
}

#[derive(Default)]
struct Live {
    log: Log,
    /// What the durable image was when recording began; `None` while not recording.
    start: Option<CrashImage>,
    /// What the mappings were last known to hold, except for the pages in `touched`.
    resident: Arc<PageMap>,
    touched: FastSet,
    /// Pages of the meta view with private changes, and whether they were flushed.
    overlay: FastMap<bool>,
    violations: Vec<Violation>,
}

impl Simulator {
    pub(crate) fn new(len: u64, flavour: Flavour, seed: u64, idle: Weak<IdleSimulators>) -> io::Result<Simulator> {
        let pages = flavour == Flavour::Pages;
        Ok(Simulator {
            meta: MappedRange::anonymous(len)?,
            data: if pages { Some(MappedRange::anonymous(len)?) } else { None },
            flavour,
            seed,
            description: Description {
                kind: MediaKind::Simulator,
                granularity: if pages { Granularity::Page } else { Granularity::CacheLine },
                method: if pages { PersistMethod::Fdatasync } else { PersistMethod::NonTemporal },
                durability: if pages { Durability::AtSync } else { Durability::AtFence },
                promise: "what survives is for the crash lab to decide".into(),
                cache_id: *b"crashlab first  ",
                read_only: false,
            },
            live: Mutex::new(Live::default()),
            idle,
        })
    }

    fn data(&self) -> &MappedRange {
        self.data.as_ref().unwrap_or(&self.meta)
    }

    /// Bytes of the media.
    pub fn len(&self) -> u64 {
        self.meta.len()
    }

    /// Whether the media has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.meta.is_empty()
    }

    /// Begins to record. Everything stored before counts as durable (in the page flavour:
    /// everything in the page cache; unflushed overlay pages stay what they are).
    pub fn start_recording(&self) {
        let mut live = self.live.lock();
        let live = &mut *live;
        let map = Arc::make_mut(&mut live.resident);
        for page in live.touched.drain() {
            let mut bytes = [0; PAGE];
            let inside = self.data().read(page * PAGE as u64, &mut bytes);
            debug_assert!(inside, "only pages of the mapping are touched");
            match bytes.iter().all(|byte| *byte == 0) {
                true => map.remove(page),
                false => map.insert(page, Arc::new(bytes)),
            }
        }
        // Overlay pages differ from the page cache, so the mappings do not hold what `resident` says.
        live.touched.extend(live.overlay.keys());
        live.log.clear();
        live.violations.clear();
        live.start = Some(CrashImage::plain(live.resident.clone()));
    }

    /// Notes that something has been acknowledged: what the caller was promised here must be
    /// found after every later crash. Labels appear in failure reports.
    pub fn mark(&self, label: impl Into<String>) {
        let mut live = self.live.lock();
        if live.start.is_some() {
            live.log.mark(label.into());
        }
    }

    /// Ends the recording: what was done, and which uses of the media its contract forbids.
    pub(crate) fn take_recording(&self) -> (Recording, Vec<Violation>) {
        let mut live = self.live.lock();
        let base = match live.start.take() {
            Some(start) => start.into_base(),
            None => live.resident.clone(),
        };
        let log = std::mem::take(&mut live.log);
        let recording = Recording { base, log, flavour: self.flavour, seed: self.seed };
        (recording, std::mem::take(&mut live.violations))
    }

    pub(crate) fn cache_id(&self) -> [u8; 16] {
        self.description.cache_id
    }

    /// The idle simulators of the lab that made this one; others if that lab is gone.
    pub(crate) fn idle(&self) -> Arc<IdleSimulators> {
        self.idle.upgrade().unwrap_or_else(|| IdleSimulators::new(self.len(), self.flavour, self.seed))
    }

    /// Uses of the media that its contract forbids, since the recording began.
    pub fn violations(&self) -> Vec<Violation> {
        self.live.lock().violations.clone()
    }

    /// Records bytes that were changed directly in the data view, through an address and
    /// without any call (a mapped store, a `read(2)` into the pool). They are treated as stores
    /// that nobody has flushed, or as changes in the page cache.
    pub fn absorb(&self, at: u64, len: u64) {
        if !self.meta.contains(at, len) {
            return;
        }
        let mut live = self.live.lock();
        for (at, _, len) in by_page(at, len) {
            let mut bytes = [0; PAGE];
            let inside = self.data().read(at, &mut bytes[..len]);
            debug_assert!(inside, "the range was checked");
            let via = if self.data.is_some() { Via::Writeback } else { Via::Store };
            self.note(&mut live, via, at, &bytes[..len]);
            self.mirror(&mut live, at, len as u64, |meta, at, from, len| meta.write(at, &bytes[from..from + len]));
        }
    }

    /// Makes the mappings hold a crash image and begins to record on it. Only the pages that
    /// differ are copied.
    pub(crate) fn load(&mut self, image: CrashImage, cache_id: [u8; 16]) {
        self.description.cache_id = cache_id;
        let live = self.live.get_mut();
        let windows = [Some(&self.meta), self.data.as_ref()];
        let put = |page: u64, bytes: Option<&[u8; PAGE]>| {
            for window in windows.iter().flatten() {
                let inside = match bytes {
                    Some(bytes) => window.write(page * PAGE as u64, bytes),
                    None => window.zero(page * PAGE as u64, PAGE as u64),
                };
                debug_assert!(inside, "pages of an image lie inside the pool it was taken from");
            }
        };
        if !Arc::ptr_eq(&live.resident, &image.base) {
            for (page, bytes) in image.base.iter() {
                if !live.resident.get(page).is_some_and(|old| Arc::ptr_eq(old, bytes)) {
                    live.touched.insert(page);
                }
            }
            live.touched
                .extend(live.resident.iter().map(|(page, _)| page).filter(|page| image.base.get(*page).is_none()));
            live.resident = image.base.clone();
        }
        for page in live.touched.drain() {
            put(page, image.base.get(page).map(|page| &**page));
        }
        for (at, bytes) in image.patches() {
            for window in windows.iter().flatten() {
                let inside = window.write(at, bytes);
                debug_assert!(inside, "as above");
            }
            live.touched.insert(at / PAGE as u64);
        }
        live.overlay.clear();
        live.violations.clear();
        live.log.clear();
        live.start = Some(image);
    }

    /// Remembers that bytes changed, and logs the change if recording.
    fn note(&self, live: &mut Live, via: Via, at: u64, bytes: &[u8]) {
        live.touch(at, bytes.len() as u64);
        if live.start.is_some() {
            live.log.write(via, at, bytes);
        }
    }

    /// Repeats a change of the page cache in the meta view, where the page has no overlay.
    fn mirror(&self, live: &mut Live, at: u64, len: u64, write: impl Fn(&MappedRange, u64, usize, usize) -> bool) {
        if self.data.is_none() {
            return;
        }
        for (at, from, len) in by_page(at, len) {
            if live.overlay.contains_key(&(at / PAGE as u64)) {
                live.violations.push(Violation::PersistUnderOverlay { page: at - at % PAGE as u64 });
            } else {
                let inside = write(&self.meta, at, from, len);
                debug_assert!(inside, "both windows have one length");
            }
        }
    }

    fn persist_part(&self, live: &mut Live, part: &Part<'_>) {
        let inside = match *part {
            Part::Bytes { at, bytes } => {
                self.note(live, Via::Persist, at, bytes);
                self.mirror(live, at, bytes.len() as u64, |meta, at, from, len| {
                    meta.write(at, &bytes[from..from + len])
                });
                self.data().write(at, bytes)
            }
            Part::Zero { at, len } => {
                live.touch(at, len);
                if live.start.is_some() {
                    live.log.push(Op::Zero { at, len });
                }
                self.mirror(live, at, len, |meta, at, _, len| meta.zero(at, len as u64));
                self.data().zero(at, len)
            }
        };
        debug_assert!(inside, "all parts were checked");
    }

    /// Hands the overlay pages of a range to the page cache. They may reach the disk from now
    /// on; a file that waits for the sync is one of the cases in which they have not yet.
    fn write_back(&self, live: &mut Live, at: u64, len: u64) {
        for (at, ..) in by_page(at, len) {
            let page = at / PAGE as u64;
            let Some(flushed) = live.overlay.get_mut(&page) else { continue };
            *flushed = true;
            let mut bytes = [0; PAGE];
            let inside =
                self.meta.read(page * PAGE as u64, &mut bytes) && self.data().write(page * PAGE as u64, &bytes);
            debug_assert!(inside, "only pages of the mapping have an overlay");
            self.note(live, Via::Writeback, page * PAGE as u64, &bytes);
        }
    }
}

impl Live {
    fn touch(&mut self, at: u64, len: u64) {
        if len > 0 {
            self.touched.extend(at / PAGE as u64..=(at + len - 1) / PAGE as u64);
        }
    }
    fn event(&mut self, op: Op) {
        if self.start.is_some() {
            self.log.push(op);
        }
    }
}

impl Media for Simulator {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn views(&self) -> Views<'_> {
        Views { meta: &self.meta, data: self.data() }
    }

    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        let inside = |part: &Part<'_>| match *part {
            Part::Bytes { at, bytes } => self.meta.contains(at, bytes.len() as u64),
            Part::Zero { at, len } => self.meta.contains(at, len),
        };
        if !parts.iter().all(inside) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut live = self.live.lock();
        for part in parts {
            self.persist_part(&mut live, part);
        }
        live.event(Op::PersistEnd);
        Ok(())
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        if !self.meta.contains(at, bytes.len() as u64) {
            debug_assert!(false, "Region checks bounds");
            return;
        }
        let mut live = self.live.lock();
        if self.data.is_none() {
            self.note(&mut live, Via::Store, at, bytes);
        } else {
            live.touch(at, bytes.len() as u64);
            for (at, ..) in by_page(at, bytes.len() as u64) {
                if *live.overlay.entry(at / PAGE as u64).or_insert(false) {
                    live.violations.push(Violation::StoreAfterFlush { page: at - at % PAGE as u64 });
                }
            }
        }
        let inside = self.meta.write(at, bytes);
        debug_assert!(inside, "the range was checked");
    }

    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        if !self.meta.contains(at, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut live = self.live.lock();
        if self.data.is_some() {
            self.write_back(&mut live, at, len);
        }
        live.event(Op::Flush { at, len });
        Ok(())
    }

    fn fence(&self) {
        self.live.lock().event(Op::Fence);
    }

    fn sync(&self) -> io::Result<()> {
        let mut live = self.live.lock();
        live.event(Op::Sync);
        let flushed: Vec<u64> = live.overlay.iter().filter(|(_, flushed)| **flushed).map(|(page, _)| *page).collect();
        for page in flushed {
            live.overlay.remove(&page);
            // The private copy is gone: the page cache shows through, whatever it holds.
            let mut bytes = [0; PAGE];
            let inside =
                self.data().read(page * PAGE as u64, &mut bytes) && self.meta.write(page * PAGE as u64, &bytes);
            debug_assert!(inside, "only pages of the mapping have an overlay");
        }
        Ok(())
    }

    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        if self.meta.contains(at, len) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

/// Simulators that nobody uses. Loading the next image into one of them copies only what differs,
/// which is what makes tens of thousands of crash states per second possible.
#[derive(Debug)]
pub(crate) struct IdleSimulators {
    len: u64,
    flavour: Flavour,
    seed: u64,
    simulators: Mutex<Vec<Arc<Simulator>>>,
}

impl IdleSimulators {
    pub(crate) fn new(len: u64, flavour: Flavour, seed: u64) -> Arc<IdleSimulators> {
        Arc::new(IdleSimulators { len, flavour, seed, simulators: Mutex::default() })
    }

    /// A simulator that holds zeros.
    pub(crate) fn fresh(self: &Arc<Self>) -> io::Result<Simulator> {
        Simulator::new(self.len, self.flavour, self.seed, Arc::downgrade(self))
    }

    /// A simulator that holds `image` and records from there.
    pub(crate) fn with_image(self: &Arc<Self>, image: CrashImage, cache_id: [u8; 16]) -> io::Result<Arc<Simulator>> {
        let idle = self.simulators.lock().pop();
        let mut sim = match idle {
            Some(sim) => sim,
            None => Arc::new(self.fresh()?),
        };
        match Arc::get_mut(&mut sim) {
            Some(free) => free.load(image, cache_id),
            None => {
                let mut other = self.fresh()?;
                other.load(image, cache_id);
                sim = Arc::new(other);
            }
        }
        Ok(sim)
    }

    /// Takes a simulator back, unless somebody still holds it.
    pub(crate) fn put_back(&self, mut sim: Arc<Simulator>) {
        if Arc::get_mut(&mut sim).is_some() {
            self.simulators.lock().push(sim);
        }
    }
}
