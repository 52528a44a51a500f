//! The interface that programs see behaves as `std::fs` does, and says so where it does not.
//!
//! ```text
//!   files.rs    cursor, append, truncate, create_new, FileExt      names.rs   links, loops, `..`, removal while listing
//!   errors.rs   io::ErrorKind and errno                            close.rs   closes, or says Busy
//!   walk.rs     order, depth, changes during a walk
//! ```

#![allow(clippy::unwrap_used)]

mod close;
mod errors;
mod files;
mod names;
mod walk;

use std::sync::Arc;

use pagestone::{CreateOptions, Pool};
use pmem::Memory;

fn pool() -> Pool {
    Pool::create_on(Arc::new(Memory::new(32 << 20).unwrap()), &CreateOptions::new()).unwrap()
}
