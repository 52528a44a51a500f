//! What a page reads as that no extent covers: the answer of the file's backing.
//!
//! ```text
//!   extent/resolve.rs:  page --> Own(run) | Shared(run) | Absent { pages, answer }
//!                                                                          |
//!   answer_absent(answer, offset, buf) <-----------------------------------'
//!
//!   instant.rs      the answers: Zeros (a shared zero page may stand for them), Noop, Pattern
//!   contents.rs     what fresh storage begins with: zeros, or bytes
//!   assignment.rs   which backing a file has
//! ```
//!
//! Only this layer knows what an absent page holds. The layers above ask [`Answer::is_zeros`] where they have a shorter
//! way for zeros: a hole of a seek or a read, the zero page of a mapping. Everything else goes through
//! [`answer_absent`].
//!
//! A backing answers for the file as it was when it got the backing. A truncate lowers that limit
//! (`InodeRec::base_pages`), and nothing raises it: what a file has behind its old end after growing is zeros. A punch
//! puts a void, an extent that hides what lies below. A void reads as zeros, whatever the backing is.
//!
//! # Adding a backing
//!
//! | where | what |
//! |---|---|
//! | a new file here | the implementation of [`Backing`], with a number that no backing had |
//! | this file | a variant of [`Answer`], in `Answer::ALL` and `Answer::backing` |
//! | `layout/inode.rs` | `LAST_BACKING`, and the comment of the field `backing` |
//! | `docs/format.md`, `docs/architecture.md` | the number in the table of the inode record, and in that of the backings |
//! | `layout/superblock.rs` | a *refuse* bit: for an older version, a record with the number is damaged |
//!
//! Not solved yet: where the parameters of a backing lie (a URL, a length), and how an [`Answer`], which is a number
//! without state, reaches an object of the pool.
//!
//! # A backing that waits
//!
//! [`Backing::read`] runs under the inode's lock, in transactions, and in the threads that answer page faults. So it
//! must not wait, and every backing here answers at once. A slow device or an object store is added as follows. The
//! fetch belongs to `data`, which may use `extent`; this layer lies below both.
//!
//! 1. A new [`Answer`] names it. The operation that meets this answer ends before it has changed anything, releases the
//!    inode and the chain, and asks for a fetch.
//! 2. The fetch runs without any lock of the engine. It reserves fresh pages, and reads the device into them.
//! 3. A short transaction locks the inode, resolves the pages again, and installs those that are still absent with the
//!    same answer. A page that was written, punched or truncated away in between keeps what it has: a fill loses
//!    against every later change. The generation of the inode's lock tells whether anything can have changed.
//! 4. The operation starts over, and finds storage.
//!
//! A fault takes the same way: the page stays unresolved, and the thread waits in it, until the third step has mapped
//! the page.

mod assignment;
mod contents;
mod instant;

pub(crate) use assignment::{answer_of, has_below};
pub(crate) use contents::Contents;

use crate::error::Result;
use instant::{NoopBacking, PatternBacking, ZeroBacking};

/// Answers for the absent pages of a file.
pub(crate) trait Backing: Sync {
    /// The number by which a file names its backing. It never gets another meaning.
    fn identity(&self) -> u32;

    /// Whether it answers nothing but zeros. A shared zero page may stand for such pages, and a seek reports a hole.
    fn is_zeros(&self) -> bool;

    /// Fills `buf` with what the file has from the byte `offset` on: whole pages, or a part of one. The same bytes get
    /// the same answer each time. Must not wait: see the module.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
}

/// Which backing answers for an absent page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Answer {
    /// [`ZeroBacking`].
    #[default]
    Zeros,
    /// [`NoopBacking`].
    Noop,
    /// [`PatternBacking`]; for tests.
    Pattern,
}

impl Answer {
    const ALL: [Answer; 3] = [Answer::Zeros, Answer::Noop, Answer::Pattern];

    /// Whether the page is all zeros, so that nothing need be read.
    #[inline]
    pub(crate) fn is_zeros(self) -> bool {
        match self {
            Answer::Zeros => true,
            other => other.backing().is_zeros(),
        }
    }

    fn backing(self) -> &'static dyn Backing {
        match self {
            Answer::Zeros => &ZeroBacking,
            Answer::Noop => &NoopBacking,
            Answer::Pattern => &PatternBacking,
        }
    }

    /// The answer of the backing with this number, if there is one.
    fn of_identity(identity: u32) -> Option<Answer> {
        Answer::ALL.into_iter().find(|answer| answer.backing().identity() == identity)
    }
}

/// Fills `buf` with what the absent bytes from `offset` on read as. The caller has resolved them, and knows that all of
/// them have this answer.
#[inline]
pub(crate) fn answer_absent(answer: Answer, offset: u64, buf: &mut [u8]) -> Result<()> {
    match answer {
        // Called directly: the common case pays for no dispatch.
        Answer::Zeros => ZeroBacking.read(offset, buf),
        other => other.backing().read(offset, buf),
    }
}
