//! `pagestone doctor`: what this kernel and this user can do, and what to change.

use std::fs;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use pagestone::mmap::MapMechanism;
use pagestone_server::address;
use serde::Serialize;

use crate::exit::Exit;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// How much of something there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// All of it.
    Ok,
    /// It works, with a limit.
    Limited,
    /// It does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    /// What was found, and what follows from it.
    found: String,
    /// What to change, if anything can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

fn ok(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, state: State::Ok, found: found.into(), remedy: None }
}

fn not_ok(what: &'static str, state: State, found: impl Into<String>, remedy: &str) -> Finding {
    Finding { what, state, found: found.into(), remedy: Some(remedy.into()) }
}

pub(crate) fn doctor(args: &Doctor) -> Result<Exit> {
    let found = [kernel(), mounting(), other_users(), mappings(), overcommit(), file_size(), control(), media()];
    if args.json {
        output::json_list("findings", &found)?;
    } else {
        for Finding { what, state, found, remedy } in &found {
            let word = match state {
                State::Ok => "ok",
                State::Limited => "limited",
                State::Missing => "missing",
            };
            let remedy = remedy.iter().map(|remedy| format!(" ({remedy})")).collect::<String>();
            output::line(&format!("{what:<12}  {word:<7}  {found}{remedy}"))?;
        }
    }
    let missing = found.iter().any(|finding| finding.state == State::Missing);
    Ok(if missing { Exit::Failed } else { Exit::Ok })
}

/// Programs map files of the mount through the page cache since Linux 6.6.
fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match version(&release) {
        Some(version) if version < (6, 6) => {
            let found = format!("Linux {release}: shared mappings of files on the mount are refused");
            not_ok("kernel", State::Limited, found, "Linux 6.6 or newer")
        }
        _ => ok("kernel", format!("Linux {release}")),
    }
}

/// Major and minor number of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn mounting() -> Finding {
    match pagestone_mount::can_mount() {
        Ok(()) => ok("mount", "this user can mount pools"),
        Err(e) => Finding { what: "mount", state: State::Missing, found: e.to_string(), remedy: None },
    }
}

fn other_users() -> Finding {
    if rustix::process::geteuid().is_root() {
        return ok("other users", "root may let other users in (--allow-other)");
    }
    let config = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if config.lines().any(|line| line.trim() == "user_allow_other") {
        return ok("other users", "this user may let others in (--allow-other)");
    }
    let found = "only the user who mounts gets in";
    not_ok("other users", State::Limited, found, "the line user_allow_other in /etc/fuse.conf allows --allow-other")
}

fn mappings() -> Finding {
    match MapMechanism::here() {
        MapMechanism::Userfaultfd => ok("mappings", "userfaultfd: a store to a hole takes storage, also the kernel's"),
        _ => {
            let found = "no userfaultfd: the kernel's own stores to holes of the library's mappings fail";
            not_ok("mappings", State::Limited, found, "root, or sysctl vm.unprivileged_userfaultfd=1")
        }
    }
}

fn overcommit() -> Finding {
    match fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default().trim() {
        "2" => {
            let found = "vm.overcommit_memory is 2: a pool in an ordinary file must be smaller than memory";
            not_ok("memory", State::Limited, found, "sysctl vm.overcommit_memory=0")
        }
        _ => ok("memory", "pools in ordinary files may be larger than memory"),
    }
}

fn file_size() -> Finding {
    match rustix::process::getrlimit(rustix::process::Resource::Fsize).current {
        None => ok("file size", "files may have any length"),
        Some(bytes) => {
            let found = format!("files have at most {bytes} bytes: a pool cannot be larger");
            not_ok("file size", State::Limited, found, "ulimit -f unlimited, or LimitFSIZE=infinity")
        }
    }
}

fn control() -> Finding {
    match address::prepare_dir() {
        Ok(dir) => ok("control", format!("sockets of servers lie in {}", dir.display())),
        Err(e) => {
            let found = format!("no socket: other commands cannot use a pool that this user mounts: {e}");
            not_ok("control", State::Limited, found, "a directory of this user in XDG_RUNTIME_DIR")
        }
    }
}

fn media() -> Finding {
    let is_dax = |name: &str| name.starts_with("dax") || name.starts_with("pmem");
    let names = fs::read_dir(Path::new("/dev")).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| is_dax(name));
    names.sort();
    match names.is_empty() {
        true => ok("media", "no persistent memory that the kernel knows of; pools lie in files"),
        false => ok("media", format!("persistent memory: {}", names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_version_whatever_follows_it() {
        for (release, expected) in [("6.18.44-fc", Some((6, 18))), ("6.6", Some((6, 6))), ("5.15.0+", Some((5, 15)))] {
            assert_eq!(version(release), expected);
        }
        assert_eq!(version("unknown"), None);
    }
}
