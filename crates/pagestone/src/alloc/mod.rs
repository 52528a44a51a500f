//! The owners of frames and pages: reserved in DRAM, published by a transaction.
//!
//! ```text
//!                 reserve (DRAM only)             publish (one record)
//!   free frame  ----------------------> reserved -------------------> whole, owned by a file
//!       |                                                                  | part of it freed
//!       v allocated to a lane's cursor                                     v
//!   [T.............]  --- pages allocated one run at a time ------->  split: table T inside
//!       ^                                                                  |
//!       +------------- only the table left: coalesced ---------------------+
//!
//!   reservation.rs  what one transaction allocates, frees and reowns     search.rs      finds frames
//!   publish.rs      stages descriptors and tables for the record         page_cursor.rs a lane's frame
//!   inode_slots.rs  free inode slots        forwarding.rs  moved inode pages       pins.rs  pinned pages
//!   resize.rs       grow and shrink         recount.rs     repair of counts        stop.rs  why a transaction stops
//!   verified.rs     what was verified already          changed_inodes.rs  what changes while a tree is copied
//! ```
//!
//! * A crash between reserve and publish leaks nothing: the media have no trace of the reservation.
//! * A freed page stays in quarantine until the next checkpoint. A record that is still in the journal may describe
//!   it (it may have been a tree node). On media durable at sync, its old owner may also return after a power cut.
//! * DRAM: one cursor per lane, 4,096 search hints, a cache of verified nodes, and the quarantine (bounded by the
//!   size of the journal). Nothing grows with the pool.

mod changed_inodes;
mod forwarding;
mod inode_slots;
mod page_cursor;
mod pins;
mod publish;
mod recount;
mod reservation;
mod resize;
mod search;
mod stop;
mod verified;

pub(crate) use changed_inodes::{ChangedInodes, Recording};
pub(crate) use forwarding::LayoutChange;
pub(crate) use inode_slots::SlotReservation;
pub(crate) use reservation::Reservation;
pub(crate) use resize::{Limit, zero_segments};
pub(crate) use stop::{Stop, TxResult};

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use zerocopy::IntoBytes;

use crate::error::{Error, Place, Result};
use crate::journal::Journal;
use crate::layout::{
    COUNTERS, Counts, FrameDesc, Geometry, InodeRec, LaneCounters, ORPHANS, PoolState, ROOT, ROOT_INODES,
};
use crate::lock::{Mutex, rank};
use crate::units::{FRAME_SIZE, FrameNo, Ino, PAGE_SIZE, PAGES_PER_FRAME, PageNo};
use inode_slots::Slots;
use page_cursor::Cursor;
use pins::Pins;
use pmem::{OwnerProcess, PageRef, Region};
use search::Search;
use verified::{Item, Verified};

/// One bit for each page of a frame.
pub(crate) type FrameBits = [u64; 8];

/// A run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) page: PageNo,
    pub(crate) pages: u64,
}

impl Run {
    /// The first pages of the run, at most `most`.
    pub(crate) fn first(self, most: u64) -> Run {
        Run { pages: self.pages.min(most), ..self }
    }
}

const STRIPES: usize = 256;

/// The allocator and the journal beneath it. The layers above read all metadata through it.
#[derive(Debug)]
pub(crate) struct Allocator {
    pub(crate) region: Region,
    pub(crate) geometry: Geometry,
    /// The layout's variable fields, as on the media.
    state: Mutex<rank::Leaf, PoolState>,
    /// Held while a transaction changes `state` or the forwarding table.
    layout: Mutex<rank::Layout, ()>,
    /// Number of frames in the pool; a copy of the field in `state`.
    frames: AtomicU64,
    /// Root of the forwarding table, or 0 while no page is forwarded. It follows from `state`.
    forward_root: AtomicU64,
    /// Number of this session: how often the pool was opened for writing.
    session: u64,
    pub(crate) journal: Journal,
    process: OwnerProcess,
    cursors: Vec<CachePadded<Mutex<rank::Cursor, Cursor>>>,
    /// The sums over each lane's transactions, as on the media. Changed by the holder of the lane.
    counters: Vec<CachePadded<Mutex<rank::Leaf, LaneCounters>>>,
    /// The frame of each lane's cursor, or `u64::MAX`. Changed under the frame's stripe.
    active: Vec<AtomicU64>,
    /// The inode page that each lane filled last, or 0.
    slot_pages: Vec<AtomicU64>,
    stripes: Vec<CachePadded<Mutex<rank::Frame, ()>>>,
    search: Mutex<rank::Search, Search>,
    quarantine: Mutex<rank::Quarantine, HashMap<FrameNo, FrameBits>>,
    /// Pages allocated to a running transaction in frames that its cursor has left.
    reserved_pages: Mutex<rank::Leaf, HashMap<FrameNo, FrameBits>>,
    /// Pages that are in use outside the engine, freed or not.
    pins: Pins,
    slots: Slots,
    /// Free pages, without those reserved.
    free: CachePadded<AtomicI64>,
    /// Pages reserved for operations that free others.
    kept: AtomicI64,
    verified: Verified,
    pub(crate) changed: ChangedInodes,
}

