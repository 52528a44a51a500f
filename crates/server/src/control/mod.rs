//! The control face: HTTP and JSON on a Unix socket.
//!
//! ```text
//!   accept --> who is it? --> route --> a thread for blocking work --> LocalStore --> JSON, or a problem document
//!              root, the server's user, the pool's owner; nobody else
//! ```
//!
//! The socket has mode 0600 and belongs to the pool's owner. The runtime has one thread; what may block goes to others.

mod http;
mod limits;
mod peer;
mod request;
mod routes;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::Router;
use pagestone::Pool;
use pagestone_mount::Mounted;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::address;
use crate::api::{Face, Name, NewMount};
use crate::job::Jobs;
use crate::observer::MountObserver;
use crate::{LocalStore, Problem};
pub use http::listen as listen_http;
use limits::{Limited, Requests};
pub use routes::openapi;

/// How long requests under way are waited for at the end.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// What the routes share.
pub(crate) struct Shared {
    /// `None` once the face has ended.
    pub(crate) store: Mutex<Option<LocalStore>>,
    pub(crate) pool: PathBuf,
    pub(crate) begun: Instant,
    pub(crate) faces: Mutex<Vec<Face>>,
    pub(crate) counted: Mutex<Vec<(Face, Arc<pagestone_mount::Statistics>)>>,
    pub(crate) jobs: Jobs,
    /// Users who may connect.
    pub(crate) users: [u32; 3],
    pub(crate) server: AtomicU32,
    pub(crate) takeovers: AtomicU32,
    pub(crate) restart: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    pub(crate) mount: Mutex<Option<Arc<MountPool>>>,
    pub(crate) mounted_on: Mutex<Option<MountedOn>>,
}

/// Where the mount can be seen.
pub(crate) struct MountedOn {
    /// The number of the filesystem.
    pub(crate) device: String,
    pub(crate) dirs: Box<Directories>,
}

type Directories = dyn Fn() -> Vec<PathBuf> + Send + Sync;

/// Mounts the pool.
type MountPool = dyn Fn(&NewMount) -> Result<(), Problem> + Send + Sync;

