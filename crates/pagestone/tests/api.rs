//! The interface that programs see behaves as `std::fs` does, and says so where it does not.
//!
//! ```text
//!   files    cursor, append, truncate, create_new, FileExt      names   links, loops, `..`, removal while listing
//!   errors   io::ErrorKind and errno                            close   closes, or says Busy
//! ```

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pagestone::check::{CheckOptions, check, check_on};
use pagestone::mmap::MapOptions;
use pagestone::{CreateOptions, Error, FileType, OpenOptions, PAGE_SIZE, Piece, Pool};
use pmem::Memory;

fn pool() -> Pool {
    Pool::create_on(Arc::new(Memory::new(32 << 20).unwrap()), &CreateOptions::new()).unwrap()
}

// ---- files -----------------------------------------------------------------------------------

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
    let other = self::pool();
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

// ---- names -----------------------------------------------------------------------------------

#[test]
fn paths_lead_through_links_and_dots_as_the_system_does() {
    let pool = pool();
    pool.create_dir_all("/a/b/c").unwrap();
    pool.write("/a/file", "found").unwrap();
    pool.symlink("../file", "/a/b/up").unwrap();
    pool.symlink("/a/b", "/absolute").unwrap();
    pool.symlink("b/c/../up", "/a/chain").unwrap();
    for path in [
        "/a/file",
        "a/file",
        "//a//./file",
        "/a/b/../file",
        "/../../a/file",
        "/a/b/up",
        "/absolute/up",
        "/absolute/../file",
        "/a/chain",
        "/a/b/c/../../file",
        "./a/file",
    ] {
        assert_eq!(pool.read(path).unwrap(), b"found", "{path}");
    }
    assert!(pool.metadata("/").unwrap().is_dir());
    assert!(pool.metadata("/absolute").unwrap().is_dir());
    assert!(pool.symlink_metadata("/absolute").unwrap().is_symlink());
    assert!(pool.symlink_metadata("/absolute/").unwrap().is_dir(), "a slash means the directory behind it");
    assert_eq!(pool.read_link("/absolute").unwrap().to_str(), Some("/a/b"));
    assert!(matches!(pool.read_link("/a/file"), Err(Error::Invalid(_))));
    assert!(matches!(pool.metadata("/a/file/.."), Err(Error::NotDirectory)));
    assert!(matches!(pool.metadata("/none/../a"), Err(Error::NotFound)));
    assert!(matches!(pool.metadata("x".repeat(256)), Err(Error::NameTooLong)));
    assert!(pool.exists("/absolute/up").unwrap() && !pool.exists("/a/none").unwrap());
    assert!(!pool.exists("/a/file/x").unwrap());
}

#[test]
fn a_loop_of_links_is_an_error_and_forty_links_are_none() {
    let pool = pool();
    pool.symlink("two", "/one").unwrap();
    pool.symlink("one", "/two").unwrap();
    pool.symlink("self/x", "/self").unwrap();
    for path in ["/one", "/one/x", "/self"] {
        let error = pool.open_file(path).unwrap_err();
        assert!(matches!(error, Error::LinkLoop), "{path}: {error}");
        assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::ELOOP));
    }
    assert!(matches!(pool.file_options().write(true).create(true).open("/one"), Err(Error::LinkLoop)));
    assert!(matches!(pool.exists("/one"), Err(Error::LinkLoop)));
    assert!(pool.symlink_metadata("/one").unwrap().is_symlink());
    pool.write("/0", "end").unwrap();
    (1..=41).for_each(|n| pool.symlink(format!("{}", n - 1), format!("/{n}")).unwrap());
    assert_eq!(pool.read("/40").unwrap(), b"end");
    assert!(matches!(pool.read("/41"), Err(Error::LinkLoop)));
}

#[test]
fn a_link_that_leads_nowhere_is_made_through_and_not_with_create_new() {
    let pool = pool();
    pool.create_dir("/d").unwrap();
    pool.symlink("d/target", "/link").unwrap();
    assert!(matches!(pool.open_file("/link"), Err(Error::NotFound)));
    let options = pool.file_options().write(true);
    assert!(matches!(options.clone().create_new(true).open("/link"), Err(Error::Exists)));
    options.create(true).open("/link").unwrap().append(b"x").unwrap();
    assert_eq!(pool.read("/d/target").unwrap(), b"x");
    assert!(matches!(pool.create_dir("/link"), Err(Error::Exists)));
    pool.remove_file("/link").unwrap();
    assert!(pool.exists("/d/target").unwrap(), "the link goes, not what it leads to");
}