impl Allocator {
    /// Everything is verified again when it is read next: it may have been damaged since it was.
    pub(crate) fn verify_again(&self) {
        self.verified.clear();
    }

    /// The allocator of an open pool, after replay. Reads the lane counters and, for each
    /// lane, the descriptor, split table and inodes of the page of inodes that it was filling.
    pub(crate) fn new(region: Region, geometry: Geometry, state: PoolState, journal: Journal) -> Result<Allocator> {
        let frames = state.frames;
        let (mut cursors, mut all_counters) = (Vec::new(), Vec::new());
        let mut pages = 0i64;
        for lane in 0..geometry.lanes {
            let counters = read_counters(&region, lane)?;
            pages = pages.saturating_add(counters.counts.pages);
            cursors.push(CachePadded::new(Mutex::numbered(lane as usize, Cursor::default())));
            all_counters.push(CachePadded::new(Mutex::new(counters)));
        }
        let usable = geometry.usable_pages(frames) as i64;
        let alloc = Allocator {
            active: cursors.iter().map(|_| AtomicU64::new(u64::MAX)).collect(),
            slot_pages: cursors.iter().map(|_| AtomicU64::new(0)).collect(),
            stripes: (0..STRIPES).map(|i| CachePadded::new(Mutex::numbered(i, ()))).collect(),
            search: Mutex::new(Search::new(&geometry, frames)),
            quarantine: Mutex::default(),
            reserved_pages: Mutex::default(),
            pins: Pins::default(),
            slots: Slots::default(),
            free: CachePadded::new(AtomicI64::new(usable - pages)),
            kept: AtomicI64::new(kept_of(usable)),
            verified: Verified::new(),
            changed: ChangedInodes::default(),
            process: OwnerProcess::current(),
            cursors,
            counters: all_counters,
            frames: AtomicU64::new(frames),
            forward_root: AtomicU64::new(state.active_root().unwrap_or_default().0),
            state: Mutex::new(state),
            layout: Mutex::default(),
            session: journal.session(),
            region,
            geometry,
            journal,
        };
        alloc.resume_inode_pages();
        Ok(alloc)
    }

