//! Pages that go away under a mapping: an error that can be handled, never another file's bytes.

use pagestone::Error;
use pagestone::mmap::MapOptions;

use crate::place::{FRAME, PAGE, Place};

/// Fails if a truncated page still answers, or answers with what its page became.
#[test]
fn a_truncated_page_is_an_error_until_the_file_has_grown_over_it_again() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let map = file.map(0..1 << 20, &MapOptions::shared()).unwrap();
        assert_eq!(map.load::<u8>((1 << 20) - 1).unwrap(), 7);
        file.set_len(10_000).unwrap();
        // Whoever gets the pages writes to them.
        place.pool.sync().unwrap();
        place.file("b").write_all_at(&[9; 4 << 20], 0).unwrap();
        assert_eq!(map.load::<u8>(9_999).unwrap(), 7);
        assert_eq!(map.load::<u8>(10_000).unwrap(), 0);
        for at in [12_288, 100_000, (1 << 20) - 1] {
            assert!(matches!(map.load::<u8>(at), Err(Error::Revoked(_))), "{at}");
            assert!(matches!(map.store::<u8>(at, 1), Err(Error::Revoked(_))), "{at}");
        }
        file.set_len(1 << 20).unwrap();
        assert!(map.slice(10_000..1 << 20).unwrap().to_vec().unwrap().iter().all(|&b| b == 0));
        map.store::<u8>(100_000, 1).unwrap();
    });
}

/// Fails if a punched page reads as zeros unasked, or never again.
#[test]
fn a_punched_page_is_an_error_until_it_is_refreshed() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let map = file.map(0..1 << 20, &MapOptions::shared()).unwrap();
        file.punch_hole(100_000..100_000 + 100_000).unwrap();
        let (first, last) = (100_000u64.div_ceil(PAGE) * PAGE, 200_000 / PAGE * PAGE);
        assert_eq!(map.load::<u8>(99_999).unwrap(), 7);
        assert_eq!(map.load::<u8>(100_000).unwrap(), 0, "a part of a page is zeroed in place");
        assert!(matches!(map.load::<u8>(first), Err(Error::Revoked(at)) if at == first));
        assert!(matches!(map.load::<u8>(last - 1), Err(Error::Revoked(_))));
        assert_eq!(map.load::<u8>(last).unwrap(), 0);
        // Another mapping shows the file as it is.
        let other = file.map(0..1 << 20, &MapOptions::shared()).unwrap();
        assert_eq!(other.load::<u8>(first).unwrap(), 0);
        other.store::<u8>(first, 5).unwrap();
        assert!(matches!(map.load::<u8>(first), Err(Error::Revoked(_))));
        map.refresh(0..1 << 20).unwrap();
        assert_eq!(map.load::<u8>(first).unwrap(), 5);
        assert_eq!(map.load::<u8>(first + PAGE).unwrap(), 0);
    });
}

/// Fails if the kernel is given a page that was taken away.
#[test]
fn the_kernel_gets_efault_where_a_page_was_taken_away() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let map = file.map(0..1 << 20, &MapOptions::shared()).unwrap();
        file.punch_hole(0..1 << 20).unwrap();
        let zeros = std::fs::File::open("/dev/zero").unwrap();
        // SAFETY: the target is the mapping, to which no reference exists.
        let n = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&zeros), map.as_mut_ptr().unwrap().cast(), 4096) };
        assert_eq!((n, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
    });
}

/// Fails if a file goes with its last name while it is mapped.
#[test]
fn a_mapped_file_that_is_replaced_or_unlinked_keeps_its_bytes() {
    Place::each(|place| {
        let root = place.pool.root();
        let file = place.file("a");
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        place.file("b").write_all_at(&[8; 1 << 20], 0).unwrap();
        let map = file.map(0..2 << 20, &MapOptions::shared()).unwrap();
        file.set_len(2 << 20).unwrap();
        drop(file);
        root.rename(b"b", root.ino(), b"a", pagestone::inode::RenameMode::Replace).unwrap();
        place.pool.sync().unwrap();
        place.file("c").write_all_at(&[9; 4 << 20], 0).unwrap();
        assert!(map.slice(0..1 << 20).unwrap().to_vec().unwrap().iter().all(|&b| b == 7));
        map.write((1 << 20) + 5, b"still a file").unwrap();
        assert_eq!(map.slice((1 << 20) + 5..(1 << 20) + 17).unwrap().to_vec().unwrap(), b"still a file");
        let used = place.pool.statfs().free;
        drop(map);
        // A child that another test made meanwhile has it too, as long as it lives.
        let begun = std::time::Instant::now();
        while place.pool.statfs().free <= used + 200 {
            assert!(begun.elapsed().as_secs() < 120, "given back with the mapping");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
}

/// Fails if a page under I/O becomes another file's, or the table of its own frame.
#[test]
fn a_pinned_page_is_not_reused_until_the_pin_is_gone() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; 8 << 20], 0).unwrap();
        let map = file.map(0..8 << 20, &MapOptions::shared()).unwrap();
        // One page in each frame; the first is where the frame's table would lie.
        let pins: Vec<_> = (0..4).map(|i| map.pin(i * FRAME..i * FRAME + PAGE).unwrap()).collect();
        let pinned: Vec<u64> = (0..4).map(|i| file.extents(i * FRAME..i * FRAME + PAGE).unwrap()[0].pool).collect();
        file.punch_hole(0..(8 << 20) - PAGE).unwrap();
        drop(map);
        let taken_up = |name: &str| {
            place.pool.sync().unwrap();
            let other = place.file(name);
            while other.append(&[9; 1 << 20]).is_ok() {}
            while other.append(&[9; 4096]).is_ok() {}
            let all = other.extents(..).unwrap();
            place.pool.root().unlink(name.as_bytes()).unwrap();
            pinned.iter().filter(|&p| all.iter().any(|x| (x.pool..x.pool + x.len).contains(p))).count()
        };
        assert_eq!(taken_up("b"), 0, "{pinned:x?}");
        let mut bytes = vec![0; 4096];
        if let Some(memory) = &place.memory {
            for &page in &pinned {
                assert!(memory.bytes().read(page, &mut bytes));
                assert!(bytes.iter().all(|&b| b == 7), "nor stored to");
            }
        }
        drop(pins);
        // What freed pages wait for is a checkpoint.
        assert!(taken_up("c") > 0, "and is reused afterwards");
    });
}

/// Fails if a table is stored over a page under I/O, or if the refusal leaves the mapping cut.
#[test]
fn a_part_of_a_frame_that_is_all_pinned_is_not_given_back() {
    Place::each(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; 8 << 20], 0).unwrap();
        let map = file.map(0..8 << 20, &MapOptions::shared()).unwrap();
        let whole = map.pin(6 << 20..(6 << 20) + 8192).unwrap();
        assert!(matches!(file.punch_hole(6 << 20..(6 << 20) + 8192), Err(Error::Pinned)));
        assert_eq!(map.load::<u8>(6 << 20).unwrap(), 7, "as before");
        drop(whole);
        file.punch_hole(6 << 20..(6 << 20) + 8192).unwrap();
        assert!(matches!(map.load::<u8>(6 << 20), Err(Error::Revoked(_))));
    });
}
