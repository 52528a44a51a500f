//! Checkpoints and syncs: making records durable in place, and removing them from the lanes.
//!
//! ```text
//!   checkpoint   all lanes held
//!     1  records and data durable, and recorded in the sync mark   (media durable at sync only)
//!     2  every line that the records describe: flush; fence or sync
//!     3  mark = last sequence: persist; sync      <- from here on the records no longer count
//!     4  lanes start over; freed pages become free
//!
//!   sync         (media durable at sync only)
//!     1  records and data durable
//!     2  if records published data: sync mark = last sequence before step 1; durable
//! ```
//!
//! Step 1 comes first because what step 2 flushes may reach the media at once. After a power cut during step 2, all
//! the records must be present and count, so that replay overwrites it.
//!
//! After a crash before step 3 is durable, all records count. Replaying them over places that were flushed already
//! is harmless, because replay ends with the newest bytes of each place.

use std::sync::atomic::Ordering;

use pmem::Part;
use zerocopy::{FromZeros, IntoBytes};

use super::{Journal, Lane, Marks, Replayed};
use crate::error::{Error, Place, Result};
use crate::layout::{CheckpointMark, JOURNAL_HEADER, RecordHeader, SyncMark, entry_word};
use crate::lock::{MutexGuard, rank};
use crate::units::LINE;

/// The slots of the marks are in different sectors.
pub(super) const CHECKPOINT_SLOTS: [u64; 2] = [JOURNAL_HEADER.byte(), JOURNAL_HEADER.byte() + 512];
pub(super) const SYNC_SLOTS: [u64; 2] = [JOURNAL_HEADER.byte() + 1024, JOURNAL_HEADER.byte() + 1536];

impl Journal {
    /// Makes everything that was committed durable in place and empties the lanes. `released` is called at the end,
    /// while no transaction can run.
    pub(crate) fn checkpoint(&self, released: impl FnOnce()) -> Result<()> {
        self.check_latch()?;
        let mut marks = self.marks.lock();
        let mut lanes: Vec<_> = self.lanes.iter().map(|l| l.lock()).collect();
        let result = self.checkpoint_held(&mut marks, &mut lanes);
        match &result {
            Ok(()) => released(),
            Err(e) => self.set_latch(e),
        }
        result
    }

