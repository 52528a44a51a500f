//! Hostile images: whatever the bytes, an answer; never a panic, a hang, or a byte from outside.
//!
//! ```text
//!   flips    every byte of metadata in use, one bit each: an error that names a place, or no harm
//!   fuzz     structures with hostile values and right checksums, spliced pages, noise:
//!            opened read-only and looked at, checked, opened for writing and changed
//!   trees    directories that name each other in ladders and cycles: every descent ends
//! ```
//!
//! `PAGESTONE_FUZZ=100000` sets the iterations, `PAGESTONE_FLIPS=1` flips at every byte instead of
//! every n-th, `PAGESTONE_HOSTILE_SEED` repeats a run, `PAGESTONE_FUZZ_FROM` begins it later. An image that fails is kept in a file.
//!
//! What no checksum covers, and why it does no harm: the free bytes of a tree node, between its
//! slots and its entries; inode slots, table entries and lines of counters that are all zeros
//! because they are free (a flipped bit makes them damaged, not used); the lanes behind their last
//! record; the older of two marks; the rest of the fixed pages. And one thing that cannot be told from
//! a crash: damage to the last record of a lane of a pool that was not closed looks like a record
//! that was torn, so what it said is lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod exercise;
mod format;
mod images;
mod mutate;
mod stage;
mod trees;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagestone::{Error, OpenOptions, PageNo, Place, Pool};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use exercise::{Seen, abuse, look};
use format::What;
use images::Image;
use mutate::Anatomy;
use stage::{PAGE, Stage};

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")),
        Err(_) => default,
    }
}

fn seed() -> u64 {
    let seed = setting("PAGESTONE_HOSTILE_SEED", rand::random());
    println!("PAGESTONE_HOSTILE_SEED={seed}");
    seed
}

fn open(stage: &Stage, read_only: bool) -> Result<Pool, Error> {
    let media = if read_only { stage.read_only.clone() } else { stage.writable.clone() };
    Pool::open_on(media, &OpenOptions::new().read_only(read_only))
}

/// Opens read-only and looks at everything.
fn look_at(stage: &Stage) -> Result<Seen, Error> {
    let pool = open(stage, true)?;
    let seen = look(&pool, &stage.read_only);
    pool.close()?;
    Ok(seen)
}

/// What `check` says: the number of findings, or that it could not even begin.
fn findings(stage: &Stage) -> Result<usize, Error> {
    Ok(pagestone::check::check_on(stage.read_only.clone(), &pagestone::check::CheckOptions::default(), &mut |_, _| {})?
        .findings
        .len())
}

/// Keeps the image that failed, for a closer look.
fn keep(stage: &Stage) -> String {
    let path = std::env::temp_dir().join(format!("pagestone-hostile-{}.img", std::process::id()));
    std::fs::write(&path, &stage.work).map_or_else(|e| e.to_string(), |()| path.display().to_string())
}

/// Whether an error is an answer to damage: it names a place, or says what the pool is not.
fn is_refusal(e: &Error) -> bool {
    matches!(
        e,
        Error::Corrupt { .. }
            | Error::TooNew(_)
            | Error::NotAPool(_)
            | Error::Size(_)
            | Error::Stale(_)
            | Error::NotFound
    )
}

/// Whether an error that damage to byte `at` leads to names that structure, if it names one.
fn names_damage(e: &Error, image: &[u8], at: usize, what: What) -> bool {
    let Error::Corrupt { place, .. } = e else { return is_refusal(e) };
    let page = (at / PAGE) as u64;
    let is_page = |named: PageNo| named.0 == page;
    match (what, place) {
        (What::Superblock, Place::Superblock) | (What::Header, Place::JournalHeader) => true,
        (What::Counters, Place::Counters { lane }) => *lane as usize == at % PAGE / 64,
        (What::Size, Place::PoolState(_)) => true,
        // A last record that looks torn is not replayed, and what records of other lanes build on it is found damaged.
        (What::Lane, _) if format::in_last_record(image, at) => true,
        (What::Lane, Place::JournalLane { .. } | Place::JournalRecord(_) | Place::JournalRecordFor(_)) => true,
        (What::Descriptors, Place::Descriptor(frame)) => frame.0 as usize == (at - format::DESCRIPTORS) / 64,
        (What::Table, Place::SplitEntry(page)) => (page.0 % 512) as usize == at % PAGE / 8,
        // Inode pages may have been moved: the record says which inode it is.
        (What::Inodes, Place::InodeRecord(inode)) => *inode == format::u64_at(image, at / 256 * 256 + 8),
        (What::Inodes, Place::InodeSlot(ino) | Place::Inode(ino)) => {
            ino.place() == format::u64_at(image, at / 256 * 256 + 8)
        }
        (What::Node, Place::TreeNode(node)) => is_page(*node),
        (What::Forward, Place::ForwardingWord { table, index }) => is_page(*table) && *index == at % PAGE / 8,
        (What::Forward, Place::ForwardingTable(table)) => is_page(*table),
        _ => false,
    }
}

