//! What writing takes away from a file: set-id bits and `security.capability`, exactly as the kernel's
//! own filesystems do it, which are asked the same questions in the same run.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Mount, Place, can_mount};
use rustix::fs::{FallocateFlags, XattrFlags};

/// Groups of the writer besides its own.
const OTHER_GROUP: u32 = 12399;
const WRITER: u32 = 12345;

type Change = (&'static str, fn(&Path) -> std::io::Result<()>);

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn allocate(path: &Path, mode: FallocateFlags) -> std::io::Result<()> {
    Ok(rustix::fs::fallocate(open(path)?, mode, 0, 4096)?)
}

const CHANGES: [Change; 11] = [
    ("append", |path| OpenOptions::new().append(true).open(path)?.write_all(b"more")),
    ("pwrite", |path| open(path)?.write_all_at(b"x", 1)),
    ("pwrite behind the end", |path| open(path)?.write_all_at(b"x", 20_000)),
    ("open with O_TRUNC", |path| OpenOptions::new().write(true).truncate(true).open(path).map(drop)),
    ("ftruncate", |path| open(path)?.set_len(3)),
    ("ftruncate to more", |path| open(path)?.set_len(9000)),
    ("fallocate", |path| allocate(path, FallocateFlags::empty())),
    ("fallocate, keep size", |path| allocate(path, FallocateFlags::KEEP_SIZE)),
    ("punch", |path| allocate(path, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)),
    ("zero", |path| allocate(path, FallocateFlags::ZERO_RANGE)),
    ("copy_file_range", |path| {
        let from = File::open(path.with_file_name("source"))?;
        rustix::fs::copy_file_range(from, Some(&mut 0), open(path)?, Some(&mut 0), 100)?;
        Ok(())
    }),
];

/// Questions about owners: the first may be asked by anybody whose file it is.
const NEW_OWNERS: [Change; 2] = [
    ("new group", |path| std::os::unix::fs::chown(path, None, Some(OTHER_GROUP))),
    ("new owner", |path| std::os::unix::fs::chown(path, Some(12002), None)),
];

const MODES: [u32; 9] = [0o2666, 0o2766, 0o2676, 0o2777, 0o4666, 0o6666, 0o6676, 0o6777, 0o666];

/// Who changes the file.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Who {
    Root,
    Stranger,
    /// By its own group.
    Member,
    /// By a supplementary group.
    AlsoMember,
}

impl Who {
    /// Runs `change` as this user, in a thread of its own: the system call, unlike the C library's function,
    /// changes the calling thread alone.
    fn run(self, change: fn(&Path) -> std::io::Result<()>, path: PathBuf) -> std::io::Result<()> {
        let become_somebody = move || {
            let group = if self == Who::Member { OTHER_GROUP + 1 } else { WRITER };
            let groups = [if self == Who::AlsoMember { OTHER_GROUP + 1 } else { OTHER_GROUP }];
            // SAFETY: the pointer is to one group, as the count says; the others take numbers.
            let refused = unsafe {
                libc::syscall(libc::SYS_setgroups, 1, groups.as_ptr())
                    | libc::syscall(libc::SYS_setresgid, group, group, group)
                    | libc::syscall(libc::SYS_setresuid, WRITER, WRITER, WRITER)
            };
            if refused == 0 { Ok(()) } else { Err(Error::last_os_error()) }
        };
        std::thread::spawn(move || {
            if self != Who::Root {
                become_somebody()?;
            }
            change(&path)
        })
        .join()
        .unwrap()
    }
}

/// What is left, or the error if the filesystem cannot do it at all.
type Table = BTreeMap<String, Result<String, i32>>;

/// Asks about changes of files of `owner`.
fn table(root: &Path, changes: &[Change], owner: u32) -> Table {
    fs::set_permissions(root, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(root.join("source"), [7; 100]).unwrap();
    let mut table = Table::new();
    for who in [Who::Stranger, Who::Member, Who::AlsoMember, Who::Root] {
        for &(name, change) in changes {
            for mode in MODES {
                let path = root.join("file");
                fs::write(&path, [1; 5000]).unwrap();
                std::os::unix::fs::chown(&path, Some(owner), Some(OTHER_GROUP + 1)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let answer = match who.run(change, path.clone()) {
                    Ok(()) => Ok(format!("{:o}", fs::metadata(&path).unwrap().mode() & 0o7777)),
                    Err(e) => Err(e.raw_os_error().unwrap_or(0)),
                };
                table.insert(format!("{name} by {who:?} to {mode:o}"), answer);
                fs::remove_file(&path).unwrap();
            }
        }
    }
    table
}

/// ext4 in a file, where loop devices can be had.
struct Ext4 {
    dir: PathBuf,
}

impl Ext4 {
    fn mounted(place: &Place) -> Option<Ext4> {
        let (image, dir) = (place.path("ext4.img"), place.path("ext4"));
        File::create(&image).ok()?.set_len(32 << 20).ok()?;
        fs::create_dir(&dir).ok()?;
        let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = works(Command::new("mkfs.ext4").arg("-q").arg(&image))
            && works(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir));
        made.then_some(Ext4 { dir })
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).status();
    }
}

