//! The batch: the changes of one transaction, staged in DRAM until they are logged.
//!
//! ```text
//!   object: [ place on the media | length | copy of its bytes | which of its 64 lines changed ]
//! ```
//!
//! An object (a node, an inode record, a line of descriptors) is copied from the media when it is first accessed.
//! Reads through the batch then see the changes. Only changed lines are written to the record.

use pmem::{PageBuf, PageRef, Region};
use zerocopy::IntoBytes;

use crate::address_hash::AddressMap;
use crate::error::{Error, Place, Result};
use crate::layout::{RECORD_MAGIC, RecordHeader, entry_word};
use crate::units::LINE;

/// Up to this number of objects, a lookup scans the list; beyond it, an index is used.
const INDEX_ABOVE: usize = 16;

/// The staged objects, found by address.
#[derive(Default)]
pub(crate) struct Batch {
    objects: Vec<Staged>,
    /// The address of each object.
    places: Vec<u64>,
    /// Object by address, if there are more than [`INDEX_ABOVE`].
    index: AddressMap<u64, u32>,
    spare: Vec<Box<PageBuf>>,
}

/// The new bytes of one object.
pub(crate) struct Staged {
    at: u64,
    len: usize,
    dirty: u64,
    bytes: Box<PageBuf>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch of {} objects", self.objects.len())
    }
}

impl Staged {
    /// The new bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes.0[..self.len]
    }
    /// Whether any line was changed.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty != 0
    }
    /// A word-wise view of a staged page.
    pub(crate) fn view(&self) -> PageRef<'_> {
        self.bytes.view()
    }
    /// Writes bytes and marks their lines as changed.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.0[at..at + bytes.len()].copy_from_slice(bytes);
        self.mark(at, bytes.len());
    }
    /// The bytes for direct changes. The caller has to call [`Staged::mark`].
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.0[..self.len]
    }
    /// Marks the lines of a range as changed.
    pub(crate) fn mark(&mut self, at: usize, len: usize) {
        assert!(at + len <= self.len, "a change lies inside its object");
        if len == 0 {
            return;
        }
        let (first, last) = (at / 64, (at + len - 1) / 64);
        self.dirty |= (u64::MAX >> (63 - (last - first))) << first;
    }
}

impl Batch {
    /// Removes all objects. Buffers are kept for reuse.
    pub(crate) fn clear(&mut self) {
        self.places.clear();
        if !self.index.is_empty() {
            self.index.clear();
        }
        for object in self.objects.drain(..) {
            if self.spare.len() < 32 {
                self.spare.push(object.bytes);
            }
        }
    }

    /// Whether no line was changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.iter().all(|o| o.dirty == 0)
    }

    /// An upper bound for the length of the record so far, in bytes.
    pub(crate) fn record_bound(&self) -> u64 {
        let lines: u64 = self.objects.iter().map(|o| u64::from(o.dirty.count_ones()) * 72).sum();
        lines + 128
    }

    /// The object at `at`, if it is staged.
    pub(crate) fn get(&self, at: u64) -> Option<&Staged> {
        self.find(at).map(|i| &self.objects[i])
    }

    fn find(&self, at: u64) -> Option<usize> {
        if self.places.len() <= INDEX_ABOVE {
            return self.places.iter().position(|&place| place == at);
        }
        self.index.get(&at).map(|&i| i as usize)
    }

    fn push(&mut self, object: Staged) {
        self.places.push(object.at);
        self.objects.push(object);
        // The index is built when the number of objects first exceeds the limit.
        let new = if self.places.len() == INDEX_ABOVE + 1 { 0 } else { INDEX_ABOVE.max(self.places.len() - 1) };
        for i in new..self.places.len() {
            self.index.insert(self.places[i], i as u32);
        }
    }

    /// Undoes the last [`Batch::push`].
    fn pop(&mut self) {
        self.objects.pop();
        if let Some(place) = self.places.pop()
            && !self.index.is_empty()
        {
            self.index.remove(&place);
        }
    }

    /// The object of `len` bytes at `at`, copied from the media at the first access.
    pub(crate) fn stage(&mut self, region: &Region, at: u64, len: usize) -> Result<&mut Staged> {
        let (i, new) = self.slot(at, len)?;
        let object = &mut self.objects[i];
        if new && let Err(e) = region.read_meta(at, &mut object.bytes.0[..len]) {
            self.pop();
            return Err(e.into());
        }
        Ok(&mut self.objects[i])
    }

    /// The object at `at` as all zero bytes, whatever the media contain. Nothing is marked as changed.
    pub(crate) fn stage_blank(&mut self, at: u64, len: usize) -> Result<&mut Staged> {
        let (i, _) = self.slot(at, len)?;
        self.objects[i].bytes.0[..len].fill(0);
        Ok(&mut self.objects[i])
    }

    fn slot(&mut self, at: u64, len: usize) -> Result<(usize, bool)> {
        if let Some(i) = self.find(at) {
            let staged = self.objects[i].len;
            if staged != len {
                return Err(Error::corrupt(Place::PoolByte(at), "one place is used as two kinds of structure"));
            }
            return Ok((i, false));
        }
        let bytes = self.spare.pop().unwrap_or_else(|| Box::new(PageBuf::zeroed()));
        self.push(Staged { at, len, dirty: 0, bytes });
        Ok((self.objects.len() - 1, true))
    }

    /// The changed runs: `(first line of the pool, bytes)`.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.objects.iter().flat_map(|object| {
            let mut dirty = object.dirty;
            std::iter::from_fn(move || {
                if dirty == 0 {
                    return None;
                }
                let first = dirty.trailing_zeros();
                let lines = (dirty >> first).trailing_ones();
                dirty &= !((u64::MAX >> (64 - lines)) << first);
                let (from, to) = (first as usize * 64, (first + lines) as usize * 64);
                Some((object.at / LINE + u64::from(first), &object.bytes.0[from..to]))
            })
        })
    }

    /// Encodes the record of this batch, without sequence number and checksum, padded to whole lines.
    pub(super) fn encode(&self, record: &mut Vec<u8>) {
        record.clear();
        record.resize(RecordHeader::SIZE, 0);
        for (line, bytes) in self.runs() {
            record.extend_from_slice(&entry_word::pack(line, bytes.len() as u64 / 64).to_le_bytes());
            record.extend_from_slice(bytes);
        }
        record.resize(record.len().next_multiple_of(64), 0);
    }
}

/// Fills in the header of an encoded record.
pub(super) fn seal(record: &mut [u8], sequence: u64, flags: u32, salt: u64) {
    let mut header = RecordHeader { magic: RECORD_MAGIC, crc: 0, sequence, len: record.len() as u32, flags, salt };
    record[..RecordHeader::SIZE].copy_from_slice(header.as_bytes());
    header.crc = RecordHeader::sum(record);
    record[4..8].copy_from_slice(&header.crc.to_le_bytes());
}
