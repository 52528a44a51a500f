//! Transactions of several files and names: each operation sees the earlier ones, and nothing happens unless all do.
//!
//! ```text
//!   semantics    order, files of the transaction itself                   errors    which operation; nothing is left
//!   names.rs     paths, links, exchanges                                  append.rs appends
//!   others       threads, mappings, clones, open files without a name     limits    one record
//! ```

#![allow(clippy::unwrap_used, reason = "tests")]

mod append;
mod names;

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pagestone::check::{CheckOptions, check_on};
use pagestone::inode::RenameMode;
use pagestone::mmap::MapOptions;
use pagestone::{CreateOptions, Error, OpenOptions, PAGE_SIZE, Pool, Transaction};
use pmem::{Media, Memory};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A pool in memory, which is checked at the end.
struct Checked {
    media: Arc<Memory>,
    pool: Option<Pool>,
}

impl Checked {
    fn new(size: u64) -> Checked {
        let media = Arc::new(Memory::new(size).unwrap());
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
        Checked { media, pool: Some(pool) }
    }

    /// Opens it again, replaying the journal, and checks it.
    fn finish(mut self) {
        let pool = self.pool.take().unwrap();
        pool.checkpoint().unwrap();
        let background = pool.info().unwrap();
        assert_eq!(background.background_errors, 0, "{:?}", background.last_background_error);
        drop(pool);
        let report = check_on(self.media.clone(), &CheckOptions::default(), &mut |_, _| {}).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        let media: Arc<dyn Media> = self.media.clone();
        Pool::open_on(media, &OpenOptions::default()).unwrap();
    }
}

impl std::ops::Deref for Checked {
    type Target = Pool;
    fn deref(&self) -> &Pool {
        self.pool.as_ref().unwrap()
    }
}

/// The operation that failed, and why.
fn failed(result: Result<(), Error>) -> (usize, Error) {
    match result {
        Err(Error::InTransaction { operation, source }) => (operation, *source),
        other => panic!("an operation should have failed: {other:?}"),
    }
}

