//! Mappings in a child of the process that made them.

pub(super) mod channel;
pub(super) mod child;
pub(super) mod parent;
pub(super) mod protocol;
