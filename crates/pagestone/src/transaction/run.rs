//! The operations of a transaction, applied to a [`Tx`].
//!
//! ```text
//!   operation --resolve, each inode locked before it is looked at--> inodes --stage--> Tx
//!                        | busy
//!                        `--> Progress::wanted; the run stops
//! ```
//!
//! A plan does the same as a run, but moves no data of files: a write sets the length and notes its pages.
//! The target of a symbolic link is made in both: a later operation may lead through it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{At, Operation, Target};
use crate::alloc::{Stop, TxResult};
use crate::attr::{FileType, NewNode, RenameMode, Time};
use crate::data::truncate::regular;
use crate::data::write::check_end;
use crate::data::write_aside::{Committed, set_len_aside, write_aside};
use crate::dir::{self, Found, Lookup, Name, Removal, RenameIn, Resolved, check_target, link_target, new_inode};
use crate::engine::{Engine, WriteGuards};
use crate::error::{Error, Result};
use crate::extent::MAX_LEN;
use crate::layout::{ORPHANS, ROOT};
use crate::txn::Tx;
use crate::units::{Ino, PAGE_SIZE};

/// What becomes of the bytes of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct FileChange {
    /// Its length before; `None` for a file that the transaction makes.
    pub(super) before: Option<u64>,
    /// The shortest and the longest that it is meanwhile.
    pub(super) shortest: u64,
    pub(super) longest: u64,
    /// It was made shorter than it was at that moment.
    shrunk: bool,
    /// It reads through a base.
    pub(super) has_base: bool,
    /// Pages written, in order, without overlap.
    pub(super) replaced: Vec<Range<u64>>,
}

impl FileChange {
    fn new(before: Option<u64>, has_base: bool) -> FileChange {
        let len = before.unwrap_or_default();
        FileChange { before, shortest: len, longest: len, shrunk: false, has_base, replaced: Vec::new() }
    }

    fn has_len(&mut self, len: u64) {
        (self.shortest, self.longest) = (self.shortest.min(len), self.longest.max(len));
    }

    fn replaces(&mut self, mut pages: Range<u64>) {
        self.replaced.retain(|known| {
            let apart = known.end < pages.start || pages.end < known.start;
            if !apart {
                pages = pages.start.min(known.start)..pages.end.max(known.end);
            }
            apart
        });
        let at = self.replaced.partition_point(|known| known.start < pages.start);
        self.replaced.insert(at, pages);
    }

    /// Whether it loses bytes that it had.
    pub(super) fn shortens(&self) -> bool {
        self.before.is_some_and(|before| self.shortest < before)
    }

    /// The pages from the first written to the last.
    pub(super) fn hull(&self) -> Range<u64> {
        match &self.replaced[..] {
            [] => 0..0,
            [first, ..] => first.start..self.replaced.last().map_or(first.end, |last| last.end),
        }
    }
}

/// How far a run came, and what it found.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Inodes that were looked at: they are locked.
    pub(super) seen: BTreeSet<Ino>,
    /// An inode that could not be locked without waiting.
    pub(super) wanted: Option<Ino>,
    /// The operation that is being done.
    pub(super) at: Option<usize>,
    /// All are done.
    pub(super) finished: bool,
    /// Files whose bytes change.
    pub(super) files: BTreeMap<Ino, FileChange>,
    /// Inodes that lost their last name and are in the orphan index.
    pub(super) orphans: Vec<Ino>,
    /// Inodes that the transaction makes.
    made: BTreeSet<Ino>,
}

impl Progress {
    /// The locks to begin with, if one could not be had.
    pub(super) fn wants(&self) -> Option<Vec<Ino>> {
        self.wanted.map(|wanted| self.seen.iter().copied().chain([wanted]).collect())
    }

