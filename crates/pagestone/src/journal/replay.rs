//! Replay at open: finds the records that count and applies them in the order of their numbers.
//!
//! ```text
//!   lane   [ok 7][ok 9][torn]....        ends at the first record that is not whole
//!   lane   [ok 8][old 3].........        or that an earlier checkpoint covers
//! ```
//!
//! A torn record ends its lane: nothing after it was acknowledged. If a whole, newer record follows it, the record
//! was not torn but damaged. That is an error and is not skipped.

use pmem::Region;
use zerocopy::FromBytes;

use super::checkpoint::{CHECKPOINT_SLOTS, SYNC_SLOTS};
use super::{MAX_RECORD, for_each_run};
use crate::error::{Error, Place, Result};
use crate::layout::{
    COUNTERS, CheckpointMark, Geometry, PoolState, RECORD_MAGIC, RECORD_PUBLISHES, REQUEST_PAGES, REQUESTS,
    ROOT_INODES, RecordHeader, SyncMark,
};
use crate::units::{LINE, PAGE_SIZE};

/// Limit on sequence numbers. No pool reaches it, and counting on from here cannot overflow.
const MAX_NUMBER: u64 = 1 << 62;

/// The state at the end of the last session.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// The last sequence number that is known to have been assigned.
    pub(crate) last_sequence: u64,
    /// The last sequence number that counts.
    pub(crate) applied: u64,
    pub(crate) checkpoint_turn: u64,
    pub(crate) sync_turn: u64,
    /// How often the pool was opened for writing, including this session.
    pub(crate) session: u64,
    /// The number of records applied.
    pub(crate) records: u64,
    /// The lines that were stored, `(pool byte, length)`: to be flushed before the session starts.
    pub(crate) runs: Vec<(u64, u64)>,
}

struct Found {
    sequence: u64,
    publishes: bool,
    bytes: Vec<u8>,
}

/// The criteria of a scan.
struct Mark {
    /// Records up to this number no longer count.
    after: u64,
    /// The salt of the pool.
    salt: u64,
    /// Records became durable in the order of their lane, so a gap is damage. False after a power cut on media
    /// durable at sync: there the kernel writes pages back in any order.
    strict: bool,
}

/// Applies every record that counts to the metadata view.
pub(crate) fn replay(region: &Region, geometry: &Geometry, salt: u64) -> Result<Replayed> {
    let (checkpoint, sync) = read_marks(region)?;
    // A cache without an identity (all zeros) counts as lost.
    let cache_id = region.describe().cache_id;
    let cache_survived = cache_id != [0; 16] && checkpoint.cache_id == cache_id;
    let prefix_only = checkpoint.at_sync != 0 && !cache_survived;
    let mark = Mark { after: checkpoint.sequence, salt, strict: !prefix_only };
    let mut found = Vec::new();
    // The largest number seen is never assigned again, even if its record does not count.
    let mut largest = 0;
    for lane in 0..geometry.lanes {
        largest = scan_lane(region, geometry, lane, &mark, &mut found)?.max(largest);
    }
    found.sort_by_key(|f| f.sequence);
    let mut out = Replayed {
        applied: checkpoint.sequence,
        checkpoint_turn: checkpoint.turn,
        sync_turn: sync.turn,
        session: checkpoint.session.saturating_add(1),
        ..Replayed::default()
    };
    let mut next = checkpoint.sequence.max(sync.sequence).saturating_add(1);
    for record in &found {
        // A number whose record is missing was never acknowledged; later ones may have been. Only if the page cache
        // was lost may a missing record have been a whole one.
        let synced = record.sequence <= sync.sequence;
        if prefix_only && !synced && (record.sequence != next || record.publishes) {
            break;
        }
        next = next.max(record.sequence.saturating_add(1));
        apply(region, geometry, record, &mut out)?;
    }
    out.last_sequence = out.applied.max(largest);
    Ok(out)
}

