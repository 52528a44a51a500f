//! Names in a directory's tree.
//!
//! ```text
//!   key    0 | hash of the name (55 bits) | which of those with this hash (8 bits)
//!   value  [ inode number (8) | kind (1) | name ]
//! ```
//!
//! The key is also the cookie at which a listing goes on: it does not move when others come and go.

use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::directory;
use crate::alloc::TxResult;
use crate::attr::{DirEntry, FileType};
use crate::btree::{self, Entry, Nodes, Spot, TreeId};
use crate::engine::Engine;
use crate::error::{Error, Place, Result};
use crate::layout::InodeRec;
use crate::txn::Tx;
use crate::units::Ino;

/// A checked name: 1 to 255 bytes, without `/` and NUL, not `.` or `..`.
pub(crate) struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    pub(crate) fn new(name: &'a [u8]) -> Result<Name<'a>> {
        match name {
            _ if name.len() > 255 => Err(Error::NameTooLong),
            b"" => Err(Error::NotFound),
            b"." | b".." => Err(Error::Invalid("`.` and `..` are not names")),
            _ if name.iter().any(|&b| b == b'/' || b == 0) => Err(Error::Invalid("a name has no `/` and no NUL")),
            _ => Ok(Name(name)),
        }
    }
}

/// A name that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(super) key: u64,
    pub(crate) ino: Ino,
    pub(crate) kind: FileType,
}

/// Reads an entry.
pub(crate) fn parse(entry: &Entry<'_>) -> Result<DirEntry> {
    let mut head = [0; 9];
    let whole = entry.bytes(0, &mut head)? == 9;
    let kind = FileType::from_u8(head[8]).filter(|_| whole && (10..=9 + 255).contains(&entry.len));
    let Some(kind) = kind else {
        return Err(Error::corrupt(Place::DirectoryEntry(entry.key), "not an entry"));
    };
    let mut name = vec![0; entry.len - 9];
    entry.bytes(9, &mut name)?;
    if Name::new(&name).is_err() {
        return Err(Error::corrupt(Place::DirectoryEntry(entry.key), "an impossible name"));
    }
    Ok(DirEntry { ino: Ino(entry.u64(0)?), kind, name, cookie: entry.key })
}

fn first_key(engine: &Engine, name: &Name<'_>) -> u64 {
    // Cookies below 256 are left to the faces.
    (engine.hash(name.0) << 8 & (i64::MAX as u64)).max(256)
}

/// Where a name is, or would be, with its spot in the tree as far as the walk came by it: a change
/// there needs no walk of its own.
enum Look {
    /// It is there.
    Found(Found, Option<Spot>),
    /// It is not; this key is free for it.
    Free(Free),
    /// It is not, and 256 others have its hash.
    Full,
}

/// A key for a new name. Good until the directory changes.
pub(super) struct Free {
    key: u64,
    spot: Option<Spot>,
}

/// What an entry says, if it is that of `name`.
fn is_named(entry: &Entry<'_>, name: &Name<'_>) -> Result<Option<Found>> {
    if !entry.is(9, name.0)? {
        return Ok(None);
    }
    let mut kind = [0];
    entry.bytes(8, &mut kind)?;
    let wrong = || Error::corrupt(Place::DirectoryEntry(entry.key), "unknown kind");
    let kind = FileType::from_u8(kind[0]).ok_or_else(wrong)?;
    Ok(Some(Found { key: entry.key, ino: Ino(entry.u64(0)?), kind }))
}

/// Looks for a name among those with its hash, in one walk.
fn look(engine: &Engine, nodes: &impl Nodes, rec: &InodeRec, name: &Name<'_>) -> Result<Look> {
    let (id, first) = (TreeId::map(rec.ino().place()), first_key(engine, name));
    let last = first | 0xFF;
    let Some((spot, leaf)) = btree::locate(nodes, id, rec.map(), first)? else {
        return Ok(Look::Free(Free { key: first, spot: None }));
    };
    let (mut key, mut covered) = (first, spot.covers(last));
    for (i, entry) in spot.entries(leaf).enumerate() {
        let entry = entry?;
        if entry.key > last {
            covered = true;
            break;
        }
        if let Some(found) = is_named(&entry, name)? {
            return Ok(Look::Found(found, Some(spot.further(i))));
        }
        key += u64::from(entry.key == key);
    }
    if covered && key == first {
        return Ok(Look::Free(Free { key, spot: Some(spot) }));
    }
    look_on(nodes, id, rec, name, first)
}

