//! The public types: mappings, atomic mappings, and the loads and stores through them.

pub(super) mod atomic_mapping;
pub(super) mod mapping;
pub(super) mod report;
pub(super) mod view;
