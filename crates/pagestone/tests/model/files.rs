//! A pool and its reference, side by side: operations on files.

use pagestone::{Error, File, FileType, Piece};
use proptest::sample::Index;

use crate::ops::Op;
use crate::reference::{Answer, Id, Node, PAGE};
use crate::world::{Outcome, World, pattern, pick};

const MAX_LEN: u64 = i64::MAX as u64 - PAGE;

impl World {
    /// A file of the reference and a handle to it; the handle is kept or closed by the caller.
    fn file(&self, index: Index) -> Option<(Id, File, bool)> {
        let id = pick(index, &self.tree.of_kind(FileType::File))?;
        if let Some((_, file)) = self.handles.iter().find(|(h, _)| *h == id) {
            return Some((id, file.clone(), false));
        }
        Some((id, self.pool().node(self.ino(id)).expect("live").open().expect("opens"), true))
    }

    pub(crate) fn open(&mut self, node: Index) {
        let files = self.tree.of_kind(FileType::File);
        let all: Vec<Id> = self.tree.nodes.keys().copied().collect();
        let Some(id) = pick(node, if files.is_empty() { &all } else { &files }) else { return };
        let want: Answer = match self.tree.nodes[&id].kind {
            FileType::File => Ok(()),
            FileType::Dir => Err("IsDirectory"),
            _ => Err("NotSupported"),
        };
        let got = self.pool().node(self.ino(id)).expect("live").open();
        if let Outcome::Done(file) = self.outcome(got, &want, None) {
            self.handles.push((id, file));
            self.tree.node(id).handles += 1;
        }
    }

    pub(crate) fn clone_file(&mut self, file: Index, dir: Id, name: &[u8]) {
        let Some(src) = pick(file, &self.tree.of_kind(FileType::File)) else { return };
        let want = self.tree.may_create(dir, name, FileType::File, b"");
        let got = self.in_dir(dir, |d| d.clone_file(name, self.ino(src)));
        if let Outcome::Done(attr) = self.outcome(got, &want, Some(8)) {
            let from = &self.tree.nodes[&src];
            let mut made = Node::new(attr.ino, FileType::File, dir);
            (made.perm, made.uid, made.gid, made.data) = (from.perm, from.uid, from.gid, from.data.cloned());
            self.tree.cloned = true;
            let id = self.tree.create(dir, name, made);
            self.tree.node(src).data.closed();
            self.same_attr(id);
            self.same_attr(src);
        }
    }

    pub(crate) fn clone_into(&mut self, file: Index, to: Index) {
        let files = self.tree.of_kind(FileType::File);
        let (Some(src), Some((dst, handle, temporary))) = (pick(file, &files), self.file(to)) else { return };
        let data = &self.tree.nodes[&dst].data;
        // A file whose storage lies behind its end only is not empty either.
        let empty = handle.extents(..).expect("extents").is_empty() && handle.attr().expect("attr").pages == 0;
        let want = if src != dst && data.size == 0 && empty { Ok(()) } else { Err("Invalid") };
        let from = self.pool().node(self.ino(src)).expect("live").open().expect("opens");
        let got = handle.clone_from_file(&from);
        drop((from, handle));
        if let Outcome::Done(()) = self.outcome(got, &want, Some(8)) {
            self.tree.cloned = true;
            self.tree.node(dst).data = self.tree.nodes[&src].data.cloned();
            self.tree.node(dst).mtime = None;
        }
        for id in [src, dst] {
            if temporary || id == src {
                self.tree.node(id).data.closed();
            }
            self.same_attr(id);
        }
    }

    pub(crate) fn close_handle(&mut self, at: usize) {
        let (id, file) = self.handles.swap_remove(at);
        drop(file);
        self.closed(id);
    }

    /// The reference has one handle less.
    pub(crate) fn closed(&mut self, id: Id) {
        let node = self.tree.node(id);
        node.handles -= 1;
        if node.handles == 0 {
            node.data.closed();
            self.tree.bury(id);
        }
    }

