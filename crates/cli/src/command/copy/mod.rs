//! `pagestone cat`, `put` and `get`: bytes in and out of a pool.
//!
//! ```text
//!   put   file, directory (-r, -a) or standard input  ->  POOL:/path      holes stay holes
//!   get   POOL:/path  ->  file, directory (-r, -a) or standard output
//! ```
//!
//! Both ways a copy is made under a name of its own and takes its place with a rename: a copy that
//! fails leaves what was there, and nothing is written through a symbolic link. [`local`] knows the
//! system's side of that.

mod get;
mod local;
mod put;
mod tree;

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::command::pool;
use crate::exit::Exit;
use crate::options::{Common, Media};
use crate::output;
use crate::progress::Progress;
use crate::target::{self, Target};

pub(crate) use get::{Get, get};
pub(crate) use put::{Put, put};

/// Bytes moved at a time.
const STEP: usize = 1 << 20;

// How much of a tree `put` and `get` copy. No `///` here: the help would show it.
#[derive(Args, Debug)]
struct How {
    /// Copy a directory with everything in it
    #[arg(short)]
    recursive: bool,
    /// Copy all there is: directories, owners, modes, times, extended attributes, hard links, special files
    #[arg(short, long)]
    archive: bool,
}

/// What was copied, and what was not.
#[derive(Default, Serialize)]
struct Copied {
    files: u64,
    bytes: u64,
    left_out: LeftOut,
}

/// What was not copied, by how many files it concerns.
#[derive(Default, Serialize)]
struct LeftOut {
    /// Neither file, directory nor symbolic link; or not to be had.
    whole: u64,
    owners: u64,
    set_id: u64,
    xattrs: u64,
    links: u64,
}

impl LeftOut {
    /// What a reader has to know of it, if anything.
    fn say(&self) -> Option<String> {
        let parts = [
            (self.owners, "owners"),
            (self.set_id, "set-id bits"),
            (self.xattrs, "extended attributes"),
            (self.links, "hard links (each name has a copy of its own)"),
        ];
        let list: Vec<String> =
            parts.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{what} of {n} files")).collect();
        (!list.is_empty()).then(|| list.join(", "))
    }

    fn any(&self) -> bool {
        self.whole > 0 || self.say().is_some()
    }
}

/// Ends a copy: says what was left out. A file that is missing is a failure; so is all else if the user
/// has asked for all.
fn report(json: bool, archive: bool, copied: &Copied) -> Result<Exit> {
    if json {
        output::json(copied)?;
    }
    if let Some(what) = copied.left_out.say() {
        let why = if archive { "could not be copied" } else { "not copied without -a" };
        eprintln!("pagestone: {why}: {what}");
    }
    let failed = if archive { copied.left_out.any() } else { copied.left_out.whole > 0 };
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

#[derive(Args, Debug)]
pub(crate) struct Cat {
    /// The files
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser(), required = true)]
    targets: Vec<Target>,
    /// Treat the pool as this kind of media instead of finding out
    #[arg(long, value_name = "KIND")]
    media: Option<Media>,
}

pub(crate) fn cat(args: &Cat) -> Result<Exit> {
    let common = Common { media: args.media, json: false };
    for target in &args.targets {
        pool::with(&target.pool, true, &common, |store| {
            let attr = store.entry(&target.path).with_context(|| target.show())?.attr;
            let read = |offset| store.read(attr.ino, offset, STEP);
            copy_out(read, attr.size, &mut io::stdout().lock(), target, "standard output").map(|_| ())
        })?;
    }
    Ok(Exit::Ok)
}

/// Everything that `read` gives, from the start on, to a stream.
fn copy_out<E: std::error::Error + Send + Sync + 'static>(
    mut read: impl FnMut(u64) -> Result<Vec<u8>, E>,
    total: u64,
    out: &mut dyn Write,
    from: &Target,
    to: &str,
) -> Result<u64> {
    let mut bar = Progress::bytes(&from.show(), total);
    let mut at = 0;
    loop {
        let bytes = read(at).with_context(|| from.show())?;
        if bytes.is_empty() {
            out.flush().with_context(|| to.to_owned())?;
            return Ok(at);
        }
        out.write_all(&bytes).with_context(|| to.to_owned())?;
        at += bytes.len() as u64;
        bar.add(bytes.len() as u64);
    }
}
