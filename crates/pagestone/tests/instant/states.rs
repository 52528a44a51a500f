//! Random changes, each one record, one after the other; every snapshot is one of the states in between.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pagestone::inode::{RenameMode, XattrMode};
use pagestone::mmap::{MapOptions, Mapping};
use pagestone::{FileType, Ino, Pool};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use crate::tree::{MAPPED, Node, Tree, checksum};
use crate::{EndsThreads, each_media, seed, time};

/// The pool's contents as they should be, and what they were since the last snapshot began.
struct World<'p> {
    pool: &'p Pool,
    tree: Tree,
    rng: StdRng,
    count: u64,
    maps: Vec<(Ino, Mapping)>,
    states: Vec<String>,
}

fn parent(path: &str) -> &str {
    &path[..path.rfind('/').unwrap()]
}

impl<'p> World<'p> {
    fn new(pool: &'p Pool, seed: u64) -> World<'p> {
        let (tree, rng) = (Tree::default(), StdRng::seed_from_u64(seed));
        let mut world = World { pool, tree, rng, count: 0, maps: Vec::new(), states: Vec::new() };
        for i in 0..4 {
            let path = format!("/mapped{i}");
            let file = pool.create_file(&path).unwrap();
            file.write_all_at(&[0; MAPPED], 0).unwrap();
            world.maps.push((file.ino(), file.map(0..MAPPED as u64, &MapOptions::shared()).unwrap()));
            world.learn(&path, &[]);
        }
        for _ in 0..600 {
            world.step();
        }
        world
    }

    /// Takes over what the pool says of a name and its inode. `dirs`: their times have changed too.
    fn learn(&mut self, path: &str, dirs: &[&str]) {
        let metadata = self.pool.symlink_metadata(path).unwrap();
        let ino = metadata.ino();
        self.tree.names.insert(path.to_owned(), ino);
        let bytes = match metadata.file_type() {
            FileType::Symlink => self.pool.node(ino).unwrap().read_link().unwrap(),
            _ => Vec::new(),
        };
        let mapped = self.maps.iter().any(|(mapped, _)| *mapped == ino);
        let kind = metadata.file_type();
        let node = self.tree.nodes.entry(ino).or_insert(Node {
            kind,
            sum: 0,
            bytes: if mapped { vec![0; MAPPED] } else { bytes },
            perm: 0,
            xattrs: BTreeMap::new(),
            modified: metadata.modified(),
        });
        node.sum = checksum(&node.bytes);
        node.perm = metadata.permissions();
        node.modified = metadata.modified();
        dirs.iter().filter(|dir| !dir.is_empty()).for_each(|dir| self.learn_time(dir));
    }

    fn learn_time(&mut self, dir: &str) {
        let modified = self.pool.metadata(dir).unwrap().modified();
        let ino = self.tree.names[dir];
        self.tree.nodes.get_mut(&ino).unwrap().modified = modified;
    }

    /// A random name of this kind; the empty path of the root for a directory, if there is no other.
    fn some(&mut self, kind: FileType) -> String {
        let of_kind = self.tree.names.iter().filter(|(_, ino)| self.tree.nodes[ino].kind == kind);
        let root = (kind == FileType::Dir).then(String::new);
        of_kind.map(|(path, _)| path.clone()).chain(root).choose(&mut self.rng).unwrap_or_default()
    }

    fn new_name(&mut self) -> String {
        self.count += 1;
        format!("{}/n{}", self.some(FileType::Dir), self.count)
    }

    /// Moves a name, and those beneath it.
    fn moved(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        let names = std::mem::take(&mut self.tree.names);
        let moved = |path: String| match path.strip_prefix(&below) {
            Some(rest) => format!("{to}/{rest}"),
            None if path == from => to.to_owned(),
            None => path,
        };
        self.tree.names = names.into_iter().map(|(path, ino)| (moved(path), ino)).collect();
    }

    fn forget(&mut self, path: &str) {
        let ino = self.tree.names.remove(path).unwrap();
        if !self.tree.names.values().any(|other| *other == ino) && self.maps.iter().all(|(mapped, _)| *mapped != ino) {
            self.tree.nodes.remove(&ino);
        }
    }

    /// One change of the pool, which is one record or one store, and the same in the tree.
    fn step(&mut self) {
        self.change();
        self.states.push(self.tree.describe());
    }

    fn change(&mut self) {
        let file = self.some(FileType::File);
        let ino = self.tree.names.get(&file).copied();
        match (self.rng.random_range(0..100), ino) {
            (0..10, _) => {
                let path = self.new_name();
                self.pool.create_file(&path).unwrap();
                self.learn(&path, &[parent(&path)]);
            }
            (10..15, _) => {
                let path = self.new_name();
                self.pool.create_dir(&path).unwrap();
                self.learn(&path, &[parent(&path)]);
            }
            (15..17, _) => {
                let path = self.new_name();
                self.pool.symlink("/some/where", &path).unwrap();
                self.learn(&path, &[parent(&path)]);
            }
            (17..50, Some(ino)) => self.write(&file, ino),
            (50..54, Some(ino)) => {
                let (perm, value) = (self.rng.random_range(0..0o7777), self.count.to_le_bytes());
                self.pool.set_permissions(&file, perm).unwrap();
                let node = self.tree.nodes.get_mut(&ino).unwrap();
                node.perm = perm;
                self.states.push(self.tree.describe());
                let name = format!("user.x{}", self.rng.random_range(0..3)).into_bytes();
                let (real, node) = (self.pool.node(ino).unwrap(), self.tree.nodes.get_mut(&ino).unwrap());
                match node.xattrs.remove(&name) {
                    Some(_) => real.remove_xattr(&name).unwrap(),
                    None => {
                        real.set_xattr(&name, &value, XattrMode::Create).unwrap();
                        node.xattrs.insert(name, value.to_vec());
                    }
                }
            }
            (54..60, Some(_)) => {
                let path = self.new_name();
                self.pool.hard_link(&file, &path).unwrap();
                self.learn(&path, &[parent(&path)]);
            }
            (60..68, Some(_)) => {
                self.pool.remove_file(&file).unwrap();
                self.forget(&file);
                if !parent(&file).is_empty() {
                    self.learn_time(parent(&file));
                }
            }
            (68..86, _) => self.rename(),
            (86..88, _) => self.remove_dir(),
            (_, _) => {
                let (index, at) = (self.rng.random_range(0..self.maps.len()), self.rng.random_range(0..MAPPED / 8));
                let value = self.rng.random::<u64>();
                let (ino, map) = &self.maps[index];
                map.store::<u64>(at as u64 * 8, value).unwrap();
                let node = self.tree.nodes.get_mut(ino).unwrap();
                node.bytes[at * 8..][..8].copy_from_slice(&value.to_le_bytes());
                node.sum = checksum(&node.bytes);
            }
        }
    }

    fn write(&mut self, path: &str, ino: Ino) {
        let file = self.pool.file_options().write(true).open(path).unwrap();
        let mapped = self.maps.iter().any(|(mapped, _)| *mapped == ino);
        let node = self.tree.nodes.get_mut(&ino).unwrap();
        let len = node.bytes.len();
        if !mapped && self.rng.random_bool(0.2) {
            let new = self.rng.random_range(0..20_000);
            file.set_len(new as u64).unwrap();
            node.bytes.resize(new, 0);
        } else {
            let at = self.rng.random_range(0..=len.min(30_000));
            let most = if mapped { (MAPPED - at).max(1) } else { 9000 };
            let at = if mapped { at.min(MAPPED - 1) } else { at };
            let data = vec![self.rng.random::<u8>(); self.rng.random_range(1..=most)];
            file.write_all_at(&data, at as u64).unwrap();
            node.bytes.resize(len.max(at + data.len()), 0);
            node.bytes[at..at + data.len()].copy_from_slice(&data);
        }
        node.sum = checksum(&node.bytes);
        node.modified = file.metadata().unwrap().modified();
    }

    fn rename(&mut self) {
        let Some(from) = self.tree.names.keys().choose(&mut self.rng).cloned() else { return };
        let to = self.new_name();
        if to.starts_with(&format!("{from}/")) {
            return;
        }
        let (old, new) = (parent(&from).to_owned(), parent(&to).to_owned());
        let other = self.some(FileType::File);
        let file = self.tree.nodes[&self.tree.names[&from]].kind == FileType::File;
        if file && !other.is_empty() && self.tree.names[&other] != self.tree.names[&from] && self.rng.random_bool(0.4) {
            let exchange = self.rng.random_bool(0.5);
            let dir = |path: &str| self.pool.resolve(path.as_bytes()).unwrap().dir().unwrap();
            let whole = |path: &str| if path.is_empty() { "/".to_owned() } else { path.to_owned() };
            let mode = if exchange { RenameMode::Exchange } else { RenameMode::Replace };
            let (a, b) = (dir(&whole(&old)), dir(&whole(parent(&other))));
            let (from_name, to_name) = (&from[old.len() + 1..], &other[parent(&other).len() + 1..]);
            a.rename(from_name.as_bytes(), b.ino(), to_name.as_bytes(), mode).unwrap();
            let ino = self.tree.names[&from];
            let replaced = self.tree.names[&other];
            if exchange {
                self.tree.names.insert(from.clone(), replaced);
            } else {
                self.forget(&other);
                self.tree.names.remove(&from);
            }
            self.tree.names.insert(other.clone(), ino);
            [old.as_str(), parent(&other)].iter().filter(|dir| !dir.is_empty()).for_each(|dir| self.learn_time(dir));
        } else {
            self.pool.rename(&from, &to).unwrap();
            self.moved(&from, &to);
            [old, new].iter().filter(|dir| !dir.is_empty()).for_each(|dir| self.learn_time(dir));
        }
    }

    fn remove_dir(&mut self) {
        let dir = self.some(FileType::Dir);
        let below = format!("{dir}/");
        if dir.is_empty() || self.tree.names.keys().any(|path| path.starts_with(&below)) {
            return;
        }
        self.pool.remove_dir(&dir).unwrap();
        self.forget(&dir);
        if !parent(&dir).is_empty() {
            self.learn_time(parent(&dir));
        }
    }
}

/// The first lines in which two descriptions differ.
fn difference(a: &str, b: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
    let only = |x: &[&str], y: &[&str]| {
        x.iter().filter(|line| !y.contains(line)).take(8).copied().collect::<Vec<_>>().join("\n  ")
    };
    format!("only in the snapshot:\n  {}\nonly in the state:\n  {}", only(&a, &b), only(&b, &a))
}

#[test]
fn a_snapshot_is_one_of_the_states_between_its_beginning_and_its_end() {
    let seed = seed();
    each_media(256 << 20, |media, pool| {
        let world = Mutex::new(World::new(pool, seed));
        let end = AtomicBool::new(false);
        let (mut snapshots, mut compared, mut longest) = (0u32, 0, 0);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        world.lock().unwrap().step();
                        std::thread::sleep(Duration::from_micros(5));
                    }
                });
            }
            let _ends = EndsThreads(&end);
            let begun = Instant::now();
            while begun.elapsed() < time() || snapshots < 3 {
                {
                    let mut world = world.lock().unwrap();
                    world.states.clear();
                    let now = world.tree.describe();
                    world.states.push(now);
                }
                let name = format!("s{snapshots}");
                let made = pool.snapshots().create(&name);
                let mut world = world.lock().unwrap();
                let made = made.unwrap();
                let states = std::mem::take(&mut world.states);
                drop(world);
                let tree = Tree::read(pool, &format!("/.snapshots/{name}"));
                let files = tree.nodes.values().filter(|node| node.kind == FileType::File).count() as u64;
                let dirs = 1 + tree.nodes.values().filter(|node| node.kind == FileType::Dir).count() as u64;
                let found = tree.describe();
                if !states.contains(&found) {
                    let all = states.iter().enumerate().map(|(i, state)| (i, difference(&found, state)));
                    let (i, nearest) = all.min_by_key(|(_, difference)| difference.len()).unwrap();
                    panic!("{media}, {name}, nearest is state {i} of {}:\n{nearest}", states.len());
                }
                assert_eq!((made.files, made.directories), (files, dirs), "{media}, {name}: {made:?}");
                assert_eq!(made.others + made.files + made.directories, tree.names.len() as u64 + 1, "{made:?}");
                compared += states.len();
                longest = longest.max(made.pause_ns);
                snapshots += 1;
                if snapshots % 4 == 0 {
                    pool.snapshots().delete(format!("s{}", snapshots - 3)).unwrap();
                }
            }
        });
        println!("{media}: {snapshots} snapshots, {compared} states, longest pause {} us", longest / 1000);
        assert!(compared > snapshots as usize, "{media}: nothing happened beside the snapshots");
    });
}
