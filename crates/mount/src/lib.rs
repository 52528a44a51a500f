//! Pagestone's mount: a pool as a directory of the system.
//!
//! ```text
//!    programs     open, read, write, mmap ...
//!       |
//!    kernel       FUSE: names and attributes cached, data as `PageCache` says
//!       |
//!    transport    trait Transport: FuseTransport speaks to /dev/fuse
//!       |         (one server thread for each processor)
//!    trait FileSystem: requests and replies, independent of FUSE
//!       |                     |
//!    PoolFs: a pool        NullFs: does nothing, to measure the transport itself
//! ```
//!
//! A face implements a protocol. It keeps no state that the pool would need after a restart. The two
//! traits are there so that another transport (FUSE over io_uring, vhost-user-fs) can take the
//! place of this one, and so that the transport can be measured without a filesystem behind it.

mod fuse;
mod handle_table;
mod handles;
mod mountpoint;
mod mounts;
mod null;
mod poolfs;
mod sched;
mod statistics;
mod thread_placement;
mod transport;
mod unlinked_nodes;

pub use fuse::FuseTransport;
pub use handle_table::HandleTable;
pub use mountpoint::{MountError, Prepared, bind, can_mount, prepare, unmount, unmount_lazily};
pub use mounts::{Mount, mount_at, mounted_elsewhere, mounts, source_name};
pub use null::NullFs;
pub use poolfs::PoolFs;
pub use statistics::{Operation, OperationCount, Statistics};
pub use transport::{
    Caller, Errno, Fallocate, FileSystem, Handle, KernelCache, Listed, Mounted, NodeId, OpenHow, Options, PageCache,
    Reply, RequestNumber, Seek, Survival, Transport, WriteHow, Written,
};
