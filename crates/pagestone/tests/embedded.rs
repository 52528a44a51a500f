//! Stores that live in a mapping: a key-value crate that brings its own format, and the access patterns of
//! LMDB (copy-on-write pages, a root switched by one store) and of SQLite (pages in place, a rollback journal).
//!
//! How they could fail, and which test would show it: a store that a sync covered is gone after a kill
//! (`a_store_in_a_mapping_survives_kills`); bytes differ from what the same program finds in a normal file
//! (`a_key_value_store_...`); a reader in another mapping sees a root before the pages below it
//! (`readers_follow_a_root_...`); a rolled-back page keeps a new byte (`pages_in_place_...`).
//!
//! `PAGESTONE_EMBEDDED_SEED=7` repeats a run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use pagestone::check::check;
use pagestone::inode::NewNode;
use pagestone::mmap::{MapOptions, Mapping};
use pagestone::{CreateOptions, Error, File, FileType, OpenOptions, Pool};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("t");
/// Where the file of a store can grow to.
const ROOM: u64 = 256 << 20;

fn seed() -> u64 {
    let seed = std::env::var("PAGESTONE_EMBEDDED_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("PAGESTONE_EMBEDDED_SEED={seed}");
    seed
}

/// Pools to try: on tmpfs and on an ordinary file.
fn places() -> Vec<tempfile::TempDir> {
    let shm = Path::new("/dev/shm").is_dir().then(|| tempfile::tempdir_in("/dev/shm").unwrap());
    shm.into_iter().chain([tempfile::tempdir().unwrap()]).collect()
}

fn new_pool(path: &Path) -> Pool {
    Pool::create(path, &CreateOptions::new().size(512 << 20)).unwrap()
}

/// Opens a pool. A process that another test starts holds copies of this one's open files, and with them a lock,
/// for the moment until it runs its program.
fn open(path: &Path) -> Pool {
    for _ in 0..500 {
        match Pool::open(path, &OpenOptions::default()) {
            Err(Error::InUse { .. }) => std::thread::sleep(Duration::from_millis(10)),
            pool => return pool.unwrap(),
        }
    }
    panic!("{} stays in use", path.display());
}

/// The file of this name, made if it is missing.
fn file(pool: &Pool, name: &str) -> File {
    let ino = match pool.root().lookup(name.as_bytes()) {
        Ok(attr) => attr.ino,
        Err(_) => pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino,
    };
    pool.node(ino).unwrap().open().unwrap()
}

fn is_clean(path: &Path) {
    drop(open(path));
    let report = check(path, &pagestone::check::CheckOptions::default(), &mut |_, _| {});
    let report = match report {
        Err(Error::InUse { .. }) => return is_clean(path),
        report => report.unwrap(),
    };
    assert!(report.is_clean(), "{:?}", report.findings);
}

/// A store's storage: one mapping, longer than the file will ever be.
#[derive(Debug)]
struct Mapped {
    map: Mapping,
    /// Stored to since the last sync.
    dirty: Mutex<Vec<Range<u64>>>,
}

impl Mapped {
    fn new(file: &File) -> Mapped {
        Mapped { map: file.map(0..ROOM, &MapOptions::shared()).unwrap(), dirty: Mutex::default() }
    }
}

fn io(error: Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

impl StorageBackend for Mapped {
    fn len(&self) -> io::Result<u64> {
        Ok(self.map.file().attr().map_err(io)?.size)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.map.read(offset, out).map_err(io)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.map.file().set_len(len).map_err(io)
    }
    fn sync_data(&self) -> io::Result<()> {
        for range in std::mem::take(&mut *self.dirty.lock().unwrap()) {
            self.map.flush(range).map_err(io)?;
        }
        self.map.drain().map_err(io)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.map.write(offset, data).map_err(io)?;
        self.dirty.lock().unwrap().push(offset..offset + data.len() as u64);
        Ok(())
    }
}

/// One transaction out of a seed: what the same seed does to any database.
fn transaction(db: &Database, rng: &mut StdRng) {
    let change = db.begin_write().unwrap();
    {
        let mut table = change.open_table(TABLE).unwrap();
        for _ in 0..rng.random_range(1..60) {
            let key = rng.random_range(0..3000);
            if rng.random_bool(0.3) {
                table.remove(key).unwrap();
            } else {
                let value = vec![rng.random::<u8>(); rng.random_range(0..4000)];
                table.insert(key, &value[..]).unwrap();
            }
        }
    }
    if rng.random_bool(0.1) { change.abort().unwrap() } else { change.commit().unwrap() }
}

fn all(db: &Database) -> Vec<(u64, Vec<u8>)> {
    let view = db.begin_read().unwrap();
    let Ok(table) = view.open_table(TABLE) else { return Vec::new() };
    let rows = table.iter().unwrap();
    rows.map(|row| row.map(|(k, v)| (k.value(), v.value().to_vec())).unwrap()).collect()
}

#[test]
fn a_key_value_store_in_a_mapping_holds_what_it_holds_in_a_normal_file() {
    let seed = seed();
    for place in places() {
        let (path, peer) = (place.path().join("pool"), place.path().join("peer"));
        new_pool(&path).close().unwrap();
        let (mut ours, mut theirs) = (StdRng::seed_from_u64(seed), StdRng::seed_from_u64(seed));
        for _ in 0..4 {
            let pool = open(&path);
            let file = file(&pool, "store");
            let mut db = Database::builder().create_with_backend(Mapped::new(&file)).unwrap();
            let mut other = Database::create(&peer).unwrap();
            for _ in 0..60 {
                transaction(&db, &mut ours);
                transaction(&other, &mut theirs);
            }
            assert!(all(&db) == all(&other), "seed {seed}");
            assert!(db.check_integrity().unwrap() && other.check_integrity().unwrap());
            drop((db, file));
            pool.close().unwrap();
            is_clean(&path);
        }
    }
}

/// What the killed process does: commits, and says so.
fn committer(path: &Path) {
    let pool = open(path);
    let file = file(&pool, "store");
    let db = Database::builder().create_with_backend(Mapped::new(&file)).unwrap();
    let next = all(&db).len() as u64;
    for n in next.. {
        let change = db.begin_write().unwrap();
        change.open_table(TABLE).unwrap().insert(n, &vec![n as u8; 3000][..]).unwrap();
        change.commit().unwrap();
        println!("\ncommitted {n}");
    }
}

#[test]
fn a_store_in_a_mapping_survives_kills() {
    const CHILD: &str = "PAGESTONE_EMBEDDED_CHILD";
    if let Some(path) = std::env::var_os(CHILD) {
        committer(&PathBuf::from(path));
        return;
    }
    let mut rng = StdRng::seed_from_u64(seed());
    for place in places() {
        let path = place.path().join("pool");
        new_pool(&path).close().unwrap();
        for round in 0..4 {
            let test = ["--exact", "a_store_in_a_mapping_survives_kills", "--nocapture"];
            let mut child = Command::new(std::env::current_exe().unwrap());
            let mut child = child.args(test).env(CHILD, &path).stdout(Stdio::piped()).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let reader = std::thread::spawn(move || {
                let number = |line: String| line.strip_prefix("committed ").and_then(|n| n.parse::<u64>().ok());
                lines.map_while(Result::ok).filter_map(number).last()
            });
            std::thread::sleep(Duration::from_millis(rng.random_range(150..500)));
            child.kill().unwrap();
            child.wait().unwrap();
            let last = reader.join().unwrap();
            let pool = open(&path);
            let file = file(&pool, "store");
            let db = Database::builder().create_with_backend(Mapped::new(&file)).unwrap();
            let rows = all(&db);
            assert!(last.is_none_or(|last| rows.len() as u64 > last), "{} rows, {last:?} committed", rows.len());
            assert!(rows.iter().enumerate().all(|(i, (k, v))| *k == i as u64 && *v == vec![i as u8; 3000]));
            println!("round {round}: {} rows, the last acknowledged {last:?}", rows.len());
            drop((db, file));
            pool.close().unwrap();
            is_clean(&path);
        }
    }
}

/// LMDB's way: pages are never changed, only added; a root in page 0 is switched by one store.
#[test]
fn readers_follow_a_root_that_is_switched_after_the_pages_below_it() {
    const PAGE: u64 = 4096;
    const WORDS: u64 = PAGE / 8;
    for place in places() {
        let path = place.path().join("pool");
        let pool = new_pool(&path);
        let file = file(&pool, "tree");
        file.set_len(64 << 20).unwrap();
        let writer = file.map(0..64 << 20, &MapOptions::shared()).unwrap();
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    let reader = file.map(0..64 << 20, &MapOptions::read_only()).unwrap();
                    let mut newest = 0;
                    while !ended.load(std::sync::atomic::Ordering::Acquire) {
                        // A root is a page of leaves; each leaf says the version it was made by or an older one.
                        let root = reader.load::<u64>(0).unwrap();
                        if root == 0 {
                            continue;
                        }
                        let version = reader.load::<u64>(root * PAGE).unwrap();
                        assert!(version >= newest, "a root goes back in time");
                        newest = version;
                        for i in 1..8 {
                            let leaf = reader.load::<u64>(root * PAGE + i * 8).unwrap();
                            let made = reader.load::<u64>(leaf * PAGE).unwrap();
                            assert!(made > 0 && made <= version);
                            assert_eq!(reader.load::<u64>(leaf * PAGE + (WORDS - 1) * 8).unwrap(), made, "a torn page");
                        }
                    }
                });
            }
            let (mut next, mut leaves) = (1u64, [0u64; 8]);
            for version in 1..600u64 {
                for (leaf, every) in leaves[1..].iter_mut().zip(1..) {
                    if *leaf == 0 || version % every == 0 {
                        let page: Vec<u8> = version.to_le_bytes().repeat(WORDS as usize);
                        writer.write(next * PAGE, &page).unwrap();
                        (*leaf, next) = (next, next + 1);
                    }
                }
                let mut root = vec![version];
                root.extend(&leaves[1..]);
                let bytes: Vec<u8> = root.iter().flat_map(|w| w.to_le_bytes()).collect();
                writer.write(next * PAGE, &bytes).unwrap();
                writer.flush(0..(next + 1) * PAGE).unwrap();
                writer.drain().unwrap();
                writer.store(0, next).unwrap();
                writer.flush(0..8).unwrap();
                writer.drain().unwrap();
                next += 1;
            }
            ended.store(true, std::sync::atomic::Ordering::Release);
        });
        drop((writer, file));
        pool.close().unwrap();
        is_clean(&path);
    }
}

