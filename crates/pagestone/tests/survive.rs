//! What of a pool is believed at the next open, and what is not: the cache that may have been lost, changes that were
//! interrupted, stores of which the journal knows nothing.
//!
//! ```text
//!   copy of a pool in use      another file: its records count like those after a power cut
//!   the same path again        every record counts, and a gap is damage
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pagestone::inode::NewNode;
use pagestone::mmap::MapOptions;
use pagestone::{CreateOptions, Error, File, FileType, OpenOptions, Pool};
use pmem::{Description, MapMode, Media, MediaKind, Memory, Part, Views};

mod common;

use common::Mounted;

const PAGE: u64 = 4096;
const SIZE: u64 = 8 << 20;
const LANES: usize = 256 * 4096;
const LANE_LEN: usize = 64 * 4096;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn ordinary(path: &Path, size: Option<u64>) -> Arc<dyn Media> {
    pmem::open(path, &pmem::Open { read_only: false, kind: Some(MediaKind::File), size, room: 0, lock: None })
        .unwrap()
        .media
}

fn make(pool: &Pool, name: &str) -> pagestone::Result<File> {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644))?.ino;
    pool.node(ino)?.open()
}

fn has(pool: &Pool, name: &str) -> bool {
    pool.root().lookup(name.as_bytes()).is_ok()
}

/// `(number, first byte)` of each record in the image, in order of their numbers.
fn records(image: &[u8]) -> Vec<(u64, usize)> {
    let number = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    let begins = |at: &usize| image[*at..].starts_with(b"PREC");
    let mut all: Vec<_> =
        (LANES..LANES + 2 * LANE_LEN).step_by(64).filter(begins).map(|at| (number(at + 8), at)).collect();
    all.sort_unstable();
    all
}

/// Two threads, so two lanes, make files in turn; nothing of it is synced. The image as a snapshot of the disk has it.
fn in_use(path: &Path) -> Vec<u8> {
    let pool = Pool::create_on(ordinary(path, Some(SIZE)), &CreateOptions::default()).unwrap();
    for name in ["a0", "b0"] {
        make(&pool, name).unwrap();
    }
    pool.checkpoint().unwrap();
    let turn = (parking_lot::Mutex::new(0), parking_lot::Condvar::new());
    std::thread::scope(|s| {
        for (mine, name) in ["a", "b"].into_iter().enumerate() {
            let (pool, turn) = (&pool, &turn);
            s.spawn(move || {
                for i in 1..4 {
                    let mut now = turn.0.lock();
                    turn.1.wait_while(&mut now, |now| *now % 2 != mine);
                    make(pool, &format!("{name}{i}")).unwrap();
                    *now += 1;
                    turn.1.notify_all();
                }
            });
        }
    });
    // The journal lies below, whatever is in the overlay above.
    let image = std::fs::read(path).unwrap();
    std::mem::forget(pool);
    image
}

/// Fails if the cache is believed to be there because the machine has not been started anew: a1, b1, then a gap; a3 and
/// b3 are whole.
#[test]
fn records_behind_a_gap_do_not_count_in_a_copy_of_a_pool_in_use() {
    let dir = dir();
    let mut image = in_use(&dir.path().join("pool"));
    let all = records(&image);
    // Two of them are of the pool's making, and covered by the mark.
    let unsynced = &all[all.len() - 6..];
    let lane = |at: usize| (at - LANES) / LANE_LEN;
    let lanes: Vec<usize> = unsynced.iter().map(|&(_, at)| lane(at)).collect();
    assert!(lanes.contains(&0) && lanes.contains(&1), "both lanes are in use: {lanes:?}");
    for (number, at) in [unsynced[2], unsynced[3]] {
        println!("record {number} at {at:#x} is missing");
        image[at..at + 64].fill(0);
    }
    let copy = dir.path().join("copy");
    std::fs::write(&copy, &image).unwrap();
    let pool = Pool::open(&copy, &OpenOptions::new().media(MediaKind::File)).unwrap();
    let found: Vec<&str> =
        ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"].into_iter().filter(|n| has(&pool, n)).collect();
    assert!(["a0", "b0"].iter().all(|name| found.contains(name)), "{found:?}");
    assert!(["a2", "b2", "a3", "b3"].iter().all(|name| !found.contains(name)), "{found:?}");
    drop(pool);
    let report = pagestone::check::check(&copy, &Default::default(), &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn id(path: &Path) -> [u8; 16] {
    ordinary(path, None).describe().cache_id
}

/// Fails if a filesystem that was unmounted in between, or another mount of it, passes for the same cache.
#[test]
fn another_mount_of_a_file_is_another_cache() {
    let dir = dir();
    let path = dir.path().join("pool");
    std::fs::write(&path, [0; SIZE as usize / 8]).unwrap();
    assert!(id(&path) == id(&path) && id(&path) != [0; 16]);
    let again = match Mounted::new("tmpfs", "size=1m") {
        Ok(mount) => mount,
        Err(why) => return println!("skipped: {why}"),
    };
    // A bind mount over it: the same file by another way.
    rustix::mount::mount_bind(dir.path(), again.path()).unwrap();
    let bound = id(&again.path().join("pool"));
    rustix::mount::unmount(again.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_ne!(bound, id(&path));
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Fails if a disk that was taken away and came back under its old name passes for the same one.
#[test]
fn a_disk_that_was_taken_away_is_another_cache() {
    let dir = dir();
    let image = dir.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let name = image.to_str().unwrap();
    let device = match run("losetup", &["-f", "--show", name]) {
        Ok(device) => device,
        Err(why) => return println!("skipped: {why}"),
    };
    let known = Path::new(&device.replace("/dev/", "/sys/block/")).join("diskseq").exists();
    let (first, second) = (id(Path::new(&device)), id(Path::new(&device)));
    run("losetup", &["-d", &device]).unwrap();
    // Somebody else may have taken the number meanwhile; then there is nothing to compare.
    let back = run("losetup", &[&device, name]);
    let later = back.is_ok().then(|| id(Path::new(&device)));
    if back.is_ok() {
        let _ = run("losetup", &["-d", &device]);
    }
    assert_eq!(first, second);
    assert!(later.is_none_or(|later| later != first) || !known);
}

/// Media whose stores in place panic once, and that count their syncs.
#[derive(Debug)]
struct Watched {
    below: Arc<dyn Media>,
    panics: AtomicBool,
    syncs: AtomicUsize,
}

impl Watched {
    fn new(below: Arc<dyn Media>) -> Arc<Watched> {
        Arc::new(Watched { below, panics: AtomicBool::new(false), syncs: AtomicUsize::new(0) })
    }
}

impl Media for Watched {
    fn describe(&self) -> &Description {
        self.below.describe()
    }
    fn views(&self) -> Views<'_> {
        self.below.views()
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        self.below.persist(parts)
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "a panic between the journal and its place");
        self.below.store(at, bytes);
    }
    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        self.below.flush(at, len)
    }
    fn fence(&self) {
        self.below.fence();
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.below.sync()
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.below.reserve(at, len)
    }
    fn map_alignment(&self) -> Option<u64> {
        self.below.map_alignment()
    }
    fn prepare_for_mapping(&self, at: u64, len: u64) -> io::Result<()> {
        self.below.prepare_for_mapping(at, len)
    }
    unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> io::Result<()> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.below.map_at(at, len, to, how) }
    }
}

