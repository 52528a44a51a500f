//! The server as a service: what it tells the one who started it, and the unit.

mod common;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Place, can_mount, ok, pagestone};

fn message(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let len = socket.recv(&mut buffer).expect("a message");
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

/// Fails if a service counts as started before its mount stands, or its stop is not told.
#[test]
fn a_service_is_ready_when_its_mount_stands_and_says_that_it_stops() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let (pool, dir) = (place.pool("64M"), place.str("dir"));
    let path = place.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut server = pagestone();
    let mut server =
        server.args(["mount", &pool, &dir]).env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).spawn().unwrap();
    let ready = message(&socket);
    let stands = std::fs::read_to_string("/proc/mounts").unwrap().contains(&dir);
    ok(&["umount", &dir]);
    let stopping = message(&socket);
    assert!(server.wait().unwrap().success());
    assert!(ready.contains("READY=1") && ready.contains(&pool) && stands, "{ready}");
    assert!(stopping.contains("STOPPING=1"), "{stopping}");
}

#[test]
fn the_unit_is_what_systemd_understands() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib/systemd/pagestone@.service");
    let text = std::fs::read_to_string(unit).unwrap();
    assert!(text.contains("ExecStart=/usr/bin/pagestone mount ") && text.contains("Type=notify"));
    let place = Place::in_shm();
    // The program lies elsewhere here, and there is no manual page of it.
    let here = text.replace("/usr/bin/pagestone", env!("CARGO_BIN_EXE_pagestone"));
    let here: String =
        here.lines().filter(|line| !line.starts_with("Documentation=")).map(|line| format!("{line}\n")).collect();
    std::fs::write(place.path("pagestone@demo.service"), here).unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", &place.str("pagestone@demo.service")]).output();
    match verified {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let ours: Vec<&str> = said.lines().filter(|line| line.contains("pagestone")).collect();
            assert!(output.status.success() && ours.is_empty(), "{said}");
        }
        Err(e) => println!("skipped: no systemd-analyze: {e}"),
    }
}