/// SQLite's way: old pages into a journal, sync, new pages in place, sync, journal away; or back.
#[test]
fn pages_in_place_with_a_rollback_journal_roll_back_to_the_byte() {
    const PAGE: u64 = 4096;
    const PAGES: u64 = 300;
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    for place in places() {
        let path = place.path().join("pool");
        let pool = new_pool(&path);
        let (main, journal) = (file(&pool, "main"), file(&pool, "journal"));
        main.set_len(PAGES * PAGE).unwrap();
        let map = main.map(0..PAGES * PAGE, &MapOptions::shared()).unwrap();
        let mut model = vec![0u8; (PAGES * PAGE) as usize];
        for _ in 0..150 {
            let pages: Vec<u64> = (0..rng.random_range(1..20)).map(|_| rng.random_range(0..PAGES)).collect();
            let mut old = vec![0; PAGE as usize];
            for &page in &pages {
                map.read(page * PAGE, &mut old).unwrap();
                journal.append(&[&page.to_le_bytes()[..], &old].concat()).unwrap();
            }
            journal.sync_all().unwrap();
            for &page in &pages {
                let (at, len) = (rng.random_range(0..PAGE / 2), rng.random_range(1..PAGE / 2));
                map.fill(page * PAGE + at..page * PAGE + at + len, rng.random()).unwrap();
            }
            map.flush(0..PAGES * PAGE).unwrap();
            map.drain().unwrap();
            if rng.random_bool(0.4) {
                // Back, the newest entry first; the journal is read as a file.
                let entry = 8 + PAGE;
                for i in (0..journal.attr().unwrap().size / entry).rev() {
                    let mut bytes = vec![0; entry as usize];
                    assert_eq!(journal.read_at(&mut bytes, i * entry).unwrap(), bytes.len());
                    let page = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    map.write(page * PAGE, &bytes[8..]).unwrap();
                }
            } else {
                map.read(0, &mut model).unwrap();
            }
            journal.set_len(0).unwrap();
            let mut seen = vec![0; model.len()];
            assert_eq!(main.read_at(&mut seen, 0).unwrap(), seen.len());
            assert!(seen == model, "seed {seed}");
        }
        drop((map, main, journal));
        pool.close().unwrap();
        is_clean(&path);
    }
}
