//! Pagestone's server: one process that has a pool open, and the socket through which everybody else uses it.
//!
//! ```text
//!    pagestone info | ls | snapshot ...          curl, scripts
//!               |                                     |
//!        trait Store: what a command does to a pool   |  HTTP and JSON
//!          |                     |                    |
//!     LocalStore              Client ----- socket ----+--> Control     (in the process that has the pool open)
//!          |                                              |  peer: root, or the pool's owner
//!          v                                              v
//!        Pool  <------------------------------------  LocalStore
//! ```
//!
//! A command uses [`Store`] and does not know whether the pool is in use. [`LocalStore`] is the one implementation;
//! [`Client`] passes each call on to the one in the server.
//!
//! Invariant: nothing here knows a command line, a table or a terminal.

pub mod address;
pub mod api;
mod client;
mod control;
mod history;
mod job;
mod local;
mod observer;
mod problem;
mod scrub;
mod statistics;
mod store;
pub mod supervisor;
mod transfer;

pub use client::{Client, Restarted};
pub use control::{Control, listen_http, openapi};
pub use local::LocalStore;
pub use problem::{Code, Problem, StoreError};
pub use store::{Progress, READ_LIMIT, Store};
