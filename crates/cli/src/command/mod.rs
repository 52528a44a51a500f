//! The subcommands, one file each (small ones share).

mod background;
pub(crate) mod bench;
mod check;
mod clones;
mod copy;
mod docs;
mod files;
mod holder;
mod list;
mod mount;
mod pool;
mod signals;
mod space;
mod umount;

use anyhow::Result;

pub(crate) use pool::PoolError;

use crate::args::Command;
use crate::exit::Exit;

/// Runs one subcommand to its end.
pub(crate) fn run(command: Command) -> Result<Exit> {
    match command {
        Command::Create(args) => pool::create(&args),
        Command::Info(args) => pool::info(&args),
        Command::Check(args) => check::check(&args),
        Command::Mount(args) => mount::mount(&args),
        Command::Umount(args) => umount::umount(&args),
        Command::Ls(args) => list::ls(&args),
        Command::Stat(args) => list::stat(&args),
        Command::Cat(args) => copy::cat(&args),
        Command::Put(args) => copy::put(&args),
        Command::Get(args) => copy::get(&args),
        Command::Mkdir(args) => files::mkdir(&args),
        Command::Rm(args) => files::rm(&args),
        Command::Mv(args) => files::mv(&args),
        Command::Du(args) => space::du(&args),
        Command::Clone(args) => clones::clone(&args),
        Command::Snapshot(args) => clones::snapshot(&args.what),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => docs::completions(&args),
        Command::Man(args) => docs::man(&args),
    }
}
