//! `POOL:/path`: a place inside a pool.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use anyhow::Result;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::exit::WrongUsage;
use crate::named;

/// A pool, and a path in it that starts with `/` and has no `.`, `..` or empty parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) pool: PathBuf,
    pub(crate) path: Vec<u8>,
}

/// Reads a target for clap.
pub(crate) fn parser() -> impl TypedValueParser<Value = Target> {
    OsStringValueParser::new().try_map(|text| parse(&text))
}

/// Splits at the first `:/`. `POOL:` and `POOL` alone mean its root. A path below a mount is a place in its pool, also one of
/// which nothing but the directory is there.
fn parse(text: &OsStr) -> Result<Target, WrongUsage> {
    let bytes = text.as_bytes();
    let (pool, path) = match bytes.windows(2).position(|pair| pair == b":/") {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes.strip_suffix(b":").unwrap_or(bytes), b"/".as_slice()),
    };
    if pool.is_empty() {
        return Err(WrongUsage(format!("'{}': no pool before ':/' (write POOL:/path)", text.display())));
    }
    let pool = PathBuf::from(OsStr::from_bytes(pool));
    let path = clean(path)?;
    let missing = || named::below_mount(&pool).filter(|_| std::fs::symlink_metadata(&pool).is_err());
    match named::mounted_at(&pool).or_else(missing) {
        Some((mounted, way)) => {
            let below = path.strip_prefix(b"/").unwrap_or_default();
            let whole = [b"/", way.as_os_str().as_bytes(), b"/", below].concat();
            Ok(Target { pool: mounted, path: clean(&whole)? })
        }
        None => Ok(Target { pool, path }),
    }
}

/// Takes out doubled and trailing `/` and `.`; refuses `..`, which would mean something else than
/// in a mounted pool as soon as a symbolic link is in the way.
fn clean(path: &[u8]) -> Result<Vec<u8>, WrongUsage> {
    let mut cleaned = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let path = String::from_utf8_lossy(path);
                return Err(WrongUsage(format!("'{path}': a path in a pool must not contain '..'")));
            }
            part => {
                cleaned.push(b'/');
                cleaned.extend_from_slice(part);
            }
        }
    }
    if cleaned.is_empty() {
        cleaned.push(b'/');
    }
    Ok(cleaned)
}

impl Target {
    /// For messages.
    pub(crate) fn show(&self) -> String {
        format!("{}:{}", self.pool.display(), String::from_utf8_lossy(&self.path))
    }

    /// The last part of the path; `None` for the root.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        self.path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty())
    }

    /// The last part of the path.
    ///
    /// # Errors
    /// [`WrongUsage`] for the root, which has none.
    pub(crate) fn last_name(&self) -> Result<&[u8]> {
        self.name().ok_or_else(|| WrongUsage(format!("'{}' is the pool's root directory", self.show())).into())
    }

    /// The same pool, one name further down.
    pub(crate) fn join(&self, name: &[u8]) -> Target {
        let mut path = if self.path == b"/" { Vec::new() } else { self.path.clone() };
        path.push(b'/');
        path.extend_from_slice(name);
        Target { pool: self.pool.clone(), path }
    }

    /// Another name in the directory of `name`, the last part of this path.
    pub(crate) fn beside(&self, name: &[u8], other: &str) -> Target {
        let dir = &self.path[..self.path.len() - name.len()];
        Target { pool: self.pool.clone(), path: [dir, other.as_bytes()].concat() }
    }
}

/// A name as a path of the system.
pub(crate) fn to_os(name: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(name.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> (String, String) {
        let t = parse(OsStr::new(text)).expect("a target");
        (t.pool.display().to_string(), String::from_utf8(t.path).expect("ASCII"))
    }

    #[test]
    fn the_first_colon_slash_divides() {
        for (text, pool, path) in [
            ("a.pool:/x/y", "a.pool", "/x/y"),
            ("/dev/dax0.0:/", "/dev/dax0.0", "/"),
            ("a.pool", "a.pool", "/"),
            ("a.pool:", "a.pool", "/"),
            ("odd:name.pool:/x", "odd:name.pool", "/x"),
            ("a:/x:/y", "a", "/x:/y"),
            ("a.pool://x//./y/", "a.pool", "/x/y"),
        ] {
            assert_eq!(target(text), (pool.into(), path.into()), "{text}");
        }
    }

    #[test]
    fn dot_dot_and_no_pool_are_refused() {
        for text in ["a:/..", "a:/x/../y", ":/x", ":", ""] {
            assert!(parse(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_target_knows_its_last_name() {
        let root = parse(OsStr::new("a:/")).expect("a target");
        assert_eq!(root.name(), None);
        let below = root.join(b"x").join(b"y");
        assert_eq!((below.path.as_slice(), below.name()), (&b"/x/y"[..], Some(&b"y"[..])));
        assert_eq!(below.beside(b"y", "z").path, b"/x/z");
    }
}
