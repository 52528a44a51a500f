//! Insertion: down to the leaf, then up again for as long as nodes split.
//!
//! ```text
//!   full node  [a b c d e f]   + x in the middle:  [a b c] [d e f], then x into its half
//!                              + x at the end:     [a b c d e f] [x]   (ascending keys fill nodes)
//! ```

use smallvec::SmallVec;

use super::node::{self, NodeView};
use super::{Spot, TreeId, locate};
use crate::alloc::{Stop, TxResult};
use crate::error::{Error, Place, Result};
use crate::layout::TreeRef;
use crate::layout::node::{MAX_DEPTH, MAX_VALUE};
use crate::txn::Tx;
use crate::units::PageNo;

/// Inserts or replaces an entry. Returns the changed tree.
pub(crate) fn insert(tx: &mut Tx<'_>, id: TreeId, tree: TreeRef, key: u64, value: &[u8]) -> TxResult<TreeRef> {
    let spot = locate(tx, id, tree, key)?.map(|(spot, _)| spot);
    insert_here(tx, id, tree, spot, key, value)
}

/// As [`insert`], at the position that [`locate`] found for `key`.
pub(crate) fn insert_here(
    tx: &mut Tx<'_>,
    id: TreeId,
    tree: TreeRef,
    spot: Option<Spot>,
    key: u64,
    value: &[u8],
) -> TxResult<TreeRef> {
    if value.len() > MAX_VALUE {
        return Err(Error::TooLarge.into());
    }
    let Some(Spot { mut path, leaf, at, .. }) = spot else {
        let root = tx.new_node(id.owner)?;
        let staged = tx.node_mut(root)?;
        node::format(staged, root, id, 0);
        node::insert_at(staged, 0, key, value);
        return Ok(TreeRef { root, depth: 1 });
    };
    let view = NodeView::open(tx, leaf, id, 0)?;
    debug_assert_eq!(view.search(key).ok(), Some(at), "the tree has changed since the spot was found");
    let at = match at {
        Ok(i) if view.entry(i)?.len == value.len() => {
            node::overwrite_at(tx.node_mut(leaf)?, i, value);
            return Ok(tree);
        }
        Ok(i) => {
            node::remove_at(tx.node_mut(leaf)?, i)?;
            i
        }
        Err(i) => i,
    };
    let mut split = put(tx, id, leaf, 0, at, key, value)?;
    let mut level = 0;
    while let Some((separator, right)) = split.take() {
        level += 1;
        let pointer = right.0.to_le_bytes();
        match path.pop() {
            Some((parent, child)) => split = put(tx, id, parent, level, child + 1, separator, &pointer)?,
            None => return grow(tx, id, tree, separator, right),
        }
    }
    Ok(tree)
}

/// Puts an entry at position `at` of a node and splits the node if it is full. Returns the new right sibling and
/// its first key.
fn put(
    tx: &mut Tx<'_>,
    id: TreeId,
    page: PageNo,
    level: u8,
    at: usize,
    key: u64,
    value: &[u8],
) -> TxResult<Option<(u64, PageNo)>> {
    let view = NodeView::open(tx, page, id, level)?;
    if node::fits(&view, value.len()) {
        node::insert_at(tx.node_mut(page)?, at, key, value);
        return Ok(None);
    }
    let count = view.count();
    let half = if at == count { count } else { middle(&view)? };
    let moved = copy_entries(&view, half)?;
    let right = tx.new_node(id.owner)?;
    if right == page {
        return Err(Error::corrupt(Place::Page(page), "it was found free and is in use").into());
    }
    let staged = tx.node_mut(right)?;
    node::format(staged, right, id, level);
    for (i, (k, v)) in moved.iter().enumerate() {
        node::insert_at(staged, i, *k, v);
    }
    let first = moved.first().map_or(key, |(k, _)| *k);
    let staged = tx.node_mut(page)?;
    for i in (half..count).rev() {
        node::remove_at(staged, i)?;
    }
    // At the boundary the entry goes to the left node, unless it would be the first of the right one.
    if at < half || (at == half && half < count) {
        node::insert_at(staged, at, key, value);
        return Ok(Some((first, right)));
    }
    node::insert_at(tx.node_mut(right)?, at - half, key, value);
    Ok(Some((first.min(key), right)))
}

/// The position that divides the node's bytes about evenly, with at least one entry on each side.
fn middle(view: &NodeView<'_>) -> Result<usize> {
    let (total, mut sum) = (view.live(), 0);
    for i in 0..view.count() {
        sum += node::footprint(view.entry(i)?.len);
        if sum * 2 >= total {
            return Ok((i + 1).clamp(1, view.count().max(2) - 1));
        }
    }
    Ok(view.count() / 2)
}

type Copied = Vec<(u64, SmallVec<[u8; 64]>)>;

/// Copies of the entries from `from` on.
pub(super) fn copy_entries(view: &NodeView<'_>, from: usize) -> Result<Copied> {
    (from..view.count())
        .map(|i| {
            let entry = view.entry(i)?;
            let mut value = SmallVec::from_elem(0, entry.len);
            entry.bytes(0, &mut value)?;
            Ok((entry.key, value))
        })
        .collect()
}

/// The root has split: one more level.
fn grow(tx: &mut Tx<'_>, id: TreeId, tree: TreeRef, separator: u64, right: PageNo) -> TxResult<TreeRef> {
    if tree.depth >= MAX_DEPTH {
        return Err(Stop::Failed(Error::NoSpace));
    }
    let first = NodeView::open(tx, tree.root, id, tree.depth - 1)?.key(0)?.min(separator.saturating_sub(1));
    let root = tx.new_node(id.owner)?;
    let staged = tx.node_mut(root)?;
    node::format(staged, root, id, tree.depth);
    node::insert_at(staged, 0, first, &tree.root.0.to_le_bytes());
    node::insert_at(staged, 1, separator, &right.0.to_le_bytes());
    Ok(TreeRef { root, depth: tree.depth + 1 })
}
