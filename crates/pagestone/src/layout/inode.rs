//! The inode record: 256 bytes, sixteen to a page. Its address is its number.
//!
//! ```text
//!    0 checksum of 4..256   40 size (entries, for a      88..104 nanoseconds of the four times
//!    4 kind (0: free)          directory)               104 device number; pages that the bases
//!    5 inline extents       48 pages owned                  have storage for (files)
//!    6 depth of the map     56 atime (s)                112 parent inode number (directories);
//!    7 depth of the xattrs  64 mtime (s)                    dependents, xored (bases)
//!    8 address              72 ctime (s)                120 root page of the map
//!   16 generation           80 btime (s)                128 root page of the xattrs
//!   20 permissions                                      136 inode number of the base (clones)
//!   24 uid  28 gid                                      144 end of the pages visible in base or backing
//!   32 nlink; dependents (bases)                        152 owner that its runs name, if not itself
//!   36 height over the lowest base                      160 backing  164 flags  168 epoch
//!                                                       176 zero
//!                                                       184 three inline extents of 24 bytes, or
//!                                                           a symlink's target
//! ```
//!
//! A free slot keeps its generation, so that the next inode at the address gets another number. Up to three runs
//! are stored in the record: a small file needs no tree.
//!
//! A *base* is the frozen map of a file that was cloned. It has no name and never changes. The files (or bases)
//! that name it as their base read it wherever their own maps have no extent.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::crc32c;
use crate::attr::{Attr, FileType, Time};
use crate::error::{Error, Place, Result};
use crate::units::{Ino, PageNo};

/// Runs that fit in the record.
pub(crate) const INLINE_EXTENTS: usize = 3;

/// Largest number of a backing that this version knows.
const LAST_BACKING: u32 = 2;
/// The value of the kind byte of a base.
const BASE: u8 = 8;

/// Limit on lengths and counts, so that sums of a few cannot overflow.
const MAX_COUNT: u64 = i64::MAX as u64;

/// The root of a tree: its page, and the number of levels (0: no tree yet).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TreeRef {
    pub(crate) root: PageNo,
    pub(crate) depth: u8,
}

/// A run of a file in the record itself; `pages` 0 means unused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct InlineExtent {
    pub(crate) file_page: u64,
    pub(crate) page: u64,
    pub(crate) pages: u64,
}

/// The on-media inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct InodeRec {
    crc: u32,
    kind: u8,
    pub(crate) inline_count: u8,
    map_depth: u8,
    xattr_depth: u8,
    place: u64,
    pub(crate) generation: u32,
    pub(crate) perm: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    /// Larger than that of the base: a chain of bases cannot loop.
    pub(crate) height: u32,
    pub(crate) size: u64,
    pub(crate) pages: u64,
    seconds: [i64; 4],
    nanos: [u32; 4],
    /// Device number; for a file, the number of its pages that the bases have storage for.
    pub(crate) rdev: u64,
    /// Parent of a directory; for a base, the xor of its dependents' numbers.
    pub(crate) parent: u64,
    map_root: u64,
    xattr_root: u64,
    /// Number of the base; 0: none.
    pub(crate) base: u64,
    /// From this page on, neither the base nor the backing is visible.
    pub(crate) base_pages: u64,
    /// Owner named by the runs and nodes of the map; 0: this inode.
    owner: u64,
    /// The backing, which resolves pages without an extent below `base_pages`: 0 zeros, 1 one byte (for
    /// measurements), 2 a pattern (for tests).
    pub(crate) backing: u32,
    /// None is defined: all zero.
    flags: u32,
    /// The epoch of a cached file; zero.
    epoch: u64,
    reserved: u64,
    pub(crate) inline: [InlineExtent; INLINE_EXTENTS],
}

const _: () = assert!(size_of::<InodeRec>() as u64 == InodeRec::SIZE);

impl InodeRec {
    /// Bytes on the media.
    pub(crate) const SIZE: u64 = 256;
    /// Bytes of a symlink target that fit in the record.
    pub(crate) const INLINE_TARGET: usize = INLINE_EXTENTS * 24;

