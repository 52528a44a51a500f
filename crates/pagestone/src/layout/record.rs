//! The types of the journal: marks in the header page, counters, and records in the lanes.
//!
//! ```text
//!   record   0 magic   4 checksum   8 sequence   16 bytes in all   20 flags   24 pool salt   32 ...
//!   then, for each run of lines:  [ first line (48 bits) | lines (16 bits) ] [ 64 x lines bytes ]
//! ```
//!
//! A record is padded to whole lines. The checksum covers everything except itself. The salt is unique to the pool,
//! so a record of another pool, or a file that contains one, is never replayed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::crc32c;

/// "PREC".
pub(crate) const RECORD_MAGIC: u32 = 0x4345_5250;
/// Flag: the record makes pages reachable that were written beside the journal.
pub(crate) const RECORD_PUBLISHES: u32 = 1;

/// The header of a record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RecordHeader {
    pub(crate) magic: u32,
    pub(crate) crc: u32,
    pub(crate) sequence: u64,
    pub(crate) len: u32,
    pub(crate) flags: u32,
    pub(crate) salt: u64,
}

impl RecordHeader {
    /// Bytes on the media.
    pub(crate) const SIZE: usize = 32;

    /// The checksum of a whole record.
    pub(crate) fn sum(record: &[u8]) -> u32 {
        crc32c(&record[8..]) ^ RECORD_MAGIC
    }
}

/// The word before a run of lines.
pub(crate) mod entry_word {
    /// First line and count of lines as one word.
    pub(crate) const fn pack(line: u64, lines: u64) -> u64 {
        line << 16 | lines
    }
    /// `(first line, lines)`.
    pub(crate) const fn unpack(word: u64) -> (u64, u64) {
        (word >> 16, word & 0xFFFF)
    }
}

/// The checkpoint mark: which records need no replay, and the media of the last session. Two slots; the larger
/// `turn` counts.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct CheckpointMark {
    crc: u32,
    /// 1 if the session's media is durable only at sync.
    pub(crate) at_sync: u32,
    pub(crate) turn: u64,
    /// All records up to this sequence are in place and durable.
    pub(crate) sequence: u64,
    /// Identity of the volatile cache above the media in that session.
    pub(crate) cache_id: [u8; 16],
    /// How often the pool was opened for writing. Frames lent in an earlier session are free.
    pub(crate) session: u64,
    zero: [u64; 2],
}

/// The sync mark: the sequence up to which the data that records publish is durable. Two slots.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SyncMark {
    crc: u32,
    zero: u32,
    pub(crate) turn: u64,
    pub(crate) sequence: u64,
    zero2: [u64; 5],
}

/// Counts of a transaction, a lane or the pool: allocated minus freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Counts {
    /// Pages allocated.
    pub(crate) pages: i64,
    /// Inodes, including bases.
    pub(crate) inodes: i64,
    /// How many of these are bases.
    pub(crate) bases: i64,
    /// Data pages that bases own.
    pub(crate) shared: i64,
}

impl Counts {
    /// The sum of both, saturating.
    pub(crate) fn plus(self, other: Counts) -> Counts {
        Counts {
            pages: self.pages.saturating_add(other.pages),
            inodes: self.inodes.saturating_add(other.inodes),
            bases: self.bases.saturating_add(other.bases),
            shared: self.shared.saturating_add(other.shared),
        }
    }
    /// Whether all counts are zero.
    pub(crate) fn is_zero(&self) -> bool {
        *self == Counts::default()
    }
    /// The largest absolute value.
    pub(crate) fn largest(&self) -> u64 {
        [self.pages, self.inodes, self.bases, self.shared].map(i64::unsigned_abs).into_iter().max().unwrap_or(0)
    }
}

/// The sums over one lane's transactions. The pool's totals are the sums over all lanes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct LaneCounters {
    crc: u32,
    lane: u32,
    pub(crate) counts: Counts,
    /// The inode page that the lane was filling; 0: none. A hint: the page's descriptor decides.
    pub(crate) slots: u64,
    /// Frames lent as memory in the session `lent_in`; 0 in any other session.
    lent: i64,
    lent_in: u64,
}

/// The last request that a server thread has done. It is in the record of the change.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct LastRequest {
    crc: u32,
    zero: u32,
    /// Whose request it was; 0: nobody's.
    pub(crate) client: u64,
    pub(crate) number: u64,
    /// The inode that it made; 0: none.
    pub(crate) made: u64,
    zero2: [u64; 4],
}

macro_rules! one_line {
    ($name:ident) => {
        const _: () = assert!(size_of::<$name>() == 64);
        impl $name {
            /// The structure with its checksum, ready for the media.
            pub(crate) fn sealed(mut self) -> [u8; 64] {
                self.crc = crc32c(&self.as_bytes()[4..]);
                zerocopy::transmute!(self)
            }
            /// Reads a line; `None` if the checksum does not match.
            pub(crate) fn parse(line: [u8; 64]) -> Option<$name> {
                let value: $name = zerocopy::transmute!(line);
                (value.crc == crc32c(&line[4..])).then_some(value)
            }
        }
    };
}
pub(super) use one_line;
one_line!(CheckpointMark);
one_line!(SyncMark);
one_line!(LaneCounters);
one_line!(LastRequest);

impl CheckpointMark {
    /// A mark without its checksum.
    pub(crate) fn new(turn: u64, sequence: u64, at_sync: bool, cache_id: [u8; 16], session: u64) -> CheckpointMark {
        CheckpointMark { crc: 0, at_sync: u32::from(at_sync), turn, sequence, cache_id, session, zero: [0; 2] }
    }
}

impl SyncMark {
    /// A mark without its checksum.
    pub(crate) fn new(turn: u64, sequence: u64) -> SyncMark {
        SyncMark { crc: 0, zero: 0, turn, sequence, zero2: [0; 5] }
    }
}

impl LastRequest {
    /// A line without its checksum.
    pub(crate) fn new(client: u64, number: u64, made: u64) -> LastRequest {
        LastRequest { crc: 0, zero: 0, client, number, made, zero2: [0; 4] }
    }
}

impl LaneCounters {
    /// Counters without their checksum.
    pub(crate) fn new(lane: u32, counts: Counts) -> LaneCounters {
        LaneCounters { crc: 0, lane, counts, slots: 0, lent: 0, lent_in: 0 }
    }
}
