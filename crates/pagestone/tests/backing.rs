//! Files whose absent pages a backing answers, compared with a model that has all bytes in memory.
//!
//! How it could fail: some path takes an absent page for zeros. The backing of these tests answers no zero byte at all,
//! and no page as another (`backing/instant.rs`), so each such path shows. What a file has behind the end that it had
//! when it got the backing is zeros, and so is what was punched.

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::sync::Arc;

use pagestone::check::{CheckOptions, check_on};
use pagestone::inode::NewNode;
use pagestone::{CreateOptions, Error, File, FileType, OpenOptions, PAGE_SIZE, Piece, Pool};
use pmem::Memory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PAGE: usize = PAGE_SIZE as usize;
const FRAME: usize = 2 << 20;
/// The backing whose bytes follow from their offset.
const PATTERN: u32 = 2;
/// The backing with one fixed byte.
const NOOP: u32 = 1;

/// What the backing has at `offset`: written down a second time, not asked of the library.
fn pattern(offset: usize) -> u8 {
    ((offset / PAGE * 7 + offset % PAGE) % 255) as u8 + 1
}

/// A pool in memory.
struct Place {
    media: Arc<Memory>,
    pool: Pool,
}

impl Place {
    fn new(len: u64) -> Place {
        let media = Arc::new(Memory::new(len).unwrap());
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
        Place { media, pool }
    }

    fn file(&self, name: &str) -> File {
        let ino = self.pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o600)).unwrap().ino;
        self.pool.node(ino).unwrap().open().unwrap()
    }

    /// A file of `len` bytes, all of them the backing's.
    fn backed(&self, name: &str, len: usize) -> Model {
        let file = self.file(name);
        file.set_len(len as u64).unwrap();
        file.set_backing(PATTERN).unwrap();
        Model { file, bytes: (0..len).map(pattern).collect() }
    }

    fn clone(&self, from: &Model, name: &str) -> Model {
        let ino = self.pool.root().clone_file(name.as_bytes(), from.file.ino()).unwrap().ino;
        Model { file: self.pool.node(ino).unwrap().open().unwrap(), bytes: from.bytes.clone() }
    }

    /// Checks the pool, which nobody changes any more; files of it may be open still.
    fn check(self) {
        let Place { media, pool } = self;
        pool.checkpoint().unwrap();
        drop(pool);
        let report = check_on(media, &CheckOptions::default(), &mut |_, _| ()).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }

    /// Closes the pool, checks it, and opens it again.
    fn reopen(self, models: &mut Vec<(String, Model)>) -> Place {
        let bytes: Vec<_> = models.drain(..).map(|(name, model)| (name, model.bytes)).collect();
        let media = self.media.clone();
        self.check();
        let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
        let open = |name: &str| pool.resolve(name.as_bytes()).unwrap().open().unwrap();
        models.extend(bytes.into_iter().map(|(name, bytes)| (name.clone(), Model { file: open(&name), bytes })));
        Place { media, pool }
    }
}

/// A file, and what it has to read as.
struct Model {
    file: File,
    bytes: Vec<u8>,
}

