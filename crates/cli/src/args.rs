//! What can be said on the command line. Names and meanings here are an interface: scripts use
//! them, the man pages and the shell completions are made from them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pagestone::media::MediaKind;

use crate::target::{self, Target};
use crate::{command, exit, size};

/// Persistent memory as storage, as memory, and as a cache that survives power loss.
///
/// A pool is one persistent range: an ordinary file, a file on tmpfs, hugetlbfs or a DAX
/// filesystem, or a DAX device such as /dev/dax0.0. POOL is its path.
#[derive(Parser, Debug)]
#[command(name = "pagestone", version, after_help = exit::CODES, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make a pool
    Create(Create),
    /// Show what a pool lies on, what that promises, and how full it is
    Info(Info),
    /// Prove that nothing in a pool is lost or damaged
    Check(Check),
    /// Mount a pool on a directory, until Ctrl-C or umount
    Mount(Mount),
    /// Unmount a pool; returns when everything is durable and the pool is free
    Umount(Umount),
    /// List a directory in a pool
    Ls(Ls),
    /// Write files in a pool to standard output
    Cat(Cat),
    /// Copy files into a pool
    Put(Put),
    /// Copy files out of a pool
    Get(Get),
    /// Make directories in a pool
    Mkdir(Mkdir),
    /// Remove files and directories in a pool
    Rm(Rm),
    /// Rename a file or directory in a pool
    Mv(Mv),
    /// Show all that is known about files in a pool
    Stat(Stat),
    /// Show how much space files and trees take, and how much of it they share
    Du(Du),
    /// Make a second file or tree that shares its storage with the first until one is written
    Clone(Clone),
    /// Keep, compare and bring back states of a whole pool
    Snapshot(Snapshot),
    /// Measure this machine: the library, the mount, and what they are compared with
    Bench(command::bench::Bench),
    /// Print completions for a shell
    Completions(Completions),
    /// Write the manual pages into a directory
    Man(Man),
}

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

fn target() -> impl TypedValueParser<Value = Target> {
    OsStringValueParser::new().try_map(|text| target::parse(&text))
}

