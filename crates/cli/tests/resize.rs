//! `pagestone grow` and `pagestone shrink`: pools that are free, and pools that are mounted and written to.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Mount, Place, can_mount, check, fails, ok, ok_with_input, pagestone, pattern, run};
use pagestone_mount::resize::{Change, Control, State, Status};
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;
/// Of the file that lies at the end of a pool.
const LONG: usize = 160 << 20;

/// A pool of 384 MiB whose file `kept` lies behind one that was removed.
fn with_data_at_the_end(place: &Place) -> (String, Vec<u8>) {
    let pool = place.pool("384M");
    let kept = pattern(LONG, 2);
    ok_with_input(&["put", "-", &format!("{pool}:/gone")], &pattern(LONG, 1));
    ok_with_input(&["put", "-", &format!("{pool}:/kept")], &kept);
    ok(&["rm", &format!("{pool}:/gone")]);
    (pool, kept)
}

fn cat(pool: &str, name: &str) -> Vec<u8> {
    run(&["cat", &format!("{pool}:/{name}")]).stdout
}

fn size_of(pool: &str) -> u64 {
    let info = ok(&["info", "--json", pool]);
    number(&info, "size")
}

/// The number with this name in JSON.
fn number(json: &str, name: &str) -> u64 {
    let (_, rest) = json.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name} in {json}"));
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn a_pool_that_grows_and_shrinks_keeps_its_files_and_its_file_has_its_length() {
    for place in [Place::new(), Place::in_shm()] {
        let pool = place.pool("32M");
        let first = pattern(9_000_001, 1);
        ok_with_input(&["put", "-", &format!("{pool}:/first")], &first);
        let grown = ok(&["grow", &pool, "100M"]);
        assert_eq!(grown, format!("{pool}: grown from 32 MiB to 100 MiB\n"));
        assert_eq!((size_of(&pool), fs::metadata(&pool).unwrap().len()), (100 * MIB, 100 * MIB));
        let more: Vec<Vec<u8>> = (0..8).map(|n| pattern(7_000_003, 10 + n)).collect();
        for (n, bytes) in more.iter().enumerate() {
            ok_with_input(&["put", "-", &format!("{pool}:/more{n}")], bytes);
        }
        for n in (0..8).step_by(2) {
            ok(&["rm", &format!("{pool}:/more{n}")]);
        }
        check(&pool);
        // Rounded up to whole frames.
        let shrunk = ok(&["shrink", &pool, "59M", "--json"]);
        assert_eq!((number(&shrunk, "old_size"), number(&shrunk, "size")), (100 * MIB, 60 * MIB));
        assert!(number(&shrunk, "moved") > 0 && shrunk.contains("\"mounted\":null"), "{shrunk}");
        assert_eq!((size_of(&pool), fs::metadata(&pool).unwrap().len()), (60 * MIB, 60 * MIB));
        check(&pool);
        assert!(cat(&pool, "first") == first);
        for n in (1..8).step_by(2) {
            assert!(cat(&pool, &format!("more{n}")) == more[n], "more{n}");
        }
    }
}

