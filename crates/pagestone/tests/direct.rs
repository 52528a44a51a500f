//! Direct transfers: extents that stay while somebody reads them, and bytes that arrive without a lock.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;

use pagestone::io::{DirectFile, Purpose};
use pagestone::{CreateOptions, Error, PAGE_SIZE, Pool};

static NEVER: AtomicBool = AtomicBool::new(false);
const MIB: usize = 1 << 20;

fn check(pool: &Pool) {
    let report = pagestone::check::check_in_use(pool).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8 | 1).collect()
}

/// A pool in memory that outlives the process, and one in an ordinary file.
fn pools() -> Vec<(tempfile::TempDir, Pool)> {
    let places = [tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir().unwrap()];
    let pool = |place: &tempfile::TempDir| Pool::create(place.path().join("p"), &CreateOptions::new().size(64 << 20));
    places.into_iter().map(|place| pool(&place).map(|pool| (place, pool)).unwrap()).collect()
}

fn source(dir: &Path, bytes: &[u8]) -> (PathBuf, DirectFile) {
    let path = dir.join("source");
    fs::write(&path, bytes).unwrap();
    let file = DirectFile::open(&path, Purpose::Read).unwrap();
    (path, file)
}

#[test]
fn a_file_goes_on_with_the_bytes_of_another_and_gives_them_back() {
    for (place, pool) in pools() {
        let want = bytes(9 * MIB + 321, 1);
        let (_, from) = source(place.path(), &want);
        let file = pool.create_file("/f").unwrap();
        file.extend_from(&from, 0..4 * MIB as u64, &NEVER).unwrap();
        file.extend_from(&from, 4 * MIB as u64..want.len() as u64, &NEVER).unwrap();
        assert!(pool.read("/f").unwrap() == want);
        // It ends within a page now.
        assert!(matches!(file.extend_from(&from, 0..10, &NEVER), Err(Error::Invalid(_))));
        let to = DirectFile::open(&place.path().join("to"), Purpose::Create).unwrap();
        let extents = file.pinned_extents(0..u64::MAX).unwrap();
        assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), want.len() as u64);
        extents.write_to(&to, 0, &NEVER).unwrap();
        assert!(fs::read(place.path().join("to")).unwrap() == want);
        drop(extents);
        // What it has behind its end reads as zeros when it grows.
        file.set_len(want.len() as u64 + 9000).unwrap();
        assert!(pool.read("/f").unwrap()[want.len()..].iter().all(|b| *b == 0));
        check(&pool);
    }
}

/// The file that is read ends too early, or cannot be read: nothing has happened, and nothing is lost.
#[test]
fn a_source_that_fails_leaves_the_file_as_it_was() {
    for (place, pool) in pools() {
        let (path, from) = source(place.path(), &bytes(3 * MIB, 2));
        let file = pool.create_file("/f").unwrap();
        file.write_all_at(&bytes(8192, 3), 0).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MIB as u64).unwrap();
        let ended = file.extend_from(&from, 0..3 * MIB as u64, &NEVER);
        assert!(matches!(&ended, Err(Error::Media(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof), "{ended:?}");
        assert!(pool.read("/f").unwrap() == bytes(8192, 3));
        // What has arrived behind the end is seen by nobody, a clone and a longer file included.
        let clone = pool.create_file("/clone").unwrap();
        clone.clone_from_file(&file).unwrap();
        for (name, file) in [("/clone", &clone), ("/f", &file)] {
            file.set_len(2 * MIB as u64).unwrap();
            let seen = pool.read(name).unwrap();
            assert!(seen[..8192] == bytes(8192, 3) && seen[8192..].iter().all(|b| *b == 0), "{name}");
            file.set_len(8192).unwrap();
        }
        let stopped = file.extend_from(&from, 0..MIB as u64, &AtomicBool::new(true));
        assert!(matches!(&stopped, Err(Error::Media(e)) if e.kind() == std::io::ErrorKind::Interrupted), "{stopped:?}");
        // More than the pool has.
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100 << 20).unwrap();
        assert!(matches!(file.extend_from(&from, 0..100 << 20, &NEVER), Err(Error::NoSpace)));
        file.set_len(8192).unwrap();
        file.extend_from(&from, 0..MIB as u64, &NEVER).unwrap();
        drop(file);
        check(&pool);
        pool.remove_file("/f").unwrap();
        pool.checkpoint().unwrap();
        check(&pool);
    }
}

/// Fails if pages of a file that was removed are given to another while somebody still reads them.
#[test]
fn pinned_extents_keep_their_bytes_when_the_file_is_gone() {
    for (place, pool) in pools() {
        let want = bytes(5 * MIB, 4);
        let file = pool.create_file("/f").unwrap();
        file.write_all_at(&want, 0).unwrap();
        let extents = file.pinned_extents(0..u64::MAX).unwrap();
        drop(file);
        pool.remove_file("/f").unwrap();
        for round in 0..4 {
            pool.checkpoint().unwrap();
            let other = pool.create_file(format!("/other{round}")).unwrap();
            other.write_all_at(&bytes(12 * MIB, 100 + round), 0).unwrap();
        }
        let to = DirectFile::open(&place.path().join("to"), Purpose::Create).unwrap();
        extents.write_to(&to, 0, &NEVER).unwrap();
        assert!(fs::read(place.path().join("to")).unwrap() == want);
        drop(extents);
        pool.checkpoint().unwrap();
        check(&pool);
    }
}

/// Others write, cut and extend the same file meanwhile: each transfer happens wholly or is refused.
#[test]
fn a_file_that_is_changed_meanwhile_has_all_of_a_transfer_or_none() {
    for (place, pool) in pools() {
        let step = 256 << 10;
        let want = bytes(step, 5);
        let (_, from) = source(place.path(), &want);
        let file = pool.create_file("/f").unwrap();
        let (mut happened, mut refused) = (0, 0);
        let stop = &AtomicBool::new(false);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                let file = pool.open_file("/f").unwrap();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    file.set_len(0).unwrap();
                    file.append(&[0xEE; PAGE_SIZE as usize]).unwrap();
                    file.allocate_keep_size(0..1 << 20).unwrap();
                    thread::yield_now();
                }
            });
            for _ in 0..300 {
                match file.extend_from(&from, 0..step as u64, &NEVER) {
                    Ok(()) => happened += 1,
                    Err(Error::Busy) => refused += 1,
                    Err(e) => panic!("{e}"),
                }
                // Whatever it is now, it is made of whole transfers and of the other's pages.
                let mut seen = vec![0; 8 << 20];
                let got = file.read_at(&mut seen, 0).unwrap();
                let mut rest = &seen[..got];
                while let Some(first) = rest.first() {
                    let part = if *first == 0xEE { PAGE_SIZE as usize } else { step };
                    assert!(rest.len() >= part, "{} bytes are left", rest.len());
                    let whole =
                        if *first == 0xEE { rest[..part].iter().all(|b| *b == 0xEE) } else { rest[..part] == want };
                    assert!(whole, "a part of a transfer, {} bytes before the end", rest.len());
                    rest = &rest[part..];
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            other.join().unwrap();
        });
        println!("{happened} happened, {refused} refused");
        file.set_len(0).unwrap();
        file.extend_from(&from, 0..step as u64, &NEVER).unwrap();
        assert!(pool.read("/f").unwrap() == want);
        drop(file);
        check(&pool);
    }
}
