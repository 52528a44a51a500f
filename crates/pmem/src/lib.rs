//! Persistent memory from user space: map a range, store, flush, fence; detect the media; survive faults.
//!
//! ```text
//!        reads: Region::page, read_meta, read_data      changes: persist, store, flush, sync
//!               |                                         |
//!        +------+-----------------------------------------+------+
//!        |  Region: checks bounds and bad pages for all callers  |
//!        +------+-----------------------------------------+------+
//!               | Views                                   | trait Media (the seam)
//!        +------+------+-----------+---------------+------+------+
//!        | Memory      | ByteMedia | FileMedia     | crash simulator (crate crashlab)
//!        | a memfd     | DAX,tmpfs | ordinary file |
//! ```
//!
//! The crate knows bytes and no format. Everything above depends on [`Media`] and [`Region`] only.
//!
//! # Failure model
//! At a power cut, stores have become durable in any order, 8 aligned bytes at a time. Any subset
//! of what has not been flushed *and* fenced may have survived; any of it may be lost. After
//! [`Media::persist`] has returned (on media whose [`Durability`] is `AtFence`), or after
//! [`Media::sync`] (on every kind), what was stored before is durable.
//!
//! # Two views
//! The kernel writes pages of an ordinary file back whenever it likes, so a metadata change
//! made there could reach the disk before the journal record that describes it. Such media give
//! two views of the same bytes: `meta`, a private overlay that takes [`Media::store`] and
//! reaches the file only by [`Media::flush`] followed by [`Media::sync`]; and `data`, which takes
//! [`Media::persist`]. On byte-addressable media both views are one mapping.
//! A byte is reached through one of the two views only, for as long as its page has one owner.
//!
//! # Media errors
//! Memory that fails is an error of the operation that meets it and does not end the process:
//! every access goes through [`fault_tolerant`], and [`Region`] remembers the bad pages. Those that the kernel
//! lists as bad are known from the beginning ([`Media::bad`]).

mod bad_pages;
mod byte_addressable;
mod cache_id;
mod detect;
mod error;
pub mod fault_tolerant;
mod file_len;
mod flush;
mod mapped_range;
mod memory;
mod nvdimm;
mod ordinary_file;
mod overlay;
mod owner_process;
mod pool_lock;
mod region;

pub use byte_addressable::ByteMedia;
pub use detect::{Open, Opened, open};
pub use error::{Error, Result};
pub use flush::{Persister, lines};
pub use mapped_range::{MappedRange, PageBuf, PageRef, Share};
pub use memory::Memory;
pub use ordinary_file::FileMedia;
pub use owner_process::OwnerProcess;
pub use pool_lock::holder_of as holder;
pub use region::Region;

use std::fmt;
use std::io;
use std::ops::Range;

use serde::Serialize;

/// Bytes in a page, the unit of bad pages and of copies.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes in a huge page.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// One stretch of a [`Media::persist`] call.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Store these bytes at the pool byte `at`.
    Bytes {
        /// First pool byte.
        at: u64,
        /// What to store.
        bytes: &'a [u8],
    },
    /// Store `len` zero bytes at the pool byte `at`.
    Zero {
        /// First pool byte.
        at: u64,
        /// How many.
        len: u64,
    },
}

