//! The composition of a mapping, as the kernel reports it.
//!
//! ```text
//!   /proc/self/smaps    one record per kernel mapping: how much of it is present, how much is huge
//!   pagemap.rs          the same for storage pages, from the page tables: smaps omits those of DAX
//! ```

use std::io;
use std::ops::Range;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::mmap::MapMechanism;
use crate::mmap::Mapping;
use crate::mmap::kernel::pagemap;
use crate::units::{FRAME_SIZE, PAGE_SIZE};

/// The result of [`Mapping::report`]. All sizes are in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct MapReport {
    /// Length of the mapping.
    pub bytes: u64,
    /// Storage that the file has in the range.
    pub data: u64,
    /// Holes in the range, up to the end of the file.
    pub holes: u64,
    /// Accessed and inaccessible: beyond the end of the file, or revoked.
    pub nothing: u64,
    /// Present in the page tables at this moment, without holes. Before Linux 6.7 the kernel does not report DAX
    /// files: 0.
    pub resident: u64,
    /// How much of that is in huge pages.
    pub huge: u64,
    /// Kernel mappings that it consists of (the limit for the process is `vm.max_map_count`).
    pub kernel_mappings: u64,
    /// How faults are resolved.
    pub mechanism: MapMechanism,
}

impl MapReport {
    /// The share of present memory that is in huge pages, from 0 to 1.
    pub fn huge_share(&self) -> f64 {
        if self.resident == 0 { 0.0 } else { self.huge as f64 / self.resident as f64 }
    }
}

impl Mapping {
    /// The composition of the mapping at this moment. Reads `/proc/self/smaps`, so it is meant for diagnostics and
    /// tests.
    pub fn report(&self) -> Result<MapReport> {
        let extents = self.file.extents(self.offset, self.len)?;
        let data: u64 = extents.iter().map(|x| x.len).sum();
        let end = (self.offset + self.len).min(self.file.attr()?.size);
        let (_, nothing) = self.area.counts();
        let mut report = MapReport {
            bytes: self.len,
            data,
            holes: end.saturating_sub(self.offset).saturating_sub(data),
            nothing: nothing * PAGE_SIZE,
            resident: 0,
            huge: 0,
            kernel_mappings: 0,
            mechanism: self.mechanism(),
        };
        let text = std::fs::read_to_string("/proc/self/smaps").map_err(Error::system("reading /proc/self/smaps"))?;
        add(&mut report, &text, self.area.addr(&self.area.range()))
            .ok_or_else(|| Error::system("reading /proc/self/smaps")(io::ErrorKind::InvalidData.into()))?;
        Ok(report)
    }
}

/// Adds up the records of kernel mappings inside `range`.
fn add(report: &mut MapReport, smaps: &str, range: Range<usize>) -> Option<()> {
    // `whole`: the mapping has no smaller pages (device DAX).
    let (mut inside, mut whole) = (false, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        if let Some((from, to)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
            let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
            inside = from >= range.start && to <= range.end;
            report.kernel_mappings += u64::from(inside);
            // Permissions, offset, device, inode. A nonzero inode means storage, not a hole or a private copy of
            // one.
            let stored = inside && words.nth(3).is_some_and(|inode| inode != "0");
            if let Some((present, huge)) = stored.then(|| pagemap::present(from..to).ok()).flatten() {
                report.resident += present;
                report.huge += huge;
                inside = false;
            }
        } else if inside {
            let mut kib = || words.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10;
            match first {
                "KernelPageSize:" => whole = kib() >= FRAME_SIZE,
                "Rss:" => {
                    let bytes = kib();
                    report.resident += bytes;
                    report.huge += if whole { bytes } else { 0 };
                }
                "AnonHugePages:" | "ShmemPmdMapped:" | "FilePmdMapped:" => report.huge += kib(),
                "Shared_Hugetlb:" | "Private_Hugetlb:" => {
                    let bytes = kib();
                    report.huge += bytes;
                    report.resident += bytes;
                }
                _ => {}
            }
        }
    }
    Some(())
}
