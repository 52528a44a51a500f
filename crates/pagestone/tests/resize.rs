//! Pools that grow and shrink while they are used: nothing is lost, numbers stay, and `check` finds nothing.
//!
//! ```text
//!   |....files, clones, attributes, inodes all over the pool....|
//!   |..everything..|  shrunk: the same names, numbers, bytes
//!   |..everything..|............................................|  grown: numbers are not given out twice
//! ```

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagestone::check::{CheckOptions, check, check_on};
use pagestone::inode::{NewNode, XattrMode};
use pagestone::mmap::MapOptions;
use pagestone::{CreateOptions, Error, File, FileType, Ino, OpenOptions, Pool};
use pmem::{MediaKind, Memory};

const MIB: u64 = 1 << 20;

fn on_memory(len: u64) -> (Arc<Memory>, Pool) {
    let media = Arc::new(Memory::new(len).unwrap());
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    (media, pool)
}

fn reopened(media: &Arc<Memory>, pool: Pool) -> Pool {
    pool.close().unwrap();
    Pool::open_on(media.clone(), &OpenOptions::default()).unwrap()
}

fn new_file(pool: &Pool, name: &str) -> File {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
    open(pool, ino)
}

fn open(pool: &Pool, ino: Ino) -> File {
    pool.node(ino).unwrap().open().unwrap()
}

fn write(file: &File, offset: u64, bytes: &[u8]) {
    file.write_all_at(bytes, offset).unwrap();
}

fn bytes(file: &File) -> Vec<u8> {
    let mut all = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    all
}

/// Bytes that tell files, and offsets in them, apart.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((i / 512).wrapping_mul(0x9E37_79B9).wrapping_add(seed * 77 + i % 7) >> 3) as u8).collect()
}

fn shrink(pool: &Pool, size: u64) -> Result<(), Error> {
    pool.shrink(size, &mut |_, _| ControlFlow::Continue(()))
}