    /// Locks an inode before it is looked at.
    fn lock(&mut self, locks: &mut WriteGuards<'_>, ino: Ino) -> Result<()> {
        if !self.seen.contains(&ino) {
            if !locks.try_also(ino) {
                self.wanted = Some(ino);
                return Err(Error::Busy);
            }
            self.seen.insert(ino);
        }
        Ok(())
    }
}

/// Whether the data is moved, too.
pub(super) enum Depth<'z> {
    /// No: it is only seen what would change.
    Plan,
    /// Yes. For each file up to where it reads as zeros behind its end.
    Run(&'z BTreeMap<Ino, u64>),
}

/// One run of the list.
pub(super) struct Run<'r, 'l> {
    pub(super) engine: &'r Engine,
    pub(super) locks: &'r mut WriteGuards<'l>,
    pub(super) progress: &'r mut Progress,
    pub(super) depth: &'r Depth<'r>,
}

/// Names as the transaction sees them.
struct InTx<'a, 'r, 'l, 'p> {
    run: &'a mut Run<'r, 'l>,
    tx: &'a Tx<'p>,
}

impl Lookup for InTx<'_, '_, '_, '_> {
    fn find(&mut self, dir: Ino, name: &Name<'_>) -> Result<Option<Found>> {
        self.run.lock(dir)?;
        self.run.engine.find_in_tx(self.tx, dir, name)
    }
    fn parent(&mut self, dir: Ino) -> Result<Ino> {
        self.run.lock(dir)?;
        Ok(Ino(self.tx.inode(dir)?.parent))
    }
    fn target(&mut self, link: Ino) -> Result<Vec<u8>> {
        self.run.lock(link)?;
        link_target(self.tx, self.tx.alloc(), &self.tx.inode(link)?)
    }
}

