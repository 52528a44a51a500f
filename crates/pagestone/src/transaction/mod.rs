//! Changes of several files and names that a program commits together: one record.
//!
//! ```text
//!   Transaction   a list of operations: nothing happens while it is made
//!        |
//!        commit   lock ROOT ...     plan     run the list, commit nothing: which inodes it looks at, what it replaces
//!                      ^              |  an inode is busy: all of them from the beginning, in order
//!                      `--------------'
//!                 mappings kept from what is replaced
//!                                   run the list again: data into fresh pages, one fence for each write
//!                                   one record                                                  it has happened
//!                 mappings see the new pages; orphans are reclaimed
//! ```
//!
//!   `run.rs` applies the list to a [`Tx`](crate::txn::Tx); `commit.rs` locks, plans and notifies.

mod commit;
mod run;

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::attr::{FileType, RenameMode};
use crate::data::{FileHandle, bounce_buffer};
use crate::engine::EngineRef;
use crate::error::Result;

/// Changes of several files and names that happen wholly or not at all; [`Pool::transaction`](crate::Pool::transaction)
/// begins one.
///
/// The methods put operations on a list, and [`Transaction::commit`] does them, in order. Each sees the effects of those
/// before it: a file can be created, written and renamed. Nothing happens before the commit, and a transaction that is
/// dropped does nothing. Paths are those of [`Pool`](crate::Pool): they begin at the root, and symbolic links are
/// followed, except by operations on the name itself.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let pool = pagestone::Pool::create(dir.path().join("p"), &pagestone::CreateOptions::new().size(16 << 20))?;
/// pool.write("/a", "100")?;
/// pool.write("/b", "000")?;
/// pool.create_dir("/log")?;
/// let mut change = pool.transaction();
/// change.write("/a", b"090", 0);
/// change.write("/b", b"010", 0);
/// change.create("/log/new", 0o644).write("/log/new", b"a to b: 10", 0).rename("/log/new", "/log/1");
/// change.commit()?; // all of it, or nothing
/// assert_eq!(pool.read("/b")?, b"010");
/// # Ok::<(), pagestone::Error>(())
/// ```
///
/// # Limits
/// The record holds 128 KiB of metadata; data is not in it. What takes room is each name, each inode and each run of
/// pages that is replaced: some 5 KiB where pages of another frame (2 MiB) of the pool are taken or given back, and a few
/// hundred bytes otherwise. In practice a transaction may have some hundred small operations, and write some tens of MiB
/// to files that lie in few pieces. More is [`Error::TransactionTooLarge`](crate::Error::TransactionTooLarge).
#[derive(Debug)]
#[must_use = "nothing happens before the commit"]
pub struct Transaction<'a> {
    engine: EngineRef,
    operations: Vec<Operation<'a>>,
}

/// A file that an operation changes.
#[derive(Debug)]
enum Target {
    Path(Vec<u8>),
    Open(FileHandle),
}

/// Where a write goes.
#[derive(Clone, Copy, Debug)]
enum At {
    Offset(u64),
    /// The end that the file has when the operation is done.
    End,
}

#[derive(Debug)]
enum Operation<'a> {
    Write { file: Target, bytes: Cow<'a, [u8]>, at: At },
    SetLen { file: Target, len: u64 },
    Create { path: Vec<u8>, kind: FileType, mode: u32 },
    Symlink { target: Vec<u8>, link: Vec<u8> },
    Link { original: Vec<u8>, link: Vec<u8> },
    Rename { from: Vec<u8>, to: Vec<u8>, mode: RenameMode },
    Remove { path: Vec<u8>, is_dir: bool },
}

