//! What is known about a file besides its bytes: the values that the library and its faces pass
//! to and fro.

use serde::Serialize;

use crate::units::Ino;

/// Nanosecond time: seconds since 1970 and nanoseconds within the second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct Time {
    /// Whole seconds since the epoch; negative before it.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

impl Time {
    /// The clock now, at the grain of a timer tick, as the kernel stamps its own files.
    pub fn now() -> Time {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Time { sec: t.tv_sec, nsec: t.tv_nsec as u32 }
    }
}

/// What kind of thing an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Kind {
    /// Regular file.
    File = 1,
    /// Directory.
    Dir = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Named pipe.
    Fifo = 4,
    /// Socket.
    Socket = 5,
    /// Character device.
    CharDevice = 6,
    /// Block device.
    BlockDevice = 7,
}

impl Kind {
    /// The kind that an on-media byte means.
    pub fn from_u8(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::File,
            2 => Kind::Dir,
            3 => Kind::Symlink,
            4 => Kind::Fifo,
            5 => Kind::Socket,
            6 => Kind::CharDevice,
            7 => Kind::BlockDevice,
            _ => return None,
        })
    }
    /// The file-type bits of a `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::File => libc::S_IFREG,
            Kind::Dir => libc::S_IFDIR,
            Kind::Symlink => libc::S_IFLNK,
            Kind::Fifo => libc::S_IFIFO,
            Kind::Socket => libc::S_IFSOCK,
            Kind::CharDevice => libc::S_IFCHR,
            Kind::BlockDevice => libc::S_IFBLK,
        }
    }
    /// The kind that the file-type bits of a `st_mode` mean.
    pub fn from_mode(mode: u32) -> Option<Kind> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFBLK => Kind::BlockDevice,
            _ => return None,
        })
    }
}

/// The attributes of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Attr {
    /// Inode number.
    #[serde(serialize_with = "ino_for_readers")]
    pub ino: Ino,
    /// Kind of file.
    pub kind: Kind,
    /// Permission bits, including set-id and sticky (`07777`).
    pub perm: u32,
    /// Hard links; for a directory 2 plus its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; for a directory 0-based count of entries times a nominal entry size.
    pub size: u64,
    /// 4 KiB pages of data, shared ones too; the nodes of maps and indexes are not counted.
    pub pages: u64,
    /// Those of `pages` that a clone or the original may have in common with it: they were there
    /// when it was cloned and have not been written here since.
    pub shared: u64,
    /// Device number of a device file.
    pub rdev: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
}

/// Readers of JSON that keep numbers as floating point know whole numbers up to 2^53; what is larger
/// goes out as a string.
fn ino_for_readers<S: serde::Serializer>(ino: &Ino, s: S) -> Result<S::Ok, S::Error> {
    if ino.0 <= 1 << 53 { s.serialize_u64(ino.0) } else { s.serialize_str(&ino.0.to_string()) }
}

/// A change of attributes; `None` leaves one as it is. `ctime` is set to now unless given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (`07777`).
    pub perm: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: shorter frees, longer reads as zeros.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<Time>,
    /// Last change of the contents.
    pub mtime: Option<Time>,
    /// Last change of the inode.
    pub ctime: Option<Time>,
}

/// What a new name is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewNode<'a> {
    /// Kind of file.
    pub kind: Kind,
    /// Permission bits (`07777`), umask already applied.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file, else 0.
    pub rdev: u64,
    /// Target of a symbolic link (1 to 4,095 bytes), else empty.
    pub target: &'a [u8],
}

impl NewNode<'_> {
    /// A node of `kind` with permissions `perm`, owned by root.
    pub fn new(kind: Kind, perm: u32) -> NewNode<'static> {
        NewNode { kind, perm, uid: 0, gid: 0, rdev: 0, target: &[] }
    }
}

/// What a file has that must not outlast a change of its contents by somebody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Privileges {
    /// Set-user-id or set-group-id.
    pub set_id: bool,
    /// `security.capability`.
    pub capability: bool,
}

impl Privileges {
    /// Whether there are any.
    pub fn any(self) -> bool {
        self.set_id || self.capability
    }
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// What it names.
    pub ino: Ino,
    /// The kind of what it names.
    pub kind: Kind,
    /// The name: 1 to 255 bytes without `/` and NUL.
    pub name: Vec<u8>,
    /// Where a listing goes on *after* this entry; stable while the entry exists. 3 or larger
    /// (0 to 2 are left to a face's `.` and `..`).
    pub cookie: u64,
}

/// What a rename does about a name that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RenameMode {
    /// Replaces it (POSIX).
    #[default]
    Replace,
    /// Fails with [`crate::Error::Exists`].
    NoReplace,
    /// Swaps the two.
    Exchange,
}

/// What an attribute's setter does about an existing one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XattrMode {
    /// Creates or replaces.
    #[default]
    Set,
    /// Fails with [`crate::Error::Exists`] if it exists.
    Create,
    /// Fails with [`crate::Error::NoAttribute`] if it does not.
    Replace,
}

/// Space, in 4 KiB pages, and inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct StatFs {
    /// Pages that files and structures can use.
    pub pages: u64,
    /// Pages free.
    pub free: u64,
    /// Pages free to ordinary operations; the rest is kept for deleting.
    pub available: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// A run of a file that has storage: what all I/O is expressed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Extent {
    /// First byte within the file.
    pub offset: u64,
    /// Where it lies, in pool bytes.
    pub pool: u64,
    /// Length in bytes.
    pub len: u64,
    /// It was there when the file was cloned, and is the clone's as well: not to be stored to.
    pub shared: bool,
}
