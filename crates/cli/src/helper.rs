//! Being called the way mount(8) calls the helpers of filesystems.
//!
//! ```text
//!   mount -t fuse.pagestone POOL DIR -o ro,threads=2
//!     -> mount.fuse.pagestone POOL DIR -o ro,threads=2,...   (a symbolic link to this program)
//!       -> pagestone mount POOL DIR --background --read-only --threads 2
//!   mount.fuse3 pagestone#POOL DIR -o ro
//!     -> pagestone POOL DIR -o ro
//!   umount DIR
//!     -> umount.fuse.pagestone DIR [-l ...]
//!       -> pagestone umount DIR [--lazy]
//! ```

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::exit::WrongUsage;

/// The command line as it would have been typed.
pub(crate) fn translate(args: Vec<OsString>) -> Result<Vec<OsString>, WrongUsage> {
    let name = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_os_string();
    let rest = args.get(1..).unwrap_or_default();
    match name.to_str() {
        Some("mount.fuse.pagestone" | "mount.pagestone") => mount(rest, &[]),
        Some("umount.fuse.pagestone" | "umount.pagestone") => umount(rest),
        // It adds these two to whatever was asked for.
        _ if is_mount_fuse(rest) => mount(rest, &["suid", "dev"]),
        _ => Ok(args),
    }
}

/// `POOL DIR -o options`: no subcommand has its options there, and none is a path.
fn is_mount_fuse(rest: &[OsString]) -> bool {
    let is_path = |word: &OsString| word.as_encoded_bytes().contains(&b'/') || Path::new(word).is_file();
    rest.len() >= 4 && rest[2] == "-o" && is_path(&rest[0])
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// `unasked`: options that nobody has asked for.
fn mount(rest: &[OsString], unasked: &[&str]) -> Result<Vec<OsString>, WrongUsage> {
    let mut line = words(&["pagestone", "mount", "--background", "--quiet"]);
    let mut paths = Vec::new();
    let mut given = rest.iter();
    while let Some(word) = given.next() {
        match word.to_str() {
            Some("-o") => {
                let options = given.next().and_then(|o| o.to_str());
                let options = options.ok_or_else(|| WrongUsage("-o needs options after it".into()))?;
                let asked = options.split(',').filter(|option| !unasked.contains(option));
                line.extend(mount_options(&asked.collect::<Vec<_>>().join(","))?);
            }
            // The type, and a namespace that we are in already.
            Some("-t" | "-N") => drop(given.next()),
            // Not writing a table, being sloppy, being verbose.
            Some("-n" | "-s" | "-v") => {}
            Some(flag) if flag.starts_with('-') => return Err(WrongUsage(format!("unknown option {flag}"))),
            _ => paths.push(word.clone()),
        }
    }
    line.push("--".into());
    line.extend(paths);
    Ok(line)
}

/// What options of mount(8), with commas between them, mean here.
pub(crate) fn mount_options(options: &str) -> Result<Vec<OsString>, WrongUsage> {
    let options: Vec<&str> = options.split(',').collect();
    // The last one counts, as for mount(8).
    let undone = |i: usize, option: &str| options[i..].contains(&format!("no{option}").as_str());
    let wanted = |&(i, option): &(usize, &&str)| !option.is_empty() && !undone(i, option);
    let mut line = Vec::new();
    for (_, option) in options.iter().enumerate().filter(wanted) {
        line.extend(mount_option(option)?);
    }
    Ok(line)
}

/// What an option of mount(8) means here. Those that mean something to mount(8) alone, or that hold
/// anyway, mean nothing.
fn mount_option(option: &str) -> Result<Vec<OsString>, WrongUsage> {
    let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    Ok(match (name, value) {
        ("ro", None) => words(&["--read-only"]),
        ("allow_other", None) => words(&["--allow-other"]),
        ("noexec", None) => words(&["--no-exec"]),
        ("dev" | "suid", None) => words(&[&format!("--{name}")]),
        ("threads" | "pin" | "media" | "cache" | "http", Some(value)) => words(&[&format!("--{name}={value}")]),
        ("rw" | "defaults" | "nodev" | "nosuid" | "noatime" | "relatime" | "nodiratime" | "async" | "exec", None)
        | ("auto" | "noauto" | "user" | "nouser" | "users" | "owner" | "group" | "nofail" | "_netdev", None)
        | ("user" | "uhelper" | "helper" | "comment" | "fsname" | "subtype", Some(_))
        | ("default_permissions", None) => Vec::new(),
        (name, _) if name.starts_with("x-") || name.starts_with("X-") => Vec::new(),
        ("remount", None) => {
            return Err(WrongUsage(
                "a mount that stands takes no other options (mount -i -o remount,ro makes it read-only)".into(),
            ));
        }
        _ => return Err(WrongUsage(format!("unknown mount option '{option}'"))),
    })
}

fn umount(rest: &[OsString]) -> Result<Vec<OsString>, WrongUsage> {
    let mut line = words(&["pagestone", "umount"]);
    let mut given = rest.iter();
    while let Some(word) = given.next() {
        match word.to_str() {
            Some("-t" | "-N") => drop(given.next()),
            Some("-l") => line.push("--lazy".into()),
            Some(flag) if flag.starts_with('-') => {}
            _ => line.push(OsStr::new(word).into()),
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> Result<String, String> {
        let line = translate(line.split(' ').map(OsString::from).collect()).map_err(|e| e.0)?;
        Ok(line.join(OsStr::new(" ")).into_string().expect("ASCII"))
    }

    #[test]
    fn mount_and_umount_are_understood_and_everything_else_stays() {
        for (given, meant) in [
            (
                "/sbin/mount.fuse.pagestone /a.pool /mnt -o rw,nosuid,allow_other,x-systemd.automount,threads=2,cache=read",
                "pagestone mount --background --quiet --allow-other --threads=2 --cache=read -- /a.pool /mnt",
            ),
            (
                "mount.pagestone a.pool /mnt -n -t fuse.pagestone -o ro,_netdev,nofail",
                "pagestone mount --background --quiet --read-only -- a.pool /mnt",
            ),
            ("mount.pagestone a.pool /mnt", "pagestone mount --background --quiet -- a.pool /mnt"),
            (
                "pagestone /x/a.pool /mnt -o rw,noexec",
                "pagestone mount --background --quiet --no-exec -- /x/a.pool /mnt",
            ),
            (
                "pagestone /a.pool /mnt -o ro,dev,suid",
                "pagestone mount --background --quiet --read-only -- /a.pool /mnt",
            ),
            ("mount.pagestone a b -o dev,suid,nodev", "pagestone mount --background --quiet --suid -- a b"),
            ("mount.pagestone a b -o nodev,dev", "pagestone mount --background --quiet --dev -- a b"),
            ("/sbin/umount.fuse.pagestone /mnt -l -t fuse.pagestone", "pagestone umount /mnt --lazy"),
            ("umount.pagestone -n /mnt", "pagestone umount /mnt"),
            ("pagestone ls a.pool:/x", "pagestone ls a.pool:/x"),
            ("pagestone", "pagestone"),
        ] {
            assert_eq!(translated(given).as_deref(), Ok(meant), "{given}");
        }
        assert!(translated("mount.pagestone a b -o rw,frobnicate").is_err_and(|e| e.contains("'frobnicate'")));
        assert!(translated("mount.pagestone a b -o").is_err());
        assert!(translated("mount.pagestone a b -q").is_err());
    }
}