impl Model {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, at as u64).unwrap();
        self.put(at, bytes);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn write_atomic(&mut self, parts: &[(usize, Vec<u8>)]) {
        let lent: Vec<(u64, &[u8])> = parts.iter().map(|(at, bytes)| (*at as u64, &bytes[..])).collect();
        self.file.write_atomic(&lent).unwrap();
        parts.iter().for_each(|(at, bytes)| self.put(*at, bytes));
    }

    fn append(&mut self, bytes: &[u8]) {
        assert_eq!(self.file.append(bytes).unwrap(), self.bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn set_len(&mut self, len: usize) {
        self.file.set_len(len as u64).unwrap();
        self.bytes.resize(len, 0);
    }

    fn clear(&mut self, at: usize, len: usize) {
        let size = self.bytes.len();
        self.bytes[at.min(size)..(at + len).min(size)].fill(0);
    }

    fn punch(&mut self, at: usize, len: usize) {
        self.file.punch_hole(at as u64..(at + len) as u64).unwrap();
        self.clear(at, len);
    }

    fn zero(&mut self, at: usize, len: usize, keep_size: bool) {
        let range = at as u64..(at + len) as u64;
        match keep_size {
            true => self.file.zero_range_keep_size(range).unwrap(),
            false => self.file.zero_range(range).unwrap(),
        }
        if !keep_size && self.bytes.len() < at + len {
            self.bytes.resize(at + len, 0);
        }
        self.clear(at, len);
    }

    fn allocate(&mut self, at: usize, len: usize, keep_size: bool) {
        let range = at as u64..(at + len) as u64;
        match keep_size {
            true => self.file.allocate_keep_size(range).unwrap(),
            false => self.file.allocate(range).unwrap(),
        }
        if !keep_size && self.bytes.len() < at + len {
            self.bytes.resize(at + len, 0);
        }
    }

    fn storage(&self) -> u64 {
        self.file.extents(..).unwrap().iter().map(|x| x.len.div_ceil(PAGE_SIZE)).sum()
    }

    /// Both ways of reading, and both seeks, agree with the model.
    #[track_caller]
    fn verify(&self, what: &str) {
        let size = self.bytes.len();
        assert_eq!(self.file.metadata().unwrap().len() as usize, size, "{what}");
        let mut read = vec![0xEE; size + 10];
        assert_eq!(self.file.read_at(&mut read, 0).unwrap(), size, "{what}");
        same(&read[..size], &self.bytes, what);
        same(&pieces(&self.file, 0, size as u64 + 10), &self.bytes, what);
        let mut at = 0;
        while at < size as u64 {
            let Ok(data) = self.file.seek_data(at) else { break };
            assert!(self.bytes[at as usize..data as usize].iter().all(|&b| b == 0), "{what}: {at}..{data} is no hole");
            at = self.file.seek_hole(data).unwrap();
            assert!(at > data, "{what}: {data} is data");
        }
        let rest = &self.bytes[(at as usize).min(size)..];
        assert!(rest.iter().all(|&b| b == 0), "{what}: no data is found from {at} on");
    }
}

#[track_caller]
fn same(read: &[u8], want: &[u8], what: &str) {
    assert_eq!(read.len(), want.len(), "{what}");
    if let Some(at) = (0..want.len()).find(|&at| read[at] != want[at]) {
        panic!("{what}: at {at} (page {}) is {} and not {}", at / PAGE, read[at], want[at]);
    }
}

/// A range by its pieces.
fn pieces(file: &File, offset: u64, len: u64) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in file.pieces(offset..offset + len).unwrap().iter() {
        match *piece {
            // SAFETY: the pieces are there still, and nobody writes meanwhile.
            Piece::Storage { addr, len } => all.extend(unsafe { std::slice::from_raw_parts(addr, len) }),
            Piece::Hole { len } => all.resize(all.len() + len, 0),
        }
    }
    all
}

/// Bytes that no backing answers in that order.
fn fill(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + salt) as u8).collect()
}

#[test]
fn absent_pages_read_as_the_backing_answers_and_take_no_storage() {
    let place = Place::new(64 << 20);
    let file = place.backed("a", 3 * FRAME + 1000);
    file.verify("absent");
    for (at, len) in [(0, 1), (4095, 2), (5000, 9000), (2 * FRAME - 3, 7), (3 * FRAME, 5000)] {
        let mut buf = vec![0xEE; len];
        let got = file.file.read_at(&mut buf, at as u64).unwrap();
        same(&buf[..got], &file.bytes[at..at + got], "a part");
        same(&pieces(&file.file, at as u64, len as u64), &file.bytes[at..at + got], "a part by pieces");
    }
    assert_eq!(file.storage(), 0);
    let noop = place.file("noop");
    noop.set_len(10_000).unwrap();
    noop.set_backing(NOOP).unwrap();
    let mut buf = vec![0; 10_000];
    noop.read_at(&mut buf, 0).unwrap();
    assert!(buf.iter().all(|&b| b == 0xa5), "the no-op backing leaves one fixed byte");
    assert!(matches!(noop.set_backing(7), Err(Error::Invalid(_))));
    assert!(matches!(noop.set_backing(PATTERN), Err(Error::NotSupported(_))), "a file gets a backing once");
    place.check();
}

