//! The extents of files: which run of the pool stores each file page, and which runs clones share.
//!
//! ```text
//!   extent_map.rs   file page -> run of the pool: up to three runs in the inode record, more in a tree
//!   resolve.rs      a page: the file's own map, then the bases beneath it, then the backing
//!   clone.rs        freezes a map as an immutable base of two files
//!   merge.rs        merges a base into its last dependent
//!   orphans.rs      reclaims files without a name, at once or in steps
//! ```
//!
//! One rule keeps the end of a file simple: *bytes beyond the length, in pages that the file owns, have no meaning;
//! they are zeroed before the length passes them.* So a truncate frees pages and does not touch the last one. A
//! file that is appended to can own a whole frame. A mapping may store beyond the end without harm.

pub(crate) mod clone;
pub(crate) mod extent_map;
pub(crate) mod merge;
pub(crate) mod orphans;
pub(crate) mod resolve;

pub(crate) use clone::share;
pub(crate) use orphans::{drop_inode, is_small};

use crate::units::PAGE_SIZE;

/// Longest file, in bytes: the largest signed file offset, less a page.
pub(crate) const MAX_LEN: u64 = i64::MAX as u64 - PAGE_SIZE;