    /// A new inode of `kind`; all times are `now`.
    pub(crate) fn new(ino: Ino, kind: FileType, perm: u32, now: Time) -> InodeRec {
        let mut rec: InodeRec = zerocopy::transmute!([0u8; 256]);
        rec.kind = kind as u8;
        rec.place = ino.place();
        rec.generation = ino.generation();
        rec.perm = perm & 0o7777;
        rec.nlink = if kind == FileType::Dir { 2 } else { 1 };
        rec.seconds = [now.sec; 4];
        rec.nanos = [now.nsec; 4];
        rec
    }

    /// A free slot that keeps the generation of its last use.
    pub(crate) fn free(ino: Ino) -> InodeRec {
        let mut rec: InodeRec = zerocopy::transmute!([0u8; 256]);
        rec.place = ino.place();
        rec.generation = ino.generation();
        rec
    }

    /// The record with its checksum, ready for the media.
    pub(crate) fn sealed(mut self) -> InodeRec {
        self.crc = crc32c(&self.as_bytes()[4..]);
        self
    }

    /// Checks a record read from the media at `place`. A free slot passes. `known`: its checksum was verified
    /// before.
    pub(crate) fn check(&self, place: u64, known: bool) -> Result<()> {
        let bytes = self.as_bytes();
        if self.place == 0 && *bytes == [0; 256] {
            return Ok(());
        }
        let wrong = |what: &str| Err(Error::corrupt(Place::InodeRecord(place), what));
        if !known && self.crc != crc32c(&bytes[4..]) {
            return wrong("checksum does not match");
        }
        if self.place != place {
            return wrong("it belongs to another place");
        }
        if self.kind != 0 && !self.is_base() && FileType::from_u8(self.kind).is_none() {
            return wrong("unknown kind");
        }
        if self.base != 0 && !self.may_have_base() {
            return wrong("only a file can have a base");
        }
        if self.flags != 0 || self.epoch != 0 || self.reserved != 0 || self.backing > LAST_BACKING {
            return wrong("its flags, epoch or backing are of a later version");
        }
        if self.backing != 0 && !self.may_have_base() {
            return wrong("only a file can have a backing");
        }
        let counts = [self.size, self.pages, self.base_pages].iter().all(|&n| n <= MAX_COUNT)
            && self.nlink <= u32::MAX / 2
            && self.owner < 1 << 40
            && (!self.may_have_base() || self.rdev <= MAX_COUNT);
        if usize::from(self.inline_count) > INLINE_EXTENTS || self.nanos.iter().any(|&n| n > 999_999_999) || !counts {
            return wrong("impossible field");
        }
        Ok(())
    }

    /// Whether the slot is free.
    pub(crate) fn is_free(&self) -> bool {
        self.kind == 0
    }

    /// The kind; a free slot has none.
    pub(crate) fn kind(&self) -> Option<FileType> {
        FileType::from_u8(self.kind)
    }

    /// Whether this is a base.
    pub(crate) fn is_base(&self) -> bool {
        self.kind == BASE
    }

    fn may_have_base(&self) -> bool {
        self.is_base() || self.kind == FileType::File as u8
    }

    /// The contribution of a base to the counters, `(1, pages)`; `(0, 0)` for other inodes.
    pub(crate) fn counts_as_base(&self) -> (i64, i64) {
        if self.is_base() { (1, self.pages as i64) } else { (0, 0) }
    }

    /// A base that takes over the map of `file`, and its position above older bases.
    pub(crate) fn base_of(ino: Ino, file: &InodeRec) -> InodeRec {
        let mut base = *file;
        (base.kind, base.place, base.generation) = (BASE, ino.place(), ino.generation());
        (base.nlink, base.parent, base.rdev) = (0, 0, 0);
        base.set_xattrs(TreeRef::default());
        base.set_owner(file.owner());
        base
    }

    /// The owner of the runs and nodes of its map, as their descriptors have it.
    pub(crate) fn owner(&self) -> u64 {
        if self.owner == 0 { self.place } else { self.owner }
    }
    /// See [`Self::owner`].
    pub(crate) fn set_owner(&mut self, owner: u64) {
        self.owner = if owner == self.place { 0 } else { owner };
    }

