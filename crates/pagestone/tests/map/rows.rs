//! The rows of the table, one test each.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagestone::Error;
use pagestone::mmap::MapOptions;

use crate::place::{FRAME, PAGE, Place, storage};

/// Fails if a mapping shows a copy, or another page.
#[test]
fn a_store_is_in_the_file_and_a_write_is_in_the_mapping() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; 20_000], 0).unwrap();
        let map = file.map(0..20_000, &MapOptions::shared()).unwrap();
        let mut buf = [0; 3];
        map.read(19_997, &mut buf).unwrap();
        assert_eq!(buf, [7; 3]);
        map.write(4090, b"across two pages").unwrap();
        let mut got = [0; 16];
        file.read_at(&mut got, 4090).unwrap();
        assert_eq!(&got, b"across two pages");
        file.write_all_at(b"from outside", 10_000).unwrap();
        assert_eq!(map.slice(10_000..10_012).unwrap().to_vec().unwrap(), b"from outside");
        assert!(matches!(map.read(19_999, &mut buf), Err(Error::Invalid(_))));
    });
}

/// Fails if the unaligned start of a mapping, or its unaligned end, is rounded away.
#[test]
fn any_offset_and_length_can_be_mapped_many_times_at_once() {
    Place::each(|place| {
        let file = place.file("a");
        let bytes: Vec<u8> = (0..50_000u32).map(|i| (i * 7 % 251) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let maps: Vec<_> = (0..100u64)
            .map(|i| {
                let (start, len) = (i * 397, 1 + i * 97);
                let end = (start + len).min(50_000);
                (start..end, file.map(start..end, &MapOptions::read_only()).unwrap())
            })
            .collect();
        for (range, map) in &maps {
            assert_eq!(map.len(), range.end - range.start);
            let want = &bytes[range.start as usize..range.end as usize];
            assert_eq!(map.slice(0..map.len()).unwrap().to_vec().unwrap(), want);
            assert!(matches!(map.write(0, b"x"), Err(Error::ReadOnly)));
        }
    });
}

/// Fails if reading a hole takes a page, or if it shows anything but zeros.
#[test]
fn holes_read_as_zeros_and_take_no_storage() {
    Place::each(|place| {
        let file = place.sparse("a", 64 << 20);
        file.write_all_at(b"island", 30 << 20).unwrap();
        let before = storage(&file);
        for options in [MapOptions::read_only(), MapOptions::shared(), MapOptions::private()] {
            let map = file.map(0..64 << 20, &options).unwrap();
            for page in 0..(64 << 20) / PAGE {
                let want = if page == (30 << 20) / PAGE { u64::from_le_bytes(*b"island\0\0") } else { 0 };
                assert_eq!(map.load::<u64>(page * PAGE).unwrap(), want, "page {page}");
            }
        }
        assert_eq!(storage(&file), before);
    });
}

/// Fails if a store to a hole lands in anonymous memory, or only in the mapping that made it.
#[test]
fn a_store_to_a_hole_takes_storage_that_every_mapping_and_reader_sees() {
    Place::each(|place| {
        let file = place.sparse("a", 64 << 20);
        let maps: Vec<_> = (0..3).map(|_| file.map(0..64 << 20, &MapOptions::shared()).unwrap()).collect();
        let reader = file.map(0..64 << 20, &MapOptions::read_only()).unwrap();
        let at = (20 << 20) + 5000;
        assert_eq!(reader.load::<u8>(at).unwrap(), 0);
        assert_eq!(maps[1].load::<u8>(at).unwrap(), 0);
        maps[0].write(at, b"hello").unwrap();
        for map in maps.iter().chain([&reader]) {
            assert_eq!(map.slice(at..at + 5).unwrap().to_vec().unwrap(), b"hello");
        }
        maps[1].write(at, b"J").unwrap();
        let mut buf = [0; 7];
        file.read_at(&mut buf, at - 1).unwrap();
        assert_eq!(&buf, b"\0Jello\0");
        assert!((1..=16).contains(&storage(&file)), "{}", storage(&file));
        // A write through the file is seen by mappings that showed the hole.
        assert_eq!(reader.load::<u64>(40 << 20).unwrap(), 0);
        file.write_all_at(&9u64.to_le_bytes(), 40 << 20).unwrap();
        assert!(maps.iter().chain([&reader]).all(|map| map.load::<u64>(40 << 20).unwrap() == 9));
    });
}

/// Fails if storage is taken page by page for a program that goes through a hole.
#[test]
fn going_through_a_hole_with_stores_takes_whole_frames_in_the_end() {
    Place::each(|place| {
        let file = place.sparse("a", 32 << 20);
        let map = file.map(0..32 << 20, &MapOptions::shared()).unwrap();
        for page in 0..(32 << 20) / PAGE {
            map.store(page * PAGE, page + 1).unwrap();
        }
        let extents = file.extents(..32 << 20).unwrap();
        assert!(extents.len() < 24, "{}", extents.len());
        let whole = extents.iter().filter(|x| x.len >= FRAME && x.pool % FRAME == x.offset % FRAME).count();
        assert!(whole > 0, "{extents:?}");
        let mut buf = [0; 8];
        for page in 0..(32 << 20) / PAGE {
            file.read_at(&mut buf, page * PAGE).unwrap();
            assert_eq!(u64::from_le_bytes(buf), page + 1);
        }
    });
}

/// Fails if a store to a private mapping reaches the file.
#[test]
fn private_stores_never_reach_the_file() {
    Place::each(|place| {
        let file = place.sparse("a", 1 << 20);
        file.write_all_at(&[1; 4096], 0).unwrap();
        let before = storage(&file);
        let map = file.map(0..1 << 20, &MapOptions::private()).unwrap();
        map.fill(0..1 << 20, 9).unwrap();
        assert_eq!(map.load::<u8>(4096).unwrap(), 9);
        let mut buf = vec![0; 8192];
        file.read_at(&mut buf, 0).unwrap();
        assert!(buf[..4096].iter().all(|&b| b == 1) && buf[4096..].iter().all(|&b| b == 0));
        assert_eq!(storage(&file), before);
    });
}

/// Fails if bytes behind the end of the file are shown, or survive growth.
#[test]
fn the_last_page_ends_in_zeros_and_growth_zeroes_what_was_stored_there() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&[5; 9000], 0).unwrap();
        file.set_len(6000).unwrap();
        let map = file.map(0..1 << 20, &MapOptions::shared()).unwrap();
        assert_eq!(map.load::<u8>(5999).unwrap(), 5);
        assert!(map.slice(6000..8192).unwrap().to_vec().unwrap().iter().all(|&b| b == 0));
        map.fill(6000..8192, 3).unwrap();
        assert_eq!(map.load::<u8>(8191).unwrap(), 3, "kept in the page");
        assert_eq!(file.attr().unwrap().size, 6000);
        let mut byte = [0];
        assert!(matches!(map.read(8192, &mut byte), Err(Error::BeyondEnd(8192))));
        assert!(matches!(map.write(8192, &byte), Err(Error::BeyondEnd(_))));
        file.set_len(20_000).unwrap();
        assert!(map.slice(6000..20_000).unwrap().to_vec().unwrap().iter().all(|&b| b == 0));
        map.write(19_999, b"!").unwrap();
        file.read_at(&mut byte, 19_999).unwrap();
        assert_eq!(&byte, b"!");
        file.append(b"more").unwrap();
        assert_eq!(map.slice(20_000..20_004).unwrap().to_vec().unwrap(), b"more");
        // A truncate within the last page zeroes what follows.
        file.set_len(19_990).unwrap();
        assert_eq!(map.load::<u8>(19_999).unwrap(), 0);
    });
}

