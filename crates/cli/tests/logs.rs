//! Messages of servers: what is said at which level, and in which form.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use common::{Place, can_mount, fails, ok, pagestone};
use serde_json::Value;

/// Serves a pool with these options while `work` runs. What it said on standard error.
fn said(pool: &str, options: &[&str], work: impl FnOnce(u32)) -> String {
    let mut command = pagestone();
    command.arg("serve").args(options).arg(pool).env_remove("JOURNAL_STREAM");
    let mut server: Child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("served"), "{line}");
    work(server.id());
    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut text = String::new();
    server.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(server.wait().unwrap().success(), "{text}");
    text
}

#[test]
fn a_server_is_quiet_unless_it_is_asked_or_something_is_wrong() {
    let place = Place::in_shm();
    let pool = place.str("logs.pool");
    ok(&["create", &pool, "--size", "32M"]);
    let snapshot = |name: &'static str| move |pool: &str| ok(&["snapshot", "create", pool, name]);
    let quiet = said(&pool, &[], |_| drop(snapshot("one")(&pool)));
    assert_eq!(quiet, "");
    let verbose = said(&pool, &["-v"], |_| drop(snapshot("two")(&pool)));
    assert!(verbose.contains("snapshot create two (user=") && !verbose.contains("/v1/"), "{verbose}");
    assert!(verbose.lines().all(|line| line.starts_with("pagestone: ")), "{verbose}");
    let all = said(&pool, &["-vv"], |_| drop(ok(&["ls", &pool])));
    assert!(all.contains("GET /v1/entries?path=/") && all.contains("status=200"), "{all}");
}

#[test]
fn messages_for_programs_are_json_also_those_of_the_supervisor() {
    let place = Place::in_shm();
    let pool = place.str("logs.pool");
    ok(&["create", &pool, "--size", "32M"]);
    let text = said(&pool, &["--log-format", "json", "-v"], |_| {
        ok(&["snapshot", "create", &pool, "one"]);
        ok(&["restart", &pool]);
        ok(&["snapshot", "delete", &pool, "one"]);
    });
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |words: &str| {
        let found = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.contains(words)));
        found.unwrap_or_else(|| panic!("{words}: {text}"))
    };
    assert_eq!(find("snapshot create one")["level"], "INFO");
    assert!(find("snapshot create one")["user"].is_number());
    assert_eq!(find("takes over, as was asked for")["pool"], pool.as_str());
    // The worker that took over has the same options.
    find("snapshot delete one");
    fails(2, &["xml"], &["serve", "--log-format", "xml", &pool]);
}

#[test]
fn serve_mounts_and_goes_to_the_background() {
    let place = Place::in_shm();
    let pool = place.str("logs.pool");
    ok(&["create", &pool, "--size", "32M"]);
    let text = ok(&["serve", "--background", &pool]);
    assert!(text.contains("served to the other commands by process"), "{text}");
    let pid: i32 = text.split("process ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(ok(&["status", &pool]).contains(&format!("process {pid}")));
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    // It waits for a server that is going.
    common::check(&pool);
    if !can_mount() {
        return;
    }
    let dir = place.str("mnt");
    let text = ok(&["serve", "--background", "--mount", &dir, &pool]);
    assert!(text.contains("mounted on"), "{text}");
    let pid: i32 = text.split("process ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    std::fs::write(place.path("mnt").join("file"), "through the mount").unwrap();
    assert_eq!(ok(&["ls", &pool]), "file\n");
    // The end of the server ends the mount.
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    common::check(&pool);
    assert!(!place.path("mnt").join("file").exists());
}
