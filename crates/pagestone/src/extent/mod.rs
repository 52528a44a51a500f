//! A file's extents: which run of the pool holds each of its pages, and what clones share.
//!
//! ```text
//!   extent_map.rs   file page -> run of the pool: up to three runs in the inode record, more in a tree
//!   resolve.rs      a page through the file's own map, then through the bases below it
//!   clone.rs        a map becomes an immutable base of two files
//!   merge.rs        a base with one dependent left is merged with it
//!   orphans.rs      files without a name: their space is given back, at once or in pieces
//! ```
//!
//! One rule keeps the end of a file simple: *bytes beyond its length, in pages it owns, mean
//! nothing, and are zeroed before the length passes them.* So a truncate frees pages and does not
//! touch the last one, a whole frame can be taken for a file that is being appended to, and a
//! mapping may store beyond the end without harm.

pub(crate) mod clone;
pub(crate) mod extent_map;
pub(crate) mod merge;
pub(crate) mod orphans;
pub(crate) mod resolve;

pub(crate) use clone::share;
pub(crate) use orphans::{drop_inode, is_small};

use crate::units::PAGE_SIZE;

/// Longest file, in bytes: what a signed file offset can say, less a page.
pub(crate) const MAX_LEN: u64 = i64::MAX as u64 - PAGE_SIZE;