    fn checkpoint_held(&self, marks: &mut Marks, lanes: &mut [MutexGuard<'_, Lane>]) -> Result<()> {
        if lanes.iter().all(|l| l.used == 0) {
            return Ok(());
        }
        let sequence = self.sequence.load(Ordering::SeqCst);
        if self.at_sync() {
            let published = self.unsynced_data.swap(false, Ordering::SeqCst);
            self.sync_records(marks, sequence, published)?;
        }
        for lane in lanes.iter() {
            self.flush_lane(lane)?;
        }
        self.region.fence();
        if self.at_sync() {
            self.region.sync()?;
        }
        self.write_checkpoint_mark(marks, sequence)?;
        for lane in lanes {
            lane.used = 0;
        }
        Ok(())
    }

    /// Flushes every line that the lane's records describe.
    fn flush_lane(&self, lane: &Lane) -> Result<()> {
        let mut at = self.geometry.lane_at(lane.index);
        let end = at + lane.used;
        while at < end {
            let mut header = RecordHeader::new_zeroed();
            self.region.read_data(at, header.as_mut_bytes())?;
            let len = u64::from(header.len);
            let whole = len >= 64 && at + len <= end;
            if !whole || !self.flush_record(at + RecordHeader::SIZE as u64, at + len)? {
                return Err(Error::corrupt(
                    Place::JournalLane { lane: lane.index, at: at - self.geometry.lane_at(lane.index) },
                    "a record was overwritten",
                ));
            }
            at += len;
        }
        Ok(())
    }

    /// Flushes every line that a record's payload in `[at, end)` describes. Returns false if the payload is
    /// malformed. Reads only the words before the runs.
    fn flush_record(&self, mut at: u64, end: u64) -> Result<bool> {
        while at + 8 <= end {
            let mut word = [0; 8];
            self.region.read_data(at, &mut word)?;
            let (line, lines) = entry_word::unpack(u64::from_le_bytes(word));
            if lines == 0 {
                break; // padding
            }
            at += 8 + lines * LINE;
            if at > end {
                return Ok(false);
            }
            self.region.flush(line * LINE, lines * LINE)?;
        }
        Ok(true)
    }

    fn write_checkpoint_mark(&self, marks: &mut Marks, sequence: u64) -> Result<()> {
        marks.checkpoint_turn += 1;
        marks.checkpoint = sequence;
        let mark = CheckpointMark::new(marks.checkpoint_turn, sequence, self.at_sync(), marks.cache_id, marks.session);
        let at = CHECKPOINT_SLOTS[(marks.checkpoint_turn % 2) as usize];
        self.region.persist(&[Part::Bytes { at, bytes: &mark.sealed() }])?;
        if self.at_sync() {
            self.region.sync()?;
        }
        Ok(())
    }

    /// Starts a session after recovery. What replay stored in place becomes durable, and the mark identifies the
    /// media of this session.
    pub(crate) fn start_session(&self, replayed: &Replayed) -> Result<()> {
        let mut marks = self.marks.lock();
        let sequence = marks.checkpoint;
        if self.at_sync() && replayed.records > 0 {
            // Only up to the last record that counted: later records published data that does not exist, and must
            // not count.
            self.sync_records(&mut marks, replayed.applied, true)?;
        }
        for &(place, len) in &replayed.runs {
            self.region.flush(place, len)?;
        }
        self.region.fence();
        if self.at_sync() {
            self.region.sync()?;
        }
        self.write_checkpoint_mark(&mut marks, sequence)
    }

    /// Everything committed and all data written before this call is durable on return. Concurrent callers share
    /// the media's work.
    pub(crate) fn sync(&self) -> Result<()> {
        self.check_latch()?;
        if !self.at_sync() {
            return Ok(());
        }
        rank::check_wait::<rank::Marks>();
        let mut rounds = self.rounds.lock();
        let mine = rounds.started + 1;
        while rounds.finished < mine {
            self.check_latch()?;
            if rounds.running {
                self.round_ended.wait(&mut rounds);
                continue;
            }
            rounds.running = true;
            rounds.started += 1;
            let round = rounds.started;
            drop(rounds);
            let result = self.sync_round();
            rounds = self.rounds.lock();
            rounds.running = false;
            if result.is_ok() {
                rounds.finished = round;
            }
            self.round_ended.notify_all();
            result?;
        }
        Ok(())
    }

    fn sync_round(&self) -> Result<()> {
        let mut marks = self.marks.lock();
        // Taking all lanes, even briefly, ensures that the record of every sequence number assigned so far is
        // written.
        let (sequence, published) = {
            let _lanes: Vec<_> = self.lanes.iter().map(|l| l.lock()).collect();
            (self.sequence.load(Ordering::SeqCst), self.unsynced_data.swap(false, Ordering::SeqCst))
        };
        let result = self.sync_records(&mut marks, sequence, published);
        if let Err(e) = &result {
            self.set_latch(e);
        }
        result
    }

    /// Makes all records up to `sequence` durable, with the data that they publish. If there is such data, also
    /// updates the sync mark.
    fn sync_records(&self, marks: &mut Marks, sequence: u64, published: bool) -> Result<()> {
        self.region.sync()?;
        if !published {
            return Ok(());
        }
        marks.sync_turn += 1;
        let mark = SyncMark::new(marks.sync_turn, sequence).sealed();
        let at = SYNC_SLOTS[(marks.sync_turn % 2) as usize];
        self.region.persist(&[Part::Bytes { at, bytes: &mark }])?;
        Ok(self.region.sync()?)
    }
}
