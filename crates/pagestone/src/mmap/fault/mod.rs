//! Faults: who reads them, and how each is answered.

pub(super) mod answer;
pub(super) mod service;
