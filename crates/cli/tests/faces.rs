//! Faces that come and go while a server runs: mounts, and directories that show a mount too.
//!
//! ```text
//!   serve POOL   + mount POOL a      the server mounts it     - umount a     the server stays
//!   mount POOL a + mount POOL b      b shows a's mount        - umount a     the server stays for b
//! ```
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Mount, Place, Served, can_mount, check, fails, ok, pagestone, run};
use pagestone_mount::mount_at;
use rustix::process::{Pid, Signal, geteuid, kill_process};

/// The directories of the mount, as `status` tells them.
fn mounted_on(pool: &str) -> Vec<String> {
    let status = ok(&["status", pool]);
    let mounts = status.lines().filter_map(|line| line.strip_prefix("mount "));
    mounts.map(|dir| dir.trim().to_owned()).collect()
}

/// Ends a mount that a test leaves behind.
struct Dir(String);

impl Drop for Dir {
    fn drop(&mut self) {
        if mount_at(Path::new(&self.0)).is_some() {
            let _ = pagestone_mount::unmount_lazily(Path::new(&self.0));
        }
    }
}

fn dir(place: &Place, name: &str) -> Dir {
    Dir(place.str(name))
}

/// Kills the process that does the work, and waits for the next one.
fn kill_worker(pool: &str) {
    let worker = || {
        let status = ok(&["status", "--json", pool]);
        let at = status.find("\"worker\":").unwrap() + 9;
        let digits: String = status[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<i32>().unwrap()
    };
    let old = worker();
    // One that lives for less counts as one that cannot serve.
    std::thread::sleep(Duration::from_millis(200));
    kill_process(Pid::from_raw(old).unwrap(), Signal::KILL).unwrap();
    let begun = Instant::now();
    while worker() == old {
        assert!(begun.elapsed() < Duration::from_secs(20), "no other process takes over");
    }
}

#[test]
fn a_server_is_mounted_and_unmounted_while_it_runs() {
    if !can_mount() {
        return;
    }
    for place in [Place::in_shm(), Place::new()] {
        let pool = place.pool("64M");
        let served = Served::start(&pool);
        let a = dir(&place, "a");
        for round in 0..3 {
            let said = ok(&["mount", &pool, &a.0]);
            assert!(said.contains("mounted on") && said.contains("by process"), "{said}");
            assert_eq!(mounted_on(&pool), [a.0.as_str()]);
            fails(1, &["mounted"], &["mount", &pool, &a.0]);
            let open = fs::File::create(format!("{}/file-{round}", a.0)).unwrap();
            kill_worker(&pool);
            std::os::unix::fs::FileExt::write_all_at(&open, b"after the kill", 0).unwrap();
            drop(open);
            assert_eq!(ok(&["cat", &format!("{pool}:/file-{round}")]), "after the kill");
            // What another face changes is seen at once, also by the process that has taken over.
            assert!(!Path::new(&format!("{}/new-{round}", a.0)).exists());
            ok(&["mkdir", &format!("{pool}:/new-{round}")]);
            assert!(Path::new(&format!("{}/new-{round}", a.0)).exists());
            ok(&["umount", &a.0]);
            assert!(mount_at(Path::new(&a.0)).is_none());
        }
        assert!(ok(&["ls", &pool]).contains("file-2"));
        // With options of its own.
        ok(&["mount", "--read-only", "--cache", "none", &pool, &a.0]);
        assert!(fs::write(format!("{}/no", a.0), "").is_err());
        assert_eq!(fs::read(format!("{}/file-0", a.0)).unwrap(), b"after the kill");
        served.finish();
        assert!(mount_at(Path::new(&a.0)).is_none(), "the end of the server ends the mount");
        check(&pool);
    }
}

#[test]
fn serve_with_a_mount_goes_on_when_that_is_unmounted() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let a = dir(&place, "a");
    let mut child = pagestone().args(["serve", &pool, "--mount", &a.0]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let served = Served::of(child);
    assert!(line.contains("served") && line.contains(&a.0), "{line}");
    fs::write(format!("{}/file", a.0), "1").unwrap();
    ok(&["umount", &a.0]);
    assert_eq!(ok(&["cat", &format!("{pool}:/file")]), "1");
    ok(&["mount", &pool, &a.0]);
    assert_eq!(fs::read(format!("{}/file", a.0)).unwrap(), b"1");
    // The end of the supervisor takes the worker with it: the mount is dead, and is taken away by the next one.
    served.kill();
    let again = Mount::start(&place, &[]);
    again.finish();
    ok(&["mount", "--background", &pool, &a.0]);
    assert_eq!(fs::read(format!("{}/file", a.0)).unwrap(), b"1");
    ok(&["umount", &a.0]);
    check(&pool);
}

#[test]
fn a_second_directory_shows_the_same_mount() {
    if !can_mount() || !geteuid().is_root() {
        println!("skipped: only root can show a mount on a second directory");
        return;
    }
    let place = Place::new();
    let mut first = Mount::start(&place, &["--create", "64M"]);
    let (pool, a) = (first.pool.clone(), first.dir.clone());
    let (b, c) = (dir(&place, "b"), dir(&place, "c"));
    let said = ok(&["mount", &pool, &b.0]);
    assert!(said.contains("as on"), "{said}");
    ok(&["mount", "--read-only", "--no-exec", &pool, &c.0]);
    assert_eq!(mounted_on(&pool).len(), 3);
    // The kernel has an answer of its own for each of these.
    for n in 0..20 {
        assert!(!Path::new(&format!("{}/file", b.0)).exists() && !Path::new(&format!("{}/file", c.0)).exists());
        fs::write(a.join("file"), format!("{n}")).unwrap();
        assert_eq!(fs::read_to_string(format!("{}/file", b.0)).unwrap(), format!("{n}"));
        fs::write(format!("{}/file", b.0), format!("b{n}")).unwrap();
        assert_eq!(fs::read_to_string(format!("{}/file", c.0)).unwrap(), format!("b{n}"));
        fs::remove_file(a.join("file")).unwrap();
    }
    assert!(fs::write(format!("{}/no", c.0), "").is_err(), "read-only");
    fs::copy("/bin/true", a.join("program")).unwrap();
    assert!(Command::new(a.join("program")).status().unwrap().success());
    assert!(Command::new(format!("{}/program", c.0)).status().is_err(), "no programs");
    // What only the first mount can have.
    let d = place.str("d");
    fails(2, &["--allow-other", "mounted already"], &["mount", "--allow-other", &pool, &d]);
    fails(2, &["--cache", "mounted already"], &["mount", "--cache", "none", &pool, &d]);
    assert!(!Path::new(&d).exists(), "it was not made");
    // The first one goes, the others stay.
    let output = run(&["umount", a.to_str().unwrap()]);
    assert!(output.status.success());
    assert_eq!(mounted_on(&pool).len(), 2);
    fs::write(format!("{}/file", b.0), "still here").unwrap();
    kill_worker(&pool);
    assert_eq!(fs::read_to_string(format!("{}/file", c.0)).unwrap(), "still here");
    ok(&["umount", &b.0]);
    ok(&["umount", &c.0]);
    assert!(first.ended().success(), "it ends with the last one");
    check(&pool);
    // Ctrl-C ends all of them.
    let mut first = Mount::start(&place, &[]);
    ok(&["mount", &pool, &b.0]);
    first.signal(Signal::INT);
    assert!(first.ended().success());
    assert!(mount_at(&a).is_none() && mount_at(Path::new(&b.0)).is_none());
    check(&pool);
}

#[test]
fn what_cannot_be_mounted_is_refused_and_leaves_nothing_behind() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let _served = Served::start(&pool);
    let file = place.str("file");
    fs::write(&file, "").unwrap();
    fails(1, &["not a directory"], &["mount", &pool, &file]);
    fails(1, &["No such file"], &["mount", &pool, &place.str("no/such/dir")]);
    fails(1, &["the pool itself lies below it"], &["mount", &pool, place.tmp.path().to_str().unwrap()]);
    fails(2, &["--http"], &["mount", "--http", "127.0.0.1:0", &pool, &place.str("a")]);
    assert!(!place.path("a").exists());
    assert_eq!(mounted_on(&pool), Vec::<String>::new());
    // The owner of a pool may use it, but root's server mounts for root only.
    if geteuid().is_root() {
        fs::set_permissions(place.tmp.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let other = place.str("other.pool");
        ok(&["create", &other, "--size", "16M"]);
        std::os::unix::fs::chown(&other, Some(65_534), Some(65_534)).unwrap();
        let _served = Served::start(&other);
        let as_owner = |args: &[&str]| pagestone().args(args).uid(65_534).gid(65_534).output().unwrap();
        let listed = as_owner(&["ls", &other]);
        if !listed.status.success() {
            println!("skipped: user 65534 cannot run this program here");
            return;
        }
        let refused = as_owner(&["mount", &other, &place.str("theirs")]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("may mount"), "{said}");
        assert!(!place.path("theirs").exists());
    }
}

#[test]
fn a_path_below_a_mount_names_the_pool() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::start(&place, &["--create", "64M"]);
    let at = |path: &str| format!("{}/{path}", mount.dir.display());
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/file"), "bytes").unwrap();
    std::os::unix::fs::symlink("file", at("dir/link")).unwrap();
    let identity =
        |pool: &str| ok(&["info", pool]).lines().find(|line| line.starts_with("identity")).map(str::to_owned);
    let ours = identity(&mount.pool);
    assert!(ours.is_some());
    for path in ["", "dir", "dir/file", "dir/link"] {
        assert_eq!(identity(&at(path)), ours, "{path}");
    }
    assert_eq!(ok(&["cat", &at("dir/file")]), "bytes");
    assert!(ok(&["stat", &at("dir/link")]).contains("symbolic link"));
    ok(&["clone", &at("dir"), &at("copy")]);
    ok(&["mv", &at("copy/file"), &at("copy/moved")]);
    assert_eq!(fs::read(at("copy/moved")).unwrap(), b"bytes");
    ok(&["put", &at("dir/file"), &at("put")]);
    assert_eq!(fs::read(at("put")).unwrap(), b"bytes");
    // A pool in a file of the mount is a pool of its own.
    ok(&["create", &at("inner.pool"), "--size", "8M"]);
    assert_ne!(identity(&at("inner.pool")), ours);
    ok(&["mkdir", &format!("{}:/inside", at("inner.pool"))]);
    assert!(ok(&["ls", &at("inner.pool")]).contains("inside"));
    fails(1, &["no/file"], &["cat", &at("no/file")]);
    mount.finish();
}

