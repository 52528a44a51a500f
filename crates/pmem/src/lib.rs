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
//! The crate handles bytes and knows no format. Everything above depends on [`Media`] and [`Region`] only.
//!
//! # Failure model
//! At a power cut, stores have become durable in any order, 8 aligned bytes at a time. Any subset of what was not
//! flushed *and* fenced may have survived. After [`Media::persist`] has returned (on media whose [`Durability`] is
//! `AtFence`), or after [`Media::sync`] (on all media), everything stored before is durable.
//!
//! # Two views
//! The kernel writes back pages of an ordinary file at any time, so a metadata change made there could reach the
//! disk before the journal record that describes it. Such media have two views of the same bytes. `meta` is a
//! private overlay that takes [`Media::store`] and reaches the file only by [`Media::flush`] followed by
//! [`Media::sync`]. `data` takes [`Media::persist`]. On byte-addressable media both views are one mapping. As long
//! as a page has one owner, its bytes are accessed through one of the two views only.
//!
//! # Media errors
//! Failed memory is an error of the operation that accesses it and does not end the process. Every access goes
//! through [`fault_tolerant`], and [`Region`] keeps a set of the bad pages. Pages that the kernel lists as bad are
//! in the set from the beginning ([`Media::bad`]).

mod bad_pages;
mod byte_addressable;
mod cache_id;
mod detect;
pub mod direct;
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
pub use pool_lock::{PoolLock, holder_of as holder};
pub use region::{Region, Transfer};

use std::fmt;
use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes in a page, the unit of bad pages and of copies.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes in a huge page.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// One part of a [`Media::persist`] call.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Store these bytes at the pool byte `at`.
    Bytes {
        /// First pool byte.
        at: u64,
        /// The bytes to store.
        bytes: &'a [u8],
    },
    /// Store `len` zero bytes at the pool byte `at`.
    Zero {
        /// First pool byte.
        at: u64,
        /// Number of zero bytes.
        len: u64,
    },
}

impl Part<'_> {
    /// The first pool byte.
    pub fn at(&self) -> u64 {
        match *self {
            Part::Bytes { at, .. } | Part::Zero { at, .. } => at,
        }
    }

    /// Number of bytes stored.
    pub fn len(&self) -> u64 {
        match *self {
            Part::Bytes { bytes, .. } => bytes.len() as u64,
            Part::Zero { len, .. } => len,
        }
    }

    /// Whether the part is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The operations on a range of persistent memory: the only trusted interface beneath the engine.
///
/// Offsets are pool bytes. The caller ([`Region`]) has checked that every range lies inside [`Views`]. An
/// implementation may still return an error, but must not access other bytes.
pub trait Media: Send + Sync + fmt::Debug {
    /// The kind of the media and their guarantees.
    fn describe(&self) -> &Description;

    /// The two views through which the bytes are read.
    fn views(&self) -> Views<'_>;

    /// Stores all parts through the data view with stores that bypass the cache, then fences once. Durable on
    /// return if durability is [`Durability::AtFence`]; otherwise visible on return, and durable after the next
    /// [`Media::sync`].
    ///
    /// The parts of one call become durable in any order. Non-temporal stores are outside Rust's memory model until
    /// the fence, so one function does both.
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()>;

    /// Stores metadata through the meta view with ordinary stores. It may become durable at any time from now on
    /// (`AtFence`), or only by a flush and a sync (`AtSync`).
    fn store(&self, at: u64, bytes: &[u8]);

    /// Starts the write-back of metadata stored before: durable after the next [`Media::fence`] (`AtFence`) or
    /// [`Media::sync`] (`AtSync`). No [`Media::store`] to the same pages may run between a flush and that sync.
    fn flush(&self, at: u64, len: u64) -> io::Result<()>;

    /// Orders all earlier flushes of this thread before its later stores.
    fn fence(&self);

    /// Everything persisted or flushed before is durable on return.
    fn sync(&self) -> io::Result<()>;

    /// Ensures that later stores to the range do not fail for lack of space (on a sparse file of a full filesystem
    /// such a store is a SIGBUS). May zero bytes that were never stored to; does not change others.
    fn reserve(&self, at: u64, len: u64) -> io::Result<()>;

