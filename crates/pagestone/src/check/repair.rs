//! Repairs. Each is a normal transaction, so a crash during a repair leaves the pool no worse than before.
//!
//! Damage (a checksum that does not match, a pointer outside the pool) is reported and not changed: guessing
//! contents would hide what was lost.

use super::Pass;
use crate::alloc::Run;
use crate::attr::{FileType, NewNode};
use crate::dir::{Name, forget_name, name_again};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layout::{PageUse, ROOT};
use crate::units::{FrameNo, Ino};

/// The repair of a finding.
#[derive(Clone, Debug)]
pub(crate) enum Fix {
    /// A name in this directory that leads to no inode.
    RemoveName(Ino, Vec<u8>),
    /// The inode has this many links.
    Links(Ino, u32),
    /// The inode has this many pages.
    Pages(Ino, u64),
    /// The file's bases have storage for this many of its pages.
    Borrowed(Ino, u64),
    /// The base has this many dependents, with this xor of their numbers.
    Dependents(Ino, u32, u64),
    /// The directory has this many names.
    Names(Ino, u64),
    /// The directory's parent.
    Parent(Ino, Ino),
    /// Pages that their owner does not use.
    Free(Run, PageUse, u64),
    /// The split frame has this many pages in use.
    Used(FrameNo, u16),
    /// An inode without a name.
    Reattach(Ino),
    /// A copy of the layout state is damaged.
    State,
    /// The counters are wrong; repaired last.
    Counters,
}

pub(super) fn repair(engine: &Engine, pass: &Pass) -> Result<()> {
    // Any other repair would take inodes that are only not found for deleted ones.
    for fix in pass.fixes.iter().filter(|fix| !pass.inodes_missing || matches!(fix, Fix::State)) {
        match apply(engine, fix) {
            Ok(()) | Err(Error::Corrupt { .. } | Error::NotFound | Error::Stale(_) | Error::NoSpace) => {}
            Err(e) => return Err(e),
        }
    }
    engine.alloc.checkpoint()?;
    if pass.inodes_missing { Ok(()) } else { engine.alloc.recount() }
}

fn apply(engine: &Engine, fix: &Fix) -> Result<()> {
    let edit = |ino: Ino, change: &dyn Fn(&mut crate::layout::InodeRec)| {
        engine.alloc.transact(true, |tx| {
            let mut rec = tx.inode(ino)?;
            change(&mut rec);
            tx.put_inode(&rec)
        })
    };
    match *fix {
        Fix::RemoveName(dir, ref name) => forget_name(engine, dir, &Name::new(name)?),
        Fix::Links(ino, links) => edit(ino, &|rec| rec.nlink = links),
        Fix::Pages(ino, pages) => edit(ino, &|rec| rec.pages = pages),
        Fix::Borrowed(ino, pages) => edit(ino, &|rec| rec.set_borrowed(pages)),
        Fix::Dependents(ino, count, sum) => edit(ino, &|rec| (rec.nlink, rec.parent) = (count, sum)),
        Fix::Names(ino, names) => edit(ino, &|rec| rec.size = names),
        Fix::Parent(ino, parent) => edit(ino, &|rec| rec.parent = parent.0),
        Fix::Free(run, what, owner) => engine.alloc.transact(true, |tx| {
            tx.free(run, what, owner);
            Ok(())
        }),
        Fix::State => {
            let change = engine.alloc.change_layout();
            engine.alloc.transact(true, |tx| tx.put_state(&change, tx.state()))
        }
        Fix::Used(frame, used) => engine.alloc.set_used(frame, used),
        Fix::Reattach(ino) => reattach(engine, ino),
        Fix::Counters => Ok(()),
    }
}

/// Gives an inode without a name one in `/lost+found`. Frees a base without dependents.
fn reattach(engine: &Engine, ino: Ino) -> Result<()> {
    if engine.alloc.inode(ino)?.is_base() {
        return engine.discard_base(ino);
    }
    let lost = Name::new(b"lost+found")?;
    let dir = match engine.find(ROOT, &lost)? {
        Some(found) => found.ino,
        None => engine.create(ROOT, &lost, &NewNode::new(FileType::Dir, 0o700))?.ino,
    };
    let name = format!("#{:x}", ino.0);
    name_again(engine, dir, &Name::new(name.as_bytes())?, ino)
}
