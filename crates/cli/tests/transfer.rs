//! `import` and `export`: the copy is the same, holes stay holes, and what is interrupted goes on or leaves nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Place, Served, can_mount, check, fails, ok, pagestone, pattern};

const MIB: u64 = 1 << 20;

/// Data, holes, an end within a page.
fn sparse(path: &Path, len: u64) -> Vec<u8> {
    let file = fs::File::create(path).unwrap();
    for (at, size) in [(0, 5000), (3 * MIB + 100, 300_000), (9 * MIB, 4096), (len - 777, 777)] {
        file.write_all_at(&pattern(size as usize, at), at).unwrap();
    }
    file.set_len(len).unwrap();
    fs::read(path).unwrap()
}

/// In memory and on an ordinary file, in use and free: the copy is the same both ways.
#[test]
fn what_goes_in_comes_out() {
    for (place, served) in [Place::in_shm(), Place::new()].iter().flat_map(|place| [(place, false), (place, true)]) {
        let pool = place.str("transfer.pool");
        ok(&["create", "--force", &pool, "--size", "128M"]);
        let server = served.then(|| Served::start(&pool));
        let (from, to) = (place.path("from"), place.path("to"));
        for len in [0, 1, 4096, 12 * MIB + 1234, 80 * MIB] {
            let bytes = match len {
                0 | 1 | 4096 => {
                    fs::write(&from, pattern(len as usize, 3)).unwrap();
                    fs::read(&from).unwrap()
                }
                len => sparse(&from, len),
            };
            fs::set_permissions(&from, fs::Permissions::from_mode(0o640)).unwrap();
            let at = format!("{pool}:/file");
            let said = ok(&["import", "--verify", from.to_str().unwrap(), &at]);
            assert!(said.contains("imported") && said.contains("verified"), "{said}");
            assert!(common::ok_with_input(&["cat", &at], b"") == bytes, "{len} bytes, served {served}");
            assert_eq!(ok(&["ls", &pool]).lines().count(), 1, "no other copy is left");
            let said = ok(&["export", "--verify", &at, to.to_str().unwrap()]);
            assert!(said.contains("exported") && said.contains("verified"), "{said}");
            assert!(fs::read(&to).unwrap() == bytes, "{len} bytes, served {served}");
            let meta = fs::metadata(&to).unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, 0o640);
            assert!(len < MIB || meta.blocks() * 512 < 2 * MIB, "holes stay holes: {} blocks", meta.blocks());
            let used = ok(&["du", "-H", "-p", "-o", "bytes", &at]);
            assert!(used.trim().parse::<u64>().unwrap() < 2 * MIB, "{used}");
            assert!(!place.path("to.pagestone-export").exists());
        }
        // Into a directory, and in place of what is there.
        ok(&["mkdir", &format!("{pool}:/dir")]);
        ok(&["import", from.to_str().unwrap(), &format!("{pool}:/dir")]);
        ok(&["import", from.to_str().unwrap(), &format!("{pool}:/dir/from")]);
        assert!(ok(&["ls", &format!("{pool}:/dir")]).contains("from"));
        let moved = ok(&["import", "--json", from.to_str().unwrap(), &format!("{pool}:/dir/from")]);
        assert!(moved.contains("\"output_version\":1") && moved.contains("\"moved\""), "{moved}");
        server.into_iter().for_each(Served::finish);
        check(&pool);
    }
}

