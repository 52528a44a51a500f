//! The library on whatever path is given: what a device could do differently from a file in memory.
//!
//! ```text
//!   PAGESTONE_TEST_MEDIA=/dev/dax0.0 cargo test --test devices -- --test-threads 1
//!     tests --> pool on the path, made anew by each (what is there is overwritten)
//!        |---- victim: this program again, killed while it works --> reopened, replayed
//! ```
//!
//! Without the variable the pool is a file in memory. How it could fail, and what would show it: a window cannot be
//! mapped, or not privately (`a_read_only_...`); pieces smaller than the device's own page are mapped
//! (`mappings_...`); the device's end is misjudged (`a_full_device_...`); what was acknowledged is not there
//! (`what_a_killed_...`); damage is met that a copy in memory would not show (`a_damaged_pool_...`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::OpenOptions as Files;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use pagestone::check::check;
use pagestone::inode::NewNode;
use pagestone::mmap::{MapMechanism, MapOptions, MapReport};
use pagestone::{CreateOptions, Error, File, FileType, OpenOptions, Pool};
use pmem::{Media, MediaKind, Part};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const MEDIA: &str = "PAGESTONE_TEST_MEDIA";
/// Set for the program that is killed.
const VICTIM: &str = "PAGESTONE_TEST_VICTIM";
const SIZE: u64 = 128 << 20;
const CHUNK: u64 = 2 << 20;

/// The path, for one test at a time.
struct Place {
    path: PathBuf,
    _dir: Option<tempfile::TempDir>,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Place {
    fn take() -> Place {
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(path) = std::env::var_os(MEDIA) {
            return Place { path: path.into(), _dir: None, _turn: turn };
        }
        let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." }).unwrap();
        let path = dir.path().join("pool");
        println!("{MEDIA} is not set: on {}", path.display());
        Place { path, _dir: Some(dir), _turn: turn }
    }

    fn make(&self) -> Pool {
        Pool::create(&self.path, &CreateOptions::new().size(SIZE).force(true)).unwrap()
    }

    fn open(&self) -> Pool {
        Pool::open(&self.path, &OpenOptions::default()).unwrap()
    }

    fn is_clean(&self) {
        let report = check(&self.path, &pagestone::check::CheckOptions::default(), &mut |_, _| ()).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
    }
}

fn file(pool: &Pool, name: &str) -> File {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
    pool.node(ino).unwrap().open().unwrap()
}

fn named(pool: &Pool, name: &str) -> File {
    pool.resolve(name.as_bytes()).unwrap().open().unwrap()
}

fn pattern(len: usize, salt: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9).wrapping_add(salt) >> 7) as u8).collect()
}

fn all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0xEE; file.attr().unwrap().size as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

#[test]
fn names_and_bytes_are_there_after_a_reopen() {
    let place = Place::take();
    let pool = place.make();
    println!("{:?}", pool.info().unwrap().media);
    let lengths = [0usize, 1, 63, 4095, 4096, 4097, 70_000, 5 << 20];
    for (i, &len) in lengths.iter().enumerate() {
        file(&pool, &format!("f{i}")).write_all_at(&pattern(len, i as u64), i as u64 * 13).unwrap();
    }
    for i in 0..2000 {
        file(&pool, &format!("small-{i}"));
    }
    (0..2000).step_by(2).for_each(|i| pool.root().unlink(format!("small-{i}").as_bytes()).unwrap());
    pool.close().unwrap();
    place.is_clean();
    let pool = place.open();
    for (i, &len) in lengths.iter().enumerate() {
        let bytes = all(&named(&pool, &format!("/f{i}")));
        assert!(bytes[bytes.len() - len..] == pattern(len, i as u64), "f{i} differs");
    }
    assert_eq!(pool.read_dir("/").unwrap().map(Result::unwrap).count(), 1000 + lengths.len());
}

/// What the victim does, until it is killed: a line for each step that is done.
#[test]
fn victim() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let pool = Pool::open(Path::new(&path), &OpenOptions::default()).unwrap();
    let out = std::io::stdout();
    for i in 0u64.. {
        file(&pool, &format!("v{i}")).write_all_at(&pattern(i as usize % 9000, i), 0).unwrap();
        pool.resolve(b"/grows").unwrap().open().unwrap().append(&i.to_le_bytes()).unwrap();
        writeln!(out.lock(), "\ndone {i}").unwrap();
    }
}

