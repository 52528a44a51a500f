//! The library end to end, on memory and on files: the short tour.

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::sync::Arc;

use pagestone::inode::{Dir, NewNode, RenameMode, SetAttr, XattrMode};
use pagestone::{CreateOptions, Error, FileType, OpenOptions, Pool};
use pmem::Memory;

fn pool(len: u64) -> Pool {
    Pool::create_on(Arc::new(Memory::new(len).unwrap()), &CreateOptions::default()).unwrap()
}

fn file(dir: &Dir, name: &str) -> pagestone::Ino {
    dir.create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino
}

#[test]
fn bytes_come_back() {
    let pool = pool(16 << 20);
    let f = pool.node(file(&pool.root(), "a")).unwrap().open().unwrap();
    f.write_all_at(b"hello", 0).unwrap();
    f.write_all_at(b"world", 10_000).unwrap();
    let mut buf = vec![1; 20_000];
    assert_eq!(f.read_at(&mut buf, 0).unwrap(), 10_005);
    assert_eq!(&buf[..5], b"hello");
    assert!(buf[5..10_000].iter().all(|&b| b == 0));
    assert_eq!(&buf[10_000..10_005], b"world");
    assert_eq!(f.seek_hole(0).unwrap(), 4096);
    assert_eq!(f.seek_data(4096).unwrap(), 8192);
}

#[test]
fn a_directory_of_many_names_fills_and_empties() {
    let pool = pool(64 << 20);
    let before = pool.statfs();
    let dir = pool.root().create(b"d", &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
    let dir = pool.node(dir).unwrap().dir().unwrap();
    for i in 0..20_000 {
        file(&dir, &format!("name-{i}"));
    }
    let mut seen = 0;
    let mut cookie = 0;
    while {
        let batch = dir.read_entries(cookie, 100).unwrap();
        cookie = batch.last().map_or(cookie, |e| e.cookie);
        seen += batch.len();
        batch.len() == 100
    } {}
    assert_eq!(seen, 20_000);
    assert_eq!(pool.statfs().inodes, 20_001);
    for i in 0..20_000 {
        dir.unlink(format!("name-{i}").as_bytes()).unwrap();
    }
    pool.root().rmdir(b"d").unwrap();
    let after = pool.statfs();
    assert_eq!(after.inodes, 0);
    assert!(before.free - after.free < 200, "{before:?} {after:?}");
}

#[test]
fn a_full_pool_says_so_and_can_be_emptied() {
    let pool = pool(16 << 20);
    let f = pool.node(file(&pool.root(), "big")).unwrap().open().unwrap();
    let chunk = vec![7; 100_000];
    let mut at = 0;
    let full = loop {
        match f.write_all_at(&chunk, at) {
            Ok(()) => at += 100_000,
            Err(e) => break e,
        }
    };
    assert!(matches!(full, Error::NoSpace), "{full}");
    assert!(at > 8 << 20, "{at}");
    drop(f);
    pool.root().unlink(b"big").unwrap();
    let f = pool.node(file(&pool.root(), "again")).unwrap().open().unwrap();
    f.write_all_at(&vec![1; 8 << 20], 0).unwrap();
}

#[test]
fn it_is_all_there_after_a_reopen() {
    let media = Arc::new(Memory::new(32 << 20).unwrap());
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    let f = pool.node(file(&pool.root(), "f")).unwrap();
    f.open().unwrap().write_all_at(&vec![9; 3 << 20], 1 << 20).unwrap();
    f.set_xattr(b"user.k", &vec![3; 5000], XattrMode::Set).unwrap();
    f.set_attr(&SetAttr::new().perm(0o600)).unwrap();
    pool.root().create(b"s", &NewNode::new(FileType::Symlink, 0o777).target(&[b'x'; 1000])).unwrap();
    let d = pool.root().create(b"d", &NewNode::new(FileType::Dir, 0o700)).unwrap().ino;
    pool.root().rename(b"f", d, b"g", RenameMode::NoReplace).unwrap();
    // Not closed: the journal has to be replayed.
    std::mem::forget(pool);
    let pool = Pool::open_on(media, &OpenOptions::default()).unwrap();
    let f = pool.resolve(b"/d/g").unwrap();
    assert_eq!(f.attr().unwrap().perm, 0o600);
    assert_eq!(f.xattr(b"user.k").unwrap(), vec![3; 5000]);
    let mut buf = vec![0; 4 << 20];
    assert_eq!(f.open().unwrap().read_at(&mut buf, 0).unwrap(), 4 << 20);
    assert!(buf[..1 << 20].iter().all(|&b| b == 0) && buf[1 << 20..].iter().all(|&b| b == 9));
    assert_eq!(pool.resolve(b"/s").unwrap().read_link().unwrap(), vec![b'x'; 1000]);
    assert!(pool.info().unwrap().replayed > 0);
}

#[test]
fn an_unnamed_file_lives_as_long_as_it_is_open() {
    let pool = pool(16 << 20);
    let before = pool.statfs().free;
    let f = pool.node(file(&pool.root(), "t")).unwrap().open().unwrap();
    f.write_all_at(&vec![5; 3 << 20], 0).unwrap();
    pool.root().unlink(b"t").unwrap();
    let mut buf = [0; 10];
    f.read_at(&mut buf, 100).unwrap();
    assert_eq!(buf, [5; 10]);
    assert_eq!(f.attr().unwrap().nlink, 0);
    drop(f);
    assert!(before - pool.statfs().free < 20);
}

#[test]
fn a_file_in_a_directory_survives_on_an_ordinary_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pool");
    let options = CreateOptions::new().size(32 << 20);
    let pool = Pool::create(&path, &options).unwrap();
    assert!(matches!(Pool::open(&path, &OpenOptions::default()), Err(Error::InUse { .. })));
    for i in 0..2000 {
        file(&pool.root(), &format!("f{i}"));
    }
    pool.close().unwrap();
    assert!(matches!(Pool::create(&path, &options), Err(Error::Exists)));
    let pool = Pool::open(&path, &OpenOptions::new().read_only(true)).unwrap();
    assert_eq!(pool.statfs().inodes, 2000);
    assert!(matches!(pool.root().unlink(b"f0"), Err(Error::ReadOnly)));
}