    /// Returns an error in a child of the process that opened the pool.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.process.is_current() { Ok(()) } else { Err(Error::Forked) }
    }

    /// See [`Journal::checkpoint`]. Pages freed before become available.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        self.checkpoint_then(|| {})
    }

    /// As [`Allocator::checkpoint`]; `then` runs at the end, while no transaction runs.
    pub(super) fn checkpoint_then(&self, then: impl FnOnce()) -> Result<()> {
        self.check_process()?;
        self.journal.checkpoint(|| {
            let freed = {
                let mut quarantine = self.quarantine.lock();
                let mut freed = std::mem::take(&mut *quarantine);
                *quarantine = self.pins.keep(&mut freed);
                freed
            };
            self.refill_cursors(|frame| freed.contains_key(&frame));
            let mut search = self.search.lock();
            for frame in freed.into_keys() {
                search.note_freed(frame);
            }
            drop(search);
            then();
        })
    }

    /// The number of frames in the pool, including those that cannot be owned.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Acquire)
    }

    /// The frames from `first` on, in order, that can be owned and whose descriptors may have been used. All other
    /// frames are free. Takes no time in proportion to storage that was never used.
    pub(crate) fn used_frames_from(&self, first: FrameNo) -> impl Iterator<Item = FrameNo> + '_ {
        let frames = self.frames();
        let mut frame = first.max(self.geometry.first_frame).0;
        // Descriptors are skipped by whole pages: all frames up to `known_to` are returned.
        let mut known_to = 0;
        std::iter::from_fn(move || {
            while frame < frames {
                if frame >= known_to {
                    (frame, known_to) = self.next_used(frame, frames)?;
                    continue;
                }
                frame += 1;
                if self.geometry.owns(FrameNo(frame - 1), frames) {
                    return Some(FrameNo(frame - 1));
                }
            }
            None
        })
    }

    /// The first frame from `frame` on whose descriptor's page may have been used, and the first frame after that
    /// page.
    fn next_used(&self, mut frame: u64, frames: u64) -> Option<(u64, u64)> {
        while frame < frames {
            let behind = match self.geometry.next_descriptors(FrameNo(frame)).0 {
                head if head > frame => head.min(frames),
                _ => self.geometry.next_descriptors(FrameNo(frame + 1)).0.min(frames),
            };
            let at = self.geometry.descriptor_at(FrameNo(frame));
            let len = (behind - frame) * FrameDesc::SIZE;
            // If the media cannot report it, the descriptors count as used.
            match self.region.next_data(at, len).unwrap_or(Some(at)) {
                Some(data) => {
                    let found = frame + (data - at) / FrameDesc::SIZE;
                    let page_end = (data / PAGE_SIZE + 1) * PAGE_SIZE;
                    return Some((found, (frame + (page_end - at).div_ceil(FrameDesc::SIZE)).min(behind)));
                }
                None => frame = behind,
            }
        }
        None
    }

    /// Size of the pool in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.frames() * FRAME_SIZE
    }

    /// The number of pages that can be owned.
    pub(crate) fn usable_pages(&self) -> u64 {
        self.geometry.usable_pages(self.frames())
    }

    /// Whether the frame can be owned.
    pub(crate) fn owns(&self, frame: FrameNo) -> bool {
        self.geometry.owns(frame, self.frames())
    }

    /// Whether all pages of a run can be owned.
    pub(crate) fn owns_run(&self, page: PageNo, pages: u64) -> bool {
        self.geometry.owns_run(page, pages, self.frames())
    }

    /// Pages that only operations which free others may use.
    pub(crate) fn kept(&self) -> i64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// `(free pages, pages reserved for deleting)`.
    pub(crate) fn space(&self) -> (u64, u64) {
        (self.free.load(Ordering::Relaxed).max(0) as u64, self.kept() as u64)
    }

    /// The sum of all lanes' counts. Each lane has its own counter: a shared total would be one cache line that all
    /// threads write.
    pub(crate) fn counts(&self) -> Counts {
        self.counters.iter().fold(Counts::default(), |sum, counters| sum.plus(counters.lock().counts))
    }

    /// A frame's descriptor.
    pub(crate) fn descriptor(&self, frame: FrameNo) -> Result<FrameDesc> {
        if !self.owns(frame) {
            return Err(Error::corrupt(Place::Frame(frame), "outside the pool's frames"));
        }
        let mut bytes = [0; 64];
        self.region.read_meta(self.geometry.descriptor_at(frame), &mut bytes)?;
        self.parse_descriptor(&bytes, frame)
    }

    fn parse_descriptor(&self, bytes: &[u8; 64], frame: FrameNo) -> Result<FrameDesc> {
        Ok(FrameDesc::parse(bytes, frame)?.in_session(self.session))
    }

    /// The inode record at the address of `ino`, whatever its generation.
    pub(crate) fn inode_at_place(&self, ino: Ino) -> Result<InodeRec> {
        let mut rec = InodeRec::free(Ino(0));
        self.read_inode(ino, &mut rec)?;
        rec.check(ino.place(), false)?;
        Ok(rec)
    }

    /// As [`Allocator::inode_at_place`], if the page is known to hold inodes. A checksum that was verified since
    /// the pool was opened is not verified again.
    fn slot_record(&self, ino: Ino) -> Result<InodeRec> {
        let mut rec = InodeRec::free(Ino(0));
        self.read_inode(ino, &mut rec)?;
        let place = ino.place();
        rec.check(place, self.verified.contains(Item::Inode(place)))?;
        Ok(rec)
    }

    /// The live inode with this number; [`Error::Stale`] if it no longer exists. Verifies its checksum the first
    /// time, as for a node.
    ///
    /// A number can outlive the page of its record. That page may belong to a file now, whose bytes must not be
    /// interpreted as a record, whatever they look like.
    pub(crate) fn inode(&self, ino: Ino) -> Result<InodeRec> {
        self.check_process()?;
        let page = self.inode_page(ino.page())?;
        if page != ROOT_INODES {
            if !self.owns(page.frame()) {
                return Err(Error::Stale(ino.0));
            }
            self.check_inode_page(ino)?;
        }
        let mut rec = InodeRec::free(Ino(0));
        self.read_record(page, ino, &mut rec)?;
        let place = ino.place();
        let known = self.verified.contains(Item::Inode(place));
        rec.check(place, known)?;
        live(&rec, ino)?;
        if !known {
            self.verified.insert(Item::Inode(place));
        }
        Ok(rec)
    }

    fn read_inode(&self, ino: Ino, rec: &mut InodeRec) -> Result<()> {
        let page = self.inode_page(ino.page())?;
        if page != ROOT_INODES && !self.owns(page.frame()) {
            return Err(Error::Stale(ino.0));
        }
        self.read_record(page, ino, rec)
    }

    /// Reads the record of an inode that lies on `page`.
    fn read_record(&self, page: PageNo, ino: Ino, rec: &mut InodeRec) -> Result<()> {
        let at = page.byte() + ino.slot() as u64 * InodeRec::SIZE;
        Ok(self.region.read_meta(at, rec.as_mut_bytes())?)
    }

    /// A page that can be owned.
    pub(crate) fn page(&self, page: PageNo) -> Result<PageRef<'_>> {
        if !self.owns(page.frame()) {
            return Err(Error::corrupt(Place::Page(page), "outside the pool's frames"));
        }
        Ok(self.region.page(page.byte())?)
    }

    /// Runs `verify` unless the node at `page` was verified since the pool was opened.
    pub(crate) fn verify_once(&self, page: PageNo, verify: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.verified.contains(Item::Node(page)) {
            verify()?;
            self.verified.insert(Item::Node(page));
        }
        Ok(())
    }

    /// DRAM in use, in bytes; the same for every capacity.
    pub(crate) fn dram_bytes(&self) -> u64 {
        let fixed = Verified::DRAM_BYTES
            + STRIPES * size_of::<CachePadded<Mutex<rank::Frame, ()>>>()
            + self.cursors.len() * size_of::<CachePadded<Mutex<rank::Cursor, Cursor>>>();
        // One lock at a time: a search takes the lock of the quarantine inside its own.
        let quarantine = self.quarantine.lock().len() * 80;
        let search = self.search.lock().dram_bytes();
        (fixed + quarantine) as u64 + self.pins.dram_bytes() + search + self.slots.dram_bytes()
    }

    fn stripe(frame: FrameNo) -> usize {
        (frame.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize % STRIPES
    }
}

