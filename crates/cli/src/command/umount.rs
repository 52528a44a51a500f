//! `pagestone umount`: unmounts, and returns when everything is durable and the pool is free.
//!
//! umount(8) returns before the server is informed, unless it finds this command under the name
//! `umount.fuse.pagestone`, which it then runs instead.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use pagestone_mount::{mount_at, unmount, unmount_lazily};
use serde::Serialize;

use crate::command::holder::{Holder, Wait};
use crate::command::mount::sync_server;
use crate::exit::Exit;
use crate::options::Common;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct Umount {
    /// The directory
    dir: PathBuf,
    /// Take it out of sight at once, and do not wait: it ends with its last user
    #[arg(long)]
    lazy: bool,
    #[command(flatten)]
    common: Common,
}

/// How long the server may take to write what it holds, before we give up waiting. It goes on.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Serialize)]
struct Unmounted<'a> {
    unmounted: Cow<'a, str>,
    pool: Cow<'a, str>,
}

pub(crate) fn umount(args: &Umount) -> Result<Exit> {
    let shown = || args.dir.display().to_string();
    let dir = absolute(&args.dir).with_context(shown)?;
    let Some(mount) = mount_at(&dir) else { bail!("{}: not mounted", shown()) };
    if mount.kind != "fuse.pagestone" {
        bail!("{}: not a mount of a pool, but {} ({})", shown(), mount.source.display(), mount.kind);
    }
    let pool = mount.pool();
    let server = pmem::holder(&pool);
    match if args.lazy { unmount_lazily(&dir) } else { unmount(&dir) } {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            bail!("{}: in use by a program (--lazy takes it out of sight; it ends with its last user)", shown())
        }
        done => done.with_context(shown)?,
    }
    // A lazy one may take as long as a program likes.
    if let Some(server) = server.filter(|_| !args.lazy) {
        wait_for(server, &pool)?;
    }
    if args.common.json {
        output::json(&Unmounted { unmounted: dir.to_string_lossy(), pool: pool.to_string_lossy() })?;
    }
    Ok(Exit::Ok)
}

/// Waits until the server has released the pool, which it does when all is durable.
fn wait_for(server: u32, pool: &Path) -> Result<()> {
    let mut wait = Wait::new(PATIENCE);
    while pmem::holder(pool) == Some(server) {
        match Holder::of(pool, server) {
            holder if wait.goes_on(&holder) => thread::sleep(Duration::from_millis(2)),
            // Mounted on a second directory, or in another namespace, or by a server that goes on: unmounted is what was
            // asked for.
            holder => {
                sync_server(pool)?;
                if matches!(holder, Holder::Serving(_)) {
                    return Ok(());
                }
                let hint = holder.hint().map_or(String::new(), |hint| format!(" ({hint})"));
                eprintln!("pagestone: {} stays in use by process {server}{hint}", pool.display());
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The directory's path from the root, without asking the directory itself: its server may be dead.
fn absolute(dir: &Path) -> std::io::Result<PathBuf> {
    match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let path = parent.canonicalize()?.join(name);
            Ok(if path.is_symlink() { path.canonicalize()? } else { path })
        }
        _ => dir.canonicalize(),
    }
}
