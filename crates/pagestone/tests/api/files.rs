//! Files: cursor, append, truncate, `create_new`, ranges, `FileExt`.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use pagestone::mmap::MapOptions;
use pagestone::{Error, PAGE_SIZE, Piece};

use crate::pool;

#[test]
fn read_write_and_seek_move_one_cursor() {
    let pool = pool();
    let mut file = pool.create_file("/f").unwrap();
    file.write_all(b"one\ntwo\nthree").unwrap();
    assert_eq!(file.stream_position().unwrap(), 13);
    assert_eq!(file.seek(SeekFrom::Start(4)).unwrap(), 4);
    let mut word = [0; 3];
    file.read_exact(&mut word).unwrap();
    assert_eq!((&word, file.stream_position().unwrap()), (b"two", 7));
    assert_eq!(file.seek(SeekFrom::End(-5)).unwrap(), 8);
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "three");
    assert_eq!(file.read(&mut word).unwrap(), 0, "the end of the file");
    assert_eq!(file.seek(SeekFrom::Current(-13)).unwrap(), 0);
    // At an offset: the cursor stays.
    file.write_all_at(b"ONE", 0).unwrap();
    assert_eq!(file.stream_position().unwrap(), 0);
    let lines: Vec<String> = BufReader::new(&file).lines().map(Result::unwrap).collect();
    assert_eq!(lines, ["ONE", "two", "three"]);
}

#[test]
fn a_seek_to_where_no_file_can_reach_is_refused_and_moves_nothing() {
    let pool = pool();
    let mut file = pool.create_file("/f").unwrap();
    file.write_all(b"abc").unwrap();
    for to in [SeekFrom::Current(-4), SeekFrom::End(-4), SeekFrom::Start(u64::MAX), SeekFrom::Start(1 << 63)] {
        assert_eq!(file.seek(to).unwrap_err().kind(), ErrorKind::InvalidInput, "{to:?}");
        assert_eq!(file.stream_position().unwrap(), 3);
    }
    file.seek(SeekFrom::Start(100)).unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 101, "a write behind the end leaves a hole");
}

#[test]
fn a_clone_of_a_file_has_a_cursor_of_its_own_that_starts_at_the_same_place() {
    let pool = pool();
    let mut file = pool.create_file("/f").unwrap();
    file.write_all(b"abcdef").unwrap();
    file.seek(SeekFrom::Start(2)).unwrap();
    let mut clone = file.clone();
    let mut two = [0; 2];
    clone.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"cd");
    file.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"cd");
}

#[test]
fn two_threads_that_write_through_one_cursor_do_not_overwrite_each_other() {
    let pool = pool();
    let file = pool.create_file("/f").unwrap();
    std::thread::scope(|scope| {
        for byte in [b'a', b'b'] {
            let file = &file;
            scope.spawn(move || (0..500).for_each(|_| (&mut &*file).write_all(&[byte; 7]).unwrap()));
        }
    });
    let bytes = pool.read("/f").unwrap();
    assert_eq!(bytes.len(), 7000);
    assert!(bytes.chunks(7).all(|chunk| chunk.iter().all(|&b| b == chunk[0])), "a record is torn");
    assert_eq!(bytes.iter().filter(|&&b| b == b'a').count(), 3500);
}

#[test]
fn a_file_opened_for_appending_writes_at_the_end_wherever_its_cursor_is() {
    let pool = pool();
    pool.write("/log", "one").unwrap();
    let mut log = pool.file_options().read(true).append(true).open("/log").unwrap();
    pool.open_file("/log").unwrap().append(b" two").unwrap();
    log.seek(SeekFrom::Start(0)).unwrap();
    log.write_all(b" three").unwrap();
    assert_eq!(log.stream_position().unwrap(), 13, "behind what was written");
    assert_eq!(pool.read("/log").unwrap(), b"one two three");
    assert!(matches!(log.write_at(b"x", 0), Err(Error::NotOpenFor(_))));
    let made = pool.file_options().append(true).create(true).open("/new").unwrap();
    made.append(b"x").unwrap();
    assert!(matches!(made.read_at(&mut [0], 0), Err(Error::NotOpenFor("reading"))));
}

