//! Where damage was found: which structure of the pool, and which one of its kind.

use std::fmt;

use crate::units::{FRAME_SIZE, FrameNo, Ino, PAGE_SIZE, PageNo};

/// A structure on the media that is damaged; see [`Error::Corrupt`](crate::Error::Corrupt). `Display` names it as the
/// messages of the library do. Numbers are those that the library looked for, or those that the damaged structure says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Place {
    /// The superblock: neither copy can be used.
    Superblock,
    /// The marks of the journal, in its header.
    JournalHeader,
    /// The record at this byte of a lane of the journal.
    JournalLane {
        /// The lane, counted from 0.
        lane: u32,
        /// Bytes from the beginning of the lane.
        at: u64,
    },
    /// The record of the journal with this number.
    JournalRecord(u64),
    /// A record of the journal that describes this pool byte, which no record may change.
    JournalRecordFor(u64),
    /// The counters of a lane.
    Counters {
        /// The lane, counted from 0.
        lane: u32,
    },
    /// The state of the pool, both copies; the first is on this page.
    PoolState(PageNo),
    /// A frame, where no structure describes it alone.
    Frame(FrameNo),
    /// The descriptor of a frame.
    Descriptor(FrameNo),
    /// A page, where no structure describes it alone.
    Page(PageNo),
    /// What says who owns this page: its split entry, or its frame's descriptor.
    Owner(PageNo),
    /// The entry of this page in the split table of its frame.
    SplitEntry(PageNo),
    /// The table of moved inode pages that is on this page.
    ForwardingTable(PageNo),
    /// One word of such a table.
    ForwardingWord {
        /// The page of the table.
        table: PageNo,
        /// Which of its 512 words.
        index: usize,
    },
    /// The inode record at this [place](Ino::place).
    InodeRecord(u64),
    /// The slot that this inode number names. It holds no record of this inode.
    InodeSlot(Ino),
    /// An inode: what its record says does not agree with other structures.
    Inode(Ino),
    /// A node of a tree, on this page.
    TreeNode(PageNo),
    /// The tree whose root is on this page.
    Tree(PageNo),
    /// A tree of the inode at this [place](Ino::place).
    TreeOf(u64),
    /// The map of an inode: its extents.
    Map(Ino),
    /// One extent of an inode's map.
    Extent {
        /// The inode.
        ino: Ino,
        /// The first page of the file that the extent is for.
        file_page: u64,
    },
    /// The entry of a directory with this key.
    DirectoryEntry(u64),
    /// The extended attribute with this key.
    ExtendedAttribute(u64),
    /// An extended attribute of this inode.
    ExtendedAttributeOf(Ino),
    /// Pool bytes from here on.
    PoolByte(u64),
}

