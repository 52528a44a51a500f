//! A pool that is open in a server.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use pagestone::check::Report;
use pagestone::inode::SetAttr;
use pagestone::snapshot::{Change, Copied, Snapshot};
use pagestone::{Info, Ino};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::address;
use crate::api::{
    self, Entry, Event, Job, JobState, Listing, Moved, NewClone, NewEntry, NewLink, NewMount, NewSize, NewSnapshot,
    NewTransfer, NextData, Removed, Rename, Scrubbed, Statistics, Status, TransferHow, Usage, Xattr,
};
use crate::problem::Code;
use crate::store::{Progress, Result, Store};
use crate::{Problem, StoreError};

/// How long a server may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a restart may take.
const RESTARTED: Duration = Duration::from_secs(10);
/// Time between two looks at a long operation.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LATER_LOOK: Duration = Duration::from_millis(100);
/// Bytes of the longest answer that is taken.
const LONGEST_ANSWER: usize = 256 << 20;
/// Not encoded in a parameter, so that paths can be read.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The process that does the work of a server after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Restarted {
    /// Its number.
    pub worker: u32,
    /// Its version.
    pub version: String,
}

/// [`Store`] through the socket of a server.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    /// Users who may be its server.
    users: Vec<u32>,
    runtime: Runtime,
    /// Something else than the question whether it is there may have been done, or has been answered.
    reached: AtomicBool,
}

