//! Huge pages: where extents and addresses align, and where nothing smaller can be mapped.

use pagestone::mmap::MapOptions;
use pagestone::{Error, File};

use crate::place::{FRAME, PAGE, Place, alone, storage};

fn skipped(place: Result<Place, String>) -> Option<Place> {
    place.map_err(|why| println!("skipped: {why}")).ok()
}

fn holds(file: &File, at: u64, want: &[u8]) {
    let mut got = vec![0; want.len()];
    file.read_at(&mut got, at).unwrap();
    assert!(got == want, "at {at}");
}

/// Fails if an address is not as aligned as the file's frames, or the kernel is not asked.
#[test]
fn whole_frames_on_tmpfs_are_mapped_with_huge_pages() {
    let Some(place) = skipped(Place::huge_tmpfs()) else { return };
    Place::with(place, |place| {
        let file = place.file("a");
        file.write_all_at(&vec![3; 32 << 20], 0).unwrap();
        // Mapped from the middle of a frame on.
        let map = file.map(PAGE * 5..32 << 20, &MapOptions::shared()).unwrap();
        let mut sum = 0u64;
        for page in 0..map.len() / PAGE {
            sum += u64::from(map.load::<u8>(page * PAGE).unwrap());
        }
        assert_eq!(sum, 3 * (map.len() / PAGE));
        let report = map.report().unwrap();
        println!("{report:?}, huge share {:.3}", report.huge_share());
        assert!(report.huge_share() > 0.8, "{report:?}");
        // Stores to a hole end in whole frames too, when a program goes through it.
        file.set_len(64 << 20).unwrap();
        let map = file.map(0..64 << 20, &MapOptions::shared()).unwrap();
        map.fill(32 << 20..64 << 20, 9).unwrap();
        assert_eq!(map.load::<u8>((64 << 20) - 1).unwrap(), 9);
    });
}

/// Fails if a chunk of single pages cannot be mapped, or changes when it moves into one frame.
#[test]
fn on_hugetlbfs_a_chunk_moves_into_one_frame_and_every_byte_with_it() {
    let Some(place) = skipped(Place::hugetlbfs()) else { return };
    Place::with(place, |place| {
        let (file, other) = (place.file("a"), place.file("b"));
        // In pieces: two files that grow by turns.
        for i in 0..600u64 {
            file.write_all_at(&[(i % 251) as u8 + 1; 5000], i * 3 * PAGE).unwrap();
            other.append(&[7; 4096]).unwrap();
        }
        let len = file.attr().unwrap().size;
        let mut want = vec![0; len as usize];
        file.read_at(&mut want, 0).unwrap();
        let map = file.map(100..len, &MapOptions::shared()).unwrap();
        let again = file.map(0..FRAME, &MapOptions::read_only()).unwrap();
        assert!(map.slice(0..len - 100).unwrap().to_vec().unwrap() == want[100..]);
        map.write(PAGE * 2 - 100, b"a hole of the chunk").unwrap();
        holds(&file, PAGE * 2, b"a hole of the chunk");
        assert_eq!(again.slice(PAGE * 2..PAGE * 2 + 6).unwrap().to_vec().unwrap(), b"a hole");
        holds(&other, 599 * PAGE, &[7; 4096]);
        let report = map.report().unwrap();
        println!("{report:?}");
        assert!(report.huge_share() > 0.99, "{report:?}");
    });
}

