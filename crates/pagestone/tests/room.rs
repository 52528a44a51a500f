//! Grows and shrinks that are refused: for want of address space, and beside another one.
//!
//! ```text
//!   |..file..|..address space set aside..|   a grow beyond it: refused, the file as long as before
//! ```

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::ops::ControlFlow;

use pagestone::check::{CheckOptions, check};
use pagestone::{CreateOptions, Error, OpenOptions, Pool};

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
        let report = check(&path, &CheckOptions::default(), &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

/// Fails, or does not end, if a lock is held while `progress` is called.
#[test]
fn a_pool_that_shrinks_can_be_used_by_its_callback_but_not_resized() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let pool = Pool::create(dir.path().join("pool"), &CreateOptions::new().size(64 * MIB)).unwrap();
    pool.create_file("/ballast").unwrap().write_all_at(&vec![1; 30 << 20], 0).unwrap();
    pool.create_file("/moved").unwrap().write_all_at(&vec![2; 10 << 20], 0).unwrap();
    pool.remove_file("/ballast").unwrap();
    let mut calls = 0;
    pool.shrink(24 * MIB, &mut |_, _| {
        calls += 1;
        assert!(matches!(pool.grow(128 * MIB), Err(Error::Busy)));
        assert!(matches!(pool.shrink(16 * MIB, &mut |_, _| ControlFlow::Continue(())), Err(Error::Busy)));
        pool.create_file(format!("/{calls}")).unwrap().write_all_at(&[3; 10], 0).unwrap();
        pool.sync().unwrap();
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(calls > 0);
    assert!(pool.read("/moved").unwrap() == vec![2; 10 << 20] && pool.read("/1").unwrap() == [3; 10]);
    pool.grow(64 * MIB).unwrap();
}