#[test]
fn a_write_to_a_part_of_an_absent_page_keeps_what_the_backing_has_around_it() {
    let place = Place::new(64 << 20);
    let mut file = place.backed("a", 4 * FRAME + 77);
    for (i, (at, len)) in [
        (100, 50),
        (PAGE * 3 - 1, 2),
        (PAGE * 10, PAGE),
        (PAGE * 20 + 5, 3 * PAGE),
        (FRAME - 10, FRAME + 20),
        (3 * FRAME, 8),
        (4 * FRAME, 77),
    ]
    .into_iter()
    .enumerate()
    {
        file.write(at, &fill(len, i));
        file.verify(&format!("a write of {len} at {at}"));
    }
    // The last page is the backing's in part only.
    let mut file = place.backed("b", 5 * PAGE + 77);
    file.write(5 * PAGE + 10, &[1; 4]);
    file.verify("a write before the end");
    let mut file = place.backed("c", 5 * PAGE + 77);
    file.write(5 * PAGE + 70, &[1; 20]);
    file.verify("a write over the end");
    place.check();
}

#[test]
fn behind_the_end_that_it_had_a_file_has_zeros_and_not_what_the_backing_has() {
    let place = Place::new(64 << 20);
    for (i, size) in [0, 1, PAGE, 3 * PAGE + 100, FRAME, FRAME + PAGE + 5].into_iter().enumerate() {
        let name = |op: &str| format!("{op}{i}");
        let mut file = place.backed(&name("append"), size);
        file.append(&fill(300, 1));
        file.append(&fill(3 * PAGE, 2));
        file.verify("appended");
        let mut file = place.backed(&name("grow"), size);
        file.set_len(size + 3 * PAGE + 7);
        file.verify("grown");
        let mut file = place.backed(&name("hole"), size);
        file.write(size + 9 * PAGE + 3, &[9; 20]);
        file.append(&fill(2 * PAGE, 3));
        file.verify("a write behind a hole");
        let mut file = place.backed(&name("allocate"), size);
        file.allocate(size, 3 * PAGE, true);
        file.verify("allocated behind the end");
        file.set_len(size + 5 * PAGE);
        file.verify("grown over what was allocated");
        let mut file = place.backed(&name("atomic"), size);
        file.write_atomic(&[(size + 2 * PAGE + 9, fill(500, 4))]);
        file.verify("an atomic write behind the end");
        let mut file = place.backed(&name("shrink"), size);
        file.set_len(size / 2);
        file.verify("shortened");
        file.set_len(size + PAGE);
        file.verify("shortened and grown");
        file.set_len(0);
        file.set_len(2 * PAGE);
        file.verify("emptied and grown");
    }
    place.check();
}

#[test]
fn a_punched_page_is_zeros_whatever_the_backing_has() {
    let place = Place::new(64 << 20);
    let mut file = place.backed("a", 2 * FRAME + 500);
    file.punch(PAGE, PAGE);
    file.punch(10 * PAGE + 100, 3 * PAGE);
    file.punch(20 * PAGE + 100, 200);
    file.punch(2 * FRAME - PAGE, 10 * PAGE);
    file.verify("punched");
    let hole = file.file.seek_hole(0).unwrap();
    assert_eq!((hole, file.file.seek_data(hole).unwrap()), (PAGE_SIZE, 2 * PAGE_SIZE));
    // Over a void, and beside one.
    file.write(PAGE + 10, &[5; 10]);
    file.write(11 * PAGE, &[6; 5 * PAGE]);
    // Parts of voids: what is left of each hides the backing still.
    for first in [40, 50, 60] {
        file.punch(first * PAGE, 4 * PAGE);
    }
    file.write(40 * PAGE + 9, &[7; 10]);
    file.write(51 * PAGE + 9, &[8; PAGE]);
    file.write(63 * PAGE, &[9; PAGE]);
    file.verify("written where it was punched");
    file.punch(0, 40 * PAGE);
    file.verify("punched again");
    // The map gets a tree, and loses it, with voids in it.
    (0..400).for_each(|i| file.punch((50 + 2 * i) * PAGE, PAGE));
    file.verify("many voids");
    let mut files = vec![("a".to_string(), file)];
    let place = place.reopen(&mut files);
    let (_, mut file) = files.remove(0);
    file.verify("many voids in a reopened pool");
    file.set_len(0);
    file.set_len(FRAME);
    file.verify("emptied");
    drop(file);
    place.check();
}