/// Fails on any row of the table that 2 MiB pages make different.
#[test]
fn on_hugetlbfs_holes_stores_growth_and_cuts_hold_by_chunks() {
    let Some(place) = skipped(Place::hugetlbfs()) else { return };
    Place::with(place, |place| {
        let file = place.sparse("a", 32 << 20);
        let map = file.map(0..64 << 20, &MapOptions::shared()).unwrap();
        let reader = file.map(0..64 << 20, &MapOptions::read_only()).unwrap();
        for frame in 0..16 {
            assert_eq!(map.load::<u8>(frame * FRAME + 5).unwrap() + reader.load::<u8>(frame * FRAME).unwrap(), 0);
        }
        assert_eq!(storage(&file), 0);
        map.store::<u8>(5 * FRAME + 77, 1).unwrap();
        assert_eq!((reader.load::<u8>(5 * FRAME + 77).unwrap(), storage(&file)), (1, 512));
        file.write_all_at(b"outside", 7 * FRAME + 5000).unwrap();
        assert_eq!(reader.slice(7 * FRAME + 5000..7 * FRAME + 5007).unwrap().to_vec().unwrap(), b"outside");
        assert!(matches!(map.load::<u8>(32 << 20), Err(Error::BeyondEnd(_))));
        file.set_len((32 << 20) + 10).unwrap();
        map.store::<u8>(32 << 20, 3).unwrap();
        holds(&file, 32 << 20, &[3]);
        // A part of a chunk is punched: the chunk is an error until it is refreshed.
        file.punch_hole(5 * FRAME..5 * FRAME + PAGE).unwrap();
        assert!(matches!(map.load::<u8>(5 * FRAME + 8192), Err(Error::Revoked(_))));
        map.refresh(0..map.len()).unwrap();
        assert_eq!((map.load::<u8>(5 * FRAME + 77).unwrap(), map.load::<u8>(5 * FRAME).unwrap()), (0, 0));
        file.set_len(7 * FRAME + 5003).unwrap();
        map.refresh(0..map.len()).unwrap();
        assert_eq!(map.slice(7 * FRAME + 5000..7 * FRAME + 5007).unwrap().to_vec().unwrap(), b"out\0\0\0\0");
        assert!(matches!(map.load::<u8>(8 * FRAME), Err(Error::BeyondEnd(_))));
        file.write_all_at(&[8; 8192], 0).unwrap();
        let zero = std::fs::File::open("/dev/zero").unwrap();
        // SAFETY: the target is the mapping, to which no reference exists.
        let n = unsafe {
            libc::read(std::os::fd::AsRawFd::as_raw_fd(&zero), map.as_mut_ptr().unwrap().add(100).cast(), 4096)
        };
        assert_eq!((n, map.load::<u8>(99).unwrap(), map.load::<u8>(100).unwrap()), (4096, 8, 0));
    });
}

/// Fails if the machine's lack of huge pages is told as anything else, or costs stores that had succeeded.
#[test]
fn without_a_huge_page_left_a_private_store_is_out_of_memory_and_nothing_else_changes() {
    alone(|| {
        let Some(place) = skipped(Place::hugetlbfs()) else { return };
        Place::with(place, |place| {
            let file = place.file("a");
            file.write_all_at(&vec![1; 20 * FRAME as usize], 0).unwrap();
            let shown = file.map(0..20 * FRAME, &MapOptions::private()).unwrap();
            assert_eq!((shown.load::<u8>(PAGE).unwrap(), shown.load::<u8>(FRAME).unwrap()), (1, 1));
            let maps: Vec<_> = (0..20).map(|_| file.map_atomic(0..20 * FRAME).unwrap()).collect();
            let mut stores = maps.iter().flat_map(|map| (0..20).map(move |n| (map, n * FRAME)));
            let mut done = Vec::new();
            let error = loop {
                let Some((map, at)) = stores.next() else {
                    return println!("skipped: this machine has huge pages to spare");
                };
                match map.store::<u8>(at + 100, 2) {
                    Ok(()) => done.push((map, at)),
                    Err(e) => break e,
                }
            };
            assert_eq!(error.errno(), libc::ENOMEM, "after {} stores: {error}", done.len());
            for (map, at) in done {
                assert_eq!((map.load::<u8>(at + 100).unwrap(), map.load::<u8>(at).unwrap()), (2, 1));
            }
            let mut bytes = vec![0; 20 * FRAME as usize];
            file.read_at(&mut bytes, 0).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 1));
            file.map(0..FRAME, &MapOptions::shared()).unwrap().store::<u8>(7, 3).unwrap();
            holds(&file, 7, &[3]);
            // What a private mapping shows is replaced, and there is no memory to keep it: never others' bytes.
            file.write_atomic(&[(PAGE, &[4; PAGE as usize])]).unwrap();
            place.pool.sync().unwrap();
            let other = place.file("b");
            while other.append(&vec![5; 1 << 20]).is_ok() {}
            while other.append(&[5; PAGE as usize]).is_ok() {}
            let now = shown.load::<u8>(PAGE);
            assert!(matches!(now, Ok(1 | 4) | Err(Error::Revoked(_))), "{now:?}");
            assert_eq!(shown.load::<u8>(FRAME).unwrap(), 1, "what is not replaced stays");
            drop(maps);
            other.set_len(0).unwrap();
            place.pool.sync().unwrap();
            shown.refresh(0..FRAME).unwrap();
            assert_eq!(shown.load::<u8>(PAGE).unwrap(), 4);
        });
    });
}