fn kill_a_victim(place: &Place, steps: u64) -> u64 {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM, &place.path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = 0;
    for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
        let Some(n) = line.unwrap().strip_prefix("done ").map(|n| n.parse::<u64>().unwrap()) else { continue };
        last = n;
        if n == steps {
            victim.kill().unwrap();
        }
    }
    victim.wait().unwrap();
    assert!(last >= steps, "the victim ended by itself");
    last
}

fn has_all(pool: &Pool, last: u64) {
    for i in 0..=last {
        assert!(all(&named(pool, &format!("/v{i}"))) == pattern(i as usize % 9000, i), "v{i} differs");
    }
    let log = all(&named(pool, "/grows"));
    let there = log.len() as u64 / 8;
    assert!(
        log.len().is_multiple_of(8) && (last + 1..=last + 2).contains(&there),
        "{there} records, {last} was acknowledged"
    );
    log.chunks(8).zip(0u64..).for_each(|(bytes, i)| assert_eq!(bytes, i.to_le_bytes()));
}

#[test]
fn what_a_killed_process_was_told_is_there() {
    let place = Place::take();
    for steps in [0, 7, 300] {
        let pool = place.make();
        file(&pool, "grows");
        pool.close().unwrap();
        let last = kill_a_victim(&place, steps);
        // Read-only first: replayed into memory of this process, whatever the device can map.
        let pool = Pool::open(&place.path, &OpenOptions::new().read_only(true)).unwrap();
        has_all(&pool, last);
        drop(pool);
        let pool = place.open();
        assert!(pool.info().unwrap().replayed > 0);
        has_all(&pool, last);
        drop(pool);
        place.is_clean();
    }
}

#[test]
fn a_read_only_pool_takes_no_changes_and_many_readers() {
    let place = Place::take();
    let pool = place.make();
    file(&pool, "f").write_all_at(&pattern(100_000, 1), 0).unwrap();
    file(&pool, "whole").write_all_at(&pattern(2 * CHUNK as usize, 2), 0).unwrap();
    assert!(matches!(Pool::open(&place.path, &OpenOptions::default()), Err(Error::InUse { .. })));
    pool.close().unwrap();
    let how = OpenOptions::new().read_only(true);
    let (one, two) = (Pool::open(&place.path, &how).unwrap(), Pool::open(&place.path, &how).unwrap());
    for pool in [&one, &two] {
        let f = named(pool, "/f");
        assert!(all(&f) == pattern(100_000, 1));
        assert!(matches!(f.write_all_at(b"x", 0), Err(Error::ReadOnly)));
        let map = f.map(0..100_000, &MapOptions::read_only()).unwrap();
        // Where nothing below 2 MiB can be mapped, this file would have to be moved first: an error, not other bytes.
        match map.get::<u8>(99_999) {
            Ok(byte) => assert_eq!(byte, pattern(100_000, 1)[99_999]),
            Err(e) => println!("a file that is not of whole frames: {e}"),
        }
        let map = named(pool, "/whole").map(0..2 * CHUNK, &MapOptions::read_only()).unwrap();
        assert_eq!(map.get::<u8>(CHUNK + 7).unwrap(), pattern(2 * CHUNK as usize, 2)[CHUNK as usize + 7]);
    }
}

#[test]
fn mappings_are_the_storage_itself() {
    let place = Place::take();
    let pool = place.make();
    let f = file(&pool, "f");
    f.write_all_at(&pattern(300_000, 3), 0).unwrap();
    f.set_len(8 * CHUNK).unwrap();
    let map = f.map(0..8 * CHUNK, &MapOptions::shared()).unwrap();
    println!("{}, {:?}", map.mechanism(), map.report().unwrap());
    // Data, a hole, and through both ways.
    map.store::<u64>(4096, 1).unwrap();
    assert_eq!(map.load::<u64>(5 * CHUNK + 4096).unwrap(), 0);
    map.store::<u64>(5 * CHUNK + 4096, 2).unwrap();
    map.flush(0..8 * CHUNK).unwrap();
    map.drain().unwrap();
    let mut word = [0; 8];
    for (at, value) in [(4096, 1u64), (5 * CHUNK + 4096, 2)] {
        f.read_at(&mut word, at).unwrap();
        assert_eq!(u64::from_le_bytes(word), value);
    }
    f.write_all_at(b"seen", CHUNK).unwrap();
    assert_eq!(&map.get::<[u8; 4]>(CHUNK).unwrap(), b"seen");
    // A private mapping keeps its stores.
    let private = f.map(0..CHUNK, &MapOptions::private());
    match private {
        Ok(private) => match private.store::<u64>(4096, 9) {
            Ok(()) => assert_eq!((private.load::<u64>(4096).unwrap(), map.load::<u64>(4096).unwrap()), (9, 1)),
            Err(e) => println!("a store to a private mapping: {e}"),
        },
        Err(e) => println!("no private mapping: {e}"),
    }
    f.punch_hole(0..CHUNK).unwrap();
    assert!(matches!(map.load::<u64>(4096), Err(Error::Revoked(_))));
    map.refresh(0..CHUNK).unwrap();
    assert_eq!(map.load::<u64>(4096).unwrap(), 0);
    drop((map, f));
    pool.close().unwrap();
    place.is_clean();
    f_after(&place);
}

