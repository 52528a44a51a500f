//! Extent lists: where the bytes of a range lie, and transfers straight from and into them.
//!
//! ```text
//!   out   range --> [Extent | Extent | ...] pinned --> DirectFile          pinned.rs
//!   in    DirectFile --> storage behind the end, pinned --> one record: the length      fill.rs
//! ```
//!
//! No lock of an inode and no transaction is held while bytes move: the pages are pinned, so that they are not reused. No
//! DRAM is taken that grows with the range, and the kernel's page cache has no copy.

mod fill;
mod pinned;

pub use pinned::PinnedExtents;
pub use pmem::direct::{DirectFile, Purpose};

pub(crate) use fill::Source;