fn read_marks(region: &Region) -> Result<(CheckpointMark, SyncMark)> {
    let slot = |at: u64| -> Result<[u8; 64]> {
        let mut line = [0; 64];
        region.read_data(at, &mut line)?;
        Ok(line)
    };
    let mut checkpoints = [None; 2];
    let mut syncs = [None; 2];
    for i in 0..2 {
        checkpoints[i] = CheckpointMark::parse(slot(CHECKPOINT_SLOTS[i])?);
        syncs[i] = SyncMark::parse(slot(SYNC_SLOTS[i])?);
    }
    let checkpoint = checkpoints.into_iter().flatten().filter(|m| m.turn.max(m.sequence) < MAX_NUMBER);
    let checkpoint = checkpoint.max_by_key(|m| m.turn);
    let sync = syncs.into_iter().flatten().filter(|m| m.turn.max(m.sequence) < MAX_NUMBER).max_by_key(|m| m.turn);
    let missing = || Error::corrupt(Place::JournalHeader, "neither checkpoint mark is whole");
    Ok((checkpoint.ok_or_else(missing)?, sync.unwrap_or(SyncMark::new(0, 0))))
}

/// Collects a lane's records up to the first that is not whole. Returns the largest number found anywhere in the
/// lane.
fn scan_lane(region: &Region, geometry: &Geometry, lane: u32, mark: &Mark, found: &mut Vec<Found>) -> Result<u64> {
    let mut bytes = vec![0; geometry.lane_len() as usize];
    region.read_data(geometry.lane_at(lane), &mut bytes)?;
    let mut at = 0;
    let mut last = mark.after;
    while let Some((header, record)) = whole_record(&bytes[at..], mark.salt, last) {
        let publishes = header.flags & RECORD_PUBLISHES != 0;
        found.push(Found { sequence: header.sequence, publishes, bytes: record.to_vec() });
        last = header.sequence;
        at += record.len();
    }
    let mut behind = at + 64;
    while behind < bytes.len() {
        if let Some((header, _)) = whole_record(&bytes[behind..], mark.salt, last) {
            if mark.strict {
                let place = Place::JournalLane { lane, at: at as u64 };
                return Err(Error::corrupt(
                    place,
                    format!("a record is damaged; a newer whole one follows at {behind:#x}"),
                ));
            }
            last = header.sequence;
        }
        behind += 64;
    }
    Ok(last)
}

fn whole_record(bytes: &[u8], salt: u64, after: u64) -> Option<(RecordHeader, &[u8])> {
    let (header, _) = RecordHeader::read_from_prefix(bytes).ok()?;
    let len = header.len as usize;
    let numbered = header.sequence > after && header.sequence < MAX_NUMBER;
    let sane = header.magic == RECORD_MAGIC && header.salt == salt && numbered;
    if !sane || len < 64 || len as u64 > MAX_RECORD || !len.is_multiple_of(64) {
        return None;
    }
    let record = bytes.get(..len)?;
    (header.crc == RecordHeader::sum(record)).then_some((header, record))
}

fn apply(region: &Region, geometry: &Geometry, record: &Found, out: &mut Replayed) -> Result<()> {
    let mut result = Ok(());
    let whole = for_each_run(&record.bytes[RecordHeader::SIZE..], &mut |place, bytes| {
        if result.is_err() {
            return;
        }
        result = allowed(geometry, place, bytes.len() as u64).and_then(|()| Ok(region.store(place, bytes)?));
        out.runs.push((place, bytes.len() as u64));
    });
    result?;
    if !whole {
        return Err(Error::corrupt(Place::JournalRecord(record.sequence), "malformed payload"));
    }
    out.records += 1;
    out.applied = record.sequence;
    Ok(())
}

/// Checks that a record may change the place: counters, the root inode page, the size of the pool, the last
/// requests, and everything from the descriptors on.
fn allowed(geometry: &Geometry, place: u64, len: u64) -> Result<()> {
    let inside = |from: u64, to: u64| place >= from && place.checked_add(len).is_some_and(|end| end <= to);
    let fixed = inside(COUNTERS.byte(), COUNTERS.byte() + PAGE_SIZE)
        || inside(ROOT_INODES.byte(), ROOT_INODES.byte() + PAGE_SIZE)
        || inside(REQUESTS.byte(), REQUESTS.byte() + REQUEST_PAGES * PAGE_SIZE);
    let fixed = fixed || PoolState::PAGES.iter().any(|page| inside(page.byte(), page.byte() + LINE));
    // The records may change the size that the media must have, so the limit here is the end of the media.
    if fixed || inside(geometry.descriptors.byte(), u64::MAX) {
        return Ok(());
    }
    Err(Error::corrupt(Place::JournalRecordFor(place), "it would change what never changes"))
}
