//! One node: checked reads, and changes of a staged copy.
//!
//! `layout/node.rs` has the picture of a node. Every offset that comes from the page is checked before it is used.
//! A search over keys that are out of order terminates.

use pmem::{PageRef, fault_tolerant};

use super::{Nodes, TreeId};
use crate::error::{Error, Place, Result};
use crate::journal::Staged;
use crate::layout::node::{COUNT, GARBAGE, HEAP, LEVEL, MAGIC, MAGIC_AT, MAX_VALUE, OWNER, PAGE, SLOT, SLOTS, TREE};
use crate::units::{PAGE_SIZE, PageNo};

const END: usize = PAGE_SIZE as usize;

/// A node whose header was checked.
#[derive(Clone, Copy)]
pub(crate) struct NodeView<'n> {
    page: PageRef<'n>,
    no: PageNo,
    count: usize,
    /// Faults of this thread when the node was opened. If there is another one since, what was read is not valid.
    faults: u64,
}

/// One entry of a leaf.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'n> {
    /// Its key.
    pub(crate) key: u64,
    node: NodeView<'n>,
    at: usize,
    /// Bytes of the value.
    pub(crate) len: usize,
}

impl Entry<'_> {
    /// The 64-bit word `at` bytes into the value; 0 beyond its end.
    pub(crate) fn u64(&self, at: usize) -> Result<u64> {
        let inside = at + 8 <= self.len && at.is_multiple_of(8);
        self.node.intact(if inside { self.node.page.u64(self.at + at) } else { 0 })
    }
    /// Copies bytes of the value, starting at `from`, into `buf`, as many as both have. Returns the number copied.
    pub(crate) fn bytes(&self, from: usize, buf: &mut [u8]) -> Result<usize> {
        let len = self.len.saturating_sub(from).min(buf.len());
        self.node.page.bytes(self.at + from, &mut buf[..len]);
        self.node.intact(len)
    }
    /// Whether the value from `from` to its end is `bytes`.
    pub(crate) fn is(&self, from: usize, bytes: &[u8]) -> Result<bool> {
        self.node.intact(self.len == from + bytes.len() && self.node.page.is(self.at + from, bytes))
    }
}

impl<'n> NodeView<'n> {
    /// Opens the node at `page` and checks that it is what its parent says.
    pub(super) fn open(nodes: &'n impl Nodes, page: PageNo, id: TreeId, level: u8) -> Result<NodeView<'n>> {
        Self::check(nodes.node(page)?, page, id, level)
    }

    /// The node at `page`, unchecked.
    fn at(page: PageRef<'n>, no: PageNo) -> NodeView<'n> {
        let faults = fault_tolerant::mine();
        NodeView { page, no, count: usize::from(page.u16(COUNT)), faults }
    }

    /// Returns `read`, or an error if a read has faulted since the node was opened.
    #[inline]
    fn intact<T>(&self, read: T) -> Result<T> {
        if fault_tolerant::well_since(self.faults) { Ok(read) } else { Err(Error::Lost(self.no.byte())) }
    }

    fn check(view: PageRef<'n>, no: PageNo, id: TreeId, level: u8) -> Result<NodeView<'n>> {
        let node = NodeView::at(view, no);
        if view.u16(MAGIC_AT) != MAGIC || view.u64(PAGE) != no.0 {
            return Err(node.wrong("not a tree node"));
        }
        if view.u64(OWNER) != id.owner || view.u16(TREE) != id.tree {
            return Err(node.wrong("it belongs to another tree"));
        }
        if view.u16(LEVEL) != u16::from(level) {
            return Err(node.wrong("it lies on another level"));
        }
        let heap = usize::from(view.u16(HEAP));
        if SLOTS + node.count * SLOT > heap || heap > END || (node.count == 0 && level > 0) {
            return Err(node.wrong("impossible counts"));
        }
        Ok(node)
    }

    /// An error at this node.
    pub(super) fn wrong(&self, what: &str) -> Error {
        if let Err(lost) = self.intact(()) {
            return lost;
        }
        Error::corrupt(Place::TreeNode(self.no), what)
    }

    /// Its page.
    pub(super) fn no(&self) -> PageNo {
        self.no
    }

    /// Number of entries.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn slot(&self, i: usize) -> Result<(usize, usize)> {
        let word = self.page.u32(SLOTS + i * SLOT) as usize;
        let (at, len) = (word & 0xFFFF, word >> 16);
        if i >= self.count || at < SLOTS + self.count * SLOT || !at.is_multiple_of(8) || at + 8 + len > END {
            return Err(self.wrong("a slot points outside the node"));
        }
        Ok((at, len))
    }

    /// Key of entry `i`.
    pub(crate) fn key(&self, i: usize) -> Result<u64> {
        self.intact(self.key_as_read(i)?)
    }

    /// As [`NodeView::key`]; the caller checks whether a read has faulted.
    #[inline]
    fn key_as_read(&self, i: usize) -> Result<u64> {
        let (at, _) = self.slot(i)?;
        Ok(self.page.u64(at))
    }

    /// Entry `i`.
    pub(crate) fn entry(&self, i: usize) -> Result<Entry<'n>> {
        let (at, len) = self.slot(i)?;
        let key = self.intact(self.page.u64(at))?;
        Ok(Entry { key, node: *self, at: at + 8, len })
    }

    /// Child `i` of an inner node.
    pub(crate) fn child(&self, i: usize) -> Result<PageNo> {
        let (at, len) = self.slot(i)?;
        if len != 8 {
            return Err(self.wrong("a child pointer of another length"));
        }
        self.intact(PageNo(self.page.u64(at + 8)))
    }

    /// The position of `key`, or the position at which it would be inserted.
    pub(super) fn search(&self, key: u64) -> Result<Result<usize, usize>> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let mid = (low + high) / 2;
            match self.key_as_read(mid)?.cmp(&key) {
                std::cmp::Ordering::Equal => return self.intact(Ok(mid)),
                std::cmp::Ordering::Less => low = mid + 1,
                std::cmp::Ordering::Greater => high = mid,
            }
        }
        self.intact(Err(low))
    }

    /// The child of an inner node that covers `key`. The first child also covers all smaller keys.
    pub(super) fn child_for(&self, key: u64) -> Result<usize> {
        Ok(match self.search(key)? {
            Ok(i) => i,
            Err(i) => i.saturating_sub(1),
        })
    }

    /// Bytes that entries and slots occupy.
    pub(super) fn live(&self) -> usize {
        let garbage = usize::from(self.page.u16(GARBAGE));
        (END - usize::from(self.page.u16(HEAP))).saturating_sub(garbage) + self.count * SLOT
    }
}