#[test]
fn allocated_pages_read_as_before_and_zeroed_ones_as_zeros() {
    let place = Place::new(128 << 20);
    let mut file = place.backed("a", 12 * FRAME + 5);
    file.write(3 * PAGE, &[7; PAGE]);
    file.allocate(PAGE, 5 * PAGE, false);
    file.verify("a few pages allocated");
    file.allocate(0, 12 * FRAME + 5, true);
    file.verify("all of it allocated");
    assert_eq!(file.storage(), (12 * FRAME / PAGE) as u64 + 1);
    let mut file = place.backed("b", FRAME + 5);
    file.zero(100, 50, true);
    file.zero(3 * PAGE + 100, 4 * PAGE, true);
    file.verify("zeroed");
    file.zero(FRAME - 100, 3 * PAGE, false);
    file.verify("zeroed over the end");
    file.zero(FRAME / 2, 2 * FRAME, false);
    file.verify("a frame zeroed");
    place.check();
}

#[test]
fn an_atomic_write_keeps_what_the_backing_has_around_each_part() {
    let place = Place::new(128 << 20);
    for written_before in [false, true] {
        let mut file = place.backed(&format!("few{written_before}"), 4 * FRAME + 9);
        if written_before {
            file.write(7 * PAGE, &fill(3 * PAGE, 1));
        }
        file.write_atomic(&[(10, fill(20, 2)), (200, fill(PAGE, 3)), (8 * PAGE, fill(PAGE, 4)), (FRAME, fill(9, 5))]);
        file.verify("a few parts");
        // More than one record carries: an orphan is filled, and the map goes on top.
        let many = (0..40).map(|i| (i * 50 * PAGE + 30, fill(5000, i))).collect::<Vec<_>>();
        file.write_atomic(&many);
        file.verify("many parts");
        file.write_atomic(&[(FRAME / 2 + 11, fill(5 << 20, 6))]);
        file.verify("a long part");
        place.pool.sync().unwrap();
        file.verify("merged");
        place.pool.root().unlink(format!("few{written_before}").as_bytes()).unwrap();
    }
    place.check();
}

#[test]
fn clones_and_their_source_read_the_same_backing() {
    let place = Place::new(128 << 20);
    for own in [false, true] {
        let mut a = place.backed("a", 2 * FRAME + 300);
        if own {
            a.write(5 * PAGE + 1, &fill(2 * PAGE, 1));
            a.punch(9 * PAGE, PAGE);
        }
        let mut b = place.clone(&a, "b");
        let mut c = place.clone(&b, "c");
        for (model, name) in [(&a, "source"), (&b, "clone"), (&c, "clone of a clone")] {
            model.verify(name);
        }
        a.write(PAGE + 7, &[1; 20]);
        b.write(PAGE + 8, &[2; 20]);
        b.punch(30 * PAGE, 2 * PAGE);
        c.set_len(FRAME + 10);
        c.set_len(FRAME + 5 * PAGE);
        b.append(&fill(PAGE, 8));
        let d = place.clone(&b, "d");
        for (model, name) in [(&a, "source"), (&b, "clone"), (&c, "clone of a clone"), (&d, "another")] {
            model.verify(name);
        }
        assert_eq!(d.file.count_differing_bytes(&b.file).unwrap(), 0);
        // The bases merge into whoever is left.
        drop(a);
        place.pool.root().unlink(b"a").unwrap();
        place.pool.sync().unwrap();
        for (model, name) in [(&b, "clone"), (&c, "clone of a clone"), (&d, "another")] {
            model.verify(name);
        }
        drop((c, d));
        place.pool.root().unlink(b"c").unwrap();
        place.pool.root().unlink(b"d").unwrap();
        place.pool.sync().unwrap();
        b.verify("what is left");
        b.write(40 * PAGE + 5, &[3; 10]);
        b.set_len(FRAME);
        b.set_len(2 * FRAME);
        b.verify("what is left, changed");
        drop(b);
        place.pool.root().unlink(b"b").unwrap();
    }
    place.check();
}