/// How flips in one kind of structure ended.
#[derive(Default, Debug)]
struct Tally {
    refused: u64,
    met: u64,
    found_by_check: u64,
    harmless: u64,
}

#[test]
fn the_sound_images_are_sound() {
    let mut kinds = BTreeSet::new();
    let mut backings = BTreeSet::new();
    for Image { name, bytes, .. } in images::all() {
        for (page, what) in format::metadata(&bytes) {
            kinds.insert(what);
            let records = bytes[page * PAGE..(page + 1) * PAGE].chunks(256).filter(|_| what == What::Inodes);
            backings.extend(records.filter(|rec| rec[4] != 0).map(|rec| rec[160]));
        }
        let stage = Stage::new(bytes);
        let seen = look_at(&stage).unwrap();
        assert!(seen.errors.is_empty(), "{name}: {:?}", seen.errors);
        assert_eq!(findings(&stage).unwrap(), 0, "{name}");
        assert!(stage.untouched());
        let pool = open(&stage, false).unwrap();
        let again = look(&pool, &stage.writable);
        assert_eq!(seen.fingerprint, again.fingerprint, "{name}");
    }
    assert!(kinds.len() == What::ALL.len(), "no image has more than {kinds:?}");
    assert!(backings.iter().eq(&[0, 1, 2]), "the images have only the backings {backings:?}");
}

#[test]
fn one_flipped_bit_is_found_or_does_no_harm() {
    let mut rng = StdRng::seed_from_u64(seed());
    let mut tally: BTreeMap<What, Tally> = BTreeMap::new();
    let stride = setting("PAGESTONE_FLIPS", 211) as usize;
    for Image { name, bytes, closed } in images::all() {
        let name = format!("{}: {name}", if closed { "closed" } else { "left open" });
        let pages = format::metadata(&bytes);
        let mut stage = Stage::new(bytes);
        let sound = look_at(&stage).unwrap().fingerprint;
        for (page, what) in pages {
            for at in (page * PAGE + rng.random_range(0..stride)..(page + 1) * PAGE).step_by(stride) {
                let bit = rng.random_range(0..8);
                flip(&mut stage, at, bit, sound, what, tally.entry(what).or_default(), &format!("{name}: {what:?}"));
            }
        }
    }
    println!("{tally:#?}");
}

fn flip(stage: &mut Stage, at: usize, bit: u32, sound: u64, kind: What, tally: &mut Tally, place: &str) {
    let covered = place.starts_with("closed") && format::covered(&stage.image, at, kind);
    let byte = stage.work[at] ^ 1 << bit;
    stage.write(at, &[byte]);
    stage.set();
    let what = || format!("{place}, byte {at:#x} (page {:#x}, byte {}), bit {bit}", at / PAGE, at % PAGE);
    let outcome = watch::case(what, || (look_at(stage), findings(stage)));
    let (looked, checked) = outcome.unwrap_or_else(|e| panic!("{}: panic: {e}; {}", what(), keep(stage)));
    match looked {
        Err(e) => {
            assert!(names_damage(&e, &stage.image, at, kind), "{}: {e:?}", what());
            tally.refused += 1;
        }
        Ok(seen) if !seen.errors.is_empty() => {
            let names = |e: &Error| names_damage(e, &stage.image, at, kind);
            assert!(seen.errors.iter().all(names), "{}: {:?}", what(), seen.errors);
            tally.met += 1;
        }
        Ok(seen) => {
            // In a pool that was closed nothing is replayed over the damage.
            let found = checked.is_ok_and(|n| n > 0);
            let same = seen.fingerprint == sound;
            let torn = format::in_last_record(&stage.image, at);
            assert!(same || found || torn, "{}: other contents, and nobody says so; {}", what(), keep(stage));
            assert!(found || !covered, "{}: covered by a checksum, and not found; {}", what(), keep(stage));
            *if found { &mut tally.found_by_check } else { &mut tally.harmless } += 1;
        }
    }
    // A whole comparison takes longer than the case.
    let changed = stage.read_only.violated() || (at.is_multiple_of(16) && !stage.untouched());
    assert!(!changed, "{}: reading has changed the image", what());
    stage.restore();
}