fn clean(media: &Arc<Memory>) {
    let report = check_on(media.clone(), &CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Fails if the part of the last run that lies before the end is taken for no run.
#[test]
fn the_part_of_a_run_behind_the_new_end_is_moved() {
    let (media, pool) = on_memory(64 * MIB);
    let (gone, kept) = (new_file(&pool, "gone"), new_file(&pool, "kept"));
    let contents = pattern(2, 24 << 20);
    write(&gone, 0, &pattern(1, 24 << 20));
    write(&kept, 0, &contents);
    let lies = kept.extents(..).unwrap();
    assert!(lies.iter().any(|x| x.pool < 40 * MIB && x.pool + x.len > 40 * MIB), "{lies:?}");
    drop(gone);
    pool.remove_file("/gone").unwrap();
    pool.checkpoint().unwrap();
    shrink(&pool, 40 * MIB).unwrap();
    assert!(bytes(&kept) == contents);
    drop(kept);
    pool.close().unwrap();
    clean(&media);
}

/// Everything that names lead to: number, kind, link count, bytes or target, attributes.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    ino: u64,
    nlink: u32,
    contents: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn look(pool: &Pool) -> BTreeMap<Vec<u8>, Seen> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![(pool.root().ino(), Vec::new())];
    while let Some((ino, path)) = todo.pop() {
        let node = pool.node(ino).unwrap();
        let attr = node.attr().unwrap();
        let contents = match attr.kind {
            FileType::File => bytes(&node.open().unwrap()),
            FileType::Symlink => node.read_link().unwrap(),
            _ => Vec::new(),
        };
        let xattrs =
            node.xattrs().unwrap().into_iter().map(|name| (name.clone(), node.xattr(&name).unwrap())).collect();
        if attr.kind == FileType::Dir {
            let entries = node.dir().unwrap().entries().map(Result::unwrap);
            todo.extend(entries.map(|entry| (entry.ino, [&path[..], b"/", &entry.name].concat())));
        }
        seen.insert(path, Seen { ino: ino.0, nlink: attr.nlink, contents, xattrs });
    }
    seen
}

/// Files of many sizes, directories, links, attributes, clones and a snapshot, all behind the first `ballast` bytes, which
/// are free again.
fn populate(pool: &Pool, rounds: u64, ballast: u64) {
    let root = pool.root();
    let (low, between) = (new_file(pool, "ballast"), new_file(pool, "between"));
    (0..ballast / MIB).for_each(|i| write(&low, i * MIB, &pattern(i, MIB as usize)));
    for round in 0..rounds {
        let dir = root.create(format!("dir {round}").as_bytes(), &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
        let dir = pool.node(dir).unwrap().dir().unwrap();
        for i in 0..40u64 {
            let ino = dir.create(format!("file {i}").as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
            let file = pool.node(ino).unwrap().open().unwrap();
            write(&file, (i % 3) * 5000, &pattern(round * 100 + i, 100 + (i * i * 37 % 20_000) as usize));
            if i % 5 == 0 {
                let value = pattern(i, 3000);
                pool.node(ino).unwrap().set_xattr(b"user.a", &value, XattrMode::Set).unwrap();
                dir.link(format!("link {i}").as_bytes(), ino).unwrap();
            }
            if i % 8 == 0 {
                let target = vec![b'x'; 50 + i as usize * 20];
                let node = NewNode::new(FileType::Symlink, 0o777).target(&target);
                dir.create(format!("symlink {i}").as_bytes(), &node).unwrap();
            }
        }
        let big = new_file(pool, &format!("big {round}"));
        write(&big, 0, &pattern(round, 3 * MIB as usize));
        // Many runs: a tree of them.
        let sparse = new_file(pool, &format!("sparse {round}"));
        (0..300u64).for_each(|i| write(&sparse, i * 3 * 4096, &pattern(i, 4096)));
        let clone = root.clone_file(format!("clone {round}").as_bytes(), big.ino()).unwrap().ino;
        write(&pool.node(clone).unwrap().open().unwrap(), MIB, &pattern(99, 9000));
        // Frames that are used in part.
        (0..700u64).for_each(|i| write(&between, (round * 700 + i) * 4096, &pattern(i, 4096)));
    }
    pool.snapshots().create(b"all").unwrap();
    write(&new_file(pool, "after"), 0, &pattern(5, 2 * MIB as usize));
    drop((low, between));
    pool.root().unlink(b"ballast").unwrap();
    pool.root().unlink(b"between").unwrap();
    pool.snapshots().delete(b"all").unwrap();
    pool.snapshots().create(b"again").unwrap();
}

#[test]
fn a_pool_that_has_grown_takes_more_and_opens_with_its_new_size() {
    let (media, pool) = on_memory(16 * MIB);
    let file = new_file(&pool, "f");
    let mut written = 0;
    while file.write_all_at(&pattern(1, MIB as usize), written).is_ok() {
        written += MIB;
    }
    assert!(written < 16 * MIB);
    let before = pool.statfs();
    pool.grow(64 * MIB).unwrap();
    assert_eq!(pool.info().unwrap().size, 64 * MIB);
    assert_eq!(pool.statfs().pages - before.pages, 48 * MIB / 4096);
    assert_eq!(pool.statfs().free - before.free, 48 * MIB / 4096);
    write(&file, written, &pattern(2, 30 << 20));
    assert!(matches!(pool.grow(32 * MIB), Err(Error::Size(_))));
    drop(file);
    let pool = reopened(&media, pool);
    assert_eq!(pool.info().unwrap().size, 64 * MIB);
    assert_eq!(bytes(&pool.resolve(b"/f").unwrap().open().unwrap())[written as usize..], pattern(2, 30 << 20));
    drop(pool);
    clean(&media);
}

/// Fails if names, numbers, bytes or attributes are others after a shrink, or if a pool that has grown again gives an
/// inode a number that another one has.
#[test]
fn a_shrunk_pool_is_the_same_but_for_its_size() {
    let (media, pool) = on_memory(192 * MIB);
    populate(&pool, 8, 100 * MIB);
    let before = look(&pool);
    let used = pool.statfs().pages - pool.statfs().free;
    let mut calls = Vec::new();
    pool.shrink(96 * MIB, &mut |moved, all| {
        calls.push((moved, all));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(calls.windows(2).all(|pair| pair[0].0 <= pair[1].0) && calls.len() > 10, "{} calls", calls.len());
    assert!(calls.iter().all(|&(moved, all)| moved <= all));
    assert_eq!(pool.info().unwrap().size, 96 * MIB);
    assert!(look(&pool) == before);
    let now = pool.statfs().pages - pool.statfs().free;
    assert!(now <= used + 64, "{now} pages in use, {used} before");
    let pool = reopened(&media, pool);
    assert!(look(&pool) == before);
    drop(pool);
    clean(&media);
    let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
    pool.grow(192 * MIB).unwrap();
    let dir = pool.root().create(b"new", &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
    let dir = pool.node(dir).unwrap().dir().unwrap();
    let mut numbers: std::collections::HashSet<u64> = before.values().map(|seen| seen.ino & ((1 << 40) - 1)).collect();
    for i in 0..3000 {
        let ino = dir.create(format!("new {i}").as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
        let place = ino.0 & ((1 << 40) - 1);
        assert!(i % 16 != 0 || numbers.insert(place) || before.values().all(|seen| seen.ino != ino.0));
    }
    for (path, seen) in &before {
        let now = pool.node(Ino(seen.ino)).unwrap().attr().unwrap();
        assert!(path.is_empty() || now.nlink == seen.nlink, "{}", String::from_utf8_lossy(path));
    }
    // What lies elsewhere can go, and its slots and pages are used again.
    for round in 0..8 {
        let dir = pool.resolve(format!("/dir {round}").as_bytes()).unwrap().dir().unwrap();
        (0..40).for_each(|i| dir.unlink(format!("file {i}").as_bytes()).unwrap());
    }
    pool.snapshots().delete(b"again").unwrap();
    drop((dir, pool));
    clean(&media);
}

#[test]
fn shrinking_again_and_again_moves_what_was_moved_before() {
    let (media, pool) = on_memory(192 * MIB);
    populate(&pool, 6, 100 * MIB);
    let before = look(&pool);
    for size in [160, 128, 100, 90] {
        shrink(&pool, size * MIB).unwrap();
        assert!(look(&pool) == before, "{size} MiB");
    }
    pool.grow(192 * MIB).unwrap();
    shrink(&pool, 90 * MIB).unwrap();
    assert!(look(&pool) == before);
    drop(pool);
    clean(&media);
}

#[test]
fn a_pool_does_not_shrink_below_what_it_holds() {
    let (media, pool) = on_memory(64 * MIB);
    write(&new_file(&pool, "f"), 0, &pattern(1, 40 << 20));
    let free = pool.statfs().free;
    assert!(matches!(shrink(&pool, 32 * MIB), Err(Error::NoSpace)));
    assert!(matches!(shrink(&pool, MIB), Err(Error::Size(_))));
    assert!(matches!(shrink(&pool, 128 * MIB), Err(Error::Size(_))));
    assert_eq!((pool.info().unwrap().size, pool.statfs().free), (64 * MIB, free));
    // And all of it can be had still.
    write(&new_file(&pool, "g"), 0, &pattern(2, 12 << 20));
    drop(pool);
    clean(&media);
}

#[test]
fn an_interrupted_shrink_leaves_the_pool_as_large_as_it_was() {
    let (media, pool) = on_memory(192 * MIB);
    populate(&pool, 6, 100 * MIB);
    let (before, free) = (look(&pool), pool.statfs().free);
    let stop = |moved, all| if moved > all / 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert!(matches!(pool.shrink(96 * MIB, &mut { stop }), Err(Error::Interrupted)));
    assert_eq!(pool.info().unwrap().size, 192 * MIB);
    assert!(free - pool.statfs().free < 64, "a third of the moves costs tables of moved inodes and no more");
    assert!(look(&pool) == before);
    shrink(&pool, 96 * MIB).unwrap();
    assert!(look(&pool) == before);
    drop(pool);
    clean(&media);
}

/// Fails if a mapping shows an old page after it was moved, or a store to it is lost.
#[test]
fn mappings_stay_true_while_their_pages_are_moved() {
    let (media, pool) = on_memory(128 * MIB);
    write(&new_file(&pool, "ballast"), 0, &pattern(1, 50 << 20));
    let file = new_file(&pool, "f");
    write(&file, 0, &pattern(3, 4 << 20));
    let clone = pool.root().clone_file(b"clone", file.ino()).unwrap().ino;
    let clone = pool.node(clone).unwrap().open().unwrap();
    let maps: Vec<_> =
        [(&file, MapOptions::shared()), (&file, MapOptions::private()), (&clone, MapOptions::read_only())]
            .into_iter()
            .map(|(file, options)| file.map(0..4 << 20, &options).unwrap())
            .collect();
    let mut buf = vec![0; 4 << 20];
    for map in &maps {
        map.read(0, &mut buf).unwrap();
        assert!(buf == pattern(3, 4 << 20));
    }
    maps[0].write(5000, b"shared").unwrap();
    maps[1].write(9000, b"private").unwrap();
    pool.root().unlink(b"ballast").unwrap();
    let pinned = shrink(&pool, 64 * MIB);
    assert!(matches!(pinned, Ok(()) | Err(Error::Pinned)), "{pinned:?}");
    let mut expected = [pattern(3, 4 << 20), pattern(3, 4 << 20), pattern(3, 4 << 20)];
    expected[0][5000..5006].copy_from_slice(b"shared");
    // What nobody has stored to privately is the file's.
    expected[1][5000..5006].copy_from_slice(b"shared");
    expected[1][9000..9007].copy_from_slice(b"private");
    for (map, expected) in maps.iter().zip(&expected) {
        map.read(0, &mut buf).unwrap();
        assert!(&buf == expected);
    }
    maps[0].write(70_000, b"again").unwrap();
    drop(maps);
    shrink(&pool, 64 * MIB).unwrap();
    expected[0][70_000..70_005].copy_from_slice(b"again");
    assert!(bytes(&file) == expected[0] && bytes(&clone) == expected[2]);
    drop((file, clone, pool));
    clean(&media);
}

/// Fails if an operation beside a shrink or a growth loses anything, or waits for ever.
#[test]
fn a_pool_under_load_grows_and_shrinks() {
    let seed = std::env::var("PAGESTONE_SEED").map_or_else(|_| rand::random(), |s| s.parse::<u64>().unwrap());
    println!("PAGESTONE_SEED={seed}");
    let rounds = std::env::var("PAGESTONE_RESIZES").map_or(4, |s| s.parse::<u64>().unwrap());
    let (media, pool) = on_memory(192 * MIB);
    populate(&pool, 2, 120 * MIB);
    let before = look(&pool);
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (pool, stop, done) = (&pool, &stop, &done);
            scope.spawn(move || {
                worker(pool, thread, seed, stop);
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        for _ in 0..rounds {
            match shrink(&pool, 100 * MIB) {
                Ok(()) => assert_eq!(pool.info().unwrap().size, 100 * MIB),
                Err(Error::NoSpace | Error::Busy | Error::Pinned) => {}
                Err(e) => panic!("{e}"),
            }
            pool.grow(192 * MIB).unwrap();
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(done.load(Ordering::SeqCst), 3);
    let mut now = look(&pool);
    now.retain(|path, _| !path.starts_with(b"/worker"));
    assert!(now.keys().eq(before.keys()));
    assert!(now.iter().all(|(path, seen)| path.is_empty() || *seen == before[path]));
    let pool = reopened(&media, pool);
    drop(pool);
    clean(&media);
}

/// Writes, maps, clones and removes files of its own, and knows what is in them.
fn worker(pool: &Pool, thread: u64, seed: u64, stop: &AtomicBool) {
    let dir =
        pool.root().create(format!("worker {thread}").as_bytes(), &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
    let dir = pool.node(dir).unwrap().dir().unwrap();
    let mut round = 0u64;
    while !stop.load(Ordering::SeqCst) {
        let (name, len) = (format!("f {}", round % 20), 1000 + (seed ^ round.wrapping_mul(7919)) % 300_000);
        let mut contents = pattern(thread * 1000 + round, len as usize);
        let _ = dir.unlink(name.as_bytes());
        let ino = dir.create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
        let file = pool.node(ino).unwrap().open().unwrap();
        write(&file, 0, &contents);
        if round.is_multiple_of(3) {
            let map = file.map(0..len, &MapOptions::shared()).unwrap();
            map.write(len / 2, b"mapped").unwrap();
            contents[len as usize / 2..][..6].copy_from_slice(b"mapped");
        }
        let copy = format!("copy {}", round % 20);
        let _ = dir.unlink(copy.as_bytes());
        let copy = dir.clone_file(copy.as_bytes(), ino).unwrap().ino;
        write(&file, 100, b"over");
        assert!(bytes(&pool.node(copy).unwrap().open().unwrap()) == contents, "round {round}");
        contents[100..104].copy_from_slice(b"over");
        assert!(bytes(&file) == contents, "round {round}");
        round += 1;
    }
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
        let report = check(&path, &CheckOptions::default(), &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        // A file that is longer already, and not blank there.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(64 * MIB).unwrap();
        let mut noise = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut noise, &vec![0xA5; 64 << 20]).unwrap();
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        pool.grow(128 * MIB).unwrap();
        write(&new_file(&pool, "g"), 0, &pattern(7, 50 << 20));
        assert!(look(&pool).len() == before.len() + 1);
        pool.close().unwrap();
        let report = check(&path, &CheckOptions::default(), &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
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
    if let Err(e) = pool.grow(64 << 40) {
        println!("skipped: this machine takes no file of 64 TiB here: {e}");
        return;
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
        assert!(path.metadata().unwrap().len() >= 128 * MIB);
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        assert!(bytes(&pool.open_file("/f").unwrap()) == pattern(3, 90 << 20));
    }
}

/// Fails if what a merge has moved behind the old end of a base is taken for nothing when its pages are moved.
#[test]
fn a_shrink_keeps_what_a_merge_that_is_not_over_has_moved_behind_the_end_of_a_base() {
    let (media, pool) = on_memory(64 * MIB);
    let ballast = new_file(&pool, "ballast");
    (0..4096u64).for_each(|i| write(&ballast, i * 8192, &pattern(i, 4096)));
    let file = new_file(&pool, "f");
    write(&file, 0, &pattern(1, 3 << 20));
    let clone = pool.root().clone_file(b"g", file.ino()).unwrap().ino;
    let clone = pool.node(clone).unwrap().open().unwrap();
    write(&file, 3 << 20, &pattern(2, 3 << 20));
    // A pin keeps the merge from its end.
    let map = clone.map(0..3 << 20, &MapOptions::private()).unwrap();
    let pin = map.pin(0..4096).unwrap();
    pool.root().unlink(b"g").unwrap();
    drop(clone);
    let expected = [pattern(1, 3 << 20), pattern(2, 3 << 20)].concat();
    assert!(bytes(&file) == expected);
    drop(ballast);
    pool.root().unlink(b"ballast").unwrap();
    let result = shrink(&pool, 32 * MIB);
    assert!(matches!(result, Ok(()) | Err(Error::Pinned | Error::Busy)), "{result:?}");
    assert!(bytes(&file) == expected);
    drop((pin, map));
    shrink(&pool, 32 * MIB).unwrap();
    assert!(bytes(&file) == expected);
    drop((file, pool));
    clean(&media);
}

/// Fails if pages that a program has pinned, and may be storing to by their address, are moved away from it.
#[test]
fn pages_that_a_program_has_pinned_stay_where_they_are() {
    let (media, pool) = on_memory(64 * MIB);
    write(&new_file(&pool, "ballast"), 0, &pattern(1, 40 << 20));
    let file = new_file(&pool, "f");
    write(&file, 0, &pattern(2, 4 << 20));
    pool.root().unlink(b"ballast").unwrap();
    let pages = 2 * MIB..2 * MIB + 8192;
    let map = file.map(0..4 << 20, &MapOptions::shared()).unwrap();
    let pin = map.pin(pages.clone()).unwrap();
    let before = file.extents(pages.clone()).unwrap();
    assert!(before[0].pool > 32 * MIB);
    assert!(matches!(shrink(&pool, 32 * MIB), Err(Error::Pinned)));
    assert_eq!(file.extents(pages.clone()).unwrap()[0].pool, before[0].pool);
    drop((pin, map));
    shrink(&pool, 32 * MIB).unwrap();
    assert!(bytes(&file) == pattern(2, 4 << 20));
    drop((file, pool));
    clean(&media);
}

/// Fails if a change of the forwarding table, or of the size, starts from a state that another one has replaced.
#[test]
fn inodes_that_lie_elsewhere_go_while_the_pool_grows_and_shrinks() {
    let (media, pool) = on_memory(128 * MIB);
    write(&new_file(&pool, "ballast"), 0, &pattern(1, 70 << 20));
    let between = new_file(&pool, "between");
    let name = |i: u64| format!("file {i}");
    for i in 0..6000u64 {
        new_file(&pool, &name(i));
        write(&between, i * 4096, &pattern(i, 10));
    }
    drop(between);
    pool.root().unlink(b"between").unwrap();
    pool.root().unlink(b"ballast").unwrap();
    shrink(&pool, 64 * MIB).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let pool = &pool;
            scope.spawn(move || {
                (0..6000).filter(|i| i % 3 == thread).for_each(|i| pool.root().unlink(name(i).as_bytes()).unwrap());
            });
        }
        for size in (0..40).map(|i| 64 + i % 2 * 32) {
            match size > 64 {
                true => pool.grow(size * MIB).unwrap(),
                false => shrink(&pool, size * MIB).unwrap(),
            }
        }
    });
    assert_eq!(pool.info().unwrap().size, 96 * MIB);
    assert_eq!(pool.statfs().inodes, 0);
    drop(pool);
    clean(&media);
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
            let refused = matches!(pool.grow(256 * MIB), Err(Error::Forked))
                && matches!(shrink(&pool, 64 * MIB), Err(Error::Forked));
            drop(pool);
            // SAFETY: ends the child.
            unsafe { libc::_exit(if refused { 0 } else { 1 }) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for the child.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
    assert_eq!(path.metadata().unwrap().len(), 128 * MIB);
}