/// Fails if a file is not opened again that has outgrown the address space set aside for it.
#[test]
fn a_pool_that_is_free_grows_to_any_size() {
    for place in [Place::new(), Place::in_shm()] {
        let pool = place.pool("16M");
        ok_with_input(&["put", "-", &format!("{pool}:/file")], b"here");
        // More than the 256 GiB of address space that are set aside for a small pool.
        ok(&["grow", &pool, "300G"]);
        assert_eq!(size_of(&pool), 300 << 30);
        ok(&["shrink", &pool, "8M"]);
        assert_eq!(fs::metadata(&pool).unwrap().len(), 8 * MIB);
        assert_eq!(cat(&pool, "file"), b"here");
        check(&pool);
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_reason_and_the_pool_is_as_it_was() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let bytes = pattern(40 << 20, 1);
    ok_with_input(&["put", "-", &format!("{pool}:/file")], &bytes);
    fails(1, &["64 MiB", "pagestone shrink"], &["grow", &pool, "32M"]);
    fails(1, &["64 MiB", "pagestone grow"], &["shrink", &pool, "128M"]);
    fails(1, &["too few for a pool"], &["shrink", &pool, "1M"]);
    fails(1, &["too many for a pool"], &["grow", &pool, "512T"]);
    fails(1, &["in use", "does not fit into 32 MiB", "it fits into"], &["shrink", &pool, "32M"]);
    let output = run(&["shrink", &pool, "32M", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.starts_with("{\"error\":") && said.contains("\"exit\":1"),
        "{said}"
    );
    fails(1, &["no such file"], &["grow", &place.str("none"), "1G"]);
    fails(2, &["not a size"], &["grow", &pool, "much"]);
    fails(2, &["required"], &["shrink", &pool]);
    assert_eq!((size_of(&pool), fs::metadata(&pool).unwrap().len()), (64 * MIB, 64 * MIB));
    assert!(cat(&pool, "file") == bytes);
    check(&pool);
}

#[test]
fn the_size_that_a_refusal_names_is_enough() {
    let place = Place::in_shm();
    let pool = place.pool("128M");
    ok_with_input(&["put", "-", &format!("{pool}:/file")], &pattern(41 << 20, 1));
    let said = String::from_utf8(run(&["shrink", &pool, "16M"]).stderr).unwrap();
    let (_, least) = said.rsplit_once('(').unwrap();
    let least = least.split(' ').next().unwrap();
    ok(&["shrink", &pool, least]);
    assert_eq!(size_of(&pool).to_string(), least);
    check(&pool);
}

#[test]
fn a_pool_in_a_program_that_is_no_mount_is_in_use() {
    let place = Place::in_shm();
    let pool = place.pool("16M");
    let held = pagestone::Pool::open(&pool, &pagestone::OpenOptions::default()).unwrap();
    let by = format!("in use by process {}", std::process::id());
    fails(1, &[&by], &["grow", &pool, "32M"]);
    fails(1, &[&by], &["shrink", &pool, "8M"]);
    held.close().unwrap();
    ok(&["grow", &pool, "32M"]);
}

fn start_shrink(pool: &str, size: &str) -> Child {
    pagestone().args(["shrink", pool, size]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

/// Whether the process has a thread that takes signals.
fn takes_signals(child: &Child) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    tasks.flatten().any(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "signals\n"))
}

fn was_interrupted(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGINT), "{said}");
    said.contains("interrupted; the pool keeps its size of 384 MiB")
}

#[test]
fn ctrl_c_ends_a_shrink_after_its_step_and_the_pool_keeps_its_size() {
    let place = Place::in_shm();
    let (pool, kept) = with_data_at_the_end(&place);
    // A signal that arrives before the first step ends the command without a message. Then it was too early for this test.
    let interrupted = (0..200).any(|n| {
        let child = start_shrink(&pool, "192M");
        let begun = Instant::now();
        while !takes_signals(&child) {
            assert!(begun.elapsed().as_secs() < 20, "no thread takes signals");
            thread::sleep(Duration::from_micros(200));
        }
        thread::sleep(Duration::from_millis(n));
        interrupt(&child);
        was_interrupted(&child.wait_with_output().unwrap())
    });
    assert!(interrupted);
    assert_eq!((size_of(&pool), fs::metadata(&pool).unwrap().len()), (384 * MIB, 384 * MIB));
    check(&pool);
    ok(&["shrink", &pool, "192M"]);
    assert!(cat(&pool, "kept") == kept);
    check(&pool);
}

/// Blocks of the filesystem that is mounted there.
fn df(dir: &Path) -> u64 {
    let fs = rustix::fs::statvfs(dir).unwrap();
    fs.f_blocks * fs.f_frsize
}

/// Looks until the state of the last resize is as expected.
fn until(mount: &Mount, expected: impl Fn(&Status) -> bool) -> Status {
    let begun = Instant::now();
    loop {
        let status = Control::new(&mount.dir).status().unwrap();
        if expected(&status) {
            return status;
        }
        assert!(begun.elapsed().as_secs() < 60, "{status:?}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Writes files, removes some, and compares what is there, until it is to end.
fn write_files(dir: &Path, end: &AtomicBool) {
    let (begun, mut n) = (Instant::now(), 0);
    while !end.load(Ordering::Relaxed) && begun.elapsed().as_secs() < 60 || n < 20 {
        let path = dir.join(format!("written{}", n % 10));
        let bytes = pattern(1_000_000 + n % 50 * 1_001, n as u64);
        fs::write(&path, &bytes).unwrap();
        assert!(common::read(&path) == bytes, "{}", path.display());
        n += 1;
    }
}

#[test]
fn a_mounted_pool_is_resized_while_it_is_written_to() {
    if !can_mount() {
        return;
    }
    for place in [Place::new(), Place::in_shm()] {
        let mount = Mount::start(&place, &["--create", "128M"]);
        let (dir, pool) = (mount.dir.as_path(), mount.pool.as_str());
        let bytes: Vec<Vec<u8>> = (0..4).map(|n| pattern(20_000_003, 50 + n)).collect();
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            let writer = scope.spawn(|| write_files(dir, &end));
            let small = df(dir);
            let grown = ok(&["grow", pool, "400M", "--json"]);
            assert!(grown.contains(&format!("\"mounted\":\"{}\"", dir.display())), "{grown}");
            assert_eq!(df(dir) - small, 272 * MIB, "at once");
            for (n, bytes) in bytes.iter().enumerate() {
                fs::write(dir.join(format!("file{n}")), bytes).unwrap();
            }
            let shrunk = ok(&["shrink", pool, "180M"]);
            assert!(shrunk.starts_with(&format!("{pool}: shrunk from 400 MiB to 180 MiB")), "{shrunk}");
            assert_eq!(df(dir) - small, 52 * MIB, "at once");
            fails(1, &["mounted on", "does not fit into 32 MiB", "it fits into"], &["shrink", pool, "32M"]);
            fails(1, &["180 MiB", "pagestone shrink"], &["grow", pool, "32M"]);
            end.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        });
        for (n, bytes) in bytes.iter().enumerate() {
            assert!(common::read(&dir.join(format!("file{n}"))) == *bytes);
        }
        let file = place.path("test.pool");
        mount.finish();
        assert_eq!(fs::metadata(file).unwrap().len(), 180 * MIB);
    }
}

#[test]
fn a_mounted_pool_that_has_no_address_space_for_so_much_keeps_its_size() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::start(&place, &["--create", "16M"]);
    let before = df(&mount.dir);
    fails(1, &["mounted on", "address space", "close the pool"], &["grow", &mount.pool, "300G"]);
    assert_eq!(df(&mount.dir), before);
    mount.finish();
}

