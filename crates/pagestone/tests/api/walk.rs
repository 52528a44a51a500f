//! Walks of trees: order, depth, and changes meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagestone::inode::NewNode;
use pagestone::{CreateOptions, Error, FileType, OpenOptions, Pool, WalkEntry};
use pmem::{Media, Memory, Part};

use crate::pool;

fn paths(entries: impl Iterator<Item = pagestone::Result<WalkEntry>>) -> Vec<String> {
    entries.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect()
}

/// A directory with two levels, a link out of it, and a file with two names.
fn tree(pool: &Pool) {
    pool.create_dir_all("/a/b/c").unwrap();
    pool.create_dir("/a/empty").unwrap();
    pool.write("/a/b/file", "one").unwrap();
    pool.hard_link("/a/b/file", "/a/again").unwrap();
    pool.symlink("/", "/a/link").unwrap();
}

/// Directories, the deepest inside the others. Returns the number of the deepest.
fn chain(pool: &Pool, name: &[u8], depth: usize) -> pagestone::Ino {
    let mut dir = pool.root();
    for _ in 0..depth {
        let made = dir.create(name, &NewNode::new(FileType::Dir, 0o755)).unwrap();
        dir = pool.node(made.ino).unwrap().dir().unwrap();
    }
    dir.ino()
}

#[test]
fn a_walk_lists_everything_once_and_each_directory_before_what_is_in_it() {
    let pool = pool();
    tree(&pool);
    let listed = paths(pool.walk("/a").unwrap());
    let all = ["/a", "/a/again", "/a/b", "/a/b/c", "/a/b/file", "/a/empty", "/a/link"];
    assert_eq!(listed.iter().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(all));
    assert_eq!(listed.len(), all.len());
    let at = |path: &str| listed.iter().position(|other| other == path).unwrap();
    assert!(at("/a") < at("/a/b") && at("/a/b") < at("/a/b/c") && at("/a/b") < at("/a/b/file"));
    let entries: Vec<WalkEntry> = pool.walk("a/").unwrap().map(Result::unwrap).collect();
    for entry in &entries {
        let path = entry.path().to_str().unwrap();
        assert_eq!(entry.depth(), path.matches('/').count() - usize::from(entry.depth() == 0), "{path}");
        assert_eq!(entry.ino(), pool.symlink_metadata(path.trim_end_matches('/')).unwrap().ino(), "{path}");
        assert_eq!(entry.file_type(), entry.metadata().unwrap().file_type(), "{path}");
        let dir = entry.path().parent().filter(|_| entry.depth() > 0).unwrap_or(entry.path());
        assert_eq!(entry.parent(), pool.metadata(dir).unwrap().ino(), "{path}");
    }
    assert_eq!(entries[0].file_name(), "a");
}

#[test]
fn contents_come_before_their_directory_if_that_is_asked_for() {
    let pool = pool();
    tree(&pool);
    let listed = paths(pool.walk("/a").unwrap().contents_first(true));
    let at = |path: &str| listed.iter().position(|other| other == path).unwrap();
    assert_eq!((listed.len(), at("/a")), (7, 6));
    assert!(at("/a/b/c") < at("/a/b") && at("/a/b/file") < at("/a/b"));
    let depths = pool.walk("/a").unwrap().contents_first(true).map(|entry| entry.unwrap().depth());
    assert_eq!(depths.collect::<Vec<_>>().iter().filter(|depth| **depth == 2).count(), 2);
}

#[test]
fn a_walk_begins_at_a_file_behind_a_link_or_in_a_directory_and_nowhere_else() {
    let pool = pool();
    tree(&pool);
    pool.symlink("/a/b", "/way").unwrap();
    assert_eq!(paths(pool.walk("/a/b/file").unwrap()), ["/a/b/file"]);
    assert_eq!(paths(pool.walk("/way").unwrap()).len(), 3);
    assert!(matches!(pool.walk("/none"), Err(Error::NotFound)));
    let dir = pool.resolve(b"/a/b").unwrap();
    let below: BTreeSet<String> = paths(dir.dir().unwrap().walk()).into_iter().collect();
    assert_eq!(below, BTreeSet::from(["c".to_owned(), "file".to_owned()]));
    assert_eq!(paths(dir.walk().unwrap())[0], "");
}