/// Fails if the pool goes on with what is in place behind the journal.
#[test]
fn a_panic_between_a_record_and_its_place_ends_all_changes_until_the_next_open() {
    let media = Watched::new(Arc::new(Memory::new(SIZE).unwrap()));
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    make(&pool, "before").unwrap();
    media.panics.store(true, Ordering::Relaxed);
    let panicked = catch_unwind(AssertUnwindSafe(|| make(&pool, "during").map(drop)));
    assert!(panicked.is_err());
    assert!(matches!(make(&pool, "after"), Err(Error::Latched(_))));
    assert!(matches!(pool.sync(), Ok(()) | Err(Error::Latched(_))));
    assert!(has(&pool, "before"));
    drop(pool);
    let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
    assert!(has(&pool, "before") && has(&pool, "during") && !has(&pool, "after"));
    make(&pool, "after").unwrap();
    drop(pool);
    let report = pagestone::check::check_on(media, &Default::default(), &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Fails if closing asks the journal alone whether there is something to sync.
#[test]
fn a_store_through_a_mapping_is_synced_when_the_last_handle_goes() {
    let dir = dir();
    let media = Watched::new(ordinary(&dir.path().join("pool"), Some(SIZE)));
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    let file = make(&pool, "mapped").unwrap();
    file.write_all_at(&[1; 4 * PAGE as usize], 0).unwrap();
    let map = file.map(0..4 * PAGE, &MapOptions::shared()).unwrap();
    map.store(PAGE, 1u8).unwrap();
    pool.checkpoint().unwrap();
    map.store(PAGE, 2u8).unwrap();
    let before = media.syncs.load(Ordering::Relaxed);
    drop((map, file, pool));
    assert!(media.syncs.load(Ordering::Relaxed) > before, "nothing was synced");
}

/// The bytes of a pool on memory.
fn bytes(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    assert!(memory.bytes().read(0, &mut bytes));
    bytes
}

fn salts(image: &[u8]) -> Vec<u64> {
    records(image).iter().map(|&(_, at)| u64::from_le_bytes(image[at + 24..at + 32].try_into().unwrap())).collect()
}

/// Fails if whoever may ask for the pool's identity knows how its records look.
#[test]
fn the_salt_of_the_records_does_not_follow_from_what_info_prints() {
    let memory = Arc::new(Memory::new(SIZE).unwrap());
    let pool = Pool::create_on(memory.clone(), &CreateOptions::default()).unwrap();
    make(&pool, "f").unwrap();
    let image = bytes(&memory);
    let info = pool.info().unwrap();
    let uuid = u128::from_str_radix(&info.uuid, 16).unwrap().to_be_bytes();
    let halves = [0, 8].map(|at| u64::from_le_bytes(uuid[at..at + 8].try_into().unwrap()));
    let found = salts(&image);
    assert!(!found.is_empty() && found.iter().all(|salt| *salt != 0 && !halves.contains(salt)), "{found:x?}");
    // Nor from the seed of the hashes.
    assert!(found.iter().all(|salt| salt.to_le_bytes() != image[80..88]));
}
