//! Directories that are no tree: a ladder, cycles, names of the root. Every descent ends, and stays where it has begun.

use std::collections::BTreeSet;
use std::sync::Arc;

use pagestone::{CreateOptions, Error, Ino, OpenOptions, Pool};
use pmem::{Media, Memory, Part};

use crate::format::{self, What, seal_front, seal_node};
use crate::stage::PAGE;
use crate::watch;

const LEN: usize = 16 << 20;

/// A pool that is made, closed, damaged and opened.
struct Crafted {
    media: Arc<Memory>,
    image: Vec<u8>,
}

impl Crafted {
    fn new(fill: impl FnOnce(&Pool)) -> Crafted {
        let media = Arc::new(Memory::new(LEN as u64).unwrap());
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
        fill(&pool);
        pool.close().unwrap();
        let mut image = vec![0; LEN];
        assert!(media.bytes().read(0, &mut image));
        Crafted { media, image }
    }

    /// Lets the name of a directory mean another one.
    fn lead(&mut self, name: &str, old: Ino, new: Ino) {
        let entry = [&old.0.to_le_bytes()[..], &[2], name.as_bytes()].concat();
        let nodes: Vec<usize> =
            format::metadata(&self.image).iter().filter(|p| p.1 == What::Node).map(|p| p.0).collect();
        for page in nodes {
            let node = &mut self.image[page * PAGE..][..PAGE];
            if let Some(at) = node.windows(entry.len()).position(|bytes| bytes == entry) {
                node[at..at + 8].copy_from_slice(&new.0.to_le_bytes());
                seal_node(node);
                return;
            }
        }
        panic!("{name} is in no node");
    }

    /// Lets the record of a directory name another parent.
    fn set_parent(&mut self, dir: Ino, parent: Ino) {
        let at = dir.place() as usize * 256;
        let rec = &mut self.image[at..at + 256];
        rec[112..120].copy_from_slice(&parent.0.to_le_bytes());
        seal_front(rec);
    }

    fn open(&self) -> Pool {
        assert!(self.media.persist(&[Part::Bytes { at: 0, bytes: &self.image }]).is_ok());
        Pool::open_on(self.media.clone(), &OpenOptions::default()).unwrap()
    }
}

fn ino(pool: &Pool, path: &str) -> Ino {
    pool.metadata(path).unwrap().ino()
}

/// Runs with the watchdog. A panic goes on.
fn ends<R>(what: &str, run: impl FnOnce() -> R) -> R {
    watch::case(|| what.to_owned(), run).unwrap_or_else(|e| panic!("{what}: {e}"))
}

fn paths(pool: &Pool, from: &str) -> Vec<String> {
    let walk = pool.walk(from).unwrap();
    walk.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect()
}

/// Sixty directories, each with two names for the next: 2^60 paths.
#[test]
fn a_ladder_is_descended_once() {
    const RUNGS: usize = 60;
    let mut rungs = Vec::new();
    let mut ladder = Crafted::new(|pool| {
        let mut path = "/ladder".to_owned();
        pool.create_dir(&path).unwrap();
        for _ in 0..RUNGS {
            let names = ["x", "y"].map(|name| format!("{path}/{name}"));
            names.iter().for_each(|name| pool.create_dir(name).unwrap());
            rungs.push([ino(pool, &names[0]), ino(pool, &names[1])]);
            path = format!("{path}/x");
        }
        pool.write("/outside", "stays").unwrap();
        pool.snapshots().create("before").unwrap();
    });
    for [x, y] in rungs {
        ladder.lead("y", y, x);
    }
    let pool = ladder.open();
    for contents_first in [false, true] {
        let walk = || pool.walk("/ladder").unwrap().contents_first(contents_first).map(Result::unwrap).count();
        assert_eq!(ends("walk", walk), 1 + 2 * RUNGS);
    }
    ends("diff", || pool.snapshots().diff("before", None)).unwrap();
    let copied = ends("clone", || pool.clone_tree("/ladder", "/copy")).unwrap();
    assert_eq!(copied.directories, 1 + RUNGS as u64);
    assert!(matches!(ends("remove", || pool.remove_dir_all("/ladder")), Err(Error::NotEmpty)));
    pool.remove_dir_all("/copy").unwrap();
    assert_eq!(pool.read("/outside").unwrap(), b"stays");
    assert_eq!(pool.read("/.snapshots/before/outside").unwrap(), b"stays");
}

