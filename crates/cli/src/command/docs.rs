//! `pagestone completions` and `pagestone man`: made from the command line's own description.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, Completions, Man};
use crate::exit::Exit;

pub(crate) fn completions(args: &Completions) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pagestone", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script).context("standard output")?;
    Ok(Exit::Ok)
}

pub(crate) fn man(args: &Man) -> Result<Exit> {
    fs::create_dir_all(&args.dir).with_context(|| format!("making {}", args.dir.display()))?;
    clap_mangen::generate_to(Cli::command(), &args.dir)
        .with_context(|| format!("writing manual pages into {}", args.dir.display()))?;
    Ok(Exit::Ok)
}
