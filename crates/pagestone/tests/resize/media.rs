//! The file below a pool that grows and shrinks: its length, its blocks, and what a child may do to it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pagestone::check::{CheckOptions, check};
use pagestone::{CreateOptions, Error, OpenOptions, Pool};
use pmem::{Description, Media, MediaKind, Memory, Part, Views};

use crate::{MIB, bytes, look, new_file, pattern, populate, shrink, write};

fn clean(path: &Path) {
    let report = check(path, &CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn a_file_below_a_pool_is_as_long_as_the_pool_once_it_is_closed() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    for (base, kind) in [(dir.path(), MediaKind::File), (shm.path(), MediaKind::Tmpfs)] {
        let path = base.join("pool");
        let options = CreateOptions::new().size(64 * MIB);
        let pool = Pool::create(&path, &options).unwrap();
        assert_eq!(pool.info().unwrap().media.kind, kind);
        populate(&pool, 2, 20 * MIB);
        pool.grow(256 * MIB).unwrap();
        let before = look(&pool);
        write(&new_file(&pool, "f"), 0, &pattern(1, 80 << 20));
        pool.root().unlink(b"f").unwrap();
        let on_disk = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512;
        assert_eq!(path.metadata().unwrap().len(), 256 * MIB);
        shrink(&pool, 64 * MIB).unwrap();
        pool.sync().unwrap();
        assert!(on_disk(&path) <= 66 * MIB, "{} bytes are in use below", on_disk(&path));
        assert!(look(&pool) == before);
        pool.close().unwrap();
        assert_eq!(path.metadata().unwrap().len(), 64 * MIB);
        clean(&path);
        // A file that is longer already, and not blank there.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(64 * MIB).unwrap();
        let mut noise = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut noise, &vec![0xA5; 64 << 20]).unwrap();
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        pool.grow(128 * MIB).unwrap();
        write(&new_file(&pool, "g"), 0, &pattern(7, 50 << 20));
        let mut now = look(&pool);
        assert!(now.remove(&b"/g"[..]).is_some() && now == before);
        pool.close().unwrap();
        assert_eq!(path.metadata().unwrap().len(), 128 * MIB);
        clean(&path);
    }
}

/// The largest pools: nothing takes time or memory in proportion to what was never used.
#[test]
fn a_sparse_pool_grows_to_64_tib_and_back() {
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = shm.path().join("pool");
    let options = CreateOptions::new().size(1 << 40);
    let pool = Pool::create(&path, &options).unwrap();
    populate(&pool, 1, MIB);
    let before = look(&pool);
    let started = std::time::Instant::now();
    match pool.grow(64 << 40) {
        Err(Error::Media(e)) if e.raw_os_error() == Some(libc::EFBIG) => {
            return println!("skipped: the filesystem takes no file of 64 TiB: {e}");
        }
        grown => grown.unwrap(),
    }
    println!("1 TiB to 64 TiB: {:?}", started.elapsed());
    write(&new_file(&pool, "f"), 0, &pattern(1, 3 << 20));
    let info = pool.info().unwrap();
    assert!(info.descriptor_bytes <= 32 * 64 * MIB, "{}", info.descriptor_bytes);
    pool.close().unwrap();
    let started = std::time::Instant::now();
    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    println!("open: {:?}", started.elapsed());
    assert_eq!(pool.info().unwrap().size, 64 << 40);
    let started = std::time::Instant::now();
    shrink(&pool, 1 << 40).unwrap();
    println!("64 TiB to 1 TiB: {:?}", started.elapsed());
    pool.root().unlink(b"f").unwrap();
    assert!(look(&pool) == before);
    pool.close().unwrap();
    assert_eq!(path.metadata().unwrap().len(), 1 << 40);
    clean(&path);
}

/// Fails if the truncation that a shrink has left for the close cuts off what the pool has grown over since.
#[test]
fn what_a_pool_has_grown_over_after_a_shrink_is_not_cut_off_at_close() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    for base in [dir.path(), shm.path()] {
        let path = base.join("pool");
        let pool = Pool::create(&path, &CreateOptions::new().size(256 * MIB)).unwrap();
        shrink(&pool, 64 * MIB).unwrap();
        pool.grow(128 * MIB).unwrap();
        write(&new_file(&pool, "f"), 0, &pattern(3, 90 << 20));
        pool.close().unwrap();
        // As long as it was before the shrink, or as the pool.
        assert_eq!(path.metadata().unwrap().len(), 128 * MIB);
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        assert_eq!(pool.info().unwrap().size, 128 * MIB);
        assert!(bytes(&pool.open_file("/f").unwrap()) == pattern(3, 90 << 20));
        pool.close().unwrap();
        clean(&path);
    }
}

