//! What happens to mappings at a fork: the parent's side.
//!
//! ```text
//!   prepare    locks the list and all mappings, so that the child's copy is consistent
//!   fork       data and inaccessible pages are inherited; unresolved pages and holes are not
//!              (MADV_DONTFORK): no fault reader would see the child's stores to them
//!   parent     a thread serves the child's requests
//!   child      see child.rs
//! ```
//!
//! A grandchild has no connection: an access to its mappings is an error.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{RecvFlags, SendFlags};

use crate::lock::{StdMutexGuard, StdWriteGuard};
use crate::mmap::address_space::area::{Area, Shown, State};
use crate::mmap::fault::answer;
use crate::mmap::fault::service::{Entries, Entry, Service};
use crate::mmap::fork::channel::{self, Link};
use crate::mmap::fork::child;
use crate::mmap::kernel::userfault::spawn;

/// Limit on spans in one reply.
pub(in crate::mmap) const MAX_SPANS: usize = 256;
/// Words of a reply: result, number of spans, and three words for each span.
pub(in crate::mmap) const ANSWER: usize = 2 + 3 * MAX_SPANS;

/// A fork in progress. Dropping it releases the locks in the order of the fields.
struct Forking {
    sockets: Option<[(OwnedFd, OwnedFd); 2]>,
    _states: Vec<StdMutexGuard<'static, State>>,
    _entries: StdWriteGuard<'static, Entries>,
    /// Keeps the locked areas alive.
    areas: Vec<Arc<Area>>,
}

// SAFETY: locked and unlocked by the thread that forks; in the child by the copy of that thread. The locks are the
// standard library's, which do not record their owner.
unsafe impl Send for Forking {}

static FORKING: parking_lot::Mutex<Option<Forking>> = parking_lot::Mutex::new(None);

/// Registers the fork handlers with the C library, once for the process.
pub(in crate::mmap) fn watch() {
    // SAFETY: the handlers take and release locks of this module only.
    unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) };
}

extern "C" fn prepare() {
    let Some(service) = Service::existing() else { return };
    let entries = service.entries_mut();
    if entries.is_empty() {
        return;
    }
    let areas: Vec<_> = entries.values().map(|entry| entry.area.clone()).collect();
    // SAFETY: `areas` keeps the mutexes alive, and is dropped after the guards.
    let lock = |area: &Arc<Area>| unsafe { std::mem::transmute::<StdMutexGuard<'_, State>, _>(area.locked()) };
    let states = areas.iter().map(lock).collect();
    let sockets = channel::pair().and_then(|requests| Ok([requests, channel::pair()?])).ok();
    *FORKING.lock() = Some(Forking { sockets, _states: states, _entries: entries, areas });
}

extern "C" fn in_parent() {
    let Some(service) = Service::existing() else { return };
    let Some(mut forking) = FORKING.lock().take() else { return };
    let areas = forking.areas.clone();
    if let Some([(requests, _), (control, _)]) = forking.sockets.take() {
        let link = Arc::new(Link::new(control));
        let (known, serving) = (areas.clone(), link.clone());
        // The link is registered before anything can change again.
        areas.iter().for_each(|area| area.links.lock().push(link.clone()));
        service.add_child();
        let serve = move || {
            serve(service, &requests, &serving);
            serving.close();
            for area in &known {
                area.links.lock().retain(|other| !Arc::ptr_eq(other, &serving));
            }
            service.remove_child();
            service.drop_retired();
        };
        // If no thread can be started, the socket is closed, and the child's faults are errors.
        let _ = spawn(c"pagestone-child", serve);
    }
}

extern "C" fn in_child() {
    let Some(service) = Service::existing() else { return };
    let Some(mut forking) = FORKING.lock().take() else { return };
    let (areas, sockets) = (forking.areas.clone(), forking.sockets.take());
    drop(forking);
    let sockets = sockets.map(|[(_, requests), (_, control)]| (requests, control));
    child::begin(service, &areas, sockets);
}

/// Serves a child's requests until it ends.
fn serve(service: &'static Service, requests: &OwnedFd, link: &Link) {
    let mut ask = [0; 3];
    while link.wait_for_request(requests)
        && let Ok(3) = channel::receive(requests, &mut ask, RecvFlags::empty())
    {
        let [id, page, write] = ask;
        let shown = service.by_id(id).map(|entry| describe_for_child(&entry, page, write != 0, link));
        let mut answer = [0; ANSWER];
        let words = match shown {
            Some(Ok(spans)) => {
                answer[1] = spans.len() as u64;
                for (words, (pages, shown)) in answer[2..].chunks_exact_mut(3).zip(&spans) {
                    words.copy_from_slice(&[pages.start, pages.end, shown.word()]);
                }
                2 + 3 * spans.len()
            }
            Some(Err(crate::error::Error::NoSpace)) => {
                answer[0] = 1;
                2
            }
            _ => {
                answer[0] = 2;
                2
            }
        };
        if channel::send(requests, &answer[..words], SendFlags::empty()).is_err() {
            return;
        }
    }
}

/// The contents of the window around `page`, after allocating the storage that the access needs.
fn describe_for_child(
    entry: &Entry,
    page: u64,
    write: bool,
    link: &Link,
) -> crate::error::Result<Vec<(std::ops::Range<u64>, Shown)>> {
    let (area, engine) = (&entry.area, entry.file.engine());
    let lock = engine.locks.write(&[area.ino]);
    let held = lock.of(area.ino);
    answer::allocate(held, engine, area, page, write)?;
    area.make_contiguous(held, engine, area.window_of(page))?;
    area.describe(held, engine, &engine.alloc.inode(area.ino)?, page, MAX_SPANS, link)
}
