//! A tree that is complete takes the place of the root's contents.
//!
//! ```text
//!   /.restoring complete --> names of the root to /.replaced --> /.restored --> its names to the root --> /.replaced removed
//!                            '-------------------- a pause: nobody sees a half ---------------------'
//! ```
//!
//! A crash may interrupt it at any step. The next call goes on there. Programs may have made names in the root since; these
//! go to `/.replaced`, too.

use super::copy::{copy_xattrs, entries};
use super::{REPLACED, RESTORED, RESTORING, SNAPSHOTS, Snapshots};
use crate::attr::{FileType, NewNode, SetAttr};
use crate::dir::Dir;
use crate::engine::Pause;
use crate::error::{Error, Result};
use crate::units::Ino;

impl Snapshots {
    /// Finishes a restore, at whatever step it was interrupted.
    pub(super) fn finish_restore(&self, dir: &Dir) -> Result<()> {
        if dir.lookup(RESTORING).is_ok() || dir.lookup(RESTORED).is_ok() {
            let replaced = match dir.lookup(REPLACED) {
                Err(Error::NotFound) => dir.create(REPLACED, &NewNode::new(FileType::Dir, 0o700))?.ino,
                found => found?.ino,
            };
            let replaced = self.engine.node(replaced)?.dir()?;
            let slowdown = self.engine.slow_down();
            let pause = slowdown.pause();
            self.exchange(dir, &replaced, &pause)?;
        }
        if dir.lookup(REPLACED).is_ok() {
            dir.remove_tree(REPLACED)?;
        }
        Ok(())
    }

    fn exchange(&self, dir: &Dir, replaced: &Dir, pause: &Pause<'_>) -> Result<()> {
        let root = self.engine.root();
        if let Ok(restoring) = dir.lookup(RESTORING) {
            for entry in entries(&root)?.into_iter().filter(|entry| entry.name != SNAPSHOTS) {
                displace(&root, &entry.name, entry.ino, replaced, pause)?;
            }
            let change = SetAttr {
                perm: Some(restoring.perm),
                uid: Some(restoring.uid),
                gid: Some(restoring.gid),
                ..SetAttr::default()
            };
            root.node().set_attr(&change)?;
            copy_xattrs(&self.engine.node(restoring.ino)?, &root.node())?;
            dir.rename(RESTORING, dir.ino(), RESTORED, crate::attr::RenameMode::NoReplace)?;
        }
        if let Ok(restored) = dir.lookup(RESTORED) {
            let from = self.engine.node(restored.ino)?.dir()?;
            for entry in entries(&from)? {
                if let Ok(there) = root.lookup(&entry.name) {
                    displace(&root, &entry.name, there.ino, replaced, pause)?;
                }
                from.rename_in_pause(pause, &entry.name, root.ino(), &entry.name)?;
            }
            root.node().set_attr(&SetAttr { mtime: Some(restored.mtime), ..SetAttr::default() })?;
            dir.rmdir(RESTORED)?;
        }
        Ok(())
    }
}

/// Moves a name of the root to what is replaced, where it gets another one: two that were replaced may have had the same.
fn displace(root: &Dir, name: &[u8], ino: Ino, replaced: &Dir, pause: &Pause<'_>) -> Result<()> {
    let mut n = 0u64;
    loop {
        match root.rename_in_pause(pause, name, replaced.ino(), format!("{:x}-{n}", ino.0).as_bytes()) {
            Err(Error::Exists) => n += 1,
            done => return done,
        }
    }
}
