//! Threads: on things of their own, on the same things, and in a pool that is too small for them.
//! Afterwards everything has to add up, and `check` has to agree.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagestone::inode::{Dir, NewNode, RenameMode, XattrMode};
use pagestone::{Error, File, FileType, Ino, Pool};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::place::{On, Place};
use crate::{seed, setting};

const THREADS: u64 = 4;

/// How long the threads run.
fn time() -> Duration {
    Duration::from_millis(setting("PAGESTONE_MODEL_THREADS_MS", 2500))
}

/// Runs `work(thread, rng, go_on)` on all threads; aborts if one of them stops getting on.
fn together(seed: u64, work: impl Fn(u64, &mut StdRng, &dyn Fn() -> bool) + Sync) {
    let (start, ended) = (Instant::now(), AtomicBool::new(false));
    let steps: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS)
            .map(|t| {
                let (work, steps) = (&work, &steps);
                s.spawn(move || {
                    let step = || {
                        steps[t as usize].fetch_add(1, Ordering::Relaxed);
                        start.elapsed() < time()
                    };
                    work(t, &mut StdRng::seed_from_u64(seed ^ t), &step);
                    steps[t as usize].store(u64::MAX, Ordering::Relaxed);
                })
            })
            .collect();
        s.spawn(|| watch(&steps, &ended));
        let results: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
        ended.store(true, Ordering::SeqCst);
        results.into_iter().for_each(|r| r.unwrap_or_else(|e| std::panic::resume_unwind(e)));
    });
}

/// The watchdog: a thread that makes no step for long hangs, most likely on a lock.
fn watch(steps: &[AtomicU64], ended: &AtomicBool) {
    let mut last = vec![(0, Instant::now()); steps.len()];
    while !ended.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
        for (t, (seen, since)) in last.iter_mut().enumerate() {
            let now = steps[t].load(Ordering::Relaxed);
            if now != *seen {
                (*seen, *since) = (now, Instant::now());
            } else if now != u64::MAX && since.elapsed() > Duration::from_secs(60) && !ended.load(Ordering::SeqCst) {
                eprintln!("thread {t} stands still at step {now}: a deadlock?");
                std::process::abort();
            }
        }
    }
}

fn dir(pool: &Pool, ino: Ino) -> Result<Dir, Error> {
    pool.node(ino)?.dir()
}

fn new_file(dir: &Dir, name: &str) -> Result<Ino, Error> {
    Ok(dir.create(name.as_bytes(), &NewNode::new(FileType::File, 0o644))?.ino)
}

/// Deletes all that is below.
fn empty(pool: &Pool, ino: Ino) {
    for e in dir(pool, ino).unwrap().entries() {
        let e = e.unwrap();
        if e.kind == FileType::Dir {
            empty(pool, e.ino);
            dir(pool, ino).unwrap().rmdir(&e.name).unwrap();
        } else {
            dir(pool, ino).unwrap().unlink(&e.name).unwrap();
        }
    }
}

/// Closed, sound, opened, emptied, sound; nothing is lost but what the lanes stand in.
fn settle(place: &Place, pool: Pool, free: u64) {
    pool.close().unwrap();
    place.check();
    let pool = place.open();
    empty(&pool, pool.root().ino());
    let (space, lanes) = (pool.statfs(), u64::from(pool.info().unwrap().lanes));
    assert_eq!(space.inodes, 0);
    assert!(free - space.free <= 4 * lanes, "{} pages are lost", free - space.free);
    pool.close().unwrap();
    place.check();
}

