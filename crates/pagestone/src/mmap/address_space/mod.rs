//! The address space of one mapping: the state of each of its pages, and the transitions between states.

pub(super) mod area;
pub(super) mod conflict;
pub(super) mod observer;
pub(super) mod page_ranges;
pub(super) mod private_copies;
pub(super) mod steps;