/// `/a/b/up` names `/a`; in the second case `/a` says that it lies there.
#[test]
fn a_cycle_is_not_run_round() {
    for agrees in [false, true] {
        let (mut a, mut b, mut up) = (Ino(0), Ino(0), Ino(0));
        let mut cycle = Crafted::new(|pool| {
            pool.create_dir_all("/a/b/up").unwrap();
            pool.snapshots().create("before").unwrap();
            (a, b, up) = (ino(pool, "/a"), ino(pool, "/a/b"), ino(pool, "/a/b/up"));
        });
        cycle.lead("up", up, a);
        if agrees {
            cycle.set_parent(a, b);
        }
        let pool = cycle.open();
        assert_eq!(ends("walk", || paths(&pool, "/a")), ["/a", "/a/b", "/a/b/up"], "{agrees}");
        let all: BTreeSet<_> = ends("walk", || paths(&pool, "/")).into_iter().collect();
        assert!(all.contains("/a") && all.iter().all(|path| !path.starts_with("/a/b/up/")), "{all:?}");
        let diff = ends("diff", || pool.snapshots().diff("before", None));
        assert!(matches!(diff, Err(Error::Corrupt { .. })), "{diff:?}");
        let copied = ends("clone", || pool.clone_tree("/a", "/copy"));
        assert!(agrees || matches!(copied, Err(Error::Corrupt { .. })), "{copied:?}");
        let into = ends("clone into itself", || pool.clone_tree("/a/b/up", "/a/b/new"));
        assert!(into.is_err(), "{into:?}");
        let removed = ends("remove", || pool.remove_dir_all("/a"));
        assert!(matches!(removed, Err(Error::Corrupt { .. } | Error::NotEmpty)), "{removed:?}");
        assert!(pool.exists("/a/b/up").unwrap());
    }
}

#[test]
fn a_name_of_the_root_or_of_a_directory_elsewhere_does_not_let_a_removal_out() {
    for target in ["/", "/other", "/other/empty", "/other/full"] {
        let (mut link, mut to) = (Ino(0), Ino(0));
        let mut damaged = Crafted::new(|pool| {
            pool.create_dir_all("/a/b/link").unwrap();
            pool.create_dir_all("/other/empty").unwrap();
            pool.create_dir_all("/other/full").unwrap();
            pool.write("/other/full/file", "stays").unwrap();
            pool.snapshots().create("before").unwrap();
            (link, to) = (ino(pool, "/a/b/link"), ino(pool, target));
        });
        damaged.lead("link", link, to);
        let pool = damaged.open();
        assert_eq!(ends("walk", || paths(&pool, "/a/b")), ["/a/b", "/a/b/link"]);
        let before: BTreeSet<_> = ends("walk", || paths(&pool, "/")).into_iter().collect();
        let corrupt = |what: &str, done: Result<(), Error>| {
            assert!(matches!(done, Err(Error::Corrupt { .. })), "{what} with a name of {target}: {done:?}");
        };
        corrupt("diff", ends("diff", || pool.snapshots().diff("before", None).map(drop)));
        corrupt("clone", ends("clone", || pool.clone_tree("/a", "/copy").map(drop)));
        corrupt("removal of the name", ends("remove", || pool.remove_dir_all("/a/b/link")));
        corrupt("removal of the tree", ends("remove", || pool.remove_dir_all("/a")));
        corrupt("removal of a directory", pool.remove_dir("/a/b/link"));
        assert_eq!(paths(&pool, "/").into_iter().collect::<BTreeSet<_>>(), before, "{target}");
        assert_eq!(pool.read("/other/full/file").unwrap(), b"stays");
    }
}
