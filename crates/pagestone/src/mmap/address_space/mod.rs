//! The address space of one mapping: what each of its pages is, and how that changes.

pub(super) mod area;
pub(super) mod conflict;
pub(super) mod observer;
pub(super) mod page_ranges;
pub(super) mod private_copies;
pub(super) mod steps;
