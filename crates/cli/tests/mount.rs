//! What programs do to a mounted pool, through the kernel.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{FallocateFlags, RenameFlags, XattrFlags};

use common::{Mount, Place, can_mount, pattern, read};

/// Runs `test` in the root of a new mount, on memory and on an ordinary file.
fn mounted(test: impl Fn(&Path)) {
    if !can_mount() {
        return;
    }
    for place in [Place::in_shm(), Place::new()] {
        let mount = Mount::fresh(&place);
        test(&mount.dir);
        mount.finish();
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn files_directories_and_links() {
    mounted(|root| {
        fs::create_dir_all(root.join("a/b")).unwrap();
        let bytes = pattern(100_000, 1);
        fs::write(root.join("a/b/file"), &bytes).unwrap();
        assert_eq!(read(&root.join("a/b/file")), bytes);
        fs::hard_link(root.join("a/b/file"), root.join("a/second")).unwrap();
        let (one, two) = (fs::metadata(root.join("a/b/file")).unwrap(), fs::metadata(root.join("a/second")).unwrap());
        assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
        symlink("../a/second", root.join("a/soft")).unwrap();
        assert_eq!(fs::read_link(root.join("a/soft")).unwrap(), Path::new("../a/second"));
        assert_eq!(read(&root.join("a/soft")), bytes);
        fs::remove_file(root.join("a/b/file")).unwrap();
        assert_eq!(fs::metadata(root.join("a/second")).unwrap().nlink(), 1);
        assert_eq!(fs::remove_dir(root.join("a")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        assert_eq!(fs::metadata(root.join("a")).unwrap().nlink(), 3);
        fs::remove_dir(root.join("a/b")).unwrap();
        assert_eq!(fs::metadata(root.join("a")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(root.join("a/b")).unwrap_err().kind(), ErrorKind::NotFound);
        fs::create_dir(root.join("a/b")).unwrap();
        assert_eq!(fs::read_dir(root.join("a")).unwrap().count(), 3);
    });
}

#[test]
fn a_large_directory_is_listed_whole_also_while_it_shrinks() {
    mounted(|root| {
        let dir = root.join("large");
        fs::create_dir(&dir).unwrap();
        for n in 0..2000 {
            File::create(dir.join(format!("file-{n:05}"))).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 2000);
        names.dedup();
        assert_eq!(names.len(), 2000, "no name twice");
        // Removing what has just been listed, as rm -r does.
        for entry in fs::read_dir(&dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        fs::remove_dir(&dir).unwrap();
    });
}

#[test]
fn renames_with_flags() {
    mounted(|root| {
        let (a, b) = (root.join("a"), root.join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        let cwd = rustix::fs::CWD;
        let refused = rustix::fs::renameat_with(cwd, &a, cwd, &b, RenameFlags::NOREPLACE).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::EXIST);
        rustix::fs::renameat_with(cwd, &a, cwd, &b, RenameFlags::EXCHANGE).unwrap();
        assert_eq!((read(&a), read(&b)), (b"b".to_vec(), b"a".to_vec()));
        let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
        let refused = rustix::fs::renameat_with(cwd, &a, cwd, &b, both).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::INVAL);
        rustix::fs::renameat_with(cwd, &a, cwd, &b, RenameFlags::WHITEOUT).unwrap();
        assert_eq!((read(&b), fs::symlink_metadata(&a).unwrap().rdev()), (b"b".to_vec(), 0));
        assert!(fs::symlink_metadata(&a).unwrap().file_type().is_char_device());
        fs::remove_file(&a).unwrap();
        assert_eq!(read(&b), b"b");
        assert!(!a.exists());
        fs::create_dir_all(root.join("d/e")).unwrap();
        assert!(fs::rename(root.join("d"), root.join("d/e/f")).is_err(), "a directory into itself");
        fs::rename(root.join("d/e"), root.join("e")).unwrap();
        assert_eq!(fs::metadata(root.join("d")).unwrap().nlink(), 2);
    });
}

#[test]
fn attributes() {
    mounted(|root| {
        let path = root.join("file");
        let file = open(&path);
        for (sec, nsec) in [(1_000_000_000, 123_456_789), (-5, 250_000_000), (0, 0)] {
            let time = rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(&file, &times).unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.atime()), (sec, nsec, sec));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4755);
        std::os::unix::fs::chown(&path, Some(1000), Some(1001)).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1000, 1001, 0o755), "chown takes set-user-id away");
        file.set_len(10_000).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 10_000);
        let before = fs::metadata(&path).unwrap();
        // Times count by the kernel's tick, as on tmpfs.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_all_at(b"x", 20_000).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.len(), 20_001);
        assert!((after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec()));
    });
}

