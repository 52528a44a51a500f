//! Memory that fails under a pool: errors for what lay there, by name, and nothing else.
//!
//! ```text
//!   forbid(page)   the page cannot be reached any more; the kernel answers with the signal that
//!                  it has for failed memory, too
//! ```
//!
//! On memory, a tmpfs file and an ordinary file. `tests/guest/run` has the kernel itself declare
//! pages lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use pagestone::check::{CheckOptions, check_on};
use pagestone::inode::NewNode;
use pagestone::mmap::MapOptions;
use pagestone::{CreateOptions, Error, File, FileType, OpenOptions, Pool};
use pmem::{Description, Media, MediaKind, Memory, Part, Views};

const PAGE: u64 = 4096;
const SIZE: u64 = 64 << 20;

struct Place {
    name: &'static str,
    media: Arc<dyn Media>,
    pool: Pool,
    file: Option<PathBuf>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Runs a test on each kind of media.
fn every(test: impl Fn(&Place)) {
    let on = |name, media: Arc<dyn Media>, file| {
        println!("on {name}");
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
        test(&Place { name, media, pool, file });
    };
    on("memory", Arc::new(Memory::new(SIZE).unwrap()), None);
    for (name, dir, kind) in [("tmpfs", "/dev/shm", MediaKind::Tmpfs), ("ordinary file", "target", MediaKind::File)] {
        let dir = if dir == "target" { PathBuf::from(env!("CARGO_TARGET_TMPDIR")) } else { dir.into() };
        if !dir.is_dir() {
            println!("skipped on {name}: no {}", dir.display());
            continue;
        }
        let number = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let path = dir.join(format!("pagestone-lost-{}-{number}", std::process::id()));
        let open = pmem::Open { read_only: false, kind: Some(kind), size: Some(SIZE), room: 0, lock: None };
        on(name, pmem::open(&path, &open).unwrap().media, Some(path));
    }
}

impl Place {
    fn make(&self, name: &[u8], bytes: &[u8]) -> File {
        let ino = self.pool.root().create(name, &NewNode::new(FileType::File, 0o644)).unwrap().ino;
        let file = self.pool.node(ino).unwrap().open().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        self.pool.sync().unwrap();
        file
    }

    /// The pool byte of a file's byte.
    fn place_of(&self, file: &File, offset: u64) -> u64 {
        let extent = file.extents(offset..offset + 1).unwrap()[0];
        extent.pool
    }

    /// The memory below a page of the file fails.
    fn lose(&self, file: &File, page: u64) -> u64 {
        let at = self.place_of(file, page * PAGE);
        self.lose_page(at);
        at
    }

    fn lose_page(&self, at: u64) {
        let windows = self.media.views();
        windows.data.forbid(at / PAGE * PAGE, PAGE);
        windows.meta.forbid(at / PAGE * PAGE, PAGE);
    }

