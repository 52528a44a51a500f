//! A crash lab for persistent memory: records what a program does to its media, and tries what a
//! power cut or a kill at any moment would have left.
//!
//! ```text
//!   Lab -> Simulator (a Media) -> run, mark what is acknowledged -> finish -> Trace
//!                                                                               |
//!          check(CrashState, Simulator holding that state) <---- explore -------+
//!             |  opens it, compares with what must be there
//!             +-> explore_nested: crash the opening, too
//! ```
//!
//! It knows nothing of what is stored; all it needs is the media trait of `pmem`.
//!
//! # What can be left
//! [`Flavour::Lines`] is memory behind a processor cache. Of the 8-byte words stored and not yet
//! both flushed and fenced *by one thread*, any subset may survive, each in any of the versions
//! it has had. [`Flavour::Pages`] is an ordinary file: of the pages changed in the page cache
//! since the last sync, any subset may be on the disk, each in any version, torn at 512-byte
//! sectors. A [`CrashKind::ProcessKill`] leaves everything that was stored.
//!
//! # Example
//! ```
//! use crashlab::{Budget, Flavour, Lab, explore};
//! use pmem::{Media, Part};
//!
//! let lab = Lab::new(1 << 20, Flavour::Lines, 7);
//! let media = lab.media()?;
//! media.start_recording();
//! media.persist(&[Part::Bytes { at: 4096, bytes: &[1; 8] }])?;
//! media.mark("written");
//! let summary = explore(&media.finish(), &Budget::default(), |state, sim| {
//!     let mut word = [0; 8];
//!     assert!(sim.views().data.read(4096, &mut word));
//!     let there = word == [1; 8];
//!     let legal = there || (word == [0; 8] && state.must_survive == 0);
//!     if legal { Ok(()) } else { Err(format!("{word:?}")) }
//! })?;
//! assert!(summary.states >= 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it cannot see
//! Stores made through an address, without a call, must be declared with [`Simulator::absorb`].
//! A persist call is one moment to the other threads: their calls never fall inside it.

#![forbid(unsafe_code)]

mod choose;
mod config;
mod explore;
mod faulty;
mod image;
mod lab;
mod log;
mod moment;
mod pages;
mod recording;
mod replay;
mod simulator;
mod trace;

pub use config::{Budget, Flavour};
pub use explore::{Failure, Summary, explore, explore_nested};
pub use faulty::{Call, Fault, Faulty};
pub use image::CrashImage;
pub use lab::Lab;
pub use moment::CrashState;
pub use recording::{CrashKind, CrashPoint};
pub use simulator::{Simulator, Violation};
pub use trace::Trace;
