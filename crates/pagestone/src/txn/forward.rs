//! Changing the forwarding table of inode pages.

use pmem::PageBuf;

use super::Tx;
use crate::alloc::{LayoutChange, Run, TxResult};
use crate::error::{Error, Place, Result};
use crate::layout::{FORWARD_LEVELS, ForwardEntry, PageUse, PoolState, forward_index};
use crate::units::{PAGE_SIZE, PageNo};

impl Tx<'_> {
    /// The state of the layout, with this transaction's changes.
    pub(crate) fn state(&self) -> PoolState {
        self.state.unwrap_or_else(|| self.alloc().state())
    }

    /// Lets the pool have so many frames when this commits.
    pub(crate) fn put_frames(&mut self, held: &LayoutChange<'_>, frames: u64) -> TxResult<()> {
        let mut state = self.state();
        state.frames = frames;
        self.put_state(held, state)
    }

    /// Lets the layout have this state when this commits.
    pub(crate) fn put_state(&mut self, _held: &LayoutChange<'_>, state: PoolState) -> TxResult<()> {
        let line = state.sealed();
        for page in PoolState::PAGES {
            self.stage_line(page.byte(), &line)?;
        }
        self.state = Some(state);
        Ok(())
    }

    /// Lets the inodes of the page numbered `number` lie on `to`; `None`: where their numbers say.
    pub(crate) fn forward(&mut self, held: &LayoutChange<'_>, number: PageNo, to: Option<PageNo>) -> TxResult<()> {
        let mut state = self.state();
        let root = match state.forward_root() {
            Some(root) => root,
            None if to.is_none() => return Ok(()),
            None => {
                let root = self.new_forward_table()?;
                state.set_forward_root(root);
                root
            }
        };
        let mut table = root;
        for level in (1..FORWARD_LEVELS).rev() {
            table = match self.forward_word(table, forward_index(number, level))? {
                Some(next) => next,
                None if to.is_none() => return Ok(()),
                None => {
                    let next = self.new_forward_table()?;
                    self.put_forward_word(table, forward_index(number, level), Some(next))?;
                    next
                }
            };
        }
        let index = forward_index(number, 0);
        let before = self.forward_word(table, index)?.is_some();
        self.put_forward_word(table, index, to)?;
        state.forwarded = (state.forwarded + u64::from(to.is_some())).saturating_sub(u64::from(before));
        self.put_state(held, state)
    }

    /// A copy of a page of inodes, whose inodes bear the numbers of the page `number`. All inodes are locked.
    pub(crate) fn copy_inode_page(&mut self, page: PageNo, number: PageNo) -> TxResult<PageNo> {
        let mut bytes = PageBuf::zeroed();
        self.page(page)?.copy_to(&mut bytes);
        let copy = self.allocate_inode_page(Some(number))?;
        self.persist_page(copy, &bytes)?;
        Ok(copy)
    }

    /// Moves the first table that lies on a page which `leaves`; whether there was one.
    pub(crate) fn relocate_forward_table(
        &mut self,
        held: &LayoutChange<'_>,
        leaves: &impl Fn(PageNo) -> bool,
    ) -> TxResult<bool> {
        let mut state = self.state();
        let Some(root) = state.forward_root() else { return Ok(false) };
        if leaves(root) {
            let moved = self.copy_forward_table(root)?;
            state.set_forward_root(moved);
            self.put_state(held, state)?;
            return Ok(true);
        }
        // Each forwarded page needs a table of each level at most; a hostile pool may have circles of them.
        let mut left = state.forwarded.saturating_add(1).saturating_mul(u64::from(FORWARD_LEVELS));
        self.relocate_tables_below((root, FORWARD_LEVELS - 1), leaves, &mut left)
    }

    fn relocate_tables_below(
        &mut self,
        (table, level): (PageNo, u32),
        leaves: &impl Fn(PageNo) -> bool,
        left: &mut u64,
    ) -> TxResult<bool> {
        let wrong = || Error::corrupt(Place::ForwardingTable(table), "there are more tables than it counts");
        *left = left.checked_sub(1).ok_or_else(wrong)?;
        for index in 0..512 {
            let Some(below) = self.forward_word(table, index)?.filter(|_| level > 0) else { continue };
            if leaves(below) {
                let moved = self.copy_forward_table(below)?;
                self.put_forward_word(table, index, Some(moved))?;
                return Ok(true);
            }
            if level > 1 && self.relocate_tables_below((below, level - 1), leaves, left)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn copy_forward_table(&mut self, table: PageNo) -> TxResult<PageNo> {
        let copy = self.new_forward_table()?;
        for index in 0..512 {
            if let Some(to) = self.forward_word(table, index)? {
                self.put_forward_word(copy, index, Some(to))?;
            }
        }
        self.free(Run { page: table, pages: 1 }, PageUse::Forward, 0);
        Ok(copy)
    }

    fn new_forward_table(&mut self) -> TxResult<PageNo> {
        self.new_blank_page(PageUse::Forward, 0)
    }

    fn forward_word(&self, table: PageNo, index: usize) -> Result<Option<PageNo>> {
        let to = ForwardEntry(self.page(table)?.u64(index * 8)).parse(table, index)?;
        match to.filter(|&to| !self.alloc().owns(to.frame())) {
            Some(to) => Err(Error::corrupt(Place::ForwardingTable(table), format!("it leads to {to}"))),
            None => Ok(to),
        }
    }

    fn put_forward_word(&mut self, table: PageNo, index: usize, to: Option<PageNo>) -> TxResult<()> {
        let word = to.map_or(0, |to| ForwardEntry::new(table, index, to).0);
        self.stage_page(table)?.write(index * 8, &word.to_le_bytes());
        debug_assert!((index * 8) < PAGE_SIZE as usize);
        Ok(())
    }
}
