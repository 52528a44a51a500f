//! The extent map of one file: which run of the pool stores which file page.
//!
//! ```text
//!   inode record   [0..4 -> P] [9..2 -> Q] ...   up to three runs, in order
//!   tree           file page -> [ pool page | pages ]   for more runs
//! ```
//!
//! Runs never overlap. Runs that are adjacent in the file and in the pool are coalesced. A page without a run is
//! absent; below `base_pages` the base or the backing resolves it (`resolve.rs`). A run at pool page 0 is a *void*:
//! it hides the base and the backing and reads as a hole.

use crate::alloc::{Allocator, Run, TxResult};
use crate::backing::has_below;
use crate::btree::{self, Entry, Nodes, TreeId};
use crate::error::{Error, Place, Result};
use crate::layout::{INLINE_EXTENTS, InlineExtent, InodeRec, PageUse, TreeRef};
use crate::txn::{Durable, Tx};
use crate::units::{PAGE_SIZE, PAGES_PER_FRAME, PageNo};

use crate::extent::MAX_LEN;

/// Upper bound for file pages, including pages that were preallocated beyond the end.
const MAX_FILE_PAGES: u64 = MAX_LEN / PAGE_SIZE + 2 * PAGES_PER_FRAME;

/// A run of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapped {
    pub(crate) file_page: u64,
    pub(crate) run: Run,
}

impl Mapped {
    /// The first file page after it.
    pub(crate) fn end(&self) -> u64 {
        self.file_page + self.run.pages
    }
    /// Whether it is a void.
    pub(crate) fn is_void(&self) -> bool {
        self.run.page.0 == 0
    }
    /// A void over `[from, to)`.
    pub(crate) fn void(from: u64, to: u64) -> Mapped {
        Mapped { file_page: from, run: Run { page: PageNo(0), pages: to - from } }
    }
    /// The part of it in `[from, to)`. That range must lie inside.
    pub(crate) fn part(&self, from: u64, to: u64) -> Mapped {
        let page = if self.is_void() { self.run.page } else { self.run.page.plus(from - self.file_page) };
        Mapped { file_page: from, run: Run { page, pages: to - from } }
    }
    /// Whether `next` continues this run, in the file and in the pool.
    fn is_adjacent_to(&self, next: &Mapped) -> bool {
        let touch = self.is_void() || self.run.page.plus(self.run.pages) == next.run.page;
        self.end() == next.file_page && self.is_void() == next.is_void() && touch
    }
    fn value(&self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.run.page.0.to_le_bytes());
        value[8..].copy_from_slice(&self.run.pages.to_le_bytes());
        value
    }
}

/// The bits of the first pool page from here on are reserved for the state of a run; none is defined yet.
const STATE_SHIFT: u32 = 48;

/// The result of a lookup in one map: the kind of a file page, and how far it extends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LocalAnswer {
    /// Storage, starting with this page.
    Data(Run),
    /// A void of this many pages.
    Void(u64),
    /// No extent for this many pages.
    Nothing(u64),
}

/// Reads a map. `alloc` checks which addresses are possible.
#[derive(Clone, Copy)]
pub(crate) struct Map<'a, N> {
    pub(crate) nodes: &'a N,
    pub(crate) alloc: &'a Allocator,
    pub(crate) rec: &'a InodeRec,
}

impl<'a, N: Nodes> Map<'a, N> {
    fn id(&self) -> TreeId {
        TreeId::map(self.rec.owner())
    }

    fn checked(&self, file_page: u64, page: u64, pages: u64) -> Result<Mapped> {
        let behind = file_page.checked_add(pages).is_none_or(|end| end > MAX_FILE_PAGES);
        let void = page == 0 && pages > 0 && has_below(self.rec);
        let place = Place::Extent { ino: self.rec.ino(), file_page };
        if page >> STATE_SHIFT != 0 {
            let what = format!("a run in state {:#x}, which is of a later version", page >> STATE_SHIFT);
            return Err(Error::corrupt(place, what));
        }
        if behind || (!void && !self.alloc.owns_run(PageNo(page), pages)) {
            return Err(Error::corrupt(
                place,
                format!("the run of {pages} pages at page {page:#x} lies outside the pool"),
            ));
        }
        Ok(Mapped { file_page, run: Run { page: PageNo(page), pages } })
    }

    fn of_entry(&self, entry: Option<Entry<'_>>) -> Result<Option<Mapped>> {
        entry.map(|e| self.checked(e.key, e.u64(0)?, e.u64(8)?)).transpose()
    }

