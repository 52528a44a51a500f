//! The `pagestone` command: reads the command line, runs one subcommand, and turns what went
//! wrong into one line and an exit code.
//!
//! ```text
//!   args       what can be said                  size       1G, 64KiB ...
//!   command/   one file for each subcommand      target     POOL:/path
//!   exit       what the codes mean               progress   bars, on a terminal only
//! ```

mod args;
mod command;
mod exit;
mod output;
mod progress;
mod size;
mod target;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use exit::Exit;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    match command::run(cli.command) {
        Ok(exit) => exit.into(),
        // The reader of a pipe has seen enough (`pagestone cat ... | head`).
        Err(e) if exit::is_broken_pipe(&e) => Exit::Ok.into(),
        Err(e) => {
            eprintln!("pagestone: {}", exit::message(&e));
            exit::of(&e).into()
        }
    }
}

/// Help and version go to standard output and are no error; everything else is wrong usage.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // There is nothing to be done about a closed terminal.
        let _ = error.print();
        return Exit::Ok.into();
    }
    let text = error.to_string();
    eprint!("pagestone: {}", text.strip_prefix("error: ").unwrap_or(&text));
    Exit::Usage.into()
}
