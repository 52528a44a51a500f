//! The numbers and the bytes of the ioctls, for both sides.
//!
//! ```text
//!   START   _IOWR('P', 0x71, 16 bytes)   0 change  4 number (answer)  8 size
//!   STATUS  _IOR ('P', 0x72, 256 bytes)  0 state   4 number   8 errno  12 length of the text
//!                                       16 moved  24 total   32 size   40 used   48 available   56 text
//!   CANCEL  _IO  ('P', 0x73)
//! ```
//!
//! Numbers are in the byte order of the machine: both sides run on the same one. The error numbers of the ioctls:
//! `EPERM` for other users than root and the one who runs the server, `EBUSY` for a start while an operation runs,
//! `EROFS` for a pool that is open read-only, `EINVAL` for bytes that are none of this, `ENOTTY` on any other node.

use pagestone::{FRAME_SIZE, Info, PAGE_SIZE};

/// Bytes of START, both ways.
pub(super) const START_LEN: usize = 16;
/// Bytes of the answer to STATUS.
pub(super) const STATUS_LEN: usize = 256;
const TEXT: usize = 56;

const WRITE: u32 = 1;
const READ: u32 = 2;

const fn number(direction: u32, nr: u32, len: usize) -> u32 {
    direction << 30 | (len as u32) << 16 | (b'P' as u32) << 8 | nr
}

pub(super) const START: u32 = number(READ | WRITE, 0x71, START_LEN);
pub(super) const STATUS: u32 = number(READ, 0x72, STATUS_LEN);
pub(super) const CANCEL: u32 = number(0, 0x73, 0);

/// What to do to the size of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// [`Pool::grow`](pagestone::Pool::grow).
    Grow,
    /// [`Pool::shrink`](pagestone::Pool::shrink).
    Shrink,
}

/// How far an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// There has been none since the pool was mounted.
    #[default]
    None,
    /// It runs.
    Running,
    /// It has succeeded.
    Done,
    /// It has failed with this error number; `EINTR` after a cancel. The pool keeps its size.
    Failed(i32),
}

/// The least size of any pool.
const LEAST_POOL: u64 = 8 << 20;

/// Space of a pool, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// The size of the pool.
    pub size: u64,
    /// In use.
    pub used: u64,
    /// Free to ordinary operations.
    pub available: u64,
}

impl Space {
    /// A size that the pool can be shrunk to, as far as the counts of pages say. It is the least one, but for the frames
    /// of descriptors that would go too.
    pub fn sufficient_size(&self) -> u64 {
        let frames = self.available / FRAME_SIZE;
        self.size.saturating_sub(frames * FRAME_SIZE).max(LEAST_POOL)
    }
}

impl From<&Info> for Space {
    fn from(info: &Info) -> Space {
        Space {
            size: info.size,
            used: info.space.pages.saturating_sub(info.space.free) * PAGE_SIZE,
            available: info.space.available * PAGE_SIZE,
        }
    }
}

/// What is known of the last operation, and of the pool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// How far it is.
    pub state: State,
    /// The number that its start answered.
    pub number: u32,
    /// Pages moved.
    pub moved: u64,
    /// Pages to be moved, as far as that is known.
    pub total: u64,
    /// The pool as it is now.
    pub space: Space,
    /// The error in words; at most 200 bytes of it.
    pub text: String,
}

impl Change {
    /// What START carries.
    pub(super) fn encode(self, size: u64) -> [u8; START_LEN] {
        let what: u32 = match self {
            Change::Grow => 1,
            Change::Shrink => 2,
        };
        let mut bytes = [0; START_LEN];
        put(&mut bytes, 0, &what.to_ne_bytes());
        put(&mut bytes, 8, &size.to_ne_bytes());
        bytes
    }

    /// The change and the size that START carries.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Change, u64)> {
        let bytes: &[u8; START_LEN] = bytes.try_into().ok()?;
        let change = match u32_at(bytes, 0) {
            1 => Change::Grow,
            2 => Change::Shrink,
            _ => return None,
        };
        Some((change, u64_at(bytes, 8)))
    }
}