/// Everything a pool can hold, several times over.
fn furnish(pool: &Pool) {
    for i in 0..50 {
        let d = pool.root().create(format!("d{i}").as_bytes(), &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
        let d = pool.node(d).unwrap().dir().unwrap();
        for j in 0..40 {
            let f = pool.node(file(&d, &format!("f{j}"))).unwrap();
            f.open().unwrap().write_all_at(&vec![j as u8; 5000], j * 3000).unwrap();
            f.set_xattr(b"user.x", &vec![1; 100 * j as usize], XattrMode::Set).unwrap();
        }
        d.create(b"link", &NewNode::new(FileType::Symlink, 0o777).target(&[b'y'; 300])).unwrap();
        d.link(b"hard", d.lookup(b"f1").unwrap().ino).unwrap();
        d.unlink(b"f2").unwrap();
    }
    let f = pool.node(file(&pool.root(), "big")).unwrap().open().unwrap();
    for i in 0..60 {
        f.append(&vec![i as u8; 100_000]).unwrap();
    }
    f.punch_hole(1 << 20..(1 << 20) + (1 << 20)).unwrap();
    for i in 0..200 {
        f.write_all_at(b"x", (8 << 20) + i * 8192).unwrap();
    }
}

fn check(media: &Arc<Memory>) -> pagestone::check::Report {
    pagestone::check::check_on(media.clone(), &pagestone::check::CheckOptions::default(), &mut |_, _| {}).unwrap()
}

#[test]
fn a_furnished_pool_is_clean() {
    let media = Arc::new(Memory::new(64 << 20).unwrap());
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    furnish(&pool);
    drop(pool);
    let report = check(&media);
    assert!(report.is_clean(), "{report:#?}");
    assert!(report.inodes > 2000);
    let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
    for i in 0..50 {
        let d = pool.root().lookup(format!("d{i}").as_bytes()).unwrap().ino;
        let d = pool.node(d).unwrap().dir().unwrap();
        for entry in d.entries() {
            d.unlink(&entry.unwrap().name).unwrap();
        }
        pool.root().rmdir(format!("d{i}").as_bytes()).unwrap();
    }
    pool.root().unlink(b"big").unwrap();
    let space = pool.statfs();
    drop(pool);
    let report = check(&media);
    assert!(report.is_clean(), "{report:#?}");
    assert!(report.pages < 100, "{space:?} {}", report.pages);
}

#[test]
fn a_name_can_go_while_its_file_is_being_read_and_waits_for_the_reader() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let pool = pool(16 << 20);
    for again in 0..2 {
        let ino = file(&pool.root(), "a");
        let f = pool.node(ino).unwrap().open().unwrap();
        f.write_all_at(&[7; 10_000], 0).unwrap();
        let gone = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // The file's lock is held while the pieces are there.
            let pieces = f.pieces(0..10_000).unwrap();
            scope.spawn(|| {
                pool.root().unlink(b"a").unwrap();
                gone.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!gone.load(Ordering::SeqCst), "the file changed under its reader");
            drop(pieces);
        });
        assert!(gone.load(Ordering::SeqCst));
        assert!(matches!(pool.root().lookup(b"a"), Err(Error::NotFound)));
        assert_eq!(f.attr().unwrap().nlink, 0);
        let inodes = pool.statfs().inodes;
        drop(f);
        assert_eq!(pool.statfs().inodes, inodes - 1, "round {again}");
    }
}