/// Pages that are kept for freeing others, of so many that can be owned.
fn kept_of(usable: i64) -> i64 {
    (usable / 64).clamp(32, 1024)
}

/// Checks that the record is that of the inode `ino`.
pub(crate) fn live(rec: &InodeRec, ino: Ino) -> Result<()> {
    if rec.is_free() || rec.generation != ino.generation() {
        // Every pool has these two.
        if ino == ROOT || ino == ORPHANS {
            return Err(Error::corrupt(Place::InodeSlot(ino), "is free or another one"));
        }
        return Err(Error::Stale(ino.0));
    }
    Ok(())
}

/// A lane's counters. All zero bytes mean zero counts.
pub(crate) fn read_counters(region: &Region, lane: u32) -> Result<LaneCounters> {
    let mut line = [0; 64];
    region.read_meta(COUNTERS.byte() + u64::from(lane) * 64, &mut line)?;
    if line == [0; 64] {
        return Ok(LaneCounters::new(lane, Counts::default()));
    }
    let wrong = |what| Error::corrupt(Place::Counters { lane }, what);
    let counters = LaneCounters::parse(line).ok_or_else(|| wrong("checksum does not match"))?;
    // Larger than any pool: the sums over the lanes must not overflow.
    if counters.counts.largest() > 1 << 48 {
        return Err(wrong("impossible count"));
    }
    Ok(counters)
}

/// Sets, or clears, `pages` bits from `first` on.
pub(crate) fn set_bits(bits: &mut FrameBits, first: usize, pages: usize, value: bool) {
    for i in first..first + pages {
        let mask = 1u64 << (i % 64);
        if value { bits[i / 64] |= mask } else { bits[i / 64] &= !mask }
    }
}

/// Whether bit `i` is set.
pub(crate) fn bit(bits: &FrameBits, i: usize) -> bool {
    bits[i / 64] >> (i % 64) & 1 == 1
}

/// Splits a run at frame boundaries: `(frame, first index, pages)`.
pub(crate) fn by_frame(run: Run) -> impl Iterator<Item = (FrameNo, usize, usize)> {
    let (mut page, end) = (run.page.0, run.page.0.saturating_add(run.pages));
    std::iter::from_fn(move || {
        if page >= end {
            return None;
        }
        let index = (page % PAGES_PER_FRAME) as usize;
        let pages = (PAGES_PER_FRAME - index as u64).min(end - page);
        let frame = PageNo(page).frame();
        page += pages;
        Some((frame, index, pages as usize))
    })
}
