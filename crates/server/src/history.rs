//! What administrators have done to a pool, kept in the pool.
//!
//! ```text
//!   /  trusted.pagestone.history    one JSON object a line, the oldest first; the oldest go when it is full
//! ```
//!
//! It is an extended attribute of the root directory, which only root sees through a mount. A change of it is one record.
//! What cannot be noted (a full pool, a pool that is only read) is done all the same.

use std::time::{SystemTime, UNIX_EPOCH};

use pagestone::inode::XattrMode;
use pagestone::{Error, Pool};
use parking_lot::Mutex;

use crate::api::{Event, Name};

/// Attributes that begin like this are not shown as a file's.
pub(crate) const OWN: &[u8] = b"trusted.pagestone.";
const HISTORY: &[u8] = b"trusted.pagestone.history";
/// Bytes that are kept. An extended attribute has at most 32 KiB.
const MOST: usize = 30 << 10;
/// Longest text of an event.
const LONGEST: usize = 1000;

/// Adds an event. One at a time.
pub(crate) fn note(pool: &Pool, user: u32, what: &str) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    let Ok(root) = pool.node(pool.root().ino()) else { return };
    let what: String = what.chars().take(LONGEST).collect();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let event = Event { time, user, version: env!("CARGO_PKG_VERSION").into(), what };
    let Ok(line) = serde_json::to_vec(&event) else { return };
    let mut text = root.xattr(HISTORY).unwrap_or_default();
    if text.last().is_some_and(|&last| last != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(&line);
    text.push(b'\n');
    let excess = text.len().saturating_sub(MOST);
    if excess > 0 {
        // Whole lines.
        let end = text[excess..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |at| excess + at + 1);
        text.drain(..end);
    }
    let _ = root.set_xattr(HISTORY, &text, XattrMode::Set);
}

/// All events that are kept, the oldest first. A line that is none is shown as it is.
pub(crate) fn read(pool: &Pool) -> pagestone::Result<Vec<Event>> {
    let text = match pool.node(pool.root().ino())?.xattr(HISTORY) {
        Err(Error::NoAttribute) => return Ok(Vec::new()),
        text => text?,
    };
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(|line| serde_json::from_slice(line).unwrap_or_else(|_| unknown(line))).collect())
}

fn unknown(line: &[u8]) -> Event {
    Event { time: 0, user: 0, version: String::new(), what: Name::from(line).to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests end at the first surprise
mod tests {
    use std::sync::Arc;

    use pagestone::CreateOptions;

    use super::*;

    fn pool() -> Pool {
        Pool::create_on(Arc::new(pmem::Memory::new(16 << 20).unwrap()), &CreateOptions::new()).unwrap()
    }

    #[test]
    fn the_oldest_events_go_when_there_are_too_many() {
        let pool = pool();
        assert!(read(&pool).unwrap().is_empty());
        for i in 0..1000 {
            note(&pool, 7, &format!("event {i} \u{1b}\n{}", "x".repeat(i % 50)));
        }
        let events = read(&pool).unwrap();
        assert!((100..1000).contains(&events.len()), "{}", events.len());
        let first = 1000 - events.len();
        assert!(
            events
                .iter()
                .zip(first..)
                .all(|(event, i)| event.what.starts_with(&format!("event {i} ")) && event.user == 7)
        );
        note(&pool, 0, &"long".repeat(100_000));
        assert_eq!(read(&pool).unwrap().last().unwrap().what.len(), LONGEST);
    }

    /// What somebody else has put there is shown, and keeps nothing from being noted.
    #[test]
    fn a_history_of_somebody_else_is_no_reason_to_fail() {
        let pool = pool();
        let root = pool.node(pool.root().ino()).unwrap();
        root.set_xattr(HISTORY, &[b'\xff'; MOST + 1000], XattrMode::Set).unwrap();
        assert_eq!(read(&pool).unwrap().len(), 1);
        note(&pool, 0, "after it");
        assert_eq!(read(&pool).unwrap().last().unwrap().what, "after it");
    }
}