fn f_after(place: &Place) {
    let pool = place.open();
    let mut word = [0; 8];
    named(&pool, "/f").read_at(&mut word, 5 * CHUNK + 4096).unwrap();
    assert_eq!(u64::from_le_bytes(word), 2);
}

/// Page faults of this thread that took no reading, so far.
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let behind_name = stat.rsplit_once(") ").unwrap().1;
    behind_name.split(' ').nth(7).unwrap().parse().unwrap()
}

/// Fails if a big file's mapping takes a fault for each page where 2 MiB can be mapped at once, or if the report
/// claims other than what the faults say.
#[test]
fn big_files_are_mapped_by_2_mib_where_the_memory_is_mapped_so() {
    const LEN: u64 = 64 << 20;
    let place = Place::take();
    let pool = place.make();
    let f = file(&pool, "f");
    f.write_all_at(&pattern(8 << 20, 1), 0).unwrap();
    (4..LEN / CHUNK).for_each(|i| f.write_all_at(&pattern(CHUNK as usize, i), i * CHUNK).unwrap());
    let media = pool.info().unwrap().media;
    let dax = matches!(media.kind, MediaKind::DaxDevice | MediaKind::DaxFile);
    for (how, stores) in [(MapOptions::read_only(), false), (MapOptions::shared(), true)] {
        let map = f.map(0..LEN, &how).unwrap();
        let before = faults();
        for at in (0..LEN).step_by(4096) {
            if stores {
                map.store(at, at).unwrap();
            } else {
                map.load::<u64>(at).unwrap();
            }
        }
        let faults = faults() - before;
        let report = map.report().unwrap();
        println!("{faults} faults for {} pages of 4 KiB; {report:?}", LEN / 4096);
        if !dax {
            continue;
        }
        // A read fault and, where the kernel tells the filesystem of stores, one for the first store.
        assert!((LEN / CHUNK..=2 * LEN / CHUNK + 16).contains(&faults), "{faults} faults");
        if media_tells(&report) {
            assert_eq!((report.resident, report.huge), (LEN, LEN), "{report:?}");
        }
    }
    drop(f);
    pool.close().unwrap();
    place.is_clean();
}

/// Whether the kernel tells what the page tables hold for DAX: since 6.7, with which this kind of mapping came.
fn media_tells(report: &MapReport) -> bool {
    report.resident > 0 || report.mechanism == MapMechanism::Userfaultfd
}

