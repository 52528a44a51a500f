//! The transport over `/dev/fuse`: mounts, starts the server threads, and agrees with the kernel
//! on what each side does.

mod adapter;
mod convert;
mod requests;

use std::path::Path;
use std::sync::Arc;
use std::thread;

use fuser::{Config, InitFlags, KernelConfig, MountOption, Session, SessionACL};

use crate::mountpoint::{MountError, can_mount};
use crate::thread_placement::{ThreadPlacement, usable};
use crate::transport::{FileSystem, Mounted, Options, Transport};
use adapter::Adapter;

/// Requests that the kernel may have under way by itself (asynchronous direct I/O, write-back of
/// mapped pages).
const BACKGROUND: u16 = 64;

/// What is asked of the kernel, as far as it has it. Not asked for, on purpose:
/// - write-back and data caching: the pool *is* memory;
/// - `HANDLE_KILLPRIV`, `ATOMIC_O_TRUNC`: without them the kernel takes set-id bits away by itself
///   when a file is cut or changes its owner;
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
    // The pool is resized by ioctls on the root directory.
    InitFlags::FUSE_HAS_IOCTL_DIR,
];

fn agree(config: &mut KernelConfig) {
    for flag in WANTED {
        // An older kernel without one of these is slower, or cannot map, but works.
        let _ = config.add_capabilities(flag);
    }
    let _ = config.set_max_background(BACKGROUND);
}

/// FUSE through `/dev/fuse`, with one server thread for each processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct FuseTransport;

impl Transport for FuseTransport {
    fn serve<F: FileSystem>(&self, fs: Arc<F>, dir: &Path, options: &Options) -> Result<Mounted, MountError> {
        can_mount()?;
        options.permitted()?;
        let dir = dir.canonicalize().map_err(|source| MountError::Dir { dir: dir.to_path_buf(), source })?;
        let processors = usable().len().max(1);
        let threads = options.threads.unwrap_or(processors.max(2)).max(1);
        let pin = options.pin.unwrap_or(processors >= 2);
        let adapter = Adapter::new(fs, pin.then(|| ThreadPlacement::new(threads)), options.cache);
        let notifier = adapter.notifier();
        let session = Session::new(adapter, &dir, &config(options, threads))
            .map_err(|source| MountError::Mount { dir: dir.clone(), source })?;
        // It is empty: this is the one place that fills it.
        let _ = notifier.set(session.notifier());
        let server = thread::Builder::new().name("mount".into()).spawn(move || session.run());
        let server = server.map_err(|source| MountError::Mount { dir: dir.clone(), source })?;
        Ok(Mounted::new(dir, threads, server))
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
    config.clone_fd = true;
    config
}
