//! Every kind of media that this machine has, through the same contract.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

mod common;

use common::{HugePages, Mounted, run};
use pmem::{Description, Durability, Media, MediaKind, Memory, Open, Opened, Part, open};

const SIZE: u64 = 4 << 20;

fn make(path: &Path, kind: Option<MediaKind>) -> Opened {
    open(path, &Open { size: Some(SIZE), kind, ..Open::default() }).expect("opens")
}

fn tmpfs() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm")
}

fn data(media: &dyn Media, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xcc; len];
    assert!(media.views().data.read(at, &mut buf));
    buf
}

fn meta(media: &dyn Media, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xcc; len];
    assert!(media.views().meta.read(at, &mut buf));
    buf
}

/// What every kind must do, whatever it lies on.
fn contract(media: &dyn Media) {
    // Unaligned parts that follow one another, one apart, one empty, a long one of zeros.
    let long = vec![9; 300_000];
    media
        .persist(&[
            Part::Bytes { at: 4090, bytes: b"hello" },
            Part::Zero { at: 4095, len: 2 },
            Part::Bytes { at: 4097, bytes: b"world" },
            Part::Bytes { at: 9000, bytes: b"" },
            Part::Bytes { at: 1_000_001, bytes: &long },
        ])
        .expect("persists");
    assert_eq!(data(media, 4090, 12), b"hello\0\0world");
    assert_eq!(data(media, 1_000_001, 300_000), long);
    media.persist(&[Part::Zero { at: 1_000_002, len: 200_000 }]).expect("persists");
    assert_eq!(data(media, 1_000_001, 1), [9]);
    assert!(data(media, 1_000_002, 200_000).iter().all(|&b| b == 0));
    assert_eq!(data(media, 1_200_002, 1), [9]);
    media.persist(&[]).expect("nothing is fine");

    // Outside: refused, and nothing of the call is done.
    let outside = [Part::Bytes { at: 0, bytes: b"x" }, Part::Zero { at: SIZE - 1, len: 2 }];
    assert!(media.persist(&outside).is_err() || media.describe().kind == MediaKind::Memory);
    assert!(media.persist(&[Part::Zero { at: u64::MAX, len: 2 }]).is_err());

    media.store(2 << 20, b"metadata");
    assert_eq!(meta(media, 2 << 20, 8), b"metadata");
    media.flush(2 << 20, 8).expect("flushes");
    media.fence();
    media.sync().expect("syncs");
    assert_eq!(meta(media, 2 << 20, 8), b"metadata");
    assert_eq!(data(media, 2 << 20, 8), b"metadata");

    // Reserving changes no byte.
    media.reserve(0, SIZE).expect("reserves");
    media.reserve(5, 1).expect("reserves");
    assert_eq!(data(media, 4090, 5), b"hello");
}

/// The contract, then again after a reopen, then read-only.
fn whole_life(path: &Path, forced: Option<MediaKind>, kind: MediaKind) -> Description {
    let Opened { media, len, created } = make(path, forced);
    assert!(created && len == SIZE);
    let description = media.describe().clone();
    assert_eq!(description.kind, kind);
    assert!(!description.read_only && !description.promise.is_empty());
    assert_ne!(description.cache_id, [0; 16]);
    assert_eq!(fs::metadata(path).expect("is there").permissions().mode() & 0o777, 0o600);
    contract(&*media);
    drop(media);

    let opened = open(path, &Open { kind: forced, ..Open::default() }).expect("reopens");
    assert!(!opened.created && opened.len == SIZE);
    assert_eq!(data(&*opened.media, 4090, 12), b"hello\0\0world");
    assert_eq!(meta(&*opened.media, 2 << 20, 8), b"metadata");
    drop(opened);

    let how = Open { kind: forced, read_only: true, ..Open::default() };
    let opened = open(path, &how).expect("opens read-only");
    let media = &*opened.media;
    assert!(media.describe().read_only && media.describe().kind == kind);
    assert!(media.persist(&[Part::Zero { at: 4090, len: 1 }]).is_err());
    assert!(media.reserve(0, 1).is_err());
    media.store((2 << 20) - 2, b"private");
    media.flush((2 << 20) - 2, 7).expect("flushes nothing");
    media.sync().expect("syncs nothing");
    assert_eq!(meta(media, (2 << 20) - 2, 12), b"privateata\0\0");
    assert_eq!(data(media, (2 << 20) - 2, 10), b"\0\0metadata");
    drop(opened);

    let opened = open(path, &Open { kind: forced, ..Open::default() }).expect("reopens");
    assert_eq!(meta(&*opened.media, 2 << 20, 8), b"metadata");
    description
}

#[test]
fn memory() {
    contract(&Memory::new(SIZE).expect("memory"));
}

#[test]
fn tmpfs_file() {
    let dir = tmpfs();
    let about = whole_life(&dir.path().join("pool"), None, MediaKind::Tmpfs);
    assert_eq!(about.durability, Durability::AtFence);
    println!("{about:?}");
}

#[test]
fn ordinary_file() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let about = whole_life(&dir.path().join("pool"), Some(MediaKind::File), MediaKind::File);
    assert_eq!(about.durability, Durability::AtSync);
    println!("{about:?}");
}