fn own_step(pool: &Pool, at: &Dir, model: &mut BTreeMap<String, Vec<u8>>, rng: &mut StdRng) {
    let name = format!("f{}", rng.random_range(0..60));
    let other = format!("f{}", rng.random_range(0..60));
    if !model.contains_key(&name) {
        let new = match model.get(&other) {
            // Of a file of one's own, of what all threads share, or nothing.
            Some(bytes) if rng.random_bool(0.5) => {
                at.clone_file(name.as_bytes(), at.lookup(other.as_bytes()).unwrap().ino).unwrap();
                bytes.clone()
            }
            _ if rng.random_bool(0.5) => {
                at.clone_file(name.as_bytes(), pool.root().lookup(b"shared").unwrap().ino).unwrap();
                shared_contents()
            }
            _ => {
                new_file(at, &name).unwrap();
                Vec::new()
            }
        };
        model.insert(name, new);
        return;
    }
    let Some(bytes) = model.get_mut(&name) else { return };
    let file = || -> File { pool.node(at.lookup(name.as_bytes()).unwrap().ino).unwrap().open().unwrap() };
    let offset = rng.random_range(0..bytes.len() + 1);
    match rng.random_range(0..11) {
        10 => {
            let parts: Vec<(u64, &[u8])> = (0..rng.random_range(1..30)).map(|i| (i * 9000, &[7; 5000][..])).collect();
            file().write_atomic(&parts).unwrap();
            bytes.resize(bytes.len().max(parts.len() * 9000 - 4000), 0);
            parts.iter().for_each(|&(at, part)| bytes[at as usize..][..5000].copy_from_slice(part));
        }
        0..4 => {
            let len = *[10, 5000, 20_000, 200_000].choose(rng).unwrap();
            let new = vec![rng.random::<u8>(); rng.random_range(1..len)];
            file().write_all_at(&new, offset as u64).unwrap();
            bytes.resize(bytes.len().max(offset + new.len()), 0);
            bytes[offset..offset + new.len()].copy_from_slice(&new);
        }
        4 => {
            file().set_len(offset as u64).unwrap();
            bytes.truncate(offset);
        }
        5 => {
            let mut got = vec![0; bytes.len()];
            assert_eq!(file().read_at(&mut got, 0).unwrap(), got.len());
            assert!(got == *bytes);
        }
        6 => {
            file().punch_hole(offset as u64..(offset as u64).saturating_add(9000)).unwrap();
            let end = bytes.len().min(offset + 9000);
            bytes[offset..end].fill(0);
        }
        7 => {
            let node = pool.node(file().ino()).unwrap();
            node.set_xattr(b"user.x", &vec![1; rng.random_range(0..2000)], XattrMode::Set).unwrap();
        }
        8 if name != other => {
            at.rename(name.as_bytes(), at.ino(), other.as_bytes(), RenameMode::Replace).unwrap();
            let moved = model.remove(&name).unwrap();
            model.insert(other, moved);
        }
        _ => {
            let kept = file();
            at.unlink(name.as_bytes()).unwrap();
            let mut got = vec![0; bytes.len()];
            assert_eq!(kept.read_at(&mut got, 0).unwrap(), got.len());
            assert!(got == *bytes, "bytes of an open file without a name");
            model.remove(&name);
        }
    }
}

/// What is in the file that all threads clone.
fn shared_contents() -> Vec<u8> {
    (0..300_000u32).map(|i| (i / 1000) as u8).collect()
}

fn things_of_their_own(on: On) {
    let (place, pool) = Place::create(on, 256 << 20);
    let free = pool.statfs().free;
    let shared = new_file(&pool.root(), "shared").unwrap();
    pool.node(shared).unwrap().open().unwrap().write_all_at(&shared_contents(), 0).unwrap();
    let homes: Vec<Ino> = (0..THREADS)
        .map(|t| pool.root().create(&[b'a' + t as u8], &NewNode::new(FileType::Dir, 0o755)).unwrap().ino)
        .collect();
    together(seed(), |t, rng, go_on| {
        let home = dir(&pool, homes[t as usize]).unwrap();
        let mut model = BTreeMap::new();
        while go_on() {
            own_step(&pool, &home, &mut model, rng);
        }
        for (name, bytes) in &model {
            let file = pool.node(home.lookup(name.as_bytes()).unwrap().ino).unwrap().open().unwrap();
            let mut got = vec![0; bytes.len() + 1];
            assert_eq!(file.read_at(&mut got, 0).unwrap(), bytes.len());
            assert!(got[..bytes.len()] == bytes[..]);
        }
    });
    settle(&place, pool, free);
}

#[test]
fn threads_on_things_of_their_own() {
    things_of_their_own(On::Memory);
}

#[test]
fn threads_on_things_of_their_own_in_an_ordinary_file() {
    things_of_their_own(On::File);
}

/// Answers that a race explains; anything else is a mistake.
fn expected<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(
            Error::NotFound
            | Error::Exists
            | Error::NotEmpty
            | Error::IsDirectory
            | Error::NotDirectory
            | Error::Stale(_)
            | Error::Invalid(_)
            | Error::NotSupported("only regular files have bytes"),
        ) => None,
        Err(e) => panic!("{e}"),
    }
}

