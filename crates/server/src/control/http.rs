//! The page for people and for Prometheus, on a port of this machine. It only shows.
//!
//! ```text
//!   browser, Prometheus --> 127.0.0.1:PORT    GET /, /metrics, /v1/status, /v1/statistics, /v1/snapshots
//! ```
//!
//! Every user of this machine can look. A page of another site cannot: a request must name this machine as its host.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use super::Shared;
use super::request::Refused;
use super::routes;
use crate::Problem;
use crate::problem::Code;

/// Listens on a port of this machine, for [`super::Control::add_http`].
///
/// # Errors
/// `InvalidInput` for an address of another kind than loopback: nobody there is asked who they are. The system's, for a
/// port in use.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        let text = "only an address of this machine, such as 127.0.0.1:9360: nobody is asked for a password";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    TcpListener::bind(address)
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(routes::metrics))
        .route("/v1/status", get(routes::status))
        .route("/v1/statistics", get(routes::statistics))
        .route("/v1/snapshots", get(routes::snapshots))
        .fallback(async || Refused(Problem::new(404, libc::ENOENT, Code::Usage, "there is no such page; see /")))
        .layer(from_fn(check_host))
        .with_state(shared)
}

async fn page() -> Response {
    let mut response = Html(include_str!("dashboard.html")).into_response();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

/// A browser that was led here by a name of somebody else's sends that name.
async fn check_host(headers: HeaderMap, request: Request, next: Next) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |h| h.0);
    if matches!(name, "localhost" | "127.0.0.1" | "[::1]") {
        return next.run(request).await;
    }
    Refused(Problem::new(421, libc::EPERM, Code::Usage, "ask for localhost, 127.0.0.1 or [::1]")).into_response()
}