impl Client {
    /// The server of the pool at `pool`; `None` if none can be found.
    ///
    /// # Errors
    /// What the system says of the pool's path; `PermissionDenied` if this user may not use the server, or if somebody
    /// else listens in its place; `TimedOut` if it does not answer within five seconds.
    pub fn find(pool: &Path) -> io::Result<Option<Client>> {
        let (sockets, users) = address::to_look_at(pool)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut client = Client { socket: PathBuf::new(), users, runtime, reached: AtomicBool::new(false) };
        let mut refused = None;
        for socket in sockets {
            client.socket = socket;
            match client.answers() {
                Ok(()) => {
                    client.reached = AtomicBool::new(false);
                    return Ok(Some(client));
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::TimedOut) => {
                    refused = refused.or(Some(e));
                }
                // Nobody listens there, or a server that is ending.
                Err(_) => {}
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// Whether a server answers on the socket, and lets this user in.
    fn answers(&self) -> io::Result<()> {
        let exchange = async { tokio::time::timeout(PATIENCE, self.exchange(Method::GET, "/v1/status", None)).await };
        let (status, _) = self.runtime.block_on(exchange).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::FORBIDDEN => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    /// Whether the server may have done anything since it was found. If not, and it does not answer, it has ended
    /// meanwhile, and the pool can be looked for again.
    pub fn was_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The state of the server.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn status(&self) -> Result<Status> {
        self.get("/v1/status")
    }

    /// What the server has counted.
    ///
    /// # Errors
    /// Of the connection.
    pub fn statistics(&self) -> Result<Statistics> {
        self.get("/v1/statistics")
    }

    /// Lets a new process do the work of the server. Returns when it does, with its number and version.
    ///
    /// # Errors
    /// EOPNOTSUPP where a restart is not possible; ETIMEDOUT if nothing has come of it in ten seconds.
    pub fn restart(&self) -> Result<Restarted> {
        let begun = Instant::now();
        let before = self.worker(begun)?.worker;
        self.send(Method::POST, "/v1/restart", None)?;
        while begun.elapsed() < RESTARTED {
            // A connection may go to the old one, and be cut.
            match self.worker(begun) {
                Ok(now) if now.worker != before => return Ok(now),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        let text = "the server has not been restarted in ten seconds; see its messages";
        Err(Problem::new(504, libc::ETIMEDOUT, Code::Failed, text).into())
    }

    /// As [`Client::status`], of a server of any version, and not longer than a restart may take.
    fn worker(&self, begun: Instant) -> Result<Restarted> {
        let left = RESTARTED.saturating_sub(begun.elapsed());
        let exchange = async { tokio::time::timeout(left, self.exchange(Method::GET, "/v1/status", None)).await };
        let late = |_| StoreError::Connection(io::ErrorKind::TimedOut.into());
        let answered = self.runtime.block_on(exchange).map_err(late)?;
        understood(&answered.map_err(StoreError::Connection)?.1)
    }

    /// Mounts the pool, which must not be mounted.
    ///
    /// # Errors
    /// EBUSY if it is; EPERM for a user who is neither root nor the one who runs the server; what mounting says.
    pub fn mount(&self, new: &NewMount) -> Result<()> {
        self.send(Method::POST, "/v1/mounts", Some(json(new)?)).map(drop)
    }

    /// Begins what [`Store::resize`] waits for.
    ///
    /// # Errors
    /// EBUSY while another operation runs.
    pub fn begin_resize(&self, change: api::Change, size: u64) -> Result<Job> {
        self.post("/v1/resize", &NewSize { size, change })
    }

    /// How far an operation is. Only the last one is known.
    pub fn job(&self, number: u64) -> Result<Job> {
        self.get(&format!("/v1/jobs/{number}"))
    }

    /// Lets an operation stop after its step. Returns at once.
    pub fn cancel_job(&self, number: u64) -> Result<Job> {
        understood(&self.send(Method::DELETE, &format!("/v1/jobs/{number}"), None)?)
    }

    async fn exchange(&self, method: Method, target: &str, body: Option<Vec<u8>>) -> io::Result<(StatusCode, Bytes)> {
        let stream = connect(&self.socket, &self.users).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        // A question that is cut can be asked again.
        self.reached.fetch_or(method != Method::GET, Ordering::Relaxed);
        let mut request = Request::builder().method(method).uri(target).header("host", "localhost");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await.map_err(io::Error::other)?;
        connection.abort();
        self.reached.fetch_or(status != StatusCode::SERVICE_UNAVAILABLE, Ordering::Relaxed);
        Ok((status, body.to_bytes()))
    }

    fn send(&self, method: Method, target: &str, body: Option<Vec<u8>>) -> Result<Bytes> {
        let exchange = self.exchange(method, target, body);
        let (status, body) = self.runtime.block_on(exchange).map_err(StoreError::Connection)?;
        if status.is_success() {
            return Ok(body);
        }
        let problem = serde_json::from_slice::<Problem>(&body);
        Err(problem
            .map_or_else(|_| StoreError::Connection(io::Error::other(format!("status {status}"))), StoreError::Server))
    }

    fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T> {
        understood(&self.send(Method::GET, target, None)?)
    }

    fn post<T: DeserializeOwned>(&self, target: &str, body: &impl Serialize) -> Result<T> {
        understood(&self.send(Method::POST, target, Some(json(body)?))?)
    }
}

/// Connects, and makes sure that one of `users` listens there: whoever may write to the directory, or has made a link
/// there, could be somebody else by now.
async fn connect(socket: &Path, users: &[u32]) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).await?;
    let user = stream.peer_cred()?.uid();
    if !users.contains(&user) {
        let text = format!("{}: user {user} listens there, who is not the pool's", socket.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(stream)
}

fn json(body: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(body).map_err(|e| StoreError::Connection(e.into()))
}

/// The value of an answer.
fn understood<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| {
        let text = format!(
            "it is of another version, whose answer this one does not understand ({e}); mount or serve the pool anew"
        );
        StoreError::Connection(io::Error::new(io::ErrorKind::InvalidData, text))
    })
}

fn encoded(bytes: &[u8]) -> String {
    percent_encode(bytes, PLAIN).to_string()
}

impl Store for Client {
    fn info(&self) -> Result<Info> {
        self.get("/v1/pool")
    }

    fn sync(&self) -> Result<()> {
        self.send(Method::POST, "/v1/sync", None).map(drop)
    }

    fn entry(&self, path: &[u8]) -> Result<Entry> {
        self.get(&format!("/v1/entry?path={}", encoded(path)))
    }

    fn entries(&self, path: &[u8], from: Option<&str>) -> Result<Listing> {
        let from = from.map(|from| format!("&from={}", encoded(from.as_bytes()))).unwrap_or_default();
        self.get(&format!("/v1/entries?path={}{from}", encoded(path)))
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>> {
        let target = format!("/v1/content?inode={}&offset={offset}&length={len}", ino.0);
        self.send(Method::GET, &target, None).map(Vec::from)
    }

    fn usage(&self, path: &[u8]) -> Result<Usage> {
        self.get(&format!("/v1/usage?path={}", encoded(path)))
    }

    fn create(&self, path: &[u8], new: &NewEntry) -> Result<Entry> {
        self.post(&format!("/v1/entries?path={}", encoded(path)), new)
    }

    fn link(&self, ino: Ino, to: &[u8]) -> Result<()> {
        let body = json(&NewLink { to: to.into() })?;
        self.send(Method::POST, &format!("/v1/links?inode={}", ino.0), Some(body)).map(drop)
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<()> {
        let target = format!("/v1/content?inode={}&offset={offset}", ino.0);
        self.send(Method::PUT, &target, Some(bytes.to_vec())).map(drop)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>> {
        let next: NextData = self.get(&format!("/v1/data?inode={}&offset={offset}", ino.0))?;
        Ok(next.offset)
    }

    fn set_attributes(&self, ino: Ino, change: &SetAttr) -> Result<()> {
        let target = format!("/v1/attributes?inode={}", ino.0);
        self.send(Method::PATCH, &target, Some(json(change)?)).map(drop)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        self.get(&format!("/v1/xattrs?inode={}", ino.0))
    }

    fn set_xattr(&self, ino: Ino, attribute: &Xattr) -> Result<()> {
        let target = format!("/v1/xattrs?inode={}", ino.0);
        self.send(Method::PUT, &target, Some(json(attribute)?)).map(drop)
    }

    fn remove(&self, path: &[u8], recursive: bool) -> Result<u64> {
        let target = format!("/v1/entry?path={}&recursive={recursive}", encoded(path));
        let removed: Removed = understood(&self.send(Method::DELETE, &target, None)?)?;
        Ok(removed.names)
    }

    fn rename(&self, from: &[u8], to: &[u8], replace: bool) -> Result<()> {
        let body = Rename { from: from.into(), to: to.into(), replace };
        self.send(Method::POST, "/v1/renames", Some(json(&body)?)).map(drop)
    }

    fn clone_tree(&self, from: &[u8], to: &[u8]) -> Result<Copied> {
        self.post("/v1/clones", &NewClone { from: from.into(), to: to.into() })
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.get("/v1/snapshots")
    }

    fn create_snapshot(&self, name: &[u8]) -> Result<Copied> {
        self.post("/v1/snapshots", &NewSnapshot { name: name.into() })
    }

    fn delete_snapshot(&self, name: &[u8]) -> Result<()> {
        self.send(Method::DELETE, &format!("/v1/snapshots?name={}", encoded(name)), None).map(drop)
    }

    fn diff_snapshot(&self, name: &[u8], other: Option<&[u8]>) -> Result<Vec<Change>> {
        let other = other.map(|other| format!("&other={}", encoded(other))).unwrap_or_default();
        self.get(&format!("/v1/snapshots/diff?name={}{other}", encoded(name)))
    }

    fn restore_snapshot(&self, name: &[u8]) -> Result<Copied> {
        self.post("/v1/snapshots/restore", &NewSnapshot { name: name.into() })
    }

    fn history(&self) -> Result<Vec<Event>> {
        self.get("/v1/history")
    }

    fn check(&self) -> Result<Report> {
        understood(&self.send(Method::POST, "/v1/check", None)?)
    }

    fn scrub(&self, progress: Progress<'_>) -> Result<Scrubbed> {
        let job = understood(&self.send(Method::POST, "/v1/scrub", None)?)?;
        let done = self.wait_for(job, progress)?.scrubbed;
        // Another process has taken over, whose operations have numbers of their own.
        done.ok_or_else(|| {
            StoreError::Connection(io::Error::other("it was restarted meanwhile: nothing is known of the scrub"))
        })
    }

    fn import(&self, from: &Path, to: &[u8], how: TransferHow, progress: Progress<'_>) -> Result<Moved> {
        self.transfer("/v1/imports", to, from, how, progress)
    }

    fn export(&self, from: &[u8], to: &Path, how: TransferHow, progress: Progress<'_>) -> Result<Moved> {
        self.transfer("/v1/exports", from, to, how, progress)
    }

    fn resize(&self, change: api::Change, size: u64, progress: Progress<'_>) -> Result<()> {
        self.wait_for(self.begin_resize(change, size)?, progress).map(drop)
    }
}

impl Client {
    fn transfer(
        &self,
        target: &str,
        path: &[u8],
        outside: &Path,
        how: TransferHow,
        progress: Progress<'_>,
    ) -> Result<Moved> {
        let outside = std::path::absolute(outside).map_err(StoreError::Connection)?;
        let outside = outside.as_os_str().as_encoded_bytes().into();
        let job = self.post(target, &NewTransfer { path: path.into(), outside, how })?;
        let restarted =
            || StoreError::Connection(io::Error::other("it was restarted meanwhile; --resume goes on with the copy"));
        let done = self.wait_for(job, progress).map_err(|e| match e {
            StoreError::Server(problem) if problem.status == 404 && problem.detail.contains("operation") => restarted(),
            other => other,
        });
        done?.moved.ok_or_else(restarted)
    }

    /// Waits for the end of an operation, and cancels it when `progress` says so.
    fn wait_for(&self, mut job: Job, progress: Progress<'_>) -> Result<Job> {
        let (mut pause, mut cancelled) = (FIRST_LOOK, false);
        while job.state == JobState::Running {
            if progress(job.done, job.total) == ControlFlow::Break(()) && !cancelled {
                self.cancel_job(job.number)?;
                cancelled = true;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LATER_LOOK);
            job = self.job(job.number)?;
        }
        // Who asks for the work that was done gets the last figures.
        let _ = progress(job.done, job.total);
        match job.problem.take() {
            Some(problem) => Err(problem.into()),
            None => Ok(job),
        }
    }
}
