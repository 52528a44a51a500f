//! The requests, and the OpenAPI document that is made from the same list.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use pagestone::Info;
use pagestone::check::Report;
use pagestone::inode::SetAttr;
use pagestone::snapshot::{Change, Copied, Snapshot};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::peer::{self, User};
use super::request::{Body, Bulk, Params, Refused};
use crate::api::{
    self, Entry, Event, Face, FaceStatistics, Job, Listing, Moved, NewClone, NewEntry, NewLink, NewMount, NewSize,
    NewSnapshot, NewTransfer, NextData, OperationStatistics, Removed, Rename, Statistics, Status, Trouble, Usage,
    Xattr,
};
use crate::job::Outcome;
use crate::problem::Code;
use crate::statistics::prometheus;
use crate::store::{Progress, READ_LIMIT, Store};
use crate::{LocalStore, Problem, StoreError};

/// How long an answer may take to be sent before a restart.
const BEFORE_RESTART: Duration = Duration::from_millis(5);

#[derive(OpenApi)]
#[openapi(info(
    title = "Pagestone",
    description = "The control interface of a server that has a pool open: HTTP and JSON on a Unix socket."
))]
struct Document;

fn list() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status))
        .routes(routes!(statistics))
        .routes(routes!(info))
        .routes(routes!(sync))
        .routes(routes!(restart))
        .routes(routes!(mount))
        .routes(routes!(entry, remove))
        .routes(routes!(entries, create))
        .routes(routes!(content, write))
        .routes(routes!(usage))
        .routes(routes!(next_data))
        .routes(routes!(xattrs, set_xattr))
        .routes(routes!(link))
        .routes(routes!(set_attributes))
        .routes(routes!(rename))
        .routes(routes!(clone_tree))
        .routes(routes!(snapshots, create_snapshot, delete_snapshot))
        .routes(routes!(diff_snapshot))
        .routes(routes!(restore_snapshot))
        .routes(routes!(resize))
        .routes(routes!(history))
        .routes(routes!(check))
        .routes(routes!(scrub))
        .routes(routes!(import))
        .routes(routes!(export))
        .routes(routes!(job, cancel_job))
}

/// The OpenAPI document of the interface.
pub fn openapi() -> utoipa::openapi::OpenApi {
    list().split_for_parts().1
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let (router, document) = list().split_for_parts();
    let document = Json(document);
    router
        .route("/metrics", axum::routing::get(metrics))
        .route("/v1/openapi.json", axum::routing::get(|| async move { document }))
        .fallback(async || {
            Refused(Problem::new(404, libc::ENOENT, Code::Usage, "there is no such path; see /v1/openapi.json"))
        })
        .method_not_allowed_fallback(async || {
            Refused(Problem::new(
                405,
                libc::EOPNOTSUPP,
                Code::Usage,
                "the path has no such method; see /v1/openapi.json",
            ))
        })
        .layer(axum::middleware::from_fn_with_state(shared.clone(), peer::check))
        .with_state(shared)
}

type Answer<T> = Result<Json<T>, Refused>;

/// Runs `work`, which may block, in a thread for that.
async fn blocking<T: Send + 'static>(
    shared: Arc<Shared>,
    work: impl FnOnce(&LocalStore) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Refused> {
    let store = shared.store()?;
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    let panicked = |_| Problem::new(500, libc::EIO, Code::Failed, "the operation panicked");
    Ok(done.map_err(panicked)??)
}

/// The state of the server: faces, space, what is wrong and what to do about it.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn status(State(shared): State<Arc<Shared>>) -> Answer<Status> {
    // Here: it takes no time, and is answered also while all other threads are busy.
    let info = shared.store()?.info()?;
    Ok(Json(shared.status(&info)))
}

/// What the faces have counted. A client that looks twice has the rates between.
#[utoipa::path(get, path = "/v1/statistics", responses((status = 200, body = Statistics), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn statistics(State(shared): State<Arc<Shared>>) -> Json<Statistics> {
    Json(shared.statistics())
}

