//! What is mounted where, as the kernel tells it: for this process and for others.
//!
//! ```text
//!   /proc/PID/mountinfo    36 35 0:50 /root /mount/point options [tags] - type source options
//! ```
//!
//! A pool is its path in that table, with what the way there does not carry (a comma and a backslash would end an
//! option of fusermount, and what is no text is none) written as in an address: `%2C`.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What pools are mounted as; old mounts say just "fuse".
const KINDS: [&str; 2] = ["fuse.pagestone", "fuse"];

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where, as the process sees it.
    pub dir: PathBuf,
    /// The type of filesystem.
    pub kind: String,
    /// What is mounted.
    pub source: OsString,
    /// The number of the filesystem: the same for each directory that it can be seen on.
    pub device: String,
    /// What of the filesystem can be seen there: `/` for all of it.
    pub root: PathBuf,
    /// Who mounted it, if it is a mount of FUSE: the source and the type are that user's words.
    pub user: Option<u32>,
}

impl Mount {
    /// Whether this is a mount of the pool at `path`, by whatever name.
    pub fn is_of(&self, path: &Path) -> bool {
        let number = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        let is_same = || number(path).is_some_and(|ours| number(&self.pool()) == Some(ours));
        KINDS.contains(&self.kind.as_str()) && (self.source.to_str() == Some(&source_name(path)) || is_same())
    }

    /// Whether its source and type are the words of root or of this user, and not of anybody.
    pub fn is_trusted(&self) -> bool {
        self.user.is_some_and(|user| user == 0 || user == rustix::process::geteuid().as_raw())
    }

    /// The path of the pool that is mounted, if this is a mount of one.
    pub fn pool(&self) -> PathBuf {
        PathBuf::from(decode(&self.source))
    }
}

/// What `mount` and `df` call a pool: its path, from the root where that can be found out, with what cannot be said
/// there as [`Mount::pool`] takes it back.
pub fn source_name(pool: &Path) -> String {
    let path = pool.canonicalize().unwrap_or_else(|_| pool.to_path_buf());
    let code = |bytes: &[u8]| bytes.iter().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let mut name = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                ',' | '\\' | '%' => name += &code(&[c as u8]),
                c => name.push(c),
            }
        }
        name += &code(chunk.invalid());
    }
    name
}

/// Undoes [`source_name`].
fn decode(name: &OsStr) -> OsString {
    unescape(name.as_bytes(), b'%', 2, 16)
}

/// The mounts that process `pid` sees; those of this process if there is none.
pub fn mounts(pid: Option<u32>) -> io::Result<Vec<Mount>> {
    let who = pid.map_or_else(|| "self".into(), |pid| pid.to_string());
    let table = fs::read(format!("/proc/{who}/mountinfo"))?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The topmost mount on exactly this directory.
pub fn mount_at(dir: &Path) -> Option<Mount> {
    mounts(None).ok()?.into_iter().rfind(|mount| mount.dir == dir)
}

/// The directories on which this process sees all of the filesystem with this number ([`Mount::device`]), in the order in which
/// they were mounted.
pub(crate) fn seen_on(device: &str) -> Vec<PathBuf> {
    // A number is used again for another filesystem as soon as this one is gone.
    let is_same =
        |mount: &Mount| mount.device == device && mount.root == Path::new("/") && KINDS.contains(&mount.kind.as_str());
    mounts(None).unwrap_or_default().into_iter().filter(is_same).map(|mount| mount.dir).collect()
}

/// A process in another mount namespace than `pid` that sees a mount of `pool`, and that mount: a copy that
/// keeps the server in use after an unmount. As far as `/proc` lets us look.
pub fn mounted_elsewhere(pid: u32, pool: &Path) -> Option<(u32, Mount)> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: HashSet<PathBuf> = namespace(pid).into_iter().collect();
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for other in numbers.collect::<Vec<u32>>() {
        if !namespace(other).is_some_and(|namespace| seen.insert(namespace)) {
            continue;
        }
        if let Some(mount) = mounts(Some(other)).ok()?.into_iter().find(|mount| mount.is_of(pool)) {
            return Some((other, mount));
        }
    }
    None
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    // The kernel writes blanks in paths as `\040` and so on.
    let octal = |field: &[u8]| unescape(field, b'\\', 3, 8);
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let root = PathBuf::from(octal(fields.next()?));
    let dir = PathBuf::from(octal(fields.next()?));
    let mut rest = fields.skip_while(|field| field != b"-").skip(1);
    let kind = octal(rest.next()?).to_string_lossy().into_owned();
    let source = octal(rest.next()?);
    let options = rest.next().map(String::from_utf8_lossy).unwrap_or_default();
    let user = options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
    Some(Mount { dir, kind, source, device, root, user })
}

/// Bytes of which some are written as `mark` and so many digits of a base.
fn unescape(field: &[u8], mark: u8, digits: usize, base: u32) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let number = after.get(..digits).filter(|d| first == mark && d.iter().all(u8::is_ascii_hexdigit));
        let number = number.and_then(|d| std::str::from_utf8(d).ok());
        match number.and_then(|d| u8::from_str_radix(d, base).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[digits..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_even_with_blanks() {
        let line = br"36 35 0:50 / /mnt/my\040pool rw,nosuid shared:1 master:2 - fuse.pagestone /a/demo.pool rw,user_id=7,group_id=8";
        let mount = parse(line).expect("a mount");
        assert_eq!((mount.dir.as_path(), mount.kind.as_str()), (Path::new("/mnt/my pool"), "fuse.pagestone"));
        assert!(mount.is_of(Path::new("/a/demo.pool")) && !mount.is_of(Path::new("/b/demo.pool")));
        assert_eq!((mount.device.as_str(), mount.root.as_path(), mount.user), ("0:50", Path::new("/"), Some(7)));
        assert!(parse(b"").is_none());
        assert!(parse(b"1 2 3").is_none());
        assert!(parse(b"1 2 3 / /x rw -").is_none());
    }

    #[test]
    fn a_backslash_that_is_none_of_the_kernels_stays() {
        assert_eq!(unescape(br"a\b\04\+12", b'\\', 3, 8), OsString::from(r"a\b\04\+12"));
    }

    #[test]
    fn a_source_names_its_pool_whatever_that_is_called() {
        for (path, name) in [
            (&b"/a/plain one.pool"[..], "/a/plain one.pool"),
            (b"/a,b\\c", "/a%2Cb%5Cc"),
            (b"/100%2C", "/100%252C"),
            ("/caf\u{e9}".as_bytes(), "/caf\u{e9}"),
            (b"/\xff\xc3/x", "/%FF%C3/x"),
        ] {
            let path = Path::new(OsStr::from_bytes(path));
            assert_eq!(source_name(path), name);
            let (dir, kind, device) = ("/mnt".into(), "fuse.pagestone".into(), "0:50".into());
            let mount = Mount { dir, kind, source: name.into(), device, root: "/".into(), user: None };
            assert_eq!(mount.pool(), path);
            assert!(mount.is_of(path));
        }
        assert_eq!(decode(OsStr::new("/50% of/%zz%4")), OsString::from("/50% of/%zz%4"));
    }
}