    pub(crate) fn apply_to_file(&mut self, op: &Op) {
        let (Op::Write { file, .. }
        | Op::WriteAtomic { file, .. }
        | Op::Append { file, .. }
        | Op::Read { file, .. }
        | Op::Truncate { file, .. }
        | Op::Allocate { file, .. }
        | Op::Punch { file, .. }
        | Op::Zero { file, .. }
        | Op::Fill { file }
        | Op::Seek { file, .. }) = *op
        else {
            unreachable!("the other operations are not on files")
        };
        let Some((id, file, temporary)) = self.file(file) else { return };
        match *op {
            Op::Write { at, len, seed, .. } => self.write(id, &file, at.0, &pattern(seed, len as usize)),
            Op::WriteAtomic { at, len, gap, count, seed, .. } => {
                self.write_atomic(id, &file, at.0, &pattern(seed, len.into()), u64::from(gap), count);
            }
            Op::Append { len, seed, .. } => self.append(id, &file, &pattern(seed, len as usize)),
            Op::Read { at, len, .. } => self.read(id, &file, at.0, len.into()),
            Op::Truncate { at, .. } => self.truncate(id, &file, at.0),
            Op::Allocate { at, len, keep, .. } => self.allocate(id, &file, at.0, len.into(), keep),
            Op::Punch { at, len, .. } => self.punch(id, &file, at.0, len.into()),
            Op::Zero { at, len, keep, .. } => self.zero(id, &file, at.0, len.into(), keep),
            Op::Seek { at, .. } => self.seek(id, &file, at.0),
            Op::Fill { .. } => self.fill(id, &file),
            _ => {}
        }
        assert_eq!(file.attr().expect("attr").size, self.tree.nodes[&id].data.size);
        drop(file);
        if temporary {
            self.tree.node(id).data.closed();
        }
    }

    fn write(&mut self, id: Id, file: &File, at: u64, bytes: &[u8]) {
        let want = fits(at, bytes.len() as u64);
        let got = file.write_all_at(bytes, at);
        match self.outcome(got, &want, Some(bytes.len() as u64 / PAGE + 8)) {
            Outcome::Done(()) => self.tree.node(id).data.write(at, bytes),
            Outcome::Full => self.written_in_part(id, file, at, bytes),
            Outcome::Refused => {}
        }
        self.tree.node(id).mtime = None;
    }

    fn write_atomic(&mut self, id: Id, file: &File, at: u64, bytes: &[u8], gap: u64, count: u8) {
        let len = bytes.len() as u64;
        let offsets: Vec<u64> = (0..u64::from(count)).map(|i| at.saturating_add(i * (len + gap))).collect();
        let parts: Vec<(u64, &[u8])> = offsets.iter().map(|&at| (at, bytes)).collect();
        let want = offsets.iter().try_for_each(|&at| fits(at, len));
        let grows = (len / PAGE + 3) * u64::from(count) + 16;
        // Refused for want of space, it has written nothing.
        if let Outcome::Done(()) = self.outcome(file.write_atomic(&parts), &want, Some(grows)) {
            let data = &mut self.tree.node(id).data;
            offsets.iter().for_each(|&at| data.write(at, bytes));
            data.closed();
        }
        self.tree.node(id).mtime = None;
    }

    /// A write that met a full pool: what it had done before is there, from the front.
    fn written_in_part(&mut self, id: Id, file: &File, at: u64, bytes: &[u8]) {
        let mut there = vec![0; bytes.len()];
        let read = file.read_at(&mut there, at).expect("read");
        let same = there[..read].iter().zip(bytes).take_while(|(a, b)| a == b).count();
        self.tree.node(id).data.write(at, &bytes[..same]);
    }

    fn append(&mut self, id: Id, file: &File, bytes: &[u8]) {
        let size = self.tree.nodes[&id].data.size;
        let want = fits(size, bytes.len() as u64);
        let got = file.append(bytes);
        match self.outcome(got, &want, Some(bytes.len() as u64 / PAGE + 8)) {
            Outcome::Done(at) => {
                assert_eq!(at, size);
                self.tree.node(id).data.write(size, bytes);
            }
            Outcome::Full => self.written_in_part(id, file, size, bytes),
            Outcome::Refused => {}
        }
        self.tree.node(id).mtime = None;
    }

    /// Appends until the pool is full.
    fn fill(&mut self, id: Id, file: &File) {
        let chunk = pattern(99, 200_000);
        for _ in 0..400 {
            let before = self.tree.nodes[&id].data.size;
            self.append(id, file, &chunk);
            if self.tree.nodes[&id].data.size == before {
                break;
            }
        }
    }

    fn read(&self, id: Id, file: &File, at: u64, len: u64) {
        let want = self.tree.nodes[&id].data.read(at, len);
        let mut got = vec![0xEE; len as usize];
        let read = file.read_at(&mut got, at).expect("read");
        assert_eq!(read, want.len());
        assert!(got[..read] == want[..], "other bytes at {at}, length {len}");
        let pieces = file.pieces(at..at.saturating_add(len)).map(|pieces| {
            let mut all = Vec::new();
            for piece in &*pieces {
                match *piece {
                    // SAFETY: a piece is valid while `pieces` exist, and nobody else writes.
                    Piece::Storage { addr, len } => all.extend(unsafe { std::slice::from_raw_parts(addr, len) }),
                    Piece::Hole { len } => all.resize(all.len() + len, 0),
                }
            }
            all
        });
        assert!(pieces.expect("pieces") == want, "other pieces at {at}, length {len}");
    }

