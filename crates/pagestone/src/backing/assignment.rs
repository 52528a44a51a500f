//! Which backing a file has.
//!
//! ```text
//!   ordinary file        base 0, base_pages 0              zeros
//!   file with a backing  base 0, base_pages n              [0, n): its backing    from n on: zeros
//!   file on a base       base X, base_pages n              [0, n): X answers      from n on: zeros
//! ```
//!
//! The inode record has no field for the backing yet. Until it has one, files have zeros, and a table in DRAM says which
//! files of a test have another backing. It is gone with the process. Each function here then reads or copies the field.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::Answer;
use crate::alloc::Allocator;
use crate::attr::Kind;
use crate::engine::{Engine, InodeWrite};
use crate::error::{Error, Result};
use crate::layout::{InodeRec, SUPERBLOCKS, Superblock};
use crate::units::{Ino, PAGE_SIZE};

/// Whether the table has, or had, an entry: one load for everybody else.
static ANY: AtomicBool = AtomicBool::new(false);
static TABLE: RwLock<Option<HashMap<Key, Answer>>> = RwLock::new(None);

/// A file of any pool that is open in this process: the pool's number, and the file's.
type Key = ([u8; 16], Ino);

fn key(alloc: &Allocator, ino: Ino) -> Option<Key> {
    let mut bytes = [0; 128];
    alloc.region.read_data(SUPERBLOCKS[0].byte(), &mut bytes).ok()?;
    let (superblock, _) = Superblock::parse(&bytes, alloc.region.len()).ok()?;
    Some((superblock.uuid, ino))
}

#[cold]
fn look_up(alloc: &Allocator, ino: Ino) -> Answer {
    let table = TABLE.read();
    let found = table.as_ref().zip(key(alloc, ino)).and_then(|(table, key)| table.get(&key).copied());
    found.unwrap_or_default()
}

fn enter(alloc: &Allocator, ino: Ino, answer: Answer) {
    let Some(key) = key(alloc, ino) else { return };
    let mut table = TABLE.write();
    let table = table.get_or_insert_with(HashMap::new);
    if answer == Answer::default() {
        table.remove(&key);
    } else {
        table.insert(key, answer);
        ANY.store(true, Ordering::Release);
    }
}

/// Who answers for the pages in front of `rec.base_pages`, if `rec` has no base: the backing of the file.
#[inline]
pub(crate) fn answer_of(alloc: &Allocator, rec: &InodeRec) -> Answer {
    if ANY.load(Ordering::Acquire) { look_up(alloc, rec.ino()) } else { Answer::default() }
}

/// Whether anything lies below the map of `rec` that a void has to hide: a base, or a backing that is not zeros.
#[inline]
pub(crate) fn has_below(alloc: &Allocator, rec: &InodeRec) -> bool {
    rec.base != 0 || !answer_of(alloc, rec).is_zeros()
}

/// `to` takes the map of `from` over, and its backing with it. Called in a transaction, which may not happen after all:
/// until it has, nobody asks for the backing of `to`, which is not there yet or stands on a base.
pub(crate) fn take_over(alloc: &Allocator, from: &InodeRec, to: &InodeRec) {
    if ANY.load(Ordering::Acquire) {
        enter(alloc, to.ino(), look_up(alloc, from.ino()));
    }
}

impl Engine {
    /// Gives a regular file another backing, which answers for its absent pages up to its present end.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that no backing has; [`Error::NotSupported`] for anything but a regular file, for
    /// one that has a base or a backing, or that is mapped: mappings show what was absent.
    pub(crate) fn set_backing(&self, held: InodeWrite<'_>, identity: u32) -> Result<()> {
        let ino = held.ino();
        let answer = Answer::of_identity(identity).ok_or(Error::Invalid("no backing has this number"))?;
        if !self.opens.observers(ino).is_empty() {
            return Err(Error::NotSupported("a new backing for a file that is mapped"));
        }
        self.alloc.transact(false, |tx| {
            let mut rec = tx.inode(ino)?;
            if rec.kind() != Some(Kind::File) || has_below(tx.alloc(), &rec) {
                return Err(Error::NotSupported("a backing for anything but a file without base and backing").into());
            }
            rec.base_pages = rec.size.div_ceil(PAGE_SIZE);
            tx.put_inode(&rec)
        })?;
        enter(&self.alloc, ino, answer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::attr::NewNode;
    use crate::pool::{CreateOptions, Pool};
    use pmem::Memory;

    /// Fails if a file of one pool gets the backing of the file with the same number in another.
    #[test]
    fn a_backing_belongs_to_one_file_of_one_pool() -> Result<()> {
        let pool = || Pool::create_on(Arc::new(Memory::new(16 << 20)?), &CreateOptions::default());
        let (one, other) = (pool()?, pool()?);
        let file = |pool: &Pool, name: &[u8]| -> Result<InodeRec> {
            let ino = pool.root().create(name, &NewNode::new(Kind::File, 0o600))?.ino;
            pool.engine().alloc.inode(ino)
        };
        let (a, b, same) = (file(&one, b"a")?, file(&one, b"b")?, file(&other, b"a")?);
        assert_eq!(a.ino(), same.ino());
        one.engine().set_backing(one.engine().locks.write(&[a.ino()]).of(a.ino()), 1)?;
        let answer = |pool: &Pool, rec: &InodeRec| answer_of(&pool.engine().alloc, rec);
        assert_eq!(
            [answer(&one, &a), answer(&one, &b), answer(&other, &same)],
            [Answer::Noop, Answer::Zeros, Answer::Zeros]
        );
        take_over(&one.engine().alloc, &a, &b);
        assert_eq!(answer(&one, &b), Answer::Noop);
        take_over(&one.engine().alloc, &same, &same);
        assert_eq!(answer(&other, &same), Answer::Zeros);
        Ok(())
    }
}
