//! Who is at the other end of a connection: the kernel says (`SO_PEERCRED`), not the client.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use tokio::net::UnixListener;

use super::Shared;
use super::limits::{Limited, Requests};
use super::request::Refused;
use crate::Problem;
use crate::problem::Code;

/// The user of a connection; `None` if the kernel does not say.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    user: Option<u32>,
    requests: Requests,
}

impl Connected<IncomingStream<'_, Limited<UnixListener>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Limited<UnixListener>>) -> Peer {
        let user = stream.io().stream.peer_cred().ok().map(|cred| cred.uid());
        Peer { user, requests: stream.io().requests.clone() }
    }
}

impl<L: Listener> Connected<IncomingStream<'_, Limited<L>>> for Requests {
    fn connect_info(stream: IncomingStream<'_, Limited<L>>) -> Requests {
        stream.io().requests.clone()
    }
}

/// Lets the connection know that a request of it is being done.
pub(super) async fn count(ConnectInfo(requests): ConnectInfo<Requests>, request: Request, next: Next) -> Response {
    let _one = requests.begin();
    next.run(request).await
}

/// The user of a request that was let in.
#[derive(Clone, Copy, Debug)]
pub(super) struct User(pub(super) u32);

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<User, Refused> {
        let peer = parts.extensions.get::<ConnectInfo<Peer>>().and_then(|ConnectInfo(peer)| peer.user);
        peer.map(User).ok_or_else(refused)
    }
}

fn refused() -> Refused {
    let text = "only root and the owner of the pool may use it through its server";
    Refused(Problem::new(403, libc::EPERM, Code::Failed, text))
}

/// Lets nobody else in.
pub(super) async fn check(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(Peer { user, requests }): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, Refused> {
    let what = format!("{} {}", request.method(), request.uri());
    if !user.is_some_and(|user| shared.users.contains(&user)) {
        tracing::warn!(user, "refused: {what}");
        return Err(refused());
    }
    let _one = requests.begin();
    let begun = Instant::now();
    let response = next.run(request).await;
    tracing::debug!(user, status = response.status().as_u16(), us = begun.elapsed().as_micros(), "{what}");
    Ok(response)
}
