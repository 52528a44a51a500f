//! The top of the command line: the list of subcommands. Each one's arguments stand in its file in [`command`].
//! Names and meanings are an interface: scripts use them, the man pages and the shell completions are made from them.
//!
//! [`command`]: crate::command

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::command::{
    bench, check, clones, copy, df, docs, doctor, files, history, iostat, list, mount, pool, resize, restart, scrub,
    serve, space, status, top, transfer, umount,
};
use crate::exit::{self, Exit};

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
    Create(pool::Create),
    /// Show what a pool lies on, what that promises, and how full it is
    Info(pool::Info),
    /// Show who has a pool in use, how it does, and what to do about what is wrong
    Status(status::Status),
    /// Show how many operations programs do with a pool in use, and how long they take
    Iostat(iostat::Iostat),
    /// Show the same live, with capacity and health
    Top(top::Top),
    /// Prove that nothing in a pool is lost or damaged
    Check(check::Check),
    /// Read everything in a pool, to find what the media have lost, also while it is in use
    Scrub(scrub::Scrub),
    /// Show what administrators have done to a pool
    History(history::History),
    /// Mount a pool on a directory, until Ctrl-C or umount
    Mount(mount::Mount),
    /// Have a pool open for the other commands, until Ctrl-C
    Serve(serve::Serve),
    /// Let a new process take over from the one that serves a pool; mounts and open files stay
    Restart(restart::Restart),
    /// Unmount a pool; returns when everything is durable and the pool is free
    Umount(umount::Umount),
    /// Give a pool more space, also while it is mounted
    Grow(resize::Grow),
    /// Make a pool smaller, also while it is mounted; moves what lies behind its new end
    Shrink(resize::Shrink),
    /// List a directory in a pool
    Ls(list::Ls),
    /// Write files in a pool to standard output
    Cat(copy::Cat),
    /// Copy files into a pool
    Put(copy::Put),
    /// Copy files out of a pool
    Get(copy::Get),
    /// Copy a whole file or block device into a pool, past the page cache
    Import(transfer::Import),
    /// Copy a file of a pool to a file or block device, past the page cache
    Export(transfer::Export),
    /// Make directories in a pool
    Mkdir(files::Mkdir),
    /// Remove files and directories in a pool
    Rm(files::Rm),
    /// Rename a file or directory in a pool
    Mv(files::Mv),
    /// Show all that is known about files in a pool
    Stat(list::Stat),
    /// Show how much space files and trees take, and how much of it they share
    Du(space::Du),
    /// Show how full pools are
    Df(df::Df),
    /// Make a second file or tree that shares its storage with the first until one is written
    Clone(clones::Clone),
    /// Keep, compare and bring back states of a whole pool
    Snapshot(clones::Snapshot),
    /// Measure this machine: the library, the mount, and what they are compared with
    Bench(bench::Bench),
    /// Show what this kernel and this user can do, and what to change
    Doctor(doctor::Doctor),
    /// Print completions for a shell
    Completions(docs::Completions),
    /// Write the manual pages into a directory
    Man(docs::Man),
}

impl Command {
    /// Runs the subcommand to its end.
    pub(crate) fn run(self) -> Result<Exit> {
        match self {
            Command::Create(args) => pool::create(&args),
            Command::Info(args) => pool::info(&args),
            Command::Status(args) => status::status(&args),
            Command::Iostat(args) => iostat::iostat(&args),
            Command::Top(args) => top::top(&args),
            Command::Check(args) => check::check(&args),
            Command::Scrub(args) => scrub::scrub(&args),
            Command::Import(args) => transfer::import(&args),
            Command::Export(args) => transfer::export(&args),
            Command::History(args) => history::history(&args),
            Command::Mount(args) => mount::mount(&args),
            Command::Serve(args) => serve::serve(&args),
            Command::Restart(args) => restart::restart(&args),
            Command::Umount(args) => umount::umount(&args),
            Command::Grow(args) => resize::grow(&args),
            Command::Shrink(args) => resize::shrink(&args),
            Command::Ls(args) => list::ls(&args),
            Command::Stat(args) => list::stat(&args),
            Command::Cat(args) => copy::cat(&args),
            Command::Put(args) => copy::put(&args),
            Command::Get(args) => copy::get(&args),
            Command::Mkdir(args) => files::mkdir(&args),
            Command::Rm(args) => files::rm(&args),
            Command::Mv(args) => files::mv(&args),
            Command::Du(args) => space::du(&args),
            Command::Df(args) => df::df(&args),
            Command::Clone(args) => clones::clone(&args),
            Command::Snapshot(args) => clones::snapshot(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Doctor(args) => doctor::doctor(&args),
            Command::Completions(args) => docs::completions(&args, Cli::command()),
            Command::Man(args) => docs::man(&args, Cli::command()),
        }
    }
}
