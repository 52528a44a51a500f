//! Page faults in mappings: the threads that read them, and how each is resolved.

pub(super) mod answer;
pub(super) mod service;
