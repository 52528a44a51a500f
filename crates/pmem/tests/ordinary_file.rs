//! The private overlay of an ordinary file: what reaches the file when, and what memory it takes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pmem::{Media, MediaKind, Open, PAGE_SIZE, Part, open};
use procfs::process::Process;

const SIZE: u64 = 64 << 20;

struct Pool {
    _dir: tempfile::TempDir,
    path: PathBuf,
    media: Arc<dyn Media>,
}

fn pool() -> Pool {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = dir.path().join("pool");
    let how = Open { size: Some(SIZE), kind: Some(MediaKind::File), ..Open::default() };
    let media = open(&path, &how).expect("opens").media;
    Pool { _dir: dir, path, media }
}

impl Pool {
    /// What stands in the file, past every mapping.
    fn file(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xcc; len];
        File::open(&self.path).expect("opens").read_exact_at(&mut buf, at).expect("reads");
        buf
    }
    fn meta(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xcc; len];
        assert!(self.media.views().meta.read(at, &mut buf));
        buf
    }
    /// KiB of private copies that the meta window holds.
    fn private_kib(&self) -> u64 {
        let start = self.media.views().meta.addr(0, 1).expect("inside").addr() as u64;
        let maps = Process::myself().and_then(|process| process.smaps()).expect("reads");
        let window = maps.iter().filter(|map| map.address.0 >= start && map.address.1 <= start + SIZE);
        window.map(|map| map.extension.map["Private_Dirty"]).sum::<u64>() >> 10
    }
}

#[test]
fn a_store_reaches_the_file_only_by_flush_and_sync() {
    let pool = pool();
    pool.media.store(8192, b"in place");
    assert_eq!(pool.meta(8192, 8), b"in place");
    assert_eq!(pool.file(8192, 8), [0; 8]);
    pool.media.sync().expect("syncs");
    assert_eq!(pool.file(8192, 8), [0; 8], "not flushed");
    pool.media.flush(8195, 1).expect("flushes");
    assert_eq!(pool.file(8192, 8), [0; 8], "not synced");
    pool.media.sync().expect("syncs");
    assert_eq!(pool.file(8192, 8), b"in place");
    assert_eq!(pool.meta(8192, 8), b"in place");
    // And again: the page takes stores after its copy was dropped.
    pool.media.store(8195, b"!");
    assert_eq!((pool.file(8192, 8), pool.meta(8192, 8)), (b"in place".to_vec(), b"in !lace".to_vec()));
    pool.media.flush(0, SIZE).expect("flushes");
    pool.media.sync().expect("syncs");
    assert_eq!(pool.file(8192, 8), b"in !lace");
}

#[test]
fn a_flush_covers_both_ends_and_nothing_else() {
    let pool = pool();
    for page in 0..8 {
        pool.media.store(page * PAGE_SIZE + 4000, &[page as u8 + 1; 96]);
    }
    pool.media.flush(2 * PAGE_SIZE - 1, PAGE_SIZE + 2).expect("flushes");
    pool.media.flush(5 * PAGE_SIZE, 0).expect("flushes nothing");
    assert!(pool.media.flush(SIZE - 1, 2).is_err());
    pool.media.sync().expect("syncs");
    let reached: Vec<u64> = (0..8).filter(|page| pool.file(page * PAGE_SIZE + 4000, 1) != [0]).collect();
    assert_eq!(reached, [1, 2, 3]);
}

#[test]
fn sync_gives_the_private_memory_back() {
    let pool = pool();
    assert_eq!(pool.private_kib(), 0);
    for page in 0..4096 {
        pool.media.store(page * PAGE_SIZE, &page.to_le_bytes());
        pool.media.flush(page * PAGE_SIZE, 8).expect("flushes");
    }
    assert_eq!(pool.private_kib(), 16 << 10);
    pool.media.sync().expect("syncs");
    assert_eq!(pool.private_kib(), 0);
    assert!((0..4096).all(|page: u64| pool.meta(page * PAGE_SIZE, 8) == page.to_le_bytes()));
    assert!((0..4096).all(|page: u64| pool.file(page * PAGE_SIZE, 8) == page.to_le_bytes()));
}

