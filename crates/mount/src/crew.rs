//! Which server threads wait for requests: all, or only the one on the processor of the only client.
//!
//! ```text
//!   several clients, or nothing to do     one client that asks again and again
//!
//!   thread 0 ----+                        thread 0 ---- /dev/fuse     the client runs on
//!   thread 1 ----+- /dev/fuse             thread 1                    processor 0
//!   thread 2 ----+                        thread 2 } parked
//! ```
//!
//! Each thread is bound to a processor. The kernel wakes the one that has waited longest, so with one
//! client every request would go to the next processor, and waking a thread there costs more than
//! everything else a small request does. A parked thread has answered its request and is not back
//! at the device. It is never parked for long: another client, a slow request, or a few
//! milliseconds without an answer, and all are back.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::sched::{processor_of, switches};

/// So many requests in a row from one client, and a thread asks itself whether it is the only one.
const STREAK: u32 = 16;
/// As rarely as that, when it was mistaken again and again.
const RARELY: u32 = 1 << 14;
/// Requests between two looks at where the client runs: at first, and at most.
const LOOKS: (u32, u32) = (8, 128);
/// Having been alone for so many requests was worth it; a client that has stayed as long on a
/// processor is followed to another.
const SETTLED: u64 = 64;
/// After this time without an answer all threads go back to the device.
const TICK: Duration = Duration::from_millis(4);

/// Everybody waits at the device.
const ALL: usize = usize::MAX;

/// What a thread lets the others see; only it writes here.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Member {
    client: AtomicU32,
    served: AtomicU64,
}

/// The server threads of a mount.
#[derive(Debug)]
pub(crate) struct Crew {
    /// The processors that this process may use; thread `n` is bound to the `n`th, in turn.
    processors: Vec<usize>,
    members: Box<[Member]>,
    placed: AtomicUsize,
    /// The only thread that waits at the device, or [`ALL`].
    alone: AtomicUsize,
    /// How long a streak has to be at present.
    streak: AtomicU32,
    /// Whether one of the parked threads is watching the clock.
    watched: Mutex<bool>,
    changed: Condvar,
}

/// What a thread knows for itself.
#[derive(Debug)]
struct Own {
    me: usize,
    client: u32,
    streak: u32,
    /// What the others had served when this thread last asked itself.
    seen: Vec<u64>,
    /// Requests since this thread is alone, the next look, and the distance to the one after it.
    alone_for: u64,
    look_at: u64,
    look_after: u32,
    switches: u64,
}

thread_local! {
    static OWN: RefCell<Option<Own>> = const { RefCell::new(None) };
}

