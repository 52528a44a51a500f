//! Between the transport crate's values and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use pagestone::{Attr, Kind, Time};

/// Attributes as they go to the kernel. `attr.ino` is the node.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.pages.saturating_mul(pagestone::PAGE_SIZE / 512),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.perm & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The kernel's 32-bit form and the C library's 64-bit form are the same for the 12-bit
        // majors and 20-bit minors that Linux has.
        rdev: attr.rdev as u32,
        blksize: PREFERRED_IO,
        flags: 0,
    }
}

/// What programs are told to read and write at once: every request crosses to this process, so
/// larger than a page.
const PREFERRED_IO: u32 = 64 << 10;

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec >= 0 { UNIX_EPOCH.checked_add(seconds) } else { UNIX_EPOCH.checked_sub(seconds) };
    whole.and_then(|t| t.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

/// The time the kernel sent. The transport crate turns `sec < 0` and `nsec` into the moment
/// `|sec| + nsec` before 1970 (it should be `|sec| - nsec`); this turns it back.
pub(super) fn sent_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { sec: (before.as_secs() as i64).wrapping_neg(), nsec: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_out_as_they_are() {
        for (sec, nsec, nanos) in
            [(0, 0, 0i128), (1, 5, 1_000_000_005), (-1, 999_999_999, -1), (-2, 500, -1_999_999_500)]
        {
            let out = system_time(Time { sec, nsec });
            let since = match out.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(since, nanos, "{sec} s {nsec} ns");
        }
        assert_ne!(system_time(Time { sec: i64::MIN, nsec: 0 }), UNIX_EPOCH, "the first moment there is");
        assert_ne!(system_time(Time { sec: i64::MAX, nsec: 999_999_999 }), UNIX_EPOCH, "and the last");
    }

    #[test]
    fn times_before_1970_come_in_as_they_were_sent() {
        // As the transport crate computes it from sec = -2, nsec = 500.
        let parsed = UNIX_EPOCH - Duration::new(2, 500);
        assert_eq!(sent_time(parsed), Time { sec: -2, nsec: 500 });
        assert_eq!(sent_time(UNIX_EPOCH + Duration::new(7, 9)), Time { sec: 7, nsec: 9 });
    }
}
