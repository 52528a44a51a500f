//! What goes over the socket, besides the library's own records.
//!
//! Names and paths are strings. One that is not UTF-8 is an array of its bytes.

use std::fmt;

use pagestone::FileType;
use pagestone::inode::Attr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// The version of this interface: the first part of every path.
pub const VERSION: &str = "v1";

/// A name or a path in a pool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, ToSchema)]
#[schema(value_type = String)]
pub struct Name(pub Vec<u8>);

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl<T: AsRef<[u8]>> From<T> for Name {
    fn from(bytes: T) -> Name {
        Name(bytes.as_ref().to_vec())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => self.0.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Name, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Bytes(Vec<u8>),
        }
        Ok(Name(match Form::deserialize(d)? {
            Form::Text(text) => text.into_bytes(),
            Form::Bytes(bytes) => bytes,
        }))
    }
}

/// The state of a server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The path of the pool.
    pub pool: Name,
    /// The server: the process to send signals to.
    pub pid: u32,
    /// The process that does its work. Another one after a restart.
    pub worker: u32,
    /// How often another process has taken over, for whatever reason, since the pool was mounted.
    #[serde(default)]
    pub takeovers: u32,
    /// Version of the program.
    pub version: String,
    /// Seconds since it opened the pool.
    pub uptime: u64,
    /// What serves the pool.
    pub faces: Vec<Face>,
    /// What is wrong, and what to do about it; empty if all is well.
    pub troubles: Vec<Trouble>,
    /// Bytes of the pool.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes free to programs.
    pub available: u64,
    /// Files, directories and all other inodes.
    pub inodes: u64,
    /// Whether the pool takes no changes.
    pub read_only: bool,
}

/// One way into the pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Face {
    /// `mount`, `control` or `http`.
    pub kind: String,
    /// A directory, a socket or an address.
    pub at: Name,
    /// Of a mount, the number of its filesystem, as in `/proc/self/mountinfo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl Face {
    /// The kind of a mount.
    pub const MOUNT: &str = "mount";
}

/// Mounts the pool of a server that has it mounted nowhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMount {
    /// The directory, from the root of the server's file system; made if it is missing.
    pub at: Name,
    /// As `mount -o` takes them: `ro,allow_other,noexec,dev,suid,threads=N,cache=none`.
    #[serde(default)]
    pub options: String,
}

/// What a server has counted since its worker has the pool open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    /// The process that has counted. Another one has begun at zero.
    pub worker: u32,
    /// The faces that count.
    pub faces: Vec<FaceStatistics>,
}

/// What one face has counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FaceStatistics {
    /// As in [`Face`].
    pub kind: String,
    /// As in [`Face`].
    pub at: Name,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// By kind, always the same in the same order.
    pub operations: Vec<OperationStatistics>,
}

/// What was counted of one kind of operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationStatistics {
    /// Its name.
    pub operation: String,
    /// How often.
    pub count: u64,
    /// How many of these have failed.
    pub errors: u64,
    /// Time in all.
    pub nanoseconds: u64,
    /// How many took how long, in ascending order.
    pub times: Vec<Bucket>,
}

/// Operations that took about as long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Bucket {
    /// They took less than so many nanoseconds, and not less than the bucket before says.
    pub below: u64,
    /// How many.
    pub count: u64,
}

/// Something that needs attention.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Trouble {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// One file or directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// The name in its directory; of a path, the path.
    pub name: Name,
    /// Its attributes.
    #[serde(flatten)]
    pub attr: Attr,
    /// Where a symbolic link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// In a listing: a directory whose record names another one as its parent. The name is damaged, or the directory was
    /// moved while this was read. Whoever walks a tree must not enter it: it can lead out of the tree, or in a circle.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
}

/// A part of a directory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Listing {
    /// The entries, in the order of the directory.
    pub entries: Vec<Entry>,
    /// Where to go on, if that was not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What a tree takes, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Storage of files, as often as it can be seen.
    pub bytes: u64,
    /// Of that, what only these files have.
    pub own: u64,
    /// Of that, what a clone has, or had, in common with another.
    pub shared: u64,
    /// Files that are no directories; one with several names counts once.
    pub files: u64,
}