    fn of_inline(&self, x: Option<&InlineExtent>) -> Result<Option<Mapped>> {
        x.map(|x| self.checked(x.file_page, x.page, x.pages)).transpose()
    }

    fn inline(&self) -> &'a [InlineExtent] {
        &self.rec.inline[..usize::from(self.rec.inline_count).min(INLINE_EXTENTS)]
    }

    /// The last run that starts at or before `file_page`.
    pub(crate) fn at_or_before(&self, file_page: u64) -> Result<Option<Mapped>> {
        if self.rec.map().depth > 0 {
            return self.of_entry(btree::seek_le(self.nodes, self.id(), self.rec.map(), file_page)?);
        }
        self.of_inline(self.inline().iter().rev().find(|x| x.file_page <= file_page))
    }

    /// The first run that starts at or after `file_page`.
    pub(crate) fn at_or_after(&self, file_page: u64) -> Result<Option<Mapped>> {
        if self.rec.map().depth > 0 {
            return self.of_entry(btree::seek_ge(self.nodes, self.id(), self.rec.map(), file_page)?);
        }
        self.of_inline(self.inline().iter().find(|x| x.file_page >= file_page))
    }

    /// Looks up `file_page` in this map.
    pub(crate) fn local(&self, file_page: u64) -> Result<LocalAnswer> {
        if let Some(m) = self.at_or_before(file_page)?
            && file_page < m.end()
        {
            let rest = m.part(file_page, m.end());
            return Ok(if m.is_void() { LocalAnswer::Void(rest.run.pages) } else { LocalAnswer::Data(rest.run) });
        }
        let next = match file_page.checked_add(1) {
            Some(after) => self.at_or_after(after)?,
            None => None,
        };
        Ok(LocalAnswer::Nothing(next.map_or(u64::MAX - file_page, |m| m.file_page - file_page)))
    }

    /// The first run that ends after `file_page`.
    pub(crate) fn first_after(&self, file_page: u64) -> Result<Option<Mapped>> {
        match self.at_or_before(file_page)? {
            Some(m) if m.end() > file_page => Ok(Some(m)),
            _ => self.at_or_after(file_page.saturating_add(1)),
        }
    }
}

/// The map of `rec`, as the transaction sees it.
pub(crate) fn in_tx<'a, 'p>(tx: &'a Tx<'p>, rec: &'a InodeRec) -> Map<'a, Tx<'p>> {
    Map { nodes: tx, alloc: tx.alloc(), rec }
}

/// Adds a run whose contents are durable, where the file has no storage of its own. The caller stages `rec`.
pub(crate) fn insert(tx: &mut Tx<'_>, rec: &mut InodeRec, durable: Durable) -> TxResult<()> {
    let (file_page, run) = durable.parts();
    let new = Mapped { file_page, run };
    if has_below(rec) {
        let hidden = in_tx(tx, rec).borrowed_in(file_page, new.end())?;
        rec.set_borrowed(rec.borrowed().saturating_sub(hidden));
        clear(tx, rec, file_page, new.end())?;
    }
    rec.pages += run.pages;
    join(tx, rec, new)
}

/// Inserts a run or a void where the map has no extent, and coalesces it with its neighbours.
pub(crate) fn join(tx: &mut Tx<'_>, rec: &mut InodeRec, mut new: Mapped) -> TxResult<()> {
    let left = if new.file_page > 0 { in_tx(tx, rec).at_or_before(new.file_page - 1)? } else { None };
    let right = in_tx(tx, rec).at_or_after(new.file_page)?;
    if let Some(left) = left {
        if left.end() > new.file_page {
            return Err(Error::corrupt(Place::Map(rec.ino()), "its runs overlap").into());
        }
        if left.is_adjacent_to(&new) {
            new = Mapped {
                file_page: left.file_page,
                run: Run { page: left.run.page, pages: left.run.pages + new.run.pages },
            };
        }
    }
    if let Some(right) = right
        && new.is_adjacent_to(&right)
    {
        take(tx, rec, right.file_page)?;
        new.run.pages += right.run.pages;
    }
    put(tx, rec, new)
}

/// Removes the part of a void that lies in `[from, to)`, if there is one.
fn clear(tx: &mut Tx<'_>, rec: &mut InodeRec, from: u64, to: u64) -> TxResult<()> {
    while let Some(m) = in_tx(tx, rec).at_or_before(to - 1)?.filter(|m| m.end() > from) {
        if !m.is_void() {
            return Err(Error::corrupt(Place::Map(rec.ino()), "its runs overlap").into());
        }
        cut(tx, rec, m, m.file_page.max(from), m.end().min(to))?;
    }
    Ok(())
}