#[test]
fn fuzz() {
    let first = setting("PAGESTONE_FUZZ_FROM", 0);
    let iterations = first + setting("PAGESTONE_FUZZ", 5000);
    let limit = if iterations - first > 5000 { Duration::MAX } else { Duration::from_secs(45) };
    let (seed, start) = (seed(), Instant::now());
    let images = images::all();
    let mut stages: Vec<(Stage, Anatomy)> =
        images.iter().map(|i| (Stage::new(i.bytes.clone()), Anatomy::of(&i.bytes))).collect();
    let mut slowest = (Duration::ZERO, 0);
    let mut ended = [0u64; 3];
    let mut panics: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut done = first;
    while done < iterations && start.elapsed() < limit {
        let mut rng = StdRng::seed_from_u64(seed ^ done.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let which = rng.random_range(0..stages.len());
        let (stage, anatomy) = &mut stages[which];
        mutate::damage(stage, anatomy, &mut rng);
        stage.set();
        let what = || format!("seed {seed}, iteration {done}, image {}", images[which].name);
        let since = watch::processor_time();
        let outcome = watch::case(what, || attack(stage, &mut rng, done.is_multiple_of(16)));
        match outcome {
            Ok(outcome) => ended[outcome] += 1,
            Err(e) => {
                // All of them are told at the end; each place once.
                let (count, _) = panics.entry(e).or_insert_with(|| (0, format!("{}; {}", what(), keep(stage))));
                *count += 1;
            }
        }
        slowest = slowest.max((watch::processor_time() - since, done));
        stage.restore();
        done += 1;
    }
    println!(
        "{} images in {:?}; refused, damaged, sound: {ended:?}; slowest {slowest:?}",
        done - first,
        start.elapsed()
    );
    assert!(panics.is_empty(), "{panics:#?}");
    assert!(slowest.0 < Duration::from_secs(5), "an image that takes {slowest:?} to refuse");
}

/// One damaged image. 0: it is refused; 1: damage was met; 2: nothing was noticed.
fn attack(stage: &Stage, rng: &mut StdRng, compare: bool) -> usize {
    let looked = look_at(stage);
    let checked = findings(stage);
    assert!(!stage.read_only.violated(), "reading has tried to write");
    assert!(!compare || stage.untouched(), "reading has changed the image");
    if let Ok(pool) = open(stage, false) {
        let seen = match &looked {
            Ok(_) => look(&pool, &stage.writable),
            Err(_) => Seen { inodes: vec![(pool.root().ino(), pagestone::FileType::Dir)], ..Seen::default() },
        };
        abuse(&pool, &seen, rng, 25);
        drop(pool);
        if let Ok(pool) = open(stage, false) {
            let seen = look(&pool, &stage.writable);
            abuse(&pool, &seen, rng, 5);
        }
    }
    if rng.random_bool(0.3) {
        let _ = pagestone::check::check_on(
            stage.writable.clone(),
            &pagestone::check::CheckOptions::new().repair(true),
            &mut |_, _| {},
        );
    }
    match (looked, checked) {
        (Err(_), _) => 0,
        (Ok(seen), Ok(0)) if seen.errors.is_empty() => 2,
        _ => 1,
    }
}

/// What a cut-off file looks like, and what is no pool at all.
#[test]
fn short_and_foreign_files_are_refused() {
    let image = &images::all()[0].bytes;
    for len in [0, 1, 4096, 255 * 4096, 256 * 4096, image.len() - 4096, image.len() / 2] {
        let mut short = image[..len].to_vec();
        short.resize(len.max(4096).next_multiple_of(4096), 0);
        let stage = Stage::new(Arc::new(short));
        let e = open(&stage, true).unwrap_err();
        assert!(is_refusal(&e), "{len}: {e}");
        assert!(findings(&stage).is_err() || len > 4096, "{len}");
    }
    let noise: Vec<u8> = (0..9 << 20).map(|i: u32| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    for bytes in [vec![0; 9 << 20], vec![0xFF; 9 << 20], noise] {
        assert!(matches!(open(&Stage::new(Arc::new(bytes)), true), Err(Error::NotAPool(_))));
    }
}

/// The same through a file that is opened read-only: its bytes stay as they are.
#[test]
fn a_read_only_open_leaves_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for Image { bytes, .. } in images::all() {
        std::fs::write(&path, &bytes[..]).unwrap();
        let pool = Pool::open(&path, &OpenOptions::new().read_only(true)).unwrap();
        assert!(pool.root().create(b"x", &pagestone::inode::NewNode::new(pagestone::FileType::File, 0)).is_err());
        assert!(pool.root().entries().all(|entry| entry.is_ok()));
        pool.close().unwrap();
        pagestone::check::check(&path, &pagestone::check::CheckOptions::default(), &mut |_, _| {}).unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes[..]);
    }
}
