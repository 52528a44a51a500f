//! From a tree whose files were copied one after the other to a tree as it is at one moment.
//!
//! ```text
//!   what has changed since it was copied --> names first:  names that are gone: set aside in /.snapshots/.aside
//!        (changed_inodes.rs)                               names that are new:  from there, or copied
//!                                        --> contents, extended attributes, attributes
//!   again, until little has changed meanwhile --> a pause --> once more, for the last time
//! ```
//!
//! *Why is it enough to ask transactions?* After a file was cloned it has no page of its own. A write in place needs one, so
//! a transaction comes before it; so does the first store through a mapping, which the clone has frozen.
//!
//! *Which moment is it?* That at which the last mapping is frozen, in the pause. What a program does after that waits for
//! the end of the pause: so the copy has no change without all that came before it.
//!
//! *Does it end?* Each round is as long as what has changed during the one before takes. Where that does not get less,
//! changes are slowed down, more with each round.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::ASIDE;
use super::copy::{Copy, Missing, copy_xattrs, entries};
use crate::alloc::Recording;
use crate::attr::{FileType, NewNode, RenameMode, SetAttr};
use crate::dir::{Descent, Dir};
use crate::engine::Pause;
use crate::error::{Error, Result};
use crate::units::Ino;

/// So many changed inodes are left for the pause: with 20 us for each it is little longer than a millisecond.
const FEW: usize = 64;
/// Rounds before the pause, at most.
const ROUNDS: u32 = 16;
/// The first delay of changes that come too fast. Each later one is twice as long.
const FIRST_DELAY: Duration = Duration::from_micros(20);
const LONGEST_DELAY: Duration = Duration::from_millis(2);

/// What the rounds leave to later ones.
#[derive(Default)]
struct State {
    /// The directory for what has no name at the moment, once it is needed.
    aside: Option<Dir>,
    /// Copies that lie there, under their numbers.
    set_aside: HashSet<Ino>,
    /// Directories that could not be brought up to date, because something was moved meanwhile.
    again: HashSet<Ino>,
}

/// The name of a copy that was set aside.
fn aside_name(copy: Ino) -> Vec<u8> {
    format!("{:x}", copy.0).into_bytes()
}