    fn check(&self, data: bool) -> pagestone::check::Report {
        check_on(self.media.clone(), &CheckOptions::new().data(data), &mut |_, _| {}).unwrap()
    }
}

/// Bytes that say where they belong.
fn pattern(pages: u64) -> Vec<u8> {
    (0..pages * PAGE).map(|i| (i / PAGE + 1) as u8).collect()
}

#[test]
fn a_lost_page_is_an_error_there_and_nowhere_else() {
    every(|place| {
        let (file, other) = (place.make(b"file", &pattern(20)), place.make(b"other", &pattern(5)));
        place.lose(&file, 7);
        let mut page = [0; PAGE as usize];
        for n in 0..20u64 {
            match file.read_at(&mut page, n * PAGE) {
                Err(Error::DataLost(at)) => assert_eq!((n, at), (7, 7 * PAGE), "{}", place.name),
                read => assert!(read.unwrap() == 4096 && page == [n as u8 + 1; 4096] && n != 7, "{}", place.name),
            }
        }
        let mut all = vec![0; 20 * PAGE as usize];
        assert!(matches!(file.read_at(&mut all, 0), Err(Error::DataLost(at)) if at == 7 * PAGE), "{}", place.name);
        assert!(matches!(file.pieces(0..20 * PAGE), Err(Error::DataLost(at)) if at == 7 * PAGE));
        assert_eq!(Error::DataLost(0).errno(), libc::EIO);
        assert_eq!(other.read_at(&mut all, 0).unwrap(), 5 * PAGE as usize);
        place.make(b"new", &pattern(100));
    });
}

#[test]
fn a_lost_page_that_is_written_over_gets_new_storage_and_is_retired() {
    every(|place| {
        let file = place.make(b"file", &pattern(20));
        let at = place.lose(&file, 7);
        let before = place.pool.statfs().free;
        assert!(file.read_at(&mut [0], 7 * PAGE).is_err());
        // A part of the page is no answer to what the rest holds.
        assert!(matches!(file.write_all_at(b"part", 7 * PAGE + 100), Err(Error::DataLost(at)) if at == 7 * PAGE));
        file.write_all_at(&[9; 3 * PAGE as usize], 6 * PAGE).unwrap();
        let mut all = vec![0; 20 * PAGE as usize];
        file.read_at(&mut all, 0).unwrap();
        let mut want = pattern(20);
        want[6 * PAGE as usize..9 * PAGE as usize].fill(9);
        assert!(all == want, "{}", place.name);
        assert_ne!(place.place_of(&file, 7 * PAGE), at, "{}", place.name);
        assert_eq!(place.pool.statfs().free, before - 1, "{}: the page is not free again", place.name);
        place.pool.sync().unwrap();
        let report = place.check(true);
        assert!(report.is_clean() && report.retired == 1, "{}: {report:?}", place.name);
    });
}

#[test]
fn what_is_deleted_with_a_lost_page_is_given_back_but_for_that_page() {
    every(|place| {
        let warm = place.make(b"warm", &pattern(3));
        let free = place.pool.statfs().free;
        let file = place.make(b"file", &pattern(20));
        let at = place.lose(&file, 7);
        assert!(file.read_at(&mut [0; 8], 7 * PAGE).is_err());
        drop(file);
        place.pool.root().unlink(b"file").unwrap();
        place.pool.sync().unwrap();
        assert_eq!(place.pool.statfs().free, free - 1, "{}", place.name);
        // Nobody gets it again, however much is asked for.
        let full = place.make(b"full", b"");
        while full.append(&vec![5; 16 * PAGE as usize]).is_ok() {}
        while full.append(&[5; PAGE as usize]).is_ok() {}
        let extents = full.extents(..).unwrap();
        assert!(extents.iter().all(|x| !(x.pool..x.pool + x.len).contains(&at)), "{}", place.name);
        drop((full, warm));
        place.pool.root().unlink(b"full").unwrap();
        place.pool.sync().unwrap();
        let report = place.check(true);
        assert!(report.is_clean() && report.retired == 1, "{}: {report:?}", place.name);
    });
}

/// Fails if a write pays for a page that held nothing, or the page is handed out a second time.
#[test]
fn a_free_page_that_fails_is_passed_over() {
    every(|place| {
        if place.name == "ordinary file" {
            return; // Its free pages are written by pwrite: the disk says later what it did not take.
        }
        let file = place.make(b"file", &pattern(20));
        let big = place.make(b"big", &pattern(2048));
        let bad: Vec<u64> = [3, 4, 15].iter().map(|page| place.place_of(&file, page * PAGE)).collect();
        let bad: Vec<u64> = bad.into_iter().chain([place.place_of(&big, 700 * PAGE)]).collect();
        drop((file, big));
        for name in [&b"file"[..], b"big"] {
            place.pool.root().unlink(name).unwrap();
        }
        place.pool.sync().unwrap();
        bad.iter().for_each(|&at| place.lose_page(at));
        let full = place.make(b"full", b"");
        let mut steps = [16 * PAGE, PAGE].into_iter().cycle();
        let error = loop {
            if let Err(e) = full.append(&vec![5; steps.next().unwrap() as usize]) {
                break e;
            }
        };
        assert!(matches!(error, Error::NoSpace), "{}: {error}", place.name);
        while full.append(&[5; PAGE as usize]).is_ok() {}
        let extents = full.extents(..).unwrap();
        let has = |at: u64| extents.iter().any(|x| (x.pool..x.pool + x.len).contains(&at));
        assert!(!bad.iter().any(|&at| has(at)), "{}", place.name);
        let (size, mut page) = (full.attr().unwrap().size, [0; PAGE as usize]);
        for at in (0..size).step_by(PAGE as usize) {
            assert!(full.read_at(&mut page, at).unwrap() == 4096 && page == [5; 4096], "{}: {at}", place.name);
        }
        // All but the frame that has a bad page, which is not cut up for the rest of it.
        assert!(size / PAGE > SIZE / PAGE * 8 / 10, "{}: {size} bytes", place.name);
        drop(full);
        place.pool.root().unlink(b"full").unwrap();
        place.pool.sync().unwrap();
        assert!(place.check(true).is_clean(), "{}", place.name);
    });
}

#[test]
fn a_whole_frame_with_a_lost_page_is_retired() {
    every(|place| {
        let file = place.make(b"big", &pattern(2048));
        let extent = file.extents(1 << 21..(1 << 21) + (1 << 21)).unwrap()[0];
        assert!(extent.pool.is_multiple_of(1 << 21) && extent.len == 1 << 21, "{}: {extent:?}", place.name);
        place.lose(&file, 700);
        assert!(file.read_at(&mut [0; 8], 700 * PAGE).is_err());
        drop(file);
        place.pool.root().unlink(b"big").unwrap();
        place.pool.sync().unwrap();
        let report = place.check(true);
        assert!(report.is_clean() && report.retired == 512, "{}: {report:?}", place.name);
    });
}

/// Fails if a frame without a table has no place for one: then such a page could not be given back by itself.
#[test]
fn a_lost_page_of_a_whole_frame_is_written_over_punched_cut_and_replaced_by_itself() {
    every(|place| {
        let file = place.make(b"big", &pattern(2560));
        let map = file.map(0..2560 * PAGE, &MapOptions::shared()).unwrap();
        // What others have stored for themselves stays, and what they have seen, wherever it lies now.
        let private = file.map(0..2560 * PAGE, &MapOptions::private()).unwrap();
        let atomic = file.map_atomic(0..2560 * PAGE).unwrap();
        let seen = |page: u64| (private.load::<u8>(page * PAGE).unwrap(), atomic.load::<u8>(page * PAGE).unwrap());
        let well = [513, 514, 1024, 1536, 1537, 1023, 2047, 2048, 2558];
        let before = well.map(seen);
        for page in [513, 1536] {
            private.store(page * PAGE + 1, 5u8).unwrap();
            atomic.store(page * PAGE + 1, 6u8).unwrap();
        }
        let mut want = pattern(2560);
        // Each in a frame of its own, the first page and the last of one, too.
        let lost = [512u64, 1100, 1600, 2559];
        for page in lost {
            let frame = file.extents(page / 512 * 512 * PAGE..page / 512 * 512 * PAGE + 512 * PAGE).unwrap()[0];
            assert!(frame.len == 512 * PAGE && frame.pool.is_multiple_of(512 * PAGE), "{}: {frame:?}", place.name);
            place.lose(&file, page);
            assert!(matches!(file.read_at(&mut [0], page * PAGE), Err(Error::DataLost(at)) if at == page * PAGE));
        }
        file.write_all_at(&[9; PAGE as usize], 512 * PAGE).unwrap();
        want[512 * PAGE as usize..513 * PAGE as usize].fill(9);
        file.punch_hole(1100 * PAGE..1100 * PAGE + PAGE).unwrap();
        want[1100 * PAGE as usize..1101 * PAGE as usize].fill(0);
        file.write_atomic(&[(1600 * PAGE, &[8; PAGE as usize])]).unwrap();
        want[1600 * PAGE as usize..1601 * PAGE as usize].fill(8);
        file.set_len(2559 * PAGE).unwrap();
        want.truncate(2559 * PAGE as usize);
        let mut all = vec![0; want.len()];
        file.read_at(&mut all, 0).unwrap();
        assert!(all == want, "{}", place.name);
        map.refresh(0..2559 * PAGE).unwrap();
        map.read(0, &mut all).unwrap();
        assert!(all == want, "{}: the mapping shows other pages", place.name);
        assert_eq!(well.map(seen), before, "{}", place.name);
        for page in [513, 1536] {
            let stored = |map: &pagestone::mmap::Mapping| map.load::<u8>(page * PAGE + 1).unwrap();
            assert_eq!((stored(&private), stored(&atomic)), (5, 6), "{}, page {page}", place.name);
        }
        map.store(513 * PAGE, 77u8).unwrap();
        file.read_at(&mut all[..1], 513 * PAGE).unwrap();
        assert_eq!(all[0], 77, "{}", place.name);
        place.pool.sync().unwrap();
        let report = place.check(true);
        assert!(report.is_clean() && report.retired == 4, "{}: {report:?}", place.name);
    });
}

/// Fails if only every 4,096th byte from the first one on is looked at: the page in which the range ends is none of those.
#[test]
fn pieces_of_a_range_that_ends_in_a_lost_page_are_an_error() {
    every(|place| {
        let file = place.make(b"file", &pattern(20));
        place.lose(&file, 7);
        for (offset, len) in [(6 * PAGE + 2048, PAGE), (6 * PAGE + 4095, 2), (5 * PAGE + 1, 3 * PAGE)] {
            let read = file.pieces(offset..offset + len);
            assert!(matches!(read, Err(Error::DataLost(at)) if at == 7 * PAGE), "{}: {offset} {read:?}", place.name);
        }
        drop(file.pieces(5 * PAGE + 1..7 * PAGE).unwrap());
    });
}

#[test]
fn check_names_what_was_lost_and_where() {
    every(|place| {
        let root = place.pool.root();
        let dir = root.create(b"dir", &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
        let file = place.make(b"file", &pattern(20));
        place.pool.node(dir).unwrap().dir().unwrap().link(b"name of it", file.ino()).unwrap();
        root.unlink(b"file").unwrap();
        for page in [3, 4, 15] {
            place.lose(&file, page);
        }
        place.pool.sync().unwrap();
        let found: Vec<String> = place.check(true).findings.into_iter().map(|f| f.place).collect();
        let want = ["/dir/name of it, bytes 12288 to 20479", "/dir/name of it, bytes 61440 to 65535"];
        assert_eq!(found, want, "{}", place.name);
        assert!(place.check(false).is_clean(), "{}: without data nothing else is wrong", place.name);
    });
}

/// Memory that says of some of its bytes that they are bad, and keeps them all the same: whoever touches them is seen.
#[derive(Debug)]
struct Listed(Arc<Memory>, Vec<Range<u64>>);

impl Media for Listed {
    fn describe(&self) -> &Description {
        self.0.describe()
    }
    fn views(&self) -> Views<'_> {
        self.0.views()
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        self.0.persist(parts)
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        self.0.store(at, bytes);
    }
    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        self.0.flush(at, len)
    }
    fn fence(&self) {
        self.0.fence();
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.0.reserve(at, len)
    }
    fn bad(&self) -> Vec<Range<u64>> {
        self.1.clone()
    }
}

