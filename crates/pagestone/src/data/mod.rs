//! The bytes and attributes of files: everything that reads or changes them.
//!
//! ```text
//!   read.rs      bytes and pieces out            write.rs         bytes in: in place, or into fresh pages
//!   write_plan.rs where a transaction's bytes go write_aside.rs   bytes of a caller's transaction
//!   truncate.rs  the length                      preallocate.rs   storage ahead, zeros, holes
//!   partial_pages.rs the ends of a changed range
//!   seek.rs      data, holes, extents            shadow_commit.rs many pages at once, or none
//!   attributes.rs owner, mode, times             xattr.rs         extended attributes
//!   handle.rs    an open file                    sync.rs          durable, and closed
//!   stored.rs    stores through mappings, made durable
//!   notify.rs    mappings are notified of what changes below them
//!   relocate.rs  a chunk of a file into one frame
//!   retire.rs    a lost page out of a whole frame
//!   compare.rs   two files side by side          bounce_buffer.rs buffers that are mappings themselves
//! ```

mod attributes;
pub(crate) mod bounce_buffer;
mod compare;
mod handle;
pub(crate) mod notify;
mod partial_pages;
pub(crate) mod preallocate;
pub(crate) mod read;
pub(crate) mod relocate;
mod retire;
mod seek;
mod shadow_commit;
mod stored;
mod sync;
pub(crate) mod truncate;
pub(crate) mod write;
pub(crate) mod write_aside;
pub(crate) mod write_plan;
pub(crate) mod xattr;

pub(crate) use handle::FileHandle;
pub use read::{Piece, Pieces};
pub(crate) use shadow_commit::Reach;