/// The same, and the state of the pool, as Prometheus reads it.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Result<Response, Refused> {
    let text = shared.metrics()?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// What the pool lies on, what that promises, and how full it is.
#[utoipa::path(get, path = "/v1/pool", responses((status = 200, body = Info), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn info(State(shared): State<Arc<Shared>>) -> Answer<Info> {
    blocking(shared, |store| store.info()).await.map(Json)
}

/// Makes everything so far durable.
#[utoipa::path(post, path = "/v1/sync", responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn sync(State(shared): State<Arc<Shared>>) -> Result<StatusCode, Refused> {
    blocking(shared, |store| store.sync()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replaces the process that does the work by a new one, of the program as it is installed now. Mounts and this socket stay;
/// what runs meanwhile waits.
#[utoipa::path(post, path = "/v1/restart", responses((status = 202), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn restart(State(shared): State<Arc<Shared>>) -> Result<StatusCode, Refused> {
    let without = || {
        Problem::new(501, libc::EOPNOTSUPP, Code::Failed, "this server cannot be restarted (see its first messages)")
    };
    let restart = shared.restart.lock().clone().ok_or_else(without)?;
    blocking(shared, |store| store.sync()).await?;
    tokio::task::spawn(async move {
        // The answer goes out first.
        tokio::time::sleep(BEFORE_RESTART).await;
        restart();
    });
    Ok(StatusCode::ACCEPTED)
}

/// Mounts the pool on a directory, as `pagestone mount` does. Only root and the user who runs the server may. `umount` ends it.
#[utoipa::path(post, path = "/v1/mounts", request_body = NewMount, responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn mount(
    State(shared): State<Arc<Shared>>,
    user: User,
    Body(new): Body<NewMount>,
) -> Result<StatusCode, Refused> {
    check_may(user, "mount")?;
    let without = || {
        let text =
            "this server serves one mount, and ends with it; root can show that on a second directory (mount --bind)";
        Problem::new(501, libc::EOPNOTSUPP, Code::Failed, text)
    };
    let mount = shared.mount.lock().clone().ok_or_else(without)?;
    blocking(shared, move |_| mount(&new).map_err(StoreError::Server)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One file or directory. A symbolic link is not followed.
#[utoipa::path(get, path = "/v1/entry", params(("path" = String, Query, description = "absolute; any bytes, percent-encoded")), responses((status = 200, body = Entry), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn entry(State(shared): State<Arc<Shared>>, mut params: Params) -> Answer<Entry> {
    let path = params.path()?;
    params.end()?;
    blocking(shared, move |store| store.entry(&path)).await.map(Json)
}

/// The entries of a directory, at most 1,000 at a time.
#[utoipa::path(get, path = "/v1/entries", params(("path" = String, Query, description = "absolute; any bytes, percent-encoded"), ("from" = Option<String>, Query, description = "`next` of the answer before")), responses((status = 200, body = Listing), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn entries(State(shared): State<Arc<Shared>>, mut params: Params) -> Answer<Listing> {
    let (path, from) = (params.path()?, params.text("from")?);
    params.end()?;
    blocking(shared, move |store| store.entries(&path, from.as_deref())).await.map(Json)
}

/// Bytes of a file, at most 1 MiB at a time; fewer than `length` only at its end.
#[utoipa::path(get, path = "/v1/content", params(("inode" = u64, Query, description = "`ino` of an entry"), ("offset" = Option<u64>, Query), ("length" = Option<u64>, Query)), responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn content(State(shared): State<Arc<Shared>>, mut params: Params) -> Result<Bytes, Refused> {
    let ino = params.ino()?;
    let (offset, length) = (params.number("offset", 0)?, params.number("length", READ_LIMIT as u64)?);
    params.end()?;
    let length = length.min(READ_LIMIT as u64) as usize;
    blocking(shared, move |store| store.read(ino, offset, length)).await.map(Bytes::from)
}

