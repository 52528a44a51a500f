//! Clones: two files with the same contents in O(1), whatever the size.
//!
//! ```text
//!   before    src [map] --> (base)            after    src [ ] --\
//!                                                                >-- X [map] --> (base)
//!                                                      dst [ ] --/
//! ```
//!
//! Cloning freezes the map of `src` as an immutable *base* X; `src` and `dst` continue with empty maps above it. It
//! is one record and touches no run: the runs of X still name `src` as their owner. If the map of `src` is empty
//! since it was cloned last, `dst` becomes another dependent of its base.

use smallvec::SmallVec;

use crate::alloc::TxResult;
use crate::attr::{FileType, Time};
use crate::backing::has_below;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::extent::extent_map::{self, Map, Mapped, in_tx};
use crate::layout::InodeRec;
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE};

/// Limit on the extents beyond the end that a file keeps when its map becomes a base, or when it takes over the map
/// of a base.
const MAX_BEHIND: usize = 64;
/// Limit on the dependents of a base.
const MAX_DEPENDENTS: u32 = 1 << 30;

impl Engine {
    /// Gives `dst`, which is empty, the contents of `src`.
    pub(crate) fn share_contents(&self, src: Ino, dst: Ino) -> Result<()> {
        if src == dst {
            return Err(Error::Invalid("a file is no clone of itself"));
        }
        self.detach_unused_base(dst)?;
        self.with_base_locked(src, &[dst], |tx, src| {
            let mut dst = tx.inode(dst)?;
            if !is_blank(tx, &dst)? {
                return Err(Error::Invalid("only an empty file can become a clone").into());
            }
            share(tx, src, &mut dst)?;
            dst.touch(Time::now());
            tx.put_inode(&dst)
        })?;
        self.opens.clear_touched(dst);
        Ok(())
    }

    /// Whether `dst` shares all its contents with `src`, and neither has anything else.
    pub(crate) fn has_same_contents(&self, src: Ino, dst: Ino) -> Result<bool> {
        let _locks = self.locks.read_two(src, dst);
        let [a, b] = [self.alloc.inode(src)?, self.alloc.inode(dst)?];
        let own = |rec: &InodeRec| -> Result<bool> {
            let first = extent_map::Map { nodes: &self.alloc, alloc: &self.alloc, rec }.first_after(0)?;
            Ok(first.is_some_and(|m| m.file_page < rec.size.div_ceil(PAGE_SIZE)))
        };
        let base = |rec: &InodeRec| (rec.size, rec.base, rec.base_pages);
        Ok(base(&a) == base(&b) && a.backing == 0 && b.backing == 0 && !own(&a)? && !own(&b)?)
    }

    /// Appends a part of `src` to `dst` by sharing. Returns how many bytes were shared.
    pub(crate) fn share_range(&self, src: Ino, dst: Ino, offset: u64, len: u64) -> Result<u64> {
        if src == dst {
            return Ok(0);
        }
        if offset == 0 {
            self.detach_unused_base(dst)?;
        }
        let shared = self.with_base_locked(src, &[dst], |tx, src| {
            let mut dst = tx.inode(dst)?;
            let end = src.size.min(offset.saturating_add(len));
            // A part must end at a page boundary, so that the next part can continue there, or at the end of `src`.
            let whole = end == src.size || end.is_multiple_of(PAGE_SIZE);
            if dst.kind() != Some(FileType::File) || dst.size != offset || end <= offset || !whole {
                return Ok(0);
            }
            if offset == 0 && is_blank(tx, &dst)? {
                share(tx, src, &mut dst)?;
                dst.set_borrowed(0);
                (dst.size, dst.base_pages) = (0, 0);
            } else if !can_continue(tx, src, &dst, end)? {
                return Ok(0);
            }
            let from = dst.base_pages;
            dst.base_pages = src.base_pages.min(end.div_ceil(PAGE_SIZE));
            let more = in_tx(tx, &dst).borrowed_in(from, dst.base_pages)?;
            dst.set_borrowed(dst.borrowed() + more);
            dst.size = end;
            dst.touch(Time::now());
            tx.put_inode(&dst)?;
            Ok(end - offset)
        })?;
        if shared > 0 {
            self.opens.clear_touched(dst);
        }
        Ok(shared)
    }

