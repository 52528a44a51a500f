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
use pagestone_server::api::{Change, Job, JobState};
use pagestone_server::{Client, Store};
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

/// Bytes that a process has written by system calls, as its kernel counts them.
fn written(process: &str) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("wchar: "))?.parse().ok()
}

/// Starts a shrink and interrupts it when it has moved something. No answer if it had ended by then.
fn interrupted_shrink(pool: &str) -> Option<Output> {
    // Taken for an ordinary file, the pool is written by system calls.
    let mut shrink = pagestone();
    shrink.args(["shrink", pool, "192M", "--media", "file"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shrink.spawn().unwrap();
    let (begun, id) = (Instant::now(), child.id().to_string());
    while written(&id).is_none_or(|bytes| bytes < 4 * MIB) {
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{ended}");
            return None;
        }
        assert!(begun.elapsed().as_secs() < 60, "nothing is moved");
        thread::sleep(Duration::from_micros(200));
    }
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || was_interrupted(&output), "{said}");
    (!output.status.success()).then_some(output)
}

fn was_interrupted(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGINT), "{said}");
    said.contains("interrupted; the pool keeps its size of 384 MiB")
}

#[test]
fn ctrl_c_ends_a_shrink_after_its_step_and_the_pool_keeps_its_size() {
    if written("self").is_none() {
        println!("skipped: this kernel does not count what a process writes");
        return;
    }
    // On a busy machine a shrink may be over before this test looks at it. Then another one is tried.
    let tries = (0..10).find_map(|_| {
        let place = Place::in_shm();
        let (pool, kept) = with_data_at_the_end(&place);
        interrupted_shrink(&pool).map(|_| (place, pool, kept))
    });
    let (_place, pool, kept) = tries.expect("ten shrinks were over before they could be interrupted");
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

/// The server of the mount.
fn server(mount: &Mount) -> Client {
    Client::find(Path::new(&mount.pool)).unwrap().expect("a server")
}

/// Looks until the operation is as expected.
fn until(client: &Client, number: u64, expected: impl Fn(&Job) -> bool) -> Job {
    let begun = Instant::now();
    loop {
        match client.job(number) {
            Ok(job) if expected(&job) => return job,
            other => assert!(begun.elapsed().as_secs() < 60, "{other:?}"),
        }
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
    let (before, client) = (df(&mount.dir), server(&mount));
    assert!(client.job(1).is_err());
    let number = client.begin_resize(Change::Shrink, 192 * MIB).unwrap().number;
    let again = client.begin_resize(Change::Grow, 400 * MIB);
    let running = until(&client, number, |job| job.done > 0);
    client.cancel_job(number).unwrap();
    let job = until(&client, number, |job| job.state != JobState::Running);
    let errno = job.problem.as_ref().map(|problem| problem.errno);
    assert_eq!((job.state, errno), (JobState::Failed, Some(libc::EINTR)), "{running:?}, {job:?}");
    assert_eq!(again.unwrap_err().errno(), libc::EBUSY);
    assert!(job.done < job.total && client.info().unwrap().size == 384 * MIB, "{job:?}");
    assert_eq!(df(&mount.dir), before);
    // The same by a command and Ctrl-C.
    let child = start_shrink(&pool, "192M");
    until(&client, number + 1, |job| job.state == JobState::Running);
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
        let client = server(&mount);
        let number = client.begin_resize(Change::Shrink, 192 * MIB).unwrap().number;
        until(&client, number, |job| job.done > 0);
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
        assert!(said.contains("only root and the owner of the pool"), "{said}");
    }
    assert_eq!(server(&mount).info().unwrap().size, 256 * MIB);
    mount.finish();
}

#[test]
fn a_mount_that_is_read_only_refuses() {
    if !can_mount() {
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("32M");
    let mount = Mount::start(&place, &["--read-only"]);
    fails(1, &["read-only"], &["grow", &pool, "64M"]);
    mount.finish();
}