/// Fails if a directory inherits what only another one was not to have.
#[test]
fn each_directory_has_its_own_rights() {
    if !can_mount() || !geteuid().is_root() {
        println!("skipped: only root can show a mount on a second directory");
        return;
    }
    let place = Place::in_shm();
    let mut first = Mount::start(&place, &["--create", "64M"]);
    let (pool, a) = (first.pool.clone(), first.dir.clone());
    let (b, c) = (dir(&place, "b"), dir(&place, "c"));
    ok(&["mount", "--read-only", "--no-exec", &pool, &b.0]);
    ok(&["umount", a.to_str().unwrap()]);
    ok(&["mount", &pool, &c.0]);
    fs::write(format!("{}/file", c.0), "1").unwrap();
    assert!(fs::write(format!("{}/file", b.0), "2").is_err());
    fails(1, &["the pool itself lies below it"], &["mount", &pool, place.tmp.path().to_str().unwrap()]);
    ok(&["umount", &b.0]);
    ok(&["umount", &c.0]);
    assert!(first.ended().success());
    check(&pool);
}

/// Two at one moment: one mounts, the other gets the same mount.
#[test]
fn two_mounts_at_one_moment_both_stand() {
    if !can_mount() || !geteuid().is_root() {
        println!("skipped: only root can show a mount on a second directory");
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let served = Served::start(&pool);
    let (a, b) = (dir(&place, "a"), dir(&place, "b"));
    for _ in 0..10 {
        let both: Vec<_> = [&a, &b].map(|dir| pagestone().args(["mount", &pool, &dir.0]).spawn().unwrap()).into();
        for mut child in both {
            assert!(child.wait().unwrap().success());
        }
        fs::write(format!("{}/file", a.0), "same").unwrap();
        assert_eq!(fs::read(format!("{}/file", b.0)).unwrap(), b"same");
        ok(&["umount", &a.0]);
        ok(&["umount", &b.0]);
    }
    served.finish();
    check(&pool);
}

/// The path of a mounted pool leads to another pool now: no command on the directory may be done to that one.
#[test]
fn a_pool_that_took_the_path_of_a_mounted_one_is_not_meant() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::start(&place, &["--create", "64M"]);
    let file = format!("{}/a", mount.dir.display());
    fs::write(&file, "original").unwrap();
    assert_eq!(ok(&["cat", &file]), "original");
    let elsewhere = place.str("elsewhere.pool");
    fs::rename(&mount.pool, &elsewhere).unwrap();
    ok(&["create", &mount.pool, "--size", "16M"]);
    common::ok_with_input(&["put", "-", &format!("{}:/a", mount.pool)], b"other");
    for command in ["cat", "rm"] {
        assert!(!run(&[command, &file]).status.success(), "{command}");
    }
    let served = Served::start(&mount.pool);
    assert!(!run(&["rm", &file]).status.success());
    assert_eq!(ok(&["cat", &format!("{}:/a", mount.pool)]), "other");
    assert_eq!(fs::read(&file).unwrap(), b"original");
    served.finish();
    fs::rename(&elsewhere, &mount.pool).unwrap();
    assert_eq!(ok(&["cat", &file]), "original");
    mount.finish();
}