#[test]
fn a_file_does_what_it_was_opened_for_and_nothing_else() {
    let pool = pool();
    pool.write("/f", "abc").unwrap();
    let reader = pool.file_options().read(true).open("/f").unwrap();
    let refused: [&dyn Fn() -> Result<(), Error>; 9] = [
        &|| reader.write_all_at(b"x", 0),
        &|| reader.append(b"x").map(drop),
        &|| reader.set_len(0),
        &|| reader.allocate(0..10),
        &|| reader.punch_hole(0..10),
        &|| reader.zero_range(0..10),
        &|| reader.write_atomic(&[(0, b"x")]),
        &|| reader.map(0..10, &MapOptions::shared()).map(drop),
        &|| reader.map_atomic(0..10).map(drop),
    ];
    for (i, call) in refused.iter().enumerate() {
        let error = call().unwrap_err();
        assert!(matches!(error, Error::NotOpenFor(_)), "call {i}: {error}");
        assert_eq!(error.errno(), libc::EBADF);
    }
    assert_eq!((&reader).write(b"x").unwrap_err().kind(), ErrorKind::PermissionDenied);
    reader.map(0..3, &MapOptions::private()).unwrap().store(0, b'x').unwrap();
    let writer = pool.file_options().write(true).open("/f").unwrap();
    assert!(matches!(writer.read_at(&mut [0], 0), Err(Error::NotOpenFor("reading"))));
    assert!(matches!(writer.pieces(0..3), Err(Error::NotOpenFor("reading"))));
    writer.write_all_at(b"X", 0).unwrap();
    assert_eq!(pool.read("/f").unwrap(), b"Xbc");
}

#[test]
fn options_make_truncate_and_refuse_as_in_std() {
    let pool = pool();
    let options = || pool.file_options();
    assert!(matches!(options().read(true).open("/f"), Err(Error::NotFound)));
    for wrong in [
        options(),
        options().read(true).create(true),
        options().read(true).create_new(true),
        options().read(true).truncate(true),
        options().append(true).truncate(true),
    ] {
        assert!(matches!(wrong.open("/f"), Err(Error::Invalid(_))), "{wrong:?}");
    }
    let file = options().write(true).create_new(true).mode(0o640).owner(5, 6).open("/f").unwrap();
    let made = file.metadata().unwrap();
    assert_eq!((made.permissions(), made.uid(), made.gid(), made.mode()), (0o640, 5, 6, libc::S_IFREG | 0o640));
    file.write_all_at(b"contents", 0).unwrap();
    assert!(matches!(options().write(true).create_new(true).open("/f"), Err(Error::Exists)));
    options().write(true).create(true).open("/f").unwrap();
    assert_eq!(pool.read("/f").unwrap(), b"contents", "create alone keeps what is there");
    options().write(true).truncate(true).open("/f").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    pool.create_dir("/d").unwrap();
    assert!(matches!(options().read(true).open("/d"), Err(Error::IsDirectory)));
    assert!(matches!(options().write(true).create(true).open("/new/"), Err(Error::IsDirectory)));
    assert!(matches!(pool.open_file("/f/x"), Err(Error::NotDirectory)));
    assert!(matches!(pool.open_file("/f/"), Err(Error::NotDirectory)));
    assert!(matches!(pool.open_file(""), Err(Error::NotFound)));
}

#[test]
fn many_threads_that_make_one_file_make_it_once() {
    let pool = pool();
    for round in 0..50 {
        let path = format!("/{round}");
        let made = std::thread::scope(|scope| {
            let one = || pool.file_options().write(true).create_new(true).open(&path).is_ok();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|t| u32::from(t.join().unwrap())).sum::<u32>()
        });
        assert_eq!(made, 1);
    }
}

