//! What `put` and `get` must not destroy, and what `-a` must not lose.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use common::{Mount, Place, can_mount, fails, ok, ok_with_input, pagestone, pattern, read, run};
use rustix::fs::XattrFlags;

/// A pool with a file `/x`.
fn with_a_file(place: &Place) -> String {
    let pool = place.pool("32M");
    ok_with_input(&["put", "-", &format!("{pool}:/x")], &pattern(100_000, 1));
    pool
}

#[test]
fn a_pool_is_never_overwritten_by_a_copy() {
    for place in [Place::new(), Place::in_shm()] {
        let pool = with_a_file(&place);
        let other = place.str("other.pool");
        ok(&["create", &other, "--size", "32M"]);
        symlink("other.pool", place.path("link")).unwrap();
        let before = (read(Path::new(&pool)), read(Path::new(&other)));
        let from = format!("{pool}:/x");
        for to in [&pool, &other, &place.str("link")] {
            fails(1, &["is a pagestone pool"], &["get", &from, to]);
        }
        ok_with_input(&["put", "-", &format!("{pool}:/other.pool")], b"an innocent name");
        fails(1, &["is a pagestone pool"], &["get", "-r", &format!("{pool}:/"), place.tmp.path().to_str().unwrap()]);
        assert!(before.1 == read(Path::new(&other)), "not a byte of it changes");
        fails(1, &["is the pool itself"], &["put", &pool, &format!("{pool}:/copy")]);
        let said = run(&["put", "-r", place.tmp.path().to_str().unwrap(), &format!("{other}:/")]);
        assert_eq!(said.status.code(), Some(1), "all but the pool itself");
        assert!(String::from_utf8_lossy(&said.stderr).contains("is the pool itself"));
        common::check(&pool);
        common::check(&other);
    }
}

#[test]
fn a_mounted_pool_is_not_overwritten_either() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    let other = place.str("other.pool");
    ok(&["create", &other, "--size", "32M"]);
    ok_with_input(&["put", "-", &format!("{other}:/x")], b"x");
    fails(1, &["is a pagestone pool"], &["get", &format!("{other}:/x"), &mount.pool]);
    mount.finish();
}

#[test]
fn a_copy_out_takes_the_place_of_a_link_and_writes_through_none() {
    let place = Place::new();
    let pool = with_a_file(&place);
    fs::write(place.path("precious"), "precious").unwrap();
    symlink("precious", place.path("link")).unwrap();
    ok(&["get", &format!("{pool}:/x"), &place.str("link")]);
    assert_eq!(read(&place.path("precious")), b"precious");
    assert_eq!(read(&place.path("link")), pattern(100_000, 1));
    assert!(!fs::symlink_metadata(place.path("link")).unwrap().is_symlink());

    ok(&["mkdir", "-p", &format!("{pool}:/tree/sub")]);
    ok_with_input(&["put", "-", &format!("{pool}:/tree/sub/precious")], b"from the pool");
    fs::create_dir(place.path("out")).unwrap();
    symlink(place.tmp.path(), place.path("out/sub")).unwrap();
    fs::create_dir(place.path("into")).unwrap();
    fs::rename(place.path("out"), place.path("into/tree")).unwrap();
    fails(1, &["sub", "symbolic link"], &["get", "-r", &format!("{pool}:/tree"), &place.str("into")]);
    assert_eq!(read(&place.path("precious")), b"precious");
    // What the user names may be a link to a directory.
    fs::create_dir(place.path("real")).unwrap();
    symlink("real", place.path("named")).unwrap();
    ok(&["get", "-r", &format!("{pool}:/tree"), &place.str("named")]);
    assert_eq!(read(&place.path("real/tree/sub/precious")), b"from the pool");
}

#[test]
fn devices_and_pipes_are_written_to_as_they_are() {
    let place = Place::new();
    let pool = with_a_file(&place);
    let from = format!("{pool}:/x");
    ok(&["get", &from, "/dev/null"]);
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    assert_eq!(run(&["get", &from, "/dev/stdout"]).stdout, pattern(100_000, 1), "a pipe");
    let out = File::create(place.path("out")).unwrap();
    assert!(pagestone().args(["get", &from, "/dev/stdout"]).stdout(out).status().unwrap().success());
    assert_eq!(read(&place.path("out")), pattern(100_000, 1), "a file");
    let fifo = place.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let child = pagestone().args(["get", &from, fifo.to_str().unwrap()]).stdin(Stdio::null()).spawn().unwrap();
    assert_eq!(read(&fifo), pattern(100_000, 1));
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
}

#[test]
fn a_copy_that_fails_leaves_what_was_there() {
    let place = Place::in_shm();
    let pool = with_a_file(&place);
    let at = format!("{pool}:/x");
    fails(1, &["none"], &["put", &place.str("none"), &at]);
    fs::write(place.path("big"), pattern(64 << 20, 1)).unwrap();
    fails(1, &["no space"], &["put", &place.str("big"), &at]);
    assert_eq!(run(&["cat", &at]).stdout, pattern(100_000, 1));
    assert_eq!(ok(&["ls", &pool]), "x\n", "nothing half made is left");
    fs::write(place.path("there"), "there").unwrap();
    fails(1, &["no such file"], &["get", &format!("{pool}:/none"), &place.str("there")]);
    assert_eq!(read(&place.path("there")), b"there");
    common::check(&pool);
}

