//! Stores through mappings on media whose caches are lost at a power cut: who flushes them, and when.
//!
//! The media are memory that says it needs its cache lines flushed, and notes which were.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "mapping is handed on to the media below")]

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use pagestone::inode::NewNode;
use pagestone::mmap::{MapOptions, Mapping};
use pagestone::{CreateOptions, File, FileType, PAGE_SIZE, Pool};
use pmem::{Description, Granularity, MapMode, Media, Memory, Part, Views};

const SIZE: u64 = 64 << 20;

type Hook = Box<dyn FnOnce() + Send>;

/// Ranges of bytes.
type Ranges = Vec<Range<u64>>;

struct Lines {
    inner: Memory,
    description: Description,
    /// Flushed, and not fenced yet; and both.
    flushed: Mutex<(Ranges, Ranges)>,
    at_flush: Mutex<Option<Hook>>,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Lines {
    fn new() -> Arc<Lines> {
        let inner = Memory::new(SIZE).unwrap();
        let description = Description { granularity: Granularity::CacheLine, ..inner.describe().clone() };
        Arc::new(Lines { inner, description, flushed: Mutex::default(), at_flush: Mutex::default() })
    }

    /// Whether this byte was flushed, and fenced, since this was asked last.
    fn has_persisted(&self, at: u64) -> bool {
        let mut flushed = self.flushed.lock().unwrap();
        let found = flushed.1.iter().any(|range| range.contains(&at));
        *flushed = Default::default();
        found
    }
}

impl Media for Lines {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn views(&self) -> Views<'_> {
        self.inner.views()
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        self.inner.persist(parts)
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        self.inner.store(at, bytes);
    }
    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        if let Some(hook) = self.at_flush.lock().unwrap().take() {
            hook();
        }
        self.flushed.lock().unwrap().0.push(at..at + len);
        self.inner.flush(at, len)
    }
    fn fence(&self) {
        let mut flushed = self.flushed.lock().unwrap();
        let done = std::mem::take(&mut flushed.0);
        flushed.1.extend(done);
        self.inner.fence();
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.reserve(at, len)
    }
    fn map_alignment(&self) -> Option<u64> {
        self.inner.map_alignment()
    }
    unsafe fn map_at(&self, at: u64, len: u64, to: *mut u8, how: MapMode) -> io::Result<()> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.inner.map_at(at, len, to, how) }
    }
}

fn file(pool: &Pool, name: &str, bytes: &[u8]) -> File {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
    let file = pool.node(ino).unwrap().open().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// The pool byte of a file's byte.
fn place_of(file: &File, offset: u64) -> u64 {
    let extent = file.extents(offset..offset + 1).unwrap()[0];
    extent.pool + (offset - extent.offset)
}

/// Fails if a sync leaves in the processor's cache what a mapping has stored.
#[test]
fn a_sync_makes_stores_through_mappings_durable() {
    let media = Lines::new();
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    let f = file(&pool, "f", &[1; 40 * PAGE_SIZE as usize]);
    let at = 7 * PAGE_SIZE + 8;
    let place = place_of(&f, at);
    let map = f.map(0..40 * PAGE_SIZE, &MapOptions::shared()).unwrap();
    let syncs: [(&str, &dyn Fn()); 3] = [
        ("File::sync", &|| f.sync_all().unwrap()),
        ("Node::sync", &|| pool.node(f.ino()).unwrap().sync().unwrap()),
        ("Pool::sync", &|| pool.sync().unwrap()),
    ];
    for (name, sync) in syncs {
        map.store(at, 2u64).unwrap();
        media.has_persisted(place);
        sync();
        assert!(media.has_persisted(place), "{name}");
    }
    // Also of a mapping that is gone.
    for (name, sync) in syncs {
        let map = f.map(0..40 * PAGE_SIZE, &MapOptions::shared()).unwrap();
        map.store(at, 3u64).unwrap();
        drop(map);
        media.has_persisted(place);
        sync();
        assert!(media.has_persisted(place), "{name}, unmapped");
    }
    drop(map);
    f.sync_all().unwrap();
    media.has_persisted(place);
    f.sync_all().unwrap();
    assert!(!media.has_persisted(place), "nobody could store anything since");
}

/// A file of one page, a mapping of it with a word stored at 16, and where that lies.
fn stored() -> (Arc<Lines>, Pool, File, Mapping, u64) {
    let media = Lines::new();
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    let f = file(&pool, "f", &[1; 4096]);
    let place = place_of(&f, 16);
    let map = f.map(0..PAGE_SIZE, &MapOptions::shared()).unwrap();
    map.store(16, 2u64).unwrap();
    (media, pool, f, map, place)
}

#[test]
fn the_last_close_makes_stores_through_mappings_durable() {
    let (media, _pool, f, map, place) = stored();
    drop(f);
    media.has_persisted(place);
    drop(map);
    assert!(media.has_persisted(place));
}

/// Fails if what a clone shares stays in the processor's cache once its source has other storage there.
#[test]
fn a_clone_has_what_was_stored_through_mappings_of_its_source() {
    let (media, pool, f, _map, place) = stored();
    media.has_persisted(place);
    pool.root().clone_file(b"clone", f.ino()).unwrap();
    assert!(media.has_persisted(place));
}

/// Fails if a flush walks the bases of a file while two of them become one.
#[test]
fn a_flush_keeps_the_bases_of_its_file_as_they_are() {
    let media = Lines::new();
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    let f = file(&pool, "f", &[1; 8 * PAGE_SIZE as usize]);
    // f stands on a base, that on an older one, and that one is g's too: without g these two become one.
    pool.root().clone_file(b"g", f.ino()).unwrap();
    f.write_all_at(&[2; PAGE_SIZE as usize], 4 * PAGE_SIZE).unwrap();
    pool.root().clone_file(b"h", f.ino()).unwrap();
    f.write_all_at(&[3; PAGE_SIZE as usize], 0).unwrap();
    let map = f.map(0..8 * PAGE_SIZE, &MapOptions::shared()).unwrap();
    let (merged, other) = (Arc::new(Mutex::new(None)), pool.clone());
    let (done, finished) = std::sync::mpsc::channel();
    let hook = {
        let merged = merged.clone();
        move || {
            let merge = std::thread::spawn(move || {
                other.root().unlink(b"g").unwrap();
                let _ = done.send(());
            });
            let early = finished.recv_timeout(std::time::Duration::from_millis(300)).is_ok();
            *merged.lock().unwrap() = Some((early, merge));
        }
    };
    *media.at_flush.lock().unwrap() = Some(Box::new(hook));
    map.flush(0..8 * PAGE_SIZE).unwrap();
    let (early, merge) = merged.lock().unwrap().take().unwrap();
    merge.join().unwrap();
    assert!(!early, "the bases were merged in the middle of the flush");
}