/// Media that take no record of the journal any more once they fail.
#[derive(Debug)]
struct NoRecords {
    inner: Memory,
    fails: AtomicBool,
    released: AtomicBool,
}

impl Media for NoRecords {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }
    fn views(&self) -> Views<'_> {
        self.inner.views()
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        let is_record = |part: &Part<'_>| matches!(part, Part::Bytes { bytes, .. } if bytes.starts_with(b"PREC"));
        match self.fails.load(Ordering::Relaxed) && parts.iter().any(is_record) {
            true => Err(io::Error::other("no record")),
            false => self.inner.persist(parts),
        }
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        self.inner.store(at, bytes);
    }
    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.flush(at, len)
    }
    fn fence(&self) {
        self.inner.fence();
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.reserve(at, len)
    }
    fn ensure_len(&self, len: u64) -> io::Result<()> {
        self.inner.ensure_len(len)
    }
    fn release_from(&self, len: u64) -> io::Result<()> {
        self.released.store(true, Ordering::Relaxed);
        self.inner.release_from(len)
    }
}

/// Fails if the latch hides the error that has set it, or if bytes are given back that the pool may have by now.
#[test]
fn a_grow_whose_record_fails_tells_the_error_and_gives_nothing_back() {
    let inner = Memory::new(64 * MIB).unwrap();
    let media = Arc::new(NoRecords { inner, fails: AtomicBool::new(false), released: AtomicBool::new(false) });
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    new_file(&pool, "f");
    media.fails.store(true, Ordering::Relaxed);
    let grown = pool.grow(128 * MIB);
    assert!(matches!(&grown, Err(Error::Media(e)) if e.to_string() == "no record"), "{grown:?}");
    assert!(matches!(pool.grow(128 * MIB), Err(Error::Latched(_))));
    assert!(!media.released.load(Ordering::Relaxed));
    drop(pool);
    media.fails.store(false, Ordering::Relaxed);
    let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
    assert!([64 * MIB, 128 * MIB].contains(&pool.info().unwrap().size));
    assert!(pool.exists("/f").unwrap());
}

/// Fails if a child that drops the pool, or resizes it, changes the file of its parent.
#[test]
fn a_child_resizes_nothing() {
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = shm.path().join("pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(128 * MIB)).unwrap();
    shrink(&pool, 64 * MIB).unwrap();
    // SAFETY: the child calls nothing that takes a lock of another thread, and ends by `_exit`.
    match unsafe { libc::fork() } {
        0 => {
            let child = std::panic::AssertUnwindSafe(|| {
                let refused = matches!(pool.grow(256 * MIB), Err(Error::Forked))
                    && matches!(shrink(&pool, 64 * MIB), Err(Error::Forked));
                drop(pool);
                if refused { 0 } else { 1 }
            });
            let code = std::panic::catch_unwind(child).unwrap_or(2);
            // SAFETY: ends the child, which must not return into the harness.
            unsafe { libc::_exit(code) }
        }
        child => assert_eq!(ended(child), Some(0), "0: refused; 1: it was not; 2: panic; none: it did not end"),
    }
    assert_eq!(path.metadata().unwrap().len(), 128 * MIB);
    assert_eq!(pool.info().unwrap().size, 64 * MIB);
    pool.close().unwrap();
    assert_eq!(path.metadata().unwrap().len(), 64 * MIB);
    clean(&path);
}

/// The exit code of the child. One that does not end is killed.
fn ended(child: libc::pid_t) -> Option<i32> {
    let (begun, mut status) = (Instant::now(), 0);
    // SAFETY: asks for the child's end, and writes to `status` only.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } != child {
        if begun.elapsed() > Duration::from_secs(60) {
            // SAFETY: the child exists until it is waited for.
            unsafe { libc::kill(child, libc::SIGKILL) };
            // SAFETY: as above.
            unsafe { libc::waitpid(child, &mut status, 0) };
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}
