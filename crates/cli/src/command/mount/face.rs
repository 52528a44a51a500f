//! The mount as a face of a server: new, or taken over from a process that has died.
//!
//! ```text
//!   MountFace::begin       table of handles -> mount           kept: table, options, connection
//!   MountFace::take_over   what is kept     -> the same mount
//!        end_on            unmount, out of sight if it is in use
//! ```

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use pagestone::{Info, Pool};
use pagestone_mount::{
    FuseTransport, HandleTable, Mounted, NodeId, Options, PoolFs, Survival, Transport, unmount, unmount_lazily,
};
use pagestone_server::supervisor::{Keeper, Worker};
use rustix::fs::MemfdFlags;

use super::{Cache, Mount, Words, options, parse_words, words};
use crate::command::pool::explain;
use crate::command::supervised::lasting;

/// Names of what the supervisor keeps of a mount.
const CONNECTION: &str = "connection";
const HANDLES: &str = "handles";
const OPTIONS: &str = "mount";

/// A mount that this process serves.
pub(crate) struct MountFace {
    pub(crate) served: Mounted,
    /// The descriptor of the table of handles; `None` where there is no memory for one.
    table: Option<OwnedFd>,
}

/// What a process has of those before it.
pub(crate) struct Inherited {
    connection: OwnedFd,
    table: HandleTable,
    /// How the mount was asked for; `None` if an older version keeps it.
    pub(crate) args: Option<Mount>,
    /// The number of the filesystem.
    device: Option<String>,
}

impl Inherited {
    /// `None` if there is no mount to be taken over.
    pub(crate) fn take(worker: &mut Worker) -> Result<Option<Inherited>> {
        let Some(connection) = worker.take(CONNECTION) else { return Ok(None) };
        let table = worker.take(HANDLES).context("the table of handles is missing")?;
        let table = HandleTable::take_over(table).context("the table of handles")?;
        let kept = worker.take(OPTIONS).map(from_memory).transpose().context("the options of the mount")?;
        let (device, args) = kept.unzip();
        Ok(Some(Inherited { connection, table, args, device }))
    }

    /// How many processes have served the mount before this one.
    pub(crate) fn takeovers(&self) -> u32 {
        self.table.generation()
    }
}

impl MountFace {
    /// Mounts the pool.
    pub(crate) fn begin(args: &Mount, pool: &Pool, info: &Info) -> Result<MountFace> {
        let options = &options_for(args, info);
        let table = match HandleTable::new() {
            Ok(table) => table,
            Err(e) => {
                say_mortal(&args.dir, &format!("no memory for the table of open files: {e}"));
                let fs = Arc::new(PoolFs::new(pool.clone()));
                return Ok(MountFace { served: FuseTransport.serve(fs, &args.dir, options, None)?, table: None });
            }
        };
        let (client, generation) = (table.client(), table.generation());
        let survival = Survival { client, generation, done: HashMap::new(), connection: None };
        let kept = table.as_fd().try_clone_to_owned()?;
        let fs = Arc::new(PoolFs::with_table(pool.clone(), table));
        let served = FuseTransport.serve(fs, &args.dir, options, Some(survival))?;
        Ok(MountFace { served, table: Some(kept) })
    }

    /// Serves a mount in place of a process that has died. The pool was opened without freeing what has no name.
    pub(crate) fn take_over(inherited: Inherited, args: &Mount, pool: &Pool, info: &Info) -> Result<MountFace> {
        let Inherited { connection, table, device, .. } = inherited;
        let done = pool.done_requests(table.client()).map_err(|e| explain(&args.pool, e))?;
        let done = done.iter().map(|done| (done.request.number, done.made.map(|ino| NodeId(ino.0)))).collect();
        let (client, generation) = (table.client(), table.generation());
        let survival = Survival { client, generation, done, connection: Some(connection) };
        let kept = table.as_fd().try_clone_to_owned()?;
        let fs = Arc::new(PoolFs::take_over(pool.clone(), table));
        let mut served = FuseTransport.serve(fs, &args.dir, &options_for(args, info), Some(survival))?;
        if let Some(device) = device {
            served.set_device(device);
        }
        Ok(MountFace { served, table: Some(kept) })
    }

    /// Gives the supervisor what another process needs to take over. Returns whether one can.
    pub(crate) fn keep(&mut self, args: &Mount, keeper: &Keeper) -> Result<bool> {
        let Some(table) = self.table.take() else { return Ok(false) };
        let Some(connection) = self.served.take_connection() else {
            say_mortal(&args.dir, "this kernel cannot send requests again; Linux 6.9 can");
            return Ok(false);
        };
        keeper.keep(HANDLES, table)?;
        let line = words(args, Words::default(), &lasting(&args.pool)?, self.served.dir());
        keeper.keep(OPTIONS, in_memory(self.served.device(), &line)?)?;
        // Last: it is what tells a worker that it takes over.
        keeper.keep(CONNECTION, connection)?;
        Ok(true)
    }
}

/// Lets the supervisor close what it keeps of a mount that has ended.
pub(crate) fn forget(keeper: &Keeper) -> Result<()> {
    [CONNECTION, HANDLES, OPTIONS].iter().try_for_each(|name| keeper.forget(name)).context("the supervisor")
}

fn options_for(args: &Mount, info: &Info) -> Options {
    let page_cache = args.cache.unwrap_or(Cache::of_media(info.media.kind)).into();
    Options { page_cache, ..options(args) }
}

/// The number of a filesystem and a command line, in memory that another process can read.
fn in_memory(device: &str, line: &[OsString]) -> Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("pagestone-mount", MemfdFlags::CLOEXEC)?);
    file.write_all(&[device.as_bytes(), line.join(OsStr::new("\0")).as_bytes()].join(&0))?;
    Ok(file.into())
}

/// What [`in_memory`] has written.
fn from_memory(memory: OwnedFd) -> Result<(String, Mount)> {
    let (mut file, mut kept) = (File::from(memory), Vec::new());
    file.rewind()?;
    file.read_to_end(&mut kept)?;
    let mut words = kept.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    let device = words.next().unwrap_or_default().to_string_lossy().into_owned();
    Ok((device, parse_words(words.collect())?))
}

/// Says that the mount ends with this process, should that die.
pub(crate) fn say_mortal(dir: &Path, why: &str) {
    tracing::warn!(mount = %dir.display(), "a crash of the server will end this mount ({why})");
}

/// Unmounts, on every directory that the mount can be seen on.
pub(crate) fn end_on(dirs: &[PathBuf]) {
    dirs.iter().rev().for_each(|dir| end_one(dir));
}

fn end_one(dir: &Path) {
    let Err(e) = unmount(dir) else { return };
    if e.raw_os_error() == Some(libc::EBUSY) {
        let text = "is in use; it is out of sight now and ends with its last user (Ctrl-C again: at once)";
        tracing::warn!(mount = %dir.display(), "{text}");
    }
    if let Err(e) = unmount_lazily(dir) {
        tracing::error!(mount = %dir.display(), "unmounting it: {e}");
    }
}