    /// Runs `f` as a transaction, with `src`, its base and `others` locked.
    pub(crate) fn with_base_locked<R>(
        &self,
        src: Ino,
        others: &[Ino],
        mut f: impl FnMut(&mut Tx<'_>, &mut InodeRec) -> TxResult<R>,
    ) -> Result<R> {
        loop {
            let base = self.peek(src)?.base;
            let mut inos: SmallVec<[Ino; 4]> = smallvec::smallvec![src];
            inos.extend_from_slice(others);
            inos.extend((base != 0).then_some(Ino(base)));
            let locks = self.locks.write(&inos);
            let rec = self.alloc.inode(src)?;
            if rec.base != base {
                continue;
            }
            // Storage that remains beyond the end after this was requested by the program, and stays with the file.
            if let Some(open) = self.opens.get(src) {
                self.trim_locked(locks.of(src), &open)?;
            }
            let rec = self.alloc.inode(src)?;
            match rec.kind() {
                Some(FileType::File) => {}
                Some(FileType::Dir) => return Err(Error::IsDirectory),
                _ => return Err(Error::Invalid("not a regular file")),
            }
            // The file's own pages become shared pages, so no mapping may store to them any more. The next access
            // waits for the inode's lock and resolves the page again.
            self.opens.observers(src).iter().try_for_each(|w| w.freeze(locks.of(src), self, &rec, None))?;
            // The clone has these stores too. After a later write to the page in `src`, no sync of `src` would make
            // them durable.
            self.persist_stored_locked(locks.of(src))?;
            let lengths: SmallVec<[u64; 2]> =
                others.iter().map(|&ino| self.alloc.inode(ino).map_or(0, |rec| rec.size)).collect();
            let chain = self.chain(&rec);
            let value = self.alloc.transact(false, |tx| {
                let mut src = tx.inode(src)?;
                let value = f(tx, &mut src)?;
                tx.put_inode(&src)?;
                Ok(value)
            })?;
            drop(chain);
            for (&ino, &old_len) in others.iter().zip(&lengths) {
                self.notify_mappings(locks.of(ino), &self.opens.observers(ino), old_len, 0..0)?;
            }
            return Ok(value);
        }
    }

    /// The current record. It may change as soon as this returns.
    pub(crate) fn peek(&self, ino: Ino) -> Result<InodeRec> {
        let _lock = self.locks.read(ino);
        self.alloc.inode(ino)
    }
}

/// Whether a file has neither contents nor storage.
fn is_blank(tx: &Tx<'_>, rec: &InodeRec) -> Result<bool> {
    let file = rec.kind() == Some(FileType::File) && rec.size == 0 && rec.base == 0;
    Ok(file && in_tx(tx, rec).at_or_after(0)?.is_none())
}

/// Whether sharing can continue at the end of `dst`: up to its end it reads the base of `src` alone, and `src`
/// reads the base alone from there up to `end`.
fn can_continue(tx: &Tx<'_>, src: &InodeRec, dst: &InodeRec, end: u64) -> Result<bool> {
    let page = dst.size / PAGE_SIZE;
    let aligned = dst.size.is_multiple_of(PAGE_SIZE) && dst.base_pages == page;
    if dst.base == 0 || dst.base != src.base || !aligned || src.base_pages < end.div_ceil(PAGE_SIZE) {
        return Ok(false);
    }
    let own = in_tx(tx, src).first_after(page)?.is_none_or(|m| m.file_page >= end.div_ceil(PAGE_SIZE));
    Ok(own && in_tx(tx, dst).first_after(page)?.is_none())
}

/// Makes `dst`, which has no contents, share those of `src`. The caller stages both.
pub(crate) fn share(tx: &mut Tx<'_>, src: &mut InodeRec, dst: &mut InodeRec) -> TxResult<()> {
    let end = src.size.div_ceil(PAGE_SIZE);
    // A backing is shared through a base too: one inode has it, not two.
    let backed = src.base == 0 && src.base_pages > 0 && has_below(src);
    if backed || in_tx(tx, src).at_or_after(0)?.is_some_and(|m| m.file_page < end) {
        let from = end.next_multiple_of(tx.map_alignment());
        let behind = take_extents_behind(tx, src, from)?;
        freeze_as_base(tx, src)?;
        put_extents_back(tx, src, behind)?;
    }
    dst.size = src.size;
    if src.base == 0 || src.base_pages == 0 {
        return Ok(());
    }
    (dst.base, dst.base_pages, dst.height) = (src.base, src.base_pages, src.height);
    dst.set_borrowed(src.borrowed());
    let mut base = tx.inode(Ino(src.base))?;
    if base.nlink >= MAX_DEPENDENTS {
        return Err(Error::TooManyLinks.into());
    }
    base.nlink += 1;
    base.parent ^= dst.ino().0;
    tx.put_inode(&base)
}

/// Removes the extents from `page` on from a map, up to the limit. They keep their owner.
pub(crate) fn take_extents_behind(tx: &mut Tx<'_>, rec: &mut InodeRec, page: u64) -> TxResult<SmallVec<[Mapped; 4]>> {
    let mut taken: SmallVec<[Mapped; 4]> = SmallVec::new();
    while let Some(m) = in_tx(tx, rec).first_after(page)? {
        if taken.len() == MAX_BEHIND || !tx.has_room(32 << 10) {
            break;
        }
        let piece = m.part(m.file_page.max(page), m.end());
        extent_map::cut(tx, rec, m, piece.file_page, piece.end())?;
        if !m.is_void() {
            rec.pages = rec.pages.saturating_sub(piece.run.pages);
            taken.push(piece);
        }
    }
    Ok(taken)
}

/// Inserts what [`take_extents_behind`] has removed into a map with the same owner.
pub(crate) fn put_extents_back(tx: &mut Tx<'_>, rec: &mut InodeRec, taken: SmallVec<[Mapped; 4]>) -> TxResult<()> {
    for piece in taken {
        rec.pages += piece.run.pages;
        extent_map::join(tx, rec, piece)?;
    }
    Ok(())
}

/// Moves the map of `src` into a new base. `src` is its only dependent then.
pub(crate) fn freeze_as_base(tx: &mut Tx<'_>, src: &mut InodeRec) -> TxResult<()> {
    let end = src.size.div_ceil(PAGE_SIZE);
    // Nothing beyond the end is visible in a base. What one record cannot free becomes part of the base, as does
    // the last page with what private mappings show of it.
    extent_map::remove(tx, src, end.next_multiple_of(tx.map_alignment()), u64::MAX)?;
    let behind = pages_from(&in_tx(tx, src), end)?;
    let mut base = InodeRec::base_of(tx.new_ino()?, src);
    if src.base != 0 {
        let mut older = tx.inode(Ino(src.base))?;
        older.parent ^= src.ino().0 ^ base.ino().0;
        tx.put_inode(&older)?;
    }
    (base.nlink, base.parent) = (1, src.ino().0);
    src.set_borrowed(src.borrowed() + src.pages.saturating_sub(behind));
    src.clear_map();
    // The base has it now.
    src.backing = 0;
    (src.base, src.base_pages) = (base.ino().0, end);
    src.height = base.height.checked_add(1).ok_or(Error::TooManyLinks)?;
    tx.put_inode(&base)
}

/// The number of pages that the map has from `page` on.
fn pages_from(map: &Map<'_, Tx<'_>>, mut page: u64) -> Result<u64> {
    let mut sum = 0;
    while let Some(m) = map.first_after(page)? {
        if !m.is_void() {
            sum += m.end() - m.file_page.max(page);
        }
        page = m.end();
    }
    Ok(sum)
}
