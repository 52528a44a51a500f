//! The process that does a server's work dies, and another one takes over. `tests/programs/survived.py` has real programs.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Mount, Place, Served, can_mount, check, fails, ok};
use rustix::process::{Pid, Signal, kill_process};

/// The worker of a server, once there is one.
fn worker(server: u32) -> Pid {
    let begun = Instant::now();
    loop {
        let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
        if let Some(pid) = children.split_whitespace().next().and_then(|pid| Pid::from_raw(pid.parse().unwrap())) {
            return pid;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "no worker");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills it, and returns when another one answers. A worker that does not live for 100 ms counts as one that cannot.
fn kill_worker(mount: &Mount) {
    std::thread::sleep(Duration::from_millis(150));
    kill_process(worker(mount.pid()), Signal::KILL).unwrap();
    fs::metadata(mount.dir.join("somebody has to answer this")).unwrap_err();
}

/// A mount that survives, if this kernel can. Older ones say at the start that they cannot.
fn survives() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    if version < (6, 9) {
        println!("skipped: Linux {release} cannot send requests again");
    }
    can_mount() && version >= (6, 9)
}

fn is_locked(path: &Path) -> bool {
    !Command::new("flock").args(["-n".as_ref(), path.as_os_str(), "true".as_ref()]).status().unwrap().success()
}

#[test]
fn open_files_locks_and_files_without_a_name_stay() {
    if !survives() {
        return;
    }
    let place = Place::new();
    let mount = Mount::start(&place, &["--create", "64M"]);
    let open = |name: &str| {
        File::options().create(true).truncate(false).read(true).write(true).open(mount.dir.join(name)).unwrap()
    };
    let (named, gone, unlinked_later) = (open("named"), open("gone"), open("later"));
    rustix::fs::flock(&named, rustix::fs::FlockOperation::LockExclusive).unwrap();
    gone.write_all_at(&[7; 100_000], 0).unwrap();
    unlinked_later.write_all_at(b"kept", 0).unwrap();
    fs::remove_file(mount.dir.join("gone")).unwrap();
    for n in 0..6u64 {
        named.write_all_at(&n.to_le_bytes(), n * 8).unwrap();
        kill_worker(&mount);
        if n == 2 {
            fs::remove_file(mount.dir.join("later")).unwrap();
        }
        let mut bytes = [0; 4];
        gone.read_exact_at(&mut bytes, 99_996).unwrap();
        assert_eq!(bytes, [7; 4]);
        unlinked_later.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"kept");
        assert_eq!(gone.metadata().unwrap().nlink(), 0);
        assert!(is_locked(&mount.dir.join("named")));
        // Opened in a worker that is gone by the next turn.
        assert_eq!(fs::read(mount.dir.join("named")).unwrap().len() as u64, (n + 1) * 8);
    }
    let free = || rustix::fs::statvfs(&mount.dir).unwrap().f_bfree;
    let before = free();
    drop((gone, unlinked_later));
    let begun = Instant::now();
    while free() < before + 24 {
        assert!(begun.elapsed() < Duration::from_secs(10), "their space is not freed: {before}, {}", free());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(named);
    mount.finish();
}

/// Each thread has its own names, so each answer is known. Fails if a request is done twice, or not at all.
#[test]
fn names_that_are_made_and_removed_meanwhile_give_the_right_answers() {
    if !survives() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::start(&place, &["--create", "64M"]);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (stop, rounds, dir) = (&stop, &rounds, mount.dir.join(format!("d{thread}")));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                let (a, b, link) = (dir.join("a"), dir.join("b"), dir.join("link"));
                while !stop.load(Ordering::Relaxed) {
                    File::create_new(&a).unwrap();
                    fs::hard_link(&a, &b).unwrap();
                    fs::remove_file(&a).unwrap();
                    fs::rename(&b, &a).unwrap();
                    std::os::unix::fs::symlink("a", &link).unwrap();
                    fs::create_dir(&b).unwrap();
                    rustix::fs::setxattr(&a, "user.x", b"1", rustix::fs::XattrFlags::CREATE).unwrap();
                    rustix::fs::removexattr(&a, "user.x").unwrap();
                    fs::remove_dir(&b).unwrap();
                    fs::remove_file(&link).unwrap();
                    fs::remove_file(&a).unwrap();
                    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..12 {
            kill_worker(&mount);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(rounds.load(Ordering::Relaxed) > 10);
    mount.finish();
}

#[test]
fn a_restart_is_asked_for_by_anybody_who_may_use_the_pool() {
    let place = Place::in_shm();
    let pool = place.pool("32M");
    fails(1, &["not in use", "nothing to restart"], &["restart", &pool]);
    let served = Served::start(&pool);
    ok(&["mkdir", &format!("{pool}:/d")]);
    let before = ok(&["status", "--json", &pool]);
    assert!(ok(&["restart", &pool]).contains("serves it after"));
    let after = ok(&["status", "--json", &pool]);
    let field = |text: &str, name: &str| {
        text.split(&format!("\"{name}\":")).nth(1).unwrap().split(',').next().unwrap().trim().to_owned()
    };
    assert_eq!(field(&before, "pid"), field(&after, "pid"), "the server is the same");
    assert_ne!(field(&before, "worker"), field(&after, "worker"));
    assert!(ok(&["ls", &format!("{pool}:/")]).contains('d'));
    served.finish();
    check(&pool);
}

/// Whoever kills the server means all of it.
#[test]
fn with_the_server_its_worker_goes_and_the_pool_is_free() {
    if !survives() {
        return;
    }
    let place = Place::in_shm();
    let mut mount = Mount::start(&place, &["--create", "32M"]);
    fs::write(mount.dir.join("file"), b"kept").unwrap();
    mount.signal(Signal::KILL);
    mount.ended();
    check(&mount.pool);
    assert_eq!(ok(&["cat", &format!("{}:/file", mount.pool)]), "kept");
    assert!(fs::read_dir(&mount.dir).is_err(), "a dead mount");
    pagestone_mount::unmount_lazily(&mount.dir).unwrap();
}

/// It is started by the server only.
#[test]
fn a_worker_that_nobody_has_started_says_so() {
    let place = Place::in_shm();
    let pool = place.pool("16M");
    fails(1, &["server's own use"], &["serve", "--worker", &pool]);
    fails(1, &["server's own use"], &["mount", "--worker", &pool, &place.str("m")]);
    check(&pool);
}
