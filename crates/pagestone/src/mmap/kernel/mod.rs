//! Wrappers of the system calls for mappings: address space, userfaultfd and the pagemap.

pub(super) mod pagemap;
pub(super) mod userfault;
