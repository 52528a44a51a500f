//! The system calls below: address space, userfaultfd, pagemap.

pub(super) mod pagemap;
pub(super) mod userfault;
