//! The kernel's information about the persistent memory beneath a pool: its region, whether caches survive a power
//! cut, and its bad blocks.
//!
//! ```text
//!   /sys/dev/char/M:N   --> .../region1/dax1.0/...       region1/persistence_domain    caches
//!   /sys/dev/block/M:N  --> .../region0/.../pmem0        region1/badblocks             of a DAX device
//!                                                        pmem0/badblocks --FIEMAP-->   of a file on it
//! ```
//!
//! Bad blocks were found by a scrub or a machine check, in this boot or before. They are read once, when a pool is
//! opened: a listed page counts as lost without an access. Without permission, or on a volume over several devices,
//! no bad blocks are reported; an access to one is a SIGBUS.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Size of a sector in the kernel's lists, in bytes.
const SECTOR: u64 = 512;
const SYS: &str = "/sys";

/// Whether the caches above `file` are inside its power-fail domain (eADR), according to its region. If the region
/// is unknown (a volume over several), all regions of the machine must report it.
pub(super) fn caches_survive(file: &File) -> bool {
    let survive = |region: &Path| text(&region.join("persistence_domain")).is_some_and(|domain| domain == "cpu_cache");
    if let Some(region) = file.metadata().ok().and_then(|meta| region_of(&device(Path::new(SYS), &meta)?)) {
        return survive(&region);
    }
    let Ok(devices) = std::fs::read_dir("/sys/bus/nd/devices") else { return false };
    let mut regions = devices.flatten().filter(|device| is_region(&device.path())).peekable();
    regions.peek().is_some() && regions.all(|region| survive(&region.path()))
}

/// Bytes of a DAX device, or of a file on a DAX filesystem, that the kernel lists as bad.
pub(super) fn bad_bytes(file: &File) -> Vec<Range<u64>> {
    let Ok(meta) = file.metadata() else { return Vec::new() };
    let Some(device) = device(Path::new(SYS), &meta) else { return Vec::new() };
    if meta.file_type().is_char_device() {
        return of_dax_device(&device).unwrap_or_default();
    }
    match of_disk(&device).unwrap_or_default() {
        none if none.is_empty() => none,
        bad => extents(file).iter().flat_map(|extent| extent.bad(&bad)).collect(),
    }
}

/// The sysfs directory of a DAX device, or of the block device beneath a file.
fn device(sys: &Path, meta: &Metadata) -> Option<PathBuf> {
    let (kind, device) = if meta.file_type().is_char_device() { ("char", meta.rdev()) } else { ("block", meta.dev()) };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    std::fs::canonicalize(sys.join("dev").join(kind).join(format!("{major}:{minor}"))).ok()
}

/// The persistent-memory region of a device.
fn region_of(device: &Path) -> Option<PathBuf> {
    device.ancestors().find(|above| is_region(above)).map(Path::to_path_buf)
}

