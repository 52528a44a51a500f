//! A clone of a file under a name: one record makes the name and lets both files share what is there.

use super::Name;
use crate::attr::{Attr, FileType};
use crate::engine::Engine;
use crate::error::Result;
use crate::extent::share;
use crate::layout::InodeRec;
use crate::units::Ino;

impl Engine {
    /// Gives `dir` a new file `name` with the contents, owner, mode and times of `src`.
    pub(crate) fn clone_file(&self, src: Ino, dir: Ino, name: &Name<'_>) -> Result<Attr> {
        self.with_base_locked(src, &[dir], |tx, src| {
            let touched = self.opens.touched(src.ino());
            let made = self.create_in_tx(tx, dir, name, |tx, _, now| {
                let mut dst = InodeRec::new(tx.new_ino()?, FileType::File, src.perm, now);
                (dst.uid, dst.gid) = (src.uid, src.gid);
                let Attr { atime, mtime, .. } = src.attr()?;
                dst.set_atime(atime);
                dst.set_mtime(touched.unwrap_or(mtime));
                share(tx, src, &mut dst)?;
                tx.put_inode(&dst)?;
                Ok(dst)
            })?;
            Ok(made.attr()?)
        })
    }
}