impl Place {
    /// The first pool byte of the structure, where the place says it. `None` where that follows from something else:
    /// from the size of the pool, or from where an inode or a directory lies now.
    pub fn pool_byte(&self) -> Option<u64> {
        match *self {
            Place::PoolByte(at) => Some(at),
            Place::Frame(frame) => frame.0.checked_mul(FRAME_SIZE),
            Place::PoolState(page)
            | Place::Page(page)
            | Place::ForwardingTable(page)
            | Place::TreeNode(page)
            | Place::Tree(page) => page.0.checked_mul(PAGE_SIZE),
            Place::ForwardingWord { table, index } => {
                table.0.checked_mul(PAGE_SIZE)?.checked_add((index as u64).checked_mul(8)?)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Superblock => f.write_str("superblock"),
            Place::JournalHeader => f.write_str("journal header"),
            Place::JournalLane { lane, at } => write!(f, "journal lane {lane}, byte {at:#x}"),
            Place::JournalRecord(sequence) => write!(f, "journal record {sequence}"),
            Place::JournalRecordFor(at) => write!(f, "journal record for pool byte {at:#x}"),
            Place::Counters { lane } => write!(f, "counters of lane {lane}"),
            Place::PoolState(page) => write!(f, "state of the pool at {page}"),
            Place::Frame(frame) => write!(f, "{frame}"),
            Place::Descriptor(frame) => write!(f, "descriptor of {frame}"),
            Place::Page(page) => write!(f, "{page}"),
            Place::Owner(page) => write!(f, "descriptor of {page}"),
            Place::SplitEntry(page) => write!(f, "split entry of {page}"),
            Place::ForwardingTable(table) => write!(f, "forwarding table at {table}"),
            Place::ForwardingWord { table, index } => write!(f, "word {index} of the forwarding table at {table}"),
            Place::InodeRecord(at) => write!(f, "inode record {at:#x}"),
            Place::InodeSlot(ino) => write!(f, "{ino} in {}", ino.page()),
            Place::Inode(ino) => write!(f, "{ino}"),
            Place::TreeNode(page) => write!(f, "tree node at {page}"),
            Place::Tree(root) => write!(f, "tree at {root}"),
            Place::TreeOf(place) => write!(f, "tree of inode {place:#x}"),
            Place::Map(ino) => write!(f, "map of {ino}"),
            Place::Extent { ino, file_page } => write!(f, "map of {ino}, file page {file_page:#x}"),
            Place::DirectoryEntry(key) => write!(f, "directory entry {key:#x}"),
            Place::ExtendedAttribute(key) => write!(f, "extended attribute {key:#x}"),
            Place::ExtendedAttributeOf(ino) => write!(f, "extended attribute of {ino}"),
            Place::PoolByte(at) => write!(f, "pool byte {at:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_as_in_the_messages() {
        let (page, frame, ino) = (PageNo(0x2a), FrameNo(3), Ino::new(PageNo(2), 1, 1));
        let texts = [
            (Place::Superblock, "superblock"),
            (Place::JournalHeader, "journal header"),
            (Place::JournalLane { lane: 2, at: 0x40 }, "journal lane 2, byte 0x40"),
            (Place::JournalRecord(17), "journal record 17"),
            (Place::JournalRecordFor(64), "journal record for pool byte 0x40"),
            (Place::Counters { lane: 1 }, "counters of lane 1"),
            (Place::PoolState(page), "state of the pool at page 0x2a"),
            (Place::Frame(frame), "frame 0x3"),
            (Place::Descriptor(frame), "descriptor of frame 0x3"),
            (Place::Page(page), "page 0x2a"),
            (Place::Owner(page), "descriptor of page 0x2a"),
            (Place::SplitEntry(page), "split entry of page 0x2a"),
            (Place::ForwardingTable(page), "forwarding table at page 0x2a"),
            (Place::ForwardingWord { table: page, index: 5 }, "word 5 of the forwarding table at page 0x2a"),
            (Place::InodeRecord(0x2010), "inode record 0x2010"),
            (Place::InodeSlot(ino), "inode 0x10000000021 in page 0x2"),
            (Place::Inode(ino), "inode 0x10000000021"),
            (Place::TreeNode(page), "tree node at page 0x2a"),
            (Place::Tree(page), "tree at page 0x2a"),
            (Place::TreeOf(ino.place()), "tree of inode 0x21"),
            (Place::Map(ino), "map of inode 0x10000000021"),
            (Place::Extent { ino, file_page: 16 }, "map of inode 0x10000000021, file page 0x10"),
            (Place::DirectoryEntry(0x1ff), "directory entry 0x1ff"),
            (Place::ExtendedAttribute(0x10000), "extended attribute 0x10000"),
            (Place::ExtendedAttributeOf(ino), "extended attribute of inode 0x10000000021"),
            (Place::PoolByte(0x1000), "pool byte 0x1000"),
        ];
        for (place, text) in texts {
            assert_eq!(place.to_string(), text, "{place:?}");
        }
    }

    #[test]
    fn a_place_knows_its_pool_byte_or_says_that_it_does_not() {
        assert_eq!(Place::TreeNode(PageNo(3)).pool_byte(), Some(0x3000));
        assert_eq!(Place::ForwardingWord { table: PageNo(3), index: 2 }.pool_byte(), Some(0x3010));
        assert_eq!(Place::Frame(FrameNo(1)).pool_byte(), Some(1 << 21));
        assert_eq!(Place::Descriptor(FrameNo(1)).pool_byte(), None);
        assert_eq!(Place::InodeRecord(0x2010).pool_byte(), None, "its page may have been moved");
        for damaged in [Place::Page(PageNo(u64::MAX)), Place::Frame(FrameNo(u64::MAX))] {
            assert_eq!(damaged.pool_byte(), None, "a number from a damaged structure");
        }
    }
}