/// Ctrl-C, and then again from where it was; and a source that has changed meanwhile begins anew.
#[test]
fn an_interrupted_copy_goes_on() {
    let place = Place::new();
    let pool = place.pool("1100M");
    let from = place.path("from");
    let bytes = pattern(400 << 20, 5);
    fs::write(&from, &bytes).unwrap();
    let at = format!("{pool}:/file");
    let to = place.str("to");
    let commands = [["import", from.to_str().unwrap(), &at], ["export", at.as_str(), &to]];
    for command in commands {
        let mut resumed = 0;
        for _ in 0..20 {
            let mut child = pagestone().args(command).arg("--resume").stdout(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(60));
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            let begun = Instant::now();
            let status = child.wait().unwrap();
            assert!(begun.elapsed() < Duration::from_secs(20));
            if status.success() {
                break;
            }
            resumed += 1;
        }
        let said = ok(&[command[0], command[1], command[2], "--resume", "--verify"]);
        println!("{}: interrupted {resumed} times; {said}", command[0]);
        assert!(resumed > 0, "it was never interrupted");
    }
    assert!(fs::read(&to).unwrap() == bytes);
    check(&pool);
    // The note on a copy names the source as it was.
    let mut child = pagestone().args(commands[0]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(60));
    child.kill().unwrap();
    child.wait().unwrap();
    check(&pool);
    fs::write(&from, pattern(3 << 20, 9)).unwrap();
    let said = ok(&["import", "--resume", "--verify", from.to_str().unwrap(), &at]);
    assert!(!said.contains("before"), "it is another file: {said}");
    assert_eq!(ok(&["ls", &pool]).lines().count(), 1);
    check(&pool);
}

#[test]
fn what_cannot_be_moved_is_refused_and_changes_nothing() {
    let place = Place::new();
    let pool = place.pool("16M");
    let at = |path: &str| format!("{pool}:{path}");
    let (large, small) = (place.path("large"), place.path("small"));
    fs::write(&large, pattern(30 << 20, 1)).unwrap();
    fs::write(&small, "small").unwrap();
    let (large, small) = (large.to_str().unwrap(), small.to_str().unwrap());
    ok(&["import", small, &at("/file")]);
    fails(1, &["no space"], &["import", large, &at("/file")]);
    assert_eq!(ok(&["cat", &at("/file")]), "small");
    fails(1, &["No such file"], &["import", "/nowhere/at/all", &at("/file")]);
    fails(1, &["neither a file"], &["import", "/dev/null", &at("/file")]);
    fails(1, &["no such file"], &["export", &at("/none"), &place.str("to")]);
    fails(1, &["is a directory"], &["export", &at("/"), &place.str("to")]);
    fails(1, &["is a directory"], &["export", &at("/file"), place.tmp.path().to_str().unwrap()]);
    fails(1, &["is a pool"], &["export", &at("/file"), &pool]);
    fails(1, &["neither a file"], &["export", &at("/file"), "/dev/full"]);
    fails(1, &["No such file"], &["export", &at("/file"), &place.str("no/such/dir")]);
    assert!(!place.path("to").exists());
    // The pool itself would grow while it is read.
    fails(1, &["pool in use"], &["import", &pool, &at("/self")]);
    assert_eq!(ok(&["ls", &pool]), "file\n");
    check(&pool);
}

/// A mount shows what is imported at once.
#[test]
fn a_mount_shows_an_import() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = common::Mount::start(&place, &["--create", "64M"]);
    let from = place.path("from");
    for n in 0..5u64 {
        let file = mount.dir.join("file");
        assert_eq!(file.exists(), n > 0);
        let bytes = pattern(100_000 + n as usize * 5000, n);
        fs::write(&from, &bytes).unwrap();
        ok(&["import", from.to_str().unwrap(), &format!("{}:/file", mount.pool)]);
        assert!(fs::read(&file).unwrap() == bytes);
        assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 1);
    }
    mount.finish();
}