#[test]
fn the_kernel_reads_into_a_mapping_and_writes_from_it() {
    let place = Place::take();
    let pool = place.make();
    let f = file(&pool, "f");
    f.set_len(2 * CHUNK).unwrap();
    let map = f.map(0..2 * CHUNK, &MapOptions::shared()).unwrap();
    map.populate(0..2 * CHUNK).unwrap();
    // Through O_DIRECT where the disk takes it: the pages of the mapping are the target.
    let disk = std::env::var_os("PAGESTONE_TEST_DISK").map(PathBuf::from);
    let _dir = tempfile::tempdir().unwrap();
    let path = disk.clone().unwrap_or_else(|| _dir.path().join("disk"));
    let bytes = pattern(CHUNK as usize, 5);
    Files::new().create(true).truncate(false).write(true).open(&path).unwrap().write_all(&bytes).unwrap();
    let mut flags = Files::new();
    flags.read(true).write(true);
    let direct = flags.clone().custom_flags(libc::O_DIRECT).open(&path);
    assert!(direct.is_ok() || disk.is_none(), "the disk takes no O_DIRECT");
    let mut from = direct.or_else(|_| flags.open(&path)).unwrap();
    // SAFETY: the range is mapped, populated, and nobody else looks at it.
    let target =
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().unwrap().add(CHUNK as usize), CHUNK as usize) };
    from.read_exact(target).unwrap();
    let mut back = vec![0; CHUNK as usize];
    f.read_at(&mut back, CHUNK).unwrap();
    assert!(back == bytes);
    // And out again.
    f.write_all_at(&pattern(CHUNK as usize, 6), CHUNK).unwrap();
    std::io::Seek::rewind(&mut from).unwrap();
    from.write_all(target).unwrap();
    drop(from);
    let mut there = vec![0; CHUNK as usize];
    Files::new().read(true).open(&path).unwrap().read_exact(&mut there).unwrap();
    assert!(there == pattern(CHUNK as usize, 6));
}

#[test]
fn clones_snapshots_and_atomic_writes_hold() {
    let place = Place::take();
    let pool = place.make();
    let a = file(&pool, "a");
    a.write_all_at(&pattern(3 << 20, 7), 0).unwrap();
    let ino = pool.root().clone_file(b"b", a.ino()).unwrap().ino;
    pool.snapshots().create(b"monday").unwrap();
    let b = pool.node(ino).unwrap().open().unwrap();
    let (x, y) = ([1; 5000], [2; 100]);
    b.write_atomic(&[(10, &x), (1 << 20, &y)]).unwrap();
    let mut wanted = pattern(3 << 20, 7);
    wanted[10..5010].fill(1);
    wanted[1 << 20..(1 << 20) + 100].fill(2);
    assert!(all(&a) == pattern(3 << 20, 7) && all(&b) == wanted);
    let map = b.map(0..3 << 20, &MapOptions::shared()).unwrap();
    map.store::<u64>(2 << 20, 77).unwrap();
    assert!(all(&a) == pattern(3 << 20, 7));
    drop((a, b, map));
    pool.close().unwrap();
    place.is_clean();
    let pool = place.open();
    pool.snapshots().restore(b"monday").unwrap();
    assert!(all(&named(&pool, "/b")) == pattern(3 << 20, 7));
    pool.close().unwrap();
    place.is_clean();
}