#[test]
fn a_directory_is_skipped_on_demand_and_everything_else_is_not() {
    let pool = pool();
    tree(&pool);
    let mut walk = pool.walk("/a").unwrap();
    let mut listed = Vec::new();
    while let Some(entry) = walk.next() {
        let entry = entry.unwrap();
        if entry.depth() > 0 {
            // Of what is no directory, nothing is left out.
            walk.skip_dir();
        }
        listed.push(entry.path().to_str().unwrap().to_owned());
    }
    listed.sort();
    assert_eq!(listed, ["/a", "/a/again", "/a/b", "/a/empty", "/a/link"]);
}

#[test]
fn a_chain_of_five_thousand_directories_is_walked_both_ways_and_removed() {
    const DEPTH: usize = 5_000;
    let media = Arc::new(Memory::new(128 << 20).unwrap());
    let pool = Pool::create_on(media, &CreateOptions::new()).unwrap();
    let deepest = chain(&pool, b"d", DEPTH);
    // On a stack on which a recursion of that depth would not fit.
    let walker = std::thread::Builder::new().stack_size(512 << 10);
    let others = pool.clone();
    let walk = move || {
        let down: Vec<usize> = others.root().walk().map(|entry| entry.unwrap().depth()).collect();
        assert!(down.iter().copied().eq(1..=DEPTH), "{} entries", down.len());
        let mut up = others.root().walk().contents_first(true).map(Result::unwrap);
        let first = up.next().unwrap();
        assert_eq!((first.ino(), first.depth(), first.path().as_os_str().len()), (deepest, DEPTH, 2 * DEPTH - 1));
        assert_eq!(up.map(|entry| entry.depth()).last(), Some(1));
        assert_eq!(others.root().remove_tree(b"d").unwrap(), DEPTH as u64);
    };
    walker.spawn(walk).unwrap().join().unwrap();
    assert_eq!(paths(pool.walk("/").unwrap()), ["/"]);
}

#[test]
fn a_directory_that_is_removed_during_the_walk_has_no_entries_and_the_walk_continues() {
    let pool = pool();
    for n in 0..300 {
        pool.create_dir_all(format!("/d/{n}/x")).unwrap();
    }
    // Removed as soon as it is listed, and so before its entries are read.
    let mut walk = pool.walk("/d").unwrap();
    assert_eq!(walk.next().unwrap().unwrap().depth(), 0);
    let mut seen = 0;
    for entry in walk {
        let entry = entry.unwrap();
        assert_eq!(entry.depth(), 1);
        pool.remove_dir_all(entry.path()).unwrap();
        assert!(matches!(entry.metadata(), Err(Error::NotFound)));
        assert!(matches!(entry.attr(), Err(Error::Stale(_))));
        seen += 1;
    }
    assert_eq!(seen, 300);
    // And while it is being walked.
    for n in 0..300 {
        pool.write(format!("/d/{n}"), "").unwrap();
    }
    let mut walk = pool.walk("/d").unwrap();
    walk.by_ref().take(2).for_each(|entry| drop(entry.unwrap()));
    pool.remove_dir_all("/d").unwrap();
    assert!(walk.all(|entry| entry.is_ok()), "what was read before is listed, and nothing fails");
}

#[test]
fn what_stays_is_listed_once_whatever_comes_and_goes_meanwhile() {
    let pool = pool();
    for n in 0..400 {
        pool.create_dir_all(format!("/stay/{n}")).unwrap();
        pool.write(format!("/stay/{n}/file"), "").unwrap();
    }
    let mut stayed = BTreeSet::new();
    for (n, entry) in pool.walk("/").unwrap().enumerate() {
        let entry = entry.unwrap();
        pool.write(format!("/stay/{}/new{n}", n % 400), "").unwrap();
        if n > 10 {
            pool.remove_file(format!("/stay/{}/new{}", (n - 10) % 400, n - 10)).unwrap();
        }
        if !entry.file_name().to_str().unwrap().starts_with("new") {
            assert!(stayed.insert(entry.path().to_owned()), "{entry:?} twice");
        }
        assert!(n < 10_000, "the walk ends");
    }
    assert_eq!(stayed.len(), 2 + 800);
}

#[test]
fn a_walk_ends_where_a_directory_is_moved_below_one_of_its_own_meanwhile() {
    let pool = pool();
    pool.create_dir_all("/a/b").unwrap();
    let mut walk = pool.walk("/").unwrap();
    assert_eq!(paths(walk.by_ref().take(3)), ["/", "/a", "/a/b"]);
    pool.rename("/a/b", "/b").unwrap();
    pool.rename("/a", "/b/a").unwrap();
    pool.create_dir("/b/a/more").unwrap();
    let rest = paths(walk.take(100));
    // `/a/b` is being walked, and has `a` by now. What is there is listed once more, and nothing a third time.
    assert_eq!(rest, ["/a/b/a", "/a/b/a/more"]);
}

