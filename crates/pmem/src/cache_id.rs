//! The identity of the volatile cache above a file. Unsynced writes are still in the cache as long as the identity
//! has not changed.
//!
//! ```text
//!   file            boot | device | inode | mount        | sequence number of the disk
//!   block device    boot | device                        | sequence number of the disk
//! ```
//!
//! The boot id alone is not enough. A disk that was unplugged, a filesystem that was unmounted by force, or a
//! network filesystem whose server was restarted has lost unsynced writes; a snapshot of a live disk, or a copy,
//! never had all of them. A false difference (if a pool is opened through another mount, for example) costs at most
//! unsynced commits. A false equality would replay records although their data is missing.

use std::fs::File;
use std::hash::Hasher;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, StatxFlags};
use siphasher::sip128::{Hasher128, SipHasher13};

/// The identity; all zeros (no identity) if the kernel does not provide enough information.
pub(super) fn id(file: &File) -> [u8; 16] {
    parts(file).map_or([0; 16], |parts| {
        let mut hasher = SipHasher13::new();
        parts.into_iter().for_each(|part| hasher.write_u64(part));
        let hash = hasher.finish128();
        // Setting a bit ensures that the result is never zero.
        (u128::from(hash.h1 | 1) << 64 | u128::from(hash.h2)).to_be_bytes()
    })
}

fn parts(file: &File) -> Option<[u64; 7]> {
    // Mount ids are unique since Linux 6.8; before, the ids of removed mounts are reused.
    const MOUNT: u32 = 0x1000;
    const UNIQUE_MOUNT: u32 = 0x4000;
    let boot = boot_id()?;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::from_bits_retain(MOUNT | UNIQUE_MOUNT);
    let about = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let device = FileType::from_raw_mode(about.stx_mode.into()) == FileType::BlockDevice;
    let (major, minor) = match device {
        true => (about.stx_rdev_major, about.stx_rdev_minor),
        false => (about.stx_dev_major, about.stx_dev_minor),
    };
    // All names of a device share one cache. A path to a file depends on the mount.
    let (inode, mount) = match device {
        true => (0, 0),
        false if about.stx_mask & (MOUNT | UNIQUE_MOUNT) == 0 => return None,
        false => (about.stx_ino, about.stx_mnt_id),
    };
    let disk = disk_sequence(Path::new("/sys"), major, minor).unwrap_or(0);
    let number = u64::from(major) << 32 | u64::from(minor);
    Some([(boot >> 64) as u64, boot as u64, device.into(), number, inode, mount, disk])
}

/// The number that the kernel assigns to a disk when it appears or its medium changes. A partition has the number
/// of its disk.
fn disk_sequence(sys: &Path, major: u32, minor: u32) -> Option<u64> {
    let device = std::fs::canonicalize(sys.join("dev/block").join(format!("{major}:{minor}"))).ok()?;
    let disk = if device.join("partition").exists() { device.parent()? } else { &device };
    std::fs::read_to_string(disk.join("diskseq")).ok()?.trim().parse().ok()
}

/// The kernel's boot id.
fn boot_id() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_partition_is_as_old_as_its_disk() {
        let sys = tempfile::tempdir().expect("a directory");
        let disk = sys.path().join("devices/sda");
        fs::create_dir_all(disk.join("sda1")).expect("directories");
        fs::create_dir_all(sys.path().join("dev/block")).expect("directories");
        fs::write(disk.join("diskseq"), "17\n").expect("a file");
        fs::write(disk.join("sda1/partition"), "1\n").expect("a file");
        for (number, device) in [("8:0", disk.clone()), ("8:1", disk.join("sda1"))] {
            std::os::unix::fs::symlink(device, sys.path().join("dev/block").join(number)).expect("a link");
        }
        assert_eq!(disk_sequence(sys.path(), 8, 0), Some(17));
        assert_eq!(disk_sequence(sys.path(), 8, 1), Some(17));
        assert_eq!(disk_sequence(sys.path(), 8, 2), None);
    }

    #[test]
    fn a_file_has_one_identity_and_its_copy_another() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        fs::write(&one, "pool").expect("a file");
        fs::copy(&one, &other).expect("a copy");
        let of = |path| id(&File::open(path).expect("opens"));
        if of(&one) == [0; 16] {
            return println!("skipped: this kernel does not tell mounts apart");
        }
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&other));
    }
}
