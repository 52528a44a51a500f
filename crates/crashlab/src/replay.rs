//! Replays a log and tracks what is durable and what is pending at every moment.
//!
//! ```text
//!   unit   durable   versions not known to be durable, oldest first
//!   0x40      7      [8 @event 3] [9 @event 5]      any one of 7, 8, 9 may survive a power cut
//!   0x48      1      [2 @event 3]
//! ```
//! A unit is what becomes durable atomically: 8 bytes of memory, or a 512-byte sector of a disk. A fence makes the
//! versions durable that the same thread flushed before. A sync makes everything durable that was flushed (memory)
//! or is in the page cache (file).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread::ThreadId;

use smallvec::SmallVec;

use crate::config::Flavour;
use crate::log::{Event, Log, Op, Via};
use crate::pages::{PAGE, PageMap, by_page, share};

/// One value of a unit since it was last durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    /// The event that stored it.
    pub(crate) event: u32,
    /// Position of its bytes in the arena.
    pub(crate) data: usize,
}

pub(crate) type Versions = SmallVec<[Version; 2]>;

/// Bytes of a unit, which becomes durable atomically. Eight units form a group: a cache line of words, a page of
/// sectors.
pub(crate) fn unit_bytes(flavour: Flavour) -> usize {
    match flavour {
        Flavour::Lines => 8,
        Flavour::Pages => 512,
    }
}

pub(crate) struct Replay<'t> {
    log: &'t Log,
    flavour: Flavour,
    pub(crate) unit: usize,
    /// The contents of the media that are certain.
    pub(crate) durable: Arc<PageMap>,
    /// Hash of `durable` relative to the image at the start.
    pub(crate) durable_hash: u64,
    /// The contents that the program sees (of the page cache).
    pub(crate) visible: Arc<PageMap>,
    pub(crate) visible_hash: u64,
    /// Units, by pool byte / unit bytes, whose visible value is not known to be durable.
    pub(crate) pending: BTreeMap<u64, Versions>,
    /// The bytes of all pending versions.
    pub(crate) arena: Vec<u8>,
    /// What each thread has flushed and not fenced: the unit, and the last event covered.
    flushed: HashMap<ThreadId, Vec<(u64, u32)>>,
    /// Number of marks passed.
    pub(crate) marks: usize,
    /// Number of marks passed before the last sync.
    pub(crate) synced_marks: usize,
    /// The next event to apply.
    pub(crate) next: usize,
}

