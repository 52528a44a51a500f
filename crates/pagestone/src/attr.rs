//! What is known about a file besides its bytes: the values that the library and its faces pass
//! to and fro.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::units::Ino;

/// Nanosecond time: seconds since 1970 and nanoseconds within the second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
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

/// A time that [`SystemTime`] cannot hold becomes the epoch. There is none on Linux.
impl From<Time> for SystemTime {
    fn from(time: Time) -> SystemTime {
        let seconds = Duration::from_secs(time.sec.unsigned_abs());
        let whole = match time.sec < 0 {
            true => SystemTime::UNIX_EPOCH.checked_sub(seconds),
            false => SystemTime::UNIX_EPOCH.checked_add(seconds),
        };
        let time = whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec.into())));
        time.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// Exact. A time before the epoch has negative seconds and counts its nanoseconds forward from them.
impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Time {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let sec = i64::try_from(before.as_secs()).map_or(i64::MIN, |sec| -sec);
                match before.subsec_nanos() {
                    0 => Time { sec, nsec: 0 },
                    nsec => Time { sec: sec.saturating_sub(1), nsec: 1_000_000_000 - nsec },
                }
            }
        }
    }
}

/// What kind of thing an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[repr(u8)]
pub enum FileType {
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

impl FileType {
    /// Whether it is a regular file.
    pub fn is_file(self) -> bool {
        self == FileType::File
    }
    /// Whether it is a directory.
    pub fn is_dir(self) -> bool {
        self == FileType::Dir
    }
    /// Whether it is a symbolic link.
    pub fn is_symlink(self) -> bool {
        self == FileType::Symlink
    }
    /// The kind that an on-media byte means.
    pub fn from_u8(byte: u8) -> Option<FileType> {
        Some(match byte {
            1 => FileType::File,
            2 => FileType::Dir,
            3 => FileType::Symlink,
            4 => FileType::Fifo,
            5 => FileType::Socket,
            6 => FileType::CharDevice,
            7 => FileType::BlockDevice,
            _ => return None,
        })
    }
    /// The file-type bits of a `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            FileType::File => libc::S_IFREG,
            FileType::Dir => libc::S_IFDIR,
            FileType::Symlink => libc::S_IFLNK,
            FileType::Fifo => libc::S_IFIFO,
            FileType::Socket => libc::S_IFSOCK,
            FileType::CharDevice => libc::S_IFCHR,
            FileType::BlockDevice => libc::S_IFBLK,
        }
    }
    /// The kind that the file-type bits of a `st_mode` mean.
    pub fn from_mode(mode: u32) -> Option<FileType> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => FileType::File,
            libc::S_IFDIR => FileType::Dir,
            libc::S_IFLNK => FileType::Symlink,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            libc::S_IFCHR => FileType::CharDevice,
            libc::S_IFBLK => FileType::BlockDevice,
            _ => return None,
        })
    }
}

/// The attributes of an inode, as the layer of inodes and the faces pass them on. Programs that use paths get
/// [`Metadata`](crate::Metadata).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Attr {
    /// Inode number.
    #[serde(serialize_with = "ino_for_readers", deserialize_with = "ino_of_a_reader")]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub ino: Ino,
    /// FileType of file.
    pub kind: FileType,
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

impl Attr {
    /// Attributes of an empty `kind` with one link, owned by root, with all times `now`. A filesystem that is no pool
    /// fills in the rest.
    pub fn new(ino: Ino, kind: FileType, perm: u32, now: Time) -> Attr {
        let (atime, mtime, ctime, btime) = (now, now, now, now);
        let nlink = if kind.is_dir() { 2 } else { 1 };
        Attr {
            ino,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            size: 0,
            pages: 0,
            shared: 0,
            rdev: 0,
            atime,
            mtime,
            ctime,
            btime,
        }
    }
}

/// Readers of JSON that keep numbers as floating point know whole numbers up to 2^53; what is larger
/// goes out as a string.
fn ino_for_readers<S: serde::Serializer>(ino: &Ino, s: S) -> Result<S::Ok, S::Error> {
    if ino.0 <= 1 << 53 { s.serialize_u64(ino.0) } else { s.serialize_str(&ino.0.to_string()) }
}

/// The number in either form.
fn ino_of_a_reader<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Ino, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(u64),
        Text(String),
    }
    match Form::deserialize(d)? {
        Form::Number(number) => Ok(Ino(number)),
        Form::Text(text) => text.parse().map(Ino).map_err(serde::de::Error::custom),
    }
}

/// A change of attributes; `None` leaves one as it is. `ctime` is set to now unless given.
///
/// ```
/// use pagestone::inode::{SetAttr, Time};
/// let change = SetAttr::new().perm(0o600).mtime(Time::now());
/// # let _ = change;
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
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

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => { $(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $name: $type) -> SetAttr {
            self.$name = Some($name);
            self
        }
    )* };
}

impl SetAttr {
    /// No change.
    pub fn new() -> SetAttr {
        SetAttr::default()
    }

    setters! {
        /// Sets the permission bits (`07777`).
        perm: u32,
        /// Sets the owner.
        uid: u32,
        /// Sets the group.
        gid: u32,
        /// Sets the length.
        size: u64,
        /// Sets the time of the last read.
        atime: Time,
        /// Sets the time of the last change of the contents.
        mtime: Time,
        /// Sets the time of the last change of the inode, instead of to now.
        ctime: Time,
    }
}

/// What a new name is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NewNode<'a> {
    /// FileType of file.
    pub kind: FileType,
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

impl<'a> NewNode<'a> {
    /// A node of `kind` with permissions `perm`, owned by root.
    pub fn new(kind: FileType, perm: u32) -> NewNode<'a> {
        NewNode { kind, perm, uid: 0, gid: 0, rdev: 0, target: &[] }
    }

    /// Sets owner and group.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> NewNode<'a> {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Sets the number of a device.
    #[must_use]
    pub fn rdev(mut self, number: u64) -> NewNode<'a> {
        self.rdev = number;
        self
    }

    /// Sets the target of a symbolic link.
    #[must_use]
    pub fn target(mut self, target: &'a [u8]) -> NewNode<'a> {
        self.target = target;
        self
    }
}

/// What a file has that must not outlast a change of its contents by somebody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
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

/// One name in a directory, as bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DirEntry {
    /// What it names.
    pub ino: Ino,
    /// The kind of what it names.
    pub kind: FileType,
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[non_exhaustive]
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
#[non_exhaustive]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_and_a_system_time_are_the_same_instant_also_before_the_epoch() {
        for (sec, nsec) in [(0, 0), (1, 999_999_999), (-1, 0), (-1, 1), (-2, 999_999_999), (1 << 40, 5)] {
            let time = Time { sec, nsec };
            assert_eq!(Time::from(SystemTime::from(time)), time);
        }
        let before = SystemTime::UNIX_EPOCH - Duration::from_nanos(1);
        assert_eq!(Time::from(before), Time { sec: -1, nsec: 999_999_999 });
    }
}
