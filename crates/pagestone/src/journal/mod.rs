//! The journal: transactions that happen wholly or not at all, at one fence each.
//!
//! ```text
//!   Batch ---- log: one record, streamed, one fence ----> Logged ---- apply ----> in place
//!   (DRAM)          the commit point                      (must be used)          (cached stores)
//!
//!   lane 0  [record][record][record]..............    each thread prefers a lane of its own;
//!   lane 1  [record]..............................    a record never wraps
//!              checkpoint: flush what the records describe, fence, advance the mark, start over
//! ```
//!
//! * In-place stores follow the record's fence and are not flushed one by one: the lanes hold their
//!   lines until the next checkpoint, which flushes them all and then forgets the records. The
//!   lanes are short, so replay is, too.
//! * Sequence numbers are taken while every lock of the transaction is held, and the locks are kept
//!   until it is applied. So of two records that touch one place, the later one has the larger
//!   number, in whichever lanes they stand, and replay goes by number.
//! * A checkpoint covers all lanes at once: a lane must not forget a record while another lane keeps
//!   an older one for the same place.
//! * What a record may still overwrite at replay must not become anything else before the next
//!   checkpoint: the allocator keeps freed pages in quarantine until then.
//!
//! On media that are durable only at sync, a record counts after a power cut if it was synced
//! (`SyncMark`), or if all before it counts and it publishes no data. After a mere end of the
//! process, the page cache has kept everything and every record counts.

mod batch;
mod checkpoint;
mod replay;

pub(crate) use batch::{Batch, Staged};
pub(crate) use replay::{Replayed, replay};

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::Condvar;
use pmem::{Durability, Part, Region};

use crate::error::{Error, Result};
use crate::layout::{Geometry, RECORD_PUBLISHES, entry_word};
use crate::lock::{Mutex, MutexGuard, rank};

/// Longest record. Whoever builds a transaction keeps below it; a lane with less room than this
/// is checkpointed before the next one begins.
pub(crate) const MAX_RECORD: u64 = 128 << 10;

/// The lanes and what orders them.
#[derive(Debug)]
pub(crate) struct Journal {
    region: Region,
    geometry: Geometry,
    salt: u64,
    lanes: Vec<CachePadded<Mutex<rank::Lane, Lane>>>,
    /// Last sequence number given out.
    sequence: CachePadded<AtomicU64>,
    /// Marks on the media, and the right to write them.
    marks: Mutex<rank::Marks, Marks>,
    /// Which open of the pool for writing this is.
    session: u64,
    /// A publishing record was logged since the last sync.
    unsynced_data: AtomicBool,
    rounds: parking_lot::Mutex<Rounds>,
    round_ended: Condvar,
    latch: Mutex<rank::Leaf, Option<String>>,
    latched: AtomicBool,
}

/// One lane, held by one transaction at a time.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Which one.
    pub(crate) index: u32,
    /// Bytes of it in use.
    used: u64,
    /// The record being built, kept for its capacity.
    record: Vec<u8>,
    /// The changes being collected, kept for their buffers.
    pub(crate) batch: Batch,
}

impl Lane {
    fn new(index: u32) -> Lane {
        Lane { index, used: 0, record: Vec::new(), batch: Batch::default() }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    checkpoint_turn: u64,
    checkpoint: u64,
    sync_turn: u64,
    cache_id: [u8; 16],
    session: u64,
}

/// Group commit of syncs: a caller needs a round that starts after it came.
#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    finished: u64,
    running: bool,
}

/// A record that is in the journal; it has to be applied. If it is not (a panic in between), what is in place and in
/// DRAM stays behind the journal, and the pool takes no more changes: the next open replays the record.
#[must_use = "a logged record has to be applied"]
pub(crate) struct Logged<'a> {
    journal: &'a Journal,
    batch: &'a Batch,
    applied: bool,
}

thread_local! {
    static PREFERRED: Cell<usize> = const { Cell::new(usize::MAX) };
}
static NEXT_PREFERENCE: AtomicUsize = AtomicUsize::new(0);