#[test]
fn names_come_move_and_go() {
    let pool = pool();
    pool.create_dir_all("/x/y/z").unwrap();
    pool.create_dir_all("/x/y/z").unwrap();
    pool.create_dir_all("/").unwrap();
    assert!(matches!(pool.create_dir("/x"), Err(Error::Exists)));
    assert!(matches!(pool.create_dir("/"), Err(Error::Exists)));
    assert!(matches!(pool.create_dir("/none/x"), Err(Error::NotFound)));
    pool.create_dir("/slash/").unwrap();
    pool.write("/f", "f").unwrap();
    assert!(matches!(pool.create_dir_all("/f/x"), Err(Error::NotDirectory)));
    assert!(matches!(pool.create_dir_all("/f"), Err(Error::Exists)));
    pool.hard_link("/f", "/x/g").unwrap();
    assert_eq!(pool.metadata("/f").unwrap().nlink(), 2);
    assert_eq!(pool.metadata("/f").unwrap().ino(), pool.metadata("/x/g").unwrap().ino());
    assert!(matches!(pool.hard_link("/x", "/dir"), Err(Error::IsDirectory)));
    assert!(matches!(pool.hard_link("/f", "/x/g"), Err(Error::Exists)));
    pool.rename("/f", "/x/y/h").unwrap();
    assert!(!pool.exists("/f").unwrap());
    assert!(matches!(pool.rename("/x", "/x/y/in"), Err(Error::Invalid(_))));
    assert!(matches!(pool.rename("/x/g", "/x/y"), Err(Error::IsDirectory)));
    assert!(matches!(pool.rename("/x/g", "/new/"), Err(Error::NotDirectory)));
    assert!(matches!(pool.rename("/none", "/new"), Err(Error::NotFound)));
    assert!(matches!(pool.remove_file("/x"), Err(Error::IsDirectory)));
    assert!(matches!(pool.remove_dir("/x"), Err(Error::NotEmpty)));
    assert!(matches!(pool.remove_dir("/x/g"), Err(Error::NotDirectory)));
    assert!(matches!(pool.remove_dir("/"), Err(Error::Invalid(_))));
    assert!(matches!(pool.remove_dir_all("/"), Err(Error::Invalid(_))));
    assert!(matches!(pool.remove_dir_all("/x/g"), Err(Error::NotDirectory)));
    pool.symlink("/x/y", "/link").unwrap();
    assert!(matches!(pool.remove_dir("/link/"), Err(Error::NotDirectory)));
    pool.remove_dir_all("/link").unwrap();
    assert!(pool.exists("/x/y/h").unwrap(), "a link is removed, and not followed");
    pool.remove_dir_all("/x").unwrap();
    pool.remove_dir("/slash").unwrap();
    assert_eq!(pool.read_dir("/").unwrap().count(), 0);
}

#[test]
fn a_directory_can_be_emptied_while_it_is_listed() {
    const FILES: usize = 1000;
    let pool = pool();
    pool.create_dir("/d").unwrap();
    (0..FILES).for_each(|n| pool.write(format!("/d/{n}"), "x").unwrap());
    let mut seen = BTreeSet::new();
    for entry in pool.read_dir("/d").unwrap() {
        let entry = entry.unwrap();
        assert_eq!((entry.file_type(), entry.metadata().unwrap().len()), (FileType::File, 1));
        assert_eq!(pool.metadata(entry.path()).unwrap().ino(), entry.ino());
        pool.remove_file(entry.path()).unwrap();
        assert!(matches!(entry.metadata(), Err(Error::NotFound)));
        assert!(seen.insert(entry.file_name().to_owned()), "listed twice");
    }
    assert_eq!(seen.len(), FILES);
    pool.remove_dir("/d").unwrap();
    assert!(matches!(pool.read_dir("/d"), Err(Error::NotFound)));
    pool.write("/f", "").unwrap();
    assert!(matches!(pool.read_dir("/f"), Err(Error::NotDirectory)));
}

#[test]
fn what_stays_is_listed_once_while_others_come_and_go() {
    let pool = pool();
    (0..300).for_each(|n| pool.write(format!("/stays-{n}"), "").unwrap());
    let (mut stays, mut round) = (0, 0);
    for entry in pool.read_dir("/").unwrap() {
        stays += u32::from(entry.unwrap().file_name().to_string_lossy().starts_with("stays"));
        pool.write(format!("/comes-{round}"), "").unwrap();
        if round % 2 == 1 {
            pool.remove_file(format!("/comes-{}", round - 1)).unwrap();
        }
        round += 1;
        assert!(round < 10_000, "a listing that its own files keep alive");
    }
    assert_eq!(stays, 300);
}

#[test]
fn a_listing_of_a_directory_that_was_removed_ends_with_an_error() {
    let pool = pool();
    pool.create_dir("/d").unwrap();
    (0..200).for_each(|n| pool.write(format!("/d/{n}"), "").unwrap());
    let mut listing = pool.read_dir("/d").unwrap();
    listing.next().unwrap().unwrap();
    pool.remove_dir_all("/d").unwrap();
    let rest: Vec<_> = listing.by_ref().collect();
    assert!(rest.last().unwrap().is_err() && rest[..rest.len() - 1].iter().all(Result::is_ok));
    assert!(listing.next().is_none());
}