/// Fails if a page that the kernel lists is read, stored to, handed out or free again.
#[test]
fn what_is_listed_as_bad_is_lost_without_anybody_touching_it() {
    let memory = Arc::new(Memory::new(SIZE).unwrap());
    let pool = Pool::create_on(memory.clone(), &CreateOptions::default()).unwrap();
    let place = Place { name: "memory", media: memory.clone(), pool, file: None };
    let (file, gone) = (place.make(b"file", &pattern(20)), place.make(b"gone", &pattern(20)));
    // A part of a page that a file has, and all of one that is free.
    let (used, free) = (place.place_of(&file, 7 * PAGE), place.place_of(&gone, 3 * PAGE));
    drop((file, gone));
    place.pool.root().unlink(b"gone").unwrap();
    drop(place);
    let listed = Arc::new(Listed(memory.clone(), vec![used + 512..used + 1024, free..free + PAGE]));
    let there = |at: u64| {
        let mut bytes = vec![0; PAGE as usize];
        assert!(memory.bytes().read(at, &mut bytes));
        bytes
    };
    let before = [there(used), there(free)];

    let pool = Pool::open_on(listed.clone(), &OpenOptions::default()).unwrap();
    let place = Place { name: "listed", media: listed, pool, file: None };
    assert_eq!(place.pool.info().unwrap().lost, 2);
    let root = place.pool.root();
    let file = place.pool.node(root.lookup(b"file").unwrap().ino).unwrap().open().unwrap();
    let mut page = [0; PAGE as usize];
    for n in 0..20u64 {
        match file.read_at(&mut page, n * PAGE) {
            Err(Error::DataLost(at)) => assert_eq!((n, at), (7, 7 * PAGE)),
            read => assert!(read.unwrap() == 4096 && page == [n as u8 + 1; 4096] && n != 7),
        }
    }
    let named: Vec<String> = place.check(true).findings.into_iter().map(|f| f.place).collect();
    assert_eq!(named, ["/file, bytes 28672 to 32767"]);
    drop(file);
    root.unlink(b"file").unwrap();
    let full = place.make(b"full", b"");
    while full.append(&vec![5; 16 * PAGE as usize]).is_ok() {}
    while full.append(&[5; PAGE as usize]).is_ok() {}
    assert!(matches!(full.append(&[5]), Err(Error::NoSpace)));
    let extents = full.extents(..).unwrap();
    let has = |at: u64| extents.iter().any(|x| (x.pool..x.pool + x.len).contains(&at));
    assert!(!has(used) && !has(free));
    drop(full);
    root.unlink(b"full").unwrap();
    place.pool.sync().unwrap();
    let report = place.check(true);
    assert!(report.is_clean() && report.retired == 1, "{report:?}");
    assert!([there(used), there(free)] == before, "nothing is stored where it is bad");
}