fn is_region(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    let number = name.as_deref().and_then(|name| name.strip_prefix("region"));
    number.is_some_and(|n| n.parse::<u32>().is_ok())
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The entries of a `badblocks` file: lines of a first sector and a number of sectors.
fn parse_bad_blocks(path: &Path) -> Option<Vec<Range<u64>>> {
    let range = |line: &str| {
        let (first, count) = line.trim().split_once(' ')?;
        let start = first.parse::<u64>().ok()?.checked_mul(SECTOR)?;
        let len = count.trim().parse::<u64>().ok()?.checked_mul(SECTOR)?;
        Some(start..start.checked_add(len)?)
    };
    Some(text(path)?.lines().filter_map(range).collect())
}

/// Bad bytes of a DAX device. Its region lists them relative to the start of the region.
fn of_dax_device(device: &Path) -> Option<Vec<Range<u64>>> {
    let region = region_of(device)?;
    let address = |path: PathBuf| u64::from_str_radix(text(&path)?.trim_start_matches("0x"), 16).ok();
    let bad = parse_bad_blocks(&region.join("badblocks")).filter(|bad| !bad.is_empty())?;
    let begin = address(device.join("resource"))?.checked_sub(address(region.join("resource"))?)?;
    Some(behind(bad, begin))
}

/// Bad bytes of a disk, or of a partition of it.
fn of_disk(device: &Path) -> Option<Vec<Range<u64>>> {
    if !device.join("partition").exists() {
        return parse_bad_blocks(&device.join("badblocks"));
    }
    let begin = text(&device.join("start"))?.parse::<u64>().ok()?.checked_mul(SECTOR)?;
    Some(behind(parse_bad_blocks(&device.parent()?.join("badblocks"))?, begin))
}

/// The ranges relative to `begin`.
fn behind(ranges: Vec<Range<u64>>, begin: u64) -> Vec<Range<u64>> {
    let seen = |range: Range<u64>| range.start.saturating_sub(begin)..range.end.saturating_sub(begin);
    ranges.into_iter().map(seen).filter(|range| !range.is_empty()).collect()
}

/// An extent of a file and its position on the device.
#[derive(Clone, Copy, Debug)]
struct Extent {
    file: u64,
    device: u64,
    len: u64,
}

impl Extent {
    /// Bytes of the file that are stored on bad bytes of the device.
    fn bad(self, bad: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
        let end = self.device.saturating_add(self.len);
        let inside = move |range: &Range<u64>| range.start.max(self.device)..range.end.min(end);
        let here = move |range: Range<u64>| range.start - self.device + self.file..range.end - self.device + self.file;
        bad.iter().map(inside).filter(|range| !range.is_empty()).map(here)
    }
}

/// The extents of a file (FIEMAP). Extents that the filesystem does not report are omitted.
fn extents(file: &File) -> Vec<Extent> {
    const FS_IOC_FIEMAP: u64 = 0xc020_660b;
    const AT_ONCE: usize = 256;
    /// The position of the bytes is unknown, or they are encoded.
    const ELSEWHERE: u32 = 0x2 | 0x4 | 0x8;
    const LAST: u32 = 0x1;
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Told {
        logical: u64,
        physical: u64,
        len: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved_too: [u32; 3],
    }
    #[repr(C)]
    struct Question {
        start: u64,
        len: u64,
        flags: u32,
        mapped: u32,
        room: u32,
        reserved: u32,
        told: [Told; AT_ONCE],
    }
    let mut out = Vec::new();
    let mut start = 0;
    loop {
        let told = [Told::default(); AT_ONCE];
        let mut ask =
            Question { start, len: u64::MAX - start, flags: 0, mapped: 0, room: AT_ONCE as u32, reserved: 0, told };
        // SAFETY: the structure is the one that the call reads and fills, with as many extents as it states.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut ask) } != 0 {
            return out;
        }
        let told = &ask.told[..(ask.mapped as usize).min(AT_ONCE)];
        let known = told.iter().filter(|extent| extent.flags & ELSEWHERE == 0);
        out.extend(known.map(|extent| Extent { file: extent.logical, device: extent.physical, len: extent.len }));
        match told.last() {
            Some(last) if last.flags & LAST == 0 && last.logical.saturating_add(last.len) > start => {
                start = last.logical.saturating_add(last.len);
            }
            _ => return out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A tree of files as below /sys.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }
        root
    }

    #[test]
    fn bad_blocks_of_a_device_are_told_from_its_own_beginning() {
        let sys = tree(&[
            ("ndbus0/region1/badblocks", "0 8\n8190 4\n16384 1\n"),
            ("ndbus0/region1/resource", "0x140000000\n"),
            ("ndbus0/region1/dax1.0/dax1.0/resource", "0x140400000\n"),
        ]);
        let device = sys.path().join("ndbus0/region1/dax1.0/dax1.0");
        // The device begins at sector 8192 of the region: the first range ends before, the second reaches in.
        assert_eq!(of_dax_device(&device), Some(vec![0..1024, 4 << 20..(4 << 20) + 512]));
        fs::write(sys.path().join("ndbus0/region1/badblocks"), "\n").expect("none");
        assert_eq!(of_dax_device(&device), None);
    }

    #[test]
    fn bad_blocks_of_a_disk_are_those_of_its_partitions_behind_their_start() {
        let sys = tree(&[("pmem0/badblocks", "16 8\nnonsense\n100 1\n200 2\n"), ("pmem0/pmem0p1/start", "96\n")]);
        fs::write(sys.path().join("pmem0/pmem0p1/partition"), "1\n").expect("a partition");
        assert_eq!(of_disk(&sys.path().join("pmem0")), Some(vec![8192..12288, 51200..51712, 102_400..103_424]));
        assert_eq!(of_disk(&sys.path().join("pmem0/pmem0p1")), Some(vec![2048..2560, 53_248..54_272]));
        assert_eq!(of_disk(&sys.path().join("sda")), None);
    }

    #[test]
    fn bad_blocks_of_a_file_are_those_below_its_extents() {
        let extent = Extent { file: 1 << 20, device: 8192, len: 8192 };
        let bad = [0..8192, 8000..8704, 12288..12800, 16000..20000, 16384..30000];
        let found: Vec<_> = extent.bad(&bad).collect();
        let begin = 1 << 20;
        assert_eq!(found, [begin..begin + 512, begin + 4096..begin + 4608, begin + 7808..begin + 8192]);
    }

    #[test]
    fn extents_of_a_file_follow_one_another_and_hold_what_was_written() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().expect("a file");
        for n in 0..600 {
            file.write_all_at(&[1; 4096], n * 12288).expect("written");
        }
        file.sync_all().expect("synced");
        let extents = extents(&file);
        if extents.is_empty() {
            return println!("skipped: this filesystem does not tell where its files lie");
        }
        assert!(extents.windows(2).all(|pair| pair[0].file + pair[0].len <= pair[1].file), "{extents:?}");
        let told = |at: u64| extents.iter().any(|extent| (extent.file..extent.file + extent.len).contains(&at));
        assert!((0..600).all(|n| told(n * 12288)), "{} extents", extents.len());
    }
}