#[test]
fn times_are_the_systems() {
    let pool = pool();
    let before = SystemTime::now() - Duration::from_secs(1);
    let file = pool.create_file("/f").unwrap();
    let made = file.metadata().unwrap();
    for time in [made.created(), made.modified(), made.accessed(), made.changed()] {
        assert!(time >= before && time <= SystemTime::now() + Duration::from_secs(1));
    }
    let old = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
    file.set_modified(old).unwrap();
    assert_eq!(pool.metadata("/f").unwrap().modified(), old);
}

// ---- errors ----------------------------------------------------------------------------------

#[test]
fn an_error_has_the_kind_and_the_number_that_std_would_have_given() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool();
    let there = dir.path();
    std::fs::create_dir(there.join("d")).unwrap();
    std::fs::create_dir(there.join("empty")).unwrap();
    pool.create_dir("/empty").unwrap();
    std::fs::write(there.join("d/f"), "").unwrap();
    pool.create_dir("/d").unwrap();
    pool.write("/d/f", "").unwrap();
    let create_new = |path: &str| pool.file_options().write(true).create_new(true).open(path).map(drop);
    let cases: [(io::Result<()>, Result<(), Error>); 7] = [
        (std::fs::File::open(there.join("none")).map(drop), pool.open_file("/none").map(drop)),
        (std::fs::create_dir(there.join("d")), pool.create_dir("/d")),
        (std::fs::File::create_new(there.join("d/f")).map(drop), create_new("/d/f")),
        (std::fs::remove_dir(there.join("d")), pool.remove_dir("/d")),
        (std::fs::read_dir(there.join("d/f")).map(drop), pool.read_dir("/d/f").map(drop)),
        (std::fs::rename(there.join("d/f"), there.join("empty")), pool.rename("/d/f", "/empty")),
        (std::fs::metadata(there.join("x".repeat(300))).map(drop), pool.metadata("x".repeat(300)).map(drop)),
    ];
    for (i, (std, ours)) in cases.into_iter().enumerate() {
        let (std, ours) = (std.unwrap_err(), ours.unwrap_err());
        let kind = ours.kind();
        let ours = io::Error::from(ours);
        assert_eq!((ours.kind(), ours.raw_os_error()), (std.kind(), std.raw_os_error()), "case {i}");
        assert_eq!(kind, std.kind());
    }
}

#[test]
fn an_error_that_says_more_than_its_number_is_kept_inside() {
    let error = io::Error::from(Error::DataLost(0x5000));
    assert!(error.to_string().contains("0x5000"), "{error}");
    let inside = error.get_ref().and_then(|inside| inside.downcast_ref::<Error>());
    assert!(matches!(inside, Some(Error::DataLost(0x5000))));
    for (error, kind) in [
        (Error::Invalid("why"), ErrorKind::InvalidInput),
        (Error::NotAPool("why".into()), ErrorKind::InvalidData),
        (Error::corrupt("where", "what"), ErrorKind::InvalidData),
        (Error::Busy, ErrorKind::ResourceBusy),
        (Error::NoSpace, ErrorKind::StorageFull),
        (Error::ReadOnly, ErrorKind::ReadOnlyFilesystem),
        (Error::NotSupported("it"), ErrorKind::Unsupported),
        (Error::FileTooLarge, ErrorKind::FileTooLarge),
        (Error::Media(io::Error::from_raw_os_error(libc::ENOMEM)), ErrorKind::OutOfMemory),
    ] {
        let text = error.to_string();
        assert_eq!((error.kind(), io::Error::from(error).kind()), (kind, kind), "{text}");
    }
    let media = io::Error::from(Error::Media(io::Error::from_raw_os_error(libc::ENOMEM)));
    assert_eq!(media.raw_os_error(), Some(libc::ENOMEM));
}

#[test]
fn a_pool_that_is_open_read_only_reads_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(16 << 20)).unwrap();
    pool.write("/f", "abc").unwrap();
    pool.close().unwrap();
    let pool = Pool::open(&path, &OpenOptions::new().read_only(true)).unwrap();
    assert_eq!(pool.read("/f").unwrap(), b"abc");
    let file = pool.open_file("/f").unwrap();
    assert!(matches!(file.write_all_at(b"x", 0), Err(Error::ReadOnly)));
    assert!(matches!(pool.file_options().append(true).open("/f"), Err(Error::ReadOnly)));
    assert!(matches!(pool.create_dir("/d"), Err(Error::ReadOnly)));
    drop(file);
    pool.close().unwrap();
}

// ---- close -----------------------------------------------------------------------------------

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