#[test]
fn a_full_device_is_an_error_and_the_last_byte_can_be_used() {
    let place = Place::take();
    let pool = place.make();
    let f = file(&pool, "f");
    let bytes = pattern(1 << 20, 9);
    let full = loop {
        match f.append(&bytes) {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert!(matches!(full, Error::NoSpace), "{full}");
    let size = f.attr().unwrap().size;
    assert!(size > SIZE * 9 / 10, "{size} bytes");
    let mut back = vec![0; 1 << 20];
    f.read_at(&mut back, (size >> 20 << 20) - (1 << 20)).unwrap();
    assert!(back == bytes);
    drop(f);
    pool.root().unlink(b"f").unwrap();
    file(&pool, "g").write_all_at(&bytes, 0).unwrap();
    pool.close().unwrap();
    place.is_clean();
}

/// The pool's bytes, to be damaged.
fn bytes_of(place: &Place) -> Arc<dyn Media> {
    pmem::open(&place.path, &pmem::Open { read_only: false, kind: None, size: None, room: 0, lock: None })
        .unwrap()
        .media
}

fn flip(place: &Place, at: u64, bit: u32) {
    let media = bytes_of(place);
    let mut byte = [0];
    assert!(media.views().data.read(at, &mut byte));
    media.persist(&[Part::Bytes { at, bytes: &[byte[0] ^ 1 << bit] }]).unwrap();
    media.sync().unwrap();
}

/// The pages that hold something, and what they hold in one number.
fn contents(place: &Place) -> (Vec<u64>, u64) {
    let (media, mut page) = (bytes_of(place), [0; 4096]);
    let (mut used, mut sum) = (Vec::new(), 0u64);
    for at in (0..SIZE).step_by(page.len()) {
        assert!(media.views().data.read(at, &mut page));
        if page != [0; 4096] {
            used.push(at);
            let words = page.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word));
            sum = words.fold(sum, |sum, word| (sum ^ word).rotate_left(29).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
    }
    (used, sum)
}

/// Fails unless the error is an answer to damage at this byte: it names a structure of that page, or what the pool is not.
fn named_place(e: &Error, at: u64) {
    use pagestone::Place as Named;
    let damaged = at / 4096;
    let place = match e {
        Error::Corrupt { place, .. } => place,
        Error::TooNew(_) | Error::NotAPool(_) | Error::Size(_) | Error::Stale(_) | Error::NotFound => return,
        other => panic!("damage is answered by: {other}"),
    };
    let there = match (*place, place.pool_byte()) {
        (_, Some(byte)) => byte / 4096 == damaged,
        (Named::Superblock, _) => [0, 255].contains(&damaged),
        (Named::JournalHeader, _) => damaged == 1,
        (Named::Counters { .. }, _) => damaged == 2,
        // The lanes, and the descriptors behind them.
        (Named::JournalLane { .. } | Named::JournalRecord(_) | Named::JournalRecordFor(_), _) => damaged >= 256,
        (Named::Descriptor(_), _) => damaged >= 256,
        // The table is one of the pages of its frame.
        (Named::SplitEntry(page) | Named::Owner(page), _) => page.0 / 512 == damaged / 512,
        // Sixteen to a page.
        (Named::InodeRecord(inode), _) => inode / 16 == damaged,
        (Named::InodeSlot(ino) | Named::Inode(ino), _) => ino.place() / 16 == damaged,
        _ => false,
    };
    assert!(there, "byte {at:#x} is damaged, and the error is: {e}");
}

/// Every name is looked up, and every file read. Byte `at` is damaged.
fn look_at_all(pool: &Pool, at: u64) -> Result<(), Error> {
    for entry in pool.root().entries() {
        let name = entry?.name;
        let looked = pool.root().lookup(&name).and_then(|attr| pool.node(attr.ino)?.open());
        let mut bytes = vec![0; 70_000];
        looked.and_then(|file| file.read_at(&mut bytes, 0)).map(drop).or_else(|e| {
            named_place(&e, at);
            Ok::<(), Error>(())
        })?;
    }
    Ok(())
}

#[test]
fn a_damaged_pool_is_an_error_that_names_the_place_and_looking_changes_nothing() {
    let seed: u64 = std::env::var("PAGESTONE_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("PAGESTONE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place::take();
    let pool = place.make();
    (0..300).for_each(|i| drop(file(&pool, &format!("small-{i}"))));
    let holed = file(&pool, "holed");
    (0..200).for_each(|i| holed.write_all_at(&pattern(100, i), i * 8192).unwrap());
    pool.root().clone_file(b"clone", holed.ino()).unwrap();
    holed.write_all_at(&pattern(70_000, 1), 0).unwrap();
    let data = [holed.extents(..).unwrap(), named(&pool, "/clone").extents(..).unwrap()].concat();
    drop(holed);
    pool.close().unwrap();
    let (mut used, _) = contents(&place);
    // Data has no checksums.
    used.retain(|at| !data.iter().any(|x| (x.pool..x.pool + x.len).contains(at)));
    let (mut refused, mut found) = (0, 0);
    for round in 0..30 {
        // The first is one that is always found: in the first copy of the superblock.
        let anywhere = used[random.random_range(0..used.len())] + random.random_range(0..4096);
        let (at, bit) = (if round == 0 { 16 } else { anywhere }, random.random_range(0..8));
        flip(&place, at, bit);
        let before = contents(&place);
        match Pool::open(&place.path, &OpenOptions::new().read_only(true)) {
            Ok(pool) => look_at_all(&pool, at).unwrap_or_else(|e| named_place(&e, at)),
            Err(e) => {
                named_place(&e, at);
                refused += 1;
            }
        }
        match check(&place.path, &pagestone::check::CheckOptions::default(), &mut |_, _| ()) {
            Ok(report) => {
                assert!(report.findings.iter().all(|f| !f.place.is_empty()));
                found += usize::from(!report.is_clean());
            }
            Err(e) => named_place(&e, at),
        }
        assert!(contents(&place) == before, "looking at byte {at:#x}, bit {bit} damaged, has changed the pool");
        flip(&place, at, bit);
    }
    println!("30 bits: {refused} times refused to open, {found} times found by check");
    assert!(found > 0);
    place.is_clean();
}
