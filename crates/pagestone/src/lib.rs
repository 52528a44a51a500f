//! Pagestone: persistent memory as storage, as memory, and as a cache that keeps its contents, written back or not, over a
//! power cut (planned: nothing of the cache exists yet).
//!
//! A [`Pool`] is one persistent range that Pagestone has formatted. Its files are opened, written, listed and renamed by
//! path, as with `std::fs`:
//!
//! ```
//! use std::io::Write;
//! use pagestone::{CreateOptions, Pool};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("demo.pool");
//!
//! let pool = Pool::create(&path, &CreateOptions::new().size(64 << 20))?;
//! pool.create_dir("/log")?;
//! let mut file = pool.create_file("/log/today")?;
//! writeln!(file, "started")?;
//! file.sync_all()?;
//! assert_eq!(pool.metadata("/log/today")?.len(), 8);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! [`File::map`] puts a file's pages into the address space ([`mmap`]); [`Pool::snapshots`] keeps and compares states of
//! all files ([`snapshot`]); [`check`] proves that a pool is whole. [`inode`] is the layer below paths, for faces.
//!
//! The layers, each using only what lies below it:
//!
//! ```text
//!   check     proves that nothing is lost or owned twice, and repairs
//!   pool      the facade: create, open, close, info; files and names by path
//!   snapshot  snapshots and clones of trees
//!   resize    growing, and shrinking by relocation
//!   transaction  changes of several files and names in one record
//!   mmap      mappings: file ranges whose pages are the pool's
//!   dir       names
//!   io        extent lists, and direct transfers between them and files or devices
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
pub mod check;
mod data;
mod dir;
mod engine;
mod error;
mod extent;
pub mod io;
mod journal;
mod layout;
mod lock;
pub mod mmap;
mod pool;
mod resize;
pub mod snapshot;
mod transaction;
mod txn;
mod units;

pub use attr::{Extent, FileType, StatFs};
pub use data::{Piece, Pieces};
pub use error::{Error, Place, Result};
pub use pmem;
pub use pool::{
    CreateOptions, DirEntry, File, FileOptions, Info, Metadata, OpenOptions, Pool, ReadDir, Walk, WalkEntry, is_pool,
};
pub use transaction::Transaction;
pub use units::{FRAME_SIZE, FrameNo, Ino, PAGE_SIZE, PageNo};

/// The layer below paths: inodes by their numbers, names as bytes, attributes as the kernel has them.
///
/// It is for faces, which translate a protocol (FUSE, for example) that has numbers of its own, and for tools that copy
/// names and attributes exactly. Nothing here follows symbolic links or checks permissions. [`Pool::root`],
/// [`Pool::node`] and [`Pool::resolve`] lead into it.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let pool = pagestone::Pool::create(dir.path().join("p"), &pagestone::CreateOptions::new().size(16 << 20))?;
/// use pagestone::FileType;
/// use pagestone::inode::NewNode;
/// let attr = pool.root().create(b"name", &NewNode::new(FileType::File, 0o644))?;
/// pool.node(attr.ino)?.open()?.append(b"bytes")?;
/// assert_eq!(pool.root().lookup(b"name")?.size, 5);
/// # Ok::<(), pagestone::Error>(())
/// ```
pub mod inode {
    pub use crate::attr::{Attr, DirEntry, NewNode, Privileges, RenameMode, SetAttr, Time, XattrMode};
    pub use crate::dir::{Dir, Entries, Node, Walk, WalkEntry};
    pub use crate::txn::{DoneRequest, Request};
}

/// What programs share between threads can be shared.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Pool>();
    shared::<File>();
    shared::<ReadDir>();
    shared::<DirEntry>();
    shared::<Walk>();
    shared::<WalkEntry>();
    shared::<Metadata>();
    shared::<Transaction<'_>>();
    shared::<FileOptions<'_>>();
    shared::<Error>();
    shared::<inode::Dir>();
    shared::<inode::Node>();
    shared::<inode::Entries>();
    shared::<io::PinnedExtents>();
    shared::<mmap::Mapping>();
    shared::<mmap::AtomicMapping>();
    shared::<mmap::Pin>();
    shared::<mmap::VolatileSlice<'_>>();
    shared::<snapshot::Snapshots>();
    shared::<check::Report>();
};
