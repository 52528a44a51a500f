//! `pagestone create` and `pagestone info`, and how every other subcommand opens its pool.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use pagestone::inode::Time;
use pagestone::{CreateOptions, Error, OpenOptions, PAGE_SIZE, Pool};
use pagestone_server::{Client, LocalStore, Store, StoreError};
use pmem::{Durability, Granularity, PersistMethod};

use crate::command::holder::{Holder, patiently};
use crate::exit::{self, Exit};
use crate::named;
use crate::options::{Common, Media};
use crate::output;
use crate::pool_error::PoolError;
use crate::size::{self, show};

/// Opens a pool, or says what is wrong with it and what can be done.
pub(crate) fn open(path: &Path, read_only: bool, media: Option<Media>) -> Result<Pool> {
    open_how(path, &OpenOptions::new().read_only(read_only).media(media.map(Into::into)))
}

/// As [`open`], with address space for the pool to grow to `room` bytes.
pub(crate) fn open_with_room(path: &Path, media: Option<Media>, room: u64) -> Result<Pool> {
    open_how(path, &OpenOptions::new().media(media.map(Into::into)).room(room))
}

/// As [`open`], with these options.
pub(crate) fn open_how(path: &Path, options: &OpenOptions) -> Result<Pool> {
    let path = &*named::pool(path);
    patiently(path, || Pool::open(path, options)).map_err(|e| match e {
        // Whatever its size: what begins otherwise is something else.
        Error::Size(size) if !pagestone::is_pool(path) => explain(path, Error::NotAPool(size)),
        other => explain(path, other),
    })
}

fn close<T>(path: &Path, pool: Pool, done: Result<T>) -> Result<T> {
    let closed = pool.close().with_context(|| format!("closing {}", path.display()));
    let done = done?;
    closed?;
    Ok(done)
}

/// Runs `work` on a pool wherever it is open: here, or, if a server has it in use, there. Here the pool is closed
/// afterwards; what closing says counts too. A server may end between the look at it and the first request: then `work`
/// begins again.
pub(crate) fn with<T>(
    path: &Path,
    read_only: bool,
    common: &Common,
    mut work: impl FnMut(&dyn Store) -> Result<T>,
) -> Result<T> {
    loop {
        match find(path, read_only, common.media)? {
            Place::Here(pool) => {
                let store = LocalStore::new(pool);
                let done = work(&store);
                return close(path, store.into_pool(), done);
            }
            Place::Server(client) => match work(&client) {
                Err(e) if has_ended(&client, &e) => {}
                done => return done,
            },
        }
    }
}

/// Whether what a server was asked for failed because it had ended before it was reached. Whoever looks for the pool again
/// waits for it.
pub(crate) fn has_ended(client: &Client, error: &anyhow::Error) -> bool {
    let unreached = |e: &StoreError| matches!(e, StoreError::Connection(_)) || e.problem().status == 503;
    !client.was_reached() && error.chain().any(|e| e.downcast_ref().is_some_and(unreached))
}

/// Where a pool is open.
pub(crate) enum Place {
    /// In this process, from now on.
    Here(Pool),
    /// In a server.
    Server(Client),
}

/// Opens a pool, or finds the server that has it in use.
pub(crate) fn find(path: &Path, read_only: bool, media: Option<Media>) -> Result<Place> {
    // A server that is going answers no more; one whose mount is out of sight does.
    if let Some(client) = server(path).ok().flatten() {
        return Ok(Place::Server(client));
    }
    let error = match open(path, read_only, media) {
        Ok(pool) => return Ok(Place::Here(pool)),
        Err(e) => e,
    };
    if error.downcast_ref().and_then(PoolError::holder).is_none() {
        return Err(error);
    }
    match server(path) {
        Ok(Some(client)) => Ok(Place::Server(client)),
        Ok(None) => Err(error),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(anyhow!("{}; only root and the owner of the pool may use it meanwhile", exit::message(&error)))
        }
        Err(e) => Err(anyhow!("{}; its server cannot be asked: {e}", exit::message(&error))),
    }
}

/// The server of a pool that is in use, if it has one.
pub(crate) fn server(path: &Path) -> io::Result<Option<Client>> {
    let path = &*named::pool(path);
    // Nobody: there is no server, and a socket that is there was left behind.
    if pmem::holder(path).is_some() { Client::find(path) } else { Ok(None) }
}

/// The library's error with the pool's path and, where there is one, the way out.
pub(crate) fn explain(path: &Path, error: Error) -> anyhow::Error {
    let hint = match &error {
        Error::NotAPool(_) => Some("make one with: pagestone create"),
        Error::TooNew(_) => Some("use the version that made it, or a newer one"),
        Error::Corrupt { .. } => Some("see what is damaged with: pagestone check"),
        Error::Lost(_) => Some("what lay there is named by: pagestone check --data"),
        Error::ReadOnly => Some("nothing can be changed there; mount --read-only shows what is in it"),
        Error::Exists => Some("a pool is there already; --force overwrites it"),
        Error::NotFound => Some(missing(path)),
        Error::Path { source, .. } | Error::System { source, .. } | Error::Media(source) => match source.kind() {
            io::ErrorKind::NotFound => Some(missing(path)),
            io::ErrorKind::PermissionDenied if path.exists() => Some("a pool is its owner's alone, mode 0600"),
            _ => None,
        },
        _ => None,
    };
    let hint = match &error {
        Error::InUse { pid, .. } => Holder::of(path, *pid).hint(),
        _ => hint.map(str::to_owned),
    };
    PoolError::new(path, error, hint).into()
}