#[test]
fn a_shrink_of_a_mounted_pool_is_cancelled_and_one_that_runs_refuses_another() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let (pool, kept) = with_data_at_the_end(&place);
    let mount = Mount::start(&place, &[]);
    let (before, control) = (df(&mount.dir), Control::new(&mount.dir));
    assert_eq!(control.status().unwrap().state, State::None);
    let number = control.start(Change::Shrink, 192 * MIB).unwrap();
    let again = control.start(Change::Grow, 400 * MIB);
    let running = until(&mount, |status| status.moved > 0);
    control.cancel().unwrap();
    let status = until(&mount, |status| status.state != State::Running);
    assert_eq!((status.number, status.state), (number, State::Failed(libc::EINTR)), "{running:?}, {status:?}");
    assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    assert!(status.moved < status.total && status.space.size == 384 * MIB, "{status:?}");
    assert_eq!(df(&mount.dir), before);
    // The same by a command and Ctrl-C.
    let child = start_shrink(&pool, "192M");
    until(&mount, |status| status.number != number && status.state == State::Running);
    interrupt(&child);
    assert!(was_interrupted(&child.wait_with_output().unwrap()));
    ok(&["shrink", &pool, "192M"]);
    assert!(common::read(&mount.dir.join("kept")) == kept);
    mount.finish();
}

#[test]
fn the_end_of_the_server_cancels_a_shrink() {
    if !can_mount() {
        return;
    }
    for by_signal in [false, true] {
        let place = Place::in_shm();
        let (pool, kept) = with_data_at_the_end(&place);
        let mut mount = Mount::start(&place, &[]);
        Control::new(&mount.dir).start(Change::Shrink, 192 * MIB).unwrap();
        until(&mount, |status| status.moved > 0);
        match by_signal {
            true => mount.signal(Signal::TERM),
            false => drop(ok(&["umount", mount.dir.to_str().unwrap()])),
        }
        assert!(mount.ended().success());
        assert_eq!(size_of(&pool), 384 * MIB);
        assert!(cat(&pool, "kept") == kept);
        check(&pool);
    }
}

#[test]
fn another_user_is_refused() {
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to be somebody else");
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    // A pool that others may open: it is the server that refuses.
    fs::set_permissions(place.tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&mount.pool, fs::Permissions::from_mode(0o666)).unwrap();
    for (command, size) in [("grow", "512M"), ("shrink", "128M")] {
        let mut refused = pagestone();
        refused.args([command, &mount.pool, size]).current_dir("/").uid(12345).gid(12345);
        let output = match refused.output() {
            Ok(output) => output,
            Err(e) => {
                println!("skipped: another user cannot run the program here: {e}");
                return;
            }
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("only root and the user who runs the server"), "{said}");
    }
    assert_eq!(Control::new(&mount.dir).status().unwrap().space.size, 256 * MIB);
    mount.finish();
}

#[test]
fn other_nodes_and_mounts_that_are_read_only_refuse() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("32M");
    ok_with_input(&["put", "-", &format!("{pool}:/file")], b"bytes");
    ok(&["mkdir", &format!("{pool}:/dir")]);
    let mount = Mount::start(&place, &["--read-only"]);
    fails(1, &["read-only"], &["grow", &pool, "64M"]);
    for name in ["dir", "file"] {
        let refused = Control::new(&mount.dir.join(name)).status().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTTY), "{name}");
    }
    mount.finish();
}
