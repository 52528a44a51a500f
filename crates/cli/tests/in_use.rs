//! Commands on a pool that a server has in use: the answers are the same, and what is mounted shows the changes at once.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::{Mount, Place, Served, can_mount, check, fails, ok, pagestone};

/// Everything that a command prints of a pool.
fn answers(pool: &str) -> Vec<String> {
    let path = |path: &str| format!("{pool}:{path}");
    let commands: [&[&str]; 8] = [
        &["ls", "-l", &path("/")],
        &["ls", "--json", &path("/dir")],
        &["stat", &path("/dir/file")],
        &["cat", &path("/dir/file")],
        &["du", &path("/")],
        &["snapshot", "list", pool],
        &["snapshot", "diff", pool, "first", "--json"],
        &["du", "--json", &path("/dir")],
    ];
    commands.iter().map(|args| ok(args)).collect()
}

/// Copies a tree with all there is in and out, and compares.
fn copies(place: &Place, pool: &str, name: &str) {
    let (from, to) = (place.path(&format!("from-{name}")), place.path(&format!("to-{name}")));
    fs::create_dir_all(from.join("deep/er")).unwrap();
    fs::write(from.join("deep/er/file"), vec![7; 2_500_000]).unwrap();
    fs::hard_link(from.join("deep/er/file"), from.join("link")).unwrap();
    std::os::unix::fs::symlink("deep/er", from.join("symbolic")).unwrap();
    let sparse = fs::File::create(from.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (50 << 20) - 3).unwrap();
    let at = format!("{pool}:/copy-{name}");
    ok(&["put", "-a", from.to_str().unwrap(), &at]);
    ok(&["get", "-a", &at, to.to_str().unwrap()]);
    for file in ["deep/er/file", "link", "sparse"] {
        assert!(fs::read(from.join(file)).unwrap() == fs::read(to.join(file)).unwrap(), "{file}");
    }
    let meta = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
    assert_eq!(meta("link").ino(), meta("deep/er/file").ino());
    assert!(meta("symbolic").is_symlink() && meta("sparse").blocks() < 20_000);
    assert_eq!(meta("deep").mtime(), fs::metadata(from.join("deep")).unwrap().mtime());
    assert_eq!(common::ok_with_input(&["get", &format!("{at}/link"), "-"], b""), vec![7; 2_500_000]);
    common::ok_with_input(&["put", "-", &format!("{at}/stdin")], b"piped");
    assert_eq!(ok(&["cat", &format!("{at}/stdin")]), "piped");
    ok(&["rm", "-r", &at]);
}

#[test]
fn a_pool_in_use_gives_the_answers_of_one_that_is_free() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let source = place.path("source");
    fs::write(&source, vec![b'x'; 3_000_000]).unwrap();
    ok(&["mkdir", &format!("{pool}:/dir")]);
    ok(&["put", source.to_str().unwrap(), &format!("{pool}:/dir/file")]);
    ok(&["snapshot", "create", &pool, "first"]);
    ok(&["put", source.to_str().unwrap(), &format!("{pool}:/second")]);
    let free = answers(&pool);
    copies(&place, &pool, "free");
    let served = Served::start(&pool);
    let in_use = answers(&pool);
    copies(&place, &pool, "used");
    let status = ok(&["status", &pool]);
    assert!(status.contains("process") && status.contains("nothing is wrong"), "{status}");
    served.finish();
    assert_eq!(free, in_use);
    assert!(ok(&["status", &pool]).contains("not in use"));
    check(&pool);
}