/// Checks once what every change relies on: the slots point into the heap, the byte counts add up, the keys ascend.
/// (The first key of an inner node is not used, see [`NodeView::child_for`].)
pub(super) fn check_entries(page: PageRef<'_>, no: PageNo) -> Result<()> {
    let node = NodeView::at(page, no);
    let (heap, inner) = (usize::from(page.u16(HEAP)), page.u16(LEVEL) > 0);
    if SLOTS + node.count * SLOT > heap || heap > END {
        return Err(node.wrong("impossible counts"));
    }
    let (mut bytes, mut last) = (usize::from(page.u16(GARBAGE)), None);
    for i in 0..node.count {
        let (at, len) = node.slot(i)?;
        if at < heap || len > MAX_VALUE || (inner && len != 8) {
            return Err(node.wrong("an entry of impossible place or length"));
        }
        bytes += footprint(len);
        let key = node.key(i)?;
        if last.is_some_and(|last| last >= key) {
            return Err(node.wrong("its keys are not in order"));
        }
        last = (i > 0 || !inner).then_some(key);
    }
    if bytes != END - heap {
        return Err(node.wrong("its bytes do not add up"));
    }
    Ok(())
}

/// Size of an entry in the heap, in bytes.
pub(super) fn footprint(value_len: usize) -> usize {
    (8 + value_len).next_multiple_of(8)
}

/// Bytes available for entries and slots in a node.
pub(super) const CAPACITY: usize = END - SLOTS;

fn get(staged: &Staged, at: usize) -> usize {
    usize::from(staged.view().u16(at))
}

fn put(staged: &mut Staged, at: usize, value: usize) {
    staged.write(at, &(value as u16).to_le_bytes());
}

/// Formats a blank staged page as an empty node.
pub(super) fn format(staged: &mut Staged, page: PageNo, id: TreeId, level: u8) {
    staged.write(MAGIC_AT, &MAGIC.to_le_bytes());
    put(staged, LEVEL, usize::from(level));
    staged.write(PAGE, &page.0.to_le_bytes());
    staged.write(OWNER, &id.owner.to_le_bytes());
    put(staged, TREE, usize::from(id.tree));
    put(staged, HEAP, END);
}

/// Whether an entry with a value of this length fits, if need be after compaction.
pub(super) fn fits(view: &NodeView<'_>, value_len: usize) -> bool {
    view.live() + footprint(value_len) + SLOT <= CAPACITY
}

/// Inserts an entry at position `i`. The caller has checked [`fits`].
pub(super) fn insert_at(staged: &mut Staged, i: usize, key: u64, value: &[u8]) {
    let (count, need) = (get(staged, COUNT), footprint(value.len()));
    if get(staged, HEAP) < SLOTS + (count + 1) * SLOT + need {
        compact(staged);
    }
    let heap = get(staged, HEAP) - need;
    assert!(i <= count && heap >= SLOTS + (count + 1) * SLOT, "the caller asked whether it fits");
    staged.write(heap, &key.to_le_bytes());
    staged.write(heap + 8, value);
    let (from, to) = (SLOTS + i * SLOT, SLOTS + count * SLOT);
    staged.bytes_mut().copy_within(from..to, from + SLOT);
    staged.mark(from, to + SLOT - from);
    put(staged, from, heap);
    put(staged, from + 2, value.len());
    put(staged, HEAP, heap);
    put(staged, COUNT, count + 1);
}

