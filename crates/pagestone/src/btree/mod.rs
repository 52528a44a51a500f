//! The persistent B+tree of every index: file maps, names, attributes, orphans.
//!
//! ```text
//!   level 1        [ -inf -> A | 40 -> B | 90 -> C ]         keys are u64, values bytes
//!                     |           |         |
//!   level 0        [3 7 31]   [40 52 88]  [90 91]            no sibling links: a scan continues
//!                                                            with the next separator
//! ```
//!
//! A tree belongs to one inode, whose lock protects it. Nodes are changed in the staged copies of a transaction. A
//! reader without a transaction sees what was applied.
//!
//! The media are not trusted: a node has to contain its own page, its owner, its tree and the level that its parent
//! expects. So a wrong pointer is detected at the first read, and a walk can neither loop nor leave the pool.

mod insert;
mod node;
mod relocate;
mod remove;

pub(crate) use insert::{insert, insert_here};
pub(crate) use node::{Entry, NodeView};
pub(crate) use relocate::relocate_path;
pub(crate) use remove::{destroy_leaf, drop_empty, remove, remove_here};

use std::ops::ControlFlow;

use pmem::{PageBuf, PageRef, fault_tolerant};
use smallvec::SmallVec;

use crate::alloc::Allocator;
use crate::error::{Error, Place, Result};
use crate::layout::{TreeRef, node as format};
use crate::txn::Tx;
use crate::units::PageNo;

/// Identifies a tree; its nodes contain the same values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TreeId {
    /// Address of the inode.
    pub(crate) owner: u64,
    /// 0 for maps and names, 1 for extended attributes.
    pub(crate) tree: u16,
}

impl TreeId {
    /// The map of a file or the names of a directory.
    pub(crate) fn map(owner: u64) -> TreeId {
        TreeId { owner, tree: 0 }
    }
    /// The extended attributes.
    pub(crate) fn xattrs(owner: u64) -> TreeId {
        TreeId { owner, tree: 1 }
    }
}

/// A source of nodes: the media, or a transaction's view of them.
pub(crate) trait Nodes {
    /// The page. Its checksum was verified since the pool was opened.
    fn node(&self, page: PageNo) -> Result<PageRef<'_>>;
}

impl Nodes for Allocator {
    fn node(&self, page: PageNo) -> Result<PageRef<'_>> {
        let view = self.page(page)?;
        self.verify_once(page, || verify(view, page))?;
        Ok(view)
    }
}

impl Nodes for Tx<'_> {
    fn node(&self, page: PageNo) -> Result<PageRef<'_>> {
        if self.is_staged(page) { self.page(page) } else { self.alloc().node(page) }
    }
}

fn verify(view: PageRef<'_>, page: PageNo) -> Result<()> {
    let mut copy = PageBuf::zeroed();
    let faults = fault_tolerant::mine();
    view.copy_to(&mut copy);
    if !fault_tolerant::well_since(faults) {
        return Err(Error::Lost(page.byte()));
    }
    if format::checksum(&copy.0) != Some(view.u32(format::CRC)) {
        return Err(Error::corrupt(Place::TreeNode(page), "checksum does not match"));
    }
    node::check_entries(view, page)
}

/// The leaf that would hold `key`, and the separators around it.
struct Leaf<'n> {
    leaf: NodeView<'n>,
    /// Smallest key of the next leaf, according to its parent.
    next: Option<u64>,
    /// The separator at or below which this leaf starts, if it is not the first.
    from: Option<u64>,
}

/// The inner nodes from the root down, with the index of the child taken in each.
type Path = SmallVec<[(PageNo, usize); 4]>;

/// The position of a key, present or not. Valid until the tree changes.
#[derive(Debug)]
pub(crate) struct Spot {
    path: Path,
    leaf: PageNo,
    /// The position of the key, or the position at which it would be inserted.
    at: std::result::Result<usize, usize>,
    /// Smallest key of the next leaf, according to its parent.
    next: Option<u64>,
}

impl Spot {
    /// The entries of the leaf from this position on.
    pub(crate) fn entries<'n>(&self, leaf: NodeView<'n>) -> impl Iterator<Item = Result<Entry<'n>>> + use<'n> {
        let first = self.at.unwrap_or_else(|i| i);
        (first..leaf.count()).map(move |i| leaf.entry(i))
    }

    /// Whether no key up to `last` can be in a later leaf.
    pub(crate) fn covers(&self, last: u64) -> bool {
        self.next.is_none_or(|next| next > last)
    }

    /// The position of the entry `n` further on in the leaf.
    pub(crate) fn further(mut self, n: usize) -> Spot {
        self.at = Ok(self.at.unwrap_or_else(|i| i) + n);
        self
    }
}

