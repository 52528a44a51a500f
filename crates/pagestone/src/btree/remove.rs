//! Removal: an empty node is freed, a nearly empty one is merged with its neighbour.
//!
//! ```text
//!   [-inf->A | 40->B | 90->C]   B below a third, A + B fit:   [-inf->A' | 90->C]
//!   root with one child: the child becomes the root
//! ```

use super::insert::copy_entries;
use super::node::{self, CAPACITY, NodeView};
use super::{Path, Spot, TreeId, check_depth, locate};
use crate::alloc::{Run, TxResult};
use crate::layout::{PageUse, TreeRef};
use crate::txn::Tx;
use crate::units::PageNo;

/// Removes `key` if it is present. Returns the changed tree, and whether the key was present.
///
/// The root stays when it has lost its last entry. Otherwise a directory whose only file is repeatedly created and
/// removed would allocate and free a page each time. A caller that does not need an empty tree calls
/// [`drop_empty`].
pub(crate) fn remove(tx: &mut Tx<'_>, id: TreeId, tree: TreeRef, key: u64) -> TxResult<(TreeRef, bool)> {
    match locate(tx, id, tree, key)? {
        Some((spot, _)) if spot.at.is_ok() => Ok((remove_here(tx, id, tree, spot)?, true)),
        _ => Ok((tree, false)),
    }
}

/// As [`remove`], for the entry at a position. If there is no entry, the tree does not change.
pub(crate) fn remove_here(tx: &mut Tx<'_>, id: TreeId, tree: TreeRef, spot: Spot) -> TxResult<TreeRef> {
    let Spot { path, leaf, at: Ok(at), .. } = spot else { return Ok(tree) };
    node::remove_at(tx.node_mut(leaf)?, at)?;
    tidy(tx, id, tree, path, leaf)
}

/// After `page` has lost an entry: frees or merges it, then its ancestors in the same way.
fn tidy(tx: &mut Tx<'_>, id: TreeId, tree: TreeRef, mut path: Path, mut page: PageNo) -> TxResult<TreeRef> {
    let mut level = 0;
    while let Some((parent, child)) = path.pop() {
        // A node that has lost its last entry is opened as a leaf: it has no children.
        let (count, live) = staged_fill(tx, page);
        if count == 0 {
            tx.free(Run { page, pages: 1 }, PageUse::Node, id.owner);
            node::remove_at(tx.node_mut(parent)?, child)?;
        } else if live < CAPACITY / 3 {
            if !merge(tx, id, parent, child, level)? {
                return Ok(tree);
            }
        } else {
            return Ok(tree);
        }
        page = parent;
        level += 1;
    }
    shrink_root(tx, id, tree)
}

/// Number of entries and bytes in use of a staged node.
fn staged_fill(tx: &Tx<'_>, page: PageNo) -> (usize, usize) {
    use crate::layout::node::{COUNT, GARBAGE, HEAP, SLOT};
    let Ok(view) = tx.page(page) else { return (1, CAPACITY) };
    let word = |at: usize| usize::from(view.u16(at));
    let heap = crate::units::PAGE_SIZE as usize - word(HEAP);
    (word(COUNT), heap.saturating_sub(word(GARBAGE)) + word(COUNT) * SLOT)
}

/// Merges child `child` of `parent` with a neighbour if both fit into one node with room to spare.
fn merge(tx: &mut Tx<'_>, id: TreeId, parent: PageNo, child: usize, level: u8) -> TxResult<bool> {
    let up = NodeView::open(tx, parent, id, level + 1)?;
    if up.count() < 2 {
        return Ok(false);
    }
    let left_at = if child > 0 { child - 1 } else { child };
    let (left, right) = (up.child(left_at)?, up.child(left_at + 1)?);
    let (a, b) = (NodeView::open(tx, left, id, level)?, NodeView::open(tx, right, id, level)?);
    if a.live() + b.live() > CAPACITY * 4 / 5 {
        return Ok(false);
    }
    let count = a.count();
    let mut moved = copy_entries(&b, 0)?;
    // The first key of an inner node is not used, because its first child also covers all smaller keys. In the
    // middle of a node the key is used; the parent has the first key of the right node.
    if let Some((key, _)) = moved.first_mut().filter(|_| level > 0) {
        *key = up.key(left_at + 1)?;
    }
    let staged = tx.node_mut(left)?;
    for (i, (key, value)) in moved.iter().enumerate() {
        node::insert_at(staged, count + i, *key, value);
    }
    tx.free(Run { page: right, pages: 1 }, PageUse::Node, id.owner);
    node::remove_at(tx.node_mut(parent)?, left_at + 1)?;
    Ok(true)
}

/// Frees a root without entries; replaces an inner root with one child by that child.
fn shrink_root(tx: &mut Tx<'_>, id: TreeId, mut tree: TreeRef) -> TxResult<TreeRef> {
    loop {
        let (count, _) = staged_fill(tx, tree.root);
        let level = check_depth(tree)?;
        let child = match (count, level) {
            (0, 0) => return Ok(tree),
            (0, _) => None,
            (1, 1..) => Some(NodeView::open(tx, tree.root, id, level)?.child(0)?),
            _ => return Ok(tree),
        };
        tx.free(Run { page: tree.root, pages: 1 }, PageUse::Node, id.owner);
        match child {
            Some(root) => tree = TreeRef { root, depth: tree.depth - 1 },
            None => return Ok(TreeRef::default()),
        }
    }
}

/// Frees the root of a tree that has no entries.
pub(crate) fn drop_empty(tx: &mut Tx<'_>, id: TreeId, tree: TreeRef) -> TxResult<TreeRef> {
    if tree.depth != 1 || NodeView::open(tx, tree.root, id, 0)?.count() > 0 {
        return Ok(tree);
    }
    tx.free(Run { page: tree.root, pages: 1 }, PageUse::Node, id.owner);
    Ok(TreeRef::default())
}

/// Removes the first leaf of a tree, calling `each` for its entries. The remaining nodes are not rebalanced: this
/// frees a whole tree in bounded steps.
pub(crate) fn destroy_leaf(
    tx: &mut Tx<'_>,
    id: TreeId,
    tree: TreeRef,
    mut each: impl FnMut(&mut Tx<'_>, u64, &[u8]) -> TxResult<()>,
) -> TxResult<TreeRef> {
    let Some((Spot { mut path, leaf, .. }, _)) = locate(tx, id, tree, 0)? else { return Ok(tree) };
    let entries = copy_entries(&NodeView::open(tx, leaf, id, 0)?, 0)?;
    for (key, value) in &entries {
        each(tx, *key, value)?;
    }
    tx.free(Run { page: leaf, pages: 1 }, PageUse::Node, id.owner);
    while let Some((parent, child)) = path.pop() {
        let staged = tx.node_mut(parent)?;
        node::remove_at(staged, child)?;
        if staged_fill(tx, parent).0 > 0 {
            return Ok(tree);
        }
        tx.free(Run { page: parent, pages: 1 }, PageUse::Node, id.owner);
    }
    Ok(TreeRef::default())
}
