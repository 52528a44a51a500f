//! Mappings: a test for each row of the table in `docs/mappings.md`, on every kind of media that
//! this machine has, and threads that do everything at once.
//!
//! ```text
//!   place.rs    pools on memory, tmpfs (huge or not), hugetlbfs, an ordinary file
//!   rows.rs     the rows of the table           away.rs   truncate, punch, unlink under a mapping
//!   atomic.rs   commits: all stores or none
//!   fork.rs     a child process with the same mappings
//!   kept.rs     stores that wait for a commit, and what goes on around them
//!   huge.rs     huge pages, wished for and forced
//!   limits.rs   what it costs, and what is left without userfaultfd
//!   absent.rs   pages that a backing answers
//!   start.rs   what if the threads that answer faults cannot be started
//!   hammer.rs   faults, stores, punches and truncates at once, beside a model
//! ```

#![allow(clippy::unwrap_used)] // tests end at the first surprise

mod absent;
mod atomic;
mod away;
#[path = "../common/mod.rs"]
mod common;
mod fork;
mod hammer;
mod huge;
mod kept;
mod limits;
mod place;
mod rows;
mod start;