#[test]
fn ordinary_file_on_tmpfs_by_force() {
    let dir = tmpfs();
    whole_life(&dir.path().join("pool"), Some(MediaKind::File), MediaKind::File);
}

#[test]
fn hugetlbfs_file() {
    let (pages, mount) = match HugePages::take(4).and_then(|p| Ok((p, Mounted::new("hugetlbfs", "pagesize=2M")?))) {
        Ok(both) => both,
        Err(why) => return println!("skipped: {why}"),
    };
    let path = mount.path().join("pool");
    whole_life(&path, None, MediaKind::Hugetlbfs);
    let forced = open(&path, &Open { kind: Some(MediaKind::File), ..Open::default() });
    assert!(forced.expect_err("takes no pwrite").to_string().contains("cannot be used"));
    // Rounded up to whole huge pages; more than there are is refused, not a signal later.
    let small = mount.path().join("small");
    assert_eq!(open(&small, &Open { size: Some(1), ..Open::default() }).expect("opens").len, 2 << 20);
    let large = mount.path().join("large");
    let error = open(&large, &Open { size: Some(1 << 40), ..Open::default() }).expect_err("too large");
    assert!(error.to_string().contains("huge pages"), "{error}");
    assert!(!large.exists(), "what could not be used is removed");
    drop((mount, pages));
}

#[test]
fn reserve_tells_of_a_full_filesystem() {
    let mount = match Mounted::new("tmpfs", "size=4M") {
        Ok(mount) => mount,
        Err(why) => return println!("skipped: {why}"),
    };
    let path = mount.path().join("pool");
    for kind in [MediaKind::Tmpfs, MediaKind::File] {
        let how = Open { size: Some(64 << 20), kind: Some(kind), ..Open::default() };
        let media = open(&path, &how).expect("sparse").media;
        media.reserve(0, 1 << 20).expect("fits");
        let full = media.reserve(0, 64 << 20).expect_err("does not fit");
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    }
}

#[test]
fn a_full_disk_below_a_file_is_an_error_and_nothing_is_lost() {
    let dir = tmpfs();
    let mount = match Mounted::small_ext4(&dir.path().join("image"), 8 << 20) {
        Ok(mount) => mount,
        Err(why) => return println!("skipped: {why}"),
    };
    let path = mount.path().join("pool");
    let media = open(&path, &Open { size: Some(64 << 20), ..Open::default() }).expect("sparse").media;
    assert_eq!(media.describe().kind, MediaKind::File);
    media.reserve(0, 4096).expect("fits");
    let filler = mount.path().join("filler");
    let full = fs::write(&filler, vec![1; 8 << 20]).expect_err("fills the disk");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    let full = media.persist(&[Part::Bytes { at: 1 << 20, bytes: &vec![1; 1 << 20] }]).expect_err("does not fit");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    assert_eq!(media.reserve(0, 32 << 20).expect_err("does not fit").raw_os_error(), Some(libc::ENOSPC));
    media.persist(&[Part::Bytes { at: 0, bytes: b"reserved" }]).expect("fits");
    media.sync().expect("syncs");
    // A metadata page that finds no room stays pending, and goes out once there is room.
    media.store(32 << 20, b"waits");
    media.flush(32 << 20, 5).expect("flushes");
    let full = media.sync().expect_err("does not fit");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    assert_eq!(meta(&*media, 32 << 20, 5), b"waits");
    fs::remove_file(&filler).expect("removes");
    media.sync().expect("syncs");
    assert_eq!(data(&*media, 32 << 20, 5), b"waits");
    assert_eq!(data(&*media, 0, 8), b"reserved");
}

/// A loop device, detached at the end.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["-d".as_ref(), self.0.as_ref()]);
    }
}

#[test]
fn a_block_device_whose_writes_are_lost_never_syncs_again() {
    let mount = match Mounted::new("tmpfs", "size=2M") {
        Ok(mount) => mount,
        Err(why) => return println!("skipped: {why}"),
    };
    // The device has 16 MiB, what lies below it has room for 2.
    let image = mount.path().join("image");
    fs::File::create(&image).and_then(|f| f.set_len(16 << 20)).expect("sparse");
    let device = match run("losetup", &["-f".as_ref(), "--show".as_ref(), image.as_os_str()]) {
        Ok(name) => Loop(name),
        Err(why) => return println!("skipped: {why}"),
    };
    let path = Path::new(&device.0);
    let Opened { media, len, created } = open(path, &Open::default()).expect("opens");
    assert_eq!((media.describe().kind, len, created), (MediaKind::File, 16 << 20, false));
    let larger = open(path, &Open { size: Some(32 << 20), ..Open::default() });
    assert!(larger.is_err());
    media.persist(&[Part::Bytes { at: 4096, bytes: b"fits" }]).expect("persists");
    media.reserve(0, 4096).expect("nothing to reserve");
    media.sync().expect("syncs");
    media.persist(&[Part::Bytes { at: 0, bytes: &vec![1; 8 << 20] }]).expect("the page cache takes it");
    let first = media.sync().expect_err("lost below");
    for _ in 0..2 {
        assert_eq!(media.sync().expect_err("stays lost").raw_os_error(), first.raw_os_error());
    }
    drop(media);
    let size = open(path, &Open { size: Some(32 << 20), ..Open::default() }).expect_err("too large");
    assert!(matches!(size, pmem::Error::Size(_)), "{size}");
}
