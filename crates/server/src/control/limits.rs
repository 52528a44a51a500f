//! Limits on connections: their number, and how long a client may keep one without doing anything.
//!
//! ```text
//!   accept --> a place of MOST? --> Connection --> requests
//!                                     |  no whole head of a request within HEAD                    cut
//!                                     |  no byte of an answer is taken for IDLE                    cut
//! ```
//!
//! So whoever may connect, and begins requests that it does not end, keeps others out for half a minute at a time.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// Connections at a time. Others wait until one is closed.
const MOST: usize = 64;
/// How long the head of a request may take, from its connection or from the request before on: clients keep connections for
/// their next request.
const HEAD: Duration = Duration::from_secs(30);
/// How long a client may take none of its answer. Also how long the body of a request may take.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// A listener whose connections are limited.
pub(super) struct Limited<L> {
    listener: L,
    places: Arc<Semaphore>,
    head: Duration,
    idle: Duration,
}

impl<L> Limited<L> {
    pub(super) fn new(listener: L) -> Limited<L> {
        Limited { listener, places: Arc::new(Semaphore::new(MOST)), head: HEAD, idle: IDLE }
    }
}

impl<L: Listener> Listener for Limited<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // It fails for a semaphore that was closed only.
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, address) = self.listener.accept().await;
        let (requests, head, idle) = (Requests::default(), self.head, self.idle);
        (Connection { stream, requests, head, idle, reading: None, writing: None, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// How many requests of a connection are being done.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests(Arc<AtomicUsize>);

impl Requests {
    /// One more, until what is returned is dropped.
    pub(super) fn begin(&self) -> impl Drop + use<> {
        struct One(Arc<AtomicUsize>);
        impl Drop for One {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        One(self.0.clone())
    }
}

/// A connection that is cut when its client does nothing.
pub(super) struct Connection<S> {
    pub(super) stream: S,
    pub(super) requests: Requests,
    head: Duration,
    idle: Duration,
    /// Since when bytes of the client are waited for.
    reading: Option<Pin<Box<Sleep>>>,
    /// Since when the client takes none.
    writing: Option<Pin<Box<Sleep>>>,
    _place: Option<OwnedSemaphorePermit>,
}

/// What `answer` is, unless it is waited for too long.
fn in_time<T>(
    timer: &mut Option<Pin<Box<Sleep>>>,
    idle: Duration,
    context: &mut Context<'_>,
    answer: Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    if answer.is_ready() {
        *timer = None;
        return answer;
    }
    let over = timer.get_or_insert_with(|| Box::pin(sleep(idle))).as_mut().poll(context);
    over.map(|()| Err(io::ErrorKind::TimedOut.into()))
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let answer = Pin::new(&mut this.stream).poll_read(context, buf);
        if this.requests.0.load(Ordering::Relaxed) > 0 {
            this.reading = None;
            return answer;
        }
        // Bytes that arrive do not start it anew: a request has to be whole by then.
        let timer = this.reading.get_or_insert_with(|| Box::pin(sleep(this.head)));
        match answer {
            Poll::Pending => timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
            answer => answer,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let answer = Pin::new(&mut this.stream).poll_write(context, bytes);
        in_time(&mut this.writing, this.idle, context, answer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let answer = Pin::new(&mut this.stream).poll_write_vectored(context, bytes);
        in_time(&mut this.writing, this.idle, context, answer)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::thread;

    use axum::Router;
    use axum::routing::get;
    use tokio::net::UnixListener;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    /// A server with two places, whose only page takes three times as long as a client may be idle.
    async fn serve(socket: std::path::PathBuf, ready: std::sync::mpsc::Sender<()>) {
        let listener = UnixListener::bind(&socket).unwrap();
        ready.send(()).unwrap();
        let limited = Limited { listener, places: Arc::new(Semaphore::new(2)), head: SHORT, idle: SHORT };
        let page = async || {
            sleep(3 * SHORT).await;
            "done"
        };
        let router = Router::new()
            .route("/slow", get(page))
            .layer(axum::middleware::from_fn(super::super::peer::count))
            .into_make_service_with_connect_info::<Requests>();
        axum::serve(limited, router).await.unwrap();
    }

    fn answer(socket: &Path, request: &str) -> String {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        // An end without an answer is an answer here.
        let _ = stream.read_to_string(&mut text);
        text
    }

    #[test]
    fn a_client_that_does_nothing_is_cut_and_one_that_waits_for_its_answer_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let (ready, is_ready) = std::sync::mpsc::channel();
        let path = socket.clone();
        // It ends with the process.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(path, ready));
        });
        is_ready.recv().unwrap();
        // Both places are taken by clients that do not go on.
        let mut idle = UnixStream::connect(&socket).unwrap();
        let path = socket.clone();
        let half = thread::spawn(move || answer(&path, "GET /slow HT"));
        // One that sends a byte now and then is cut as well: it gets its place after these two.
        let path = socket.clone();
        let trickle = thread::spawn(move || {
            let mut stream = UnixStream::connect(&path).unwrap();
            let mut sent = 0;
            while stream.write_all(b"G").is_ok() && sent < 40 {
                thread::sleep(SHORT / 4);
                sent += 1;
            }
            sent
        });
        thread::sleep(SHORT / 4);
        let text = answer(&socket, "GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("done"), "{text}");
        assert!(!half.join().unwrap().starts_with("HTTP/1.1 200"));
        assert_eq!(idle.read(&mut [0; 1]).unwrap_or(0), 0, "it was cut");
        assert!(trickle.join().unwrap() < 40, "it was never cut");
    }
}