/// What a tree takes.
#[utoipa::path(get, path = "/v1/usage", params(("path" = String, Query, description = "absolute; any bytes, percent-encoded")), responses((status = 200, body = Usage), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn usage(State(shared): State<Arc<Shared>>, mut params: Params) -> Answer<Usage> {
    let path = params.path()?;
    params.end()?;
    blocking(shared, move |store| store.usage(&path)).await.map(Json)
}

/// Removes a file; with `recursive=true` a directory with everything in it.
#[utoipa::path(delete, path = "/v1/entry", params(("path" = String, Query, description = "absolute; any bytes, percent-encoded"), ("recursive" = Option<bool>, Query)), responses((status = 200, body = Removed), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn remove(State(shared): State<Arc<Shared>>, mut params: Params) -> Answer<Removed> {
    let (path, recursive) = (params.path()?, params.flag("recursive")?);
    params.end()?;
    blocking(shared, move |store| Ok(Removed { names: store.remove(&path, recursive)? })).await.map(Json)
}

/// Makes a file, a directory or anything else that has a name.
#[utoipa::path(post, path = "/v1/entries", params(("path" = String, Query, description = "absolute; any bytes, percent-encoded")), request_body = NewEntry, responses((status = 200, body = Entry), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create(State(shared): State<Arc<Shared>>, mut params: Params, Body(new): Body<NewEntry>) -> Answer<Entry> {
    let path = params.path()?;
    params.end()?;
    blocking(shared, move |store| store.create(&path, &new)).await.map(Json)
}