/// All names and bytes below a directory.
fn tree(pool: &Pool, path: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in pool.read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().to_str().unwrap().to_owned();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            all.push((name.clone(), Vec::new()));
            all.extend(tree(pool, &name));
        } else if metadata.is_symlink() {
            let target = pool.read_link(&name).unwrap();
            all.push((name, [b"-> ", target.as_os_str().as_bytes()].concat()));
        } else {
            all.push((name.clone(), pool.read(&name).unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn operations_of_several_files_and_names_happen_in_order() {
    let pool = Checked::new(16 << 20);
    pool.create_dir("/d").unwrap();
    pool.write("/a", "100").unwrap();
    pool.write("/old", "old").unwrap();
    let mut change = pool.transaction();
    change.write("/a", b"090", 0).create("/new", 0o600).write("/new", b"hello", 0);
    change.rename("/new", "/d/moved").write("/d/moved", b" there", 5).remove_file("/old");
    change.create_dir("/e").create("/e/f", 0o644).write("/e/f", b"x", 9000).set_len("/a", 2);
    assert_eq!(change.len(), 10);
    assert_eq!(tree(&pool, "/").len(), 3, "nothing happens before the commit");
    change.commit().unwrap();
    assert_eq!(pool.read("/a").unwrap(), b"09");
    assert_eq!(pool.read("/d/moved").unwrap(), b"hello there");
    assert_eq!(pool.metadata("/d/moved").unwrap().mode() & 0o7777, 0o600);
    let mut far = vec![0; 9001];
    far[9000] = b'x';
    assert_eq!(pool.read("/e/f").unwrap(), far);
    assert!(!pool.exists("/old").unwrap() && !pool.exists("/new").unwrap());
    pool.finish();
}

#[test]
fn a_transaction_that_is_dropped_or_empty_does_nothing() {
    let pool = Checked::new(16 << 20);
    pool.transaction().commit().unwrap();
    let mut change = pool.transaction();
    change.create("/a", 0o644);
    assert!(!change.is_empty());
    drop(change);
    assert!(tree(&pool, "/").is_empty());
    pool.finish();
}

#[test]
fn an_error_names_its_operation_and_leaves_nothing() {
    let pool = Checked::new(16 << 20);
    pool.create_dir("/d").unwrap();
    pool.write("/d/x", "x").unwrap();
    pool.write("/a", vec![7; 20_000]).unwrap();
    let before = (tree(&pool, "/"), pool.statfs());
    let begin = || {
        let mut change = pool.transaction();
        change.write("/a", &[1; 9000], 100).create("/new", 0o644).write("/new", &[2; 5000], 3).remove_file("/d/x");
        change
    };
    let tries = [
        ("create over", libc::EEXIST),
        ("remove missing", libc::ENOENT),
        ("rename missing", libc::ENOENT),
        ("remove dir", libc::EISDIR),
        ("into itself", libc::EINVAL),
        ("not empty", libc::ENOTEMPTY),
        ("through a file", libc::ENOTDIR),
        ("too far", libc::EFBIG),
        ("write a directory", libc::EISDIR),
    ];
    for (what, expected) in tries {
        let mut change = begin();
        match what {
            "create over" => change.create("/a", 0o644),
            "remove missing" => change.remove_file("/d/x"),
            "rename missing" => change.rename("/missing", "/b"),
            "remove dir" => change.remove_file("/d"),
            "into itself" => change.rename("/d", "/d/e"),
            "not empty" => change.create("/d/y", 0o644).remove_dir("/d"),
            "through a file" => change.create("/a/b", 0o644),
            "too far" => change.write("/a", b"x", u64::MAX),
            _ => change.write("/d", b"x", 0),
        };
        let last = change.len() - 1;
        let (operation, error) = failed(change.commit());
        assert_eq!(operation, last, "{what}");
        assert_eq!(error.errno(), expected, "{what}");
        assert_eq!(tree(&pool, "/"), before.0, "{what}");
        pool.checkpoint().unwrap();
        assert_eq!(pool.statfs(), before.1, "{what}: no page is lost");
    }
    pool.finish();
}

#[test]
fn an_error_of_a_transaction_maps_to_the_errno_of_its_operation() {
    let pool = Checked::new(16 << 20);
    let mut change = pool.transaction();
    change.remove_file("/missing");
    let error = change.commit().unwrap_err();
    assert_eq!((error.errno(), error.kind()), (libc::ENOENT, std::io::ErrorKind::NotFound));
    assert!(error.to_string().starts_with("operation 0 of the transaction: "), "{error}");
}

/// Exchanges two names at once.
fn exchange(pool: &Pool, one: &str, other: &str) -> Result<(), Error> {
    let place = |path: &str| {
        let (dir, name) = path.rsplit_once('/').unwrap();
        (pool.resolve(dir.as_bytes()).and_then(|node| node.dir()), name.to_owned())
    };
    let ((from, name), (to, to_name)) = (place(one), place(other));
    from?.rename(name.as_bytes(), to?.ino(), to_name.as_bytes(), RenameMode::Exchange)
}

/// Puts an operation on the list, and does the same to `one` at once.
fn random_operation<'b>(
    rng: &mut SmallRng,
    one: &Pool,
    change: &mut Transaction<'b>,
    bytes: &'b [u8],
) -> Result<(), Error> {
    const NAMES: [&str; 5] = ["/a", "/b", "/d/a", "/d/b", "/e/a"];
    let (path, to) = (NAMES[rng.random_range(0..5)], NAMES[rng.random_range(0..5)]);
    match rng.random_range(0..13) {
        0..=4 => {
            let (from, len) = (rng.random_range(0..100), rng.random_range(0..20_000));
            let at = rng.random_range(0..30_000u64) / if rng.random() { 1 } else { 4096 };
            change.write(path, &bytes[from..from + len], at);
            one.open_file(path).and_then(|file| file.write_all_at(&bytes[from..from + len], at))
        }
        5 => {
            let len = rng.random_range(0..30_000);
            change.set_len(path, len);
            one.open_file(path).and_then(|file| file.set_len(len))
        }
        6 | 7 => {
            change.create(path, 0o644);
            one.file_options().write(true).create_new(true).open(path).map(drop)
        }
        8 => {
            change.rename(path, to);
            one.rename(path, to)
        }
        9 => {
            let (from, len) = (rng.random_range(0..100), rng.random_range(0..20_000));
            change.append(path, &bytes[from..from + len]);
            one.open_file(path).and_then(|file| file.append(&bytes[from..from + len]).map(drop))
        }
        10 => {
            change.symlink(to, path);
            one.symlink(to, path)
        }
        11 => {
            change.exchange(path, to);
            exchange(one, path, to)
        }
        _ => {
            change.remove_file(path);
            one.remove_file(path)
        }
    }
}

/// Every sequence is compared with the same operations one by one.
#[test]
fn random_transactions_leave_what_single_operations_leave() {
    let seed: u64 = std::env::var("PAGESTONE_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("PAGESTONE_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let (one, all) = (Checked::new(32 << 20), Checked::new(32 << 20));
    for pool in [&one, &all] {
        ["/d", "/e"].iter().for_each(|dir| pool.create_dir(dir).unwrap());
    }
    let bytes: Vec<u8> = (0..40_000).map(|i| (i / 7 % 251 + 1) as u8).collect();
    let (mut committed, mut refused) = (0, 0);
    for round in 0..300 {
        let before = tree(&all, "/");
        let mut change = all.transaction();
        let mut error = None;
        for i in 0..rng.random_range(1..10) {
            let done = random_operation(&mut rng, &one, &mut change, &bytes);
            if let Err(e) = done {
                error = Some((i, e.errno()));
                break;
            }
        }
        // Where an operation fails, `one` keeps those before it: the others are made the same by a second try.
        let len = change.len();
        let result = change.commit();
        match error {
            None => {
                result.unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
                committed += 1;
            }
            Some((i, errno)) => {
                let (at, e) = failed(result);
                assert_eq!((at, e.errno(), len), (i, errno, i + 1), "seed {seed}, round {round}");
                assert_eq!(tree(&all, "/"), before, "seed {seed}, round {round}: a trace of what failed");
                refused += 1;
                same(&one, &all);
                continue;
            }
        }
        assert_eq!(tree(&one, "/"), tree(&all, "/"), "seed {seed}, round {round}");
        if round % 50 == 0 {
            all.checkpoint().unwrap();
        }
    }
    assert_eq!(tree(&one, "/"), tree(&all, "/"), "seed {seed}");
    assert!(committed > 10 && refused > 10, "seed {seed}: {committed} committed, {refused} refused");
    one.finish();
    all.finish();
}

/// Gives `to` the files of `from`.
fn same(from: &Pool, to: &Pool) {
    let files = |pool: &Pool| {
        let not_dir = |path: &String| !pool.symlink_metadata(path).unwrap().is_dir();
        tree(pool, "/").into_iter().map(|(path, _)| path).filter(not_dir).collect::<Vec<_>>()
    };
    for path in files(to) {
        to.remove_file(&path).unwrap();
    }
    for path in files(from) {
        match from.read_link(&path) {
            Ok(target) => to.symlink(target, &path).unwrap(),
            Err(_) => to.write(&path, from.read(&path).unwrap()).unwrap(),
        }
    }
}

#[test]
fn one_file_written_many_times_has_the_last_bytes() {
    let pool = Checked::new(16 << 20);
    pool.write("/a", vec![9; 50_000]).unwrap();
    let pieces: Vec<Vec<u8>> = (0..40).map(|i| vec![i as u8; 3000]).collect();
    let mut expected = vec![9; 50_000];
    let mut change = pool.transaction();
    for (i, piece) in pieces.iter().enumerate() {
        let at = i * 977;
        change.write("/a", piece, at as u64);
        expected[at..at + 3000].copy_from_slice(piece);
    }
    change.commit().unwrap();
    assert_eq!(pool.read("/a").unwrap(), expected);
    pool.finish();
}

#[test]
fn what_is_cut_off_and_grown_again_reads_as_zeros() {
    let pool = Checked::new(16 << 20);
    for (cut, grown) in [(5000, 20_000), (4096, 20_000), (0, 30_000), (9999, 10_000), (1, 8192)] {
        pool.write("/a", vec![7; 20_000]).unwrap();
        let mut change = pool.transaction();
        change.write("/a", &[8; 100], 4090).set_len("/a", cut).set_len("/a", grown).write("/a", b"end", grown + 5000);
        change.commit().unwrap();
        let mut expected = vec![7; 20_000];
        expected[4090..4190].fill(8);
        expected.truncate(cut as usize);
        expected.resize(grown as usize + 5000, 0);
        expected.extend_from_slice(b"end");
        assert!(pool.read("/a").unwrap() == expected, "{cut} {grown}");
    }
    pool.finish();
}

#[test]
fn a_file_that_comes_and_goes_leaves_nothing() {
    let pool = Checked::new(16 << 20);
    let before = pool.statfs();
    for len in [10, 100_000, 5 << 20] {
        let bytes = vec![1; len];
        let mut change = pool.transaction();
        change.create("/a", 0o644).write("/a", &bytes, 0).remove_file("/a").create("/a", 0o644).write("/a", b"2", 0);
        change.commit().unwrap();
        assert_eq!(pool.read("/a").unwrap(), b"2");
        pool.remove_file("/a").unwrap();
        pool.checkpoint().unwrap();
    }
    let after = pool.statfs();
    assert_eq!(after.inodes, before.inodes);
    assert!(after.free + 4 >= before.free, "{} of {}", after.free, before.free);
    pool.finish();
}

#[test]
fn an_open_file_keeps_its_bytes_and_can_be_written_without_a_name() {
    let pool = Checked::new(16 << 20);
    pool.write("/a", vec![3; 10_000]).unwrap();
    pool.write("/b", "b").unwrap();
    let file = pool.open_file("/a").unwrap();
    let mut change = pool.transaction();
    change.rename("/b", "/a").write_file(&file, b"still", 9998).unwrap();
    change.commit().unwrap();
    assert_eq!(pool.read("/a").unwrap(), b"b");
    let mut bytes = vec![0; 20_000];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 10_003);
    assert!(bytes[..9998].iter().all(|&b| b == 3) && &bytes[9998..10_003] == b"still");
    let mut change = pool.transaction();
    change.write_file(&file, b"again", 0).unwrap();
    change.commit().unwrap();
    assert_eq!(file.read_at(&mut bytes[..5], 0).unwrap(), 5);
    assert_eq!(&bytes[..5], b"again");
    let reader = pool.file_options().read(true).open("/a").unwrap();
    assert!(matches!(pool.transaction().write_file(&reader, b"", 0), Err(Error::NotOpenFor(_))));
    let other = Checked::new(16 << 20);
    assert!(matches!(other.transaction().write_file(&file, b"", 0), Err(Error::Invalid(_))));
    drop((file, reader));
    pool.finish();
}

#[test]
fn clones_keep_what_they_had() {
    let pool = Checked::new(16 << 20);
    let bytes: Vec<u8> = (0..60_000u32).map(|i| (i / 100) as u8 | 1).collect();
    pool.write("/a", &bytes).unwrap();
    pool.clone_file("/a", "/b").unwrap();
    pool.clone_file("/b", "/c").unwrap();
    let mut change = pool.transaction();
    change.write("/a", &[0xEE; 9000], 5000).set_len("/b", 3000).set_len("/b", 9000).remove_file("/c");
    change.commit().unwrap();
    let mut a = bytes.clone();
    a[5000..14_000].fill(0xEE);
    assert!(pool.read("/a").unwrap() == a);
    let mut b = bytes[..3000].to_vec();
    b.resize(9000, 0);
    assert!(pool.read("/b").unwrap() == b);
    let mut change = pool.transaction();
    change.set_len("/b", 0).write("/b", b"new", 0).remove_file("/a");
    change.commit().unwrap();
    assert_eq!(pool.read("/b").unwrap(), b"new");
    pool.finish();
}

/// A pool in a file, which can be mapped.
fn mappable() -> (tempfile::TempDir, Pool) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let pool = Pool::create(dir.path().join("pool"), &CreateOptions::new().size(32 << 20)).unwrap();
    (dir, pool)
}

#[test]
fn mappings_see_the_pages_of_a_transaction() {
    let (_dir, pool) = mappable();
    pool.write("/a", vec![1; 4 * PAGE_SIZE as usize]).unwrap();
    pool.write("/b", vec![1; PAGE_SIZE as usize]).unwrap();
    let map = |path: &str| match pool.open_file(path).unwrap().map(0..8 * PAGE_SIZE, &MapOptions::shared()) {
        Ok(mapping) => Some(mapping),
        Err(Error::NotSupported(why)) => {
            println!("not tried: {why}");
            None
        }
        Err(e) => panic!("{e}"),
    };
    let (Some(a), Some(b)) = (map("/a"), map("/b")) else { return };
    a.write(PAGE_SIZE, &[2; 10]).unwrap();
    let mut change = pool.transaction();
    change.write("/a", &[3; 10], PAGE_SIZE + 10).write("/b", &[4; 10], PAGE_SIZE).set_len("/a", 3 * PAGE_SIZE);
    change.commit().unwrap();
    let mut bytes = [0; 30];
    a.read(PAGE_SIZE, &mut bytes).unwrap();
    assert_eq!(bytes[..10], [2; 10], "what was stored before is there");
    assert_eq!((&bytes[10..20], &bytes[20..]), (&[3; 10][..], &[1; 10][..]));
    b.read(PAGE_SIZE, &mut bytes[..10]).unwrap();
    assert_eq!(bytes[..10], [4; 10], "where the file has grown");
    assert!(a.read(3 * PAGE_SIZE, &mut bytes[..1]).is_err(), "what was cut off is an error");
    a.write(PAGE_SIZE, &[5; 10]).unwrap();
    assert_eq!(pool.read("/a").unwrap()[PAGE_SIZE as usize..][..10], [5; 10], "stores reach the new page");
    // A transaction that fails leaves mappings as they were.
    let mut change = pool.transaction();
    change.write("/a", &[9; 10], 0).set_len("/a", 0).remove_file("/missing");
    let before = tree(&pool, "/");
    failed(change.commit());
    assert!(tree(&pool, "/") == before);
    a.read(0, &mut bytes[..10]).unwrap();
    assert_eq!(bytes[..10], [1; 10]);
}

#[test]
fn threads_see_all_of_a_transaction_or_nothing() {
    let pool = Checked::new(32 << 20);
    for name in ["/a", "/b"] {
        pool.create_dir(name).unwrap();
        pool.write(format!("{name}/n"), 0u64.to_le_bytes()).unwrap();
    }
    /// Rounds of each thread: at least, and where the others are not scheduled until they have seen enough, at most.
    const ROUNDS: std::ops::Range<u64> = 60..5000;
    let (over, moves, values) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let enough = || moves.load(Ordering::SeqCst) > 10 && values.load(Ordering::SeqCst) > 10;
    let committed = std::thread::scope(|scope| {
        let (pool, over, moves, values, enough) = (&*pool, &over, &moves, &values, &enough);
        let adders: Vec<_> = (0..3)
            .map(|thread| {
                scope.spawn(move || {
                    let mut i = 0;
                    while i < ROUNDS.start || i < ROUNDS.end && !enough() {
                        // Only transactions change the file `n`, by way of a new file: each is a lock for the others.
                        let (dir, other) = if (i + thread) % 2 == 0 { ("/a", "/b") } else { ("/b", "/a") };
                        loop {
                            let n = pool.read(format!("{dir}/n")).unwrap_or_default();
                            let Ok(n) = n.try_into() else { continue };
                            let next = (u64::from_le_bytes(n) + 1).to_le_bytes();
                            let name = format!("/once-{}", u64::from_le_bytes(n));
                            let mut change = pool.transaction();
                            change.create(&name, 0o644);
                            change.write(format!("{dir}/n"), &next, 0).write(format!("{other}/n"), &next, 0);
                            match change.commit() {
                                Ok(()) => break,
                                Err(e) => assert_eq!(e.errno(), libc::EEXIST, "{e}"),
                            }
                        }
                        i += 1;
                        std::thread::yield_now();
                    }
                    i
                })
            })
            .collect();
        // Between two looks at one file the other is never behind or ahead: what both say only grows.
        let watcher = scope.spawn(move || {
            let n = |dir: &str| u64::from_le_bytes(pool.read(format!("{dir}/n")).unwrap().try_into().unwrap());
            let (mut looks, mut seen) = (0, BTreeSet::new());
            while !over.load(Ordering::SeqCst) {
                let (one, other) = if looks % 2 == 0 { ("/a", "/b") } else { ("/b", "/a") };
                let (first, between, last) = (n(one), n(other), n(one));
                assert!(first <= between && between <= last, "{one} {first}, {other} {between}, {one} {last}");
                looks += 1;
                seen.insert(between);
                values.store(seen.len(), Ordering::SeqCst);
            }
        });
        // Others rename, create and list in the same directories.
        let mover = scope.spawn(move || {
            let mut there = "/a/moving".to_owned();
            pool.write(&there, "moving").unwrap();
            while !over.load(Ordering::SeqCst) {
                let to = if there.starts_with("/a") { "/b/moving" } else { "/a/moving" };
                let mut change = pool.transaction();
                change.rename(&there, to);
                change.commit().unwrap();
                there = to.to_owned();
                moves.fetch_add(1, Ordering::SeqCst);
                let _ = pool.read_dir("/").unwrap().count();
            }
        });
        let ended: Vec<_> = adders.into_iter().map(|thread| thread.join()).collect();
        over.store(true, Ordering::SeqCst);
        mover.join().unwrap();
        watcher.join().unwrap();
        ended.into_iter().map(|made| made.unwrap()).sum::<u64>()
    });
    println!("{committed} commits, {moves:?} moves, {values:?} values seen");
    assert!(enough(), "{committed} commits, {moves:?} moves, {values:?} values seen");
    let n = |name: &str| u64::from_le_bytes(pool.read(name).unwrap().try_into().unwrap());
    assert_eq!((n("/a/n"), n("/b/n")), (committed, committed), "no change is lost, and both files agree");
    pool.finish();
}

#[test]
fn more_than_one_record_holds_is_refused_and_leaves_nothing() {
    let pool = Checked::new(64 << 20);
    let before = pool.statfs();
    let mut change = pool.transaction();
    let names: Vec<String> = (0..5000).map(|i| format!("/a rather long name, of which there are many {i}")).collect();
    for name in &names {
        change.create(name, 0o644);
    }
    let (operation, error) = failed(change.commit());
    assert!(matches!(error, Error::TransactionTooLarge), "{error}");
    println!("{operation} creates fit");
    assert!(operation >= 100, "{operation} creates fit");
    assert!(tree(&pool, "/").is_empty());
    pool.checkpoint().unwrap();
    assert_eq!(pool.statfs(), before);
    pool.finish();
}

#[test]
fn a_transaction_that_finds_no_space_leaves_nothing() {
    let pool = Checked::new(16 << 20);
    pool.write("/a", vec![1; 6 << 20]).unwrap();
    let bytes = vec![2; 6 << 20];
    pool.checkpoint().unwrap();
    let before = (tree(&pool, "/"), pool.statfs());
    let mut change = pool.transaction();
    change.create("/b", 0o644).write("/b", &bytes, 0).write("/a", &bytes, 0);
    let (operation, error) = failed(change.commit());
    assert!(matches!(error, Error::NoSpace), "{error}");
    assert_eq!(operation, 2);
    assert!(tree(&pool, "/") == before.0);
    pool.checkpoint().unwrap();
    assert_eq!(pool.statfs(), before.1);
    pool.finish();
}

#[test]
fn some_hundred_small_operations_and_many_megabytes_fit() {
    let pool = Checked::new(128 << 20);
    let names: Vec<String> = (0..100).map(|i| format!("/file-{i}")).collect();
    let mut change = pool.transaction();
    for name in &names {
        change.create(name, 0o644).write(name, name.as_bytes(), 0);
    }
    change.commit().unwrap();
    let mut change = pool.transaction();
    for name in &names {
        change.write(name, b"again", 0);
    }
    change.commit().unwrap();
    let bytes = vec![5; 16 << 20];
    let mut change = pool.transaction();
    change.create("/large", 0o644).write("/large", &bytes, 0).write("/large", &bytes[..8 << 20], 16 << 20);
    change.commit().unwrap();
    let mut change = pool.transaction();
    change.write("/large", &[6; 9 << 20], 12345);
    change.commit().unwrap();
    let large = pool.read("/large").unwrap();
    assert!(large[..12345].iter().all(|&b| b == 5) && large[12345..][..9 << 20].iter().all(|&b| b == 6));
    assert_eq!(pool.read("/file-7").unwrap(), b"again-7");
    pool.finish();
}
