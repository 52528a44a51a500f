//! Queries of the page tables: which pages are private copies of this process, and how many are huge.
//!
//! ```text
//!   PAGEMAP_SCAN (Linux 6.7), or /proc/self/pagemap      present, not file-backed: may be a copy
//!        |
//!   move_pages without targets         a node's number        a copy
//!                                      EFAULT                 the zero page
//!                                      ENOENT                 device memory (DAX)
//! ```
//!
//! `move_pages` is needed on older kernels, whose pagemap does not distinguish the zero page from a copy, and for
//! DAX: kernels that do not count references to DAX pages do not report them as file-backed.
//!
//! The pagemap is opened once per process. An open pagemap always describes the process that opened it, so a child
//! opens it again.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicPtr, Ordering};

use pmem::OwnerProcess;

const PAGE: usize = 4096;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO: u64 = 1 << 5;
const HUGE: u64 = 1 << 6;

/// The pagemap of this process.
fn pagemap() -> io::Result<&'static File> {
    // No lock: if another thread held it at a fork, the child would wait for it forever.
    static OPEN: AtomicPtr<(OwnerProcess, File)> = AtomicPtr::new(std::ptr::null_mut());
    loop {
        let found = OPEN.load(Ordering::Acquire);
        // SAFETY: null, or a value that was leaked below.
        if let Some((owner, file)) = unsafe { found.as_ref() }
            && owner.is_current()
        {
            return Ok(file);
        }
        let new = Box::into_raw(Box::new((OwnerProcess::current(), File::open("/proc/self/pagemap")?)));
        if OPEN.compare_exchange(found, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // Another thread stored its pagemap first.
            // SAFETY: allocated above, and no other thread has seen it.
            drop(unsafe { Box::from_raw(new) });
        }
    }
}

/// One page range that PAGEMAP_SCAN returns.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// The argument of PAGEMAP_SCAN.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Pages of the range that are private copies of this process: present, not file-backed, and not the zero page.
/// `dax`: the file is device memory. `None` if the kernel does not report it or denies the query.
pub(in crate::mmap) fn private_copies(range: Range<usize>, dax: bool) -> io::Result<Option<Vec<Range<usize>>>> {
    copies_among(range, dax, PRESENT | SWAPPED)
}

/// As [`private_copies`], without the copies that are swapped out.
pub(in crate::mmap) fn copies_in_memory(range: Range<usize>, dax: bool) -> io::Result<Option<Vec<Range<usize>>>> {
    copies_among(range, dax, PRESENT)
}

fn copies_among(range: Range<usize>, dax: bool, which: u64) -> io::Result<Option<Vec<Range<usize>>>> {
    let mut found = Vec::new();
    let mut add = |region: &PageRegion| found.push((region.start as usize..region.end as usize, region.categories));
    let candidates = match scan(range.clone(), FILE | ZERO, which, &mut add) {
        Ok(()) if !dax => return Ok(Some(coalesced(found.into_iter().map(|(range, _)| range)))),
        Ok(()) => found,
        Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
            pages_not_file_backed(range)?.into_iter().filter(|(_, categories)| categories & which != 0).collect()
        }
        Err(e) => return Err(e),
    };
    let mut copies = Vec::new();
    for (range, categories) in candidates {
        if categories & SWAPPED != 0 {
            copies.push(range);
        } else if !add_normal_memory(range, &mut copies)? {
            return Ok(None);
        }
    }
    Ok(Some(coalesced(copies.into_iter())))
}

/// A superset of [`private_copies`] on any kernel: may include the zero page and file-backed pages.
pub(in crate::mmap) fn maybe_private(range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
    Ok(coalesced(pages_not_file_backed(range)?.into_iter().map(|(range, _)| range)))
}

/// Bytes of the range that are present, without the zero page, and how many of them are in huge pages. ENOTTY
/// before Linux 6.7.
pub(in crate::mmap) fn present(range: Range<usize>) -> io::Result<(u64, u64)> {
    let (mut all, mut huge) = (0, 0);
    scan(range, ZERO, PRESENT, &mut |region| {
        all += region.end - region.start;
        huge += if region.categories & HUGE != 0 { region.end - region.start } else { 0 };
    })?;
    Ok((all, huge))
}

/// Calls `each` for the ranges of pages that are in any category of `any` and in none of `without`.
fn scan(range: Range<usize>, without: u64, any: u64, each: &mut dyn FnMut(&PageRegion)) -> io::Result<()> {
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    let pagemap = pagemap()?;
    let mut regions = [PageRegion::default(); 512];
    let mut from = range.start as u64;
    while from < range.end as u64 {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start: from,
            end: range.end as u64,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_inverted: without,
            category_mask: without,
            category_anyof_mask: any,
            return_mask: SWAPPED | HUGE,
            ..ScanArg::default()
        };
        // SAFETY: the argument is what the call wants, and the vector it names has the length it says.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut arg) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        regions[..count as usize].iter().for_each(&mut *each);
        if arg.walk_end <= from {
            return Err(io::ErrorKind::InvalidData.into());
        }
        from = arg.walk_end;
    }
    Ok(())
}