#[test]
fn shared_ranges_and_copies_have_the_bytes_of_the_backing() {
    let place = Place::new(64 << 20);
    let mut a = place.backed("a", FRAME + 300);
    a.write(PAGE + 1, &[1; 10]);
    let b = place.file("b");
    assert_eq!(b.clone_range_from(&a.file, 0..5 * PAGE_SIZE).unwrap(), 5 * PAGE_SIZE);
    let mut b = Model { file: b, bytes: a.bytes[..5 * PAGE].to_vec() };
    b.verify("a shared range");
    assert_eq!(b.file.clone_range_from(&a.file, 5 * PAGE_SIZE..u64::MAX / 2).unwrap(), (FRAME + 300 - 5 * PAGE) as u64);
    b.bytes.clone_from(&a.bytes);
    b.verify("all of it shared");
    let c = place.file("c");
    c.clone_from_file(&a.file).unwrap();
    let c = Model { file: c, bytes: a.bytes.clone() };
    c.verify("cloned into a file");
    // A copy through memory.
    let copy = place.file("copy");
    let mut bytes = vec![0; FRAME + 300];
    a.file.read_at(&mut bytes, 0).unwrap();
    copy.write_all_at(&bytes, 0).unwrap();
    assert_eq!(copy.count_differing_bytes(&a.file).unwrap(), 0);
    a.verify("the source");
    place.pool.snapshots().create(b"s").unwrap();
    a.write(0, &[9; 100]);
    let changes = place.pool.snapshots().diff(b"s", None).unwrap();
    assert_eq!((changes.len(), &changes[0].path[..], changes[0].bytes), (1, "/a", PAGE_SIZE));
    place.check();
}

#[test]
fn a_comparison_asks_the_backing() {
    let place = Place::new(64 << 20);
    let len = 20 * PAGE + 100;
    let (mut a, b, zeros) = (place.backed("a", len), place.backed("b", len), place.file("zeros"));
    zeros.set_len(len as u64).unwrap();
    let noop = place.file("noop");
    noop.set_len(len as u64).unwrap();
    noop.set_backing(NOOP).unwrap();
    let unlike = |a: &File, b: &File| a.count_differing_bytes(b).unwrap();
    assert_eq!(unlike(&a.file, &b.file), 0);
    assert_eq!([unlike(&a.file, &zeros), unlike(&zeros, &a.file), unlike(&noop, &a.file)], [len as u64; 3]);
    assert_eq!(unlike(&noop, &zeros), len as u64);
    a.allocate(3 * PAGE, 7 * PAGE, true);
    assert_eq!(unlike(&a.file, &b.file), 0, "the same bytes in storage");
    a.write(4 * PAGE, b"other");
    a.punch(20 * PAGE, PAGE);
    assert_eq!(unlike(&a.file, &b.file), PAGE_SIZE + 100);
}