impl Run<'_, '_> {
    /// Does all operations, in order.
    pub(super) fn all(&mut self, tx: &mut Tx<'_>, operations: &[Operation<'_>]) -> TxResult<()> {
        for (i, operation) in operations.iter().enumerate() {
            self.progress.at = Some(i);
            self.one(tx, operation)?;
            if !tx.has_room(0) {
                return Err(Stop::RecordFull);
            }
        }
        self.progress.finished = true;
        Ok(())
    }

    fn one(&mut self, tx: &mut Tx<'_>, operation: &Operation<'_>) -> TxResult<()> {
        match operation {
            Operation::Write { file, bytes, at } => self.write(tx, file, bytes, *at),
            Operation::SetLen { file, len } => self.set_len(tx, file, *len),
            Operation::Create { path, kind, mode } => self.create(tx, path, &NewNode::new(*kind, mode & 0o7777)),
            Operation::Symlink { target, link } => {
                self.create(tx, link, &NewNode::new(FileType::Symlink, 0o777).target(target))
            }
            Operation::Link { original, link } => self.link(tx, original, link),
            Operation::Rename { from, to, mode } => self.rename(tx, from, to, *mode),
            Operation::Remove { path, is_dir } => self.remove(tx, path, *is_dir),
        }
    }

    fn lock(&mut self, ino: Ino) -> Result<()> {
        self.progress.lock(self.locks, ino)
    }

    fn resolve(&mut self, tx: &Tx<'_>, path: &[u8], follow: bool) -> Result<Resolved> {
        dir::resolve(&mut InTx { run: self, tx }, path, follow)
    }

    /// The file that is meant, locked, and on the list of those that change.
    fn file(&mut self, tx: &Tx<'_>, file: &Target) -> Result<Ino> {
        let ino = match file {
            Target::Open(handle) => handle.ino(),
            Target::Path(path) => {
                let resolved = self.resolve(tx, path, true)?;
                match (resolved.name, resolved.found) {
                    (None, _) => return Err(Error::IsDirectory),
                    (Some(_), None) => return Err(Error::NotFound),
                    (Some(_), Some(found)) => found.ino,
                }
            }
        };
        self.lock(ino)?;
        let rec = regular(tx, ino)?;
        let made = self.progress.made.contains(&ino);
        let new = || FileChange::new((!made).then_some(rec.size), rec.base != 0);
        self.progress.files.entry(ino).or_insert_with(new);
        Ok(ino)
    }

    fn change(&mut self, ino: Ino) -> &mut FileChange {
        self.progress.files.entry(ino).or_default()
    }

    fn committed(&self, ino: Ino) -> Committed {
        let change = self.progress.files.get(&ino);
        let len = change.and_then(|change| change.before).unwrap_or_default();
        let zeroed = match self.depth {
            // What was zeroed behind the end may be gone, and have been written again.
            _ if change.is_some_and(|change| change.shrunk) => 0,
            Depth::Plan => len,
            Depth::Run(zeroed) => zeroed.get(&ino).copied().unwrap_or(len),
        };
        Committed { len, zeroed }
    }

    fn write(&mut self, tx: &mut Tx<'_>, file: &Target, bytes: &[u8], at: At) -> TxResult<()> {
        if let At::Offset(offset) = at {
            check_end(offset, bytes.len())?;
        }
        let ino = self.file(tx, file)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let committed = self.committed(ino);
        let mut rec = regular(tx, ino)?;
        let offset = match at {
            At::Offset(offset) => offset,
            At::End => rec.size,
        };
        check_end(offset, bytes.len())?;
        let end = offset + bytes.len() as u64;
        let change = self.change(ino);
        change.has_len(rec.size.max(end));
        // Where the file grows, the page with its old end may get other storage, too.
        let first = if offset > rec.size { rec.size } else { offset } / PAGE_SIZE;
        change.replaces(offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE));
        if first < offset / PAGE_SIZE {
            change.replaces(first..first + 1);
        }
        match self.depth {
            Depth::Plan => rec.size = rec.size.max(end),
            Depth::Run(_) => write_aside(tx, &mut rec, committed, offset, bytes)?,
        }
        rec.touch(Time::now());
        tx.put_inode(&rec)
    }

    fn set_len(&mut self, tx: &mut Tx<'_>, file: &Target, len: u64) -> TxResult<()> {
        if len > MAX_LEN {
            return Err(Error::FileTooLarge.into());
        }
        let ino = self.file(tx, file)?;
        let committed = self.committed(ino);
        let mut rec = regular(tx, ino)?;
        let change = self.change(ino);
        change.has_len(len);
        change.shrunk |= len < rec.size;
        if len > rec.size {
            let last = rec.size / PAGE_SIZE;
            change.replaces(last..last + 1);
        }
        match self.depth {
            Depth::Plan => rec.size = len,
            Depth::Run(_) => set_len_aside(tx, &mut rec, committed, len)?,
        }
        rec.touch(Time::now());
        tx.put_inode(&rec)
    }

    fn create(&mut self, tx: &mut Tx<'_>, path: &[u8], node: &NewNode<'_>) -> TxResult<()> {
        let resolved = self.resolve(tx, path, false)?;
        if resolved.found.is_some() {
            return Err(Error::Exists.into());
        }
        match node.kind {
            FileType::File if resolved.must_be_dir => return Err(Error::IsDirectory.into()),
            FileType::Symlink if resolved.must_be_dir => return Err(Error::NotFound.into()),
            _ => {}
        }
        let name = match &resolved.name {
            Some(name) => Name::new(name)?,
            None => return Err(Error::Exists.into()),
        };
        check_target(node)?;
        self.lock(resolved.dir)?;
        let make = |tx: &mut Tx<'_>, parent: &_, now| new_inode(tx, parent, node, now);
        let made = self.engine.create_in_tx(tx, resolved.dir, &name, make)?.ino();
        // A new number: an inode of this place that went is not among the files any more.
        self.progress.files.remove(&made);
        self.progress.made.insert(made);
        self.lock(made)?;
        Ok(())
    }

    fn link(&mut self, tx: &mut Tx<'_>, original: &[u8], link: &[u8]) -> TxResult<()> {
        let original = self.resolve(tx, original, false)?;
        let link = self.resolve(tx, link, false)?;
        let ino = match (&original.name, original.found) {
            (Some(_), Some(found)) => found.ino,
            (Some(_), None) => return Err(Error::NotFound.into()),
            (None, _) => return Err(Error::IsDirectory.into()),
        };
        if link.found.is_some() {
            return Err(Error::Exists.into());
        }
        let name = Name::new(link.name()?)?;
        self.lock(link.dir)?;
        self.lock(ino)?;
        let locks = &*self.locks;
        self.engine.link_in_tx(tx, (locks.of(link.dir), &name), locks.of(ino)).map(drop)
    }

    fn remove(&mut self, tx: &mut Tx<'_>, path: &[u8], is_dir: bool) -> TxResult<()> {
        let resolved = self.resolve(tx, path, false)?;
        let name = resolved.name()?;
        let found = resolved.found.ok_or(Error::NotFound)?;
        for ino in [resolved.dir, found.ino, ORPHANS] {
            self.lock(ino)?;
        }
        match self.engine.remove_in_tx(tx, self.locks, resolved.dir, &Name::new(name)?, is_dir)? {
            Removal::Done => {}
            Removal::Orphaned(ino) => self.progress.orphans.push(ino),
            Removal::Wants(inos) => {
                self.progress.wanted = inos.last().copied();
                return Err(Error::Busy.into());
            }
        }
        Ok(())
    }

    fn rename(&mut self, tx: &mut Tx<'_>, from: &[u8], to: &[u8], mode: RenameMode) -> TxResult<()> {
        let from = self.resolve(tx, from, false)?;
        let to = self.resolve(tx, to, false)?;
        let name = from.name()?;
        let a = from.found.ok_or(Error::NotFound)?;
        let to_name = to.name()?;
        if mode == RenameMode::Exchange && to.found.is_none() {
            return Err(Error::NotFound.into());
        }
        if to.found.is_none() && to.must_be_dir && a.kind != FileType::Dir {
            return Err(Error::NotDirectory.into());
        }
        let replaces = mode == RenameMode::Replace && to.found.is_some();
        let inos = [from.dir, to.dir, a.ino].into_iter().chain(to.found.map(|b| b.ino));
        for ino in inos.chain(replaces.then_some(ORPHANS)) {
            self.lock(ino)?;
        }
        let (name, to_name) = (Name::new(name)?, Name::new(to_name)?);
        let rename = RenameIn { from: (from.dir, &name), to: (to.dir, &to_name), a, b: to.found, mode };
        // The rename looks at the directories above each place that a directory gets: they are locked, too. A directory
        // that is exchanged gets the old place.
        let exchanged_dir = to.found.filter(|b| mode == RenameMode::Exchange && b.kind == FileType::Dir);
        if a.kind == FileType::Dir && from.dir != to.dir {
            self.lock_above(tx, to.dir)?;
        }
        if exchanged_dir.is_some() && from.dir != to.dir {
            self.lock_above(tx, from.dir)?;
        }
        let (engine, locks, progress) = (self.engine, &mut *self.locks, &mut *self.progress);
        let orphaned = engine.rename_in(tx, locks, rename, |tx, dir| Ok(Ino(tx.inode(dir)?.parent)))?;
        progress.orphans.extend(orphaned);
        Ok(())
    }

    /// Locks a directory and all above it.
    fn lock_above(&mut self, tx: &Tx<'_>, mut dir: Ino) -> Result<()> {
        for _ in 0..MAX_ABOVE {
            if dir == ROOT {
                break;
            }
            self.lock(dir)?;
            dir = Ino(tx.inode(dir)?.parent);
        }
        Ok(())
    }
}

/// Directories above one at most; more is damage, which the rename finds.
const MAX_ABOVE: usize = 1 << 16;
