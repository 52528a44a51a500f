//! Floor 6, first half: files. Where their bytes lie, and everything that reads or changes them.
//!
//! ```text
//!   map.rs     file page -> run of the pool: four inline, then a tree
//!   chain.rs   what a clone sees through its bases
//!   clone.rs   one file, twice                merge.rs   a base that only one file is left of
//!   read.rs    bytes and pieces out            write.rs   bytes in: in place, or into fresh pages
//!   space.rs   length, allocation, holes       xattr.rs   extended attributes
//!   attr.rs    owner, mode, times              reclaim.rs giving a whole file back
//!   handle.rs  an open file                    sync.rs    durable, and closed
//!   compare.rs two files side by side         atomic.rs  many pages at once
//!   watch.rs   telling mappings what changed   gather.rs  a chunk into one frame
//!   bounce.rs  buffers that are mappings themselves
//!   lost.rs    a lost page out of a whole frame     stored.rs  stores through mappings, made durable
//! ```
//!
//! One rule keeps the end of a file simple: *bytes beyond its length, in pages it owns, mean
//! nothing, and are zeroed before the length passes them.* So a truncate frees pages and does not
//! touch the last one, a whole frame can be taken for a file that is being appended to, and a
//! mapping may store behind the end without harm.

mod atomic;
mod attr;
pub(crate) mod bounce;
pub(crate) mod chain;
mod clone;
mod compare;
mod gather;
mod handle;
mod lost;
pub(crate) mod map;
mod merge;
pub(crate) mod read;
mod reclaim;
mod space;
mod stored;
mod sync;
mod watch;
pub(crate) mod write;
pub(crate) mod xattr;

pub(crate) use atomic::Reach;
pub(crate) use clone::share;
pub use handle::File;
pub use read::Piece;

pub(crate) use reclaim::{drop_inode, is_small};

use crate::units::PAGE_SIZE;

/// Longest file, in bytes: what a signed file offset can say, less a page.
pub(crate) const MAX_LEN: u64 = i64::MAX as u64 - PAGE_SIZE;
