//! Clones and snapshots from the command line and on the mount.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use common::{Mount, Place, can_mount, fails, ok, ok_with_input, pattern, read, run};

#[test]
fn clones_of_files_and_trees() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let at = |path: &str| format!("{pool}:{path}");
    let bytes = pattern(3 << 20, 5);
    ok(&["mkdir", &at("/d")]);
    ok_with_input(&["put", "-", &at("/d/a")], &bytes);
    ok(&["clone", &at("/d/a"), &at("/b")]);
    ok(&["clone", &at("/d"), &at("/e")]);
    ok(&["clone", &at("/b"), &at("/d")]);
    ok_with_input(&["put", "-", &at("/b")], b"other");
    for path in ["/d/a", "/e/a", "/d/b"] {
        assert_eq!(run(&["cat", &at(path)]).stdout, bytes, "{path}");
    }
    assert!(ok(&["stat", &at("/e/a")]).contains("3 MiB of it shared"));
    let du = ok(&["du", "--json", &at("/")]);
    assert!(du.contains("\"shared\":9437184") && du.contains("\"own\":4096"), "{du}");
    fails(1, &["exists"], &["clone", &at("/b"), &at("/d/a")]);
    fails(1, &["no such"], &["clone", &at("/nothing"), &at("/x")]);
    fails(2, &["pool"], &["clone", &at("/b"), "other.pool:/b"]);
    fails(1, &["itself"], &["clone", &at("/d"), &at("/d/x")]);
    common::check(&pool);
}

#[test]
fn snapshots_are_made_listed_compared_restored_and_deleted() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let at = |path: &str| format!("{pool}:{path}");
    ok_with_input(&["put", "-", &at("/kept")], b"kept");
    ok_with_input(&["put", "-", &at("/goes")], b"goes");
    assert!(ok(&["snapshot", "create", &pool, "monday"]).contains("2 files"));
    ok_with_input(&["put", "-", &at("/kept")], b"changed");
    ok(&["rm", &at("/goes")]);
    ok(&["mkdir", &at("/comes")]);
    let diff = ok(&["snapshot", "diff", &pool, "monday"]);
    assert_eq!(
        diff.lines().map(|l| l.split("  ").next().unwrap()).collect::<Vec<_>>(),
        ["+ /comes", "- /goes", "m /kept"]
    );
    ok(&["snapshot", "create", &pool, "tuesday"]);
    assert_eq!(ok(&["snapshot", "diff", &pool, "tuesday"]), "");
    assert!(ok(&["snapshot", "diff", &pool, "monday", "tuesday", "--json"]).contains("\"what\":\"removed\""));
    assert!(ok(&["snapshot", "list", "-H", &pool]).lines().count() == 2);
    ok(&["snapshot", "restore", &pool, "monday"]);
    assert_eq!(run(&["cat", &at("/kept"), &at("/goes")]).stdout, b"keptgoes");
    fails(1, &["exists"], &["snapshot", "create", &pool, "monday"]);
    fails(1, &["no such"], &["snapshot", "restore", &pool, "sunday"]);
    fails(1, &["name"], &["snapshot", "create", &pool, ".partial"]);
    ok(&["snapshot", "delete", &pool, "monday"]);
    ok(&["snapshot", "delete", &pool, "tuesday"]);
    assert_eq!(ok(&["snapshot", "list", &pool, "--json"]).trim(), "{\"output_version\":1,\"snapshots\":[]}");
    common::check(&pool);
}

#[test]
fn a_directory_that_somebody_made_among_the_snapshots_is_none() {
    let place = Place::in_shm();
    let pool = place.pool("32M");
    ok_with_input(&["put", "-", &format!("{pool}:/file")], b"1");
    ok(&["snapshot", "create", &pool, "real"]);
    ok(&["mkdir", &format!("{pool}:/.snapshots/made")]);
    let list = ok(&["snapshot", "list", "-H", &pool]);
    assert!(list.contains("UTC  real") && list.lines().count() == 1, "{list}");
    for what in ["restore", "delete", "diff"] {
        fails(1, &["no snapshot"], &["snapshot", what, &pool, "made"]);
    }
    // A copy of a snapshot elsewhere is an ordinary tree.
    ok(&["clone", &format!("{pool}:/.snapshots/real"), &format!("{pool}:/.snapshots/copy")]);
    assert_eq!(ok(&["snapshot", "list", "-H", &pool]), list);
    ok(&["snapshot", "restore", &pool, "real"]);
    assert_eq!(ok(&["snapshot", "list", "-H", &pool]), list);
    common::check(&pool);
}

#[test]
fn copying_on_the_mount_shares() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    let bytes = pattern((40 << 20) + 123, 3);
    fs::write(mount.dir.join("a"), &bytes).unwrap();
    let used = || {
        let space = rustix::fs::statvfs(&mount.dir).unwrap();
        (space.f_blocks - space.f_bfree) * space.f_frsize
    };
    let before = used();
    let done = Command::new("cp").args(["--reflink=auto", "a", "b"]).current_dir(&mount.dir).status().unwrap();
    assert!(done.success());
    assert!(used() < before + (1 << 20), "{} bytes for a copy of 40 MiB", used());
    assert_eq!(fs::metadata(mount.dir.join("b")).unwrap().blocks() * 512, (40 << 20) + 4096);
    let b = File::options().write(true).open(mount.dir.join("b")).unwrap();
    b.write_all_at(b"changed", 20 << 20).unwrap();
    assert_eq!(read(&mount.dir.join("a")), bytes);
    let mut wanted = bytes.clone();
    wanted[20 << 20..][..7].copy_from_slice(b"changed");
    assert_eq!(read(&mount.dir.join("b")), wanted);
    // In parts, as the kernel asks for files of more than four gigabytes.
    let (a, c) = (File::open(mount.dir.join("a")).unwrap(), File::create(mount.dir.join("c")).unwrap());
    let before = used();
    let mut done = 0;
    while done < bytes.len() as u64 {
        let (mut from, mut to) = (done, done);
        done += rustix::fs::copy_file_range(&a, Some(&mut from), &c, Some(&mut to), 16 << 20).unwrap() as u64;
    }
    assert!(used() < before + (1 << 20));
    assert_eq!(read(&mount.dir.join("c")), bytes);
    drop((a, b, c));
    mount.finish();
}
