//! The transport over `/dev/fuse`: mounts, starts the server threads, and agrees with the kernel
//! on what each side does.

mod adapter;
mod convert;
mod kernel_cache;
mod once;
mod requests;
mod take_over;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use fuser::{Config, InitFlags, KernelConfig, MountOption, Session, SessionACL};

use crate::mountpoint::{MountError, can_mount};
use crate::statistics::Statistics;
use crate::thread_placement::{ThreadPlacement, usable};
use crate::transport::{FileSystem, Mounted, Options, PageCache, Survival, Transport};
use adapter::Adapter;
use kernel_cache::FuseCache;
use once::{MAX_THREADS, Once};

/// Requests that the kernel may have under way by itself (asynchronous direct I/O, write-back of
/// mapped pages).
const BACKGROUND: u16 = 64;

/// What is asked of the kernel, as far as it has it. Not asked for, on purpose:
/// - `HANDLE_KILLPRIV`, `ATOMIC_O_TRUNC`: without them the kernel takes set-id bits away by itself
///   when a file is cut or changes its owner (with `HANDLE_KILLPRIV_V2`, which a cached mount needs, `privileges.rs` does);
/// - `DONT_MASK`, `POSIX_ACL`: the kernel applies the umask;
/// - `POSIX_LOCKS`, `FLOCK_LOCKS`: the kernel keeps locks, all users are on this machine.
const WANTED: [InitFlags; 11] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    // File handles (NFS, backup) outlast what the kernel has cached: node numbers are never used again.
    InitFlags::FUSE_EXPORT_SUPPORT,
    // Requests that a process has read and not answered are sent again to the one that takes over.
    InitFlags::FUSE_HAS_RESEND,
];

fn agree(config: &mut KernelConfig, page_cache: PageCache) {
    let cached: &[InitFlags] = match page_cache {
        PageCache::Off => &[],
        // Without it the kernel asks for `security.capability` before each write.
        PageCache::Read => &[InitFlags::FUSE_HANDLE_KILLPRIV_V2],
        PageCache::Writeback => &[InitFlags::FUSE_HANDLE_KILLPRIV_V2, InitFlags::FUSE_WRITEBACK_CACHE],
    };
    for &flag in WANTED.iter().chain(cached) {
        // An older kernel without one of these is slower, or cannot map, but works.
        let _ = config.add_capabilities(flag);
    }
    let _ = config.set_max_background(BACKGROUND);
}

/// FUSE through `/dev/fuse`, with one server thread for each processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct FuseTransport;

impl Transport for FuseTransport {
    fn serve<F: FileSystem>(
        &self,
        fs: Arc<F>,
        dir: &Path,
        options: &Options,
        mut survival: Option<Survival>,
    ) -> Result<Mounted, MountError> {
        // Whoever takes over has mounted already. A search for fusermount could ask this very mount.
        if survival.as_ref().is_none_or(|survival| survival.connection.is_none()) {
            can_mount()?;
            options.permitted()?;
        }
        let processors = usable().len().max(1);
        let most = if survival.is_some() { MAX_THREADS } else { usize::MAX };
        let threads = options.threads.unwrap_or(processors.max(2)).clamp(1, most);
        let pin = options.pin.unwrap_or(processors >= 2);
        let statistics = Arc::new(Statistics::new(threads));
        let (once, survives) = (survival.as_mut().map(Once::new), survival.is_some());
        let adapter = Adapter::new(fs, pin.then(|| ThreadPlacement::new(threads)), options, once, statistics.clone());
        let (notifier, resends) = (adapter.notifier(), adapter.resends.clone());
        let config = config(options, threads);
        let (dir, session) = match survival.and_then(|survival| survival.connection) {
            // A look at the directory would ask this very mount.
            Some(connection) => (dir.to_path_buf(), take_over::session(adapter, connection, config)),
            None => {
                let dir = dir.canonicalize().map_err(|source| MountError::Dir { dir: dir.to_path_buf(), source })?;
                let session = Session::new(adapter, &dir, &config);
                (dir, session)
            }
        };
        let failed = |source| MountError::Mount { dir: dir.clone(), source };
        let session = session.map_err(failed)?;
        // It is empty: this is the one place that fills it.
        let _ = notifier.set(session.notifier());
        let cache = Arc::new(FuseCache(session.notifier()));
        let connection = survives && resends.load(Ordering::Acquire);
        let connection = connection.then(|| session.as_fd().try_clone_to_owned()).transpose().map_err(failed)?;
        let server = thread::Builder::new().name("mount".into()).spawn(move || session.run()).map_err(failed)?;
        Ok(Mounted::new(dir, threads, cache, connection, statistics, server))
    }
}

fn config(options: &Options, threads: usize) -> Config {
    // A comma would end the option in fusermount's eyes.
    let source = options.source.replace([',', '\\'], "_");
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source),
        // The crate tells its own `Subtype` to fusermount only; so it reaches mount(2) as well.
        MountOption::CUSTOM("subtype=pagestone".into()),
        MountOption::DefaultPermissions,
        // What a pool brings along from elsewhere gets no privileges here, but on demand.
        if options.suid { MountOption::Suid } else { MountOption::NoSuid },
        if options.dev { MountOption::Dev } else { MountOption::NoDev },
    ];
    if options.read_only {
        config.mount_options.push(MountOption::RO);
    }
    if options.no_exec {
        config.mount_options.push(MountOption::NoExec);
    }
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(threads);
    // One descriptor for all threads, so that one is all that another process needs to take over.
    config.clone_fd = false;
    config
}
