//! The `pagestone` command: reads the command line, runs one subcommand, and turns what went
//! wrong into one line and an exit code.
//!
//! ```text
//!   args         the list of subcommands           target       POOL:/path
//!   command/     one file for each subcommand      size         1G, 64KiB ...
//!   options      --media, --json                   output       tables and JSON
//!   columns      lists: -H, -p, -o, -s
//!   exit         what the codes mean               progress     bars, on a terminal only
//!   pool_error   errors of a pool, with a hint     helper       called by mount(8)
//!   logging      what servers say of themselves
//!   named        a pool by the place of its mount
//! ```

mod args;
mod columns;
mod command;
mod exit;
mod helper;
mod logging;
mod named;
mod options;
mod output;
mod pool_error;
mod progress;
mod size;
mod target;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use args::Cli;
use exit::Exit;

fn main() -> ExitCode {
    // A limit on the length of files is an error of the operation then, and not the end of a server. It fails for a signal
    // that does not exist only.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    let given: Vec<OsString> = std::env::args_os().collect();
    let json = given.iter().skip(1).take_while(|word| *word != "--").any(|word| word == "--json");
    let line = match helper::translate(given) {
        Ok(line) => line,
        Err(e) => return failed(&e.to_string(), Exit::Usage, json),
    };
    let cli = match Cli::try_parse_from(line) {
        Ok(cli) => cli,
        Err(e) => return usage(&e, json),
    };
    match cli.command.run() {
        Ok(exit) => exit.into(),
        // The reader of a pipe has seen enough (`pagestone cat ... | head`).
        Err(e) if exit::is_broken_pipe(&e) => Exit::Ok.into(),
        Err(e) => failed(&exit::message(&e), exit::of(&e), json),
    }
}

fn failed(message: &str, exit: Exit, json: bool) -> ExitCode {
    output::failure(message, exit, json);
    if let Exit::Interrupted(signal) = exit {
        command::end_by(signal);
    }
    exit.into()
}

/// Help and version go to standard output and are no error; everything else is wrong usage.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if !error.use_stderr() {
        // There is nothing to be done about a closed terminal.
        let _ = error.print();
        return Exit::Ok.into();
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // "to pass '-x' as a value, use '-- -x'": hardly ever what was meant by an option that is not there.
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("tip: to pass")).collect();
    let text = lines.join("\n").replace("\n\n\n", "\n\n");
    if json {
        return failed(&text, Exit::Usage, json);
    }
    // Of several lines, and made from the command line alone.
    eprintln!("pagestone: {text}");
    Exit::Usage.into()
}