/// Fails if the kernel goes on answering from its cache.
#[test]
fn a_mount_shows_what_other_commands_change_at_once() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::start(&place, &["--create", "64M"]);
    let (dir, pool) = (mount.dir.as_path(), mount.pool.as_str());
    let at = |path: &str| format!("{pool}:{path}");
    // Each of these is looked at first, so that the kernel has an answer of its own.
    let names = |dir: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert!(!dir.join("new").exists());
    ok(&["mkdir", &at("/new")]);
    assert!(dir.join("new").is_dir());
    fs::write(dir.join("new/a"), "1").unwrap();
    fs::hard_link(dir.join("new/a"), dir.join("link")).unwrap();
    assert!(!dir.join("moved").exists() && dir.join("new/a").exists());
    ok(&["mv", &at("/new"), &at("/moved")]);
    assert!(!dir.join("new").exists() && dir.join("moved/a").exists());
    assert_eq!(names(dir), ["link", "moved"]);
    assert!(!dir.join(".snapshots/s").exists());
    ok(&["snapshot", "create", pool, "s"]);
    assert!(dir.join(".snapshots/s/moved/a").exists());
    assert_eq!(fs::metadata(dir.join("link")).unwrap().nlink(), 2);
    ok(&["rm", "-r", &at("/moved")]);
    assert!(!dir.join("moved").exists() && !dir.join("moved/a").exists());
    assert_eq!(fs::metadata(dir.join("link")).unwrap().nlink(), 1);
    fs::write(dir.join("link"), "changed").unwrap();
    assert!(!dir.join("copy").exists());
    ok(&["clone", &at("/link"), &at("/copy")]);
    assert_eq!(fs::read(dir.join("copy")).unwrap(), b"changed");
    ok(&["snapshot", "restore", pool, "s"]);
    assert_eq!(names(dir), [".snapshots", "link", "moved"]);
    assert_eq!(
        (fs::read(dir.join("link")).unwrap(), fs::read(dir.join("moved/a")).unwrap()),
        (b"1".into(), b"1".into())
    );
    ok(&["snapshot", "delete", pool, "s"]);
    assert!(!dir.join(".snapshots/s").exists());
    mount.finish();
}

#[test]
fn a_server_that_was_killed_leaves_a_pool_that_every_command_can_use() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let served = Served::start(&pool);
    ok(&["mkdir", &format!("{pool}:/dir")]);
    served.kill();
    assert!(ok(&["ls", &pool]).contains("dir"));
    let served = Served::start(&pool);
    assert!(ok(&["ls", &pool]).contains("dir"));
    served.finish();
    check(&pool);
}

/// Fails if one server of a pool that is only read replaces the socket of another one, or `status` does not name it.
#[test]
fn servers_that_only_read_a_pool_leave_each_other_alone() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let mount = Mount::start(&place, &["--read-only"]);
    let status = ok(&["status", &pool]);
    assert!(status.contains(mount.dir.to_str().unwrap()) && status.contains("read-only"), "{status}");
    fails(1, &["another server"], &["serve", "--read-only", &pool]);
    assert_eq!(ok(&["status", &pool]).lines().count(), status.lines().count());
    fails(1, &["read-only"], &["mkdir", &format!("{pool}:/dir")]);
    mount.finish();
    assert!(ok(&["status", &pool]).contains("not in use"));
}

/// Fails if a command that changes nothing lets the kernel take away what is mounted below.
#[test]
fn a_command_that_fails_leaves_what_is_mounted_below_the_mount() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        println!("skipped: needs root and /dev/fuse");
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::start(&place, &["--create", "64M"]);
    let below = mount.dir.join("a/b");
    fs::create_dir_all(&below).unwrap();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&below).status().unwrap();
    assert!(mounted.success());
    let there = || fs::read_to_string("/proc/mounts").unwrap().contains(below.to_str().unwrap());
    let failed = pagestone().args(["snapshot", "restore", &mount.pool, "none"]).output().unwrap();
    let refused = pagestone().args(["rm", &format!("{}:/a", mount.pool)]).output().unwrap();
    let snapshot = pagestone().args(["snapshot", "create", &mount.pool, "one"]).output().unwrap();
    let inside = mount.dir.join(".snapshots/one/a/b");
    let bound = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inside).status().unwrap();
    let again = pagestone().args(["snapshot", "create", &mount.pool, "one"]).output().unwrap();
    let still = there() && fs::read_to_string("/proc/mounts").unwrap().contains(inside.to_str().unwrap());
    for dir in [&below, &inside] {
        let _ = std::process::Command::new("umount").arg(dir).status();
    }
    assert!(bound.success() && !again.status.success());
    assert!(!failed.status.success() && !refused.status.success() && snapshot.status.success());
    assert!(still, "it is gone");
    mount.finish();
}

