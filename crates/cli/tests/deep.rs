//! A check and a walk of a deep tree take memory in proportion to its size, not to the length of all paths.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::Place;
use pagestone::inode::NewNode;
use pagestone::{CreateOptions, FileType, Pool};

#[test]
fn a_chain_of_directories_is_checked_and_walked_in_memory_that_grows_with_its_length_alone() {
    /// All paths together would be two gigabytes; what a command may take is a fraction of that.
    const DEPTH: usize = 20_000;
    const KIB: &str = "400000";
    let place = Place::in_shm();
    let path = place.path("test.pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(256 << 20)).unwrap();
    let mut dir = pool.root();
    for _ in 0..DEPTH {
        let made = dir.create(b"directory", &NewNode::new(FileType::Dir, 0o755)).unwrap();
        dir = pool.node(made.ino).unwrap().dir().unwrap();
    }
    drop(dir);
    pool.close().unwrap();
    // Memory of a process that is its own; the pool is shared memory.
    let script = format!("ulimit -d {KIB} && exec \"$@\"");
    let run = |words: &[&str]| {
        let mut command = Command::new("sh");
        let output = command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_pagestone")]).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words:?}: {said}");
        said
    };
    let pool = path.to_str().unwrap();
    let said = run(&["check", pool]);
    assert!(said.contains("20001 inodes") | said.contains("20002 inodes"), "{said}");
    run(&["du", &format!("{pool}:/")]);
    run(&["rm", "-r", &format!("{pool}:/directory")]);
    assert_eq!(run(&["ls", &format!("{pool}:/")]), "");
}