#[test]
fn a_mapping_answers_with_an_error_that_names_the_offset() {
    let memory = Arc::new(Memory::new(SIZE).unwrap());
    let pool = Pool::create_on(memory.clone(), &CreateOptions::default()).unwrap();
    let place = Place { name: "memory", media: memory, pool, file: None };
    let file = place.make(b"file", &pattern(20));
    let map = file.map(0..20 * PAGE, &MapOptions::shared()).unwrap();
    assert_eq!(map.load::<u8>(7 * PAGE).unwrap(), 8);
    place.lose(&file, 7);
    // The mapping is another way to the same memory, which fails too.
    let (there, len) = (map.as_mut_ptr().unwrap().wrapping_add(7 * PAGE as usize).cast(), PAGE as usize);
    // SAFETY: a page of the mapping, to which nobody has a reference.
    unsafe { rustix::mm::mprotect(there, len, rustix::mm::MprotectFlags::empty()).unwrap() };
    assert!(matches!(map.load::<u8>(7 * PAGE), Err(Error::DataLost(at)) if at == 7 * PAGE));
    assert!(matches!(map.read(6 * PAGE, &mut [0; 3 * PAGE as usize]), Err(Error::DataLost(at)) if at == 7 * PAGE));
    assert!(matches!(map.store(7 * PAGE, 1u8), Err(Error::DataLost(at)) if at == 7 * PAGE));
    assert_eq!(map.load::<u8>(8 * PAGE).unwrap(), 9);
}

