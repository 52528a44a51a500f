//! Mappings in a child of the process that made them: the child's side.
//!
//! ```text
//!   begin     pages that were not inherited become unresolved; three threads start:
//!     reader    reads faults from the kernel and queues them  -> helper
//!     helper    sends a request to the parent, maps the reply
//!     control   applies invalidations and acknowledges them
//! ```
//!
//! The child has the parent's mappings and nothing else of its pools. Storage is mapped from the same media.
//! Everything that needs a lock of the engine happens in the parent. If an invalidation arrives while a request is
//! pending, the reply may be older than the change, so the helper repeats the request.
//!
//! Only locks of the standard library are used here. `parking_lot` keeps a table of waiting threads; in a child
//! that table contains threads that do not exist.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::net::{RecvFlags, SendFlags};

use crate::mmap::address_space::area::{Area, Failure, Shown};
use crate::mmap::fault::service::{Mechanism, Service, find};
use crate::mmap::fork::channel::{self, Invalidation};
use crate::mmap::fork::parent::ANSWER;
use crate::mmap::kernel::userfault::{Fault, Userfault, spawn};
use crate::units::PAGE_SIZE;

/// This process's connection, if it is a child.
static CHILD: AtomicPtr<Child> = AtomicPtr::new(std::ptr::null_mut());

struct Child {
    mechanism: Mechanism,
    service: &'static Service,
    areas: Vec<Arc<Area>>,
    requests: OwnedFd,
    control: OwnedFd,
    queue: Mutex<VecDeque<Fault>>,
    waiting: Condvar,
}

/// How faults are resolved in this process, if it is a child.
pub(in crate::mmap) fn mechanism() -> Option<&'static Mechanism> {
    get().map(|child| &child.mechanism)
}

/// Whether this process is a child that has set up its parent's mappings.
pub(in crate::mmap) fn is_child() -> bool {
    get().is_some()
}

fn get() -> Option<&'static Child> {
    // SAFETY: set once, to a value that is never freed.
    unsafe { CHILD.load(Ordering::Acquire).as_ref() }
}

/// How often a request is repeated because of invalidations before its failure is accepted.
const MAX_TRIES: usize = 4;

/// Sets up the mappings in a new child; `sockets` are connected to the parent.
pub(in crate::mmap) fn begin(service: &'static Service, areas: &[Arc<Area>], sockets: Option<(OwnedFd, OwnedFd)>) {
    // Before anything else is mapped: the kernel could place that into the gaps.
    let closed = areas.iter().all(|area| area.close_gaps().is_ok());
    let started = match sockets {
        Some((requests, control)) if get().is_none() => start(service, areas, requests, control),
        _ => None,
    };
    let ready = closed && started.is_some_and(|()| areas.iter().all(|area| area.inherit().is_ok()));
    if !ready {
        areas.iter().for_each(|area| area.poison());
    }
}

fn start(service: &'static Service, areas: &[Arc<Area>], requests: OwnedFd, control: OwnedFd) -> Option<()> {
    let child = Box::leak(Box::new(Child {
        mechanism: Mechanism::Userfault(Userfault::new().ok()?),
        service,
        areas: areas.to_vec(),
        requests,
        control,
        queue: Mutex::default(),
        waiting: Condvar::new(),
    }));
    CHILD.store(child, Ordering::Release);
    let child = get()?;
    let Mechanism::Userfault(uffd) = &child.mechanism else { return None };
    spawn(c"pagestone-fault", move || child.read(uffd)).ok()?;
    spawn(c"pagestone-map", move || child.help(uffd)).ok()?;
    spawn(c"pagestone-inval", move || child.receive_invalidations()).ok()
}

impl Child {
    fn read(&self, uffd: &Userfault) {
        let mut faults = Vec::new();
        loop {
            if uffd.read(&mut faults).is_ok() && !faults.is_empty() {
                self.queue.lock().unwrap_or_else(PoisonError::into_inner).extend(faults.iter());
                self.waiting.notify_one();
            }
        }
    }

    fn help(&self, uffd: &Userfault) {
        loop {
            let fault = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    match queue.pop_front() {
                        Some(fault) => break fault,
                        None => queue = self.waiting.wait(queue).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            let entries = self.service.entries();
            let Some(entry) = find(&entries, fault.addr) else {
                uffd.wake(fault.addr..fault.addr + PAGE_SIZE as usize);
                continue;
            };
            let (area, page) = (&entry.area, entry.area.page_at(fault.addr));
            let region = &entry.file.engine().alloc.region;
            for tries in 0.. {
                let changes = area.changes();
                let done = match self.ask(area, page, fault.write || fault.protected) {
                    Ok(spans) => area.map_described(region, changes, &spans),
                    // Each attempt of the parent may send an invalidation and fail: the last failure is accepted.
                    Err(failure) if tries >= MAX_TRIES => area.record_failure(area.changes(), page, failure),
                    Err(failure) => area.record_failure(changes, page, failure),
                };
                if done {
                    break;
                }
            }
            uffd.wake(area.addr(&area.window_of(page)));
        }
    }

    fn ask(&self, area: &Area, page: u64, write: bool) -> Result<Vec<(std::ops::Range<u64>, Shown)>, Failure> {
        let gone = || Failure::Other("the parent process is gone".into());
        let mut answer = [0; ANSWER];
        let asked = channel::send(&self.requests, &[area.id, page, u64::from(write)], SendFlags::empty());
        let words = asked.and_then(|()| channel::receive(&self.requests, &mut answer, RecvFlags::empty()));
        let words = words.map_err(|_| gone())?;
        match answer[0] {
            _ if words < 2 => Err(gone()),
            0 => Ok(answer[2..words].chunks_exact(3).map(|w| (w[0]..w[1], Shown::of(w[2]))).collect()),
            1 => Err(Failure::NoSpace),
            _ => Err(Failure::Other("the parent process could not answer".into())),
        }
    }

    fn receive_invalidations(&self) {
        let mut message = [0; 5];
        while let Ok(5) = channel::receive(&self.control, &mut message, RecvFlags::empty()) {
            let [number, change, id, start, end] = message;
            if let (Some(change), Some(area)) = (Invalidation::of(change), self.areas.iter().find(|area| area.id == id))
            {
                area.apply_invalidation(change, start..end);
            }
            if channel::send(&self.control, &[number], SendFlags::empty()).is_err() {
                return;
            }
        }
    }
}