fn bytes_of(path: impl AsRef<Path>) -> Vec<u8> {
    path.as_ref().as_os_str().as_bytes().to_vec()
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(engine: EngineRef) -> Transaction<'a> {
        Transaction { engine, operations: Vec::new() }
    }

    fn push(&mut self, operation: Operation<'a>) -> &mut Self {
        self.operations.push(operation);
        self
    }

    /// Writes all of `bytes` at `offset` of the file at `path`, which grows if need be.
    pub fn write(&mut self, path: impl AsRef<Path>, bytes: &'a [u8], offset: u64) -> &mut Self {
        let file = Target::Path(bytes_of(path));
        self.push(Operation::Write { file, bytes: Cow::Borrowed(bytes), at: At::Offset(offset) })
    }

    /// Writes all of `bytes` at the end of the file at `path`: the end that it has after the operations before this one,
    /// and after what others have appended until the commit. The commit fails where a [write](Transaction::write) there
    /// would.
    pub fn append(&mut self, path: impl AsRef<Path>, bytes: &'a [u8]) -> &mut Self {
        let file = Target::Path(bytes_of(path));
        self.push(Operation::Write { file, bytes: Cow::Borrowed(bytes), at: At::End })
    }

    /// As [`Transaction::write`], to an open file of this pool.
    pub(crate) fn write_handle(&mut self, file: &FileHandle, bytes: &'a [u8], offset: u64) -> &mut Self {
        let file = Target::Open(file.clone());
        self.push(Operation::Write { file, bytes: Cow::Borrowed(bytes), at: At::Offset(offset) })
    }

    /// The pool that it is a transaction of.
    pub(crate) fn engine(&self) -> &EngineRef {
        &self.engine
    }

    /// Sets the length of the file at `path`: shorter frees pages, longer reads as zeros.
    pub fn set_len(&mut self, path: impl AsRef<Path>, len: u64) -> &mut Self {
        self.push(Operation::SetLen { file: Target::Path(bytes_of(path)), len })
    }

    /// Makes an empty file with these permission bits (`07777`), owned by root. The name must be free.
    pub fn create(&mut self, path: impl AsRef<Path>, mode: u32) -> &mut Self {
        self.push(Operation::Create { path: bytes_of(path), kind: FileType::File, mode })
    }

    /// Makes a directory with mode `0o755`, owned by root. The name must be free.
    pub fn create_dir(&mut self, path: impl AsRef<Path>) -> &mut Self {
        self.push(Operation::Create { path: bytes_of(path), kind: FileType::Dir, mode: 0o755 })
    }

    /// Makes a symbolic link at `link` to `original`, which need not be there. A target without a leading `/` begins in
    /// the directory of the link. The name `link` must be free. The commit fails with
    /// [`Error::NameTooLong`](crate::Error::NameTooLong) for a target of more than 4,095 bytes, and with
    /// [`Error::NotFound`](crate::Error::NotFound) for one of none.
    pub fn symlink(&mut self, original: impl AsRef<Path>, link: impl AsRef<Path>) -> &mut Self {
        self.push(Operation::Symlink { target: bytes_of(original), link: bytes_of(link) })
    }

    /// Gives the file `original`, which is no directory, another name, which must be free. A symbolic link is not followed.
    pub fn hard_link(&mut self, original: impl AsRef<Path>, link: impl AsRef<Path>) -> &mut Self {
        self.push(Operation::Link { original: bytes_of(original), link: bytes_of(link) })
    }

    /// Moves the name `from` to `to`. A file, or an empty directory, that has the new name is replaced.
    pub fn rename(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> &mut Self {
        self.push(Operation::Rename { from: bytes_of(from), to: bytes_of(to), mode: RenameMode::Replace })
    }

    /// Exchanges what two names mean, also of different kinds. Symbolic links at the ends of the paths are not followed.
    /// The commit fails with [`Error::NotFound`](crate::Error::NotFound) if one of them is missing, and with
    /// [`Error::Invalid`](crate::Error::Invalid) for a directory and something below it.
    pub fn exchange(&mut self, one: impl AsRef<Path>, other: impl AsRef<Path>) -> &mut Self {
        self.push(Operation::Rename { from: bytes_of(one), to: bytes_of(other), mode: RenameMode::Exchange })
    }

    /// Removes a name of anything but a directory. With the last one the bytes go, unless the file is open or mapped.
    pub fn remove_file(&mut self, path: impl AsRef<Path>) -> &mut Self {
        self.push(Operation::Remove { path: bytes_of(path), is_dir: false })
    }

    /// Removes an empty directory.
    pub fn remove_dir(&mut self, path: impl AsRef<Path>) -> &mut Self {
        self.push(Operation::Remove { path: bytes_of(path), is_dir: true })
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Does all operations in one record. After a crash all of them have happened or none, and nobody sees a part of
    /// them: readers of one file or directory wait for the record, mappings see its pages at once.
    ///
    /// # Durability
    /// On return, where the media are durable at the fence, else at the next [`Pool::sync`](crate::Pool::sync).
    ///
    /// # Blocking
    /// The call works in the caller's thread. From the first lookup to the record it holds the locks of all inodes that
    /// the paths lead through and that it changes, also while data is copied; other calls wait for these. It waits for
    /// the locks, for other renames if it has one or an exchange, and for a checkpoint.
    ///
    /// # Errors
    /// [`Error::InTransaction`](crate::Error::InTransaction) names the operation that failed, and why: what the single
    /// operation answers, or [`Error::TransactionTooLarge`](crate::Error::TransactionTooLarge). Errors that are of none
    /// of them ([`Error::ReadOnly`](crate::Error::ReadOnly), [`Error::Latched`](crate::Error::Latched), an error of the
    /// media at the commit) come as they are. Nothing has happened then. New pages are needed besides the old ones, so
    /// [`Error::NoSpace`](crate::Error::NoSpace) comes earlier than it does for a write in place.
    pub fn commit(mut self) -> Result<()> {
        self.engine.alloc.check_process()?;
        for operation in &mut self.operations {
            if let Operation::Write { bytes, .. } = operation
                && bounce_buffer::needed(bytes)
            {
                *bytes = Cow::Owned(bytes.to_vec());
            }
        }
        commit::commit(&self.engine, &self.operations)
    }
}