/// Guard: a name, or its directory, that another removal has taken counts as removed.
#[test]
fn a_tree_is_removed_by_two_at_once() {
    for round in 0..20 {
        let pool = pool();
        for n in 0..40 {
            pool.create_dir_all(format!("/d/{}/{n}", n % 5)).unwrap();
            pool.write(format!("/d/{}/{n}/file", n % 5), "").unwrap();
        }
        let begin = std::sync::Barrier::new(2);
        let remove = || {
            begin.wait();
            pool.remove_dir_all("/d")
        };
        let done = std::thread::scope(|scope| {
            let removers = [scope.spawn(remove), scope.spawn(remove)];
            removers.map(|remover| remover.join().unwrap())
        });
        assert!(done.iter().any(Result::is_ok), "{done:?}");
        assert!(done.iter().all(|done| matches!(done, Ok(()) | Err(Error::NotFound))), "round {round}: {done:?}");
        assert!(!pool.exists("/d").unwrap());
    }
}

#[test]
fn a_tree_is_removed_while_others_make_names_in_it() {
    let pool = pool();
    for n in 0..20 {
        pool.create_dir_all(format!("/d/{n}")).unwrap();
    }
    let other = pool.clone();
    let (made, mut removals) = (Arc::new(AtomicU64::new(0)), 0);
    let count = made.clone();
    let maker = std::thread::spawn(move || {
        for n in 0.. {
            match other.write(format!("/d/{}/{n}", n % 20), "") {
                Ok(()) => drop(count.fetch_add(1, Ordering::Relaxed)),
                // The last directory has gone.
                Err(_) if !other.exists("/d").unwrap() => break,
                Err(_) => {}
            }
        }
    });
    let begun = Instant::now();
    let wait_for = |names: u64| {
        while made.load(Ordering::Relaxed) < names && begun.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        made.load(Ordering::Relaxed)
    };
    let before = wait_for(100);
    assert!(before >= 100, "the maker runs");
    loop {
        removals += 1;
        match pool.remove_dir_all("/d") {
            Err(Error::NotEmpty) if begun.elapsed().as_secs() < 60 => {}
            done => break done.unwrap(),
        }
    }
    maker.join().unwrap();
    let after = made.load(Ordering::Relaxed) - before;
    assert!(after > 0, "no name was made during {removals} removals");
    assert!(!pool.exists("/d").unwrap());
}

#[test]
fn a_directory_that_cannot_be_read_is_an_error_and_the_walk_continues_behind_it() {
    const LEN: u64 = 32 << 20;
    let media = Arc::new(Memory::new(LEN).unwrap());
    let pool = Pool::create_on(media.clone(), &CreateOptions::new()).unwrap();
    for name in ["/a", "/bad", "/c"] {
        pool.create_dir(name).unwrap();
        pool.write(format!("{name}/file"), "").unwrap();
    }
    // The node with its names bears a magic, and the place of its owner.
    let place = pool.metadata("/bad").unwrap().ino().0 & ((1 << 40) - 1);
    pool.close().unwrap();
    let mut head = [0; 24];
    let mut is_node = |at: &u64| {
        media.views().data.read(*at, &mut head) && head[4..6] == *b"ND" && head[16..24] == place.to_le_bytes()
    };
    let node = (0..LEN).step_by(4096).find(|at| is_node(at)).unwrap();
    media
        .persist(&[Part::Bytes {
            at: node,
            bytes: &(!u32::from_le_bytes(head[..4].try_into().unwrap())).to_le_bytes(),
        }])
        .unwrap();
    let pool = Pool::open_on(media.clone(), &OpenOptions::new()).unwrap();
    for contents_first in [false, true] {
        let (listed, failed): (Vec<_>, Vec<_>) =
            pool.walk("/").unwrap().contents_first(contents_first).partition(Result::is_ok);
        assert!(matches!(failed[..], [Err(Error::Corrupt { .. })]), "{failed:?}");
        let listed: BTreeSet<String> = paths(listed.into_iter()).into_iter().collect();
        assert_eq!(
            listed.iter().map(String::as_str).collect::<Vec<_>>(),
            ["/", "/a", "/a/file", "/bad", "/c", "/c/file"]
        );
    }
}