/// Fails if whoever may read a pool can answer for it.
#[test]
fn another_user_cannot_answer_for_a_pool() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to be somebody else");
        return;
    }
    use std::os::unix::process::CommandExt;
    let place = Place::in_shm();
    let pool = place.pool("64M");
    fs::set_permissions(place.tmp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(&pool, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let meta = fs::metadata(&pool).unwrap();
    let socket = format!("/run/pagestone/{:x}-{:x}.sock", meta.dev(), meta.ino());
    // Where root's servers listen, so that the place alone makes nobody believe it.
    fs::create_dir_all("/run/pagestone").unwrap();
    let script = "import socket, fcntl, sys\n\
        fcntl.flock(f := open(sys.argv[1], 'rb'), fcntl.LOCK_EX)\n\
        s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[2]); s.listen(); print('ready', flush=True)\n\
        while True:\n  c, _ = s.accept()\n  try:\n    c.recv(9999)\n    \
        c.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n[]')\n  except OSError:\n    pass\n";
    // It goes on after a client that hangs up: it must not release the lock.
    let fake = place.path("fake.sock");
    fs::create_dir(place.path("open")).unwrap();
    fs::set_permissions(place.path("open"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let fake = fake.with_file_name("open").join("fake.sock");
    let child = std::process::Command::new("python3")
        .args(["-c", script, &pool, fake.to_str().unwrap()])
        .uid(12345)
        .gid(12345)
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("skipped: no python3");
        return;
    };
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let child = Served::of(child);
    std::os::unix::fs::symlink(&fake, &socket).unwrap();
    let listed = pagestone().args(["snapshot", "list", &pool]).output().unwrap();
    child.kill();
    fs::remove_file(&socket).unwrap();
    let said = String::from_utf8_lossy(&listed.stderr);
    assert!(line.contains("ready") && !listed.status.success() && said.contains("in use"), "{line}{said}");
}

#[test]
fn what_cannot_be_is_refused_alike() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let at = |path: &str| format!("{pool}:{path}");
    ok(&["mkdir", &at("/dir")]);
    let all = || {
        fails(1, &["/none", "no such file"], &["ls", &at("/none")]);
        fails(1, &["/dir", "exists"], &["mkdir", &at("/dir")]);
        fails(1, &["/dir", "directory"], &["cat", &at("/dir")]);
        fails(1, &["-r"], &["rm", &at("/dir")]);
        fails(2, &["root directory"], &["rm", "-r", &at("/")]);
        fails(1, &["none"], &["snapshot", "restore", &pool, "none"]);
        fails(1, &["/none"], &["mv", &at("/none"), &at("/other")]);
        fails(1, &["dir"], &["clone", &at("/dir"), &at("/dir/below")]);
    };
    all();
    let served = Served::start(&pool);
    all();
    served.finish();
}

#[test]
fn a_pool_is_named_by_its_mount_and_by_every_directory_below_too() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::start(&place, &["--create", "64M"]);
    let dir = mount.dir.to_str().unwrap().to_owned();
    fs::create_dir_all(mount.dir.join("a/b")).unwrap();
    fs::write(mount.dir.join("a/b/file"), "x").unwrap();
    for name in [mount.pool.clone(), dir.clone(), format!("{dir}/a/b")] {
        assert!(ok(&["status", &name]).contains(&mount.pool), "{name}");
        assert!(ok(&["info", "--json", &name]).contains("\"size\":67108864"), "{name}");
        fails(1, &["in use", &dir], &["check", &name]);
    }
    assert_eq!(ok(&["ls", &dir]), "a\n");
    assert_eq!(ok(&["ls", &format!("{dir}/a/b")]), "file\n");
    assert_eq!(ok(&["cat", &format!("{dir}/a:/b/file")]), "x");
    assert!(ok(&["grow", &dir, "128M"]).contains("64 MiB to 128 MiB"));
    // A pool in a file of the mount is itself.
    let inner = format!("{dir}/inner.pool");
    ok(&["create", &inner, "--size", "16M"]);
    assert!(ok(&["info", "--json", &inner]).contains("\"size\":16777216"));
    mount.finish();
}

/// Fails if a command takes a server for there that ends right after it was looked for.
#[test]
fn a_server_that_ends_after_it_was_found_is_not_asked_for_more() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    ok(&["mkdir", &format!("{pool}:/dir")]);
    let dir = pagestone_server::address::prepare_dir().unwrap();
    let commands: [&[&str]; 5] =
        [&["ls", &pool], &["df", &pool], &["status", &pool], &["grow", &pool, "65M"], &["shrink", &pool, "64M"]];
    for args in commands {
        let meta = fs::metadata(&pool).unwrap();
        let socket = dir.join(format!("{:x}-{:x}.sock", meta.dev(), meta.ino()));
        let held = pagestone::Pool::open(Path::new(&pool), &pagestone::OpenOptions::default()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            // Nothing is left of it when the client learns that it is there.
            held.close().unwrap();
            drop(listener);
            fs::remove_file(&socket).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        });
        ok(args);
        server.join().unwrap();
    }
}