#[test]
fn trees_can_be_copied_twice_both_ways() {
    let place = Place::in_shm();
    let pool = place.pool("32M");
    let tree = place.path("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::write(tree.join("d/file"), "1").unwrap();
    symlink("file", tree.join("d/link")).unwrap();
    for round in 0..2 {
        ok(&["put", "-r", tree.to_str().unwrap(), &format!("{pool}:/")]);
        ok(&["get", "-r", &format!("{pool}:/"), &place.str("back")]);
        assert_eq!(read(&place.path("back/tree/d/link")), if round == 0 { b"1" } else { b"2" });
        fs::remove_file(tree.join("d/link")).unwrap();
        fs::write(tree.join("d/other"), "2").unwrap();
        symlink("other", tree.join("d/link")).unwrap();
    }
    common::check(&pool);
}

fn same_attributes(a: &Path, b: &Path) {
    let (x, y) = (fs::symlink_metadata(a).unwrap(), fs::symlink_metadata(b).unwrap());
    let of = |m: &fs::Metadata| {
        let times = (m.mtime(), m.mtime_nsec(), m.atime(), m.atime_nsec());
        (m.mode(), m.uid(), m.gid(), if m.is_dir() { 0 } else { m.nlink() }, m.rdev(), times)
    };
    assert_eq!(of(&x), of(&y), "{}", a.display());
}

#[test]
fn an_archive_copy_loses_nothing_both_ways() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root for owners and devices");
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("32M");
    let tree = place.path("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::write(tree.join("program"), "p").unwrap();
    std::os::unix::fs::chown(tree.join("program"), Some(12), Some(34)).unwrap();
    fs::set_permissions(tree.join("program"), fs::Permissions::from_mode(0o6755)).unwrap();
    rustix::fs::setxattr(tree.join("program"), "trusted.note", b"seen", XattrFlags::empty()).unwrap();
    fs::hard_link(tree.join("program"), tree.join("d/same")).unwrap();
    symlink("nowhere", tree.join("dangling")).unwrap();
    std::os::unix::fs::lchown(tree.join("dangling"), Some(7), Some(8)).unwrap();
    let special = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, tree.join(name), kind, 0o640.into(), device).unwrap();
    };
    special("pipe", rustix::fs::FileType::Fifo, 0);
    special("null", rustix::fs::FileType::CharacterDevice, libc::makedev(1, 3));
    fs::set_permissions(tree.join("d"), fs::Permissions::from_mode(0o1770)).unwrap();
    let old = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: -5, tv_nsec: 7 },
        last_modification: rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 },
    };
    for name in ["program", "d", ""] {
        rustix::fs::utimensat(rustix::fs::CWD, tree.join(name), &old, rustix::fs::AtFlags::empty()).unwrap();
    }
    for _ in 0..2 {
        ok(&["put", "-a", tree.to_str().unwrap(), &format!("{pool}:/")]);
        ok(&["get", "-a", &format!("{pool}:/tree"), &place.str("back")]);
        fs::remove_dir_all(place.path("back")).unwrap();
    }
    ok(&["get", "-a", &format!("{pool}:/tree"), &place.str("back")]);
    for name in ["program", "d/same", "d", "dangling", "pipe", "null"] {
        same_attributes(&tree.join(name), &place.path("back").join(name));
    }
    let back = |name: &str| fs::metadata(place.path("back").join(name)).unwrap().ino();
    assert_eq!(back("program"), back("d/same"));
    let mut value = [0; 10];
    assert_eq!(rustix::fs::getxattr(place.path("back/program"), "trusted.note", &mut value), Ok(4));
    common::check(&pool);
}

#[test]
fn what_is_left_out_without_a_is_said() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root for owners");
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("32M");
    let tree = place.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), "a").unwrap();
    let put = ["put", "-r", tree.to_str().unwrap(), &format!("{pool}:/")].map(str::to_owned);
    let put = put.each_ref().map(String::as_str);
    assert!(run(&put).stderr.is_empty(), "nothing is left out");
    std::os::unix::fs::chown(tree.join("a"), Some(12), Some(34)).unwrap();
    fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o4755)).unwrap();
    rustix::fs::setxattr(tree.join("a"), "trusted.x", b"1", XattrFlags::empty()).unwrap();
    fs::hard_link(tree.join("a"), tree.join("b")).unwrap();
    let output = run(&put);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for words in ["without -a", "owners of 2", "set-id bits of 2", "extended attributes of 2", "hard links"] {
        assert!(said.contains(words), "{words} in: {said}");
    }
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("pipe"), rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    let output = run(&put);
    assert_eq!(output.status.code(), Some(1), "a file is missing");
    assert!(String::from_utf8_lossy(&output.stderr).contains("pipe"));
    ok(&["put", "-a", tree.to_str().unwrap(), &format!("{pool}:/")]);
    assert_eq!(run(&["get", "-r", &format!("{pool}:/tree"), &place.str("back")]).status.code(), Some(1));
    assert!(run(&["get", "-r", &format!("{pool}:/tree"), &place.str("back"), "--json"]).stdout.starts_with(
        b"{\"output_version\":1,\"files\":2,\"bytes\":2,\"left_out\":{\"whole\":1,\"owners\":2,\"set_id\":2,\"xattrs\":2,\"links\":1}}"
    ));
}
