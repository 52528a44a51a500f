//! The changes of one transaction, staged in DRAM until they are logged.
//!
//! ```text
//!   object: [ place on the media | length | copy of its bytes | which of its 64 lines changed ]
//! ```
//!
//! An object (a node, an inode record, a line of descriptors) is copied from the media when it is
//! first touched; what is read through the batch afterwards sees the change. Only changed lines go
//! into the record.

use pmem::{PageBuf, PageRef, Region};
use zerocopy::IntoBytes;

use crate::address_hash::AddressMap;
use crate::error::{Error, Result};
use crate::layout::{RECORD_MAGIC, RecordHeader, entry_word};
use crate::units::LINE;

/// So many objects are looked through; more get an index.
const FEW: usize = 16;

/// Staged objects, found by place.
#[derive(Default)]
pub(crate) struct Batch {
    objects: Vec<Staged>,
    /// Where each object lies.
    places: Vec<u64>,
    /// Object by place, once they are more than a few.
    index: AddressMap<u64, u32>,
    spare: Vec<Box<PageBuf>>,
}

/// One object's new bytes.
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
    /// The bytes as they will be.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes.0[..self.len]
    }
    /// Whether anything was changed.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty != 0
    }
    /// Word-wise view of a staged page.
    pub(crate) fn view(&self) -> PageRef<'_> {
        self.bytes.view()
    }
    /// Changes bytes and marks their lines.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.0[at..at + bytes.len()].copy_from_slice(bytes);
        self.mark(at, bytes.len());
    }
    /// The bytes, for changes that the caller marks with [`Staged::mark`].
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
    /// Forgets everything; buffers are kept.
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

    /// Whether nothing was changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.iter().all(|o| o.dirty == 0)
    }

    /// A bound on the length of the record so far, in bytes.
    pub(crate) fn record_bound(&self) -> u64 {
        let lines: u64 = self.objects.iter().map(|o| u64::from(o.dirty.count_ones()) * 72).sum();
        lines + 128
    }

    /// The object at `at`, if it is staged.
    pub(crate) fn get(&self, at: u64) -> Option<&Staged> {
        self.find(at).map(|i| &self.objects[i])
    }

    fn find(&self, at: u64) -> Option<usize> {
        if self.places.len() <= FEW {
            return self.places.iter().position(|&place| place == at);
        }
        self.index.get(&at).map(|&i| i as usize)
    }

    fn push(&mut self, object: Staged) {
        self.places.push(object.at);
        self.objects.push(object);
        // The index begins when the objects have just become too many.
        let new = if self.places.len() == FEW + 1 { 0 } else { FEW.max(self.places.len() - 1) };
        for i in new..self.places.len() {
            self.index.insert(self.places[i], i as u32);
        }
    }

    /// Takes back the last [`Batch::push`].
    fn pop(&mut self) {
        self.objects.pop();
        if let Some(place) = self.places.pop()
            && !self.index.is_empty()
        {
            self.index.remove(&place);
        }
    }

    /// The object of `len` bytes at `at`, copied from the media when first touched.
    pub(crate) fn stage(&mut self, region: &Region, at: u64, len: usize) -> Result<&mut Staged> {
        let (i, new) = self.slot(at, len)?;
        let object = &mut self.objects[i];
        if new && let Err(e) = region.read_meta(at, &mut object.bytes.0[..len]) {
            self.pop();
            return Err(e.into());
        }
        Ok(&mut self.objects[i])
    }

    /// The object at `at` with all zero bytes, whatever the media holds; nothing is marked.
    pub(crate) fn stage_blank(&mut self, at: u64, len: usize) -> Result<&mut Staged> {
        let (i, _) = self.slot(at, len)?;
        self.objects[i].bytes.0[..len].fill(0);
        Ok(&mut self.objects[i])
    }

    fn slot(&mut self, at: u64, len: usize) -> Result<(usize, bool)> {
        if let Some(i) = self.find(at) {
            let staged = self.objects[i].len;
            if staged != len {
                return Err(Error::corrupt(
                    format!("pool byte {at:#x}"),
                    "one place is used as two kinds of structure",
                ));
            }
            return Ok((i, false));
        }
        let bytes = self.spare.pop().unwrap_or_else(|| Box::new(PageBuf::zeroed()));
        self.push(Staged { at, len, dirty: 0, bytes });
        Ok((self.objects.len() - 1, true))
    }

    /// Changed runs: `(first line of the pool, bytes)`.
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

    /// The record of this batch, without sequence and checksum, padded to whole lines.
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

/// Fills in the head of an encoded record.
pub(super) fn seal(record: &mut [u8], sequence: u64, flags: u32, salt: u64) {
    let mut header = RecordHeader { magic: RECORD_MAGIC, crc: 0, sequence, len: record.len() as u32, flags, salt };
    record[..RecordHeader::SIZE].copy_from_slice(header.as_bytes());
    header.crc = RecordHeader::sum(record);
    record[4..8].copy_from_slice(&header.crc.to_le_bytes());
}
