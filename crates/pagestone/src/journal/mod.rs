//! The journal: atomic transactions at the cost of one fence each.
//!
//! ```text
//!   Batch ---- log: one record, streamed, one fence ----> Logged ---- apply ----> in place
//!   (DRAM)          the commit point                      (must be used)          (cached stores)
//!
//!   lane 0  [record][record][record]..............    each thread prefers one lane;
//!   lane 1  [record]..............................    a record never wraps
//!              checkpoint: flush what the records describe, fence, advance the mark, start over
//! ```
//!
//! * In-place stores follow the record's fence and are not flushed one by one. The lanes hold their lines until the
//!   next checkpoint, which flushes all of them and then removes the records. The lanes are short, so replay is
//!   short too.
//! * A sequence number is assigned while every lock of the transaction is held, and the locks are held until the
//!   record is applied. So of two records for the same place, the later one has the larger number, whatever their
//!   lanes. Replay is in the order of the numbers.
//! * A checkpoint covers all lanes at once: a lane must not drop a record while another lane has an older one for
//!   the same place.
//! * What replay of a record may overwrite must not be reused before the next checkpoint: the allocator keeps freed
//!   pages in quarantine until then.
//!
//! On media that are durable only at sync, a record counts after a power cut if it was synced (`SyncMark`), or if
//! all records before it count and it publishes no data. After a crash of the process alone, the page cache is
//! intact and every record counts.

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

/// Longest record. A transaction must not exceed it. A lane with less room than this needs a checkpoint before the
/// next transaction begins.
pub(crate) const MAX_RECORD: u64 = 128 << 10;

/// The lanes and their order.
#[derive(Debug)]
pub(crate) struct Journal {
    region: Region,
    geometry: Geometry,
    salt: u64,
    lanes: Vec<CachePadded<Mutex<rank::Lane, Lane>>>,
    /// The last sequence number assigned.
    sequence: CachePadded<AtomicU64>,
    /// The marks on the media. Its holder may write them.
    marks: Mutex<rank::Marks, Marks>,
    /// Number of this session: how often the pool was opened for writing.
    session: u64,
    /// Whether a publishing record was logged since the last sync.
    unsynced_data: AtomicBool,
    rounds: parking_lot::Mutex<Rounds>,
    round_ended: Condvar,
    latch: Mutex<rank::Leaf, Option<String>>,
    latched: AtomicBool,
}

/// One lane, held by one transaction at a time.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Number of the lane.
    pub(crate) index: u32,
    /// Bytes in use.
    used: u64,
    /// The record that is being built; reused for its capacity.
    record: Vec<u8>,
    /// The changes that are being collected; reused for its buffers.
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

/// Group commit of syncs: a caller needs a round that starts after its call.
#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    finished: u64,
    running: bool,
}

/// A record in the journal that must be applied. If it is not (because of a panic), the places and the DRAM state
/// are older than the journal, and the pool takes no more changes; the next open replays the record.
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
    /// The lanes of an open pool. `replayed` describes the end of the last session.
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

    /// How often the pool was opened for writing, including this time if it is open for writing.
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Takes a lane with room for a record. `None` if a checkpoint is needed first.
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

    /// Writes the lane's batch as one record and fences. On return the transaction has happened (durable at once,
    /// or at the next sync: see [`Durability`]). Nothing is stored in place yet.
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
        // From here on it is unknown whether the media have the record, so no other record may follow it after a
        // failure.
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

    /// The last sequence number assigned.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Whether commits are durable only at [`Journal::sync`].
    pub(crate) fn at_sync(&self) -> bool {
        self.region.describe().durability == Durability::AtSync
    }

    /// Rejects all further changes, after the media have failed during one.
    pub(crate) fn set_latch(&self, error: &Error) {
        self.latch_for(error);
    }

    fn latch_for(&self, why: impl std::fmt::Display) {
        self.latch.lock().get_or_insert_with(|| why.to_string());
        self.latched.store(true, Ordering::SeqCst);
    }

    /// Returns [`Error::Latched`] after [`Journal::set_latch`].
    pub(crate) fn check_latch(&self) -> Result<()> {
        if !self.latched.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::Latched(self.latch.lock().clone().unwrap_or_default()))
    }
}

impl Logged<'_> {
    /// Stores the record's lines in place. They need no flush: the record has them until the next checkpoint.
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

/// Decodes a record's payload: `each(first pool byte, bytes)`. Returns false if it is malformed.
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
