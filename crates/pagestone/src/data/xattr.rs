//! Extended attributes: a tree of their own, keyed by a hash of the name.
//!
//! ```text
//!   key    hash of the name (40 bits) | which of those with this hash (8) | chunk (16)
//!   chunk 0    [ value length (4) | name length (1) | name | first bytes of the value ]
//!   chunk n    [ more bytes ]
//! ```

use std::ops::ControlFlow;

use crate::alloc::TxResult;
use crate::attr::{Time, XattrMode};
use crate::btree::{self, Entry, Nodes, TreeId};
use crate::engine::{Engine, InodeRead};
use crate::error::{Error, Place, Result};
use crate::layout::InodeRec;
use crate::layout::node::MAX_VALUE;
use crate::txn::Tx;
use crate::units::Ino;

/// Longest value, in bytes: what one journal record carries for certain.
pub(crate) const MAX_XATTR: usize = 32 << 10;
/// What lets a program do more than its user may.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";
const CHUNK: usize = MAX_VALUE;
const HEAD: usize = 5;

/// One attribute as found: its key without chunk number, and the length of its value.
struct Found {
    base: u64,
    len: usize,
    name: Vec<u8>,
}

fn parse_head(entry: &Entry<'_>) -> Result<Found> {
    let mut head = [0; HEAD];
    entry.bytes(0, &mut head)?;
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let mut name = vec![0; usize::from(head[4])];
    if len > MAX_XATTR || entry.bytes(HEAD, &mut name)? < name.len() || name.is_empty() {
        return Err(Error::corrupt(Place::ExtendedAttribute(entry.key), "impossible length"));
    }
    Ok(Found { base: entry.key & !0xFFFF, len, name })
}

/// Finds a name among those with its hash.
fn find(nodes: &impl Nodes, rec: &InodeRec, hash: u64, name: &[u8]) -> Result<Option<Found>> {
    let id = TreeId::xattrs(rec.ino().place());
    let mut from = hash;
    while let Some(entry) = btree::seek_ge(nodes, id, rec.xattrs(), from)? {
        if entry.key > hash | 0xFF_FFFF {
            break;
        }
        if entry.key & 0xFFFF == 0 {
            let found = parse_head(&entry)?;
            if found.name == name {
                return Ok(Some(found));
            }
        }
        let Some(next) = (entry.key | 0xFFFF).checked_add(1) else { break };
        from = next;
    }
    Ok(None)
}

/// Chunks after the first that a value of `len` bytes under a name of `name` bytes takes.
fn chunks(len: usize, name: usize) -> u64 {
    len.saturating_sub(CHUNK - HEAD - name).div_ceil(CHUNK) as u64
}

impl Engine {
    fn xattr_hash(&self, name: &[u8]) -> u64 {
        self.hash(name) << 24
    }

