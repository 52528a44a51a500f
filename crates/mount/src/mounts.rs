//! What is mounted where, as the kernel tells it: for this process and for others.
//!
//! ```text
//!   /proc/PID/mountinfo    36 35 0:50 /root /mount/point options [tags] - type source options
//! ```

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
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
}

impl Mount {
    /// Whether this is a mount of the pool at `path`, by whatever name.
    pub fn is_of(&self, path: &Path) -> bool {
        let number = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        let is_same = || number(path).is_some_and(|ours| number(Path::new(&self.source)) == Some(ours));
        KINDS.contains(&self.kind.as_str()) && (self.source.to_str() == Some(&source_name(path)) || is_same())
    }
}

/// What `mount` and `df` call a pool: its path, from the root where that can be found out. A comma would end
/// the option in fusermount's eyes.
pub fn source_name(pool: &Path) -> String {
    let path = pool.canonicalize().unwrap_or_else(|_| pool.to_path_buf());
    path.display().to_string().replace([',', '\\'], "_")
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
    let dir = PathBuf::from(unescape(fields.nth(4)?));
    let mut rest = fields.skip_while(|field| field != b"-").skip(1);
    let kind = unescape(rest.next()?).to_string_lossy().into_owned();
    Some(Mount { dir, kind, source: unescape(rest.next()?) })
}

/// The kernel writes blanks in paths as `\040` and so on.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
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
        let line = br"36 35 0:50 / /mnt/my\040pool rw,nosuid shared:1 master:2 - fuse.pagestone /a/demo.pool rw";
        let mount = parse(line).expect("a mount");
        assert_eq!((mount.dir.as_path(), mount.kind.as_str()), (Path::new("/mnt/my pool"), "fuse.pagestone"));
        assert!(mount.is_of(Path::new("/a/demo.pool")) && !mount.is_of(Path::new("/b/demo.pool")));
        assert!(parse(b"").is_none());
        assert!(parse(b"1 2 3").is_none());
        assert!(parse(b"1 2 3 / /x rw -").is_none());
    }

    #[test]
    fn a_backslash_that_is_none_of_the_kernels_stays() {
        assert_eq!(unescape(br"a\b\04"), OsString::from(r"a\b\04"));
    }
}
