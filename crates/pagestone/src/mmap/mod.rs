//! Mappings: file ranges in a process's address space, whose pages *are* the pool's pages. No copy is made.
//!
//! ```text
//!   api/             Mapping: safe loads and stores, refresh, flush, report;  AtomicMapping: commit
//!      |             loads and stores go through pmem::fault_tolerant, so that faults become errors
//!   address_space/   Area: the state of each page (unresolved, hole, data, inaccessible) and its transitions;
//!      |             the observer that follows changes of the file; private copies; conflicts
//!   fault/           one fault reader and two helpers resolve the faults of the process
//!   fork/            the same mapping in a child: a channel to the parent, and the protocol on it
//!   kernel/          mmap, mremap, userfaultfd by its ioctls; pagemap
//! ```
//!
//! `docs/mappings.md` states what holds on which media.

mod address_space;
mod api;
mod fault;
mod fork;
mod kernel;

pub use api::atomic_mapping::AtomicMapping;
pub use api::mapping::{MapOptions, Mapping, Pin};
pub use api::report::MapReport;
pub use api::view::{VolatileSlice, Word};
pub use fault::service::MapMechanism;