    /// The value of an attribute.
    pub(crate) fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let _lock = self.locks.read(ino);
        let rec = self.alloc.inode(ino)?;
        if rec.xattrs().depth == 0 {
            return Err(Error::NoAttribute);
        }
        let found = find(&self.alloc, &rec, self.xattr_hash(name), name)?.ok_or(Error::NoAttribute)?;
        let id = TreeId::xattrs(ino.place());
        let mut value = Vec::with_capacity(found.len);
        for chunk in 0..=chunks(found.len, name.len()) {
            let missing = || Error::corrupt(Place::ExtendedAttributeOf(ino), "a part of its value is missing");
            let entry = btree::get(&self.alloc, id, rec.xattrs(), found.base | chunk)?.ok_or_else(missing)?;
            let skip = if chunk == 0 { HEAD + name.len() } else { 0 };
            let from = value.len();
            value.resize(from + entry.len.saturating_sub(skip), 0);
            entry.bytes(skip, &mut value[from..])?;
        }
        if value.len() != found.len {
            return Err(Error::corrupt(Place::ExtendedAttributeOf(ino), "its value has another length"));
        }
        Ok(value)
    }

    /// Whether there is an attribute of this name.
    pub(crate) fn has_xattr(&self, held: InodeRead<'_>, rec: &InodeRec, name: &[u8]) -> Result<bool> {
        debug_assert_eq!(held.ino(), rec.ino());
        if rec.xattrs().depth == 0 {
            return Ok(false);
        }
        Ok(find(&self.alloc, rec, self.xattr_hash(name), name)?.is_some())
    }

    /// All names.
    pub(crate) fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let _lock = self.locks.read(ino);
        let rec = self.alloc.inode(ino)?;
        let mut names = Vec::new();
        btree::scan(&self.alloc, TreeId::xattrs(ino.place()), rec.xattrs(), 0, |entry| {
            if entry.key & 0xFFFF == 0 {
                names.push(parse_head(&entry)?.name);
            }
            Ok(ControlFlow::<()>::Continue(()))
        })?;
        Ok(names)
    }

    /// Creates or replaces an attribute, in one record.
    pub(crate) fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        if name.is_empty() || name.len() > 255 {
            return Err(Error::NameTooLong);
        }
        if value.len() > MAX_XATTR {
            return Err(Error::TooLarge);
        }
        let lock = self.locks.write(&[ino]);
        if name == CAPABILITY {
            self.opens.forget_privileges(lock.of(ino));
        }
        self.alloc.transact(false, |tx| {
            let mut rec = tx.inode(ino)?;
            let hash = self.xattr_hash(name);
            match (find(tx, &rec, hash, name)?, mode) {
                (Some(_), XattrMode::Create) => return Err(Error::Exists.into()),
                (None, XattrMode::Replace) => return Err(Error::NoAttribute.into()),
                (Some(found), _) => take(tx, &mut rec, &found)?,
                (None, _) => {}
            }
            put(tx, &mut rec, hash, name, value)?;
            rec.set_ctime(Time::now());
            tx.note_request(None)?;
            tx.put_inode(&rec)
        })
    }

    /// Takes an attribute away.
    pub(crate) fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let lock = self.locks.write(&[ino]);
        if name == CAPABILITY {
            self.opens.forget_privileges(lock.of(ino));
        }
        self.alloc.transact(true, |tx| {
            let mut rec = tx.inode(ino)?;
            let found = find(tx, &rec, self.xattr_hash(name), name)?.ok_or(Error::NoAttribute)?;
            take(tx, &mut rec, &found)?;
            let left = btree::drop_empty(tx, TreeId::xattrs(ino.place()), rec.xattrs())?;
            rec.set_xattrs(left);
            rec.set_ctime(Time::now());
            tx.note_request(None)?;
            tx.put_inode(&rec)
        })
    }
}

fn take(tx: &mut Tx<'_>, rec: &mut InodeRec, found: &Found) -> TxResult<()> {
    let id = TreeId::xattrs(rec.ino().place());
    for chunk in 0..=chunks(found.len, found.name.len()) {
        let (tree, _) = btree::remove(tx, id, rec.xattrs(), found.base | chunk)?;
        rec.set_xattrs(tree);
    }
    Ok(())
}

fn put(tx: &mut Tx<'_>, rec: &mut InodeRec, hash: u64, name: &[u8], value: &[u8]) -> TxResult<()> {
    let id = TreeId::xattrs(rec.ino().place());
    let mut base = None;
    for which in 0..256u64 {
        if btree::get(tx, id, rec.xattrs(), hash | which << 16)?.is_none() {
            base = Some(hash | which << 16);
            break;
        }
    }
    let base = base.ok_or(Error::NoSpace)?;
    let (first, rest) = value.split_at(value.len().min(CHUNK - HEAD - name.len()));
    let mut head = Vec::with_capacity(CHUNK);
    head.extend_from_slice(&(value.len() as u32).to_le_bytes());
    head.push(name.len() as u8);
    head.extend_from_slice(name);
    head.extend_from_slice(first);
    let mut tree = btree::insert(tx, id, rec.xattrs(), base, &head)?;
    for (i, chunk) in rest.chunks(CHUNK).enumerate() {
        tree = btree::insert(tx, id, tree, base | (i as u64 + 1), chunk)?;
    }
    rec.set_xattrs(tree);
    Ok(())
}