impl<'t> Replay<'t> {
    pub(crate) fn new(base: &Arc<PageMap>, log: &'t Log, flavour: Flavour) -> Replay<'t> {
        Replay {
            log,
            flavour,
            unit: unit_bytes(flavour),
            durable: base.clone(),
            durable_hash: 0,
            visible: base.clone(),
            visible_hash: 0,
            pending: BTreeMap::new(),
            arena: Vec::new(),
            flushed: HashMap::new(),
            marks: 0,
            synced_marks: 0,
            next: 0,
        }
    }

    /// Applies events up to, not including, `event`.
    pub(crate) fn advance_to(&mut self, event: usize) {
        while self.next < event.min(self.log.events.len()) {
            let event = self.log.events[self.next];
            self.apply(event);
            self.next += 1;
        }
    }

    fn apply(&mut self, event: Event) {
        match event.op {
            Op::Write { via, at, len, data } => {
                let log = self.log;
                let bytes = log.data(data, len);
                for (at, from, len) in by_page(at, len) {
                    self.write_within(at, &bytes[from..from + len]);
                }
                if via == Via::Persist {
                    self.note_flushed(event.thread, at, len);
                }
            }
            Op::Zero { at, len } => {
                for (at, _, len) in by_page(at, len) {
                    // A page that was never stored to is zero and has nothing pending.
                    if self.visible.get(at / PAGE as u64).is_some() {
                        self.write_within(at, &[0; PAGE][..len]);
                    }
                }
                self.note_flushed(event.thread, at, len);
            }
            Op::Flush { at, len } => self.note_flushed(event.thread, at, len),
            Op::Fence | Op::PersistEnd => {
                if let Some(units) = self.flushed.get_mut(&event.thread) {
                    let units = std::mem::take(units);
                    self.retire(&units);
                }
            }
            Op::Sync => self.sync(),
            Op::Mark => self.marks += 1,
        }
    }

    /// Changes what is visible. Every unit that changes gets a new version.
    fn write_within(&mut self, at: u64, bytes: &[u8]) {
        if self.visible.slice(at, bytes.len()) == bytes {
            return;
        }
        let unit = self.unit;
        let event = self.next as u32;
        let page_at = at - at % PAGE as u64;
        let page = Arc::make_mut(&mut self.visible).page_mut(at / PAGE as u64);
        let (from, end) = (at as usize % PAGE, at as usize % PAGE + bytes.len());
        for first in (from - from % unit..end).step_by(unit) {
            let (lo, hi) = (first.max(from), (first + unit).min(end));
            let new = &bytes[lo - from..hi - from];
            if page[lo..hi] == *new {
                continue;
            }
            let place = page_at + first as u64;
            let before = share(place, &page[first..first + unit]);
            page[lo..hi].copy_from_slice(new);
            let after = share(place, &page[first..first + unit]);
            self.visible_hash = self.visible_hash.wrapping_add(after).wrapping_sub(before);
            let data = self.arena.len();
            self.arena.extend_from_slice(&page[first..first + unit]);
            self.pending.entry(place / unit as u64).or_default().push(Version { event, data });
        }
    }

    /// Records a flush of the words in the range only. Hardware writes back the whole line around them, but a
    /// caller that relies on it has flushed the wrong range.
    fn note_flushed(&mut self, thread: ThreadId, at: u64, len: u64) {
        if self.flavour == Flavour::Pages || len == 0 {
            return;
        }
        let unit = self.unit as u64;
        let event = self.next as u32;
        let range = at / unit..(at + len).div_ceil(unit);
        let covered = self.pending.range(range).map(|(unit, _)| (*unit, event));
        self.flushed.entry(thread).or_default().extend(covered);
    }

    /// Makes versions durable, for each unit up to the given event.
    fn retire(&mut self, units: &[(u64, u32)]) {
        for (unit, event) in units {
            let Some(versions) = self.pending.get_mut(unit) else { continue };
            let covered = versions.iter().take_while(|version| version.event <= *event).count();
            let Some(last) = versions.drain(..covered).next_back() else { continue };
            let emptied = versions.is_empty();
            if emptied {
                self.pending.remove(unit);
            }
            let at = unit * self.unit as u64;
            let new = &self.arena[last.data..last.data + self.unit];
            let before = share(at, self.durable.slice(at, self.unit));
            self.durable_hash = self.durable_hash.wrapping_add(share(at, new)).wrapping_sub(before);
            Arc::make_mut(&mut self.durable).write_within(at, new);
        }
        self.compact();
    }

    /// Drops the bytes of durable versions, once most versions are.
    fn compact(&mut self) {
        if self.pending.is_empty() {
            self.arena.clear();
            return;
        }
        let live: usize = self.pending.values().map(|versions| versions.len() * self.unit).sum();
        if self.arena.len() > 2 * live + 64 * PAGE {
            let old = std::mem::take(&mut self.arena);
            for version in self.pending.values_mut().flatten() {
                let data = self.arena.len();
                self.arena.extend_from_slice(&old[version.data..version.data + self.unit]);
                version.data = data;
            }
        }
    }

    fn sync(&mut self) {
        match self.flavour {
            Flavour::Lines => {
                let threads: Vec<_> = self.flushed.values_mut().map(std::mem::take).collect();
                threads.iter().for_each(|units| self.retire(units));
            }
            Flavour::Pages => {
                self.durable = self.visible.clone();
                self.durable_hash = self.visible_hash;
                self.pending.clear();
                self.arena.clear();
            }
        }
        self.synced_marks = self.marks;
    }
}
