//! Growing and shrinking a pool that is mounted: ioctls on the root directory of the mount.
//!
//! ```text
//!   Control (a command)                      Resizes (the server)
//!     start   --- change, size --------->    a thread: Pool::grow, Pool::shrink      one at a time
//!             <-- number ----------------
//!     status  <-- state, moved, total ---    what that thread has done
//!     cancel  -------------------------->    it ends after its step
//! ```
//!
//! ext4 and XFS are resized by ioctls, too. A control socket of the server will replace these; nothing but `Control` and
//! `Resizes` knows that they are ioctls.

mod client;
mod protocol;
mod server;

pub use client::Control;
pub use protocol::{Change, Space, State, Status};
pub use server::Resizes;
