//! Resolves one fault.
//!
//! ```text
//!   find the mapping of the address --> lock the inode --> resolve the page
//!       absent, and a store or not zeros:   allocate storage around it, publish, map it in every mapping
//!       otherwise:                          map the window around it as it is
//!   wake the threads that wait
//! ```

use std::ops::Range;
use std::sync::Arc;

use pmem::MapMode;

use crate::data::notify::Stores;
use crate::engine::{Engine, InodeWrite};
use crate::error::Result;
use crate::extent::extent_map::Map;
use crate::extent::resolve::Span;
use crate::lock::rank;
use crate::mmap::address_space::area::Area;
use crate::mmap::fault::service::{Service, find};
use crate::mmap::kernel::userfault::{Fault, Userfault};
use crate::units::PAGE_SIZE;

/// Resolves a store to a hole if no step has to wait for a thread that may wait for the fault reader.
pub(in crate::mmap) fn try_resolve(service: &Service, uffd: &Userfault, fault: Fault) -> bool {
    // Otherwise an invalidation may have to be sent to a child, which waits for its acknowledgement.
    if !(fault.write || fault.protected) || service.has_children() || service.is_crowded() {
        return false;
    }
    let _reader = rank::FaultReader::enter();
    let Some(entries) = service.try_entries() else { return false };
    let Some(entry) = find(&entries, fault.addr) else { return false };
    let (area, engine) = (&entry.area, entry.file.engine());
    // Relocating pages to map them unmaps them first, which calls `mremap`.
    if area.map_alignment > 1 {
        return false;
    }
    let Some(lock) = engine.locks.try_write(area.ino) else { return false };
    if !engine.opens.observers(area.ino).iter().all(|w| w.fills_in_place()) {
        return false;
    }
    let page = area.page_at(fault.addr);
    // A revoked page, or storage that is not mapped yet, may need a step that blocks.
    if area.is_revoked(page) {
        return false;
    }
    let Ok(Some(done)) = allocate(lock.of(area.ino), engine, area, page, true) else { return false };
    service.note_window(area, done.clone(), 2);
    uffd.wake(area.addr(&done));
    true
}

/// Resolves a fault. Blocks on locks.
pub(in crate::mmap) fn resolve(service: &Service, uffd: &Userfault, fault: Fault) {
    let entries = service.entries();
    let Some(entry) = find(&entries, fault.addr) else {
        uffd.wake(fault.addr..fault.addr + PAGE_SIZE as usize);
        return;
    };
    let (area, engine) = (&entry.area, entry.file.engine());
    let page = area.page_at(fault.addr);
    let done = {
        let lock = engine.locks.write(&[area.ino]);
        let held = lock.of(area.ino);
        let stored = match area.is_revoked(page) {
            true => Ok(None),
            false => allocate(held, engine, area, page, fault.write || fault.protected),
        };
        let done = stored.and_then(|stored| match stored {
            Some(pages) => {
                service.note_window(area, pages.clone(), 1);
                Ok(pages)
            }
            None => map_window(service, held, engine, area, page),
        });
        done.unwrap_or_else(|e| {
            area.fail(page, &e);
            page..page + 1
        })
    };
    uffd.wake(area.addr(&done));
}

/// Resolves a fault of the calling thread.
pub(in crate::mmap) fn resolve_here(
    held: InodeWrite<'_>,
    engine: &Engine,
    area: &Area,
    page: u64,
    write: bool,
) -> Result<()> {
    allocate(held, engine, area, page, write)?;
    let rec = engine.alloc.inode(area.ino)?;
    area.install_around(held, engine, &rec, page);
    Ok(())
}

/// Allocates storage for `page` and pages around it, if mapping it requires storage: in a shared mapping with
/// stores for an absent page that is stored to, or for a shared page; in any mapping for an absent page that is not
/// zeros. Returns the pages that are mapped as a result. `None` in a private mapping, which maps them in the usual
/// way.
pub(in crate::mmap) fn allocate(
    held: InodeWrite<'_>,
    engine: &Engine,
    area: &Area,
    page: u64,
    write: bool,
) -> Result<Option<Range<u64>>> {
    let rec = engine.alloc.inode(area.ino)?;
    let end = rec.size.div_ceil(PAGE_SIZE).next_multiple_of(area.map_alignment);
    let stores = area.mode == MapMode::Write;
    // Beyond the base and the backing only a store allocates storage.
    if page >= end || !stores && page >= rec.base_pages {
        return Ok(None);
    }
    let (absent, stored) = {
        let _chain = engine.chain(&rec);
        let map = Map { nodes: &engine.alloc, alloc: &engine.alloc, rec: &rec };
        let span = map.span(page)?;
        let behind = page.saturating_add(span.pages());
        match span {
            Span::Absent { .. } if stores && write || span.needs_storage() => {
                let start = map.at_or_before(page)?.map_or(0, |before| before.end());
                // A base may cover pages before this one.
                let absent = if rec.base == 0 { start..behind } else { page..behind };
                (absent, if stores && write { Stores::Follow } else { Stores::No })
            }
            Span::Shared(_) if stores => (page..behind, Stores::Follow),
            _ => return Ok(None),
        }
    };
    let around = area.fill_around(page, absent, end);
    if area.map_alignment > 1 {
        engine.make_contiguous(held, around.start, true)?;
        engine.remap_pages(held, around.clone())?;
    } else {
        engine.materialize(held, around.clone(), stored)?;
        if stores {
            // Populating all pages at once is cheaper than one fault for each.
            area.populate(around.clone());
        }
    }
    Ok((area.mode != MapMode::Private).then_some(around))
}

/// Maps the window around `page` as it is. Returns the pages mapped.
fn map_window(
    service: &Service,
    held: InodeWrite<'_>,
    engine: &Engine,
    area: &Arc<Area>,
    page: u64,
) -> Result<Range<u64>> {
    let rec = engine.alloc.inode(area.ino)?;
    let (pages, pieces) = area.install_around(held, engine, &rec, page);
    service.note_window(area, pages.clone(), pieces);
    Ok(pages)
}
