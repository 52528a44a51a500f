//! `pagestone completions` and `pagestone man`: made from the command line's own description.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};

use crate::exit::Exit;

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// For which shell
    shell: clap_complete::Shell,
}

pub(crate) fn completions(args: &Completions, mut line: Command) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut line, "pagestone", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script).context("standard output")?;
    Ok(Exit::Ok)
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// The directory
    dir: PathBuf,
}

pub(crate) fn man(args: &Man, line: Command) -> Result<Exit> {
    fs::create_dir_all(&args.dir).with_context(|| format!("making {}", args.dir.display()))?;
    clap_mangen::generate_to(line, &args.dir)
        .with_context(|| format!("writing manual pages into {}", args.dir.display()))?;
    Ok(Exit::Ok)
}
