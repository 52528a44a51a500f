//! `pagestone mount --background`: the server as a process of its own, from the moment the mount stands.
//!
//! ```text
//!   parent: start the server --> read its one line of JSON --> say so, exit 0
//!   server: own session          mounted: prints the line      serves until the unmount
//!                                failed: says why, ends  ----> parent passes that on
//! ```
//!
//! What the server says goes to memory, not to a terminal or a pipe that may be gone by then.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::args::Mount;
use crate::exit::Exit;
use crate::output;

/// Starts a server and returns when its mount stands.
pub(crate) fn start(args: &Mount) -> Result<Exit> {
    let said = memory().context("memory for the server's messages")?;
    let mut server = Command::new(std::env::current_exe().context("finding this program")?)
        .args(arguments(args))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(said.try_clone().context("starting the server")?))
        .spawn()
        .context("starting the server")?;
    let mut line = String::new();
    let stdout = server.stdout.take().context("starting the server")?;
    BufReader::new(stdout).read_line(&mut line).context("waiting for the server")?;
    pass_on(said).context("standard error")?;
    if line.is_empty() {
        let status = server.wait().context("waiting for the server")?;
        return Ok(status.code().map_or(Exit::Failed, Exit::of_code));
    }
    if args.common.json {
        output::line(line.trim_end())?;
    } else if !args.quiet {
        let (pool, dir) = (args.pool.display(), args.dir.display());
        output::line(&format!("{pool}: mounted on {dir} by process {} (stop: pagestone umount {dir})", server.id()))?;
    }
    Ok(Exit::Ok)
}

fn memory() -> io::Result<File> {
    let memory: OwnedFd = rustix::fs::memfd_create("messages", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(memory))
}

fn pass_on(mut said: File) -> io::Result<()> {
    let mut text = String::new();
    // The server shares the offset, and goes on behind what is there.
    said.rewind()?;
    said.read_to_string(&mut text)?;
    eprint!("{text}");
    Ok(())
}

/// The server's command line.
fn arguments(args: &Mount) -> Vec<OsString> {
    let mut line: Vec<OsString> = ["mount", "--detached"].map(OsString::from).to_vec();
    let flags = [
        (args.read_only, "--read-only"),
        (args.allow_other, "--allow-other"),
        (args.no_exec, "--no-exec"),
        (args.common.json, "--json"),
    ];
    for (given, flag) in flags {
        line.extend(given.then(|| flag.into()));
    }
    let media = args.common.media.and_then(|media| media.to_possible_value()).map(|media| media.get_name().to_owned());
    let values = [
        ("create", args.create.map(|size| size.to_string())),
        ("threads", args.threads.map(|threads| threads.to_string())),
        ("pin", args.pin.map(|pin| pin.to_string())),
        ("media", media),
    ];
    line.extend(values.into_iter().filter_map(|(name, value)| Some(format!("--{name}={}", value?).into())));
    line.extend(["--".into(), args.pool.clone().into(), args.dir.clone().into()]);
    line
}