/// Changes attributes of a file or directory.
#[utoipa::path(patch, path = "/v1/attributes", params(("inode" = u64, Query, description = "`ino` of an entry")), request_body = SetAttr, responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn set_attributes(
    State(shared): State<Arc<Shared>>,
    mut params: Params,
    Body(change): Body<SetAttr>,
) -> Result<StatusCode, Refused> {
    let ino = params.ino()?;
    params.end()?;
    blocking(shared, move |store| store.set_attributes(ino, &change)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a file one more name.
#[utoipa::path(post, path = "/v1/links", params(("inode" = u64, Query, description = "`ino` of an entry")), request_body = NewLink, responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn link(
    State(shared): State<Arc<Shared>>,
    mut params: Params,
    Body(new): Body<NewLink>,
) -> Result<StatusCode, Refused> {
    let ino = params.ino()?;
    params.end()?;
    blocking(shared, move |store| store.link(ino, &new.to.0)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Writes bytes into a file, at most 1 MiB at a time. The file has to be there.
#[utoipa::path(put, path = "/v1/content", params(("inode" = u64, Query, description = "`ino` of an entry"), ("offset" = Option<u64>, Query)), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn write(
    State(shared): State<Arc<Shared>>,
    mut params: Params,
    Bulk(bytes): Bulk,
) -> Result<StatusCode, Refused> {
    let (ino, offset) = (params.ino()?, params.number("offset", 0)?);
    params.end()?;
    if bytes.len() > READ_LIMIT {
        let text = format!("at most {READ_LIMIT} bytes at a time");
        return Err(Problem::new(413, libc::EINVAL, Code::Usage, text).into());
    }
    blocking(shared, move |store| store.write(ino, offset, &bytes)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where a file has bytes that are not in a hole.
#[utoipa::path(get, path = "/v1/data", params(("inode" = u64, Query, description = "`ino` of an entry"), ("offset" = Option<u64>, Query)), responses((status = 200, body = NextData), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn next_data(State(shared): State<Arc<Shared>>, mut params: Params) -> Answer<NextData> {
    let (ino, offset) = (params.ino()?, params.number("offset", 0)?);
    params.end()?;
    blocking(shared, move |store| Ok(NextData { offset: store.next_data(ino, offset)? })).await.map(Json)
}

/// All extended attributes of a file or directory.
#[utoipa::path(get, path = "/v1/xattrs", params(("inode" = u64, Query, description = "`ino` of an entry")), responses((status = 200, body = Vec<Xattr>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn xattrs(State(shared): State<Arc<Shared>>, mut params: Params) -> Answer<Vec<Xattr>> {
    let ino = params.ino()?;
    params.end()?;
    blocking(shared, move |store| store.xattrs(ino)).await.map(Json)
}

/// Sets an extended attribute.
#[utoipa::path(put, path = "/v1/xattrs", params(("inode" = u64, Query, description = "`ino` of an entry")), request_body = Xattr, responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn set_xattr(
    State(shared): State<Arc<Shared>>,
    mut params: Params,
    Body(attribute): Body<Xattr>,
) -> Result<StatusCode, Refused> {
    let ino = params.ino()?;
    params.end()?;
    blocking(shared, move |store| store.set_xattr(ino, &attribute)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Renames a file or directory.
#[utoipa::path(post, path = "/v1/renames", request_body = Rename, responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn rename(State(shared): State<Arc<Shared>>, Body(new): Body<Rename>) -> Result<StatusCode, Refused> {
    blocking(shared, move |store| store.rename(&new.from.0, &new.to.0, new.replace)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a second file or tree that shares its storage with the first until one is written.
#[utoipa::path(post, path = "/v1/clones", request_body = NewClone, responses((status = 200, body = Copied), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn clone_tree(State(shared): State<Arc<Shared>>, Body(new): Body<NewClone>) -> Answer<Copied> {
    blocking(shared, move |store| store.clone_tree(&new.from.0, &new.to.0)).await.map(Json)
}

/// All snapshots.
#[utoipa::path(get, path = "/v1/snapshots", responses((status = 200, body = Vec<Snapshot>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn snapshots(State(shared): State<Arc<Shared>>) -> Answer<Vec<Snapshot>> {
    blocking(shared, |store| store.snapshots()).await.map(Json)
}

/// Makes a snapshot of the whole pool.
#[utoipa::path(post, path = "/v1/snapshots", request_body = NewSnapshot, responses((status = 200, body = Copied), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create_snapshot(
    State(shared): State<Arc<Shared>>,
    user: User,
    Body(new): Body<NewSnapshot>,
) -> Answer<Copied> {
    blocking(shared, move |store| store.by(user.0).create_snapshot(&new.name.0)).await.map(Json)
}

/// Deletes a snapshot.
#[utoipa::path(delete, path = "/v1/snapshots", params(("name" = String, Query)), responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete_snapshot(
    State(shared): State<Arc<Shared>>,
    user: User,
    mut params: Params,
) -> Result<StatusCode, Refused> {
    let name = params.take("name")?;
    params.end()?;
    blocking(shared, move |store| store.by(user.0).delete_snapshot(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The differences of a snapshot from another one, or from what the pool holds now.
#[utoipa::path(get, path = "/v1/snapshots/diff", params(("name" = String, Query), ("other" = Option<String>, Query)), responses((status = 200, body = Vec<Change>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn diff_snapshot(State(shared): State<Arc<Shared>>, mut params: Params) -> Answer<Vec<Change>> {
    let (name, other) = (params.take("name")?, params.0.remove("other"));
    params.end()?;
    blocking(shared, move |store| store.diff_snapshot(&name, other.as_deref())).await.map(Json)
}

/// Replaces the contents of the pool by those of a snapshot.
#[utoipa::path(post, path = "/v1/snapshots/restore", request_body = NewSnapshot, responses((status = 200, body = Copied), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn restore_snapshot(
    State(shared): State<Arc<Shared>>,
    user: User,
    Body(named): Body<NewSnapshot>,
) -> Answer<Copied> {
    blocking(shared, move |store| store.by(user.0).restore_snapshot(&named.name.0)).await.map(Json)
}

/// Begins to give the pool another size.
#[utoipa::path(post, path = "/v1/resize", request_body = NewSize, responses((status = 200, body = Job), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn resize(State(shared): State<Arc<Shared>>, user: User, Body(new): Body<NewSize>) -> Answer<Job> {
    let store = shared.store()?.by(user.0);
    let work = move |progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>| {
        let result = store.resize(new.change, new.size, progress);
        result.map(|()| Outcome::Nothing).map_err(|e| e.problem())
    };
    Ok(Json(shared.jobs.start(Box::new(work))?))
}

