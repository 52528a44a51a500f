//! Threads that never wait for each other, each with an order of its own that every snapshot must keep.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use pagestone::mmap::MapOptions;
use pagestone::{File, Pool};

use crate::{EndsThreads, each_media, time};

fn number(pool: &Pool, path: &str) -> u64 {
    let bytes = pool.read(path).unwrap();
    bytes.get(..8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

fn put(file: &File, at: u64, value: u64) {
    file.write_all_at(&value.to_le_bytes(), at).unwrap();
}

/// Fails if a snapshot has a later step without an earlier one: of one thread in two files, of two threads of which the
/// second has seen what the first did, in place, through a mapping, by name.
#[test]
fn a_snapshot_has_no_step_without_those_before_it() {
    each_media(256 << 20, |media, pool| {
        // So much that a snapshot takes a while, and what is changed lies at its beginning and at its end.
        for i in 0..400 {
            pool.create_dir_all(format!("/d{:02}", i % 20)).unwrap();
            pool.write(format!("/d{:02}/f{i}", i % 20), [i as u8; 5000]).unwrap();
        }
        ["/z", "/m"].iter().for_each(|dir| pool.create_dir(dir).unwrap());
        let files = ["/a", "/b", "/c", "/z/mapped", "/m/last"].map(|path| {
            let file = pool.create_file(path).unwrap();
            file.write_all_at(&[0; 8192], 0).unwrap();
            file
        });
        pool.create_dir("/n0").unwrap();
        let map = files[3].map(0..8192, &MapOptions::shared()).unwrap();
        let (end, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut snapshots = 0;
        std::thread::scope(|threads| {
            // One step: a, then the mapping, then b in place, then the name of a directory.
            threads.spawn(|| {
                let mut i = 0;
                while !end.load(Ordering::Relaxed) {
                    i += 1;
                    put(&files[0], 0, i);
                    map.store::<u64>(4096, i).unwrap();
                    put(&files[1], 0, i);
                    pool.rename(format!("/n{}", i - 1), format!("/n{i}")).unwrap();
                    seen.store(i, Ordering::SeqCst);
                }
            });
            // Another thread sees that, and writes it down.
            threads.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let i = seen.load(Ordering::SeqCst);
                    put(&files[2], 0, i);
                    files[4].set_len(0).unwrap();
                    put(&files[4], 0, i);
                }
            });
            let _ends = EndsThreads(&end);
            let begun = Instant::now();
            while begun.elapsed() < time() || snapshots < 3 {
                let name = format!("s{snapshots}");
                pool.snapshots().create(&name).unwrap();
                snapshots += 1;
                let top = format!("/.snapshots/{name}");
                let value = |file: &str| number(pool, &format!("{top}/{file}"));
                let (a, b, c, last) = (value("a"), value("b"), value("c"), value("m/last"));
                let mapped = pool.read(format!("{top}/z/mapped")).unwrap()[4096..4104].try_into().unwrap();
                let mapped = u64::from_le_bytes(mapped);
                let names: Vec<u64> = pool
                    .read_dir(&top)
                    .unwrap()
                    .filter_map(|e| e.unwrap().file_name().to_str()?.strip_prefix('n')?.parse().ok())
                    .collect();
                let all =
                    format!("{media}, {name}: a {a}, mapped {mapped}, b {b}, names {names:?}, c {c}, last {last}");
                let [n] = names[..] else { panic!("{all}") };
                assert!(a >= mapped && mapped >= b && b >= n && n + 1 >= a, "{all}");
                assert!(n >= c && n >= last, "{all}");
                if snapshots % 3 == 0 {
                    pool.snapshots().delete(format!("s{}", snapshots - 2)).unwrap();
                }
            }
        });
        println!("{media}: {snapshots} snapshots beside {} steps", seen.load(Ordering::SeqCst));
        assert!(seen.load(Ordering::SeqCst) > 10, "{media}");
    });
}

fn path(i: u64) -> String {
    format!("/d{}/f{i}", i / 1000)
}

/// Fails if a snapshot ends never, or its pause gets long, because others change files faster than it copies them.
#[test]
fn a_snapshot_ends_beside_threads_that_change_everything_all_the_time() {
    let count = crate::files();
    each_media((256 << 20) + count * 20_000, |media, pool| {
        for i in 0..count {
            if i % 1000 == 0 {
                pool.create_dir(format!("/d{}", i / 1000)).unwrap();
            }
            pool.write(path(i), [1; 100]).unwrap();
        }
        let end = AtomicBool::new(false);
        let steps = AtomicU64::new(0);
        std::thread::scope(|threads| {
            for t in 0..2 {
                let (end, steps) = (&end, &steps);
                threads.spawn(move || {
                    let files: Vec<File> = (0..count / 2).map(|i| pool.open_file(path(i * 2 + t)).unwrap()).collect();
                    while !end.load(Ordering::Relaxed) {
                        for file in &files {
                            file.append(&[2; 100]).unwrap();
                            file.set_len(100).unwrap();
                        }
                        steps.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let _ends = EndsThreads(&end);
            while steps.load(Ordering::Relaxed) < 2 {
                std::thread::yield_now();
            }
            let begun = Instant::now();
            for i in 0..5 {
                let this = Instant::now();
                let made = pool.snapshots().create(format!("s{i}")).unwrap();
                println!("{media}: {made:?} after {:?}", begun.elapsed());
                // Most of the work is done while others go on.
                assert!(u128::from(made.pause_ns) * 4 < this.elapsed().as_nanos(), "{media}: {made:?}");
                assert_eq!(made.files, count);
                pool.snapshots().delete(format!("s{i}")).unwrap();
            }
            assert!(begun.elapsed().as_secs() < 60 + count / 100, "{media}");
        });
    });
}