/// Others may write to the directory that a copy goes to: nothing is written through a link of theirs, and nobody can read a
/// copy before it has the rights of its file.
#[test]
fn a_copy_follows_no_link_and_is_nobody_elses() {
    let place = Place::new();
    let pool = place.pool("256M");
    let from = place.path("from");
    fs::write(&from, pattern(100 << 20, 1)).unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o644)).unwrap();
    let at = format!("{pool}:/file");
    ok(&["import", from.to_str().unwrap(), &at]);
    let (victim, to) = (place.path("victim"), place.path("to"));
    let partial = place.path("to.pagestone-export");
    fs::write(&victim, "kept").unwrap();
    for resume in [&["--resume"][..], &[]] {
        std::os::unix::fs::symlink(&victim, &partial).unwrap();
        ok(&[&["export", &at, to.to_str().unwrap()][..], resume].concat());
        assert_eq!(fs::read(&victim).unwrap(), b"kept");
        assert!(fs::symlink_metadata(&to).unwrap().is_file() && fs::metadata(&to).unwrap().len() == 100 << 20);
        fs::remove_file(&to).unwrap();
        // Another name of a file of ours is no copy of ours.
        fs::hard_link(&victim, &partial).unwrap();
        ok(&[&["export", &at, to.to_str().unwrap()][..], resume].concat());
        assert_eq!(fs::read(&victim).unwrap(), b"kept");
    }
    let mut child = pagestone().args(["export", &at, to.to_str().unwrap()]).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) && child.try_wait().unwrap().is_none() {
        if let Ok(meta) = fs::metadata(&partial) {
            let mode = meta.permissions().mode() & 0o777;
            assert!(mode == 0o600 || mode == 0o644 && meta.len() == 100 << 20, "{mode:o}");
        }
    }
    assert!(child.wait().unwrap().success());
}

/// A copy of a source that was changed meanwhile is none, and names of any length have room for a copy.
#[test]
fn a_source_that_changes_is_noticed_and_a_long_name_is_none_too_long() {
    let place = Place::new();
    let pool = place.pool("600M");
    let from = place.path("from");
    let at = format!("{pool}:/file");
    fs::write(&from, pattern(200 << 20, 1)).unwrap();
    let mut child = pagestone()
        .args(["import", from.to_str().unwrap(), &at])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // From before it is opened until the copy has ended.
    let open = fs::OpenOptions::new().write(true).open(&from).unwrap();
    while child.try_wait().unwrap().is_none() {
        open.write_all_at(b"changed", 1000).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("changed while it was read"), "{output:?}");
    assert_eq!(ok(&["ls", &pool]), "", "nothing of it is left");
    let long = "n".repeat(250);
    fs::write(&from, "short").unwrap();
    ok(&["import", from.to_str().unwrap(), &format!("{pool}:/{long}")]);
    ok(&["export", &format!("{pool}:/{long}"), &place.str(&long)]);
    assert_eq!(fs::read(place.path(&long)).unwrap(), b"short");
    let served = Served::start(&pool);
    fails(1, &["pool in use"], &["import", &pool, &at]);
    served.finish();
}

/// A server would wait for itself; and programs go on with a file while it is exported.
#[test]
fn a_mounted_pool_is_not_copied_onto_itself_and_its_files_can_be_changed_meanwhile() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mount = common::Mount::start(&place, &["--create", "600M"]);
    let file = mount.dir.join("file");
    let bytes = pattern(200 << 20, 7);
    fs::write(&file, &bytes).unwrap();
    let (at, inside) = (format!("{}:/file", mount.pool), mount.dir.join("inside"));
    fails(1, &["lies on the mount"], &["export", &at, inside.to_str().unwrap()]);
    fails(1, &["lies on the mount"], &["import", file.to_str().unwrap(), &format!("{}:/copy", mount.pool)]);
    let to = place.path("to");
    let mut child = pagestone().args(["export", &at, to.to_str().unwrap()]).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(40));
    let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.write_all_at(b"changed", 150 << 20).unwrap();
    open.set_len(5).unwrap();
    open.set_len(0).unwrap();
    drop(open);
    fs::write(&file, "new").unwrap();
    assert!(child.wait().unwrap().success());
    let copy = fs::read(&to).unwrap();
    assert!(copy == bytes || copy.len() < bytes.len(), "the file as it was when the export began");
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 1);
    mount.finish();
}