/// The control face of a pool, until [`Control::end`].
pub struct Control {
    shared: Arc<Shared>,
    socket: PathBuf,
    /// Device and inode of the socket.
    identity: Option<(u64, u64)>,
    listener: OwnedFd,
    runtime: Handle,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Control {
    /// Listens for requests on the pool at `path`, which is open as `pool`.
    ///
    /// # Errors
    /// Where the socket cannot be made: the system's.
    pub fn start(path: &Path, pool: Pool) -> io::Result<Control> {
        Control::start_on(path, pool, None)
    }

    /// As [`Control::start`], on a socket that listens already, which is [`Control::listener`] of a process before this one.
    ///
    /// # Errors
    /// As [`Control::start`].
    pub fn start_on(path: &Path, pool: Pool, listener: Option<OwnedFd>) -> io::Result<Control> {
        let (socket, owner) = address::to_listen_on(path)?;
        let users = [0, rustix::process::geteuid().as_raw(), owner];
        // A file that has lost its name has none to be shown.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let face = Face { kind: "control".into(), at: Name::from(socket.as_os_str().as_encoded_bytes()), device: None };
        let shared = Arc::new(Shared {
            store: Mutex::new(Some(LocalStore::new(pool).at(&path))),
            pool: path,
            begun: Instant::now(),
            faces: Mutex::new(vec![face]),
            counted: Mutex::default(),
            jobs: Jobs::default(),
            users,
            server: AtomicU32::new(std::process::id()),
            takeovers: AtomicU32::new(0),
            restart: Mutex::default(),
            mount: Mutex::default(),
            mounted_on: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(16)
            .thread_name("control")
            .build()?;
        let listener = match listener {
            Some(listener) => listener.into(),
            None => listen(&socket, owner)?,
        };
        listener.set_nonblocking(true)?;
        let kept = listener.try_clone()?.into();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener)?
        };
        let handle = runtime.handle().clone();
        let (stop, stopped) = watch::channel(false);
        let router = routes::router(shared.clone());
        let serve = move || {
            runtime.block_on(serve(listener, router, stopped));
            // Waits for what blocks: it is the end of a change that somebody has asked for.
            drop(runtime);
        };
        let thread = thread::Builder::new().name("control".into()).spawn(serve)?;
        let identity = identity(&socket);
        Ok(Control {
            shared,
            socket,
            identity,
            listener: kept,
            runtime: handle,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The listening socket. While a copy is open somewhere, clients that connect wait instead of being refused.
    pub fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    /// What `POST /v1/restart` does, once it has answered. Without this there is no restart.
    pub fn on_restart(&self, restart: impl Fn() + Send + Sync + 'static) {
        *self.shared.restart.lock() = Some(Arc::new(restart));
    }

    /// There is no restart until [`Control::on_restart`] is called again.
    pub fn forbid_restart(&self) {
        self.shared.restart.lock().take();
    }

    /// What `POST /v1/mounts` does: it mounts, and calls [`Control::add_mount`]. Without this there are no mounts to be added.
    pub fn on_mount(&self, mount: impl Fn(&NewMount) -> Result<(), Problem> + Send + Sync + 'static) {
        *self.shared.mount.lock() = Some(Arc::new(mount));
    }

    /// The process that users know as the server, if it is not this one.
    pub fn set_server(&self, pid: u32) {
        self.shared.server.store(pid, Ordering::Relaxed);
    }

    /// How many processes have served before this one.
    pub fn set_takeovers(&self, count: u32) {
        self.shared.takeovers.store(count, Ordering::Relaxed);
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The pool is mounted too: [`crate::Client::status`] names the directory, and the kernel's cache of the mount learns
    /// of what others change.
    pub fn add_mount(&self, mounted: &Mounted) {
        let face = mount_face(mounted.dir());
        self.shared.faces.lock().push(face.clone());
        *self.shared.mounted_on.lock() =
            Some(MountedOn { device: mounted.device().into(), dirs: Box::new(mounted.dirs_later()) });
        self.shared.counted.lock().push((face, mounted.statistics()));
        if let Some(store) = &*self.shared.store.lock() {
            store.observe(Arc::new(MountObserver::new(store.pool(), mounted.kernel_cache())));
            store.is_mounted_as(mounted.device());
        }
    }

    /// The mount on the directory has ended. It was the only one.
    pub fn remove_mount(&self, dir: &Path) {
        let face = mount_face(dir);
        self.shared.faces.lock().retain(|other| *other != face);
        self.shared.mounted_on.lock().take();
        self.shared.counted.lock().retain(|(other, _)| *other != face);
        self.shared.store.lock().iter().for_each(LocalStore::observe_no_more);
    }

    /// Shows the state of the server on a port of this machine too ([`listen_http`]), to whoever is there.
    ///
    /// # Errors
    /// The system's.
    pub fn add_http(&self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let at = Name::from(format!("http://{}/", listener.local_addr()?));
        let listener = {
            let _inside = self.runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (router, mut stopped) = (http::router(self.shared.clone()), self.stop.subscribe());
        self.runtime.spawn(async move {
            let stop = async move {
                let _ = stopped.wait_for(|&stop| stop).await;
            };
            let router =
                router.layer(axum::middleware::from_fn(peer::count)).into_make_service_with_connect_info::<Requests>();
            let _ = axum::serve(Limited::new(listener), router).with_graceful_shutdown(stop).await;
        });
        self.shared.faces.lock().push(Face { kind: "http".into(), at, device: None });
        Ok(())
    }

    /// Cancels what runs long. Returns at once.
    pub fn cancel(&self) {
        self.shared.jobs.cancel_last();
    }

    /// As [`Control::end`], but leaves the socket to a process that takes over [`Control::listener`].
    pub fn hand_over(&self) {
        self.jobs_and_requests_end(true);
    }

    /// Takes no more requests, cancels what runs long, and waits for the changes under way. The pool is free of this face
    /// on return.
    pub fn end(&self) {
        self.jobs_and_requests_end(false);
    }

    fn jobs_and_requests_end(&self, keeps_socket: bool) {
        self.shared.jobs.end();
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.lock().take() {
            // Another server that reads the pool only may have taken the name over.
            if !keeps_socket && identity(&self.socket).is_some_and(|found| Some(found) == self.identity) {
                let _ = fs::remove_file(&self.socket);
            }
            let _ = thread.join();
        }
        self.shared.store.lock().take();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.end();
    }
}

fn mount_face(dir: &Path) -> Face {
    Face { kind: Face::MOUNT.into(), at: Name::from(dir.as_os_str().as_encoded_bytes()), device: None }
}

/// Serves until it is told to stop, and what is under way then for a while.
async fn serve(listener: UnixListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let service = router.into_make_service_with_connect_info::<peer::Peer>();
    let mut of_the_server = stopped.clone();
    let graceful = async move {
        let _ = of_the_server.wait_for(|&stop| stop).await;
    };
    let deadline = async {
        let _ = stopped.wait_for(|&stop| stop).await;
        tokio::time::sleep(LAST_REQUESTS).await;
    };
    tokio::select! {
        _ = axum::serve(Limited::new(listener), service).with_graceful_shutdown(graceful) => {}
        () = deadline => {}
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn listen(socket: &Path, owner: u32) -> io::Result<std::os::unix::net::UnixListener> {
    // Several processes may have a pool open that only read it.
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        let text = format!("another server of the pool listens on {}", socket.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    // No moment with a wider mode: it is bound under another name, which nobody looks for.
    let new = socket.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&new);
    let listener = std::os::unix::net::UnixListener::bind(&new)?;
    let ready = fs::set_permissions(&new, fs::Permissions::from_mode(0o600))
        .and_then(|()| match rustix::process::geteuid().is_root() {
            true => std::os::unix::fs::chown(&new, Some(owner), None),
            false => Ok(()),
        })
        // In place of what a server left that was killed.
        .and_then(|()| fs::rename(&new, socket));
    if let Err(e) = ready {
        let _ = fs::remove_file(&new);
        return Err(e);
    }
    Ok(listener)
}
