//! From the unmount to the free pool: who waits for what, and what is said to those who come too early.
//! And mounts that mount(8) makes.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Mount, Place, can_mount, fails, ok, pagestone, pattern, run};

/// Unmounts as umount(8) does: it returns before the server knows.
fn umount(dir: &Path) {
    let begun = Instant::now();
    while let Err(e) = pagestone_mount::unmount(dir) {
        assert!(e.raw_os_error() == Some(libc::EBUSY) && begun.elapsed().as_secs() < 20, "{e}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn whoever_comes_right_after_an_unmount_waits_for_the_server() {
    if !can_mount() {
        return;
    }
    for place in [Place::new(), Place::in_shm()] {
        for round in 0..6 {
            let mut mount = Mount::start(&place, if round == 0 { &["--create", "256M"] } else { &[] });
            // Something to write back, so that closing takes its time.
            fs::write(mount.dir.join("file"), pattern(20 << 20, round)).unwrap();
            umount(&mount.dir);
            match round % 3 {
                0 => common::check(&mount.pool),
                1 => assert_eq!(ok(&["ls", &mount.pool]), "file\n"),
                _ => Mount::start(&place, &[]).finish(),
            }
            assert!(mount.ended().success());
        }
    }
}

#[test]
fn umount_returns_when_everything_is_durable_and_the_pool_is_free() {
    if !can_mount() {
        return;
    }
    for place in [Place::new(), Place::in_shm()] {
        let mut mount = Mount::fresh(&place);
        let dir = mount.dir.to_str().unwrap().to_owned();
        let file = File::create(mount.dir.join("file")).unwrap();
        file.write_all_at(&pattern(20 << 20, 1), 0).unwrap();
        fails(1, &["in use", "--lazy"], &["umount", &dir]);
        drop(file);
        ok(&["umount", &dir]);
        // No patience here: this is the library.
        let pool = pagestone::Pool::open(Path::new(&mount.pool), &pagestone::OpenOptions::default()).unwrap();
        assert_eq!(pool.info().unwrap().replayed, 0);
        drop(pool);
        assert!(mount.ended().success());
        fails(1, &["not mounted"], &["umount", &dir]);
        fails(1, &["not a mount of a pool"], &["umount", "/proc"]);
    }
}

#[test]
fn in_use_says_by_whom_and_where() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    let pid = mount.pid().to_string();
    let begun = Instant::now();
    fails(1, &["in use", &pid, mount.dir.to_str().unwrap()], &["check", &mount.pool]);
    assert!(begun.elapsed() < Duration::from_secs(5), "one that stays is not waited for");
    mount.finish();
}

/// A program in a mount namespace of its own, which has a copy of every mount. Ends with the test.
struct Elsewhere(Child);

impl Elsewhere {
    fn new() -> Option<Elsewhere> {
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sleep", "60"]).stdin(Stdio::null());
        let elsewhere = Elsewhere(command.spawn().ok()?);
        let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/mnt"));
        let begun = Instant::now();
        while namespace(&elsewhere.0.id().to_string()).ok()? == namespace("self").ok()?
            || fs::read(format!("/proc/{}/comm", elsewhere.0.id())).ok()? != b"sleep\n"
        {
            if begun.elapsed().as_secs() > 10 {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(elsewhere)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_copy_of_the_mount_in_another_namespace_is_named() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mut mount = Mount::fresh(&place);
    let Some(elsewhere) = Elsewhere::new() else {
        println!("skipped: no mount namespace to be had");
        return;
    };
    let output = run(&["umount", mount.dir.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("stays in use") && said.contains("namespace"), "{said}");
    fails(1, &["in use", "mount namespace", mount.dir.to_str().unwrap()], &["check", &mount.pool]);
    drop(elsewhere);
    common::check(&mount.pool);
    assert!(mount.ended().success());
}

/// The program under the names by which mount(8) and umount(8) know helpers.
struct Helpers(Place);

impl Helpers {
    fn new() -> Helpers {
        let place = Place::in_shm();
        for name in ["mount.fuse.pagestone", "umount.fuse.pagestone"] {
            symlink(env!("CARGO_BIN_EXE_pagestone"), place.path(name)).unwrap();
        }
        Helpers(place)
    }

    fn run(&self, name: &str, args: &[&str]) -> Output {
        Command::new(self.0.path(name)).args(args).stdin(Stdio::null()).output().unwrap()
    }
}

/// A mount whose server is nobody's child. Ends with the test.
struct Unowned(PathBuf);

impl Drop for Unowned {
    fn drop(&mut self) {
        let _ = pagestone_mount::unmount_lazily(&self.0);
    }
}

/// The line of the mount table for a directory: source, directory, type, options.
fn mounted(dir: &Path) -> Option<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut lines = table.lines().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    lines.find(|line| Path::new(&line[1]) == dir)
}

#[test]
fn mount_and_umount_find_their_helpers_do_what_they_ask_for() {
    if !can_mount() {
        return;
    }
    let (place, helpers) = (Place::new(), Helpers::new());
    let pool = place.pool("64M");
    let (dir, shown) = (place.path("mnt"), place.str("mnt"));
    fs::create_dir(&dir).unwrap();
    let unowned = Unowned(dir.clone());
    for (options, expected) in
        [("rw,allow_other,noexec,_netdev,nofail,x-systemd.automount,threads=2", "noexec"), ("ro,defaults", "ro")]
    {
        let output = helpers.run("mount.fuse.pagestone", &[&pool, &shown, "-o", options]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // It stands when the helper returns, which holds nobody's terminal.
        let line = mounted(&dir).expect("mounted");
        assert_eq!((line[0].as_str(), line[2].as_str()), (pool.as_str(), "fuse.pagestone"));
        assert!(line[3].split(',').any(|option| option == expected), "{line:?}");
        if expected == "noexec" {
            fs::write(dir.join("file"), "through the helper").unwrap();
        }
        let output = helpers.run("umount.fuse.pagestone", &[&shown]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(mounted(&dir).is_none());
        assert_eq!(pmem::holder(Path::new(&pool)), None, "free when umount returns");
    }
    assert_eq!(run(&["cat", &format!("{pool}:/file")]).stdout, b"through the helper");
    let wrong = helpers.run("mount.fuse.pagestone", &[&pool, &shown, "-o", "frobnicate"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("frobnicate"));
    let missing = helpers.run("mount.fuse.pagestone", &[&place.str("none.pool"), &shown, "-o", "rw"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("none.pool"));
    drop(unowned);
    common::check(&pool);
}

#[test]
fn a_mount_in_the_background_stands_when_the_command_returns() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let (pool, dir) = (place.str("test.pool"), place.str("mnt"));
    let unowned = Unowned(place.path("mnt"));
    let said = ok(&["mount", &pool, &dir, "--background", "--create", "64M"]);
    assert!(said.contains("umount"), "{said}");
    fs::write(place.path("mnt/file"), "x").unwrap();
    fails(1, &["in use"], &["serve", &pool, "--background"]);
    ok(&["umount", &dir]);
    drop(unowned);
    common::check(&pool);
}

/// Runs the command with paths that may be no text.
fn done(args: &[&OsStr]) {
    let output = pagestone().args(args).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pagestone {args:?} said: {said}");
}

#[test]
fn umount_waits_for_the_server_whatever_the_pool_is_called() {
    if !can_mount() {
        return;
    }
    for name in [&b"a,b.pool"[..], b"back\\slash.pool", b"100%2C.pool", b"no text \xff.pool"] {
        let place = Place::new();
        let (pool, dir) = (place.tmp.path().join(OsStr::from_bytes(name)), place.path("mnt"));
        let unowned = Unowned(dir.clone());
        let words = ["mount", "--background", "--create", "256M"].map(OsStr::new);
        done(&[&words[..], &[pool.as_os_str(), dir.as_os_str()]].concat());
        fs::write(dir.join("file"), pattern(20 << 20, 1)).unwrap();
        done(&["umount".as_ref(), dir.as_os_str()]);
        assert_eq!(pmem::holder(&pool), None, "{}: free when umount returns", pool.display());
        drop(unowned);
        let pool = pagestone::Pool::open(&pool, &pagestone::OpenOptions::default()).unwrap();
        assert_eq!(pool.info().unwrap().replayed, 0);
    }
}

#[test]
fn a_helper_that_is_a_file_of_its_own_mounts_too() {
    if !can_mount() {
        return;
    }
    // A link, and beside the program: nobody may have a program open for writing that is to be run.
    let program = Path::new(env!("CARGO_BIN_EXE_pagestone"));
    let helpers = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let helper = helpers.path().join("mount.fuse.pagestone");
    fs::hard_link(program, &helper).unwrap();
    let place = Place::in_shm();
    let (pool, dir) = (place.pool("64M"), place.str("mnt"));
    let unowned = Unowned(place.path("mnt"));
    let output = Command::new(&helper).args([&pool, &dir, "-o", "rw"]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(place.path("mnt/file"), pattern(20 << 20, 1)).unwrap();
    ok(&["umount", &dir]);
    assert_eq!(pmem::holder(Path::new(&pool)), None, "its server is known as one");
    drop(unowned);
}

#[test]
fn a_server_in_the_background_keeps_nothing_of_its_caller() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let (pool, dir) = (place.pool("64M"), place.str("mnt"));
    let unowned = Unowned(place.path("mnt"));
    fs::create_dir(place.path("here")).unwrap();
    let script = "exec \"$@\" 3>kept 4<&0 5>&1";
    let mut caller = Command::new("sh");
    caller.args([
        "-c",
        script,
        "sh",
        env!("CARGO_BIN_EXE_pagestone"),
        "mount",
        "--background",
        "../test.pool",
        "../mnt",
    ]);
    // It ends when nobody has its standard output open any more.
    let output = caller.current_dir(place.path("here")).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let server = {
        let begun = Instant::now();
        loop {
            match pmem::holder(Path::new(&pool)).filter(|_| mounted(&place.path("mnt")).is_some()) {
                Some(server) => break server,
                None => assert!(begun.elapsed().as_secs() < 20, "it does not mount"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let of = |what: &str| fs::read_link(format!("/proc/{server}/{what}")).unwrap();
    let begun = Instant::now();
    while of("fd/1") != Path::new("/dev/null") && begun.elapsed().as_secs() < 20 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{server}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    let (cwd, kept) = (of("cwd"), open.iter().any(|path| path.ends_with("here/kept")));
    ok(&["umount", &dir]);
    assert!(output.wait_with_output().unwrap().status.success());
    drop(unowned);
    assert_eq!(cwd, Path::new("/"));
    assert!(!kept && !open.iter().any(|path| path.to_string_lossy().starts_with("pipe:")), "{open:?}");
    common::check(&pool);
}

#[test]
fn root_may_ask_for_devices_and_set_user_id() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        return;
    }
    let (place, helpers) = (Place::in_shm(), Helpers::new());
    let (pool, dir) = (place.pool("64M"), place.str("mnt"));
    let options = || mounted(&place.path("mnt")).expect("mounted")[3].clone();
    let has = |option: &str| options().split(',').any(|other| other == option);
    let null = place.path("mnt/null");
    let unowned = Unowned(place.path("mnt"));
    ok(&["mount", &pool, &dir, "--background"]);
    assert!(has("nodev") && has("nosuid"), "{}", options());
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &null, kind, mode, rustix::fs::makedev(1, 3)).unwrap();
    assert_eq!(File::open(&null).unwrap_err().raw_os_error(), Some(libc::EACCES));
    ok(&["umount", &dir]);
    ok(&["mount", &pool, &dir, "--background", "--dev", "--suid"]);
    assert!(!has("nodev") && !has("nosuid"), "{}", options());
    assert_eq!(std::io::read_to_string(File::open(&null).unwrap()).unwrap(), "");
    ok(&["umount", &dir]);
    let output = helpers.run("mount.fuse.pagestone", &[&pool, &dir, "-o", "rw,dev"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!has("nodev") && has("nosuid"), "{}", options());
    ok(&["umount", &dir]);
    drop(unowned);
    // Nobody else may.
    let mut nobody = pagestone();
    nobody.args(["mount", &pool, &dir, "--dev"]).uid(65_534).stdin(Stdio::null());
    if let Ok(output) = nobody.output() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("only root"), "{said}");
    }
}

/// The command under a limit on the length of files, in units of 512 bytes.
fn limited(units: u64, args: &[&str]) -> Output {
    let script = format!("ulimit -f {units}; exec \"$@\"");
    let program = env!("CARGO_BIN_EXE_pagestone");
    Command::new("sh").args(["-c", &script, "sh", program]).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Fails if the signal that comes with the error ends the process.
#[test]
fn a_limit_on_the_length_of_files_is_an_error_and_ends_no_server() {
    let place = Place::in_shm();
    let (new, pool, dir) = (place.str("new"), place.str("test.pool"), place.str("dir"));
    let output = limited(64 << 11, &["create", &new, "--size", "128M"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("are more than"), "{said}");
    assert!(!Path::new(&new).exists());
    if !can_mount() {
        return;
    }
    // An ordinary file is written to by system calls, which have that limit.
    ok(&["create", &pool, "--size", "64M", "--media", "file"]);
    let mounted = limited(20 << 11, &["mount", &pool, &dir, "--background", "--quiet", "--media", "file"]);
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    let small = fs::write(Path::new(&dir).join("small"), vec![1; 5 << 20]);
    let large = fs::write(Path::new(&dir).join("large"), vec![1; 40 << 20]);
    let kept = fs::read(Path::new(&dir).join("small"));
    ok(&["umount", &dir]);
    small.unwrap();
    assert_eq!(large.unwrap_err().raw_os_error(), Some(libc::EFBIG));
    assert!(kept.unwrap() == vec![1; 5 << 20]);
    common::check(&pool);
}