impl Copy<'_> {
    /// Brings the copy to one moment. Everybody else waits meanwhile, at the end.
    pub(super) fn catch_up(&mut self, recording: &Recording<'_>) -> Result<()> {
        let mut state = State::default();
        let slowdown = self.engine.slow_down();
        let (mut before, mut delay) = (usize::MAX, FIRST_DELAY);
        for round in 0..ROUNDS {
            let changed = recording.len();
            // Few inodes can be directories with much in them: one round at least is not in the pause.
            if changed == 0 || changed <= FEW && round > 0 {
                break;
            }
            if changed > before / 2 {
                slowdown.set(delay);
                delay = (delay * 2).min(LONGEST_DELAY);
            }
            before = changed;
            self.round(recording.take(), &mut state, None)?;
        }
        if before < usize::MAX {
            // None is needed in the pause then: it can take long on an ordinary file.
            self.engine.alloc.checkpoint()?;
        }
        let pause = slowdown.pause();
        let mut changed = recording.take();
        // Their times are in no record.
        changed.extend(self.engine.opens.all_touched());
        self.round(changed, &mut state, Some(&pause))?;
        self.made.pause_ns = u64::try_from(pause.elapsed().as_nanos()).unwrap_or(u64::MAX);
        drop(pause);
        drop(slowdown);
        self.remove_aside(&state)
    }

    /// Copies again what has changed. Outside of a pause, what cannot be done because of later changes stays for the next
    /// round.
    fn round(&mut self, mut changed: HashSet<Ino>, state: &mut State, pause: Option<&Pause<'_>>) -> Result<()> {
        changed.extend(state.again.drain());
        // Found before: the names may be others by now.
        changed.extend(self.moved.drain(..).map(|name| name.from));
        self.fresh.clear();
        // A defined order, so that what goes wrong does so again.
        let mut known: Vec<(Ino, Ino)> =
            changed.iter().filter_map(|ino| self.copies.get(ino).map(|&copy| (*ino, copy))).collect();
        known.sort_unstable();
        let mut missing = Vec::new();
        for &(from, to) in &known {
            self.take_names(from, to, state, pause, &mut missing)?;
        }
        while !missing.is_empty() {
            for name in missing {
                // The name changes the times of a directory that was only just copied.
                if self.fresh.remove(&name.from) {
                    known.push((name.from, name.to));
                }
                match self.give_name(&name, state, pause) {
                    Err(Error::Stale(_) | Error::Invalid(_) | Error::NotFound) if pause.is_none() => {
                        state.again.insert(name.from);
                    }
                    done => done?,
                }
            }
            self.finish_directories()?;
            missing = std::mem::take(&mut self.moved);
        }
        // The times of directories last: names change them.
        for is_dir in [false, true] {
            for &(from, to) in &known {
                if self.fresh.contains(&from) {
                    continue;
                }
                match self.same_contents(from, to, is_dir) {
                    // It has neither a name nor a user any more.
                    Err(Error::Stale(_)) => {}
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// Takes the names from a copy of a directory that the directory does not have, and finds those that the copy lacks.
    fn take_names(
        &mut self,
        from: Ino,
        to: Ino,
        state: &mut State,
        pause: Option<&Pause<'_>>,
        missing: &mut Vec<Missing>,
    ) -> Result<()> {
        let Ok(copy) = self.engine.node(to)?.dir() else { return Ok(()) };
        let wanted = match self.entries(from) {
            Err(e @ Error::Stale(_)) if from == self.top => return Err(e),
            // It was removed. What is in its copy may have been moved before.
            Err(Error::Stale(_)) => Vec::new(),
            wanted => wanted?,
        };
        let mut found: BTreeMap<Vec<u8>, Ino> = entries(&copy)?.into_iter().map(|e| (e.name, e.ino)).collect();
        for entry in wanted {
            match (found.get(&entry.name), self.copies.get(&entry.ino)) {
                (Some(found_copy), Some(copy)) if found_copy == copy => drop(found.remove(&entry.name)),
                _ => missing.push(Missing { from, to, entry }),
            }
        }
        found.into_iter().try_for_each(|(name, ino)| self.set_aside(&copy, &name, ino, state, pause))
    }

    fn set_aside(
        &mut self,
        dir: &Dir,
        name: &[u8],
        copy: Ino,
        state: &mut State,
        pause: Option<&Pause<'_>>,
    ) -> Result<()> {
        if state.set_aside.contains(&copy) {
            self.made.others = self.made.others.saturating_sub(1);
            return dir.unlink(name);
        }
        if state.aside.is_none() {
            let made = self.workspace.create(ASIDE, &NewNode::new(FileType::Dir, 0o700))?;
            state.aside = Some(self.engine.node(made.ino)?.dir()?);
        }
        if let Some(aside) = &state.aside {
            rename(pause, dir, name, aside, &aside_name(copy))?;
            state.set_aside.insert(copy);
        }
        Ok(())
    }

    fn give_name(&mut self, missing: &Missing, state: &mut State, pause: Option<&Pause<'_>>) -> Result<()> {
        let Missing { from, to, entry } = missing;
        let to = self.engine.node(*to)?.dir()?;
        match (self.copies.get(&entry.ino).copied(), &state.aside) {
            (Some(copy), Some(aside)) if state.set_aside.contains(&copy) => {
                rename(pause, aside, &aside_name(copy), &to, &entry.name)?;
                state.set_aside.remove(&copy);
                Ok(())
            }
            (Some(copy), _) if entry.kind != FileType::Dir => {
                to.link(&entry.name, copy)?;
                self.made.others += 1;
                Ok(())
            }
            // It was moved after the directory that had it was looked at.
            (Some(_), _) => match pause {
                None => Err(Error::NotFound),
                Some(_) => Err(Error::Invalid("a directory has two names")),
            },
            (None, _) => {
                let copied = self.entry(&mut Descent::new(self.top).below(*from), entry, &to);
                if pause.is_none() && copied.is_ok() && !self.copies.contains_key(&entry.ino) {
                    return Err(Error::NotFound);
                }
                copied
            }
        }
    }

    /// Gives the copy of an inode that is or is not a directory what the inode has now, but for names.
    fn same_contents(&self, from: Ino, to: Ino, is_dir: bool) -> Result<()> {
        let (source, copy) = (self.engine.node(from)?, self.engine.node(to)?);
        let attr = source.attr()?;
        if (attr.kind == FileType::Dir) != is_dir {
            return Ok(());
        }
        if attr.kind == FileType::File && !self.engine.has_same_contents(from, to)? {
            copy.set_attr(&SetAttr { size: Some(0), ..SetAttr::default() })?;
            self.engine.share_contents(from, to)?;
        }
        copy_xattrs(&source, &copy)?;
        let attr = source.attr()?;
        copy.set_attr(&SetAttr {
            perm: Some(attr.perm),
            uid: Some(attr.uid),
            gid: Some(attr.gid),
            atime: Some(attr.atime),
            mtime: Some(attr.mtime),
            ..SetAttr::default()
        })?;
        Ok(())
    }

    /// Removes what has no name in the source any more, and counts it no more.
    fn remove_aside(&mut self, state: &State) -> Result<()> {
        let Some(aside) = &state.aside else { return Ok(()) };
        let mut names: HashMap<Ino, u64> = HashMap::new();
        for entry in aside.walk() {
            let entry = entry?;
            match entry.file_type() {
                FileType::Dir => self.made.directories = self.made.directories.saturating_sub(1),
                _ => *names.entry(entry.ino()).or_default() += 1,
            }
        }
        for (ino, names) in names {
            let attr = self.engine.node(ino)?.attr()?;
            let file = u64::from(attr.kind == FileType::File && names == u64::from(attr.nlink));
            self.made.files = self.made.files.saturating_sub(file);
            self.made.others = self.made.others.saturating_sub(names - file);
        }
        self.workspace.remove_tree(ASIDE).map(drop)
    }
}

/// Renames between two directories.
fn rename(pause: Option<&Pause<'_>>, from: &Dir, name: &[u8], to: &Dir, to_name: &[u8]) -> Result<()> {
    match pause {
        Some(pause) => from.rename_in_pause(pause, name, to.ino(), to_name),
        None => from.rename(name, to.ino(), to_name, RenameMode::NoReplace),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests end at the first surprise
mod tests {
    use std::sync::Arc;

    use pmem::Memory;

    use super::super::copy::{Copied, copy_beside};
    use super::super::diff::diff;
    use crate::attr::{NewNode, XattrMode};
    use crate::error::{Error, Result};
    use crate::{CreateOptions, FileType, Pool};

    /// Copies `/from` to `/copy`, with `change` by another thread between the first copy and the rest.
    fn copy_with(pool: &Pool, change: impl FnOnce() + Send) -> Result<Copied> {
        let work = pool.root().create(b"made", &NewNode::new(FileType::Dir, 0o700)).unwrap().ino;
        let work = pool.node(work).unwrap().dir().unwrap();
        let from = pool.resolve(b"/from").unwrap().ino();
        let change = || std::thread::scope(|threads| threads.spawn(change).join().unwrap());
        copy_beside(pool.engine(), from, &work, b"copy", change)
    }

    fn pool() -> Pool {
        let pool = Pool::create_on(Arc::new(Memory::new(64 << 20).unwrap()), &CreateOptions::default()).unwrap();
        pool.create_dir_all("/from/q/p/d/e").unwrap();
        pool.create_dir_all("/from/empty").unwrap();
        pool.write("/from/q/p/file", [1; 9000]).unwrap();
        pool.write("/from/q/p/d/e/deep", [2; 9000]).unwrap();
        pool.hard_link("/from/q/p/file", "/from/q/second").unwrap();
        pool.write("/elsewhere", "elsewhere").unwrap();
        pool
    }

    type Change = fn(&Pool);

    /// Each change fails if it is not noticed, or not copied. What is moved is moved in the copy.
    #[test]
    fn what_changes_after_it_was_copied_is_copied_again() {
        let changes: [Change; 14] = [
            |_| {},
            // A directory leaves its parent, which goes.
            |pool| {
                pool.rename("/from/q/p/d", "/from/q/d").unwrap();
                pool.remove_dir_all("/from/q/p").unwrap();
            },
            // A directory takes the place of its parent.
            |pool| {
                pool.rename("/from/q/p/d", "/from/d").unwrap();
                pool.rename("/from/q", "/from/d/q").unwrap();
            },
            |pool| pool.rename("/from/q/p", "/from/empty").unwrap(),
            |pool| pool.rename("/from/q/p", "/gone").unwrap(),
            |pool| {
                pool.create_dir_all("/new/below").unwrap();
                pool.write("/new/below/file", [3; 5000]).unwrap();
                pool.rename("/new", "/from/q/new").unwrap();
            },
            |pool| pool.rename("/elsewhere", "/from/q/p/file").unwrap(),
            |pool| {
                pool.remove_file("/from/q/p/file").unwrap();
                pool.hard_link("/from/q/second", "/from/q/p/d/third").unwrap();
                pool.rename("/from/q/second", "/from/q/p/file").unwrap();
            },
            |pool| pool.remove_dir_all("/from/q").unwrap(),
            |pool| {
                pool.remove_file("/from/q/second").unwrap();
                pool.write("/from/q/second", [4; 100]).unwrap();
                pool.open_file("/from/q/p/d/e/deep").unwrap().write_all_at(&[5; 10], 8000).unwrap();
            },
            |pool| {
                let file = pool.open_file("/from/q/p/file").unwrap();
                file.punch_hole(0..4096).unwrap();
                file.allocate(0..20_000).unwrap();
                pool.set_permissions("/from/q", 0o711).unwrap();
            },
            |pool| {
                let node = pool.resolve(b"/from/q/p").unwrap();
                node.set_xattr(b"user.a", b"1", XattrMode::Create).unwrap();
                node.set_xattr(b"user.b", b"2", XattrMode::Create).unwrap();
                node.remove_xattr(b"user.a").unwrap();
            },
            |pool| {
                let file = pool.open_file("/from/q/p/file").unwrap();
                file.write_atomic(&[(0, &[6; 100]), (8500, &[7; 1000])]).unwrap();
                let source = pool.open_file("/from/q/p/d/e/deep").unwrap();
                pool.create_file("/from/clone").unwrap().clone_from_file(&source).unwrap();
            },
            |pool| {
                for i in 0..200 {
                    pool.write(format!("/from/q/p/d/many{i}"), [8; 10]).unwrap();
                    pool.rename(format!("/from/q/p/d/many{i}"), format!("/from/empty/{i}")).unwrap();
                }
                pool.symlink("/from", "/from/empty/link").unwrap();
            },
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let pool = pool();
            let made = copy_with(&pool, || change(&pool)).unwrap();
            let [from, copy] = [&b"/from"[..], b"/made/copy"].map(|path| pool.resolve(path).unwrap().ino());
            assert!(diff(pool.engine(), from, copy).unwrap().is_empty(), "change {i}");
            let count = pool.walk("/made/copy").unwrap().count() as u64;
            assert_eq!(made.files + made.directories + made.others, count, "change {i}: {made:?}");
            assert_eq!(pool.read_dir("/made").unwrap().count(), 1, "change {i}: something was left aside");
        }
    }

    #[test]
    fn a_tree_that_is_removed_while_it_is_copied_is_no_tree() {
        let pool = pool();
        let made = copy_with(&pool, || pool.remove_dir_all("/from").unwrap());
        assert!(matches!(made, Err(Error::Stale(_))), "{made:?}");
    }

    /// Fails if an error leaves others waiting.
    #[test]
    fn a_full_pool_ends_a_copy_and_the_pause() {
        let pool = pool();
        let filler = pool.create_file("/filler").unwrap();
        let made = copy_with(&pool, || {
            for i in 0..100 {
                pool.create_dir(format!("/from/new{i}")).unwrap();
            }
            let mut at = 0;
            for len in [1 << 20, 4096] {
                while filler.write_at(&vec![1; len], at).is_ok() {
                    at += len as u64;
                }
            }
        });
        assert!(matches!(made, Err(Error::NoSpace)), "{made:?}");
        // Others go on.
        std::thread::scope(|threads| threads.spawn(|| pool.remove_file("/filler").unwrap()).join().unwrap());
    }
}
