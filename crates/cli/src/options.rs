//! Options that many commands have in common.

use clap::{Args, ValueEnum};
use pmem::MediaKind;

/// Treat a path as this kind of media instead of finding out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Media {
    /// An ordinary file: durable at sync
    File,
    /// A file on tmpfs: lost with the machine
    Tmpfs,
    /// A file on hugetlbfs: lost with the machine
    Hugetlbfs,
    /// A file on a DAX filesystem
    DaxFile,
    /// A DAX device
    DaxDevice,
}

impl From<Media> for MediaKind {
    fn from(media: Media) -> MediaKind {
        match media {
            Media::File => MediaKind::File,
            Media::Tmpfs => MediaKind::Tmpfs,
            Media::Hugetlbfs => MediaKind::Hugetlbfs,
            Media::DaxFile => MediaKind::DaxFile,
            Media::DaxDevice => MediaKind::DaxDevice,
        }
    }
}

/// Every command that takes a path in a pool.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Treat the pool as this kind of media instead of finding out
    #[arg(long, value_name = "KIND")]
    pub(crate) media: Option<Media>,
    /// Report as JSON, errors too (inode numbers above 2^53 are strings)
    #[arg(long)]
    pub(crate) json: bool,
}