/// Every command that takes a path in a pool.
#[derive(Args, Debug)]
pub(crate) struct Common {
    /// Treat the pool as this kind of media instead of finding out
    #[arg(long, value_name = "KIND")]
    pub(crate) media: Option<Media>,
    /// Report as JSON, errors too (inode numbers above 2^53 are strings)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Where: a file (made if it is missing) or a DAX device
    pub(crate) pool: PathBuf,
    /// How large, for example 1G; a device or an existing file keeps its size if this is left out
    #[arg(long, value_parser = size::parse)]
    pub(crate) size: Option<u64>,
    /// Overwrite a pool that is there already
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Info {
    /// The pool
    pub(crate) pool: PathBuf,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The pool
    pub(crate) pool: PathBuf,
    /// Repair what can be repaired
    #[arg(long)]
    pub(crate) repair: bool,
    /// Read all data, too, and name what the media have lost of each file
    #[arg(long)]
    pub(crate) data: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Mount {
    /// The pool
    pub(crate) pool: PathBuf,
    /// The directory to mount it on; made if it is missing
    pub(crate) dir: PathBuf,
    /// Make the pool with this size if it is missing, for example 1G
    #[arg(long, value_name = "SIZE", value_parser = size::parse, conflicts_with = "read_only")]
    pub(crate) create: Option<u64>,
    /// Change nothing
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Let other users in, as far as owners and modes allow
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Let no program be started from it
    #[arg(long)]
    pub(crate) no_exec: bool,
    /// Let device nodes in it be devices (root only)
    #[arg(long)]
    pub(crate) dev: bool,
    /// Let set-user-id and set-group-id bits of programs in it count (root only)
    #[arg(long)]
    pub(crate) suid: bool,
    /// Return when the mount stands; a process of its own serves it
    #[arg(long)]
    pub(crate) background: bool,
    /// With --background: say nothing if all goes well
    #[arg(long, requires = "background")]
    pub(crate) quiet: bool,
    /// Be that process
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
    /// Server threads (one for each processor if this is left out)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Bind each server thread to a processor (yes where there are two or more)
    #[arg(long, value_name = "YES|NO", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) pin: Option<bool>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Umount {
    /// The directory
    pub(crate) dir: PathBuf,
    /// Take it out of sight at once, and do not wait: it ends with its last user
    #[arg(long)]
    pub(crate) lazy: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Ls {
    /// What to list
    #[arg(value_name = "POOL:/PATH", value_parser = target())]
    pub(crate) target: Target,
    /// With mode, owner, size and time
    #[arg(short)]
    pub(crate) long: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Cat {
    /// The files
    #[arg(value_name = "POOL:/PATH", value_parser = target(), required = true)]
    pub(crate) targets: Vec<Target>,
    /// Treat the pool as this kind of media instead of finding out
    #[arg(long, value_name = "KIND")]
    pub(crate) media: Option<Media>,
}

#[derive(Args, Debug)]
pub(crate) struct Put {
    /// The file or directory to copy; - is standard input
    pub(crate) from: PathBuf,
    /// Where to; into it if it is a directory
    #[arg(value_name = "POOL:/PATH", value_parser = target())]
    pub(crate) to: Target,
    /// Copy a directory with everything in it
    #[arg(short)]
    pub(crate) recursive: bool,
    /// Copy all there is: directories, owners, modes, times, extended attributes, hard links, special files
    #[arg(short, long)]
    pub(crate) archive: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Get {
    /// The file or directory to copy
    #[arg(value_name = "POOL:/PATH", value_parser = target())]
    pub(crate) from: Target,
    /// Where to; into it if it is a directory; - is standard output
    pub(crate) to: PathBuf,
    /// Copy a directory with everything in it
    #[arg(short)]
    pub(crate) recursive: bool,
    /// Copy all there is: directories, owners, modes, times, extended attributes, hard links, special files
    #[arg(short, long)]
    pub(crate) archive: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Mkdir {
    /// The directories
    #[arg(value_name = "POOL:/PATH", value_parser = target(), required = true)]
    pub(crate) targets: Vec<Target>,
    /// Make the directories above as well; what exists is no error
    #[arg(short)]
    pub(crate) parents: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Rm {
    /// The files
    #[arg(value_name = "POOL:/PATH", value_parser = target(), required = true)]
    pub(crate) targets: Vec<Target>,
    /// Directories too, with everything in them
    #[arg(short)]
    pub(crate) recursive: bool,
    /// What does not exist is no error
    #[arg(short)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Mv {
    /// What to rename
    #[arg(value_name = "POOL:/PATH", value_parser = target())]
    pub(crate) from: Target,
    /// Its new name, in the same pool; into it if it is a directory
    #[arg(value_name = "POOL:/PATH", value_parser = target())]
    pub(crate) to: Target,
    /// Fail if the new name exists
    #[arg(short, long)]
    pub(crate) no_clobber: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Stat {
    /// The files
    #[arg(value_name = "POOL:/PATH", value_parser = target(), required = true)]
    pub(crate) targets: Vec<Target>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Du {
    /// The files and trees
    #[arg(value_name = "POOL:/PATH", value_parser = target(), required = true)]
    pub(crate) targets: Vec<Target>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Clone {
    /// The file or directory
    #[arg(value_name = "POOL:/PATH", value_parser = target())]
    pub(crate) from: Target,
    /// The new name, in the same pool; into it if it is a directory
    #[arg(value_name = "POOL:/PATH", value_parser = target())]
    pub(crate) to: Target,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Snapshot {
    #[command(subcommand)]
    pub(crate) what: SnapshotCommand,
}

/// What can be done about snapshots; they lie in the pool's directory /.snapshots.
#[derive(Subcommand, Debug)]
pub(crate) enum SnapshotCommand {
    /// Make a snapshot of everything in the pool
    Create(OneSnapshot),
    /// List the snapshots
    List(Snapshots),
    /// Take a snapshot away
    Delete(OneSnapshot),
    /// Say what has changed since a snapshot, or between two
    Diff(SnapshotDiff),
    /// Bring back everything as it was; what is there now is removed
    Restore(OneSnapshot),
}

#[derive(Args, Debug)]
pub(crate) struct OneSnapshot {
    /// The pool
    pub(crate) pool: PathBuf,
    /// Name of the snapshot
    pub(crate) name: OsString,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Snapshots {
    /// The pool
    pub(crate) pool: PathBuf,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct SnapshotDiff {
    /// The pool
    pub(crate) pool: PathBuf,
    /// The older snapshot
    pub(crate) name: OsString,
    /// The newer one; the pool as it is now if this is left out
    pub(crate) other: Option<OsString>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// For which shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// The directory
    pub(crate) dir: PathBuf,
}