#[test]
fn set_group_id_directories_pass_their_group_on() {
    mounted(|root| {
        let dir = root.join("shared");
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, None, Some(4242)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
        File::create(dir.join("file")).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        assert_eq!(fs::metadata(dir.join("file")).unwrap().gid(), 4242);
        let sub = fs::metadata(dir.join("sub")).unwrap();
        assert_eq!((sub.gid(), sub.mode() & 0o2000), (4242, 0o2000));
    });
}

/// What `stat` says when it asks for nothing but the mode.
fn shown_mode(path: &Path) -> String {
    let output = Command::new("stat").args(["-c", "%a"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn owners_and_modes_are_enforced_and_writing_takes_set_user_id_away() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to become somebody else");
        return;
    }
    mounted(|root| {
        fs::set_permissions(root, fs::Permissions::from_mode(0o777)).unwrap();
        let shell = |script: &str| {
            use std::os::unix::process::CommandExt;
            let mut command = Command::new("sh");
            command.arg("-c").arg(script).current_dir(root).uid(12345).gid(12345);
            command.status().unwrap().success()
        };
        fs::write(root.join("secret"), "x").unwrap();
        fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!shell("cat secret 2>/dev/null"));
        assert!(!shell("echo y > secret") && read(&root.join("secret")) == b"x");
        assert!(shell("echo mine > mine && cat mine >/dev/null && chmod 600 mine"));
        assert_eq!(fs::metadata(root.join("mine")).unwrap().uid(), 12345);
        fs::write(root.join("suid"), "x").unwrap();
        fs::set_permissions(root.join("suid"), fs::Permissions::from_mode(0o6777)).unwrap();
        assert!(shell("echo more >> suid"));
        assert_eq!(shown_mode(&root.join("suid")), "777", "also to one who asks for the mode alone");
        assert_eq!(fs::metadata(root.join("suid")).unwrap().mode() & 0o7777, 0o777);
        fs::set_permissions(root.join("suid"), fs::Permissions::from_mode(0o4777)).unwrap();
        assert!(shell(": > suid"));
        assert_eq!(fs::metadata(root.join("suid")).unwrap().mode() & 0o7777, 0o777, "with_invalidated it does too");
    });
}

#[test]
fn extended_attributes() {
    mounted(|root| {
        let path = root.join("file");
        File::create(&path).unwrap();
        let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
        let mut buffer = [0; 100];
        set("user.one", b"first", XattrFlags::CREATE).unwrap();
        assert_eq!(set("user.one", b"x", XattrFlags::CREATE), Err(rustix::io::Errno::EXIST));
        assert_eq!(set("user.two", b"x", XattrFlags::REPLACE), Err(rustix::io::Errno::NODATA));
        set("user.two", b"", XattrFlags::empty()).unwrap();
        assert_eq!(rustix::fs::getxattr(&path, "user.one", &mut buffer), Ok(5));
        assert_eq!(&buffer[..5], b"first");
        let mut small = [0; 3];
        assert_eq!(rustix::fs::getxattr(&path, "user.one", &mut small), Err(rustix::io::Errno::RANGE));
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: both names are C strings; size 0 asks for the length and writes nothing.
        let len = unsafe { libc::getxattr(name.as_ptr(), c"user.one".as_ptr(), std::ptr::null_mut(), 0) };
        assert_eq!(len, 5);
        assert_eq!(rustix::fs::getxattr(&path, "user.none", &mut buffer), Err(rustix::io::Errno::NODATA));
        let len = rustix::fs::listxattr(&path, &mut buffer).unwrap();
        let mut names: Vec<&[u8]> = buffer[..len].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort_unstable();
        assert_eq!(names, [b"user.one".as_slice(), b"user.two"]);
        rustix::fs::removexattr(&path, "user.one").unwrap();
        assert_eq!(rustix::fs::removexattr(&path, "user.one"), Err(rustix::io::Errno::NODATA));
        // Of no namespace, as on the kernel's own filesystems.
        assert_eq!(set("other.one", b"x", XattrFlags::empty()), Err(rustix::io::Errno::OPNOTSUPP));
        // Version 2; owner rw-, group r--, others r--.
        let list = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
        ];
        let acl = set("system.posix_acl_access", &list, XattrFlags::empty());
        assert_eq!(acl, Err(rustix::io::Errno::OPNOTSUPP));
    });
}

