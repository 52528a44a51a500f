//! The crash tests: what a power cut or a kill leaves of a pool, at any moment, compared with a
//! model.
//!
//! ```text
//!   ops.rs     every changing operation, on a pool          model.rs    the same, in DRAM
//!   seen.rs    a pool's whole tree, compared with models    run.rs      record, crash, compare
//!   pairs.rs   all sequences of two operations              random.rs   long ones, from a seed
//!   concurrent.rs   several threads at once      clones.rs   sharing, merging, atomic writes
//!   requests.rs   requests that come again      direct.rs   bytes that others store behind the end
//!   resize.rs  growing and shrinking        transactions.rs  several files and names at once
//!   hazards.rs, secrets.rs   the hazards that the design names, and bugs found: one test each
//! ```
//!
//! `PAGESTONE_CRASH=more` tries more, `PAGESTONE_CRASH=full` far more; `PAGESTONE_SEED=n` runs one random sequence again.

#![allow(clippy::unwrap_used, reason = "tests")]

mod clones;
mod concurrent;
mod direct;
mod hazards;
mod model;
mod ops;
mod pairs;
mod random;
mod requests;
mod resize;
mod run;
mod secrets;
mod seen;
mod transactions;