    fn truncate(&mut self, id: Id, file: &File, len: u64) {
        let want = if len > MAX_LEN { Err("FileTooLarge") } else { Ok(()) };
        // To grow a clone may take a page for what lies around the old end.
        let grows = (self.tree.cloned && len > self.tree.nodes[&id].data.size).then_some(4);
        if let Outcome::Done(()) = self.outcome(file.set_len(len), &want, grows) {
            self.tree.node(id).data.set_len(len);
        }
        self.tree.node(id).mtime = None;
    }

    fn allocate(&mut self, id: Id, file: &File, at: u64, len: u64, keep: bool) {
        let want = range(at, len);
        let got = match keep {
            true => file.allocate_keep_size(at..at.saturating_add(len)),
            false => file.allocate(at..at.saturating_add(len)),
        };
        match self.outcome(got, &want, Some(len / PAGE + 8)) {
            Outcome::Done(()) => self.tree.node(id).data.allocate(at, len, keep),
            Outcome::Full => self.tree.node(id).data.allocate_perhaps(at, len),
            Outcome::Refused => {}
        }
        self.tree.node(id).mtime = None;
    }

    fn punch(&mut self, id: Id, file: &File, at: u64, len: u64) {
        // To take a hole out of a run needs a page for the map when its node is full.
        let grows = self.tree.cloned.then_some(4);
        if let Outcome::Done(()) = self.outcome(file.punch_hole(at..at.saturating_add(len)), &range(at, len), grows) {
            self.tree.node(id).data.punch(at, len);
        }
        self.tree.node(id).mtime = None;
    }

    fn zero(&mut self, id: Id, file: &File, at: u64, len: u64, keep: bool) {
        let want = range(at, len);
        let got = match keep {
            true => file.zero_range_keep_size(at..at.saturating_add(len)),
            false => file.zero_range(at..at.saturating_add(len)),
        };
        let done = match self.outcome(got, &want, Some(len / PAGE + 8)) {
            Outcome::Done(()) => true,
            // The zeros may be there although the storage is not.
            Outcome::Full => {
                let size = self.tree.nodes[&id].data.size;
                let mut there = vec![1; len.min(size.saturating_sub(at)) as usize];
                let read = file.read_at(&mut there, at).expect("read");
                self.tree.node(id).data.allocate_perhaps(at, len);
                // What it had done before is there, from the front.
                let zeros = there[..read].iter().take_while(|&&b| b == 0).count() as u64;
                self.tree.node(id).data.clear(at, at + zeros);
                false
            }
            Outcome::Refused => false,
        };
        if done {
            let data = &mut self.tree.node(id).data;
            data.clear(at, at + len);
            data.allocate(at, len, keep);
        }
        self.tree.node(id).mtime = None;
    }

    fn seek(&self, id: Id, file: &File, at: u64) {
        let data = &self.tree.nodes[&id].data;
        if at >= data.size {
            assert!(matches!(file.seek_data(at), Err(Error::NoData)));
            assert!(matches!(file.seek_hole(at), Err(Error::NoData)));
            return;
        }
        // Pages that are there for certain, and those that may be.
        let next = |certain: bool| {
            let first = data.pages.range(at / PAGE..).next().map(|(&p, _)| p);
            let perhaps = data.maybe.range(at / PAGE..).next().copied().filter(|_| !certain);
            first.into_iter().chain(perhaps).min().map(|p| at.max(p * PAGE)).filter(|&o| o < data.size)
        };
        match file.seek_data(at) {
            Ok(found) => assert!(
                next(false).is_some_and(|o| found >= o) && next(true).is_none_or(|o| found <= o),
                "data found at {found} from {at}, expected {:?} to {:?}",
                next(false),
                next(true)
            ),
            Err(Error::NoData) => assert_eq!(next(true), None),
            Err(e) => panic!("{e}"),
        }
        let hole = file.seek_hole(at).expect("the end is a hole");
        assert!(hole >= at && hole <= data.size);
        for page in (at / PAGE..hole.div_ceil(PAGE)).filter(|_| hole > at) {
            assert!(data.pages.contains_key(&page) || data.maybe.contains(&page), "page {page} is no data");
        }
        if hole < data.size {
            assert!(!data.pages.contains_key(&(hole / PAGE)), "page {} is no hole", hole / PAGE);
        }
    }
}

/// Whether `len` bytes at `at` end within the longest file.
fn fits(at: u64, len: u64) -> Answer {
    match at.checked_add(len) {
        Some(end) if end <= MAX_LEN => Ok(()),
        _ => Err("FileTooLarge"),
    }
}

/// As [`fits`], of a range that must not be empty.
fn range(at: u64, len: u64) -> Answer {
    if len == 0 { Err("Invalid") } else { fits(at, len) }
}