#[test]
fn allocating_punching_zeroing_and_seeking() {
    mounted(|root| {
        let file = open(&root.join("file"));
        let bytes = pattern(64 << 10, 3);
        file.write_all_at(&bytes, 0).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 64 << 10);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 4096, 8192).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 32_768, 4096).unwrap();
        let mut expected = bytes;
        expected[4096..12_288].fill(0);
        expected[32_768..36_864].fill(0);
        expected.resize(1 << 20, 0);
        assert_eq!(read(&root.join("file")), expected);
        let insert = rustix::fs::fallocate(&file, FallocateFlags::INSERT_RANGE, 0, 4096);
        assert_eq!(insert, Err(rustix::io::Errno::OPNOTSUPP));

        let sparse = open(&root.join("sparse"));
        sparse.set_len(8 << 20).unwrap();
        sparse.write_all_at(b"data", 4 << 20).unwrap();
        let seek = |from| rustix::fs::seek(&sparse, from);
        assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), Ok(4 << 20));
        assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)), Ok(0));
        assert_eq!(seek(rustix::fs::SeekFrom::Hole(4 << 20)), Ok((4 << 20) + 4096));
        assert_eq!(seek(rustix::fs::SeekFrom::Data((4 << 20) + 4096)), Err(rustix::io::Errno::NXIO));
        assert_eq!(seek(rustix::fs::SeekFrom::Data(8 << 20)), Err(rustix::io::Errno::NXIO));
    });
}

#[test]
fn copying_ranges_between_files() {
    mounted(|root| {
        let (from, to) = (open(&root.join("from")), open(&root.join("to")));
        let bytes = pattern((3 << 20) + 5, 4);
        from.write_all_at(&bytes, 0).unwrap();
        let (mut at, mut to_at) = (0, 100);
        loop {
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut to_at), bytes.len() + 1000).unwrap();
            if copied == 0 {
                break;
            }
        }
        let mut expected = vec![0; 100];
        expected.extend_from_slice(&bytes);
        assert_eq!(read(&root.join("to")), expected);
    });
}

#[test]
fn two_appenders_never_overwrite_each_other() {
    mounted(|root| {
        let path = root.join("log");
        let append = |letter: u8, len: usize| {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
            for _ in 0..200 {
                file.write_all(&vec![letter; len]).unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| append(b'a', 100));
            scope.spawn(|| append(b'b', 7000));
        });
        let log = read(&path);
        assert_eq!(log.len(), 200 * 7100);
        assert_eq!(log.iter().filter(|b| **b == b'a').count(), 200 * 100);
    });
}

#[test]
fn what_is_unlinked_stays_as_long_as_it_is_open() {
    mounted(|root| {
        let path = root.join("file");
        let mut file = open(&path);
        file.write_all(b"still here").unwrap();
        fs::remove_file(&path).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
        file.write_all(b" and more").unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.set_len(100).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.nlink(), meta.mode() & 0o777), (100, 0, 0o600));

        // Replaced by a rename while open.
        let victim = open(&root.join("victim"));
        fs::write(root.join("new"), "new").unwrap();
        fs::rename(root.join("new"), root.join("victim")).unwrap();
        assert_eq!(victim.metadata().unwrap().nlink(), 0);

        // A directory somebody stands in, and a pipe somebody holds by path.
        fs::create_dir(root.join("dir")).unwrap();
        let dir = File::open(root.join("dir")).unwrap();
        fs::remove_dir(root.join("dir")).unwrap();
        assert_eq!(dir.metadata().unwrap().nlink(), 0);
        let pipe = CString::new(root.join("pipe").as_os_str().as_bytes()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(root.join("pipe")).unwrap();
        fs::remove_file(root.join("pipe")).unwrap();
        let meta = held.metadata().unwrap();
        assert!(meta.file_type().is_fifo() && meta.nlink() == 0);
    });
}

