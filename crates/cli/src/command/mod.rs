//! The subcommands, one file each (small ones share). A file has the arguments of its command, as clap reads them,
//! and the function that runs it.

mod background;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod clones;
pub(crate) mod copy;
pub(crate) mod docs;
pub(crate) mod files;
mod holder;
pub(crate) mod list;
pub(crate) mod mount;
pub(crate) mod pool;
pub(crate) mod resize;
mod signals;
pub(crate) mod space;
pub(crate) mod umount;

pub(crate) use signals::end_by;