/// Removes `[from, to)`, a part of the run `m`, from the map.
pub(crate) fn cut(tx: &mut Tx<'_>, rec: &mut InodeRec, m: Mapped, from: u64, to: u64) -> TxResult<()> {
    match from > m.file_page {
        true => put(tx, rec, m.part(m.file_page, from))?,
        false => take(tx, rec, m.file_page)?,
    }
    if to < m.end() { put(tx, rec, m.part(to, m.end())) } else { Ok(()) }
}

/// Removes the runs in `[from, to)` from the map, from the end to the start, and frees their pages. Stops when the
/// record is full and returns where to continue (the new `to`); otherwise returns `None`.
///
/// The layers beneath become visible there: the caller has to lower `base_pages` or insert voids.
pub(crate) fn remove(tx: &mut Tx<'_>, rec: &mut InodeRec, from: u64, mut to: u64) -> TxResult<Option<u64>> {
    // Limit on the frames whose descriptors one step changes. A longer run is freed in several steps.
    const STEP: u64 = 16 * PAGES_PER_FRAME;
    while to > from {
        let Some(m) = in_tx(tx, rec).at_or_before(to - 1)?.filter(|m| m.end() > from) else { break };
        if !tx.has_room(24 << 10) {
            return Ok(Some(to));
        }
        let end = m.end().min(to);
        // A void has no frames: one of any length goes at once.
        let step = if m.is_void() { u64::MAX } else { STEP };
        let start = m.file_page.max(from).max(end.saturating_sub(step));
        if start >= end {
            return Err(Error::corrupt(Place::Map(rec.ino()), "its runs are not in order").into());
        }
        cut(tx, rec, m, start, end)?;
        free(tx, rec, m.part(start, end));
        to = start;
    }
    Ok(None)
}

/// Frees all runs of a map that has no tree.
pub(crate) fn remove_all_inline(tx: &mut Tx<'_>, rec: &mut InodeRec) -> TxResult<()> {
    while let Some(m) = in_tx(tx, rec).at_or_before(u64::MAX)? {
        free(tx, rec, m);
        take(tx, rec, m.file_page)?;
    }
    Ok(())
}

/// Frees the pages of a run that was removed.
fn free(tx: &mut Tx<'_>, rec: &mut InodeRec, m: Mapped) {
    if !m.is_void() {
        rec.pages = rec.pages.saturating_sub(m.run.pages);
        tx.free(m.run, PageUse::Data, rec.owner());
    }
}

/// Inserts or replaces the run that starts at its file page.
fn put(tx: &mut Tx<'_>, rec: &mut InodeRec, m: Mapped) -> TxResult<()> {
    let id = TreeId::map(rec.owner());
    if rec.map().depth > 0 {
        let tree = btree::insert(tx, id, rec.map(), m.file_page, &m.value())?;
        rec.set_map(tree);
        return Ok(());
    }
    let count = usize::from(rec.inline_count);
    let new = InlineExtent { file_page: m.file_page, page: m.run.page.0, pages: m.run.pages };
    match rec.inline[..count].binary_search_by_key(&m.file_page, |x| x.file_page) {
        Ok(i) => rec.inline[i] = new,
        Err(i) if count < INLINE_EXTENTS => {
            rec.inline.copy_within(i..count, i + 1);
            rec.inline[i] = new;
            rec.inline_count += 1;
        }
        Err(_) => {
            let mut tree = TreeRef::default();
            for x in rec.inline.iter().chain([&new]) {
                let m = Mapped { file_page: x.file_page, run: Run { page: PageNo(x.page), pages: x.pages } };
                tree = btree::insert(tx, id, tree, m.file_page, &m.value())?;
            }
            rec.inline = Default::default();
            rec.inline_count = 0;
            rec.set_map(tree);
        }
    }
    Ok(())
}

/// Removes the run that starts at `file_page`.
fn take(tx: &mut Tx<'_>, rec: &mut InodeRec, file_page: u64) -> TxResult<()> {
    if rec.map().depth > 0 {
        let id = TreeId::map(rec.owner());
        let (tree, _) = btree::remove(tx, id, rec.map(), file_page)?;
        rec.set_map(btree::drop_empty(tx, id, tree)?);
        return Ok(());
    }
    let count = usize::from(rec.inline_count);
    if let Ok(i) = rec.inline[..count].binary_search_by_key(&file_page, |x| x.file_page) {
        rec.inline.copy_within(i + 1..count, i);
        rec.inline[count - 1] = InlineExtent::default();
        rec.inline_count -= 1;
    }
    Ok(())
}
