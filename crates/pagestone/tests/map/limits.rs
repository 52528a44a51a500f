//! What a mapping costs, and what is left of it where the kernel does not help.

use std::time::Instant;

use pagestone::Error;
use pagestone::mmap::{MapMechanism, MapOptions};
use procfs::process::Process;

use crate::place::{FRAME, PAGE, Place, storage};

fn page_tables() -> u64 {
    Process::myself().unwrap().status().unwrap().vmpte.unwrap() << 10
}

/// Fails if reading takes storage, or memory that grows with what was read. Every page is read with
/// PAGESTONE_MAP_SECONDS set, else one in each 2 MiB.
#[test]
fn a_sparse_tebibyte_is_read_through_in_a_few_megabytes() {
    let whole = std::env::var_os("PAGESTONE_MAP_SECONDS").is_some();
    let place = Place::tmpfs();
    Place::with(place, |place| {
        let file = place.sparse("a", 1 << 40);
        let (before, begun) = (page_tables(), Instant::now());
        let map = file.map(0..1 << 40, &MapOptions::shared()).unwrap();
        let made = begun.elapsed();
        let step = if whole { PAGE } else { FRAME };
        let (mut most, mut sum) = (0, 0);
        for at in (0..1 << 40).step_by(step as usize) {
            sum += map.load::<u64>(at).unwrap();
            if at.is_multiple_of(8 << 30) {
                most = most.max(page_tables().saturating_sub(before));
            }
        }
        println!(
            "mapped in {made:?}, read every {step} bytes in {:?}; page tables {} KiB at most; {} pages of storage",
            begun.elapsed(),
            most >> 10,
            storage(&file)
        );
        assert_eq!((sum, storage(&file)), (0, 0));
        // Other tests of this process have page tables too.
        assert!(most < 256 << 20, "{most}");
    });
}

/// Fails if anything but a raw pointer and the kernel needs userfaultfd.
#[test]
fn without_userfaultfd_loads_and_stores_work_and_the_kernel_after_populate() {
    Place::each(|place| {
        let file = place.sparse("a", 32 << 20);
        file.write_all_at(&[1; 8192], 1 << 20).unwrap();
        let options = MapOptions::shared().mechanism(MapMechanism::Signals);
        let map = file.map(0..64 << 20, &options).unwrap();
        let other = file.map(0..64 << 20, &MapOptions::shared()).unwrap();
        assert_eq!(map.mechanism(), MapMechanism::Signals);
        assert_eq!((map.load::<u8>(0).unwrap(), map.load::<u8>(1 << 20).unwrap()), (0, 1));
        let before = storage(&file);
        assert!((0..8192).all(|page| map.load::<u8>(page * PAGE).is_ok()));
        assert_eq!(storage(&file), before);
        map.store::<u8>(20 << 20, 3).unwrap();
        assert_eq!(other.load::<u8>(20 << 20).unwrap(), 3);
        other.store::<u8>(24 << 20, 4).unwrap();
        assert_eq!(map.load::<u8>(24 << 20).unwrap(), 4);
        let version = std::fs::File::open("/proc/version").unwrap();
        let kernel = |at: usize| {
            // SAFETY: the target is the mapping, to which no reference exists.
            unsafe {
                libc::read(std::os::fd::AsRawFd::as_raw_fd(&version), map.as_mut_ptr().unwrap().add(at).cast(), 5)
            }
        };
        assert_eq!((kernel(8 << 20), std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
        map.populate(8 << 20..9 << 20).unwrap();
        assert_eq!(kernel(8 << 20), 5);
        assert!(matches!(map.load::<u8>(40 << 20), Err(Error::BeyondEnd(_))));
        file.set_len(64 << 20).unwrap();
        map.store::<u8>(40 << 20, 5).unwrap();
        file.punch_hole(0..32 << 20).unwrap();
        assert!(matches!(map.load::<u8>(20 << 20), Err(Error::Revoked(_))));
        map.refresh(0..64 << 20).unwrap();
        assert_eq!((map.load::<u8>(20 << 20).unwrap(), map.load::<u8>(40 << 20).unwrap()), (0, 5));
    });
}

/// Fails if a mapping goes on showing pages that an atomic write has replaced.
#[test]
fn an_atomic_write_is_seen_by_every_mapping() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&vec![1; 16 << 20], 0).unwrap();
        let maps = [MapOptions::shared(), MapOptions::read_only()].map(|how| file.map(0..32 << 20, &how).unwrap());
        let private = file.map(0..32 << 20, &MapOptions::private()).unwrap();
        let long = vec![2; 12 << 20];
        file.write_atomic(&[(5000, &[3; 3]), (20_000, &[4; 9000])]).unwrap();
        file.write_atomic(&[(2 << 20, &long), (16 << 20, &[5; 100])]).unwrap();
        place.pool.sync().unwrap();
        place.file("b").write_all_at(&vec![9; 16 << 20], 0).unwrap();
        for map in &maps {
            let at = |at: u64| map.load::<u8>(at).unwrap();
            assert_eq!([at(4999), at(5001), at(5003), at(28_999), at(29_000)], [1, 3, 1, 4, 1]);
            assert_eq!([at((2 << 20) - 1), at(3 << 20), at((14 << 20) - 1), at(14 << 20)], [1, 2, 2, 1]);
            assert_eq!([at(16 << 20), at((16 << 20) + 100)], [5, 0]);
        }
        maps[0].store::<u8>(3 << 20, 7).unwrap();
        maps[0].store::<u8>(15 << 20, 8).unwrap();
        assert_eq!((maps[1].load::<u8>(3 << 20).unwrap(), maps[1].load::<u8>(15 << 20).unwrap()), (7, 8));
        let mut byte = [0];
        file.read_at(&mut byte, 15 << 20).unwrap();
        assert_eq!(byte, [8]);
        assert!([1, 2, 7].contains(&private.load::<u8>(3 << 20).unwrap()), "never another file's");
    });
}

/// Fails if a private mapping pins what it shows once more with each clone of its file.
#[test]
fn a_private_mapping_pins_what_it_shows_once_however_often_its_file_is_cloned() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        let map = file.map(0..1 << 20, &MapOptions::private()).unwrap();
        map.read(0, &mut vec![0; 1 << 20]).unwrap();
        let root = place.pool.root();
        let clone = |name: &str| assert!(root.clone_file(name.as_bytes(), file.ino()).is_ok());
        let held = || place.pool.info().unwrap().dram_bytes;
        clone("first");
        let first = held();
        for n in 0..50 {
            clone(&format!("clone {n}"));
        }
        assert!(held() < first + 100_000, "{} bytes, and {first} after the first clone", held());
        drop(map);
        assert!(held() < first, "the pins are gone");
    });
}
