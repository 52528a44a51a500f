//! Opening: who may, what is refused, and how the refusal reads.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use pagestone::check::{CheckOptions, check};
use pagestone::{CreateOptions, Error, OpenOptions, Place, Pool};
use pmem::{MediaKind, Open, Opened, open};

const SIZE: u64 = 1 << 20;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn sized(size: u64) -> Open {
    Open { size: Some(size), ..Open::default() }
}

fn read_only() -> Open {
    Open { read_only: true, ..Open::default() }
}

fn forced(kind: MediaKind) -> Open {
    Open { kind: Some(kind), ..Open::default() }
}

/// The refusal, which must name the path.
fn refusal(path: &Path, how: &Open) -> String {
    let text = open(path, how).expect_err("must be refused").to_string();
    assert!(text.contains(&path.display().to_string()), "names no path: {text}");
    println!("{text}");
    text
}

#[test]
fn a_second_opener_is_told_who_has_it() {
    let dir = dir();
    for base in [dir.path(), Path::new("/dev/shm")] {
        let path = base.join(format!("pagestone-lock-{}", std::process::id()));
        let first = open(&path, &sized(SIZE)).expect("opens");
        for how in [Open::default(), read_only(), sized(SIZE)] {
            match open(&path, &how) {
                Err(pmem::Error::InUse { path: at, pid }) => assert_eq!((at, pid), (path.clone(), std::process::id())),
                other => panic!("{other:?}"),
            }
        }
        // The lock lasts as long as the media, not as long as what open returned.
        let Opened { media, .. } = first;
        assert!(open(&path, &Open::default()).is_err());
        drop(media);
        let one = open(&path, &read_only()).expect("opens");
        let two = open(&path, &read_only()).expect("many may read");
        assert!(matches!(open(&path, &Open::default()), Err(pmem::Error::InUse { .. })));
        drop((one, two));
        open(&path, &Open::default()).expect("opens");
        fs::remove_file(&path).expect("removes");
    }
}

/// Fails if a program that starts others cannot open again what it has closed: between fork and exec a child has the
/// lock, too.
#[test]
fn a_pool_can_be_opened_again_while_programs_are_started() {
    let dir = dir();
    let path = dir.path().join("pool");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = Command::new("true").status();
                }
            });
        }
        let opened = (0..300).map(|_| open(&path, &sized(SIZE)).map(drop)).find(Result::is_err);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(opened.is_none(), "{opened:?}");
    });
}

#[test]
fn another_process_is_named_and_its_death_frees_the_pool() {
    let dir = dir();
    let path = dir.path().join("pool");
    drop(open(&path, &sized(SIZE)).expect("opens"));
    // Without a fork, so that the holder is the child itself.
    let mut command = Command::new("flock");
    command.arg("--no-fork").arg(&path).args(["sh", "-c", "echo ready; exec sleep 60"]).stdout(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return println!("skipped: no flock program") };
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("reads");
    let held = open(&path, &Open::default());
    child.kill().expect("kills");
    child.wait().expect("waits");
    match held {
        Err(pmem::Error::InUse { pid, .. }) => assert_eq!(pid, child.id()),
        other => panic!("{other:?}"),
    }
    open(&path, &Open::default()).expect("freed");
}

#[test]
fn what_cannot_be_a_pool_is_refused_by_name() {
    let dir = dir();
    assert!(refusal(dir.path(), &Open::default()).contains("directory"));
    assert!(refusal(dir.path(), &sized(SIZE)).contains("directory"));
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("makes");
    assert!(refusal(&fifo, &Open::default()).contains("fifo"));
    assert!(refusal(Path::new("/dev/zero"), &Open::default()).contains("character device"));
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("binds");
    assert!(refusal(&socket, &Open::default()).contains("socket"));
    let missing = dir.path().join("missing");
    assert!(matches!(open(&missing, &Open::default()), Err(pmem::Error::NotFound)));
    assert!(matches!(open(&missing, &read_only()), Err(pmem::Error::NotFound)));
    refusal(&dir.path().join("no/such/directory"), &sized(SIZE));
    refusal(&fifo.join("below"), &sized(SIZE));
    let empty = dir.path().join("empty");
    File::create(&empty).expect("makes");
    assert!(refusal(&empty, &Open::default()).contains("empty"));
    fs::write(&empty, b"short").expect("writes");
    assert!(refusal(&empty, &Open::default()).contains("5 bytes"));
}

#[test]
fn no_permission() {
    let dir = dir();
    let path = dir.path().join("pool");
    drop(open(&path, &sized(SIZE)).expect("opens"));
    if rustix::process::geteuid().is_root() {
        return println!("skipped: root may open everything");
    }
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400)).expect("changes");
    assert!(refusal(&path, &Open::default()).contains("ermission"));
    open(&path, &read_only()).expect("may be read");
}

#[test]
fn sizes() {
    let dir = dir();
    let path = dir.path().join("pool");
    for size in [u64::MAX, u64::MAX - 4096, i64::MAX as u64, 1 << 62, 0] {
        refusal(&path, &sized(size));
        assert!(!path.exists(), "{size}: what could not be used is removed");
    }
    assert!(open(&path, &Open { read_only: true, ..sized(SIZE) }).is_err());
    assert_eq!(open(&path, &sized(5000)).expect("opens").len, 8192, "whole pages");
    assert_eq!(open(&path, &sized(SIZE)).expect("opens").len, SIZE, "lengthened");
    assert_eq!(open(&path, &sized(8192)).expect("opens").len, 8192, "the part that was asked for");
    assert_eq!(fs::metadata(&path).expect("is there").len(), SIZE, "never shortened");
    File::options().write(true).open(&path).and_then(|f| f.set_len(SIZE + 100)).expect("lengthens");
    let opened = open(&path, &Open::default()).expect("opens");
    assert_eq!((opened.len, opened.created), (SIZE, false));
    assert_eq!(opened.media.views().meta.len(), SIZE);
    drop(opened);
    // A length that was there stays, and a failure does not remove what was there.
    refusal(&path, &sized(u64::MAX));
    assert_eq!(fs::metadata(&path).expect("is there").len(), SIZE + 100);
}

