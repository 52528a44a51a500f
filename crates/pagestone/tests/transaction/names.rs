//! Paths, links and exchanged names in a transaction.

use pagestone::Error;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::{Checked, failed, tree};

#[test]
fn links_and_paths_mean_what_they_mean_to_single_operations() {
    let pool = Checked::new(16 << 20);
    pool.create_dir_all("/d/e").unwrap();
    pool.write("/a", "one").unwrap();
    pool.hard_link("/a", "/d/b").unwrap();
    pool.symlink("/a", "/short").unwrap();
    let long = format!("/d/{}a", "../d/../".repeat(60));
    pool.symlink(&long, "/long").unwrap();
    pool.symlink("loop", "/loop").unwrap();
    let mut change = pool.transaction();
    change.write("/short", b"1", 0).write("/long", b"2", 1).write("d/e/../b", b"3", 2).write("/d/./b", b"4", 3);
    change.remove_file("/a").remove_file("/short").hard_link("/d/b", "/c").write("/c", b"5", 4);
    change.commit().unwrap();
    assert_eq!(pool.read("/d/b").unwrap(), b"12345");
    assert_eq!((pool.metadata("/d/b").unwrap().nlink(), pool.metadata("/c").unwrap().nlink()), (2, 2));
    for (path, errno) in [("/loop", libc::ELOOP), ("/long", libc::ENOENT), ("", libc::ENOENT), ("/", libc::EISDIR)] {
        let mut change = pool.transaction();
        change.write(path, b"x", 0);
        assert_eq!(failed(change.commit()).1.errno(), errno, "{path}");
    }
    pool.finish();
}

#[test]
fn a_symbolic_link_of_a_transaction_leads_its_later_operations() {
    let pool = Checked::new(16 << 20);
    pool.create_dir("/d").unwrap();
    pool.write("/a", "one").unwrap();
    let long = format!("/d/{}a", "../d/../".repeat(60));
    let mut change = pool.transaction();
    change.symlink("../a", "/d/short").symlink(&long, "/long").symlink("nowhere", "/dangling");
    change.write("/d/short", b"O", 0).append("/long", b"!").rename("/long", "/moved").append("/moved", b"?");
    change.commit().unwrap();
    assert_eq!(pool.read("/a").unwrap(), b"One!?");
    assert_eq!(pool.read_link("/moved").unwrap().to_str().unwrap(), long);
    assert!(pool.symlink_metadata("/dangling").unwrap().is_symlink());
    assert_eq!(pool.symlink_metadata("/d/short").unwrap().mode() & 0o7777, 0o777);
    let too_long = "x".repeat(4096);
    for (target, link, errno) in [
        ("a", "/moved", libc::EEXIST),
        ("a", "/d", libc::EEXIST),
        ("", "/new", libc::ENOENT),
        (&too_long, "/new", libc::ENAMETOOLONG),
        ("a", "/a/new", libc::ENOTDIR),
        ("a", "/none/new", libc::ENOENT),
        ("a", "/new/", libc::ENOENT),
        ("a", "/d/", libc::EEXIST),
    ] {
        let single = pool.symlink(target, link).unwrap_err().errno();
        let mut change = pool.transaction();
        change.symlink("a", "/first").symlink(target, link);
        let (operation, error) = failed(change.commit());
        assert_eq!((operation, error.errno(), single), (1, errno, errno), "{link}");
        assert!(matches!(pool.symlink_metadata("/first"), Err(Error::NotFound)));
    }
    // A target of a page of its own: whoever gives it up has all space back.
    pool.checkpoint().unwrap();
    let before = pool.statfs();
    let mut change = pool.transaction();
    change.symlink("y".repeat(4095), "/big").symlink("z".repeat(4095), "/gone").remove_file("/gone");
    change.commit().unwrap();
    pool.remove_file("/big").unwrap();
    pool.checkpoint().unwrap();
    assert_eq!(pool.statfs(), before);
    pool.finish();
}

#[test]
fn names_that_a_transaction_exchanges_mean_each_others_files() {
    let pool = Checked::new(16 << 20);
    pool.create_dir_all("/d/e/f").unwrap();
    pool.create_dir("/g").unwrap();
    pool.write("/a", "a").unwrap();
    pool.write("/d/b", "b").unwrap();
    let links = |path: &str| pool.metadata(path).unwrap().nlink();
    let mut change = pool.transaction();
    change.append("/a", b"1").exchange("/a", "/d/b").append("/a", b"2");
    change.exchange("/d/e", "/a").append("/d/e", b"3").create("/a/new", 0o644);
    change.exchange("/d", "/g").create_dir("/new").exchange("/new", "/d").exchange("/g", "/g");
    change.commit().unwrap();
    let names: Vec<String> = tree(&pool, "/").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["/a", "/a/f", "/a/new", "/d", "/g", "/g/b", "/g/e", "/new"]);
    assert_eq!((pool.read("/g/b").unwrap(), pool.read("/g/e").unwrap()), (b"a1".to_vec(), b"b23".to_vec()));
    assert_eq!((links("/"), links("/a"), links("/g"), links("/d")), (6, 3, 2, 2));
    assert!(pool.exists("/a/f/../new").unwrap(), "a directory knows where it lies");
    let before = tree(&pool, "/");
    for (one, other, errno) in [
        ("/a", "/none", libc::ENOENT),
        ("/none", "/a", libc::ENOENT),
        ("/a", "/none/", libc::ENOENT),
        ("/a", "/a/f", libc::EINVAL),
        ("/a/f", "/a", libc::EINVAL),
        ("/a/new", "/a", libc::EINVAL),
        ("/a", "/", libc::EINVAL),
        ("/g/b/", "/a", libc::ENOTDIR),
    ] {
        let mut change = pool.transaction();
        change.exchange("/g/b", "/g/e").exchange(one, other);
        let (operation, error) = failed(change.commit());
        assert_eq!((operation, error.errno()), (1, errno), "{one} {other}");
        assert_eq!(tree(&pool, "/"), before);
    }
    for (from, to) in [("/", "/x"), ("/g/b", "/"), ("/none", "/"), ("/g/b", "/x/")] {
        let mut change = pool.transaction();
        change.rename(from, to);
        let single = pool.rename(from, to).unwrap_err().errno();
        assert_eq!(failed(change.commit()).1.errno(), single, "{from} {to}");
    }
    pool.finish();
}

/// Guard: an exchange looks at the directories above both names (`dir/rename.rs`, `check_ancestors`).
#[test]
fn directories_that_threads_exchange_stay_one_tree() {
    const DIRS: [&str; 6] = ["/a", "/a/b", "/a/b/c", "/d", "/d/b", "/d/b/c"];
    let pool = Checked::new(64 << 20);
    DIRS.iter().for_each(|dir| pool.create_dir(dir).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(thread);
                let mut done = 0;
                for _ in 0..300 {
                    let mut name = || DIRS[rng.random_range(0..DIRS.len())];
                    let mut change = pool.transaction();
                    change.exchange(name(), name()).exchange(name(), name());
                    match change.commit() {
                        Ok(()) => done += 1,
                        Err(e) => assert!([libc::EINVAL, libc::ENOENT].contains(&e.errno()), "{e}"),
                    }
                }
                assert!(done > 0, "none was done");
            });
        }
    });
    assert_eq!(tree(&pool, "/").len(), DIRS.len());
    pool.finish();
}