/// Fails if the limit up to which a backing answers is not on the media, or is not taken over with a map.
#[test]
fn a_reopened_pool_reads_as_before() {
    let place = Place::new(64 << 20);
    let mut a = place.backed("a", FRAME + 300);
    a.write(5 * PAGE + 9, &[1; 2 * PAGE]);
    a.punch(20 * PAGE, 3 * PAGE);
    let mut b = place.clone(&a, "b");
    b.set_len(FRAME / 2 + 5);
    b.append(&[4; 9000]);
    let mut files = vec![("a".to_string(), a), ("b".to_string(), b)];
    let place = place.reopen(&mut files);
    files.iter().for_each(|(name, model)| model.verify(name));
    drop(files.remove(0));
    place.pool.root().unlink(b"a").unwrap();
    let place = place.reopen(&mut files);
    files.iter().for_each(|(name, model)| model.verify(name));
    drop(files);
    place.check();
}

/// One random change of a file and of its model.
fn change(model: &mut Model, rng: &mut StdRng) {
    const MOST: usize = 4 * FRAME;
    let size = model.bytes.len();
    let at = match rng.random_range(0..3) {
        0 => rng.random_range(0..=size),
        1 => rng.random_range(0..=size / PAGE) * PAGE,
        _ => rng.random_range(0..=size + 5 * PAGE),
    };
    // Short ones mostly: a long one leaves little for the backing to answer.
    let len = match rng.random_range(0..8) {
        0..4 => rng.random_range(1..3 * PAGE),
        4..7 => rng.random_range(1..20) * PAGE,
        _ => rng.random_range(1..FRAME + PAGE),
    };
    let len = len.min(MOST.saturating_sub(at)).max(1);
    match rng.random_range(0..40) {
        0..12 => model.write(at, &fill(len, size)),
        12..20 => model.punch(at, len),
        20..24 => model.zero(at, len, rng.random()),
        24..28 => model.allocate(at, len, rng.random()),
        28 => model.set_len(at),
        29..31 => model.set_len((size + 5 * PAGE).saturating_sub(len)),
        31..34 => model.append(&fill(len.min(5 * PAGE), at)),
        34..39 => {
            let parts = (0..rng.random_range(1..12)).map(|i| (at + i * 3 * PAGE, fill(len % (3 * PAGE) + 1, i)));
            model.write_atomic(&parts.filter(|(at, bytes)| at % 7 < 6 && bytes.len() <= 3 * PAGE).collect::<Vec<_>>());
        }
        _ => model.write_atomic(&[(at, fill(5 << 20, at))]),
    }
}

/// Fails if any sequence of changes and clones takes an absent page for zeros, or the backing for what was cut off.
#[test]
fn random_changes_and_clones_read_as_a_model_that_has_all_bytes() {
    let seed: u64 = std::env::var("PAGESTONE_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("PAGESTONE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut place = Place::new(512 << 20);
    let mut models: Vec<(String, Model)> = Vec::new();
    for step in 0..250 {
        if models.is_empty() || (models.len() < 5 && rng.random_range(0..12) == 0) {
            let len = rng.random_range(0..3 * FRAME);
            let name = format!("f{step}");
            models.push((name.clone(), place.backed(&name, len)));
        }
        let i = rng.random_range(0..models.len());
        match rng.random_range(0..12) {
            0 if models.len() < 8 => {
                let name = format!("c{step}");
                let clone = place.clone(&models[i].1, &name);
                models.push((name, clone));
            }
            1 if models.len() > 1 => {
                let (name, model) = models.swap_remove(i);
                drop(model);
                place.pool.root().unlink(name.as_bytes()).unwrap();
            }
            2 => place.pool.sync().unwrap(),
            _ => {
                change(&mut models[i].1, &mut rng);
                models[i].1.verify(&format!("PAGESTONE_SEED={seed}, step {step}, {}, changed", models[i].0));
            }
        }
        let i = rng.random_range(0..models.len());
        models[i].1.verify(&format!("PAGESTONE_SEED={seed}, step {step}, {}", models[i].0));
        if step % 50 == 49 {
            place = place.reopen(&mut models);
            models
                .iter()
                .for_each(|(name, model)| model.verify(&format!("PAGESTONE_SEED={seed}, step {step}, {name}")));
        }
    }
    models.clear();
    place.check();
}
