//! The subcommands, one file each (small ones share). A file has the arguments of its command, as clap reads them,
//! and the function that runs it.

mod background;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod clones;
pub(crate) mod copy;
pub(crate) mod df;
pub(crate) mod docs;
pub(crate) mod doctor;
pub(crate) mod files;
pub(crate) mod history;
mod holder;
pub(crate) mod iostat;
pub(crate) mod list;
pub(crate) mod mount;
pub(crate) mod pool;
pub(crate) mod resize;
pub(crate) mod restart;
pub(crate) mod scrub;
pub(crate) mod serve;
mod service;
mod signals;
pub(crate) mod space;
pub(crate) mod status;
mod supervised;
pub(crate) mod top;
pub(crate) mod transfer;
pub(crate) mod umount;

pub(crate) use signals::end_by;
