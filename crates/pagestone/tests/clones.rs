//! Clones and snapshots: they never show each other's writes, cost next to nothing, and give back exactly what
//! nobody needs.
//!
//! How they could fail, and which test would show it: a write reaches the other side (`what_one_side_writes_...`,
//! and the model and crash suites); pages stay when the last reader has gone, or go before
//! (`deleting_any_member_...`); a chain grows for ever (`a_daily_snapshot_...`); a clone copies
//! (`a_clone_of_a_large_file_...`); a restore mixes two trees (`a_restore_...`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use pagestone::check::check;
use pagestone::inode::{NewNode, SetAttr, XattrMode};
use pagestone::snapshot::What;
use pagestone::{CreateOptions, Error, File, FileType, OpenOptions, Pool};

struct Place {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

fn pool(mib: u64) -> (Place, Pool) {
    let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." }).unwrap();
    let path = dir.path().join("test.pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(mib << 20)).unwrap();
    (Place { _dir: dir, path }, pool)
}

fn file(pool: &Pool, name: &str, bytes: &[u8]) -> File {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
    let file = pool.node(ino).unwrap().open().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn clone(pool: &Pool, from: &File, name: &str) -> File {
    let ino = pool.root().clone_file(name.as_bytes(), from.ino()).unwrap().ino;
    pool.node(ino).unwrap().open().unwrap()
}

fn all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0xEE; file.attr().unwrap().size as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn is_clean(place: &Place, pool: Pool) -> Pool {
    pool.close().unwrap();
    let report = check(&place.path, &pagestone::check::CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    Pool::open(&place.path, &OpenOptions::default()).unwrap()
}

#[test]
fn what_one_side_writes_never_shows_on_the_other() {
    let (place, pool) = pool(16);
    let a = file(&pool, "a", &[1; 10_000]);
    let b = clone(&pool, &a, "b");
    let c = clone(&pool, &b, "c");
    a.write_all_at(&[2; 200], 4000).unwrap();
    b.set_len(5000).unwrap();
    b.set_len(10_000).unwrap();
    c.punch_hole(4096..4096 + 4096).unwrap();
    c.append(&[3; 10]).unwrap();
    let mut wanted = [vec![1; 10_000], vec![1; 10_000], vec![1; 10_000]];
    wanted[0][4000..4200].fill(2);
    wanted[1][5000..].fill(0);
    wanted[2][4096..8192].fill(0);
    wanted[2].extend([3; 10]);
    for (file, wanted) in [&a, &b, &c].into_iter().zip(&wanted) {
        assert_eq!(all(file), *wanted);
    }
    drop((a, b, c));
    let pool = is_clean(&place, pool);
    for (name, wanted) in ["a", "b", "c"].iter().zip(&wanted) {
        let ino = pool.root().lookup(name.as_bytes()).unwrap().ino;
        assert_eq!(all(&pool.node(ino).unwrap().open().unwrap()), *wanted, "{name}");
    }
}

#[test]
fn a_clone_of_a_large_file_takes_no_space_and_one_record() {
    let (place, pool) = pool(256);
    let big = file(&pool, "big", &vec![7; 100 << 20]);
    let before = pool.statfs().free;
    let copy = clone(&pool, &big, "copy");
    let taken = before - pool.statfs().free;
    assert!(taken <= 4, "{taken} pages for a clone of 100 MiB");
    let attr = copy.attr().unwrap();
    assert_eq!((attr.size, attr.pages, attr.shared), (100 << 20, 25_600, 25_600));
    copy.write_all_at(&[8; 4096], 50 << 20).unwrap();
    let attr = copy.attr().unwrap();
    assert_eq!((attr.pages, attr.shared), (25_600, 25_599));
    assert_eq!(big.count_differing_bytes(&copy).unwrap(), 4096);
    drop((big, copy));
    is_clean(&place, pool);
}

#[test]
fn what_was_taken_ahead_of_need_does_not_stay_in_a_base() {
    let (place, pool) = pool(64);
    let free = pool.statfs().free;
    let a = file(&pool, "a", &[]);
    // Beyond its first frame a file gets whole frames as it is appended to.
    for _ in 0..600 {
        a.append(&[1; 4096]).unwrap();
    }
    drop(clone(&pool, &a, "b"));
    let used = free - pool.statfs().free;
    assert!((600..600 + 12).contains(&used), "{used} pages for 600");
    assert_eq!(all(&a), vec![1; 600 * 4096]);
    a.append(&[2; 10]).unwrap();
    drop(a);
    is_clean(&place, pool);
}

#[test]
fn a_clone_leaves_its_source_what_was_allocated_behind_the_end() {
    let (place, pool) = pool(64);
    let a = file(&pool, "a", &[1; 10_000]);
    // One piece that goes on from the last page, and one of whole frames.
    a.allocate_keep_size(8192..8192 + 40_960).unwrap();
    a.allocate_keep_size(4 << 20..(4 << 20) + (8 << 20)).unwrap();
    let pages = |file: &File| file.attr().unwrap().pages;
    let (had, mut free) = (pages(&a), pool.statfs().free);
    assert_eq!(had, 2 + 10 + 2048);
    for round in 0..3 {
        let b = clone(&pool, &a, "b");
        assert_eq!((pages(&a), pages(&b)), (had, 3), "round {round}");
        assert_eq!(all(&b), vec![1; 10_000]);
        // Something for the merge to move, so that the next round has a map to share.
        a.write_all_at(&[1; 100], 0).unwrap();
        drop(b);
        pool.root().unlink(b"b").unwrap();
        pool.sync().unwrap();
        let left = pool.statfs().free;
        // The first round makes a page for inodes.
        assert!(pages(&a) == had && left + u64::from(round == 0) >= free, "round {round}: {left} of {free} pages");
        free = left;
    }
    drop(a);
    let pool = is_clean(&place, pool);
    let a = pool.node(pool.root().lookup(b"a").unwrap().ino).unwrap().open().unwrap();
    let b = clone(&pool, &a, "b");
    a.append(&[2; 1 << 20]).unwrap();
    a.set_len(12 << 20).unwrap();
    let bytes = all(&a);
    assert!(bytes[..10_000].iter().all(|&b| b == 1) && bytes[10_000 + (1 << 20)..].iter().all(|&b| b == 0));
    assert_eq!(bytes[10_000..][..1 << 20], vec![2; 1 << 20]);
    assert_eq!(all(&b), vec![1; 10_000]);
    drop((a, b));
    is_clean(&place, pool);
}

#[test]
fn deleting_any_member_gives_back_exactly_what_nobody_needs() {
    // Four files on three bases; each order of deleting them.
    let names = ["a", "b", "c", "d"];
    for order in 0..24usize {
        let (place, pool) = pool(32);
        let start = pool.statfs().free;
        let a = file(&pool, "a", &[1; 100 * 4096]);
        let b = clone(&pool, &a, "b");
        a.write_all_at(&[2; 10 * 4096], 0).unwrap();
        let c = clone(&pool, &a, "c");
        b.write_all_at(&[3; 10 * 4096], 50 * 4096).unwrap();
        let d = clone(&pool, &c, "d");
        c.write_all_at(&[4; 20 * 4096], 90 * 4096).unwrap();
        drop((a, b, c, d));
        let mut left: Vec<&str> = names.to_vec();
        let mut digits = order;
        while !left.is_empty() {
            let which = digits % left.len();
            digits /= left.len();
            pool.root().unlink(left.remove(which).as_bytes()).unwrap();
            if left.len() == 1 {
                // Alone again: all of it is its own, and nothing else is left.
                let attr = pool.root().lookup(left[0].as_bytes()).unwrap();
                assert_eq!(attr.shared, 0, "{order}: {attr:?}");
                let used = start - pool.statfs().free;
                assert!((attr.pages..attr.pages + 16).contains(&used), "{order}: {used} pages for {attr:?}");
            }
        }
        let used = start - pool.statfs().free;
        assert!(used <= 12, "{order}: {used} pages are left");
        assert_eq!(pool.statfs().inodes, 0, "{order}");
        is_clean(&place, pool);
    }
}

#[test]
fn a_daily_snapshot_of_which_a_week_is_kept_does_not_grow() {
    let (place, pool) = pool(64);
    let file = file(&pool, "f", &[0; 64 * 4096]);
    let mut used = Vec::new();
    for day in 0..200u64 {
        file.write_all_at(&[day as u8; 4096], day % 64 * 4096).unwrap();
        drop(clone(&pool, &file, &format!("day{day}")));
        if day >= 7 {
            pool.root().unlink(format!("day{}", day - 7).as_bytes()).unwrap();
            used.push(pool.statfs().pages - pool.statfs().free);
        }
    }
    let (least, most) = (used.iter().min().unwrap(), used.iter().max().unwrap());
    assert!(most - least <= 16, "between {least} and {most} pages");
    assert_eq!(pool.statfs().inodes, 1 + 7);
    // Each day's page, and what they all have in common.
    let shared = pool.info().unwrap().shared;
    assert!((64..=64 + 8).contains(&shared), "{shared} pages shared");
    for day in 193..200u64 {
        let ino = pool.root().lookup(format!("day{day}").as_bytes()).unwrap().ino;
        let seen = all(&pool.node(ino).unwrap().open().unwrap());
        for page in 0..64u64 {
            let last = (0..=day).rev().find(|d| d % 64 == page).unwrap();
            assert_eq!(seen[page as usize * 4096], last as u8, "day {day}, page {page}");
        }
    }
    drop(file);
    is_clean(&place, pool);
}

#[test]
fn merging_waits_for_the_sync_where_that_is_when_things_are_durable() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let path = dir.path().join("file.pool");
    let pool = Pool::create(&path, &CreateOptions::new().size(16 << 20)).unwrap();
    let a = file(&pool, "a", &[1; 40_960]);
    drop(clone(&pool, &a, "b"));
    pool.sync().unwrap();
    pool.root().unlink(b"b").unwrap();
    pool.sync().unwrap();
    assert_eq!(a.attr().unwrap().shared, 0);
    drop(a);
    pool.close().unwrap();
    assert!(check(&path, &pagestone::check::CheckOptions::default(), &mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn a_sync_of_one_file_merges_too() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let options = CreateOptions::new().size(32 << 20);
    let pool = Pool::create(dir.path().join("pool"), &options).unwrap();
    let bytes = vec![7; 2 << 20];
    let source = file(&pool, "source", &bytes);
    for round in 0..40 {
        clone(&pool, &source, "clone");
        source.write_all_at(&bytes, 0).unwrap_or_else(|e| panic!("round {round}: {e}"));
        source.sync_all().unwrap();
        let _ = pool.root().unlink(b"clone");
        source.sync_all().unwrap();
        // At once, and not by the thread that syncs at an interval.
        assert_eq!(source.attr().unwrap().shared, 0, "round {round}");
    }
}

#[test]
fn what_a_killed_session_left_is_given_back_beside_the_next_one() {
    let (place, pool) = pool(64);
    let free = pool.statfs().free;
    let a = file(&pool, "a", &vec![1; 20 << 20]);
    let b = clone(&pool, &a, "b");
    pool.root().unlink(b"a").unwrap();
    // As a kill leaves it: nothing is closed, and the file without a name is still there.
    let copy = place.path.with_extension("copy");
    std::fs::copy(&place.path, &copy).unwrap();
    drop((a, b));
    let pool = Pool::open(&copy, &OpenOptions::default()).unwrap();
    let b = pool.node(pool.root().lookup(b"b").unwrap().ino).unwrap().open().unwrap();
    for _ in 0..2000 {
        if b.attr().unwrap().shared == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let used = free - pool.statfs().free;
    assert!((5120..5120 + 16).contains(&used), "{used} pages for a file of 5,120");
    assert_eq!(all(&b), vec![1; 20 << 20]);
    drop(b);
    pool.close().unwrap();
    assert!(check(&copy, &pagestone::check::CheckOptions::default(), &mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn only_an_empty_file_becomes_a_clone_and_only_files_are_cloned() {
    let (_place, pool) = pool(16);
    let a = file(&pool, "a", b"a");
    let b = file(&pool, "b", b"b");
    assert!(matches!(b.clone_from_file(&a), Err(Error::Invalid(_))));
    assert!(matches!(a.clone_from_file(&a), Err(Error::Invalid(_))));
    b.set_len(0).unwrap();
    b.clone_from_file(&a).unwrap();
    assert_eq!(all(&b), b"a");
    let dir = pool.root().create(b"d", &NewNode::new(FileType::Dir, 0o755)).unwrap().ino;
    assert!(matches!(pool.root().clone_file(b"x", dir), Err(Error::IsDirectory)));
    assert!(matches!(pool.root().clone_file(b"a", b.ino()), Err(Error::Exists)));
    let fifo = pool.root().create(b"p", &NewNode::new(FileType::Fifo, 0o644)).unwrap().ino;
    assert!(matches!(pool.root().clone_file(b"x", fifo), Err(Error::Invalid(_))));
}

/// A tree with a bit of everything.
fn tree(pool: &Pool) {
    let root = pool.root();
    let a = file(pool, "a", b"first");
    pool.node(a.ino()).unwrap().set_xattr(b"user.k", b"v", XattrMode::Set).unwrap();
    let d = root.create(b"d", &NewNode::new(FileType::Dir, 0o750)).unwrap().ino;
    let d = pool.node(d).unwrap().dir().unwrap();
    d.link(b"same", a.ino()).unwrap();
    d.create(b"link", &NewNode::new(FileType::Symlink, 0o777).target(b"../a")).unwrap();
    d.create(b"pipe", &NewNode::new(FileType::Fifo, 0o600)).unwrap();
}

#[test]
fn a_snapshot_is_the_whole_tree_and_a_diff_says_what_has_changed() {
    let (place, pool) = pool(16);
    tree(&pool);
    let made = pool.snapshots().create(b"one").unwrap();
    assert_eq!((made.files, made.directories, made.others), (1, 2, 3));
    assert!(pool.snapshots().diff(b"one", None).unwrap().is_empty());
    assert!(matches!(pool.snapshots().create(b"one"), Err(Error::Exists)));

    let root = pool.root();
    let a = pool.node(root.lookup(b"a").unwrap().ino).unwrap();
    a.open().unwrap().write_all_at(b"F", 0).unwrap();
    root.create(b"new", &NewNode::new(FileType::Dir, 0o755)).unwrap();
    pool.resolve(b"/d").unwrap().dir().unwrap().unlink(b"pipe").unwrap();
    pool.snapshots().create(b"two").unwrap();
    for other in [None, Some(&b"two"[..])] {
        let seen: Vec<(String, What)> =
            pool.snapshots().diff(b"one", other).unwrap().into_iter().map(|c| (c.path, c.what)).collect();
        let wanted =
            [("/a", What::Modified), ("/d/pipe", What::Removed), ("/d/same", What::Modified), ("/new", What::Added)];
        assert_eq!(seen, wanted.map(|(path, what)| (path.to_string(), what)), "{other:?}");
    }
    let names: Vec<String> = pool.snapshots().list().unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["one", "two"]);
    let copy = pool.resolve(b"/.snapshots/one/d/same").unwrap();
    assert_eq!(copy.xattr(b"user.k").unwrap(), b"v");
    assert_eq!((copy.attr().unwrap().nlink, all(&copy.open().unwrap())), (2, b"first".to_vec()));
    pool.snapshots().delete(b"one").unwrap();
    assert!(matches!(pool.snapshots().delete(b"one"), Err(Error::NotFound)));
    drop((root, a, copy));
    is_clean(&place, pool);
}

#[test]
fn a_restore_brings_everything_back_and_keeps_the_snapshots() {
    let (place, pool) = pool(16);
    tree(&pool);
    pool.snapshots().create(b"one").unwrap();
    pool.root().remove_tree(b"d").unwrap();
    pool.root().unlink(b"a").unwrap();
    file(&pool, "other", b"goes");
    pool.snapshots().restore(b"one").unwrap();
    assert!(pool.snapshots().diff(b"one", None).unwrap().is_empty());
    assert!(matches!(pool.root().lookup(b"other"), Err(Error::NotFound)));
    assert_eq!(pool.resolve(b"/d/same").unwrap().ino(), pool.resolve(b"/a").unwrap().ino());
    pool.snapshots().delete(b"one").unwrap();
    is_clean(&place, pool);
}

#[test]
fn a_restore_that_was_interrupted_is_finished_by_the_next_call() {
    let (place, pool) = pool(16);
    tree(&pool);
    pool.snapshots().create(b"one").unwrap();
    // As a crash leaves it: the new tree is whole, and one of the old names has been moved away.
    let snapshots = pool.resolve(b"/.snapshots").unwrap();
    let dir = snapshots.dir().unwrap();
    pool.snapshots().clone_tree(pool.resolve(b"/.snapshots/one").unwrap().ino(), dir.ino(), b".restoring").unwrap();
    let replaced = dir.create(b".replaced", &NewNode::new(FileType::Dir, 0o700)).unwrap().ino;
    pool.root().rename(b"a", replaced, b"a", pagestone::inode::RenameMode::Replace).unwrap();
    pool.snapshots().create(b"two").unwrap();
    assert!(pool.snapshots().diff(b"one", None).unwrap().is_empty());
    assert!(pool.snapshots().diff(b"one", Some(b"two")).unwrap().is_empty());
    assert!(matches!(dir.lookup(b".replaced"), Err(Error::NotFound)));
    drop((snapshots, dir));
    is_clean(&place, pool);
}

#[test]
fn a_tree_cannot_be_cloned_into_itself_and_names_are_checked() {
    let (_place, pool) = pool(16);
    tree(&pool);
    let d = pool.resolve(b"/d").unwrap().ino();
    assert!(matches!(pool.snapshots().clone_tree(d, d, b"x"), Err(Error::Invalid(_))));
    let made = pool.snapshots().clone_tree(d, pool.root().ino(), b"e").unwrap();
    assert_eq!((made.files, made.directories, made.others), (1, 1, 2));
    assert!(matches!(pool.snapshots().clone_tree(d, pool.root().ino(), b"e"), Err(Error::Exists)));
    // Where a tree is made is nobody's business afterwards.
    assert!(matches!(pool.root().lookup(b".snapshots"), Err(Error::NotFound)));
    for name in [&b".partial"[..], b"..", b"a/b"] {
        assert!(matches!(pool.snapshots().create(name), Err(Error::Invalid(_))), "{name:?}");
    }
}

/// Fails if names that programs make while a restore is interrupted keep it from being finished, or get lost as a part of
/// what is restored.
#[test]
fn a_restore_that_was_interrupted_is_finished_whatever_was_made_meanwhile() {
    let (place, pool) = pool(64);
    pool.create_dir_all("/dir/below").unwrap();
    pool.write("/file", "old").unwrap();
    pool.snapshots().create("one").unwrap();
    let snapshots = pool.resolve(b"/.snapshots").unwrap();
    let one = pool.resolve(b"/.snapshots/one").unwrap().ino();
    for left in [&b".restored"[..], b".restoring"] {
        pool.snapshots().clone_tree(one, snapshots.ino(), left).unwrap();
        // What is in the way: directories that are not empty, files where directories are to be, and the other way round.
        pool.remove_dir_all("/dir").unwrap();
        pool.remove_file("/file").unwrap();
        pool.create_dir_all("/file/full").unwrap();
        pool.write("/dir", "new").unwrap();
        pool.snapshots().create("two").unwrap();
        assert!(pool.snapshots().diff("one", None).unwrap().is_empty());
        assert_eq!(pool.read_dir("/.snapshots").unwrap().count(), 2);
        pool.snapshots().delete("two").unwrap();
    }
    drop(snapshots);
    is_clean(&place, pool);
}

/// Fails if a program sees a half of a restore, or keeps it from ending.
#[test]
fn a_restore_beside_a_program_that_makes_and_removes_names_ends() {
    let (place, pool) = pool(64);
    for i in 0..300 {
        pool.create_dir(format!("/d{i}")).unwrap();
    }
    pool.snapshots().create("base").unwrap();
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !end.load(std::sync::atomic::Ordering::Relaxed) {
                for i in 0..300 {
                    let _ = pool.create_dir(format!("/d{i}/x"));
                    let _ = pool.remove_dir_all(format!("/d{}", (i + 7) % 300));
                    let _ = pool.write(format!("/d{}", (i + 7) % 300), "a file");
                    let _ = pool.remove_file(format!("/d{}", (i + 9) % 300));
                    let _ = pool.create_dir(format!("/d{}", (i + 9) % 300));
                }
            }
        });
        for _ in 0..20 {
            pool.snapshots().restore("base").unwrap();
        }
        end.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    pool.snapshots().restore("base").unwrap();
    assert!(pool.snapshots().diff("base", None).unwrap().is_empty());
    assert_eq!(pool.read_dir("/").unwrap().count(), 301);
    is_clean(&place, pool);
}

/// Fails if the attributes of the root are not part of a snapshot.
#[test]
fn the_attributes_of_the_root_come_back() {
    let (place, pool) = pool(64);
    let root = pool.node(pool.root().ino()).unwrap();
    root.set_xattr(b"user.kept", b"one", XattrMode::Set).unwrap();
    let mtime = pagestone::inode::Time { sec: 1000, nsec: 0 };
    root.set_attr(&SetAttr::default().mtime(mtime)).unwrap();
    pool.snapshots().create("one").unwrap();
    root.set_xattr(b"user.kept", b"two", XattrMode::Set).unwrap();
    root.set_xattr(b"user.new", b"", XattrMode::Set).unwrap();
    let changes = pool.snapshots().diff("one", None).unwrap();
    assert_eq!(changes.iter().map(|c| (c.path.as_str(), c.what)).collect::<Vec<_>>(), [("/", What::Attributes)]);
    pool.snapshots().restore("one").unwrap();
    assert_eq!(
        (root.xattrs().unwrap(), root.xattr(b"user.kept").unwrap()),
        (vec![b"user.kept".to_vec()], b"one".to_vec())
    );
    assert!(pool.snapshots().diff("one", None).unwrap().is_empty());
    drop(root);
    is_clean(&place, pool);
}

#[test]
fn snapshots_go_only_where_nobody_else_can_change_them() {
    let (_place, pool) = pool(16);
    let root = pool.root();
    root.create(b".snapshots", &NewNode::new(FileType::File, 0o644)).unwrap();
    let e = pool.snapshots().create(b"one").unwrap_err().to_string();
    assert!(e.contains("/.snapshots") && e.contains("no directory"), "{e}");
    root.unlink(b".snapshots").unwrap();
    for node in [NewNode::new(FileType::Dir, 0o777), NewNode::new(FileType::Dir, 0o700).owner(1000, 0)] {
        root.create(b".snapshots", &node).unwrap();
        let e = pool.snapshots().create(b"one").unwrap_err().to_string();
        assert!(e.contains("/.snapshots") && e.contains("others"), "{e}");
        root.rmdir(b".snapshots").unwrap();
    }
    pool.snapshots().create(b"one").unwrap();
    // The owner of the pool's root changes, by hand and by a restore.
    let owner = |uid| SetAttr::new().uid(uid);
    root.node().set_attr(&owner(1000)).unwrap();
    pool.snapshots().create(b"two").unwrap();
    pool.snapshots().restore(b"one").unwrap();
    assert_eq!(root.node().attr().unwrap().uid, 0);
    pool.snapshots().restore(b"two").unwrap();
    assert_eq!(root.node().attr().unwrap().uid, 1000);
    pool.snapshots().create(b"three").unwrap();
}

/// Fails if a hole that hides a base is given up a few frames at a time: there are 2^38 steps then.
#[test]
fn a_hole_of_exbibytes_in_a_clone_goes_at_once() {
    let (place, pool) = pool(16);
    let base = file(&pool, "base", b"first");
    let far = 4 << 60;
    base.write_all_at(b"last", far).unwrap();
    let clone = clone(&pool, &base, "clone");
    clone.punch_hole(4096..far + 4096).unwrap();
    let mut bytes = [7; 4];
    clone.read_exact_at(&mut bytes, far).unwrap();
    assert_eq!(bytes, [0; 4]);
    clone.write_all_at(b"over", 1 << 40).unwrap();
    clone.set_len(5).unwrap();
    clone.set_len(8192).unwrap();
    let mut bytes = [7; 8192];
    clone.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.starts_with(b"first") && bytes[5..] == [0; 8187]);
    drop((base, clone));
    let pool = is_clean(&place, pool);
    pool.remove_file("/clone").unwrap();
}
