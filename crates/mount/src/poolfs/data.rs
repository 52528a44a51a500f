//! Bytes: read straight out of the pool where they lie in one piece, copied together where they do not.
//!
//! ```text
//!   one piece of storage     send(the storage itself)           no copy in this process; one of the library, if it is
//!                                                               what a backing has there
//!   several, or holes        buffer of this thread -> send      one copy
//! ```

use std::cell::RefCell;
use std::slice;

use pagestone::{Error, File, PAGE_SIZE, Piece};

use crate::transport::Reply;

/// What one request to copy may take, so that it does not hold a server thread for long; the
/// caller is told how much it was and asks again.
const COPY_AT_ONCE: u64 = 64 << 20;
const COPY_STEP: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with this thread's buffer, at least `len` bytes long. Its contents are left over from
/// an earlier use.
fn with_buffer<R>(len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        f(&mut buffer[..len])
    })
}

/// The bytes of a piece of storage.
///
/// # Safety
/// The piece is one of `File::pieces`, and the `Pieces` that it came with are still there.
unsafe fn storage<'a>(addr: *const u8, len: usize) -> &'a [u8] {
    // Somebody may be writing to the same file bytes at this moment, through another thread or
    // another mapping; nothing here looks at them: they go to the kernel, which copies them like any
    // other process's memory, and answers with an error where it cannot.
    // SAFETY: the library promises that the address is valid for `len` bytes and not reused while
    // the `Pieces` exist, which our caller promises in turn.
    unsafe { slice::from_raw_parts(addr, len) }
}

/// Reads up to `len` bytes and hands them to `send`, once. In front of a page that the media have
/// lost it ends early: the next request, which begins there, gets the error.
pub(super) fn read(file: &File, offset: u64, len: u32, send: &mut dyn FnMut(&[u8])) -> Reply<()> {
    match read_all(file, offset, len.into(), send) {
        Err(Error::DataLost(at)) if at > offset => Ok(read_all(file, offset, at - offset, send)?),
        done => Ok(done?),
    }
}

fn read_all(file: &File, offset: u64, len: u64, send: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
    let pieces = file.pieces(offset..offset.saturating_add(len))?;
    match *pieces {
        [] => {
            send(&[]);
            return Ok(());
        }
        [Piece::Storage { addr, len }] => {
            // SAFETY: `pieces` is there until the end of the function.
            send(unsafe { storage(addr, len) });
            return Ok(());
        }
        _ => {}
    }
    let len = pieces.iter().map(Piece::len).sum();
    drop(pieces);
    // The library copies, and not we: it goes on where memory cannot be reached.
    with_buffer(len, |buffer| {
        let got = file.read_at(buffer, offset)?;
        send(&buffer[..got]);
        Ok(())
    })
}

/// Most that one answer can say was copied: whole pages in 32 bits.
const SHARED_AT_ONCE: u64 = u32::MAX as u64 & !(PAGE_SIZE - 1);

/// Lets two files share a range if they can (`cp --reflink` asks for a copy of all of it); else copies, in
/// steps through this thread's buffer.
pub(super) fn copy(from: &File, offset: u64, to: &File, to_offset: u64, len: u64) -> Reply<u32> {
    if offset == to_offset {
        let shared = to.clone_range_from(from, offset..offset.saturating_add(len.min(SHARED_AT_ONCE)))?;
        if shared > 0 {
            return Ok(shared as u32);
        }
    }
    let len = len.min(COPY_AT_ONCE);
    with_buffer(COPY_STEP, |buffer| {
        let mut done = 0;
        while done < len {
            let step = usize::try_from(len - done).unwrap_or(COPY_STEP).min(COPY_STEP);
            let got = match from.read_at(&mut buffer[..step], offset + done) {
                Ok(got) => got,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e.into()),
            };
            match to.write_all_at(&buffer[..got], to_offset + done) {
                Ok(()) => done += got as u64,
                // What was copied counts; the error comes again with the next request.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e.into()),
            }
            if got < step {
                break;
            }
        }
        Ok(done as u32)
    })
}