/// What administrators have done to the pool, the oldest first.
#[utoipa::path(get, path = "/v1/history", responses((status = 200, body = Vec<Event>), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn history(State(shared): State<Arc<Shared>>) -> Answer<Vec<Event>> {
    blocking(shared, |store| store.history()).await.map(Json)
}

/// Checks the pool without its data. All other operations wait until it is done.
#[utoipa::path(post, path = "/v1/check", responses((status = 200, body = Report), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn check(State(shared): State<Arc<Shared>>) -> Answer<Report> {
    blocking(shared, |store| store.check()).await.map(Json)
}

/// Begins to read all that is in the pool, to name what cannot be read.
#[utoipa::path(post, path = "/v1/scrub", responses((status = 200, body = Job), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn scrub(State(shared): State<Arc<Shared>>, user: User) -> Answer<Job> {
    let store = shared.store()?.by(user.0);
    let work = move |progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>| {
        store.scrub(progress).map(Outcome::Scrubbed).map_err(|e| e.problem())
    };
    Ok(Json(shared.jobs.start(Box::new(work))?))
}

/// Begins to copy a file or block device of the server's file system into the pool. Only root and the user who runs the server
/// may.
#[utoipa::path(post, path = "/v1/imports", request_body = NewTransfer, responses((status = 200, body = Job), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn import(State(shared): State<Arc<Shared>>, user: User, Body(new): Body<NewTransfer>) -> Answer<Job> {
    transfer(&shared, user, new, |store, new, progress| store.import(outside(&new), &new.path.0, new.how, progress))
}

/// Begins to copy a file of the pool to a file or block device of the server's file system. Only root and the user who runs the
/// server may.
#[utoipa::path(post, path = "/v1/exports", request_body = NewTransfer, responses((status = 200, body = Job), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn export(State(shared): State<Arc<Shared>>, user: User, Body(new): Body<NewTransfer>) -> Answer<Job> {
    transfer(&shared, user, new, |store, new, progress| store.export(&new.path.0, outside(&new), new.how, progress))
}

fn outside(new: &NewTransfer) -> &std::path::Path {
    std::path::Path::new(OsStr::from_bytes(&new.outside.0))
}

fn transfer(
    shared: &Shared,
    user: User,
    new: NewTransfer,
    work: impl FnOnce(&LocalStore, NewTransfer, Progress<'_>) -> Result<Moved, StoreError> + Send + 'static,
) -> Answer<Job> {
    check_may(user, "move files of the system; pagestone put and get do")?;
    if !outside(&new).is_absolute() || new.path.0.first() != Some(&b'/') {
        return Err(Problem::bad_request("a path begins with /").into());
    }
    let store = shared.store()?.by(user.0);
    let work = move |progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>| {
        work(&store, new, progress).map(Outcome::Moved).map_err(|e| e.problem())
    };
    Ok(Json(shared.jobs.start(Box::new(work))?))
}

/// The owner of a pool may use it. What a server of root's may do besides is not the owner's.
fn check_may(User(user): User, what: &str) -> Result<(), Refused> {
    if [0, rustix::process::geteuid().as_raw()].contains(&user) {
        return Ok(());
    }
    let text = format!("only root and the user who runs the server may {what}");
    Err(Problem::new(403, libc::EPERM, Code::Failed, text).into())
}

/// How far a long operation is.
#[utoipa::path(get, path = "/v1/jobs/{number}", params(("number" = u64, Path)), responses((status = 200, body = Job), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn job(State(shared): State<Arc<Shared>>, Path(number): Path<String>) -> Answer<Job> {
    Ok(Json(shared.jobs.get(job_number(&number)?)?))
}