    /// Removes the map. The record has none afterwards.
    pub(crate) fn clear_map(&mut self) {
        self.set_map(TreeRef::default());
        self.inline = Default::default();
        self.inline_count = 0;
        self.pages = 0;
    }
    /// Takes over the map of `other`. Its runs keep their owner.
    pub(crate) fn adopt_map(&mut self, other: &InodeRec) {
        self.set_map(other.map());
        self.inline = other.inline;
        self.inline_count = other.inline_count;
        self.pages = other.pages;
        self.set_owner(other.owner());
    }

    /// Number of pages of the file that its bases have storage for.
    pub(crate) fn borrowed(&self) -> u64 {
        if self.kind == FileType::File as u8 { self.rdev } else { 0 }
    }
    /// See [`Self::borrowed`]. A base does not count them.
    pub(crate) fn set_borrowed(&mut self, pages: u64) {
        if self.kind == FileType::File as u8 {
            self.rdev = pages;
        }
    }

    /// Its number.
    pub(crate) fn ino(&self) -> Ino {
        Ino(self.place | u64::from(self.generation) << 40)
    }

    /// The map of a file, or the names of a directory.
    pub(crate) fn map(&self) -> TreeRef {
        TreeRef { root: PageNo(self.map_root), depth: self.map_depth }
    }
    /// See [`Self::map`].
    pub(crate) fn set_map(&mut self, tree: TreeRef) {
        self.map_root = tree.root.0;
        self.map_depth = tree.depth;
    }
    /// The extended attributes.
    pub(crate) fn xattrs(&self) -> TreeRef {
        TreeRef { root: PageNo(self.xattr_root), depth: self.xattr_depth }
    }
    /// See [`Self::xattrs`].
    pub(crate) fn set_xattrs(&mut self, tree: TreeRef) {
        self.xattr_root = tree.root.0;
        self.xattr_depth = tree.depth;
    }

    fn time(&self, i: usize) -> Time {
        Time { sec: self.seconds[i], nsec: self.nanos[i] }
    }
    fn set_time(&mut self, i: usize, t: Time) {
        self.seconds[i] = t.sec;
        self.nanos[i] = t.nsec.min(999_999_999);
    }
    /// Sets the time of the last read.
    pub(crate) fn set_atime(&mut self, t: Time) {
        self.set_time(0, t);
    }
    /// Sets the time of the last change of the contents.
    pub(crate) fn set_mtime(&mut self, t: Time) {
        self.set_time(1, t);
    }
    /// Sets the time of the last change of the inode.
    pub(crate) fn set_ctime(&mut self, t: Time) {
        self.set_time(2, t);
    }
    /// Sets the times of a change of contents and inode.
    pub(crate) fn touch(&mut self, t: Time) {
        self.set_mtime(t);
        self.set_ctime(t);
    }

    /// The attributes for the public interface.
    pub(crate) fn attr(&self) -> Result<Attr> {
        let kind = self.kind().ok_or(Error::Stale(self.ino().0))?;
        Ok(Attr {
            ino: self.ino(),
            kind,
            perm: self.perm,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            size: if kind == FileType::Dir { self.size.saturating_mul(32) } else { self.size },
            pages: self.pages.saturating_add(self.borrowed()),
            shared: self.borrowed(),
            rdev: if kind == FileType::File { 0 } else { self.rdev },
            atime: self.time(0),
            mtime: self.time(1),
            ctime: self.time(2),
            btime: self.time(3),
        })
    }

    /// The target of a short symlink. The record's `size` is its length.
    pub(crate) fn inline_target(&self) -> &[u8] {
        let len = (self.size as usize).min(Self::INLINE_TARGET);
        &self.inline.as_bytes()[..len]
    }
    /// See [`Self::inline_target`].
    pub(crate) fn set_inline_target(&mut self, target: &[u8]) {
        self.inline.as_mut_bytes()[..target.len()].copy_from_slice(target);
    }
}