/// Makes a file, a directory or anything else that has a name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEntry {
    /// What it is.
    pub kind: FileType,
    /// Permission bits, `07777`.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The number of a device.
    #[serde(default)]
    pub rdev: u64,
    /// Where a symbolic link leads.
    #[serde(default)]
    pub target: Name,
}

/// One extended attribute.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Xattr {
    /// Its name, for example `user.comment`.
    pub name: Name,
    /// Its value: a string, or an array of bytes where it is not UTF-8.
    pub value: Name,
}

/// Gives a file one more name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLink {
    /// The new one. Nothing may be there.
    pub to: Name,
}

/// Where a file has bytes that are not in a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NextData {
    /// The first of them at or behind the offset that was asked for, if there are any.
    pub offset: Option<u64>,
}

/// Renames a file or directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// Its path.
    pub from: Name,
    /// Its new path.
    pub to: Name,
    /// Whether what lies there is replaced.
    #[serde(default)]
    pub replace: bool,
}

/// How many names were removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// Names.
    pub names: u64,
}

/// Makes a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    /// Its name.
    pub name: Name,
}

/// Clones a file or a tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewClone {
    /// What is cloned.
    pub from: Name,
    /// The path of the clone. Nothing may be there.
    pub to: Name,
}

/// Gives a pool another size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSize {
    /// In bytes.
    pub size: u64,
    /// Whether it becomes larger or smaller.
    pub change: Change,
}

/// Which way a size changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Larger.
    Grow,
    /// Smaller.
    Shrink,
}

/// Something that an administrator has done to a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Seconds since 1970.
    pub time: u64,
    /// Who.
    pub user: u32,
    /// Version of the program.
    pub version: String,
    /// What.
    pub what: String,
}

/// What was read, and what could not be.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Scrubbed {
    /// Files, directories and everything else that was read.
    pub files: u64,
    /// Bytes of data.
    pub bytes: u64,
    /// Places that could not be read.
    pub lost: u64,
    /// The first thousand of them.
    pub places: Vec<LostPage>,
}

/// A place that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LostPage {
    /// A name of the file, or the next one above that can be read.
    pub path: String,
    /// Where in the file, if it is its data.
    pub offset: Option<u64>,
    /// Why.
    pub what: String,
}

/// A long operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its number.
    pub number: u64,
    /// Work done, in pages.
    pub done: u64,
    /// Work in all, as far as it is known.
    pub total: u64,
    /// `running`, `done` or `failed`.
    pub state: JobState,
    /// What went wrong, if it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<crate::Problem>,
    /// What a scrub has found, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrubbed: Option<Scrubbed>,
    /// What an import or export has moved, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
}

/// How a file is imported or exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TransferHow {
    /// Go on with an interrupted copy of the same file.
    #[serde(default)]
    pub resume: bool,
    /// Read both afterwards and compare.
    #[serde(default)]
    pub verify: bool,
}

/// A file to be imported or exported.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewTransfer {
    /// The path in the pool.
    pub path: Name,
    /// The file or block device of the server's file system, from its root.
    pub outside: Name,
    /// How.
    #[serde(flatten)]
    pub how: TransferHow,
}

/// What an import or export has moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Moved {
    /// Bytes of the file.
    pub bytes: u64,
    /// Of these, what was moved now; the rest are holes, or were moved before.
    pub moved: u64,
    /// Where an interrupted copy was gone on with; 0 for a new one.
    pub resumed_at: u64,
    /// Both have been compared.
    pub verified: bool,
    /// The file outside was read or written past the page cache.
    pub direct: bool,
}

/// How far an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It goes on.
    Running,
    /// It has ended well.
    Done,
    /// It has ended with a problem.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_bytes_comes_back_as_it_was() {
        for bytes in [&b"plain"[..], b"", b"\xff\x00x", "ä\n\"".as_bytes()] {
            let name = Name(bytes.to_vec());
            let text = serde_json::to_string(&name).expect("JSON");
            assert_eq!(serde_json::from_str::<Name>(&text).expect("JSON"), name);
        }
    }
}