/// Fails if the kernel's own store to a hole fails, or is lost.
#[test]
fn the_kernel_reads_and_writes_through_a_mapping_holes_included() {
    Place::each(|place| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("source");
        let bytes: Vec<u8> = (0..1 << 20).map(|i| (i / 4096 % 251) as u8 + 1).collect();
        fs::write(&path, &bytes).unwrap();
        let file = place.sparse("a", 8 << 20);
        let map = file.map(0..8 << 20, &MapOptions::shared()).unwrap();
        for (at, direct) in [(0u64, false), (4 << 20, true)] {
            let flags = if direct { libc::O_DIRECT } else { 0 };
            let source = fs::File::options().read(true).custom_flags(flags).open(&path).unwrap();
            // SAFETY: the target is the mapping, to which no reference exists.
            let n = unsafe {
                libc::pread(source.as_raw_fd(), map.as_mut_ptr().unwrap().add(at as usize).cast(), 1 << 20, 0)
            };
            assert_eq!(n, 1 << 20, "{}", std::io::Error::last_os_error());
            let mut got = vec![0; 1 << 20];
            file.read_at(&mut got, at).unwrap();
            assert!(got == bytes, "direct: {direct}");
        }
        let mut out = tempfile::tempfile().unwrap();
        // SAFETY: as above.
        let n = unsafe { libc::write(out.as_raw_fd(), map.as_mut_ptr().unwrap().cast(), 2 << 20) };
        assert_eq!(n, 2 << 20);
        let mut got = Vec::new();
        out.seek(SeekFrom::Start(0)).unwrap();
        out.read_to_end(&mut got).unwrap();
        assert!(got[..1 << 20] == bytes[..] && got[1 << 20..].iter().all(|&b| b == 0));
        let (mut a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        a.write_all(b"from a socket").unwrap();
        // SAFETY: as above.
        let n = unsafe { libc::recv(b.as_raw_fd(), map.as_mut_ptr().unwrap().add(7 << 20).cast(), 13, 0) };
        assert_eq!(n, 13);
        assert_eq!(map.slice(7 << 20..(7 << 20) + 13).unwrap().to_vec().unwrap(), b"from a socket");
    });
}