    /// Makes sure that the media have `len` bytes, a multiple of a huge page (or of the media's own page, if that is
    /// larger), durably, and that both views reach them. A truncation that [`Media::release_from`] has left for the close
    /// leaves at least as many.
    ///
    /// # Errors
    /// `Unsupported` where the length is fixed, or not so much can be mapped while the media are open; what the system
    /// refuses. The media may be longer than before then; [`Media::release_from`] takes that back.
    fn ensure_len(&self, len: u64) -> io::Result<()> {
        match len <= self.views().data.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Whether the kernel may store to the data view by itself, as it does when it reads a file into memory. What it has stored
    /// is as durable as a [`Media::store`], whose lines a [`Media::flush`] writes back.
    fn takes_transfers(&self) -> bool {
        false
    }

    /// Bytes that what lies below has once the media are closed: after a [`Media::release_from`] fewer than now.
    fn len_at_close(&self) -> io::Result<u64> {
        Ok(self.views().data.len())
    }

    /// Gives the bytes from `len` on back to what lies below, as far as it takes them. The views still reach them, and
    /// what is read there means nothing. A file is truncated to `len` once the media are closed.
    fn release_from(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Ok(())
    }

    /// The first byte in `at .. at + len` that may be nonzero; `None` if none of them was ever stored to. The byte
    /// returned may be zero.
    fn next_data(&self, at: u64, len: u64) -> Option<u64> {
        (len > 0).then_some(at)
    }

    /// Pool bytes that are known to be bad without an access. Called once, when a pool is opened.
    fn bad(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    /// The smallest piece that [`Media::map_at`] maps, in bytes; `None` if mapping is not supported.
    fn map_alignment(&self) -> Option<u64> {
        None
    }

    /// Prepares the pool bytes `at .. at + len` for [`Media::map_at`], in this process or a child: from now on
    /// nothing but the program's stores may be written there.
    fn prepare_for_mapping(&self, at: u64, len: u64) -> io::Result<()> {
        let _ = (at, len);
        Ok(())
    }

    /// Maps the pool bytes `at .. at + len` of the data view at the address `to`, in place of the existing mapping.
    /// The bytes must be file data for as long as they are mapped, and must have been passed to
    /// [`Media::prepare_for_mapping`]. Stores there are as durable as flushed stores to these media.
    ///
    /// # Safety
    /// `to .. to + len` is address space of the caller, and no reference into it exists.
    unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> io::Result<()> {
        let _ = (at, len, to, how);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The mode in which pool bytes are mapped for a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapMode {
    /// Loads only.
    Read,
    /// Stores reach the media.
    Write,
    /// Stores stay in private pages of the process.
    Private,
}

/// The two views of a pool; the same mapping twice if stores need no overlay.
#[derive(Clone, Copy, Debug)]
pub struct Views<'a> {
    /// Metadata as the engine has stored it.
    pub meta: &'a MappedRange,
    /// File data and the journal.
    pub data: &'a MappedRange,
}

/// When a commit becomes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Durability {
    /// At the fence that ends the commit: before the call returns.
    AtFence,
    /// At the next sync (fsync, the interval, close). Until then it survives a crash of the process but not a power
    /// cut.
    AtSync,
}

/// The kind of media.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MediaKind {
    /// Anonymous memory of this process, freed when it ends.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
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

/// The method of writing bytes back to the media. On x86-64 the fastest one is measured at open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
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

/// The properties of media, fixed at open.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Description {
    /// The kind.
    pub kind: MediaKind,
    /// Unit of durability.
    pub granularity: Granularity,
    /// The method of writing bytes back.
    pub method: PersistMethod,
    /// When a commit is durable.
    pub durability: Durability,
    /// One sentence for the user: what survives which failure.
    pub promise: String,
    /// Identity of the volatile cache above the media (boot, file, mount and disk). While it has not changed,
    /// unsynced commits on `AtSync` media still exist. All zeros: unknown.
    #[serde(skip)]
    pub cache_id: [u8; 16],
    /// Whether the media take no changes (stores go to a private overlay that is dropped at close).
    pub read_only: bool,
}