/// The answer to START.
pub(super) fn encode_number(number: u32) -> [u8; START_LEN] {
    let mut bytes = [0; START_LEN];
    put(&mut bytes, 4, &number.to_ne_bytes());
    bytes
}

/// The number in the answer to START.
pub(super) fn decode_number(bytes: &[u8; START_LEN]) -> u32 {
    u32_at(bytes, 4)
}

impl Status {
    pub(super) fn encode(&self) -> [u8; STATUS_LEN] {
        let (state, errno): (u32, i32) = match self.state {
            State::None => (0, 0),
            State::Running => (1, 0),
            State::Done => (2, 0),
            State::Failed(errno) => (3, errno),
        };
        let text = &self.text[..self.text.floor_char_boundary(STATUS_LEN - TEXT)];
        let mut bytes = [0; STATUS_LEN];
        for (at, value) in [(0, state), (4, self.number), (8, errno as u32), (12, text.len() as u32)] {
            put(&mut bytes, at, &value.to_ne_bytes());
        }
        let Space { size, used, available } = self.space;
        for (at, value) in [(16, self.moved), (24, self.total), (32, size), (40, used), (48, available)] {
            put(&mut bytes, at, &value.to_ne_bytes());
        }
        put(&mut bytes, TEXT, text.as_bytes());
        bytes
    }

    /// `None` if the bytes are no status.
    pub(super) fn decode(bytes: &[u8; STATUS_LEN]) -> Option<Status> {
        let state = match u32_at(bytes, 0) {
            0 => State::None,
            1 => State::Running,
            2 => State::Done,
            3 => State::Failed(u32_at(bytes, 8) as i32),
            _ => return None,
        };
        let text = bytes[TEXT..].get(..u32_at(bytes, 12) as usize)?;
        let space = Space { size: u64_at(bytes, 32), used: u64_at(bytes, 40), available: u64_at(bytes, 48) };
        Some(Status {
            state,
            number: u32_at(bytes, 4),
            moved: u64_at(bytes, 16),
            total: u64_at(bytes, 24),
            space,
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_arrives_as_it_was_sent_and_long_texts_are_cut_at_a_character() {
        let space = Space { size: 1 << 40, used: 5, available: u64::MAX };
        for (state, text) in [(State::None, ""), (State::Running, "x"), (State::Failed(libc::ENOSPC), "no space")] {
            let sent = Status { state, number: 7, moved: 3, total: 9, space, text: text.into() };
            assert_eq!(Status::decode(&sent.encode()), Some(sent));
        }
        let long = Status { state: State::Done, text: format!("x{}", "ä".repeat(150)), ..Status::default() };
        let arrived = Status::decode(&long.encode()).expect("a status");
        assert_eq!(arrived.text, format!("x{}", "ä".repeat(99)));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        assert_eq!(Change::decode(&Change::Shrink.encode(1 << 33)), Some((Change::Shrink, 1 << 33)));
        assert_eq!(Change::decode(&[0; START_LEN]), None);
        assert_eq!(Change::decode(&[1, 0, 0, 0]), None);
        assert_eq!(Change::decode(&[]), None);
        assert_eq!(Status::decode(&[0xff; STATUS_LEN]), None);
        let mut long_text = Status::default().encode();
        put(&mut long_text, 12, &201u32.to_ne_bytes());
        assert_eq!(Status::decode(&long_text), None);
    }

    #[test]
    fn the_sufficient_size_leaves_what_is_in_use_and_is_that_of_a_pool() {
        let least = |size: u64, available: u64| {
            Space { size: size << 20, used: 0, available: available << 20 }.sufficient_size() >> 20
        };
        assert_eq!(least(64, 41), 24);
        assert_eq!(least(64, 1), 64);
        assert_eq!(least(16, 15), 8);
    }
}