fn missing(path: &Path) -> &'static str {
    if path.parent() == Some(Path::new("/dev")) {
        "no such device; of persistent memory, ndctl list tells what the kernel has found"
    } else if path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        "the directory does not exist"
    } else {
        "is the path right? pagestone create makes a new pool"
    }
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Where: a file (made if it is missing) or a DAX device
    pool: PathBuf,
    /// How large, for example 1G; a device or an existing file keeps its size if this is left out
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// Overwrite a pool that is there already
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn create(args: &Create) -> Result<Exit> {
    let options = CreateOptions::new().force(args.force).media(args.common.media.map(Into::into));
    let options = args.size.into_iter().fold(options, CreateOptions::size);
    let pool = patiently(&args.pool, || Pool::create(&args.pool, &options)).map_err(|e| match e {
        Error::NotFound if args.size.is_none() => {
            anyhow!("{}: nothing is there; give the size of the new pool with --size", args.pool.display())
        }
        other => explain(&args.pool, other),
    })?;
    let info = pool.info().map_err(|e| explain(&args.pool, e))?;
    pool.close().map_err(|e| explain(&args.pool, e))?;
    if args.common.json {
        output::json(&info)?;
    } else {
        output::line(&format!("{}: pool of {} made", args.pool.display(), show(info.size)))?;
        output::line(&format!("{}; {}", info.media.kind, info.media.promise))?;
    }
    Ok(Exit::Ok)
}

#[derive(Args, Debug)]
pub(crate) struct Info {
    /// The pool
    pool: PathBuf,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn info(args: &Info) -> Result<Exit> {
    let info = info_of(args)?;
    if args.common.json {
        output::json(&info)?;
        return Ok(Exit::Ok);
    }
    let used = info.space.pages.saturating_sub(info.space.free) * PAGE_SIZE;
    let per_tib = show(info.descriptor_bytes_per_tib);
    output::table(&[
        ("pool", args.pool.display().to_string()),
        ("identity", format!("{}, format {}", info.uuid, info.version)),
        ("made", format!("{} UTC", output::time(Time { sec: info.created, nsec: 0 }))),
        ("media", format!("{}{}", info.media.kind, if info.media.read_only { ", read-only" } else { "" })),
        ("durability", format!("{}: {}", durability(info.media.durability), info.media.promise)),
        ("granularity", granularity(info.media.granularity).into()),
        ("persist method", method(info.media.method).into()),
        ("capacity", format!("{} ({} bytes)", show(info.size), info.size)),
        ("used", format!("{}, {} inodes", show(used), info.space.inodes)),
        ("shared", format!("{} of it, by clones and snapshots", show(info.shared * PAGE_SIZE))),
        ("available", show(info.space.available * PAGE_SIZE)),
        ("lost", lost(info.lost).unwrap_or_else(|| "no page, as far as is known".into())),
        ("descriptors", format!("{} on media, {per_tib} for each TiB", show(info.descriptor_bytes))),
        ("memory", format!("{} of DRAM, whatever the capacity", show(info.dram_bytes))),
        ("journal", format!("{} lanes of {}", info.lanes, show(info.lane_bytes))),
        ("mappings", info.mappings.to_string()),
        ("replayed", format!("{} records at this open", info.replayed)),
    ])?;
    Ok(Exit::Ok)
}

/// What is known of media errors, if there are any.
pub(crate) fn lost(pages: u64) -> Option<String> {
    let all = if pages == 1 { "1 page".into() } else { format!("{pages} pages") };
    (pages > 0).then(|| format!("{all} by the media (pagestone check --data names what lay there)"))
}

/// Opened for changes if that is allowed: what the media promises, and how bytes are pushed out,
/// is only known of a pool that takes some.
fn info_of(args: &Info) -> Result<pagestone::Info> {
    let read = |read_only| {
        with(&args.pool, read_only, &args.common, |store| store.info().with_context(|| args.pool.display().to_string()))
    };
    read(false).or_else(|e| if e.downcast_ref().is_some_and(PoolError::is_refusal) { read(true) } else { Err(e) })
}

/// When a change is durable.
pub(crate) fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::AtFence => "every operation, when it returns",
        // What is not known here promises no more than that.
        _ => "at sync",
    }
}

fn granularity(granularity: Granularity) -> &'static str {
    match granularity {
        Granularity::Byte => "byte",
        Granularity::CacheLine => "cache line (64 bytes)",
        Granularity::Page => "page (4 KiB)",
        _ => "unknown to this version",
    }
}

fn method(method: PersistMethod) -> &'static str {
    match method {
        PersistMethod::NonTemporal => "non-temporal stores and sfence",
        PersistMethod::Clwb => "stores, clwb and sfence",
        PersistMethod::Clflushopt => "stores, clflushopt and sfence",
        PersistMethod::Clflush => "stores and clflush",
        PersistMethod::DcCvap => "stores, dc cvap and dsb",
        PersistMethod::None => "stores (nothing to flush)",
        PersistMethod::Fdatasync => "pwrite and fdatasync",
        _ => "unknown to this version",
    }
}