#[test]
fn a_kind_that_it_is_not() {
    let dir = dir();
    let path = dir.path().join("pool");
    let made = open(&path, &sized(SIZE)).expect("opens");
    let kind = made.media.describe().kind;
    drop(made);
    for other in [MediaKind::DaxFile, MediaKind::DaxDevice, MediaKind::Tmpfs, MediaKind::Hugetlbfs] {
        if kind != other {
            assert!(refusal(&path, &forced(other)).contains(&other.to_string()));
        }
    }
    for other in [MediaKind::Memory, MediaKind::Simulator] {
        assert!(matches!(open(&path, &forced(other)), Err(pmem::Error::Invalid(_))));
    }
    open(&path, &forced(MediaKind::File)).expect("an ordinary file everywhere");
}

#[test]
fn a_large_sparse_pool_is_made_at_once() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let begun = std::time::Instant::now();
    let opened = open(&dir.path().join("pool"), &sized(64 << 40)).expect("opens");
    assert_eq!(opened.len, 64 << 40);
    println!("64 TiB in {:?}", begun.elapsed());
    drop(opened);
    let path = dir.path().join("file");
    let how = Open { kind: Some(MediaKind::File), ..sized(16 << 40) };
    let opened = open(&path, &how).expect("opens");
    opened.media.store((16 << 40) - 8, b"the last");
    opened.media.flush((16 << 40) - 8, 8).expect("flushes");
    opened.media.sync().expect("syncs");
}

#[test]
fn a_device_that_is_not_there_does_not_become_a_file_in_dev() {
    let path = Path::new("/dev/pagestone-has-no-such-device");
    for path in [path, Path::new("/dev/shm/../pagestone-has-no-such-device")] {
        assert!(refusal(path, &sized(SIZE)).contains("no such device"));
    }
    assert!(!path.exists());
}

/// Fails if what is there is looked at before the lock is taken, and not again under it.
#[test]
fn two_that_create_the_same_pool_do_not_overwrite_each_other() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    for round in 0..20 {
        let path = dir.path().join(format!("pool-{round}"));
        if round % 2 == 0 {
            // Sometimes the file is there, and blank.
            File::create(&path).and_then(|file| file.set_len(8 << 20)).expect("a file");
        }
        let together = std::sync::Barrier::new(2);
        let create = || {
            together.wait();
            Pool::create(&path, &CreateOptions::new().size(8 << 20)).map(drop)
        };
        let results = std::thread::scope(|s| {
            let threads = [s.spawn(create), s.spawn(create)];
            threads.map(|thread| thread.join().expect("no panic"))
        });
        let made = results.iter().filter(|result| result.is_ok()).count();
        let refused = results.iter().filter(|r| matches!(r, Err(Error::Exists | Error::InUse { .. }))).count();
        assert_eq!((made, refused), (1, 1), "round {round}: {results:?}");
        Pool::open(&path, &OpenOptions::default()).expect("a pool");
    }
}

#[test]
fn what_is_no_pool_is_called_that_whatever_its_size() {
    let dir = dir();
    for (name, text) in [("empty", String::new()), ("short", "root:x:0:0\n".into()), ("long", "x".repeat(100_000))] {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a file");
        let opened = Pool::open(&path, &OpenOptions::new().read_only(true));
        assert!(matches!(opened, Err(Error::NotAPool(_))), "{name}: {opened:?}");
        let checked = check(&path, &CheckOptions::default(), &mut |_, _| {});
        assert!(matches!(checked, Err(Error::NotAPool(_))), "{name}: {checked:?}");
    }
    // A pool that was cut off has something else wrong with it.
    let path = dir.path().join("cut off");
    Pool::create(&path, &CreateOptions::new().size(8 << 20)).expect("a pool");
    File::options().write(true).open(&path).and_then(|file| file.set_len(100)).expect("cut off");
    assert!(matches!(Pool::open(&path, &OpenOptions::default()), Err(Error::Size(_))));
}

#[test]
fn a_pool_without_its_root_inodes_is_damaged_and_the_error_names_the_page() {
    let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." }).expect("a directory");
    let (path, copy) = (dir.path().join("pool"), dir.path().join("copy"));
    let pool = Pool::create(&path, &CreateOptions::new().size(8 << 20)).expect("makes");
    pool.root().create(b"a", &pagestone::inode::NewNode::new(pagestone::FileType::Dir, 0o755)).expect("makes");
    // With records in the journal, as after a kill, and without.
    for closed in [false, true] {
        if closed {
            pool.checkpoint().expect("closes");
        }
        let mut bytes = fs::read(&path).expect("reads");
        bytes[3 * 4096..4 * 4096].fill(0);
        fs::write(&copy, &bytes).expect("writes");
        let e = Pool::open(&copy, &OpenOptions::default()).expect_err("is damaged");
        assert!(matches!(&e, Error::Corrupt { place: Place::InodeSlot(_), .. }), "{e}");
        assert!(e.to_string().contains("page 0x3"), "{e}");
        let report = check(&copy, &CheckOptions::default(), &mut |_, _| {});
        assert!(!report.is_ok_and(|report| report.is_clean()), "check, closed: {closed}");
    }
}
