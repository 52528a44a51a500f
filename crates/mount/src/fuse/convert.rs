//! Between the transport crate's values and ours.

use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo};
use pagestone::FileType;
use pagestone::inode::{Attr, Time};

/// Attributes as they go to the kernel. `attr.ino` is the node.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.pages.saturating_mul(pagestone::PAGE_SIZE / 512),
        atime: SystemTime::from(attr.atime),
        mtime: SystemTime::from(attr.mtime),
        ctime: SystemTime::from(attr.ctime),
        crtime: SystemTime::from(attr.btime),
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

pub(super) fn file_type(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Dir => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        // A kind that the library may get later has bytes as far as the kernel is concerned.
        _ => fuser::FileType::RegularFile,
    }
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_go_out_as_they_are() {
        for (sec, nsec, nanos) in
            [(0, 0, 0i128), (1, 5, 1_000_000_005), (-1, 999_999_999, -1), (-2, 500, -1_999_999_500)]
        {
            let out = SystemTime::from(Time { sec, nsec });
            let since = match out.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(since, nanos, "{sec} s {nsec} ns");
        }
        assert_ne!(SystemTime::from(Time { sec: i64::MIN, nsec: 0 }), UNIX_EPOCH, "the first moment there is");
        assert_ne!(SystemTime::from(Time { sec: i64::MAX, nsec: 999_999_999 }), UNIX_EPOCH, "and the last");
    }

    #[test]
    fn times_before_1970_come_in_as_they_were_sent() {
        // As the transport crate computes it from sec = -2, nsec = 500.
        let parsed = UNIX_EPOCH - Duration::new(2, 500);
        assert_eq!(sent_time(parsed), Time { sec: -2, nsec: 500 });
        assert_eq!(sent_time(UNIX_EPOCH + Duration::new(7, 9)), Time { sec: 7, nsec: 9 });
    }
}
