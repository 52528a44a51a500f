//! Where things lie: whole frames for big files, small things together, frames that merge back.

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagestone::inode::NewNode;
use pagestone::{CreateOptions, FRAME_SIZE, File, FileType, Pool};
use pmem::{Description, Media, Memory, Part, Views};

fn pool(len: u64) -> Pool {
    Pool::create_on(Arc::new(Memory::new(len).unwrap()), &CreateOptions::default()).unwrap()
}

fn new_file(pool: &Pool, name: &str) -> File {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
    pool.node(ino).unwrap().open().unwrap()
}

/// Writes `len` bytes in pieces of 128 KiB, as a mount does.
fn append(file: &File, len: u64) {
    let piece = vec![7; 128 << 10];
    for _ in 0..len / piece.len() as u64 {
        file.append(&piece).unwrap();
    }
}

/// The share of a file, by thousandths, that lies in frames which a huge page could map.
fn huge_share(file: &File, len: u64) -> u64 {
    let mut huge = 0;
    for x in file.extents(..len).unwrap() {
        if x.offset % FRAME_SIZE == x.pool % FRAME_SIZE {
            let first = x.offset.next_multiple_of(FRAME_SIZE);
            huge += (x.offset + x.len).saturating_sub(first) / FRAME_SIZE * FRAME_SIZE;
        }
    }
    huge * 1000 / len
}

#[test]
fn a_big_file_lies_in_whole_aligned_frames() {
    let pool = pool(128 << 20);
    let file = new_file(&pool, "big");
    append(&file, 64 << 20);
    // Its first frame was taken page by page, before anybody could know that it would grow.
    assert!(huge_share(&file, 64 << 20) >= 960, "{}", huge_share(&file, 64 << 20));
}

#[test]
fn a_big_file_lies_in_whole_aligned_frames_in_an_aged_pool() {
    let pool = pool(256 << 20);
    // Small files come and go between big ones, and most of them go in no order.
    let mut state = 42u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 33
    };
    let mut small = Vec::new();
    for round in 0..20 {
        for i in 0..400 {
            let name = format!("small-{round}-{i}");
            append_small(&new_file(&pool, &name), random() % 30_000 + 1);
            small.push(name);
        }
        append(&new_file(&pool, &format!("big-{round}")), 5 << 20);
        for _ in 0..350 {
            let name = small.swap_remove(random() as usize % small.len());
            pool.root().unlink(name.as_bytes()).unwrap();
        }
        if round % 2 == 1 {
            pool.root().unlink(format!("big-{}", round - 1).as_bytes()).unwrap();
        }
    }
    let file = new_file(&pool, "late");
    append(&file, 64 << 20);
    assert!(huge_share(&file, 64 << 20) >= 960, "{}", huge_share(&file, 64 << 20));
}

fn append_small(file: &File, len: u64) {
    file.append(&vec![1; len as usize]).unwrap();
}

#[test]
fn small_files_crowd_together() {
    let pool = pool(64 << 20);
    let mut frames = std::collections::HashSet::new();
    for i in 0..1000 {
        let file = new_file(&pool, &format!("f{i}"));
        append_small(&file, 1000);
        frames.extend(file.extents(..1000).unwrap().iter().map(|x| x.pool / FRAME_SIZE));
    }
    // 1,000 pages of data, 63 of inodes and some of names fit in three frames of 511.
    assert!(frames.len() <= 3, "{frames:?}");
}

#[test]
fn what_was_taken_ahead_is_given_back_at_close() {
    let pool = pool(64 << 20);
    let file = new_file(&pool, "f");
    append(&file, 2 << 20);
    append_small(&file, 10);
    let pages = file.attr().unwrap().pages;
    assert!(pages > 513, "a whole frame was taken ahead: {pages}");
    drop(file);
    let attr = pool.root().lookup(b"f").unwrap();
    assert_eq!((attr.size, attr.pages), ((2 << 20) + 10, 513));
}

