//! Repairs: each an ordinary transaction, so a crash in the middle is no worse than before.
//!
//! What is damaged (a checksum that does not match, a pointer into nowhere) is left and reported:
//! guessing at contents would hide what was lost.

use super::Pass;
use crate::alloc::Run;
use crate::attr::{Kind, NewNode};
use crate::dir::{Name, forget_name, name_again};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layout::{PageUse, ROOT};
use crate::units::{FrameNo, Ino};

/// What follows from a finding.
#[derive(Clone, Debug)]
pub(crate) enum Fix {
    /// This name in this directory leads nowhere.
    RemoveName(Ino, Vec<u8>),
    /// The inode has this many links.
    Links(Ino, u32),
    /// The inode has this many pages.
    Pages(Ino, u64),
    /// The file's bases answer for this many pages.
    Borrowed(Ino, u64),
    /// The base has this many dependents, and this is their sum.
    Dependents(Ino, u32, u64),
    /// The directory has this many names.
    Names(Ino, u64),
    /// The directory's parent.
    Parent(Ino, Ino),
    /// Pages whose owner does not know of them.
    Free(Run, PageUse, u64),
    /// The split frame has this many pages in use.
    Used(FrameNo, u16),
    /// An inode without a name.
    Reattach(Ino),
    /// A copy of the pool's state is not whole.
    State,
    /// The counters do not add up; done last.
    Counters,
}

pub(super) fn repair(engine: &Engine, pass: &Pass) -> Result<()> {
    for fix in &pass.fixes {
        match apply(engine, fix) {
            Ok(()) | Err(Error::Corrupt { .. } | Error::NotFound | Error::Stale(_) | Error::NoSpace) => {}
            Err(e) => return Err(e),
        }
    }
    engine.alloc.checkpoint()?;
    engine.alloc.recount()
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
        Fix::State => engine.alloc.transact(true, |tx| tx.put_state(tx.state())),
        Fix::Used(frame, used) => engine.alloc.set_used(frame, used),
        Fix::Reattach(ino) => reattach(engine, ino),
        Fix::Counters => Ok(()),
    }
}

/// Gives an inode without a name one in `/lost+found`; a base that nothing stands on goes.
fn reattach(engine: &Engine, ino: Ino) -> Result<()> {
    if engine.alloc.inode(ino)?.is_base() {
        return engine.discard_base(ino);
    }
    let lost = Name::new(b"lost+found")?;
    let dir = match engine.find(ROOT, &lost)? {
        Some(found) => found.ino,
        None => engine.create(ROOT, &lost, &NewNode::new(Kind::Dir, 0o700))?.ino,
    };
    let name = format!("#{:x}", ino.0);
    name_again(engine, dir, &Name::new(name.as_bytes())?, ino)
}