/// Fails if a write of nothing lets the time of an overwrite be forgotten that no record carries yet.
#[test]
fn a_write_of_nothing_keeps_the_time_of_the_write_before_it() {
    let nothing: [fn(&pagestone::File); 3] = [
        |f| assert_eq!(f.append(b"").unwrap(), 5),
        |f| f.write_all_at(b"", 100).unwrap(),
        |f| f.write_atomic(&[(100, b"")]).unwrap(),
    ];
    for write_nothing in nothing {
        let pool = pool(16 << 20);
        let ino = file(&pool.root(), "a");
        let f = pool.node(ino).unwrap().open().unwrap();
        f.write_all_at(b"hello", 0).unwrap();
        let long_ago = pagestone::inode::Time { sec: 1, nsec: 0 };
        pool.node(ino).unwrap().set_attr(&SetAttr::new().mtime(long_ago)).unwrap();
        f.write_all_at(b"HELLO", 0).unwrap();
        write_nothing(&f);
        assert_ne!(f.attr().unwrap().mtime, long_ago);
        drop(f);
        assert_ne!(pool.node(ino).unwrap().attr().unwrap().mtime, long_ago);
    }
}

#[test]
fn a_rename_can_leave_a_whiteout() {
    let media = Arc::new(Memory::new(16 << 20).unwrap());
    let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
    let (root, a) = (pool.root(), file(&pool.root(), "a"));
    file(&root, "b");
    let d = root.create(b"d", &NewNode::new(FileType::Dir, 0o700)).unwrap().ino;
    root.rename_with_whiteout(b"a", root.ino(), b"b").unwrap();
    root.rename_with_whiteout(b"d", root.ino(), b"e").unwrap();
    std::mem::forget(pool);
    let pool = Pool::open_on(media.clone(), &OpenOptions::default()).unwrap();
    let root = pool.root();
    for name in [b"a", b"d"] {
        let left = root.lookup(name).unwrap();
        assert_eq!((left.kind, left.rdev, left.nlink), (FileType::CharDevice, 0, 1));
    }
    assert_eq!((root.lookup(b"b").unwrap().ino, root.lookup(b"e").unwrap().ino), (a, d));
    assert_eq!(pool.node(root.ino()).unwrap().attr().unwrap().nlink, 3, "the directory is still in it");
    drop(pool);
    let report = pagestone::check::check_on(media, &pagestone::check::CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[test]
fn what_is_known_of_an_open_files_privileges_follows_their_changes() {
    let pool = pool(16 << 20);
    let node = pool.node(file(&pool.root(), "f")).unwrap();
    let open = node.open().unwrap();
    assert!(!open.privileges().unwrap().any());
    let perm = |perm| SetAttr::new().perm(perm);
    node.set_attr(&perm(0o4755)).unwrap();
    assert!(open.privileges().unwrap().set_id);
    node.set_attr(&perm(0o755)).unwrap();
    node.set_xattr(b"user.x", b"1", XattrMode::Set).unwrap();
    assert!(!open.privileges().unwrap().any());
    node.set_xattr(b"security.capability", b"1", XattrMode::Set).unwrap();
    assert!(open.privileges().unwrap().capability && !open.privileges().unwrap().set_id);
    node.remove_xattr(b"security.capability").unwrap();
    assert!(!open.privileges().unwrap().any());
}