#[test]
fn a_file_is_what_functions_over_file_ext_take() {
    fn swap_ends(file: &impl FileExt) -> io::Result<()> {
        let (mut a, mut b) = ([0], [0]);
        file.read_exact_at(&mut a, 0)?;
        file.read_exact_at(&mut b, 4)?;
        file.write_all_at(&b, 0)?;
        file.write_all_at(&a, 4)
    }
    let pool = pool();
    pool.write("/f", "abcde").unwrap();
    let file = pool.open_file("/f").unwrap();
    swap_ends(&file).unwrap();
    assert_eq!(pool.read("/f").unwrap(), b"ebcda");
    file.set_len(3).unwrap();
    assert_eq!(swap_ends(&file).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(matches!(file.read_exact_at(&mut [0; 4], 0), Err(Error::BeyondEnd(3))));
    assert_eq!(file.write_at(b"xyz", 10).unwrap(), 3);
    assert_eq!(file.read_at(&mut [0; 100], 0).unwrap(), 13);
}

#[test]
fn ranges_are_bytes_from_and_to() {
    let pool = pool();
    let file = pool.create_file("/f").unwrap();
    file.write_all_at(&[1; 10 * PAGE_SIZE as usize], 0).unwrap();
    file.punch_hole(2 * PAGE_SIZE..4 * PAGE_SIZE).unwrap();
    assert_eq!(file.seek_hole(0).unwrap(), 2 * PAGE_SIZE);
    assert_eq!(file.seek_data(2 * PAGE_SIZE).unwrap(), 4 * PAGE_SIZE);
    let stored = |found: Vec<pagestone::Extent>| found.iter().map(|x| x.len).sum::<u64>();
    assert_eq!(stored(file.extents(..).unwrap()), 8 * PAGE_SIZE);
    assert_eq!(stored(file.extents(PAGE_SIZE..5 * PAGE_SIZE).unwrap()), 2 * PAGE_SIZE);
    assert_eq!(stored(file.extents(9 * PAGE_SIZE..=u64::MAX).unwrap()), PAGE_SIZE);
    file.allocate_keep_size(0..20 * PAGE_SIZE).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10 * PAGE_SIZE);
    file.allocate(0..20 * PAGE_SIZE).unwrap();
    assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().pages()), (20 * PAGE_SIZE, 20));
    file.zero_range(0..PAGE_SIZE).unwrap();
    let pieces = file.pieces(0..PAGE_SIZE + 5).unwrap();
    assert_eq!(pieces.iter().map(Piece::len).sum::<usize>(), PAGE_SIZE as usize + 5);
    drop(pieces);
    assert!(matches!(file.punch_hole(5..5), Err(Error::Invalid(_))));
    assert!(matches!(file.allocate(0..u64::MAX), Err(Error::FileTooLarge)));
}