/// Removes entry `i`.
///
/// # Errors
/// There is no entry `i`, which means that a node is not what its parent says.
pub(super) fn remove_at(staged: &mut Staged, i: usize) -> Result<()> {
    let count = get(staged, COUNT);
    if i >= count {
        return Err(Error::corrupt(Place::TreeNode(PageNo(staged.view().u64(PAGE))), "it has too few entries"));
    }
    let len = get(staged, SLOTS + i * SLOT + 2);
    let (from, to) = (SLOTS + i * SLOT, SLOTS + count * SLOT);
    staged.bytes_mut().copy_within(from + SLOT..to, from);
    staged.mark(from, to - from);
    put(staged, COUNT, count - 1);
    let garbage = get(staged, GARBAGE) + footprint(len);
    put(staged, GARBAGE, garbage);
    Ok(())
}

/// Replaces the value of entry `i` by one of the same length.
pub(super) fn overwrite_at(staged: &mut Staged, i: usize, value: &[u8]) {
    let at = get(staged, SLOTS + i * SLOT);
    staged.write(at + 8, value);
}

/// Rewrites the heap without unused bytes.
fn compact(staged: &mut Staged) {
    let count = get(staged, COUNT);
    let old = staged.bytes().to_vec();
    let word = |at: usize| usize::from(u16::from_le_bytes([old[at], old[at + 1]]));
    let mut heap = END;
    for i in 0..count {
        let (at, len) = (word(SLOTS + i * SLOT), word(SLOTS + i * SLOT + 2));
        heap -= footprint(len);
        staged.bytes_mut()[heap..heap + 8 + len].copy_from_slice(&old[at..at + 8 + len]);
        put(staged, SLOTS + i * SLOT, heap);
    }
    staged.mark(heap, END - heap);
    put(staged, HEAP, heap);
    put(staged, GARBAGE, 0);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::attr::{FileType, NewNode};
    use crate::layout::ROOT;
    use crate::{CreateOptions, OpenOptions, Pool};
    use pmem::{Media, Memory, Part};

    /// A line of a node fails after its header was read: the ones that are read there must not be used as keys and
    /// names.
    #[test]
    fn what_is_lost_while_a_node_is_read_is_no_answer() {
        let memory = Arc::new(Memory::new(64 << 20).expect("memory"));
        let pool = Pool::create_on(memory.clone(), &CreateOptions::default()).expect("a pool");
        for n in 0..20 {
            pool.root().create(format!("{n}").as_bytes(), &NewNode::new(FileType::File, 0o600)).expect("a file");
        }
        let frames = &pool.engine().alloc;
        let rec = frames.inode(ROOT).expect("the root");
        let id = TreeId::map(rec.owner());
        let node = NodeView::open(frames, rec.map().root, id, 0).expect("a leaf");
        let entry = node.entry(3).expect("an entry");
        assert!(!entry.is(9, b"no such name").expect("all there"));
        memory.bytes().forbid(rec.map().root.byte(), PAGE_SIZE);
        assert!(matches!(node.search(5), Err(Error::Lost(_))));
        assert!(matches!(node.entry(3), Err(Error::Lost(_))));
        let node = NodeView { faults: fault_tolerant::mine(), ..node };
        let entry = Entry { node, ..entry };
        assert!(matches!(entry.is(9, &vec![0; entry.len - 9]), Err(Error::Lost(_))));
        assert!(matches!(entry.bytes(0, &mut [0; 9]), Err(Error::Lost(_))));
        assert!(matches!(entry.u64(0), Err(Error::Lost(_))));
    }

    #[test]
    fn a_damaged_node_is_reported_with_its_page() {
        let memory = Arc::new(Memory::new(64 << 20).expect("memory"));
        let pool = Pool::create_on(memory.clone(), &CreateOptions::default()).expect("a pool");
        pool.root().create(b"f", &NewNode::new(FileType::File, 0o600)).expect("a file");
        let page = pool.engine().alloc.inode(ROOT).expect("the root").map().root;
        pool.close().expect("closes");
        memory.persist(&[Part::Bytes { at: page.byte() + PAGE_SIZE - 1, bytes: &[0xFF] }]).expect("stores");
        let pool = Pool::open_on(memory, &OpenOptions::default()).expect("opens");
        let error = pool.open_file("/f").expect_err("its directory is damaged");
        assert!(matches!(error, Error::Corrupt { place: Place::TreeNode(at), .. } if at == page), "{error}");
    }
}
