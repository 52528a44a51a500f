//! Attributes: reading them with what is still pending, changing them in one record.

use crate::attr::{Attr, FileType, Privileges, SetAttr, Time};
use crate::data::xattr::CAPABILITY;
use crate::engine::{Engine, InodeWrite, OpenInode};
use crate::error::{Error, Result};
use crate::layout::InodeRec;
use crate::units::Ino;

impl Engine {
    /// The attributes; a pending time of an open file counts.
    pub(crate) fn attr(&self, ino: Ino) -> Result<Attr> {
        let rec = {
            let _lock = self.locks.read(ino);
            self.alloc.inode(ino)?
        };
        self.attr_of(&rec)
    }

    /// As [`Engine::attr`], of a record that was read already.
    pub(crate) fn attr_of(&self, rec: &InodeRec) -> Result<Attr> {
        let mut attr = rec.attr()?;
        if attr.kind == FileType::File
            && let Some(t) = self.opens.touched(rec.ino())
        {
            attr.mtime = t;
            attr.ctime = attr.ctime.max(t);
        }
        Ok(attr)
    }

    /// Changes attributes; the length first.
    pub(crate) fn set_attr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        let attr = self.change_attr(ino, change)?;
        if change.size == Some(0) {
            self.detach_unused_base(ino)?;
        }
        Ok(attr)
    }

    fn change_attr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        let now = change.ctime.unwrap_or_else(Time::now);
        let lock = self.locks.write(&[ino]);
        if let Some(len) = change.size {
            self.set_len_locked(lock.of(ino), len, now)?;
            self.opens.clear_touched(ino);
        }
        let rest = SetAttr { size: None, ..*change };
        if change.size.is_none() || rest != SetAttr::default() {
            let pending = self.opens.touched(ino);
            self.alloc.transact(true, |tx| {
                let mut rec = tx.inode(ino)?;
                if let Some(t) = pending {
                    rec.set_mtime(t);
                }
                change_record(&mut rec, &rest, now)?;
                tx.put_inode(&rec)
            })?;
            self.opens.clear_touched(ino);
        }
        if change.perm.is_some() {
            self.opens.forget_privileges(lock.of(ino));
        }
        self.alloc.inode(ino)?.attr()
    }

    /// What privileges an open file has. Looked up at the first call and after a change of them; after
    /// that it is one load.
    pub(crate) fn privileges(&self, ino: Ino, open: &OpenInode) -> Result<Privileges> {
        if let Some(known) = open.privileges() {
            return Ok(known);
        }
        let lock = self.locks.read(ino);
        let rec = self.alloc.inode(ino)?;
        let found = Privileges {
            set_id: rec.perm & (libc::S_ISUID | libc::S_ISGID) != 0,
            capability: self.has_xattr(lock.held(), &rec, CAPABILITY)?,
        };
        open.remember_privileges(lock.held(), found);
        Ok(found)
    }

    /// Writes a pending time of an open file to its record.
    pub(crate) fn write_pending_times(&self, ino: Ino) -> Result<()> {
        if self.opens.touched(ino).is_none() {
            return Ok(());
        }
        let lock = self.locks.write(&[ino]);
        self.write_pending_times_locked(lock.of(ino))
    }

    /// As [`Engine::write_pending_times`].
    pub(crate) fn write_pending_times_locked(&self, held: InodeWrite<'_>) -> Result<()> {
        let ino = held.ino();
        let Some(t) = self.opens.touched(ino) else { return Ok(()) };
        self.alloc.transact(true, |tx| {
            let mut rec = tx.inode(ino)?;
            rec.touch(t);
            tx.put_inode(&rec)
        })?;
        self.opens.clear_touched(ino);
        Ok(())
    }
}

fn change_record(rec: &mut InodeRec, change: &SetAttr, now: Time) -> Result<()> {
    for time in [change.atime, change.mtime, change.ctime].into_iter().flatten() {
        if time.nsec > 999_999_999 {
            return Err(Error::Invalid("nanoseconds of a second are fewer than a billion"));
        }
    }
    rec.perm = change.perm.map_or(rec.perm, |p| p & 0o7777);
    rec.uid = change.uid.unwrap_or(rec.uid);
    rec.gid = change.gid.unwrap_or(rec.gid);
    if let Some(t) = change.atime {
        rec.set_atime(t);
    }
    if let Some(t) = change.mtime {
        rec.set_mtime(t);
    }
    rec.set_ctime(now);
    Ok(())
}
