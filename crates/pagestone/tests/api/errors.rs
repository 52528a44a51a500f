//! Errors: the kind and the number that `std` has for them.

use std::io::{self, ErrorKind};

use pagestone::{CreateOptions, Error, OpenOptions, Place, Pool};

use crate::pool;

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
        (Error::corrupt(Place::Superblock, "what"), ErrorKind::InvalidData),
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