#[test]
fn a_shared_mapping_and_reads_and_writes_see_the_same_bytes() {
    mounted(|root| {
        use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
        let file = open(&root.join("file"));
        file.set_len(8192).unwrap();
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that keeps its
        // length until the mapping is gone.
        let map = unsafe { mmap(std::ptr::null_mut(), 8192, both, MapFlags::SHARED, &file, 0) }.unwrap();
        // SAFETY: the mapping is 8,192 bytes, lives until munmap below, and this thread is the
        // only one that uses it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), 8192) };
        bytes[5000..5005].copy_from_slice(b"store");
        let mut read = [0; 5];
        file.read_exact_at(&mut read, 5000).unwrap();
        assert_eq!(&read, b"store", "a read sees what the mapping has stored");
        file.write_all_at(b"write", 100).unwrap();
        assert_eq!(&bytes[100..105], b"write", "the mapping sees what was written");
        bytes[0..4].copy_from_slice(b"last");
        // SAFETY: the range is the mapping; its slice is not used any more.
        unsafe {
            msync(map, 8192, MsyncFlags::SYNC).unwrap();
            munmap(map, 8192).unwrap();
        }
        drop(file);
        assert_eq!(&common::read(&root.join("file"))[..4], b"last");
    });
}

#[test]
fn programs_run_from_the_mount() {
    mounted(|root| {
        fs::copy("/bin/echo", root.join("echo")).unwrap();
        let output = Command::new(root.join("echo")).arg("hello").output().unwrap();
        assert_eq!(output.stdout, b"hello\n");
        fs::write(root.join("script"), "#!/bin/sh\necho from a script\n").unwrap();
        fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Command::new(root.join("script")).output().unwrap().stdout, b"from a script\n");
    });
}

#[test]
fn big_and_sparse_files() {
    mounted(|root| {
        let path = root.join("big");
        let bytes = pattern(48 << 20, 6);
        let mut file = open(&path);
        for part in bytes.chunks(3_000_001) {
            file.write_all(part).unwrap();
        }
        file.sync_all().unwrap();
        assert_eq!(read(&path), bytes);
        let far = open(&root.join("far"));
        far.write_all_at(b"x", 1 << 42).unwrap();
        let mut around = [1; 4096];
        assert_eq!(far.read_at(&mut around, (1 << 42) - 4000).unwrap(), 4001);
        assert_eq!((around[3999], around[4000]), (0, b'x'));
        assert!(far.metadata().unwrap().blocks() < 1000);
    });
}

#[test]
fn a_full_pool_refuses_and_recovers() {
    mounted(|root| {
        let chunk = pattern(1 << 20, 7);
        let mut written = 0;
        let full = loop {
            match fs::write(root.join(format!("f{written}")), &chunk) {
                Ok(()) => written += 1,
                Err(e) => break e,
            }
            assert!(written < 400, "256 MiB are never full");
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert!(written > 150, "only {written} MiB fit");
        for n in 0..=written {
            // The last one may not have come into being.
            let _ = fs::remove_file(root.join(format!("f{n}")));
        }
        fs::write(root.join("again"), &chunk).unwrap();
        assert_eq!(read(&root.join("again")), chunk);
    });
}

#[test]
fn many_threads_at_once() {
    mounted(|root| {
        std::thread::scope(|scope| {
            for t in 0..4u64 {
                scope.spawn(move || {
                    for n in 0..200u64 {
                        let path = root.join(format!("t{t}-{}", n % 10));
                        let bytes = pattern((n * 97 % 9000) as usize, t * 1000 + n);
                        fs::write(&path, &bytes).unwrap();
                        assert_eq!(read(&path), bytes);
                        if n % 3 == 0 {
                            fs::remove_file(&path).unwrap();
                        }
                        fs::write(root.join("shared"), [t as u8; 64]).unwrap();
                    }
                });
            }
        });
    });
}

#[test]
fn locks_are_kept() {
    mounted(|root| {
        let (one, two) = (open(&root.join("file")), open(&root.join("file")));
        rustix::fs::flock(&one, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let refused = rustix::fs::flock(&two, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(rustix::io::Errno::WOULDBLOCK));
    });
}

/// A file handle, as `name_to_handle_at` makes it.
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

fn file_handle(path: &Path) -> FileHandle {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut handle = FileHandle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut mount = 0i32;
    // SAFETY: the name is a C string, the handle has the room that it says, and both outlive the call.
    let made = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, name.as_ptr(), &raw mut handle, &raw mut mount, 0)
    };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    handle
}

