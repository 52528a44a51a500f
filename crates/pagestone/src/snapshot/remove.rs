//! Removing a tree. It is not recursive, so that a deep tree does not overflow the thread's stack.

use std::os::unix::ffi::OsStrExt;

use crate::attr::FileType;
use crate::dir::{Dir, WalkEntry, gone};
use crate::error::{Error, Result};

impl Dir {
    /// Removes `name` and everything beneath it, the deepest entries first. Returns the number of names removed.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotEmpty`] if others make names meanwhile, and errors of the media: [`Error::Corrupt`]
    /// also for a damaged name that leads to a directory elsewhere, which is left alone. What was removed
    /// before the error stays removed.
    pub fn remove_tree(&self, name: &[u8]) -> Result<u64> {
        let top = self.lookup(name)?;
        if top.kind != FileType::Dir {
            return self.unlink(name).map(|()| 1);
        }
        gone(self.engine().check_child(self.ino(), name, top.ino))?;
        let top = gone(self.engine().node(top.ino))?.dir()?;
        let mut removed = 0;
        loop {
            let before = removed;
            for entry in top.walk().contents_first(true) {
                removed += self.remove_found(&entry?)?;
            }
            match self.rmdir(name) {
                // A name was made after its directory had been listed.
                Err(Error::NotEmpty) if removed > before => {}
                done => return done.map(|()| removed + 1),
            }
        }
    }

    /// Removes an entry of a walk. Returns the number of names removed.
    fn remove_found(&self, entry: &WalkEntry) -> Result<u64> {
        let dir = Dir::new(self.engine().clone(), entry.parent());
        let name = entry.file_name().as_bytes();
        let remove = |is_dir| if is_dir { dir.rmdir(name) } else { dir.unlink(name) };
        let is_dir = entry.file_type() == FileType::Dir;
        let done = match remove(is_dir) {
            // The name means something of another kind by now.
            Err(Error::IsDirectory | Error::NotDirectory) => remove(!is_dir),
            done => done,
        };
        match done {
            // It is gone, alone or with its directory, or is removed with what was made in it meanwhile.
            Err(Error::NotFound | Error::Stale(_) | Error::NotEmpty) => Ok(0),
            done => done.map(|()| 1),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests end at the first surprise
mod tests {
    use std::sync::Arc;

    use pmem::Memory;

    use crate::{CreateOptions, Pool, WalkEntry};

    /// Guard: what another removal has taken meanwhile is no error, and a name that means something of another kind goes.
    #[test]
    fn an_entry_of_a_walk_may_be_gone_or_of_another_kind_when_it_is_removed() {
        let pool = Pool::create_on(Arc::new(Memory::new(16 << 20).unwrap()), &CreateOptions::default()).unwrap();
        for path in ["/d/x/dir", "/d/y/full"] {
            pool.create_dir_all(path).unwrap();
        }
        for path in ["/d/x/file", "/d/y/file", "/d/y/other"] {
            pool.write(path, "").unwrap();
        }
        let entries: Vec<WalkEntry> = pool.walk("/d").unwrap().map(Result::unwrap).collect();
        let removed = |path: &str| {
            let entry = entries.iter().find(|entry| entry.path().to_str() == Some(path)).unwrap();
            pool.root().remove_found(entry).unwrap()
        };
        pool.remove_dir_all("/d/x").unwrap();
        pool.remove_file("/d/y/file").unwrap();
        pool.remove_file("/d/y/other").unwrap();
        pool.create_dir("/d/y/other").unwrap();
        pool.remove_dir("/d/y/full").unwrap();
        pool.write("/d/y/full", "").unwrap();
        assert_eq!(["/d/x/dir", "/d/x/file", "/d/x", "/d/y/file", "/d"].map(removed), [0; 5]);
        assert_eq!(["/d/y/other", "/d/y/full", "/d/y"].map(removed), [1; 3]);
    }
}
