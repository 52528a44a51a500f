//! Files in and out of a pool that is not mounted.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use common::{Place, ok, ok_with_input, pattern, read, run};

#[test]
fn create_and_info_report_what_there_is() {
    for place in [Place::new(), Place::in_shm()] {
        let pool = place.str("test.pool");
        assert!(ok(&["create", &pool, "--size", "64M"]).contains("64 MiB"));
        let info = ok(&["info", &pool]);
        for row in ["media", "durability", "granularity", "persist method", "capacity", "used", "descriptors", "memory"]
        {
            assert!(info.contains(row), "{row} is missing in:\n{info}");
        }
        let json = ok(&["info", &pool, "--json"]);
        assert!(json.contains("\"size\":67108864") && json.lines().count() == 1, "{json}");
        assert!(ok(&["check", &pool]).contains("clean"));
        assert!(ok(&["check", &pool, "--json"]).contains("\"verdict\":\"clean\""));
    }
}

#[test]
fn a_file_comes_out_as_it_went_in() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    for (n, len) in [0, 1, 4095, 4096, 4097, 1 << 20, (5 << 20) + 3].into_iter().enumerate() {
        let bytes = pattern(len, n as u64);
        let (from, to) = (place.str("in"), format!("{pool}:/f{n}"));
        fs::write(&from, &bytes).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o640)).unwrap();
        ok(&["put", &from, &to]);
        ok(&["get", &to, &place.str("out")]);
        assert_eq!(read(&place.path("out")), bytes);
        assert_eq!(fs::metadata(place.path("out")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::metadata(place.path("out")).unwrap().mtime(), fs::metadata(&from).unwrap().mtime());
        fs::remove_file(place.path("out")).unwrap();
        assert_eq!(run(&["cat", &to]).stdout, bytes);
        assert_eq!(run(&["get", &to, "-"]).stdout, bytes);
    }
    common::check(&pool);
}

#[test]
fn streams_and_overwriting() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let target = format!("{pool}:/stream");
    let bytes = pattern((3 << 20) + 17, 9);
    ok_with_input(&["put", "-", &target], &bytes);
    assert_eq!(run(&["cat", &target]).stdout, bytes);
    ok_with_input(&["put", "-", &target], b"short");
    assert_eq!(run(&["cat", &target, &target]).stdout, b"shortshort");
}

#[test]
fn holes_stay_holes_both_ways() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let sparse = fs::File::create(place.path("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 1 << 30).unwrap();
    let target = format!("{pool}:/sparse");
    ok(&["put", &place.str("sparse"), &target]);
    assert!(ok(&["stat", &target]).contains("1073741827 bytes"));
    ok(&["get", &target, &place.str("back")]);
    let back = fs::metadata(place.path("back")).unwrap();
    assert_eq!(back.len(), (1 << 30) + 3);
    assert!(back.blocks() * 512 < 4 << 20, "{} bytes are allocated", back.blocks() * 512);
}

#[test]
fn names_are_made_listed_moved_and_removed() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let at = |path: &str| format!("{pool}:{path}");
    ok(&["mkdir", "-p", &at("/a/b/c"), &at("/d")]);
    ok(&["mkdir", "-p", &at("/a/b/c")]);
    ok_with_input(&["put", "-", &at("/a/b/c/file")], b"twelve bytes");
    assert_eq!(ok(&["ls", &at("/")]), "a\nd\n");
    assert_eq!(ok(&["ls", &pool]), "a\nd\n");
    let long = ok(&["ls", "-l", &at("/a/b/c")]);
    assert!(long.starts_with("-rw-") && long.contains(" 12 ") && long.ends_with(" file\n"), "{long}");
    let json = ok(&["ls", &at("/a/b/c"), "--json"]);
    assert!(json.contains("\"name\":\"file\"") && json.contains("\"size\":12"), "{json}");
    ok(&["mv", &at("/a/b/c/file"), &at("/d")]);
    ok(&["mv", &at("/d/file"), &at("/d/renamed")]);
    assert_eq!(run(&["cat", &at("/d/renamed")]).stdout, b"twelve bytes");
    ok_with_input(&["put", "-", &at("/other")], b"x");
    assert_eq!(run(&["mv", "-n", &at("/other"), &at("/d/renamed")]).status.code(), Some(1));
    ok(&["rm", &at("/other")]);
    ok(&["rm", "-r", &at("/a"), &at("/d")]);
    assert_eq!(ok(&["ls", &at("/")]), "");
    common::check(&pool);
}

#[test]
fn inode_numbers_that_json_readers_would_round_are_strings() {
    let place = Place::in_shm();
    let path = place.path("test.pool");
    let options = pagestone::CreateOptions::new().size(32 << 20);
    let pool = pagestone::Pool::create(&path, &options).unwrap();
    let new = pagestone::inode::NewNode::new(pagestone::FileType::File, 0o644);
    pool.root().create(b"small", &new).unwrap();
    let large = (0..1_000_000).find_map(|_| {
        let ino = pool.root().create(b"large", &new).unwrap().ino;
        if ino.0 > 1 << 53 {
            return Some(ino);
        }
        pool.root().unlink(b"large").unwrap();
        None
    });
    let large = large.expect("the same place is used again, each time with another number").0;
    pool.close().unwrap();
    let listed = ok(&["ls", "--json", path.to_str().unwrap()]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["entries"][0]["ino"].as_str(), Some(large.to_string().as_str()));
    assert!(listed["entries"][1]["ino"].is_u64());
}

#[test]
fn whole_directories_go_in_and_out() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let tree = place.path("tree");
    fs::create_dir_all(tree.join("deep/er")).unwrap();
    for n in 0..200 {
        fs::write(tree.join(format!("deep/f{n}")), pattern(n * 37, n as u64)).unwrap();
    }
    symlink("f1", tree.join("deep/link")).unwrap();
    fs::write(tree.join("deep/er/last"), "last").unwrap();
    ok(&["put", "-r", tree.to_str().unwrap(), &format!("{pool}:/")]);
    ok(&["get", "-r", &format!("{pool}:/tree"), &place.str("back")]);
    for n in 0..200 {
        assert_eq!(read(&place.path(&format!("back/deep/f{n}"))), pattern(n * 37, n as u64));
    }
    assert_eq!(fs::read_link(place.path("back/deep/link")).unwrap().to_str(), Some("f1"));
    assert_eq!(read(&place.path("back/deep/er/last")), b"last");
    common::check(&pool);
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&["completions", shell]).contains("pagestone"));
    }
    let place = Place::new();
    ok(&["man", &place.str("man")]);
    assert!(fs::read_to_string(place.path("man/pagestone-mount.1")).unwrap().contains("read\\-only"));
}

/// Fails if a limit of this process is not seen, or something that is missing is no failure.
#[test]
fn the_doctor_names_what_is_limited_and_what_to_change() {
    let found = ok(&["doctor", "--json"]);
    assert!(found.contains("\"what\":\"kernel\"") && found.contains("\"what\":\"media\""), "{found}");
    let script = "ulimit -f 1000; exec \"$0\" doctor";
    let output =
        std::process::Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_pagestone")]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find(|line| line.starts_with("file size")).unwrap();
    assert!(line.contains("limited") && line.contains("512000") && line.contains("ulimit -f unlimited"), "{said}");
}