#[test]
fn a_clone_of_a_file_shares_its_storage_and_not_its_future() {
    let pool = pool();
    pool.write("/a", [7; 100_000]).unwrap();
    pool.set_permissions("/a", 0o600).unwrap();
    pool.clone_file("/a", "/b").unwrap();
    let (a, b) = (pool.open_file("/a").unwrap(), pool.open_file("/b").unwrap());
    assert_eq!(b.metadata().unwrap().shared_pages(), 25);
    assert_eq!(b.metadata().unwrap().permissions(), 0o600);
    assert_eq!(a.count_differing_bytes(&b).unwrap(), 0);
    b.write_all_at(&[8], 0).unwrap();
    assert_eq!((pool.read("/a").unwrap()[0], pool.read("/b").unwrap()[0]), (7, 8));
    assert!(matches!(pool.clone_file("/a", "/b"), Err(Error::Exists)));
    pool.create_dir("/tree").unwrap();
    pool.write("/tree/x", "x").unwrap();
    assert_eq!(pool.clone_tree("/tree", "/copy").unwrap().files, 1);
    assert_eq!(pool.read("/copy/x").unwrap(), b"x");
    assert!(matches!(pool.clone_tree("/tree", "/tree/in"), Err(Error::Invalid(_))));
    let c = pool.create_file("/c").unwrap();
    c.clone_from_file(&a).unwrap();
    assert_eq!(c.count_differing_bytes(&a).unwrap(), 0);
    let other = crate::pool();
    other.write("/x", "x").unwrap();
    let foreign = other.open_file("/x").unwrap();
    let empty = pool.create_file("/d").unwrap();
    assert!(matches!(empty.clone_from_file(&foreign), Err(Error::Invalid(_))), "inode numbers are of one pool");
    assert!(matches!(empty.count_differing_bytes(&foreign), Err(Error::Invalid(_))));
}

#[test]
fn only_a_mapping_with_stores_has_a_pointer_for_them() {
    let pool = pool();
    let file = pool.create_file("/f").unwrap();
    file.set_len(PAGE_SIZE).unwrap();
    let read_only = file.map(0..PAGE_SIZE, &MapOptions::read_only()).unwrap();
    assert!(matches!(read_only.as_mut_ptr(), Err(Error::ReadOnly)));
    assert!(!read_only.as_ptr().is_null());
    let shared = file.map(0..PAGE_SIZE, &MapOptions::shared()).unwrap();
    shared.store::<u64>(0, 5).unwrap();
    // SAFETY: the word has storage now, is aligned, and nobody stores to it.
    assert_eq!(unsafe { read_only.as_ptr().cast::<u64>().read_volatile() }, 5);
    assert_eq!(shared.as_mut_ptr().unwrap().cast_const(), shared.as_ptr());
    assert_eq!(shared.file().ino(), file.ino());
}

#[test]
fn a_volatile_slice_copies_bytes_in_and_out_and_its_faults_are_errors() {
    let pool = pool();
    let file = pool.create_file("/f").unwrap();
    file.set_len(3 * PAGE_SIZE).unwrap();
    let map = file.map(100..2 * PAGE_SIZE, &MapOptions::shared()).unwrap();
    let all = map.as_volatile_slice();
    assert_eq!((all.len(), all.is_empty()), (2 * PAGE_SIZE - 100, false));
    // Across the end of a page.
    let part = all.subslice(PAGE_SIZE - 102..PAGE_SIZE - 97).unwrap();
    part.copy_from(b"bytes").unwrap();
    let mut buf = [0; 5];
    part.copy_to(&mut buf).unwrap();
    assert_eq!(&buf, b"bytes");
    file.read_exact_at(&mut buf, PAGE_SIZE - 2).unwrap();
    assert_eq!(&buf, b"bytes");
    assert_eq!(part.subslice(1..3).unwrap().to_vec().unwrap(), b"yt");
    assert!(matches!(part.copy_from(b"byte"), Err(Error::Invalid(_))), "another length");
    assert!(matches!(part.copy_to(&mut [0; 6]), Err(Error::Invalid(_))), "another length");
    #[expect(clippy::reversed_empty_ranges, reason = "the test is about one")]
    let outside = [4..6, 6..6, 3..2, u64::MAX..u64::MAX];
    for range in outside {
        assert!(matches!(part.subslice(range.clone()), Err(Error::Invalid(_))), "{range:?}");
    }
    let read_only = file.map(0..PAGE_SIZE, &MapOptions::read_only()).unwrap();
    assert!(matches!(read_only.slice(0..5).unwrap().copy_from(b"bytes"), Err(Error::ReadOnly)));
    file.set_len(0).unwrap();
    assert!(matches!(part.copy_to(&mut buf), Err(Error::Revoked(_) | Error::BeyondEnd(_))));
}
