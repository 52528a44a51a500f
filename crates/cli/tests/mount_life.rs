//! How a mount begins and ends: every end is clean, or is cleaned up after.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use common::{Mount, Place, can_mount, fails, ok, pagestone, pattern, read};
use rustix::process::Signal;

fn is_mounted(mount: &Mount) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(mount.dir.to_str().unwrap())
}

#[test]
fn umount_from_outside_ends_the_process_and_everything_is_there_again() {
    if !can_mount() {
        return;
    }
    for place in [Place::in_shm(), Place::new()] {
        let bytes = pattern(123_456, 1);
        let mount = Mount::fresh(&place);
        fs::write(mount.dir.join("file"), &bytes).unwrap();
        mount.finish();
        let mount = Mount::start(&place, &[]);
        assert_eq!(read(&mount.dir.join("file")), bytes);
        mount.finish();
        assert_eq!(ok(&["ls", &place.str("test.pool")]), "file\n");
    }
}

#[test]
fn ctrl_c_and_terminate_end_it() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let place = Place::in_shm();
        let mut mount = Mount::fresh(&place);
        fs::write(mount.dir.join("file"), "x").unwrap();
        mount.signal(signal);
        assert_eq!(mount.ended().code(), Some(0));
        assert!(!is_mounted(&mount));
        common::check(&mount.pool);
    }
}

#[test]
fn ctrl_c_while_it_is_in_use_ends_with_the_last_user() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mut mount = Mount::fresh(&place);
    let path = mount.dir.join("file");
    fs::write(&path, "x").unwrap();
    let file = File::open(&path).unwrap();
    mount.signal(Signal::INT);
    let start = std::time::Instant::now();
    while is_mounted(&mount) {
        assert!(start.elapsed().as_secs() < 20, "it stays in sight");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(std::io::read_to_string(&file).unwrap(), "x", "what is open still works");
    drop(file);
    assert_eq!(mount.ended().code(), Some(0));
}

#[test]
fn a_killed_mount_is_mounted_again_and_has_everything() {
    if !can_mount() {
        return;
    }
    for place in [Place::in_shm(), Place::new()] {
        let mut mount = Mount::fresh(&place);
        for n in 0..100 {
            fs::write(mount.dir.join(format!("f{n}")), pattern(n * 100, n as u64)).unwrap();
        }
        mount.signal(Signal::KILL);
        assert!(!mount.ended().success());
        let look = || fs::metadata(&mount.dir).unwrap_err().raw_os_error();
        // The process that did the work dies a moment later; a request that it has is aborted.
        let error = look().filter(|e| *e != libc::ECONNABORTED).or_else(look);
        assert_eq!(error, Some(libc::ENOTCONN));
        let again = Mount::start(&place, &[]);
        for n in 0..100 {
            assert_eq!(read(&again.dir.join(format!("f{n}"))), pattern(n * 100, n as u64), "file {n}");
        }
        again.finish();
    }
}

#[test]
fn a_mount_that_was_looked_at_and_killed_is_mounted_again_as_often_as_that_happens() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mut mount = Mount::fresh(&place);
    for n in 0..4 {
        // The kernel remembers these attributes for longer than the server lives.
        fs::metadata(&mount.dir).unwrap();
        mount.signal(Signal::KILL);
        assert!(!mount.ended().success());
        assert!(fs::metadata(&mount.dir).is_ok(), "the kernel still answers for a server that is gone");
        mount = Mount::start(&place, &[]);
        fs::write(mount.dir.join(format!("f{n}")), "x").unwrap();
    }
    let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(left.matches(mount.dir.to_str().unwrap()).count(), 1, "no dead mount is left below");
    mount.finish();
}

#[test]
fn a_connection_that_is_aborted_leaves_no_dead_mount() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::in_shm();
    let mut mount = Mount::fresh(&place);
    fs::write(mount.dir.join("file"), "x").unwrap();
    let device = std::os::unix::fs::MetadataExt::dev(&fs::metadata(&mount.dir).unwrap());
    let abort = format!("/sys/fs/fuse/connections/{}/abort", libc::minor(device));
    if let Err(e) = fs::write(&abort, "1") {
        println!("skipped: {abort}: {e}");
        return;
    }
    assert_eq!(mount.ended().code(), Some(0));
    assert!(!is_mounted(&mount));
    common::check(&mount.pool);
}

#[test]
fn a_pool_has_one_server_and_a_directory_one_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    let (pool, dir) = (place.str("test.pool"), place.str("mnt"));
    fails(1, &["in use"], &["check", &pool]);
    fails(1, &["in use"], &["serve", &pool]);
    fails(1, &["in use", "umount"], &["mount", &place.str("other.pool"), &dir, "--create", "64M"]);
    mount.finish();
}

#[test]
fn read_only_shows_and_refuses() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    fs::write(mount.dir.join("file"), "x").unwrap();
    mount.finish();
    let mount = Mount::start(&place, &["--read-only"]);
    assert_eq!(read(&mount.dir.join("file")), b"x");
    assert_eq!(fs::write(mount.dir.join("file"), "y").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::create_dir(mount.dir.join("d")).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    mount.finish();
}

#[test]
fn it_says_what_it_did_and_how_to_stop_it() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mount = Mount::fresh(&place);
    mount.finish();
    fs::write(place.path("mnt/covered"), "x").unwrap();
    // The guard needs JSON to know when the mount stands; this one is for people.
    let guard = Mount::start(&place, &[]);
    guard.finish();
    let mut child = pagestone()
        .args(["mount", &place.str("test.pool"), &place.str("mnt")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while fs::metadata(place.path("mnt/covered")).is_ok() && start.elapsed().as_secs() < 20 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let unmounted = pagestone_mount::unmount_lazily(&place.path("mnt"));
    if unmounted.is_err() {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let (said, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for words in ["opened", "media", "durable", "mounted", "stop", "Ctrl-C", "unmounted"] {
        assert!(said.contains(words), "'{words}' is missing in:\n{said}");
    }
    assert!(warned.contains("not empty"), "{warned}");
}

/// Runs the rest of its arguments where there is nothing in `/dev`.
const WITHOUT_DEVICES: [&str; 4] = ["sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh"];

#[test]
fn without_dev_fuse_it_says_what_to_load_and_makes_nothing() {
    let hidden = |options: &str, command: &[&str]| {
        Command::new("unshare").arg(options).args(WITHOUT_DEVICES).args(command).stdin(Stdio::null()).output()
    };
    // Namespaces of our own may need a user namespace, or be forbidden.
    let allowed = |options: &&str| hidden(options, &["true"]).is_ok_and(|tried| tried.status.success());
    let Some(options) = ["-m", "-rm"].into_iter().find(allowed) else {
        println!("skipped: no mount namespace to hide /dev/fuse in");
        return;
    };
    let place = Place::new();
    let (pool, dir) = (place.str("test.pool"), place.path("mnt"));
    let command = [env!("CARGO_BIN_EXE_pagestone"), "mount", &pool, dir.to_str().unwrap(), "--create", "64M"];
    let output = hidden(options, &command).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("pagestone: this system has no /dev/fuse"), "{said}");
    assert!(said.contains("modprobe fuse") && said.contains("--device /dev/fuse"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!dir.exists() && !place.path("test.pool").exists(), "nothing is made for a mount that cannot be");
}