/// What lies behind the new end is gone, to loads and stores; the process goes on.
#[test]
fn a_pool_file_that_somebody_shortens_is_an_error_behind_its_new_end() {
    every(|place| {
        let Some(path) = &place.file else { return };
        let file = place.make(b"file", &pattern(10_000));
        std::fs::File::options().write(true).open(path).unwrap().set_len(SIZE / 4).unwrap();
        let (mut there, mut gone) = (0, 0);
        let mut page = [0; PAGE as usize];
        for n in 0..10_000u64 {
            match file.read_at(&mut page, n * PAGE) {
                Ok(_) => there += u32::from(page == [(n + 1) as u8; PAGE as usize]),
                Err(e) => gone += u32::from(matches!(e, Error::DataLost(at) if at == n * PAGE)),
            }
        }
        assert!(there > 1000 && gone > 1000 && there + gone == 10_000, "{}: {there} there, {gone} gone", place.name);
    });
}

/// Losing any metadata page at all: every operation answers, with an error or as before.
#[test]
fn a_lost_metadata_page_is_an_error_and_never_the_end() {
    let memory = Arc::new(Memory::new(SIZE).unwrap());
    {
        let pool = Pool::create_on(memory.clone(), &CreateOptions::default()).unwrap();
        let root = pool.root();
        for n in 0..3000 {
            let ino = root.create(format!("file {n}").as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
            let file = pool.node(ino).unwrap().open().unwrap();
            file.write_all_at(b"somewhere", n * 8192).unwrap();
        }
    }
    // Everything that is in use, found by what is not zero.
    let mut bytes = vec![0; PAGE as usize];
    let pages: Vec<u64> = (0..SIZE / PAGE)
        .filter(|page| memory.bytes().read(page * PAGE, &mut bytes) && bytes.iter().any(|&b| b != 0))
        .collect();
    let (mut opened, mut refused, mut errors) = (0, 0, 0);
    for page in pages {
        // Twice: lost before the pool is opened, and while it is open and known to be good.
        for early in [true, false] {
            let open = || Pool::open_on(memory.clone(), &OpenOptions::default());
            let known = (!early).then(open);
            if let Some(Ok(pool)) = &known {
                assert_eq!(walk(pool), 0);
            }
            memory.bytes().forbid(page * PAGE, PAGE);
            match known.unwrap_or_else(open) {
                Ok(pool) => {
                    opened += 1;
                    errors += walk(&pool);
                    let _ = pool.root().create(b"new", &NewNode::new(FileType::File, 0o644));
                    let _ = pool.root().unlink(b"new");
                }
                Err(e) => {
                    assert!(
                        matches!(e, Error::Lost(_) | Error::Corrupt { .. } | Error::NotAPool(_)),
                        "page {page}: {e}"
                    );
                    refused += 1;
                }
            }
            memory.bytes().allow(page * PAGE, PAGE);
        }
    }
    println!("{opened} opened, {refused} refused, {errors} errors");
    assert!(opened > 100 && refused > 0 && errors > 300);
    let report = check_on(memory, &CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{:?}", &report.findings[..report.findings.len().min(5)]);
}

/// Looks each file up and reads it; a name that is there is found, or the answer is an error of the
/// media.
fn walk(pool: &Pool) -> u64 {
    let root = pool.root();
    let mut errors = 0;
    let ask = |n: u64| -> Result<(), Error> {
        let ino = root.lookup(format!("file {n}").as_bytes())?.ino;
        let file = pool.node(ino)?.open()?;
        let mut bytes = [0; 9];
        assert_eq!(file.read_at(&mut bytes, n * 8192)?, 9);
        assert_eq!(&bytes, b"somewhere");
        Ok(())
    };
    for n in (0..3000).step_by(29) {
        match ask(n) {
            Ok(()) => {}
            Err(Error::Lost(_) | Error::DataLost(_) | Error::Corrupt { .. }) => errors += 1,
            Err(e) => panic!("file {n}: {e}"),
        }
    }
    errors
}
