//! A directory in a pool and everything beneath it, wherever the pool is open.
//!
//! ```text
//!   levels:  [ /a: batch, next ]  [ /a/b: batch, next ]  ...        a batch of entries a level
//! ```

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec;

use pagestone::{FileType, Ino};
use pagestone_server::api::{Entry, Listing};
use pagestone_server::{Store, StoreError};

use crate::target::Target;

/// What a [`Tree`] yields: where it is, the way to it from the top, and its entry.
pub(super) type Found = (Target, PathBuf, Entry);

/// Lists a part of a directory; see [`Store::entries`].
type List<'s> = Box<dyn Fn(&[u8], Option<&str>) -> Result<Listing, StoreError> + 's>;

/// An iterator that yields the top, then what is in it; a directory before its contents. A directory that is removed
/// meanwhile has no contents. As the library's walk, it enters a directory only from the one that its record names as its
/// parent, and by one name: a damaged name leads neither out of the tree nor in a circle.
pub(super) struct Tree<'s> {
    list: List<'s>,
    start: Ino,
    top: Option<(Target, Entry)>,
    levels: Vec<Level>,
    /// What went wrong with the directory that was yielded last.
    failed: Option<StoreError>,
}

struct Level {
    at: Target,
    way: PathBuf,
    batch: vec::IntoIter<Entry>,
    next: Option<String>,
    /// What was entered from here.
    entered: HashSet<Ino>,
}

impl<'s> Tree<'s> {
    pub(super) fn new(store: &'s dyn Store, at: &Target, entry: Entry) -> Tree<'s> {
        Tree::listed_by(Box::new(|path, from| store.entries(path, from)), at, entry)
    }

    fn listed_by(list: List<'s>, at: &Target, entry: Entry) -> Tree<'s> {
        let start = entry.attr.ino;
        Tree { list, start, top: Some((at.clone(), entry)), levels: Vec::new(), failed: None }
    }

    /// Goes on with the contents, if it is a directory that is to be entered.
    fn enter(&mut self, at: &Target, way: &Path, entry: &Entry) {
        let ino = entry.attr.ino;
        let first = self.levels.last_mut().is_none_or(|level| ino != self.start && level.entered.insert(ino));
        if entry.attr.kind != FileType::Dir || entry.elsewhere || !first {
            return;
        }
        match (self.list)(&at.path, None) {
            Ok(Listing { entries, next }) => {
                let (at, way, batch) = (at.clone(), way.to_path_buf(), entries.into_iter());
                self.levels.push(Level { at, way, batch, next, entered: HashSet::new() });
            }
            Err(e) if e.errno() == libc::ENOENT || e.errno() == libc::ESTALE => {}
            Err(e) => self.failed = Some(e),
        }
    }
}

impl Iterator for Tree<'_> {
    type Item = Result<Found, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((at, entry)) = self.top.take() {
            self.enter(&at, Path::new(""), &entry);
            return Some(Ok((at, PathBuf::new(), entry)));
        }
        if let Some(e) = self.failed.take() {
            return Some(Err(e));
        }
        loop {
            let level = self.levels.last_mut()?;
            if let Some(entry) = level.batch.next() {
                let (at, way) = (level.at.join(&entry.name.0), level.way.join(OsStr::from_bytes(&entry.name.0)));
                self.enter(&at, &way, &entry);
                return Some(Ok((at, way, entry)));
            }
            match level.next.take() {
                None => drop(self.levels.pop()),
                Some(from) => match (self.list)(&level.at.path, Some(&from)) {
                    Ok(listing) => (level.batch, level.next) = (listing.entries.into_iter(), listing.next),
                    Err(e) if e.errno() == libc::ENOENT || e.errno() == libc::ESTALE => drop(self.levels.pop()),
                    Err(e) => return Some(Err(e)),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pagestone::inode::{Attr, Time};
    use pagestone::{CreateOptions, Pool};
    use pagestone_server::LocalStore;

    use super::*;

    fn root() -> Target {
        Target { pool: "pool".into(), path: b"/".to_vec() }
    }

    fn dir(name: &str, ino: u64, elsewhere: bool) -> Entry {
        let attr = Attr::new(Ino(ino), FileType::Dir, 0o755, Time::default());
        Entry { name: name.into(), attr, target: None, elsewhere }
    }

    /// Fails if a name that is damaged is followed.
    #[test]
    fn a_circle_and_two_names_of_one_directory_are_entered_once() -> Result<(), StoreError> {
        let list = |path: &[u8], _: Option<&str>| {
            let entries = match path {
                b"/" => vec![dir("a", 2, false), dir("again", 2, false), dir("up", 9, true), dir("top", 1, false)],
                b"/a" => vec![dir("b", 3, false)],
                b"/a/b" => vec![dir("a", 2, true)],
                other => panic!("{} was entered", String::from_utf8_lossy(other)),
            };
            Ok(Listing { entries, next: None })
        };
        let tree = Tree::listed_by(Box::new(list), &root(), dir("/", 1, false));
        let ways = tree.map(|found| found.map(|(_, way, _)| way)).collect::<Result<Vec<_>, _>>()?;
        assert_eq!(ways, ["", "a", "a/b", "a/b/a", "again", "up", "top"].map(PathBuf::from));
        Ok(())
    }

    /// Fails if a tree that is removed meanwhile passes for a damaged one.
    #[test]
    fn a_tree_that_is_removed_meanwhile_ends_early_and_well() -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let pool = Pool::create(place.path().join("pool"), &CreateOptions::new().size(64 << 20))?;
        (0..300).try_for_each(|n| pool.create_dir_all(format!("/all/{n}/below")))?;
        let store = LocalStore::new(pool.clone());
        let mut tree = Tree::new(&store, &root(), store.entry(b"/")?);
        for _ in 0..300 {
            tree.next().transpose()?;
        }
        pool.remove_dir_all("/all")?;
        let rest = tree.collect::<Result<Vec<_>, _>>()?;
        assert!(rest.len() < 300, "{} entries", rest.len());
        Ok(())
    }
}
