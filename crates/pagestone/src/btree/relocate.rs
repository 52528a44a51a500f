//! Relocation of nodes to other pages, for a pool that is being shrunk.
//!
//! ```text
//!   root [ .. | 40 -> B | .. ]          root [ .. | 40 -> B' | .. ]
//!              B (a page to vacate)               B' (a copy)          B is freed
//! ```
//!
//! Each step handles one path from the root to a leaf, so that a record contains few nodes.

use pmem::PageBuf;

use super::node::{self, NodeView};
use super::{Nodes, TreeId};
use crate::alloc::{Run, TxResult};
use crate::error::{Error, Place};
use crate::layout::node::{MAX_DEPTH, PAGE};
use crate::layout::{PageUse, TreeRef};
use crate::txn::Tx;
use crate::units::PageNo;

/// The state after one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Relocated {
    /// The changed tree.
    pub(crate) tree: TreeRef,
    /// Smallest key of the next leaf; `None` after the last.
    pub(crate) next: Option<u64>,
    /// Number of nodes relocated.
    pub(crate) moved: u64,
}

/// Relocates the nodes between the root and the leaf of `key` whose pages satisfy `leaves`.
pub(crate) fn relocate_path(
    tx: &mut Tx<'_>,
    id: TreeId,
    mut tree: TreeRef,
    key: u64,
    leaves: &impl Fn(PageNo) -> bool,
) -> TxResult<Relocated> {
    if tree.depth > MAX_DEPTH {
        return Err(Error::corrupt(Place::TreeOf(id.owner), "impossible depth").into());
    }
    let (mut next, mut moved) = (None, 0);
    let mut parent: Option<(PageNo, usize)> = None;
    let mut page = tree.root;
    for level in (0..tree.depth).rev() {
        if leaves(page) {
            page = copy_node(tx, id, level, page)?;
            moved += 1;
            match parent {
                None => tree.root = page,
                Some((above, i)) => node::overwrite_at(tx.node_mut(above)?, i, &page.0.to_le_bytes()),
            }
        }
        if level > 0 {
            let view = NodeView::open(tx, page, id, level)?;
            let i = view.child_for(key)?;
            if i + 1 < view.count() {
                // The lowest level with a next child has the closest key.
                next = Some(view.key(i + 1)?);
            }
            parent = Some((page, i));
            page = view.child(i)?;
        }
    }
    // Descending keys are damage, and would make the walk loop.
    match next.filter(|&next| next <= key) {
        Some(_) => Err(Error::corrupt(Place::TreeOf(id.owner), "keys out of order").into()),
        None => Ok(Relocated { tree, next, moved }),
    }
}

/// Copies the node to a new page and frees the old one.
fn copy_node(tx: &mut Tx<'_>, id: TreeId, level: u8, page: PageNo) -> TxResult<PageNo> {
    NodeView::open(tx, page, id, level)?;
    let mut bytes = PageBuf::zeroed();
    tx.node(page)?.copy_to(&mut bytes);
    let copy = tx.new_node(id.owner)?;
    let staged = tx.node_mut(copy)?;
    staged.write(0, &bytes.0);
    staged.write(PAGE, &copy.0.to_le_bytes());
    tx.free(Run { page, pages: 1 }, PageUse::Node, id.owner);
    Ok(copy)
}