/// As [`look`], where there are other names with the hash, or they may lie in the next leaf.
fn look_on(nodes: &impl Nodes, id: TreeId, rec: &InodeRec, name: &Name<'_>, first: u64) -> Result<Look> {
    let (mut key, last) = (first, first | 0xFF);
    let found = btree::scan(nodes, id, rec.map(), first, |entry| {
        if entry.key > last {
            return Ok(ControlFlow::Break(None));
        }
        if let Some(found) = is_named(&entry, name)? {
            return Ok(ControlFlow::Break(Some(found)));
        }
        key += u64::from(entry.key == key);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(match found.flatten() {
        Some(found) => Look::Found(found, None),
        None if key > last => Look::Full,
        None => Look::Free(Free { key, spot: None }),
    })
}

/// Finds a name.
pub(super) fn find(engine: &Engine, nodes: &impl Nodes, rec: &InodeRec, name: &Name<'_>) -> Result<Option<Found>> {
    Ok(find_spot(engine, nodes, rec, name)?.map(|(found, _)| found))
}

/// Finds a name, and where it stands if the walk came by it.
pub(super) fn find_spot(
    engine: &Engine,
    nodes: &impl Nodes,
    rec: &InodeRec,
    name: &Name<'_>,
) -> Result<Option<(Found, Option<Spot>)>> {
    match look(engine, nodes, rec, name)? {
        Look::Found(found, spot) => Ok(Some((found, spot))),
        Look::Free(_) | Look::Full => Ok(None),
    }
}

/// The key for a name that must not be there.
pub(super) fn free_key(engine: &Engine, nodes: &impl Nodes, rec: &InodeRec, name: &Name<'_>) -> Result<Free> {
    match look(engine, nodes, rec, name)? {
        Look::Found(..) => Err(Error::Exists),
        Look::Full => Err(Error::NoSpace),
        Look::Free(free) => Ok(free),
    }
}

fn value(name: &Name<'_>, ino: Ino, kind: FileType) -> SmallVec<[u8; 128]> {
    let mut value = SmallVec::new();
    value.extend_from_slice(&ino.0.to_le_bytes());
    value.push(kind as u8);
    value.extend_from_slice(name.0);
    value
}

/// Adds a name that is not there, at its [`free_key`]. The caller stages `rec`.
pub(super) fn add(
    tx: &mut Tx<'_>,
    rec: &mut InodeRec,
    free: Free,
    name: &Name<'_>,
    ino: Ino,
    kind: FileType,
) -> TxResult<()> {
    let (id, value) = (TreeId::map(rec.ino().place()), value(name, ino, kind));
    rec.set_map(match free.spot {
        None => btree::insert(tx, id, rec.map(), free.key, &value)?,
        spot => btree::insert_here(tx, id, rec.map(), spot, free.key, &value)?,
    });
    rec.size += 1;
    Ok(())
}

/// Takes a name out, at its spot if that is known. The caller stages `rec`.
pub(super) fn take(tx: &mut Tx<'_>, rec: &mut InodeRec, found: &Found, spot: Option<Spot>) -> TxResult<()> {
    let id = TreeId::map(rec.ino().place());
    rec.set_map(match spot {
        Some(spot) => btree::remove_here(tx, id, rec.map(), spot)?,
        None => btree::remove(tx, id, rec.map(), found.key)?.0,
    });
    rec.size = rec.size.saturating_sub(1);
    Ok(())
}

/// Lets a name mean another inode.
pub(super) fn redirect(
    tx: &mut Tx<'_>,
    rec: &mut InodeRec,
    found: &Found,
    name: &Name<'_>,
    ino: Ino,
    kind: FileType,
) -> TxResult<()> {
    let tree = btree::insert(tx, TreeId::map(rec.ino().place()), rec.map(), found.key, &value(name, ino, kind))?;
    rec.set_map(tree);
    Ok(())
}

impl Engine {
    /// Finds a name as the transaction sees it. The directory is locked.
    pub(crate) fn find_in_tx(&self, tx: &Tx<'_>, dir: Ino, name: &Name<'_>) -> Result<Option<Found>> {
        find(self, tx, &directory(tx.inode(dir)?)?, name)
    }

    /// Finds a name without transaction.
    pub(crate) fn find(&self, dir: Ino, name: &Name<'_>) -> Result<Option<Found>> {
        let _lock = self.locks.read(dir);
        find(self, &self.alloc, &directory(self.alloc.inode(dir)?)?, name)
    }
}
