//! The control socket: what it answers to clients of ours, to strangers, and to those who mean harm.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pagestone::{CreateOptions, OpenOptions, Pool};
use pagestone_server::{Client, Code, Control, Store, StoreError, openapi};
use tempfile::TempDir;

struct Served {
    _dir: TempDir,
    path: PathBuf,
    pool: Option<Pool>,
    control: Control,
}

fn served() -> Served {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(64 << 20)).unwrap();
    let control = Control::start(&path, pool.clone()).unwrap();
    Served { _dir: dir, path, pool: Some(pool), control }
}

impl Served {
    fn client(&self) -> Client {
        Client::find(&self.path).unwrap().expect("a server")
    }

    /// Sends bytes as they are; what comes back until the server closes, or is silent for a second.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.control.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn request(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let len = body.len();
        let head =
            format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n");
        let answer = self.raw(format!("{head}content-length: {len}\r\n\r\n{body}").as_bytes());
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, answer)
    }

    fn finish(mut self) {
        self.control.end();
        assert!(!self.control.socket().exists());
        self.pool.take().unwrap().close().expect("nothing of the face holds the pool");
    }
}

#[test]
fn a_client_gets_what_the_library_says() {
    let served = served();
    let (client, pool) = (served.client(), served.pool.clone().unwrap());
    pool.write("/a", "bytes").unwrap();
    let info = client.info().unwrap();
    assert_eq!((info.size, info.uuid), (pool.info().unwrap().size, pool.info().unwrap().uuid));
    assert_eq!(client.read(client.entry(b"/a").unwrap().attr.ino, 1, 100).unwrap(), b"ytes");
    assert_eq!(client.read(client.entry(b"/a").unwrap().attr.ino, 5, 100).unwrap(), b"");
    pool.create_dir("/dir").unwrap();
    assert!(client.entries(b"/", None).unwrap().entries.iter().all(|entry| !entry.elsewhere));
    assert_eq!(client.entry(b"/a").unwrap().attr, pool.resolve(b"/a").unwrap().attr().unwrap());
    client.create_snapshot(b"one").unwrap();
    pool.write("/b", "more").unwrap();
    assert_eq!(client.diff_snapshot(b"one", None).unwrap()[0].path, "/b");
    client.restore_snapshot(b"one").unwrap();
    assert!(pool.resolve(b"/b").is_err());
    assert_eq!(client.snapshots().unwrap().len(), 1);
    client.delete_snapshot(b"one").unwrap();
    client.sync().unwrap();
    let refused = client.entry(b"/none").unwrap_err();
    assert!(matches!(&refused, StoreError::Server(p) if p.status == 404 && p.code == Code::Failed), "{refused}");
    drop(pool);
    served.finish();
}