/// Fails if a close gives back what somebody has asked for.
#[test]
fn storage_behind_the_end_that_was_asked_for_stays_at_close() {
    let pool = pool(64 << 20);
    let file = new_file(&pool, "f");
    append(&file, 2 << 20);
    append_small(&file, 10); // takes a frame ahead of need
    file.allocate_keep_size(2 << 20..(2 << 20) + (100 << 12)).unwrap();
    drop(file);
    assert_eq!(pool.root().lookup(b"f").unwrap().pages, 512 + 100);
    // Long after a frame was taken ahead, and filled.
    let file = new_file(&pool, "g");
    append(&file, 2 << 20);
    append_small(&file, 10);
    append(&file, (2 << 20) - (128 << 10));
    file.allocate_keep_size(4 << 20..(4 << 20) + (100 << 12)).unwrap();
    append(&file, 128 << 10);
    drop(file);
    assert_eq!(pool.root().lookup(b"g").unwrap().pages, 1024 + 100);
    // Where what was taken ahead had been cut off.
    let file = new_file(&pool, "h");
    append(&file, 2 << 20);
    append_small(&file, 10);
    file.set_len(2 << 20).unwrap();
    file.allocate_keep_size(2 << 20..(2 << 20) + (100 << 12)).unwrap();
    drop(file);
    assert_eq!(pool.root().lookup(b"h").unwrap().pages, 512 + 100);
}

#[test]
fn a_sparse_pool_of_64_tib_is_made_at_once_and_holds_files() {
    let pool = pool(64 << 40);
    let file = new_file(&pool, "f");
    file.write_all_at(b"far away", 1 << 40).unwrap();
    let mut buf = [0; 8];
    file.read_at(&mut buf, 1 << 40).unwrap();
    assert_eq!(&buf, b"far away");
    assert_eq!(file.attr().unwrap().pages, 1);
    assert_eq!(pool.info().unwrap().descriptor_bytes_per_tib, 32 << 20);
}

/// Media that remember how many bytes one call has stored at most.
#[derive(Debug)]
struct Widest {
    inner: Memory,
    bytes: AtomicU64,
}

impl Widest {
    /// The most that one call has stored since this was asked last.
    fn take(&self) -> u64 {
        self.bytes.swap(0, Ordering::Relaxed)
    }
}

impl Media for Widest {
    fn describe(&self) -> &Description {
        self.inner.describe()
    }
    fn views(&self) -> Views<'_> {
        self.inner.views()
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        self.bytes.fetch_max(parts.iter().map(Part::len).sum(), Ordering::Relaxed);
        self.inner.persist(parts)
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        self.inner.store(at, bytes);
    }
    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.flush(at, len)
    }
    fn fence(&self) {
        self.inner.fence();
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.reserve(at, len)
    }
}

/// Fails if one record waits for all that lies behind the end of a file to be zeroed: its lane is held for as long, and
/// once the others are full everybody waits.
#[test]
fn a_file_grows_over_what_was_allocated_without_holding_a_lane() {
    type Grow = fn(&File, u64);
    let ways: [(&str, Grow); 5] = [
        ("set_len", |f, end| f.set_len(end).unwrap()),
        ("write_at", |f, end| f.write_all_at(&[0], end - 1).unwrap()),
        ("write_atomic", |f, end| f.write_atomic(&[(end - 1, &[0])]).unwrap()),
        ("allocate", |f, end| f.allocate(0..end).unwrap()),
        ("zero", |f, end| f.zero_range(end - 100..end - 100 + 100).unwrap()),
    ];
    for (name, grow) in ways {
        let media = Arc::new(Widest { inner: Memory::new(96 << 20).unwrap(), bytes: AtomicU64::new(0) });
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
        let (file, end) = (new_file(&pool, "f"), 40 << 20);
        file.write_all_at(&[7; 5000], 0).unwrap();
        file.allocate_keep_size(0..end).unwrap();
        media.take();
        grow(&file, end);
        let most = media.take();
        assert!(most <= 9 << 20, "{name}: {most} bytes in one call");
        assert_eq!(file.attr().unwrap().size, end, "{name}");
        let mut bytes = vec![1; end as usize];
        file.read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..5000].iter().all(|&b| b == 7) && bytes[5000..].iter().all(|&b| b == 0), "{name}");
    }
}

/// Fails if the step that sets the length zeroes again, all at once, what the steps before it have allocated.
#[test]
fn an_allocation_of_many_steps_zeroes_each_page_in_its_step() {
    let media = Arc::new(Widest { inner: Memory::new(128 << 20).unwrap(), bytes: AtomicU64::new(0) });
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    let (file, end) = (new_file(&pool, "f"), 80 << 20);
    media.take();
    file.allocate(0..end).unwrap();
    let most = media.take();
    assert!(most <= 33 << 20, "{most} bytes in one call");
    assert_eq!(file.attr().unwrap().size, end);
}
