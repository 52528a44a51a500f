//! Close: it closes, or says `Busy`.

use std::sync::Arc;

use pagestone::check::{CheckOptions, check, check_on};
use pagestone::mmap::MapOptions;
use pagestone::{CreateOptions, Error, OpenOptions, Pool};
use pmem::Memory;

#[test]
fn close_is_busy_while_anything_of_the_pool_is_held_and_nothing_is_closed_then() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(16 << 20)).unwrap();
    pool.create_dir("/d").unwrap();
    pool.write("/f", [1; 5000]).unwrap();
    let map = || pool.open_file("/f").unwrap().map(0..5000, &MapOptions::shared()).unwrap();
    type Hold<'p> = Box<dyn Fn() -> Box<dyn std::any::Any> + 'p>;
    let held: Vec<(&str, Hold<'_>)> = vec![
        ("clone", Box::new(|| Box::new(pool.clone()))),
        ("file", Box::new(|| Box::new(pool.open_file("/f").unwrap()))),
        ("directory", Box::new(|| Box::new(pool.root()))),
        ("node", Box::new(|| Box::new(pool.root().node()))),
        ("listing", Box::new(|| Box::new(pool.read_dir("/").unwrap()))),
        ("entry", Box::new(|| Box::new(pool.read_dir("/").unwrap().next().unwrap().unwrap()))),
        ("snapshots", Box::new(|| Box::new(pool.snapshots()))),
        ("mapping", Box::new(|| Box::new(map()))),
        ("pin", Box::new(|| Box::new(map().pin(0..5000).unwrap()))),
    ];
    for (what, hold) in &held {
        let held = hold();
        assert!(matches!(pool.clone().close(), Err(Error::Busy)), "{what}");
        assert!(matches!(Pool::open(&path, &OpenOptions::new()), Err(Error::InUse { .. })), "{what}");
        pool.write("/still", what).unwrap();
        drop(held);
    }
    drop(held);
    let file = pool.open_file("/f").unwrap();
    assert!(matches!(pool.close(), Err(Error::Busy)));
    file.write_all_at(b"goes on", 0).unwrap();
    file.sync_all().unwrap();
    assert!(matches!(Pool::open(&path, &OpenOptions::new()), Err(Error::InUse { .. })), "the file keeps it open");
    drop(file);
    let pool = Pool::open(&path, &OpenOptions::new()).unwrap();
    assert_eq!(&pool.read("/f").unwrap()[..7], b"goes on");
}

#[test]
fn close_releases_the_pool_and_leaves_nothing_to_replay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(16 << 20)).unwrap();
    for round in 0..20 {
        let file = pool.create_file(format!("/{round}")).unwrap();
        file.write_all_at(&[round; 9000], 0).unwrap();
        let map = file.map(0..9000, &MapOptions::shared()).unwrap();
        map.store(0, round + 1).unwrap();
    }
    pool.close().unwrap();
    // Nobody waits: it is free as soon as `close` has returned.
    let pool = Pool::open(&path, &OpenOptions::new()).unwrap();
    assert_eq!(pool.info().unwrap().replayed, 0);
    for round in 0..20 {
        let bytes = pool.read(format!("/{round}")).unwrap();
        assert!(bytes[0] == round + 1 && bytes[1..] == [round; 8999]);
    }
    pool.close().unwrap();
    assert!(check(&path, &CheckOptions::new(), &mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn of_two_clones_that_are_closed_at_once_exactly_one_closes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    Pool::create(&path, &CreateOptions::new().size(16 << 20)).unwrap().close().unwrap();
    for _ in 0..20 {
        let pool = Pool::open(&path, &OpenOptions::new()).unwrap();
        let clone = pool.clone();
        let (a, b) = std::thread::scope(|scope| {
            let (a, b) = (scope.spawn(|| clone.close()), scope.spawn(|| pool.close()));
            (a.join().unwrap(), b.join().unwrap())
        });
        assert!(matches!((&a, &b), (Ok(()), Err(Error::Busy)) | (Err(Error::Busy), Ok(()))), "{a:?} {b:?}");
    }
}

#[test]
fn a_checkpoint_empties_the_journal_of_a_pool_that_stays_open() {
    let memory = Arc::new(Memory::new(32 << 20).unwrap());
    let pool = Pool::create_on(memory.clone(), &CreateOptions::new()).unwrap();
    let file = pool.create_file("/f").unwrap();
    pool.checkpoint().unwrap();
    // As after a kill: nothing is dropped before the next open.
    let again = Pool::open_on(memory.clone(), &OpenOptions::new()).unwrap();
    assert_eq!(again.info().unwrap().replayed, 0);
    assert!(again.exists("/f").unwrap());
    drop(again);
    std::mem::forget((file, pool));
    assert!(check_on(memory, &CheckOptions::new(), &mut |_, _| {}).unwrap().is_clean());
}