impl Crew {
    /// `threads` threads over the processors that this process may use.
    pub(crate) fn new(threads: usize) -> Crew {
        Crew {
            processors: usable(),
            members: (0..threads).map(|_| Member::default()).collect(),
            placed: AtomicUsize::new(0),
            alone: AtomicUsize::new(ALL),
            streak: AtomicU32::new(STREAK),
            watched: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// Binds the calling thread to a processor, the first time it gets here.
    pub(crate) fn settle(&self) {
        OWN.with_borrow_mut(|own| {
            if own.is_none() {
                *own = Some(self.place());
            }
        });
    }

    #[cold]
    fn place(&self) -> Own {
        let me = self.placed.fetch_add(1, Ordering::Relaxed);
        if let Some(processor) = self.processor(me) {
            let mut one = CpuSet::new();
            one.set(processor);
            // Refused (a container may): the thread stays where the kernel puts it.
            let _ = sched_setaffinity(None, &one);
        }
        let seen = vec![0; self.members.len()];
        Own { me, client: 0, streak: 0, seen, alone_for: 0, look_at: 0, look_after: 0, switches: 0 }
    }

    fn processor(&self, member: usize) -> Option<usize> {
        self.processors.get(member.checked_rem(self.processors.len())?).copied()
    }

    /// A request of `client` has been answered. Returns when this thread is to wait for the next.
    pub(crate) fn answered(&self, client: u32) {
        OWN.with_borrow_mut(|own| {
            let Some(own) = own else { return };
            let Some(member) = self.members.get(own.me) else { return };
            member.served.store(member.served.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            if own.client != client {
                own.client = client;
                own.streak = 0;
                member.client.store(client, Ordering::Relaxed);
            }
            own.streak = own.streak.wrapping_add(1);
            match self.alone.load(Ordering::Relaxed) {
                ALL if own.streak.is_multiple_of(self.streak.load(Ordering::Relaxed)) => self.ask_oneself(own),
                ALL => own.alone_for = 0,
                alone if alone == own.me => self.alone(own),
                _ => {}
            }
            if self.is_parked(own.me) {
                own.alone_for = 0;
                self.park(own.me);
            }
        });
    }

    fn is_parked(&self, me: usize) -> bool {
        !matches!(self.alone.load(Ordering::Relaxed), alone if alone == ALL || alone == me)
    }

    /// After many requests of one client: if no thread has seen another, the one on its processor
    /// goes on alone.
    #[cold]
    fn ask_oneself(&self, own: &mut Own) {
        own.alone_for = 0;
        let mut only = true;
        for (n, member) in self.members.iter().enumerate().filter(|(n, _)| *n != own.me) {
            let served = member.served.load(Ordering::Relaxed);
            let idle = std::mem::replace(&mut own.seen[n], served) == served;
            only &= idle || member.client.load(Ordering::Relaxed) == own.client;
        }
        if only
            && self.members.len() > 1
            && let Some(there) = self.member_beside(own.client)
        {
            self.set(there);
        }
    }

    /// The thread that is bound to the processor on which the client runs.
    fn member_beside(&self, client: u32) -> Option<usize> {
        let processor = processor_of(client)?;
        let placed = self.placed.load(Ordering::Relaxed).min(self.members.len());
        (0..placed).find(|member| self.processor(*member) == Some(processor))
    }

    /// This thread serves alone: is that still right?
    fn alone(&self, own: &mut Own) {
        own.alone_for += 1;
        match own.alone_for {
            1 => {
                own.streak = own.streak.max(2);
                (own.look_after, own.switches) = (LOOKS.0, switches());
                own.look_at = u64::from(own.look_after);
            }
            // Another client has come.
            _ if own.streak == 1 => self.all_after(own.alone_for),
            now if now == own.look_at => self.look(own),
            _ => {}
        }
    }

    #[cold]
    fn look(&self, own: &mut Own) {
        let switches = switches();
        let slept = switches.saturating_sub(own.switches);
        own.switches = switches;
        if slept < u64::from(own.look_after) / 4 {
            // There was always a next request: this client has several under way at once.
            return self.all_after(0);
        }
        match self.member_beside(own.client) {
            Some(there) if there == own.me => {
                own.look_after = (own.look_after * 2).min(LOOKS.1);
                own.look_at += u64::from(own.look_after);
            }
            Some(there) if own.alone_for >= SETTLED => self.set(there),
            _ => self.all_after(own.alone_for),
        }
    }

    /// All wait again. If being alone for so short a time was not worth it, the next time it takes
    /// longer.
    fn all_after(&self, alone_for: u64) {
        let streak = match alone_for {
            SETTLED.. => STREAK,
            _ => (self.streak.load(Ordering::Relaxed) * 2).min(RARELY),
        };
        self.streak.store(streak, Ordering::Relaxed);
        self.set(ALL);
    }

    /// All wait again: what comes now takes its time, and others must not wait for it.
    pub(crate) fn all(&self) {
        if self.alone.load(Ordering::Relaxed) != ALL {
            self.set(ALL);
        }
    }

    #[cold]
    fn set(&self, alone: usize) {
        let _watched = self.watched.lock();
        self.alone.store(alone, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// One of the parked threads looks at every tick whether the one at the device gets on.
    #[cold]
    fn park(&self, me: usize) {
        let mut watched = self.watched.lock();
        let mut before = (ALL, 0);
        while self.is_parked(me) {
            if *watched {
                self.changed.wait(&mut watched);
                continue;
            }
            *watched = true;
            let late = self.changed.wait_for(&mut watched, TICK).timed_out();
            *watched = false;
            let alone = self.alone.load(Ordering::Relaxed);
            let Some(member) = self.members.get(alone) else { continue };
            let now = (alone, member.served.load(Ordering::Relaxed));
            if late && now == before {
                self.alone.store(ALL, Ordering::Relaxed);
                self.changed.notify_all();
            }
            before = now;
        }
        // Whoever watched may have left: the others choose another.
        self.changed.notify_all();
    }
}

/// The processors that this process may use.
pub(crate) fn usable() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => Vec::new(),
    }
}
