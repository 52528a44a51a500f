//! What a change of a file's contents takes away: set-id bits and `security.capability`.
//!
//! ```text
//!                            security.capability   set-user-id        set-group-id
//!   whoever has CAP_FSETID   goes                  stays              stays
//!   a member of the group    goes                  goes               goes, if the group may execute
//!   anybody else             goes                  goes               goes
//!   a store to a mapping     stays                 stays              stays
//!   a new owner or group     goes                  goes               goes, unless the group may not execute, and
//!                                                                     a member or CAP_FSETID changes it
//! ```
//!
//! That is what the kernel does on filesystems of its own. For this one it does a part of it, and less if it keeps
//! data in its page cache (`HANDLE_KILLPRIV_V2`): set-group-id without group execution it leaves, and with writes it only says
//! whether the writer has `CAP_FSETID`. For truncation and the like it does not say that either; then
//! `/proc` tells about the caller, who waits for the answer. In doubt, the bits go.

use std::fs;

use pagestone::inode::SetAttr;
use pagestone::{Error, File, FileType};

use super::PoolFs;
use crate::transport::{Caller, NodeId, Reply, WriteHow, Written};

const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
const CAPABILITY: &[u8] = b"security.capability";
/// The number of the capability that lets its owner keep set-id bits.
const CAP_FSETID: u32 = 4;

impl PoolFs {
    /// To be called before a write.
    pub(super) fn before_write(&self, file: &File, how: WriteHow) -> Reply<Written> {
        if !file.privileges()?.any() || (how.from_mapping && !how.kill_set_id) {
            return Ok(Written::Bytes);
        }
        self.drop_privileges(file, how.caller, Some(!how.kill_set_id))
    }

    /// To be called before any other change of the contents of an open file.
    pub(super) fn before_change(&self, file: &File, caller: Caller) -> Reply<Written> {
        if !file.privileges()?.any() {
            return Ok(Written::Bytes);
        }
        self.drop_privileges(file, caller, None)
    }

    #[cold]
    fn drop_privileges(&self, file: &File, caller: Caller, entitled: Option<bool>) -> Reply<Written> {
        let node = self.pool.node(file.ino())?;
        if file.privileges()?.capability {
            match node.remove_xattr(CAPABILITY) {
                Ok(()) | Err(Error::NoAttribute) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let attr = file.attr()?;
        let perm = kept(attr.perm, attr.gid, caller, entitled);
        if perm == attr.perm {
            return Ok(Written::Bytes);
        }
        node.set_attr(&SetAttr::new().perm(perm))?;
        Ok(Written::BytesAndMode)
    }

    /// The permissions to be set along with `change`: what is left when the length or the owner of a file changes. The
    /// kernel may have decided on some bits already.
    pub(super) fn perm_after(&self, node: NodeId, change: &SetAttr, caller: Caller) -> Option<u32> {
        if change.size.is_none() && change.uid.is_none() && change.gid.is_none() {
            return change.perm;
        }
        // Whatever is wrong with the node is an error of the change itself.
        let attr = self.node(node).and_then(|n| n.attr()).ok().filter(|attr| attr.kind == FileType::File);
        let Some(attr) = attr else { return change.perm };
        let perm = change.perm.unwrap_or(attr.perm);
        let new_owner = change.uid.is_some() || change.gid.is_some();
        let kept = if new_owner { kept_by_chown(perm, attr.gid, caller) } else { kept(perm, attr.gid, caller, None) };
        if kept == attr.perm { change.perm } else { Some(kept) }
    }
}

/// What is left of `perm`, of a file of `group`, when its owner or group changes. Whoever changes it.
fn kept_by_chown(perm: u32, group: u32, caller: Caller) -> u32 {
    let perm = perm & !libc::S_ISUID;
    if perm & libc::S_ISGID == 0 {
        return perm;
    }
    let process = Process::of(caller);
    let member = process.has_fsetid || caller.gid == group || process.groups.contains(&group);
    if perm & libc::S_IXGRP == 0 && member { perm } else { perm & !libc::S_ISGID }
}

/// What is left of `perm`, of a file of `group`, after a change of its contents. `entitled`: whether the caller
/// has `CAP_FSETID`, if the kernel has said so.
fn kept(perm: u32, group: u32, caller: Caller, entitled: Option<bool>) -> u32 {
    if perm & SET_ID == 0 || entitled == Some(true) {
        return perm;
    }
    let process = Process::of(caller);
    if entitled.is_none() && process.has_fsetid {
        return perm;
    }
    let member = caller.gid == group || process.groups.contains(&group);
    if perm & libc::S_IXGRP == 0 && member { perm & !libc::S_ISUID } else { perm & !SET_ID }
}

/// What `/proc` tells about a caller.
#[derive(Debug, Default, PartialEq, Eq)]
struct Process {
    /// Supplementary groups.
    groups: Vec<u32>,
    has_fsetid: bool,
}

impl Process {
    fn of(caller: Caller) -> Process {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", caller.pid)) else {
            return Process::default();
        };
        let mut process = Process::parse(&status);
        // Who is root of a user namespace of his own is nobody here.
        let namespace = |of: String| fs::read_link(format!("/proc/{of}/ns/user")).ok();
        let ours = namespace("self".into());
        process.has_fsetid &= ours.is_some() && namespace(caller.pid.to_string()) == ours;
        process
    }

    fn parse(status: &str) -> Process {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let effective = u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0);
        Process {
            groups: field("Groups:").split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect(),
            has_fsetid: effective >> CAP_FSETID & 1 == 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_tells_is_read_and_nonsense_entitles_to_nothing() {
        let status = "Name:\tx\nGroups:\t4 27 1000 \nCapInh:\t0\nCapEff:\t0000000000000010\n";
        assert_eq!(Process::parse(status), Process { groups: vec![4, 27, 1000], has_fsetid: true });
        assert_eq!(Process::parse("CapEff:\t000001ffffffffef\nGroups:\t\n"), Process::default());
        assert_eq!(Process::parse("CapEff: none\nGroups: a b"), Process::default());
        assert_eq!(Process::parse(""), Process::default());
    }

    #[test]
    fn a_member_of_the_group_keeps_set_group_id_where_nobody_executes() {
        let caller = Caller { uid: 1, gid: 7, pid: 0 };
        for (perm, group, left) in [
            (0o2666, 7, 0o2666),
            (0o2666, 8, 0o666),
            (0o2676, 7, 0o676),
            (0o6666, 7, 0o2666),
            (0o6777, 7, 0o777),
            (0o666, 8, 0o666),
        ] {
            assert_eq!(kept(perm, group, caller, Some(false)), left, "{perm:o}");
            assert_eq!(kept(perm, group, caller, Some(true)), perm, "{perm:o}");
        }
    }

    #[test]
    fn a_new_owner_takes_set_user_id_away_whoever_gives_it() {
        let caller = Caller { uid: 1, gid: 7, pid: 0 };
        for (perm, group, left) in [
            (0o4755, 7, 0o755),
            (0o2755, 7, 0o755),
            (0o2745, 7, 0o2745),
            (0o2745, 8, 0o745),
            (0o6745, 7, 0o2745),
            (0o644, 7, 0o644),
        ] {
            assert_eq!(kept_by_chown(perm, group, caller), left, "{perm:o}");
        }
    }
}