/// What the answers of `ours` are that differ from what the other filesystem says, where it says something.
fn differences(ours: &Table, other: &Table) -> Vec<String> {
    let differs = |(question, answer): (&String, &Result<String, i32>)| {
        let expected = other[question].clone();
        (expected.is_ok() && *answer != expected).then(|| format!("{question}: {answer:?}, not {expected:?}"))
    };
    ours.iter().filter_map(differs).collect()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root to become somebody else");
    }
    root
}

#[test]
fn set_id_bits_go_where_the_kernels_own_filesystems_take_them() {
    if !can_mount() || !is_root() {
        return;
    }
    let place = Place::in_shm();
    fs::set_permissions(place.tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let answers = |root: &Path| {
        let mut table_of_both = table(root, &CHANGES, 12001);
        table_of_both.extend(table(root, &NEW_OWNERS, WRITER));
        table_of_both
    };
    let mut others = Vec::new();
    fs::create_dir(place.path("tmpfs")).unwrap();
    others.push(("tmpfs", answers(&place.path("tmpfs"))));
    match Ext4::mounted(&place) {
        Some(ext4) => others.push(("ext4", answers(&ext4.dir))),
        None => println!("ext4 is left out: no loop device, or no mkfs.ext4"),
    }
    for policy in POLICIES {
        let place = Place::in_shm();
        fs::set_permissions(place.tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mount = mounted(&place, policy);
        let ours = answers(&mount.dir);
        // What does not depend on a kernel's version: nobody but a member of the group keeps the bit.
        for (mode, left) in [("2666", "666"), ("2766", "766"), ("2676", "676"), ("6666", "666"), ("6777", "777")] {
            for (change, _) in CHANGES {
                let question = format!("{change} by Stranger to {mode}");
                assert_eq!(ours[&question], Ok(left.to_owned()), "{policy}: {question}");
            }
        }
        for (name, other) in &others {
            let wrong = differences(&ours, other);
            let differ = wrong.len();
            assert!(wrong.is_empty(), "{policy}: {differ} answers differ from those of {name}:\n{}", wrong.join("\n"));
        }
        mount.finish();
    }
}

/// With the page cache, the kernel leaves to the server what it does itself without.
const POLICIES: [&str; 3] = ["none", "read", "writeback"];

fn mounted(place: &Place, policy: &str) -> Mount {
    Mount::start(place, &["--create", "256M", "--allow-other", "--cache", policy])
}

/// `cap_chown+ep`, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn has_capability(path: &Path) -> bool {
    rustix::fs::getxattr(path, "security.capability", &mut [0; 64]).is_ok()
}

#[test]
fn whoever_changes_a_program_takes_its_capabilities_away() {
    if !can_mount() || !is_root() {
        return;
    }
    for (place, policy) in POLICIES.map(|policy| (Place::in_shm(), policy)).into_iter().chain([(Place::new(), "none")])
    {
        fs::set_permissions(place.tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mount = mounted(&place, policy);
        fs::set_permissions(&mount.dir, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(mount.dir.join("source"), [7; 100]).unwrap();
        let path = mount.dir.join("program");
        // One that is open all the time: the server must not go by what it knew when it was opened.
        let kept_open = OpenOptions::new().create(true).truncate(true).write(true).open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        for who in [Who::Root, Who::Stranger] {
            for (name, change) in CHANGES {
                fs::write(&path, [1; 5000]).unwrap();
                rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
                assert!(has_capability(&path));
                who.run(change, path.clone()).unwrap();
                assert!(!has_capability(&path), "{policy}: {name} by {who:?} leaves it");
            }
        }
        rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
        kept_open.write_all_at(b"again", 0).unwrap();
        assert!(!has_capability(&path), "{policy}: a descriptor from before");
        drop(kept_open);
        mount.finish();
        // After a restart nothing is known beforehand.
        let mount = Mount::start(&place, &["--allow-other"]);
        rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
        mount.finish();
        let mount = Mount::start(&place, &["--allow-other"]);
        assert!(has_capability(&path), "a restart is no write");
        open(&path).unwrap().write_all_at(b"x", 0).unwrap();
        assert!(!has_capability(&path), "it was set in another life of the server");
        mount.finish();
    }
}

#[test]
fn what_was_stored_through_a_mapping_before_takes_nothing_away_when_it_is_written_back() {
    if !can_mount() || !is_root() {
        return;
    }
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    let path = mount.dir.join("program");
    fs::write(&path, [1; 4096]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (none, prot) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new mapping where the system chooses; nothing else refers to it.
    let Ok(map) = (unsafe { rustix::mm::mmap(none, 4096, prot, MapFlags::SHARED, &file, 0) }) else {
        println!("skipped: this kernel maps no direct files");
        return;
    };
    // SAFETY: the mapping is 4,096 bytes and writable.
    unsafe { map.cast::<u8>().write_volatile(2) };
    rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
    // SAFETY: the mapping is still there, and goes with the second call.
    unsafe {
        rustix::mm::msync(map, 4096, MsyncFlags::SYNC).unwrap();
        rustix::mm::munmap(map, 4096).unwrap();
    }
    drop(file);
    assert_eq!(fs::read(&path).unwrap()[0], 2, "it has been written back");
    assert!(has_capability(&path));
    mount.finish();
}
