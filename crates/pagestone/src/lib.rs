//! Pagestone: persistent memory as storage, as memory, and as a cache that survives power loss.
//!
//! A [`Pool`] is one persistent range that Pagestone has formatted; [`Dir`] and [`File`] are its
//! contents. The layers, each using only what lies below it:
//!
//! ```text
//!   check     proves that nothing is lost or owned twice, and repairs
//!   pool      the facade: create, open, close, info
//!   snapshot  trees, twice
//!   map       mappings: file ranges whose pages are the pool's
//!   dir       names
//!   file      extent maps, bytes, attributes, clones
//!   engine    what they share: inode locks, open inodes, lock witnesses
//!   tree      one persistent B+tree for every index
//!   frame     descriptors, splitting and merging, allocation
//!   journal   transactions, redo, replay
//!   layout    every on-media type, byte by byte
//!   media     map a range; store, flush, fence
//! ```

mod attr;
mod check;
mod dir;
mod engine;
mod error;
mod file;
mod frame;
mod journal;
mod layout;
mod lock;
mod map;
pub mod media;
mod pad;
mod places;
mod pool;
mod snapshot;
mod tree;
mod units;

pub use attr::{Attr, DirEntry, Extent, Kind, NewNode, Privileges, RenameMode, SetAttr, StatFs, Time, XattrMode};
pub use check::{CheckOptions, Finding, Report, check, check_on};
pub use dir::{Dir, Node};
pub use error::{Error, Result};
pub use file::{File, Piece};
pub use map::{AtomicMapping, MapMechanism, MapOptions, MapReport, Mapping, Pin, Slice, Word};
pub use pool::{CreateOptions, Info, OpenOptions, Pool, is_pool};
pub use snapshot::{Change, Copied, Snapshot, Snapshots, What};
pub use units::{FRAME_SIZE, FrameNo, Ino, PAGE_SIZE, PageNo};