fn open_by_handle(mount: &File, handle: &mut FileHandle) -> std::io::Result<File> {
    use std::os::fd::{AsRawFd, FromRawFd};
    let flags = libc::O_RDONLY;
    // SAFETY: the descriptor is open and the handle is one that the system has filled in.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut *handle, flags) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the system has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

#[test]
fn a_file_handle_outlasts_everything_but_its_file() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to open by handle");
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    fs::create_dir_all(mount.dir.join("a/b")).unwrap();
    fs::write(mount.dir.join("a/b/file"), "by handle").unwrap();
    fs::write(mount.dir.join("goes"), "x").unwrap();
    let names = ["a/b/file", "a/b", "", "goes"];
    let mut handles: Vec<FileHandle> = names.iter().map(|name| file_handle(&mount.dir.join(name))).collect();
    mount.finish();
    // Nothing of these is in the kernel's cache, nor in the server's.
    let mount = Mount::start(&place, &[]);
    fs::remove_file(mount.dir.join("goes")).unwrap();
    let root = File::open(&mount.dir).unwrap();
    let file = open_by_handle(&root, &mut handles[0]).unwrap();
    assert_eq!(std::io::read_to_string(&file).unwrap(), "by handle");
    let dir = open_by_handle(&root, &mut handles[1]).unwrap();
    assert_eq!(dir.metadata().unwrap().ino(), fs::metadata(mount.dir.join("a/b")).unwrap().ino());
    assert!(open_by_handle(&root, &mut handles[2]).unwrap().metadata().unwrap().is_dir());
    let gone = open_by_handle(&root, &mut handles[3]).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ESTALE), "{gone}");
    drop((root, file, dir));
    mount.finish();
}

#[test]
fn a_directory_can_be_the_upper_layer_of_an_overlay() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to mount an overlay");
        return;
    }
    let place = Place::in_shm();
    let mount = Mount::fresh(&place);
    for dir in ["upper", "work"] {
        fs::create_dir(mount.dir.join(dir)).unwrap();
    }
    let (lower, merged) = (place.path("lower"), place.path("merged"));
    fs::create_dir(&lower).unwrap();
    fs::create_dir(&merged).unwrap();
    for name in ["changed", "gone", "moved"] {
        fs::write(lower.join(name), name).unwrap();
    }
    let show = |path: &Path| path.to_str().unwrap().to_owned();
    let (upper, work) = (show(&mount.dir.join("upper")), show(&mount.dir.join("work")));
    let options = format!("lowerdir={},upperdir={upper},workdir={work}", show(&lower));
    let overlay = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).output();
    let overlay = overlay.unwrap();
    let said = String::from_utf8_lossy(&overlay.stderr);
    if said.contains("unknown filesystem") {
        println!("skipped: the kernel has no overlayfs");
        return;
    }
    assert!(overlay.status.success(), "{said}");
    let used = std::panic::catch_unwind(|| {
        fs::write(merged.join("changed"), "anew").unwrap();
        fs::remove_file(merged.join("gone")).unwrap();
        fs::rename(merged.join("moved"), merged.join("there")).unwrap();
        fs::write(merged.join("new"), "new").unwrap();
        let mut names: Vec<_> = fs::read_dir(&merged).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["changed", "new", "there"]);
        assert_eq!(read(&merged.join("changed")), b"anew");
        assert_eq!(read(&merged.join("there")), b"moved");
    });
    assert!(Command::new("umount").arg(&merged).status().unwrap().success());
    used.unwrap();
    assert_eq!(read(&lower.join("changed")), b"changed");
    for name in ["gone", "moved"] {
        let whiteout = fs::symlink_metadata(mount.dir.join("upper").join(name)).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0, "{name}");
    }
    mount.finish();
}
