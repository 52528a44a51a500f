//! What the kernel keeps of the bytes of files (`mount --cache`) is what the pool has, whoever changes it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use common::{Mount, Place, can_mount, check, fails, ok, pattern};
use rustix::fs::FallocateFlags;

const POLICIES: [&str; 3] = ["none", "read", "writeback"];
const LEN: usize = 300_000;

/// Fails if a page stays in the kernel that a command has changed in the pool.
#[test]
fn what_a_command_changes_is_read_from_the_mount_and_its_mappings() {
    if !can_mount() {
        return;
    }
    for policy in POLICIES {
        let place = Place::in_shm();
        let mount = Mount::start(&place, &["--create", "64M", "--cache", policy]);
        let (path, at) = (mount.dir.join("file"), format!("{}:/file", mount.pool));
        let (first, second) = (pattern(LEN, 1), pattern(LEN - 5000, 2));
        fs::write(&path, &first).unwrap();
        let open = File::options().read(true).write(true).open(&path).unwrap();
        let mut seen = vec![0; LEN];
        open.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == first, "{policy}");
        let source = place.path("source");
        fs::write(&source, &second).unwrap();
        // What the kernel has written late must not come after what the command writes.
        open.sync_all().unwrap();
        ok(&["put", source.to_str().unwrap(), &at]);
        assert!(fs::read(&path).unwrap() == second, "{policy}: read after put");
        assert_eq!(fs::metadata(&path).unwrap().len() as usize, second.len());
        // The other way round: a command sees what the mount has synced.
        fs::write(&path, &first).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        assert!(common::ok_with_input(&["get", &at, "-"], b"") == first, "{policy}: get after a write");
        drop(open);
        let pool = mount.pool.clone();
        mount.finish();
        check(&pool);
    }
}

/// Writes, appends, cuts, holes and copies in all sizes, compared with the same on an ordinary file.
#[test]
fn files_are_the_same_with_every_policy() {
    if !can_mount() {
        return;
    }
    for policy in POLICIES {
        let place = Place::new();
        let mount = Mount::start(&place, &["--create", "64M", "--cache", policy]);
        let paths = [mount.dir.join("file"), place.path("model")];
        for path in &paths {
            let mut file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
            let mut append = File::options().append(true).open(path).unwrap();
            file.write_all(&pattern(LEN, 3)).unwrap();
            (0..2000u32).for_each(|n| append.write_all(&n.to_le_bytes()).unwrap());
            file.set_len(200_001).unwrap();
            file.set_len(260_000).unwrap();
            rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 5000, 70_000).unwrap();
            append.write_all(b"end").unwrap();
            let (mut from, mut to) = (100_000, 20_000);
            rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 9000).unwrap();
            file.seek(SeekFrom::Start(150_000)).unwrap();
            let mut part = [0; 7000];
            file.read_exact(&mut part).unwrap();
            file.write_all_at(&part, 259_990).unwrap();
        }
        let [there, model] = paths.each_ref().map(|path| fs::read(path).unwrap());
        assert!(there == model, "{policy}");
        let (pool, file) = (mount.pool.clone(), format!("{}:/file", mount.pool));
        mount.finish();
        assert!(common::ok_with_input(&["get", &file, "-"], b"") == model, "{policy}: after the unmount");
        check(&pool);
    }
}

#[test]
fn another_policy_is_wrong_usage() {
    let place = Place::in_shm();
    let pool = place.pool("16M");
    fails(2, &["--cache", "none", "read", "writeback"], &["mount", "--cache", "all", &pool, &place.str("m")]);
}