impl Journal {
    /// The lanes of an open pool. `replayed` says where the last session ended.
    pub(crate) fn new(region: Region, geometry: Geometry, salt: u64, replayed: &Replayed) -> Journal {
        let lanes = (0..geometry.lanes)
            .map(|index| CachePadded::new(Mutex::numbered(index as usize, Lane::new(index))))
            .collect();
        let marks = Marks {
            checkpoint_turn: replayed.checkpoint_turn,
            checkpoint: replayed.last_sequence,
            sync_turn: replayed.sync_turn,
            cache_id: region.describe().cache_id,
            session: replayed.session,
        };
        Journal {
            region,
            geometry,
            salt,
            lanes,
            sequence: CachePadded::new(AtomicU64::new(replayed.last_sequence)),
            marks: Mutex::new(marks),
            session: replayed.session,
            unsynced_data: AtomicBool::new(false),
            rounds: parking_lot::Mutex::default(),
            round_ended: Condvar::new(),
            latch: Mutex::new(None),
            latched: AtomicBool::new(false),
        }
    }

    /// Opens of the pool for writing so far, this one included if it is one.
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Takes a lane with room for a record; `None` if a checkpoint has to come first.
    pub(crate) fn begin(&self) -> Result<Option<MutexGuard<'_, Lane>>> {
        self.check_latch()?;
        let preferred = PREFERRED.with(|p| {
            if p.get() == usize::MAX {
                p.set(NEXT_PREFERENCE.fetch_add(1, Ordering::Relaxed));
            }
            p.get() % self.lanes.len()
        });
        let count = self.lanes.len();
        let free = (0..count).find_map(|i| self.lanes[(preferred + i) % count].try_lock());
        let lane = free.unwrap_or_else(|| self.lanes[preferred].lock());
        Ok((self.geometry.lane_len() - lane.used >= MAX_RECORD).then_some(lane))
    }

    /// Writes the lane's batch as one record and fences. On return the transaction has happened
    /// (durable at once, or at the next sync: see [`Durability`]). Nothing is in place yet.
    pub(crate) fn log<'a>(&'a self, lane: &'a mut Lane, publishes: bool) -> Result<Logged<'a>> {
        let Lane { index, used, record, batch } = lane;
        batch.encode(record);
        let len = record.len() as u64;
        if len > MAX_RECORD || *used + len > self.geometry.lane_len() {
            return Err(Error::NotSupported("a change too large for one journal record"));
        }
        if publishes {
            self.unsynced_data.store(true, Ordering::SeqCst);
        }
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        batch::seal(record, sequence, if publishes { RECORD_PUBLISHES } else { 0 }, self.salt);
        let at = self.geometry.lane_at(*index) + *used;
        // From here on the record may be there or not: what follows it would stand on doubt.
        let mut logged = Logged { journal: self, batch, applied: false };
        if let Err(e) = self.region.persist(&[Part::Bytes { at, bytes: record }]) {
            let e = Error::from(e);
            self.set_latch(&e);
            logged.applied = true;
            return Err(e);
        }
        *used += len;
        Ok(logged)
    }

    /// The last sequence number given out.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Whether commits are durable only at [`Journal::sync`].
    pub(crate) fn at_sync(&self) -> bool {
        self.region.describe().durability == Durability::AtSync
    }

    /// Refuses further changes: the media has failed in the middle of one.
    pub(crate) fn set_latch(&self, error: &Error) {
        self.latch_for(error);
    }

    fn latch_for(&self, why: impl std::fmt::Display) {
        self.latch.lock().get_or_insert_with(|| why.to_string());
        self.latched.store(true, Ordering::SeqCst);
    }

    /// [`Error::Latched`] after [`Journal::set_latch`].
    pub(crate) fn check_latch(&self) -> Result<()> {
        if !self.latched.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::Latched(self.latch.lock().clone().unwrap_or_default()))
    }
}

impl Logged<'_> {
    /// Stores the record's lines in place. They need no flush: the record holds them until the
    /// next checkpoint.
    pub(crate) fn apply(mut self) {
        for (line, bytes) in self.batch.runs() {
            debug_assert!(bytes.len().is_multiple_of(64));
            if let Err(e) = self.journal.region.store(line * 64, bytes) {
                self.journal.set_latch(&e.into());
            }
        }
        self.applied = true;
    }
}

impl Drop for Logged<'_> {
    fn drop(&mut self) {
        if !self.applied {
            self.journal.latch_for("a change was interrupted between the journal and its place");
        }
    }
}

/// Takes a record's payload apart: `each(first pool byte, bytes)`. False if it is malformed.
fn for_each_run(payload: &[u8], each: &mut dyn FnMut(u64, &[u8])) -> bool {
    let mut rest = payload;
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        let (line, lines) = entry_word::unpack(u64::from_le_bytes(*word));
        if lines == 0 {
            return true; // padding
        }
        let Some((bytes, tail)) = tail.split_at_checked(lines as usize * 64) else { return false };
        each(line * 64, bytes);
        rest = tail;
    }
    true
}