#[test]
fn a_page_that_becomes_data_is_not_overwritten_by_its_past() {
    let pool = pool();
    // Stored whole after a flush: the pending write-out must not bring the old bytes back.
    pool.media.store(0, &[1; 4096]);
    pool.media.flush(0, 4096).expect("flushes");
    pool.media.persist(&[Part::Bytes { at: 0, bytes: &[2; 4096] }]).expect("persists");
    // Stored in part: neither side's bytes are lost.
    pool.media.store(PAGE_SIZE, &[1; 4096]);
    pool.media.flush(PAGE_SIZE, 4096).expect("flushes");
    let parts = [Part::Bytes { at: PAGE_SIZE + 8, bytes: &[2; 8] }, Part::Zero { at: PAGE_SIZE + 16, len: 8 }];
    pool.media.persist(&parts).expect("persists");
    // Never flushed, then stored over across the page's end.
    pool.media.store(2 * PAGE_SIZE, &[1; 8192]);
    pool.media.persist(&[Part::Bytes { at: 2 * PAGE_SIZE, bytes: &[2; 4100] }]).expect("persists");
    assert_eq!(pool.meta(2 * PAGE_SIZE, 4101)[4095..], [2, 2, 2, 2, 2, 1]);
    pool.media.sync().expect("syncs");
    assert_eq!(pool.file(0, 4096), [2; 4096]);
    assert_eq!(pool.meta(0, 4096), [2; 4096]);
    assert_eq!(pool.file(PAGE_SIZE, 25)[7..], [1, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(pool.file(2 * PAGE_SIZE, 4101)[4095..], [2, 2, 2, 2, 2, 0], "never flushed");
    pool.media.flush(3 * PAGE_SIZE, 1).expect("flushes");
    pool.media.sync().expect("syncs");
    assert_eq!(pool.file(2 * PAGE_SIZE, 4101)[4095..], [2, 2, 2, 2, 2, 1]);
    assert_eq!(pool.private_kib(), 0);
}

#[test]
fn readers_and_syncs_run_together() {
    let pool = pool();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each writer has its own pages and flushes and syncs them, like the engine's checkpoint.
        let writers: Vec<_> = (0..2u64)
            .map(|n| {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 1..40u64 {
                        for page in 0..32 {
                            pool.media.store((n * 32 + page) * PAGE_SIZE, &round.to_le_bytes());
                        }
                        pool.media.flush(n * 32 * PAGE_SIZE, 32 * PAGE_SIZE).expect("flushes");
                        pool.media.persist(&[Part::Bytes { at: (1 << 20) + n, bytes: &[1] }]).expect("persists");
                        pool.media.sync().expect("syncs");
                        assert_eq!(pool.file((n * 32 + 31) * PAGE_SIZE, 8), round.to_le_bytes());
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            // What a reader has seen once must never be older when it looks again.
            let mut last = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                for (page, last) in last.iter_mut().enumerate() {
                    let view = pool.media.views().meta.page(page as u64 * PAGE_SIZE).expect("inside");
                    let now = view.u64(0);
                    assert!(now >= *last, "page {page} went from {last} back to {now}");
                    *last = now;
                }
            }
        });
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
}

/// Fails if the file is asked first and the overlay then: a page that a sync moves in between is found in neither.
#[test]
fn stored_pages_are_found_while_a_sync_writes_them_out() {
    let pool = pool();
    let stored = AtomicU64::new(0);
    const PAGES: u64 = 600;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for page in 1..=PAGES {
                pool.media.store(page * PAGE_SIZE, &[1]);
                stored.store(page, Ordering::Release);
                pool.media.flush(page * PAGE_SIZE, 1).expect("flushes");
                pool.media.sync().expect("syncs");
            }
        });
        loop {
            let page = stored.load(Ordering::Acquire);
            let at = page * PAGE_SIZE;
            assert!(page == 0 || pool.media.next_data(at, PAGE_SIZE) == Some(at), "page {page} was not found");
            if page == PAGES {
                break;
            }
        }
    });
}

/// Fails if the file is cut before bytes that are in use again, or keeps bytes that nobody has asked for again.
#[test]
fn the_file_is_as_long_at_close_as_was_asked_for_last() {
    for (shorter, longer, at_close) in [(16, 32, 32), (16, 8, 16), (16, 64, 64), (16, 80, 80)] {
        let pool = pool();
        pool.media.release_from(shorter << 20).expect("shortens");
        pool.media.ensure_len(longer << 20).expect("lengthens");
        assert_eq!(pool.media.len_at_close().expect("a length"), at_close << 20);
        let Pool { _dir, path, media } = pool;
        drop(media);
        assert_eq!(std::fs::metadata(path).expect("is there").len(), at_close << 20, "{shorter}, then {longer}");
    }
}