/// The path to `key` and its leaf; `None` if the tree is empty.
pub(crate) fn locate<'n>(
    nodes: &'n impl Nodes,
    id: TreeId,
    tree: TreeRef,
    key: u64,
) -> Result<Option<(Spot, NodeView<'n>)>> {
    let mut path = Path::new();
    let place = descend_by(nodes, id, tree, key, |page, child| path.push((page, child)))?;
    let Some(Leaf { leaf, next, .. }) = place else { return Ok(None) };
    Ok(Some((Spot { leaf: leaf.no(), at: leaf.search(key)?, next, path }, leaf)))
}

fn descend<'n>(nodes: &'n impl Nodes, id: TreeId, tree: TreeRef, key: u64) -> Result<Option<Leaf<'n>>> {
    descend_by(nodes, id, tree, key, |_, _| {})
}

/// Calls `step` for the inner nodes on the path.
fn descend_by<'n>(
    nodes: &'n impl Nodes,
    id: TreeId,
    tree: TreeRef,
    key: u64,
    mut step: impl FnMut(PageNo, usize),
) -> Result<Option<Leaf<'n>>> {
    if tree.depth == 0 {
        return Ok(None);
    }
    let (mut page, mut next, mut from) = (tree.root, None, None);
    let mut level = check_depth(tree)?;
    loop {
        let node = NodeView::open(nodes, page, id, level)?;
        if level == 0 {
            return Ok(Some(Leaf { leaf: node, next, from }));
        }
        let child = node.child_for(key)?;
        if child + 1 < node.count() {
            next = Some(node.key(child + 1)?);
        }
        if child > 0 {
            from = Some(node.key(child)?);
        }
        step(page, child);
        page = node.child(child)?;
        level -= 1;
    }
}

/// The level of the root.
fn check_depth(tree: TreeRef) -> Result<u8> {
    if tree.depth > format::MAX_DEPTH {
        return Err(Error::corrupt(Place::Tree(tree.root), "too many levels"));
    }
    Ok(tree.depth - 1)
}

/// The entry with exactly this key.
pub(crate) fn get<'n>(nodes: &'n impl Nodes, id: TreeId, tree: TreeRef, key: u64) -> Result<Option<Entry<'n>>> {
    let Some(place) = descend(nodes, id, tree, key)? else { return Ok(None) };
    match place.leaf.search(key)? {
        Ok(i) => place.leaf.entry(i).map(Some),
        Err(_) => Ok(None),
    }
}

/// The entry with the smallest key of at least `key`.
pub(crate) fn seek_ge<'n>(nodes: &'n impl Nodes, id: TreeId, tree: TreeRef, mut key: u64) -> Result<Option<Entry<'n>>> {
    while let Some(place) = descend(nodes, id, tree, key)? {
        let i = place.leaf.search(key)?.unwrap_or_else(|i| i);
        if i < place.leaf.count() {
            return place.leaf.entry(i).map(Some);
        }
        match place.next {
            Some(next) if next > key => key = next,
            Some(_) => return Err(place.leaf.wrong("its parent's keys are not in order")),
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// The entry with the largest key of at most `key`.
pub(crate) fn seek_le<'n>(nodes: &'n impl Nodes, id: TreeId, tree: TreeRef, mut key: u64) -> Result<Option<Entry<'n>>> {
    while let Some(place) = descend(nodes, id, tree, key)? {
        match place.leaf.search(key)? {
            Ok(i) => return place.leaf.entry(i).map(Some),
            Err(i) if i > 0 => return place.leaf.entry(i - 1).map(Some),
            Err(_) => {}
        }
        match place.from {
            Some(from) if from > 0 && from <= key => key = from - 1,
            Some(0) | None => return Ok(None),
            Some(_) => return Err(place.leaf.wrong("its parent's keys are not in order")),
        }
    }
    Ok(None)
}