/// Pages that the pagemap does not report as file-backed, and whether they are swapped out.
fn pages_not_file_backed(range: Range<usize>) -> io::Result<Vec<(Range<usize>, u64)>> {
    let pagemap = pagemap()?;
    let mut found: Vec<(Range<usize>, u64)> = Vec::new();
    let mut words = [0u8; 8 * 1024];
    let mut at = range.start;
    while at < range.end {
        let count = ((range.end - at) / PAGE).min(words.len() / 8);
        pagemap.read_exact_at(&mut words[..count * 8], (at / PAGE * 8) as u64)?;
        for (i, word) in words[..count * 8].chunks_exact(8).enumerate() {
            let page = at + i * PAGE..at + (i + 1) * PAGE;
            // Bit 63: present, 62: swapped, 61: file-backed or shared memory.
            let categories = match word[7] >> 5 {
                bits if bits & 1 != 0 => continue,
                bits if bits & 0b10 != 0 => SWAPPED,
                bits if bits & 0b100 != 0 => PRESENT,
                _ => continue,
            };
            match found.last_mut() {
                Some((last, same)) if last.end == page.start && *same == categories => last.end = page.end,
                _ => found.push((page, categories)),
            }
        }
        at += count * PAGE;
    }
    Ok(found)
}

/// Adds the pages of the range that are normal memory. Returns false if the query is denied.
fn add_normal_memory(range: Range<usize>, found: &mut Vec<Range<usize>>) -> io::Result<bool> {
    const AT_ONCE: usize = 512;
    let mut at = range.start;
    while at < range.end {
        let pages: Vec<usize> = (at..range.end).step_by(PAGE).take(AT_ONCE).collect();
        let mut nodes = vec![0i32; pages.len()];
        // SAFETY: both vectors have the length that is passed to the call; without target nodes it moves nothing.
        let done = unsafe {
            let (none, ours) = (std::ptr::null::<i32>(), 0);
            libc::syscall(libc::SYS_move_pages, ours, pages.len(), pages.as_ptr(), none, nodes.as_mut_ptr(), 0)
        };
        if done < 0 {
            return match io::Error::last_os_error() {
                e if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) => Ok(false),
                e => Err(e),
            };
        }
        found.extend(pages.iter().zip(&nodes).filter(|&(_, &node)| node >= 0).map(|(&page, _)| page..page + PAGE));
        // A page that was swapped out since it was listed is a copy too.
        if nodes.contains(&-libc::ENOENT) {
            let swapped = |(range, categories): (Range<usize>, u64)| (categories & SWAPPED != 0).then_some(range);
            found.extend(pages_not_file_backed(at..at + pages.len() * PAGE)?.into_iter().filter_map(swapped));
        }
        at += pages.len() * PAGE;
    }
    Ok(true)
}

/// The ranges, sorted and coalesced.
fn coalesced(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = ranges.collect();
    ranges.sort_by_key(|range| range.start);
    let mut out: Vec<Range<usize>> = Vec::new();
    for new in ranges {
        match out.last_mut() {
            Some(last) if last.end >= new.start => last.end = last.end.max(new.end),
            _ => out.push(new),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a page of new memory is reported as a copy after a store and not before.
    fn detects_copies() -> io::Result<bool> {
        // SAFETY: new memory, used by this function alone until it is unmapped.
        unsafe {
            let (all, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let memory = libc::mmap(std::ptr::null_mut(), PAGE, all, how, -1, 0).cast::<u8>();
            let range = memory.addr()..memory.addr() + PAGE;
            let before = private_copies(range.clone(), false)?;
            memory.write_volatile(1);
            let after = private_copies(range.clone(), false)?;
            libc::munmap(memory.cast(), PAGE);
            // `None`: the query is denied here.
            Ok(before.is_none_or(|copies| copies.is_empty()) && after.is_none_or(|copies| copies == [range]))
        }
    }

    #[test]
    fn the_pagemap_is_opened_once_and_a_child_has_its_own() -> io::Result<()> {
        assert!(detects_copies()?);
        assert_eq!(pagemap()?.as_raw_fd(), pagemap()?.as_raw_fd());
        // SAFETY: the child takes no lock of this process and ends without cleaning up.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(i32::from(!detects_copies().is_ok_and(|works| works)));
            }
            let mut status = -1;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            status
        };
        assert_eq!(status, 0, "the child sees its own pages");
        Ok(())
    }
}