/// Cancels a long operation; it stops after the step that is under way.
#[utoipa::path(delete, path = "/v1/jobs/{number}", params(("number" = u64, Path)), responses((status = 200, body = Job), (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn cancel_job(State(shared): State<Arc<Shared>>, Path(number): Path<String>) -> Answer<Job> {
    Ok(Json(shared.jobs.cancel(job_number(&number)?)?))
}

fn job_number(text: &str) -> Result<u64, Refused> {
    text.parse().map_err(|_| Problem::bad_request("the number of an operation is a number").into())
}

impl Shared {
    fn statistics(&self) -> Statistics {
        let counted = self.counted.lock();
        let faces = counted.iter().map(|(face, counted)| {
            let (read, written) = counted.bytes();
            let operations = counted.operations().into_iter().map(OperationStatistics::from).collect();
            FaceStatistics { kind: face.kind.clone(), at: face.at.clone(), read, written, operations }
        });
        Statistics { worker: std::process::id(), faces: faces.collect() }
    }

    pub(super) fn metrics(&self) -> Result<String, Refused> {
        let info = self.store()?.info()?;
        Ok(prometheus(&self.statistics(), &self.status(&info), &info))
    }

    /// A mount may be seen on several directories.
    fn seen_at(&self, face: &Face) -> Vec<Face> {
        let mounted_on = self.mounted_on.lock();
        let Some(mounted_on) = mounted_on.as_ref().filter(|_| face.kind == Face::MOUNT) else {
            return vec![face.clone()];
        };
        let device = Some(mounted_on.device.clone());
        let at = |dir: PathBuf| Face {
            at: api::Name::from(dir.as_os_str().as_bytes()),
            device: device.clone(),
            ..face.clone()
        };
        let seen: Vec<Face> = (mounted_on.dirs)().into_iter().map(at).collect();
        // Out of sight, or seen in another namespace only.
        if seen.is_empty() { vec![Face { device, ..face.clone() }] } else { seen }
    }

    fn store(&self) -> Result<LocalStore, Problem> {
        let ending = || Problem::new(503, libc::EBUSY, Code::Failed, "the server is ending");
        self.store.lock().clone().ok_or_else(ending)
    }

    fn status(&self, info: &Info) -> Status {
        let used = info.space.pages.saturating_sub(info.space.free);
        Status {
            pool: api::Name::from(self.pool.as_os_str().as_encoded_bytes()),
            pid: self.server.load(Ordering::Relaxed),
            worker: std::process::id(),
            takeovers: self.takeovers.load(Ordering::Relaxed),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime: self.begun.elapsed().as_secs(),
            faces: self.faces.lock().iter().flat_map(|face| self.seen_at(face)).collect(),
            troubles: troubles(info),
            size: info.size,
            used: used * pagestone::PAGE_SIZE,
            available: info.space.available * pagestone::PAGE_SIZE,
            inodes: info.space.inodes,
            read_only: info.media.read_only,
        }
    }
}

/// What needs attention.
fn troubles(info: &Info) -> Vec<Trouble> {
    let mut found = Vec::new();
    let mut add = |what: String, remedy: &str| found.push(Trouble { what, remedy: remedy.into() });
    if info.lost > 0 {
        add(format!("the media have lost {} pages", info.lost), "pagestone check --data names what lay there");
    }
    if let Some(last) = &info.last_background_error {
        let what = format!("{} errors of background work; the last one: {last}", info.background_errors);
        add(what, "pagestone check, once the pool is unmounted");
    }
    if info.space.available * 20 < info.space.pages {
        add("less than 5 % of the pool is free".into(), "pagestone grow, or delete files or snapshots");
    }
    found
}
