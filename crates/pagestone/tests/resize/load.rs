//! Pools that are resized while threads change them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagestone::inode::NewNode;
use pagestone::mmap::MapOptions;
use pagestone::{Error, FileType, Pool};

use crate::{MIB, bytes, clean, look, new_file, on_memory, pattern, populate, reopened, shrink, write};

/// Rounds that each thread makes at least.
const ROUNDS: u64 = 10;
/// How long that may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let made: [AtomicU64; 3] = Default::default();
    let mut shrunk = 0;
    std::thread::scope(|scope| {
        // A thread that panics ends the others, and the test.
        let _stop = Stop(&stop);
        for (thread, made) in (0..).zip(&made) {
            let (pool, stop) = (&pool, &stop);
            scope.spawn(move || worker(pool, thread, seed, stop, made));
        }
        let begun = Instant::now();
        let enough = |shrunk| shrunk > 0 && made.iter().all(|made| made.load(Ordering::SeqCst) >= ROUNDS);
        let mut resizes = 0;
        while resizes < rounds || !enough(shrunk) && begun.elapsed() < PATIENCE {
            resizes += 1;
            match shrink(&pool, 100 * MIB) {
                Ok(()) => {
                    shrunk += 1;
                    assert_eq!(pool.info().unwrap().size, 100 * MIB);
                }
                Err(Error::NoSpace | Error::Busy | Error::Pinned) => {}
                Err(e) => panic!("{e}"),
            }
            pool.grow(192 * MIB).unwrap();
        }
        println!("{shrunk} of {resizes} shrinks succeeded, the threads made {made:?} rounds");
    });
    assert!(shrunk > 0, "no shrink succeeded");
    assert!(made.iter().all(|made| made.load(Ordering::SeqCst) >= ROUNDS), "{made:?} rounds");
    let mut now = look(&pool);
    now.retain(|path, _| !path.starts_with(b"/worker"));
    assert!(now.keys().eq(before.keys()));
    assert!(now.iter().all(|(path, seen)| path.is_empty() || *seen == before[path]));
    let pool = reopened(&media, pool);
    drop(pool);
    clean(&media);
}

/// Lets the threads end when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Writes, maps, clones and removes files of its own, and knows what is in them. Counts its rounds.
fn worker(pool: &Pool, thread: u64, seed: u64, stop: &AtomicBool, made: &AtomicU64) {
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
        made.store(round, Ordering::SeqCst);
    }
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