/// Fails if an access under a file's lock touches a mapping (it would wait for itself).
#[test]
fn reads_and_writes_take_buffers_that_are_mappings_of_the_same_file() {
    Place::each(|place| {
        let file = place.sparse("a", 16 << 20);
        let map = file.map(0..16 << 20, &MapOptions::shared()).unwrap();
        file.write_all_at(&[4; 3 << 20], 0).unwrap();
        // SAFETY: nobody else touches these bytes during the call; a test of the library's inside.
        let buf = unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().unwrap().add(8 << 20), 3 << 20) };
        assert_eq!(file.read_at(buf, 0).unwrap(), 3 << 20);
        assert_eq!(map.load::<u8>((11 << 20) - 1).unwrap(), 4);
        // SAFETY: as above; this part of the file is a hole.
        let hole = unsafe { std::slice::from_raw_parts(map.as_mut_ptr().unwrap().add(14 << 20), 1 << 20) };
        file.write_all_at(hole, 1 << 20).unwrap();
        assert_eq!(map.load::<u8>((2 << 20) - 1).unwrap(), 0);
        assert_eq!(file.append(hole).unwrap(), 16 << 20);
    });
}

/// Fails if two threads that meet in one hole get two pages, or an increment is lost.
#[test]
fn threads_that_store_to_the_same_holes_lose_nothing() {
    Place::each(|place| {
        let file = place.sparse("a", 4 << 20);
        let maps: Vec<_> = (0..4).map(|_| file.map(0..4 << 20, &MapOptions::shared()).unwrap()).collect();
        let rounds = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for map in &maps {
                scope.spawn(|| {
                    for page in 0..1024u64 {
                        let mut seen = map.load::<u64>(page * PAGE).unwrap();
                        while let Err(other) = map.compare_exchange(page * PAGE, seen, seen + 1).unwrap() {
                            seen = other;
                        }
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(rounds.into_inner(), 4096);
        let mut word = [0; 8];
        for page in 0..1024 {
            file.read_at(&mut word, page * PAGE).unwrap();
            assert_eq!(u64::from_le_bytes(word), 4, "page {page}");
        }
    });
}

/// Fails if a full pool makes a store silently vanish, or the page unreadable for good.
#[test]
fn a_store_to_a_hole_of_a_full_pool_is_an_error_and_the_hole_stays() {
    Place::each(|place| {
        let file = place.sparse("a", 4 << 20);
        let map = file.map(0..4 << 20, &MapOptions::shared()).unwrap();
        let big = place.file("big");
        let chunk = vec![1; 1 << 20];
        while big.append(&chunk).is_ok() {}
        while big.append(&chunk[..4096]).is_ok() {}
        assert!(matches!(map.write(1 << 20, b"x"), Err(Error::NoSpace)));
        assert_eq!(map.load::<u8>(1 << 20).unwrap(), 0);
        big.set_len(0).unwrap();
        map.write(1 << 20, b"x").unwrap();
        assert_eq!(map.load::<u8>(1 << 20).unwrap(), b'x');
    });
}

/// Fails if a store through a mapping changes a clone, if a page that was mapped before the clone
/// was made can still be stored to, or if a clone's mapping shows the origin's later bytes.
#[test]
fn a_store_to_a_borrowed_page_is_the_files_own_and_the_clone_keeps_its_bytes() {
    Place::each(|place| {
        let root = place.pool.root();
        let file = place.file("a");
        file.write_all_at(&[1; 6 << 20], 0).unwrap();
        file.set_len((6 << 20) - 100).unwrap();
        let shared = file.map(0..8 << 20, &MapOptions::shared()).unwrap();
        let seen = file.map(0..8 << 20, &MapOptions::read_only()).unwrap();
        let private = file.map(0..8 << 20, &MapOptions::private()).unwrap();
        shared.store::<u8>(5000, 2).unwrap();
        private.store::<u8>(9000, 7).unwrap();
        let clone = root.clone_file(b"clone", file.ino()).unwrap();
        let clone = place.pool.node(clone.ino).unwrap().open().unwrap();
        shared.store::<u8>(5000, 3).unwrap();
        shared.store::<u8>(3 << 20, 4).unwrap();
        let of_clone = clone.map(0..6 << 20, &MapOptions::shared()).unwrap();
        assert_eq!(of_clone.load::<u8>(5000).unwrap(), 2);
        assert_eq!(of_clone.load::<u8>(3 << 20).unwrap(), 1);
        of_clone.store::<u8>(5000, 9).unwrap();
        assert_eq!((seen.load::<u8>(5000).unwrap(), seen.load::<u8>(3 << 20).unwrap()), (3, 4));
        let mut byte = [0];
        clone.read_at(&mut byte, 5000).unwrap();
        assert_eq!(byte, [9]);
        file.read_at(&mut byte, 5000).unwrap();
        assert_eq!(byte, [3]);
        // The end lies in a borrowed page.
        clone.set_len(4_000_000).unwrap();
        assert_eq!(of_clone.load::<u8>(4_000_000).unwrap(), 0);
        assert_eq!(of_clone.load::<u8>(3_999_999).unwrap(), 1);
        assert_eq!(seen.load::<u8>(4_000_000).unwrap(), 1);
        // With the clone gone, pages of the base that nobody sees are given back; a private mapping
        // keeps what it shows.
        drop((of_clone, clone));
        root.unlink(b"clone").unwrap();
        place.pool.sync().unwrap();
        place.file("b").write_all_at(&[9; 8 << 20], 0).unwrap();
        assert_eq!(private.load::<u8>(9000).unwrap(), 7);
        assert!([1, 2, 3].contains(&private.load::<u8>(5000).unwrap()));
        assert!([1, 4].contains(&private.load::<u8>(3 << 20).unwrap()));
        assert_eq!((shared.load::<u8>(5000).unwrap(), shared.load::<u8>(3 << 20).unwrap()), (3, 4));
    });
}

/// Fails if a file of many pieces takes more kernel mappings than a process may have, or if what
/// was taken down for others is not there at the next touch.
#[test]
fn files_in_more_pieces_than_the_kernel_has_mappings_for_are_mapped_all_the_same() {
    let place = Place::tmpfs();
    Place::with(place, |place| {
        let file = place.file("a");
        let pages = (90 << 20) / PAGE;
        file.write_all_at(&vec![1; 90 << 20], 0).unwrap();
        (0..pages / 2).for_each(|i| file.punch_hole(i * 2 * PAGE..i * 2 * PAGE + PAGE).unwrap());
        let kernel_mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        let mut maps = Vec::new();
        let mut most = 0;
        while maps.len() * pages as usize <= limit + limit / 4 {
            let map = file.map(0..90 << 20, &MapOptions::read_only()).unwrap();
            for page in 0..pages {
                assert_eq!(u64::from(map.load::<u8>(page * PAGE).unwrap()), page % 2, "page {page}");
            }
            maps.push(map);
            // Other tests of this process have mappings too.
            assert!(kernel_mappings() < limit);
            let own = |map: &pagestone::mmap::Mapping| map.report().unwrap().kernel_mappings as usize;
            // What is too much is taken down beside, by threads that may have to wait for a processor.
            let (begun, mut there) = (Instant::now(), usize::MAX);
            while there >= limit * 3 / 4 && begun.elapsed() < Duration::from_secs(20) {
                there = maps.iter().map(own).sum();
                std::thread::sleep(Duration::from_millis(10));
            }
            most = most.max(there);
        }
        println!("{} mappings of {pages} pieces; at most {most} kernel mappings of {limit}", maps.len());
        assert!(most < limit * 3 / 4, "{most} of {limit}");
        assert!(maps.iter().all(|map| (0..200).all(|page| map.load::<u8>(page * PAGE).unwrap() == (page % 2) as u8)));
    });
}
