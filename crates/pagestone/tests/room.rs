//! Grows and shrinks that are refused: for want of address space, on a full filesystem, and beside another one.
//!
//! ```text
//!   |..file..|..address space set aside..|   a grow beyond it: refused, the file as long as before
//! ```

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use pagestone::check::{CheckOptions, check};
use pagestone::{CreateOptions, Error, OpenOptions, Pool};
use pmem::MediaKind;

mod common;

use common::Mounted;

const MIB: u64 = 1 << 20;

/// Fails if a file that cannot be mapped as far as asked stays longer, or is cut off below the pool's size.
#[test]
fn a_pool_that_cannot_grow_leaves_its_file_as_long_as_it_was() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let contents: Vec<u8> = (0..20 << 20).map(|i: u32| (i / 512) as u8).collect();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    for base in [dir.path(), shm.path()] {
        let path = base.join("pool");
        let pool = Pool::create(&path, &CreateOptions::new().size(64 * MIB)).unwrap();
        pool.create_file("/f").unwrap().write_all_at(&contents, 0).unwrap();
        let len = || path.metadata().unwrap().len();
        // More than the 256 GiB that are set aside for a small pool.
        assert!(matches!(pool.grow(300 << 30), Err(Error::Media(_))));
        assert_eq!((len(), pool.info().unwrap().size), (64 * MIB, 64 * MIB));
        // Also while a truncation is due.
        pool.grow(128 * MIB).unwrap();
        pool.shrink(64 * MIB, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert!(matches!(pool.grow(300 << 30), Err(Error::Media(_))));
        pool.close().unwrap();
        assert_eq!(len(), 64 * MIB);
        let pool = Pool::open(&path, &OpenOptions::new().room(300 << 30)).unwrap();
        pool.grow(300 << 30).unwrap();
        assert_eq!((len(), pool.info().unwrap().size), (300 << 30, 300 << 30));
        assert!(pool.read("/f").unwrap() == contents);
        pool.shrink(64 * MIB, &mut |_, _| ControlFlow::Continue(())).unwrap();
        pool.close().unwrap();
        assert_eq!(len(), 64 * MIB);
        clean(&path);
    }
}

fn clean(path: &Path) {
    let report = check(path, &CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Writes to a new file until its filesystem is full.
fn fill(path: &Path) {
    let mut filler = File::create(path).unwrap();
    for piece in [1 << 20, 4096] {
        let full = (0..1 << 10).find_map(|_| filler.write_all(&vec![1; piece]).err());
        assert_eq!(full.and_then(|e| e.raw_os_error()), Some(libc::ENOSPC));
    }
}

/// Fails if a grow takes storage that the filesystem does not have, or leaves the file longer.
fn does_not_grow_where_it_is_full(dir: &Path, kind: MediaKind) {
    // Descriptors of so much take a MiB.
    const LARGE: u64 = 32 << 30;
    let (path, filler) = (dir.join("pool"), dir.join("filler"));
    let contents: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 512 % 251) as u8).collect();
    let pool = Pool::create(&path, &CreateOptions::new().size(8 * MIB).media(kind)).unwrap();
    assert_eq!(pool.info().unwrap().media.kind, kind);
    pool.create_file("/f").unwrap().write_all_at(&contents, 0).unwrap();
    pool.sync().unwrap();
    fill(&filler);
    let before = pool.statfs();
    for _ in 0..2 {
        let grown = pool.grow(LARGE);
        assert!(matches!(grown, Err(Error::NoSpace)), "{grown:?}");
        assert_eq!((pool.info().unwrap().size, pool.statfs()), (8 * MIB, before));
    }
    // What has storage can be changed and read.
    pool.open_file("/f").unwrap().write_all_at(b"changed", 5000).unwrap();
    pool.sync().unwrap();
    let mut expected = contents;
    expected[5000..5007].copy_from_slice(b"changed");
    assert!(pool.read("/f").unwrap() == expected);
    pool.close().unwrap();
    assert_eq!(path.metadata().unwrap().len(), 8 * MIB);
    clean(&path);
    std::fs::remove_file(&filler).unwrap();
    let pool = Pool::open(&path, &OpenOptions::new().media(kind)).unwrap();
    assert!(pool.read("/f").unwrap() == expected);
    pool.grow(LARGE).unwrap();
    assert_eq!((pool.info().unwrap().size, path.metadata().unwrap().len()), (LARGE, LARGE));
    pool.close().unwrap();
    clean(&path);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_pool_on_a_full_filesystem_does_not_grow_and_loses_nothing() {
    let tmpfs = match Mounted::new("tmpfs", "size=24M") {
        Ok(mount) => mount,
        Err(why) => return println!("skipped: {why}"),
    };
    does_not_grow_where_it_is_full(tmpfs.path(), MediaKind::Tmpfs);
    does_not_grow_where_it_is_full(tmpfs.path(), MediaKind::File);
}

#[test]
fn a_pool_on_a_full_disk_does_not_grow_and_loses_nothing() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    match Mounted::small_ext4(&dir.path().join("image"), 24 * MIB) {
        Ok(mount) => does_not_grow_where_it_is_full(mount.path(), MediaKind::File),
        Err(why) => println!("skipped: {why}"),
    }
}

/// Fails, or does not end, if a lock is held while `progress` is called.
#[test]
fn a_pool_that_shrinks_can_be_used_by_its_callback_but_not_resized() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(64 * MIB)).unwrap();
    pool.create_file("/ballast").unwrap().write_all_at(&vec![1; 30 << 20], 0).unwrap();
    let file = pool.create_file("/moved").unwrap();
    file.write_all_at(&vec![2; 10 << 20], 0).unwrap();
    pool.remove_file("/ballast").unwrap();
    let lies = file.extents(..).unwrap();
    assert!(lies.iter().all(|x| x.pool >= 24 * MIB), "{lies:?}");
    let (mut calls, mut moved) = (0, 0);
    pool.shrink(24 * MIB, &mut |done, total| {
        calls += 1;
        assert!(moved <= done && done <= total, "{done} of {total} after {moved}");
        moved = done;
        assert!(matches!(pool.grow(128 * MIB), Err(Error::Busy)));
        assert!(matches!(pool.shrink(16 * MIB, &mut |_, _| ControlFlow::Continue(())), Err(Error::Busy)));
        pool.create_file(format!("/{calls}")).unwrap().write_all_at(&[3; 10], 0).unwrap();
        pool.sync().unwrap();
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(calls > 1 && moved >= (10 * MIB) / 4096, "{moved} pages moved in {calls} calls");
    let lies = file.extents(..).unwrap();
    assert!(lies.iter().all(|x| x.pool + x.len <= 24 * MIB), "{lies:?}");
    assert!(pool.read("/moved").unwrap() == vec![2; 10 << 20] && pool.read("/1").unwrap() == [3; 10]);
    assert_eq!(pool.info().unwrap().size, 24 * MIB);
    pool.grow(64 * MIB).unwrap();
    assert_eq!(pool.info().unwrap().size, 64 * MIB);
    drop(file);
    pool.close().unwrap();
    clean(&path);
}
