//! Pagestone: persistent memory as storage, as memory, and as a cache that survives power loss.
//!
//! A [`Pool`] is one persistent range that Pagestone has formatted; [`Dir`] and [`File`] are its
//! contents. The layers, each using only what lies below it:
//!
//! ```text
//!   check     proves that nothing is lost or owned twice, and repairs
//!   pool      the facade: create, open, close, info
//!   snapshot  snapshots and clones of trees
//!   mmap      mappings: file ranges whose pages are the pool's
//!   dir       names
//!   data      the bytes and attributes of files
//!   extent    the extents of files: resolve, clone, merge
//!   backing   the contents of a page that no extent covers
//!   engine    what the layers above share: inode locks, open inodes, lock witnesses
//!   btree     the one persistent B+tree
//!   txn       transactions: stage, reserve, fill, commit
//!   alloc     descriptors, splitting and coalescing, allocation
//!   journal   records, lanes, checkpoint, replay
//!   layout    every on-media type, byte by byte
//!   pmem      (a crate of its own) map a range; store, flush, fence
//! ```

mod address_hash;
mod alloc;
mod attr;
mod backing;
mod btree;
mod check;
mod data;
mod dir;
mod engine;
mod error;
mod extent;
mod journal;
mod layout;
mod lock;
mod mmap;
mod pool;
mod snapshot;
mod txn;
mod units;

pub use attr::{Attr, DirEntry, Extent, Kind, NewNode, Privileges, RenameMode, SetAttr, StatFs, Time, XattrMode};
pub use check::{CheckOptions, Finding, Report, check, check_on};
pub use data::{File, Piece};
pub use dir::{Dir, Node};
pub use error::{Error, Result};
pub use mmap::{AtomicMapping, MapMechanism, MapOptions, MapReport, Mapping, Pin, Slice, Word};
pub use pmem;
pub use pool::{CreateOptions, Info, OpenOptions, Pool, is_pool};
pub use snapshot::{Change, Copied, Snapshot, Snapshots, What};
pub use units::{FRAME_SIZE, FrameNo, Ino, PAGE_SIZE, PageNo};
