//! Mappings in a child of the process that made them: the channel between the two, and what each side does.

pub(super) mod channel;
pub(super) mod child;
pub(super) mod parent;
pub(super) mod protocol;