#[test]
fn names_of_any_bytes_and_large_directories_come_over_whole() {
    let served = served();
    let (client, pool) = (served.client(), served.pool.clone().unwrap());
    let root = pool.root();
    let new = pagestone::inode::NewNode::new(pagestone::FileType::File, 0o644);
    let odd: [&[u8]; 5] = [b"\xff\xfe", b"a b&c=d?e#f%41+", b"new\nline", "\u{e4}\u{1f600}".as_bytes(), b"\"\\"];
    odd.iter().for_each(|name| assert!(root.create(name, &new).is_ok()));
    for name in odd {
        let path = [b"/", name].concat();
        assert_eq!(client.entry(&path).unwrap().name.0, path);
    }
    (0..2_500).for_each(|n| assert!(root.create(format!("{n}").as_bytes(), &new).is_ok()));
    let (mut names, mut from, mut answers) = (Vec::new(), None, 0);
    loop {
        let listing = client.entries(b"/", from.as_deref()).unwrap();
        names.extend(listing.entries.into_iter().map(|entry| entry.name.0));
        answers += 1;
        match listing.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    names.sort();
    names.dedup();
    assert_eq!((names.len(), answers), (2_505, 3));
    assert!(odd.iter().all(|&name| names.iter().any(|found| found == name)));
    drop((root, pool));
    served.finish();
}

/// Fails if a request of the document is not served, or its errors are no problem documents.
#[test]
fn every_path_of_the_document_is_served_and_refuses_with_a_problem() {
    let served = served();
    let document = openapi();
    let paths = document.paths.paths.keys().cloned().collect::<Vec<_>>();
    assert!(paths.len() >= 14, "{paths:?}");
    for path in &paths {
        let (status, answer) = served.request("LINK", &path.replace("{number}", "7"), "");
        assert!(status == 405 && answer.contains("application/problem+json"), "{path}: {answer}");
    }
    let (status, answer) = served.request("GET", "/v1/openapi.json", "");
    assert_eq!(status, 200);
    assert!(paths.iter().all(|path| answer.contains(&format!("\"{path}\""))));
    for (method, target, body, expected) in [
        ("GET", "/", "", 404),
        ("GET", "/v2/status", "", 404),
        ("GET", "/v1/entry", "", 400),
        ("GET", "/v1/entry?path=/&path=/", "", 400),
        ("GET", "/v1/entry?path=/&depth=3", "", 400),
        ("GET", "/v1/entry?path=relative", "", 400),
        ("GET", "/v1/content?inode=1&offset=-1", "", 400),
        ("GET", "/v1/content?inode=x", "", 400),
        ("GET", "/v1/content?inode=123456789", "", 404),
        ("POST", "/v1/renames", "{\"from\":\"/a\",\"to\":\"/b\",\"replce\":true}", 422),
        ("GET", "/v1/entries?path=/&from=x", "", 400),
        ("DELETE", "/v1/entry?path=/", "", 400),
        ("DELETE", "/v1/entry?path=/a&recursive=perhaps", "", 400),
        ("POST", "/v1/snapshots", "{", 400),
        ("POST", "/v1/snapshots", "{\"name\": 7}", 422),
        ("POST", "/v1/snapshots", "{\"name\": \"..\"}", 400),
        ("POST", "/v1/resize", "{\"size\": -1, \"change\": \"grow\"}", 422),
        ("POST", "/v1/resize", "{\"size\": 1, \"change\": \"explode\"}", 422),
        ("GET", "/v1/jobs/x", "", 400),
        ("GET", "/v1/jobs/18446744073709551615", "", 404),
    ] {
        let (status, answer) = served.request(method, target, body);
        assert!(
            status == expected && answer.contains("application/problem+json"),
            "{method} {target} {body}: {answer}"
        );
    }
    served.finish();
}

#[test]
fn strange_bytes_large_bodies_and_slow_clients_do_no_harm() {
    let served = served();
    let mut slow = UnixStream::connect(served.control.socket()).unwrap();
    slow.write_all(b"GET /v1/status HT").unwrap();
    served.raw(b"\x00\xff\xfe garbage\r\n\r\n");
    served.raw(&vec![b'A'; 3 << 20]);
    served.raw(format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20)).as_bytes());
    let (status, _) = served.request("POST", "/v1/snapshots", &format!("{{\"name\":\"{}\"}}", "n".repeat(3 << 20)));
    assert_eq!(status, 413);
    let (status, _) = served.request("POST", "/v1/snapshots", &format!("{{\"name\":\"{}\"}}", "n".repeat(1 << 20)));
    assert_eq!(status, 400);
    assert_eq!(served.client().status().unwrap().pid, std::process::id());
    // Neither a client that is silent nor one in the middle of a request keeps the server.
    let silent = UnixStream::connect(served.control.socket()).unwrap();
    let begun = Instant::now();
    served.finish();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop((slow, silent));
}

#[test]
fn the_socket_is_its_owners_alone_and_a_dead_one_is_replaced() {
    let served = served();
    let socket = std::fs::symlink_metadata(served.control.socket()).unwrap();
    assert_eq!((socket.permissions().mode() & 0o7777, socket.uid()), (0o600, rustix::process::geteuid().as_raw()));
    let (path, name) = (served.path.clone(), served.control.socket().to_path_buf());
    let Served { _dir, pool, control, .. } = served;
    control.end();
    pool.unwrap().close().unwrap();
    // As a server leaves it that was killed.
    drop(std::os::unix::net::UnixListener::bind(&name).unwrap());
    assert!(Client::find(&path).unwrap().is_none());
    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    let control = Control::start(&path, pool.clone()).unwrap();
    assert!(Client::find(&path).unwrap().is_some());
    control.end();
    pool.close().unwrap();
}

/// Fails if a client waits for ever for a server that does not answer.
#[test]
fn a_server_that_is_silent_is_an_error_after_a_while() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(64 << 20)).unwrap();
    let control = Control::start(&path, pool.clone()).unwrap();
    let socket = control.socket().to_path_buf();
    control.end();
    let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let begun = Instant::now();
    let found = Client::find(&path).map(|client| client.is_some()).map_err(|e| e.kind());
    assert_eq!(found, Err(std::io::ErrorKind::TimedOut));
    assert!(begun.elapsed() < Duration::from_secs(20));
    drop(silent);
    assert_eq!(Client::find(&path).map(|client| client.is_some()).map_err(|e| e.kind()), Ok(false));
    std::fs::remove_file(&socket).unwrap();
    pool.close().unwrap();
}
