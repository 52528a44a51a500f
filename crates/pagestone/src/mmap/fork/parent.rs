//! What happens to mappings at a fork, seen from the parent.
//!
//! ```text
//!   prepare    the list and all mappings are locked: the child gets a copy that is consistent
//!   fork       data and "nothing" are inherited; unresolved pages and holes are not (MADV_DONTFORK):
//!              a store of the child there would be seen by nobody
//!   parent     a thread answers the child's faults
//!   child      see child.rs
//! ```
//!
//! A child's child has no connection: its mappings are errors.

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

/// Spans in one answer.
pub(in crate::mmap) const MOST: usize = 256;
/// Words of an answer: what came of it, how many spans, and three words for each.
pub(in crate::mmap) const ANSWER: usize = 2 + 3 * MOST;

/// A fork under way. The locks are released in the order of the fields.
struct Forking {
    sockets: Option<[(OwnedFd, OwnedFd); 2]>,
    _states: Vec<StdMutexGuard<'static, State>>,
    _entries: StdWriteGuard<'static, Entries>,
    /// Keeps what is locked.
    areas: Vec<Arc<Area>>,
}

// SAFETY: taken and given back by the one thread that forks; in the child, by the thread that is
// its copy. The locks are the standard library's, which do not know who holds them.
unsafe impl Send for Forking {}

static FORKING: parking_lot::Mutex<Option<Forking>> = parking_lot::Mutex::new(None);

/// Has the C library tell of forks, once for the process.
pub(in crate::mmap) fn watch() {
    // SAFETY: the handlers take and release locks of this module alone.
    unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) };
}

extern "C" fn prepare() {
    let Some(service) = Service::existing() else { return };
    let entries = service.entries_mut();
    if entries.is_empty() {
        return;
    }
    let areas: Vec<_> = entries.values().map(|entry| entry.area.clone()).collect();
    // SAFETY: `areas` keeps the mutexes, and goes after the guards.
    let lock = |area: &Arc<Area>| unsafe { std::mem::transmute::<StdMutexGuard<'_, State>, _>(area.locked()) };
    let states = areas.iter().map(lock).collect();
    let sockets = channel::pair().and_then(|asks| Ok([asks, channel::pair()?])).ok();
    *FORKING.lock() = Some(Forking { sockets, _states: states, _entries: entries, areas });
}

extern "C" fn in_parent() {
    let Some(service) = Service::existing() else { return };
    let Some(mut forking) = FORKING.lock().take() else { return };
    let areas = forking.areas.clone();
    if let Some([(asks, _), (control, _)]) = forking.sockets.take() {
        let link = Arc::new(Link::new(control));
        let (known, serving) = (areas.clone(), link.clone());
        // Known before anything can change again; told to the thread whose child it is.
        areas.iter().for_each(|area| area.links.lock().push(link.clone()));
        service.child_came();
        let serve = move || {
            serve(service, &asks, &serving);
            serving.close();
            for area in &known {
                area.links.lock().retain(|other| !Arc::ptr_eq(other, &serving));
            }
            service.child_went();
            service.drop_retired();
        };
        // Without a thread the socket is closed, and the child's faults are errors.
        let _ = spawn(c"pagestone-child", serve);
    }
}

extern "C" fn in_child() {
    let Some(service) = Service::existing() else { return };
    let Some(mut forking) = FORKING.lock().take() else { return };
    let (areas, sockets) = (forking.areas.clone(), forking.sockets.take());
    drop(forking);
    let sockets = sockets.map(|[(_, asks), (_, control)]| (asks, control));
    child::begin(service, &areas, sockets);
}

/// Answers a child's faults until it is gone.
fn serve(service: &'static Service, asks: &OwnedFd, link: &Link) {
    let mut ask = [0; 3];
    while link.wait_for_asks(asks)
        && let Ok(3) = channel::receive(asks, &mut ask, RecvFlags::empty())
    {
        let [id, page, write] = ask;
        let shown = service.by_id(id).map(|entry| look(&entry, page, write != 0, link));
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
        if channel::send(asks, &answer[..words], SendFlags::empty()).is_err() {
            return;
        }
    }
}

/// What the window around `page` is, once the page has the storage that the touch takes.
fn look(
    entry: &Entry,
    page: u64,
    write: bool,
    link: &Link,
) -> crate::error::Result<Vec<(std::ops::Range<u64>, Shown)>> {
    let (area, engine) = (&entry.area, entry.file.engine());
    let lock = engine.locks.write(&[area.ino]);
    let held = lock.of(area.ino);
    answer::store(held, engine, area, page, write)?;
    area.make_contiguous(held, engine, area.window_of(page))?;
    area.describe(held, engine, &engine.alloc.inode(area.ino)?, page, MOST, link)
}