/// Calls `each` for the entries from `key` on, in order, until it breaks.
pub(crate) fn scan<B>(
    nodes: &impl Nodes,
    id: TreeId,
    tree: TreeRef,
    mut key: u64,
    mut each: impl FnMut(Entry<'_>) -> Result<ControlFlow<B>>,
) -> Result<Option<B>> {
    while let Some(place) = descend(nodes, id, tree, key)? {
        let first = place.leaf.search(key)?.unwrap_or_else(|i| i);
        for i in first..place.leaf.count() {
            let entry = place.leaf.entry(i)?;
            if entry.key < key {
                return Err(place.leaf.wrong("its keys are not in order"));
            }
            key = entry.key;
            if let ControlFlow::Break(value) = each(entry)? {
                return Ok(Some(value));
            }
        }
        match place.next {
            // Always continue with a larger key, whatever the page contains: it may have changed since it was
            // verified.
            Some(next) if next > key => key = next,
            Some(_) => return Err(place.leaf.wrong("its parent's keys are not in order")),
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// Calls `each` for every node, parents first. For `check`.
pub(crate) fn walk_nodes(
    nodes: &impl Nodes,
    id: TreeId,
    tree: TreeRef,
    each: &mut dyn FnMut(PageNo, Result<&NodeView<'_>>) -> bool,
) {
    if tree.depth == 0 {
        return;
    }
    match check_depth(tree) {
        Ok(level) => walk(nodes, id, tree.root, level, each),
        Err(e) => {
            each(tree.root, Err(e));
        }
    }
}

fn walk(
    nodes: &impl Nodes,
    id: TreeId,
    page: PageNo,
    level: u8,
    each: &mut dyn FnMut(PageNo, Result<&NodeView<'_>>) -> bool,
) {
    let node = match NodeView::open(nodes, page, id, level) {
        Ok(node) => node,
        Err(e) => {
            each(page, Err(e));
            return;
        }
    };
    if !each(page, Ok(&node)) || level == 0 {
        return;
    }
    for i in 0..node.count() {
        match node.child(i) {
            Ok(child) => walk(nodes, id, child, level - 1, each),
            Err(e) => {
                each(page, Err(e));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pmem::Memory;
    use std::cell::Cell;

    const ID: TreeId = TreeId { owner: 7, tree: 1 };
    const TREE: TreeRef = TreeRef { root: PageNo(1), depth: 2 };

    /// Nodes read from memory without verification. Counts the reads.
    struct Raw(Memory, Cell<usize>);

    impl Nodes for Raw {
        fn node(&self, page: PageNo) -> Result<PageRef<'_>> {
            self.1.set(self.1.get() + 1);
            assert!(self.1.get() < 100, "no end");
            Ok(self.0.bytes().page(page.byte()).expect("inside"))
        }
    }

    impl Raw {
        /// Stores a node with these keys; each has an eight-byte value.
        fn put(&self, no: u64, level: u16, entries: impl Iterator<Item = (u64, u64)>) {
            let mut bytes = [0u8; 4096];
            let (mut heap, mut count) = (bytes.len(), 0);
            for (key, value) in entries {
                heap -= 16;
                bytes[heap..heap + 8].copy_from_slice(&key.to_le_bytes());
                bytes[heap + 8..heap + 16].copy_from_slice(&value.to_le_bytes());
                let slot = heap as u32 | 8 << 16;
                bytes[format::SLOTS + count * format::SLOT..][..4].copy_from_slice(&slot.to_le_bytes());
                count += 1;
            }
            let words = [
                (format::MAGIC_AT, format::MAGIC),
                (format::LEVEL, level),
                (format::COUNT, count as u16),
                (format::HEAP, heap as u16),
                (format::TREE, ID.tree),
            ];
            words.iter().for_each(|(at, word)| bytes[*at..at + 2].copy_from_slice(&word.to_le_bytes()));
            bytes[format::PAGE..format::PAGE + 8].copy_from_slice(&no.to_le_bytes());
            bytes[format::OWNER..format::OWNER + 8].copy_from_slice(&ID.owner.to_le_bytes());
            assert!(self.0.bytes().write(no * 4096, &bytes));
        }
    }

    /// A page may change after it was verified, if a hostile pool uses it for two purposes.
    #[test]
    fn looking_for_keys_ends_whatever_order_they_are_in() {
        let raw = Raw(Memory::new(1 << 20).expect("memory"), Cell::new(0));
        let leaves: [&[u64]; 6] = [&[], &[0], &[2], &[4], &[1, 3], &[3, 1]];
        let mut ends = 0;
        for shape in 0..125 * 36u64 {
            let keys = [shape % 5, shape / 5 % 5, shape / 25 % 5];
            let (first, second) = (leaves[(shape / 125 % 6) as usize], leaves[(shape / 750) as usize]);
            raw.put(1, 1, keys.iter().zip(2..).map(|(&key, child)| (key, child)));
            for (no, leaf) in [(2, first), (3, second), (4, &[4])] {
                raw.put(no, 0, leaf.iter().map(|&key| (key, 0)));
            }
            for key in 0..5 {
                let mut end = |done: bool| {
                    raw.1.set(0);
                    ends += u32::from(done);
                };
                end(scan(&raw, ID, TREE, key, |_| Ok(ControlFlow::<()>::Continue(()))).is_ok());
                end(seek_ge(&raw, ID, TREE, key).is_ok());
                end(seek_le(&raw, ID, TREE, key).is_ok());
            }
        }
        assert!(ends > 10_000, "{ends} found no fault");
    }
}