/// Changes of names, all in the same few directories; directories move below one another.
fn shared_names(pool: &Pool, dirs: &[Ino], rng: &mut StdRng) {
    let (from, to) = (*dirs.choose(rng).unwrap(), *dirs.choose(rng).unwrap());
    let name = format!("n{}", rng.random_range(0..25));
    let other = format!("n{}", rng.random_range(0..25));
    let Some(at) = expected(dir(pool, from)) else { return };
    match rng.random_range(0..10) {
        0..3 => drop(expected(new_file(&at, &name))),
        3 => drop(expected(at.create(name.as_bytes(), &NewNode::new(FileType::Dir, 0o755)))),
        4 => drop(expected(at.unlink(name.as_bytes()))),
        5 => drop(expected(at.rmdir(name.as_bytes()))),
        6 => drop(expected(at.lookup(name.as_bytes()).and_then(|a| dir(pool, to)?.link(other.as_bytes(), a.ino)))),
        n => {
            let mode = [RenameMode::Replace, RenameMode::Exchange, RenameMode::NoReplace][n as usize - 7];
            expected(at.rename(name.as_bytes(), to, other.as_bytes(), mode));
        }
    }
}

/// Bytes in files that others unlink, rename and cut at the same time: each byte is somebody's.
fn shared_bytes(pool: &Pool, dirs: &[Ino], t: u64, rng: &mut StdRng) {
    let name = format!("n{}", rng.random_range(0..25));
    let Some(at) = expected(dir(pool, *dirs.choose(rng).unwrap())) else { return };
    let Some(attr) = expected(at.lookup(name.as_bytes())) else { return };
    let Some(file) = expected(pool.node(attr.ino).and_then(|n| n.open())) else { return };
    let offset = rng.random_range(0..100_000);
    match rng.random_range(0..9) {
        6 => drop(expected(at.clone_file(format!("n{}", rng.random_range(0..25)).as_bytes(), attr.ino))),
        7 => {
            let part = [t as u8 + 1; 6000];
            file.write_atomic(
                &[8, 0, 5, 9, 1, 2, 11, 3][..rng.random_range(1..9)]
                    .iter()
                    .enumerate()
                    .map(|(i, gap)| (offset + i as u64 * 18_000 + gap * 1000, &part[..]))
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        }
        8 => {
            let other =
                at.lookup(format!("n{}", rng.random_range(0..25)).as_bytes()).and_then(|a| pool.node(a.ino)?.open());
            let Some(other) = expected(other) else { return };
            expected(file.clone_from_file(&other));
        }
        0 | 1 => file.write_all_at(&vec![t as u8 + 1; rng.random_range(1..30_000)], offset).unwrap(),
        2 => file.set_len(offset).unwrap(),
        3 => file.punch_hole(offset..offset.saturating_add(10_000)).unwrap(),
        4 => drop(at.unlink(name.as_bytes())),
        _ => {
            let mut got = vec![0; 50_000];
            let len = file.read_at(&mut got, offset).unwrap();
            assert!(got[..len].iter().all(|&b| u64::from(b) <= THREADS), "a byte that nobody wrote");
        }
    }
}

#[test]
fn threads_on_the_same_things() {
    let (place, pool) = Place::create(On::Memory, 256 << 20);
    let free = pool.statfs().free;
    let mut dirs = vec![pool.root().ino()];
    for i in 0..5 {
        let at = dir(&pool, dirs[i / 2]).unwrap();
        dirs.push(at.create(format!("d{i}").as_bytes(), &NewNode::new(FileType::Dir, 0o755)).unwrap().ino);
    }
    together(seed(), |t, rng, go_on| {
        while go_on() {
            if rng.random_bool(0.6) {
                shared_names(&pool, &dirs, rng);
            } else {
                shared_bytes(&pool, &dirs, t, rng);
            }
        }
    });
    settle(&place, pool, free);
}

/// Appends do not tear and are not lost; a listing sees what stays exactly once.
#[test]
fn threads_append_to_one_file_and_list_one_directory() {
    const RECORD: usize = 100;
    let (place, pool) = Place::create(On::Memory, 128 << 20);
    let free = pool.statfs().free;
    for i in 0..300 {
        new_file(&pool.root(), &format!("steady {i}")).unwrap();
    }
    let log = pool.node(new_file(&pool.root(), "log").unwrap()).unwrap().open().unwrap();
    let written: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    together(seed(), |t, rng, go_on| {
        for n in 0.. {
            if !go_on() || n > 60_000 {
                break;
            }
            let mut record = [t as u8; RECORD];
            record[..8].copy_from_slice(&u64::to_le_bytes(n));
            log.append(&record).unwrap();
            written[t as usize].store(n + 1, Ordering::SeqCst);
            let name = format!("fleeting {t} {}", rng.random_range(0..20));
            if new_file(&pool.root(), &name).is_err() {
                pool.root().unlink(name.as_bytes()).unwrap();
            }
            if n % 50 == 0 {
                list(&pool, rng);
            }
        }
    });
    let mut next: HashMap<u8, u64> = HashMap::new();
    let mut bytes = vec![0; log.attr().unwrap().size as usize];
    assert_eq!(log.read_at(&mut bytes, 0).unwrap(), bytes.len());
    for record in bytes.chunks(RECORD) {
        let n = next.entry(record[8]).or_default();
        assert!(record[..8] == n.to_le_bytes() && record[8..].iter().all(|&b| b == record[8]), "a torn record");
        *n += 1;
    }
    for (t, n) in written.iter().enumerate() {
        assert_eq!(next.get(&(t as u8)).copied().unwrap_or(0), n.load(Ordering::SeqCst), "records of thread {t}");
    }
    drop(log);
    settle(&place, pool, free);
}

fn list(pool: &Pool, rng: &mut StdRng) {
    let (mut cookie, mut steady, batch) = (0, 0, rng.random_range(1..60));
    loop {
        let found = pool.root().read_entries(cookie, batch).unwrap();
        cookie = found.last().map_or(cookie, |e| e.cookie);
        steady += found.iter().filter(|e| e.name.starts_with(b"steady")).count();
        if found.len() < batch {
            break;
        }
    }
    assert_eq!(steady, 300);
}

/// A pool that is full most of the time: nobody loses anything, and deleting goes on.
#[test]
fn threads_in_a_pool_that_is_too_small() {
    for size in [8 << 20, 20 << 20, 66 << 20] {
        let (place, pool) = Place::create(On::Memory, size);
        let free = pool.statfs().free;
        let mut full = AtomicU64::new(0);
        together(seed(), |t, rng, go_on| {
            let mut model: BTreeMap<String, u64> = BTreeMap::new();
            while go_on() {
                let name = format!("{t} {}", rng.random_range(0..30));
                let grown = if model.contains_key(&name) && rng.random_bool(0.3) {
                    let gone = pool.root().unlink(name.as_bytes());
                    assert!(gone.is_ok(), "{gone:?}: {:?}", pool.statfs());
                    model.remove(&name);
                    Ok(())
                } else {
                    grow(&pool, &name, t, &mut model, rng)
                };
                match grown {
                    Ok(()) => {}
                    Err(Error::NoSpace) => drop(full.fetch_add(1, Ordering::Relaxed)),
                    Err(e) => panic!("{e}"),
                }
            }
            for (name, len) in &model {
                let attr = pool.root().lookup(name.as_bytes()).unwrap();
                assert_eq!(attr.size, *len);
                let mut got = vec![0; *len as usize];
                pool.node(attr.ino).unwrap().open().unwrap().read_at(&mut got, 0).unwrap();
                assert!(got.iter().all(|&b| b == t as u8 + 1));
            }
        });
        assert!(*full.get_mut() > 0);
        settle(&place, pool, free);
    }
}

/// Appends to a file of this thread's alone, making it if it is not there.
fn grow(pool: &Pool, name: &str, t: u64, model: &mut BTreeMap<String, u64>, rng: &mut StdRng) -> Result<(), Error> {
    if !model.contains_key(name) {
        new_file(&pool.root(), name)?;
        model.insert(name.into(), 0);
    }
    let file = pool.node(pool.root().lookup(name.as_bytes())?.ino)?.open()?;
    let len = rng.random_range(1..400_000);
    let appended = file.append(&vec![t as u8 + 1; len]);
    // In a full pool the front of it may be there.
    let (known, size) = (model.get_mut(name).unwrap(), file.attr()?.size);
    assert!(size >= *known && size <= *known + len as u64 && (appended.is_err() || size == *known + len as u64));
    *known = size;
    appended.map(drop)
}