impl Part<'_> {
    /// First pool byte.
    pub fn at(&self) -> u64 {
        match *self {
            Part::Bytes { at, .. } | Part::Zero { at, .. } => at,
        }
    }

    /// Bytes stored.
    pub fn len(&self) -> u64 {
        match *self {
            Part::Bytes { bytes, .. } => bytes.len() as u64,
            Part::Zero { len, .. } => len,
        }
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a range of persistent memory must be able to do: the only trusted seam of the engine.
///
/// Offsets are pool bytes. The caller ([`Region`]) has checked that every range lies inside
/// [`Views`]; an implementation may still refuse with an error but must not touch other bytes.
pub trait Media: Send + Sync + fmt::Debug {
    /// What this is and what it promises.
    fn describe(&self) -> &Description;

    /// The two views through which the bytes are read.
    fn views(&self) -> Views<'_>;

    /// Stores all parts through the data view with stores that bypass the cache, then fences
    /// once. Durable on return where durability is [`Durability::AtFence`]; otherwise visible at
    /// once, and durable after the next [`Media::sync`].
    ///
    /// Several parts in one call become durable in any order. Non-temporal stores lie outside
    /// Rust's memory model until the fence, which is why the two are one function.
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()>;

    /// An ordinary store of metadata through the meta view. It may become durable at any
    /// moment from now on (`AtFence`), or only by flush and sync (`AtSync`).
    fn store(&self, at: u64, bytes: &[u8]);

    /// Starts the write-back of metadata stored before: durable after the next
    /// [`Media::fence`] (`AtFence`) or [`Media::sync`] (`AtSync`).
    /// No [`Media::store`] to the same pages may run between a flush and that sync.
    fn flush(&self, at: u64, len: u64) -> io::Result<()>;

    /// Orders all earlier flushes of this thread before what it stores next.
    fn fence(&self);

    /// Everything persisted before, and everything flushed before, is durable on return.
    fn sync(&self) -> io::Result<()>;

    /// Makes sure that later stores to the range cannot fail for want of space below (a sparse
    /// file on a full filesystem would answer such a store with SIGBUS). May zero what was never
    /// stored, never changes what was.
    fn reserve(&self, at: u64, len: u64) -> io::Result<()>;

    /// Lets the media have `len` bytes, a multiple of a huge page, or of the media's own page if that is larger.
    ///
    /// Longer: on return so many bytes are there, durably, and both views reach them. Shorter: the bytes from `len` on
    /// are given back to what lies below, as far as it takes them; the views still reach them, and what is read there
    /// means nothing. A file is truncated once the media are closed.
    ///
    /// # Errors
    /// `Unsupported` where the length is fixed, or while the media are open; what the system refuses.
    fn set_len(&self, len: u64) -> io::Result<()> {
        match len <= self.views().data.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The first byte at or behind `at`, and before `at + len`, that may be other than zero; `None` if all were never
    /// stored to. It may say that where all are zeros.
    fn next_data(&self, at: u64, len: u64) -> Option<u64> {
        (len > 0).then_some(at)
    }

    /// Pool bytes that are known to be bad before anybody has touched them; asked for once, when a
    /// pool is opened.
    fn bad(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    /// The smallest piece that [`Media::map_at`] maps, in bytes; `None` if it maps nothing.
    fn map_alignment(&self) -> Option<u64> {
        None
    }

    /// The pool bytes `at .. at + len` will be mapped by [`Media::map_at`], in this process or a
    /// child of it: nothing else may be stored over what a program stores there.
    fn prepare_for_mapping(&self, at: u64, len: u64) -> io::Result<()> {
        let _ = (at, len);
        Ok(())
    }

    /// Maps the pool bytes `at .. at + len` of the data view, which are file data and stay it
    /// while they are mapped, at the address `to`, in place of what is mapped there. They were
    /// given to [`Media::prepare_for_mapping`] before. What is stored there is durable as the description says of a store that was flushed.
    ///
    /// # Safety
    /// `to .. to + len` is address space of the caller, and nobody holds a reference into it.
    unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> io::Result<()> {
        let _ = (at, len, to, how);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// How pool bytes are mapped for a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapMode {
    /// Loads only.
    Read,
    /// Stores reach the media.
    Write,
    /// Stores stay in private pages of the process.
    Private,
}

/// The two views on one pool; the same mapping twice where stores need no overlay.
#[derive(Clone, Copy, Debug)]
pub struct Views<'a> {
    /// Metadata as the engine has stored it.
    pub meta: &'a MappedRange,
    /// File data and the journal.
    pub data: &'a MappedRange,
}

/// When a commit becomes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Durability {
    /// At the fence that ends it: before the call returns.
    AtFence,
    /// At the next sync (fsync, the interval, close). Until then it survives the process
    /// but not a power cut.
    AtSync,
}

/// What the media lies on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MediaKind {
    /// Anonymous memory of this process; gone when it ends.
    Memory,
    /// A file on tmpfs: survives the process, not the machine.
    Tmpfs,
    /// A file on hugetlbfs: survives the process, not the machine.
    Hugetlbfs,
    /// A file mapped with `MAP_SYNC` on a DAX filesystem.
    DaxFile,
    /// A device-DAX character device.
    DaxDevice,
    /// An ordinary file.
    File,
    /// The crash lab's simulator.
    Simulator,
}

impl fmt::Display for MediaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MediaKind::Memory => "memory",
            MediaKind::Tmpfs => "tmpfs file",
            MediaKind::Hugetlbfs => "hugetlbfs file",
            MediaKind::DaxFile => "file on a DAX filesystem",
            MediaKind::DaxDevice => "device DAX",
            MediaKind::File => "ordinary file",
            MediaKind::Simulator => "simulator",
        })
    }
}

/// The smallest unit in which a store becomes durable by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Granularity {
    /// The caches are inside the power-fail domain (eADR): a store is durable once visible.
    Byte,
    /// A cache line must be flushed and fenced.
    CacheLine,
    /// A page must be written back by a system call.
    Page,
}

/// How bytes are pushed to the media; on x86-64 the fastest is found by measuring at open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PersistMethod {
    /// Non-temporal stores and `sfence`; metadata is written back with `clwb`.
    NonTemporal,
    /// Ordinary stores, `clwb` and `sfence`.
    Clwb,
    /// Ordinary stores, `clflushopt` and `sfence`.
    Clflushopt,
    /// Ordinary stores, `clflush`.
    Clflush,
    /// Ordinary stores, `dc cvap` and `dsb` (aarch64).
    DcCvap,
    /// Ordinary stores; nothing to flush (memory that does not outlive the machine, or eADR).
    None,
    /// `pwrite` and `fdatasync`.
    Fdatasync,
}

/// What a media is and what it promises, fixed at open.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// What it lies on.
    pub kind: MediaKind,
    /// Unit of durability.
    pub granularity: Granularity,
    /// How bytes are pushed out.
    pub method: PersistMethod,
    /// When a commit is durable.
    pub durability: Durability,
    /// One sentence for people: what survives what.
    pub promise: String,
    /// Identity of the volatile cache above the media (of this boot, this file, this mount and this disk): unsynced
    /// commits on `AtSync` media are still there as long as it has not changed. Zeros: not known.
    #[serde(skip)]
    pub cache_id: [u8; 16],
    /// Whether changes are refused (they go to a private overlay and are dropped at close).
    pub read_only: bool,
}
