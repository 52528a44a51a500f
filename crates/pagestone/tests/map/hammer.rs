//! Threads that store, read, write, punch, truncate, refresh, clone, merge, map and commit at once, with a
//! child process that stores and reads through inherited mappings, and without one.
//!
//! ```text
//!   page p:  [ slot of thread 0 | slot of thread 1 | ... ]   8 bytes each
//!   a slot:  file's mark | page | thread | number            who may have written it
//! ```
//!
//! How it can fail: a store lands in memory that is not the file's (a thread reads its own slot
//! and misses what it stored, though nothing cut the page since); a page of another file is shown
//! (its mark is not this file's); a page is shown at the wrong offset (its number is not p); a
//! page that nobody cut is an error; a store to a clone shows in the original (its mark), or one to the
//! original in a clone (it is not what it was).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagestone::mmap::{MapOptions, Mapping};
use pagestone::{Error, File};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::fork::Child;
use crate::place::{PAGE, Place, alone};

const PAGES: u64 = 1200;
const THREADS: u64 = 4;
/// The last is that of a child process.
const SLOTS: u64 = THREADS + 1;
const LEN: u64 = PAGES * PAGE;
const MARK: u64 = 0xA5;
/// What is stored to clones begins with this.
const CLONED: u64 = 0xC3;

fn word(page: u64, thread: u64, number: u64) -> u64 {
    MARK << 56 | page << 40 | thread << 36 | (number & 0xF_FFFF_FFFF)
}

/// How often each page was cut: begun, and done. In memory that a child shares.
struct Cuts {
    begun: &'static [AtomicU64],
    done: &'static [AtomicU64],
}

impl Cuts {
    fn new() -> Cuts {
        let zeros = || {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            // SAFETY: fresh zeroed memory of this size and alignment, never given back.
            unsafe {
                let at = libc::mmap(std::ptr::null_mut(), PAGES as usize * 8, prot, flags, -1, 0);
                assert_ne!(at, libc::MAP_FAILED);
                std::slice::from_raw_parts(at.cast::<AtomicU64>(), PAGES as usize)
            }
        };
        Cuts { begun: zeros(), done: zeros() }
    }
    fn cut(&self, pages: std::ops::Range<u64>, change: impl FnOnce()) {
        pages.clone().for_each(|p| _ = self.begun[p as usize].fetch_add(1, Ordering::SeqCst));
        change();
        pages.for_each(|p| _ = self.done[p as usize].fetch_add(1, Ordering::SeqCst));
    }
    /// The number of cuts, if none is under way.
    fn still(&self, page: u64) -> Option<u64> {
        let done = self.done[page as usize].load(Ordering::SeqCst);
        (self.begun[page as usize].load(Ordering::SeqCst) == done).then_some(done)
    }
}

struct Worker<'a> {
    me: u64,
    /// It has the mappings and nothing else.
    child: bool,
    /// Pages that are cut together.
    granule: u64,
    file: &'a File,
    maps: Vec<Mapping>,
    cuts: &'a Cuts,
    rng: SmallRng,
    number: u64,
    /// What this thread's slot of each page must hold, while the page's cuts are as many.
    expect: Vec<Option<(u64, u64)>>,
    source: std::fs::File,
    place: &'a Place,
    /// A clone of the file, and what is in it.
    clone: Option<(File, Vec<u8>)>,
}

/// A pool refuses to share what a child that does not answer may be storing to.
fn is_slow_child(e: &Error) -> bool {
    e.to_string().contains("does not answer")
}

impl Worker<'_> {
    /// Makes a clone, or looks at the one there is and takes it away.
    fn change_clone(&mut self) {
        let name = format!("clone of {}", self.me);
        let Some((clone, model)) = self.clone.take() else {
            let made = match self.place.pool.root().clone_file(name.as_bytes(), self.file.ino()) {
                Err(e) if is_slow_child(&e) => return,
                made => made.unwrap(),
            };
            let clone = self.place.pool.node(made.ino).unwrap().open().unwrap();
            let mut model = vec![0; made.size as usize];
            assert_eq!(clone.read_at(&mut model, 0).unwrap(), model.len());
            for (i, bytes) in model.chunks_exact(PAGE as usize).enumerate() {
                for thread in 0..SLOTS {
                    let value = u64::from_le_bytes(bytes[thread as usize * 8..][..8].try_into().unwrap());
                    let known = value == 0 || (value & !0xF_FFFF_FFFF) == word(i as u64, thread, 0);
                    assert!(known, "a clone's page {i}, slot {thread}: {value:#x} was never stored there");
                }
            }
            if !model.is_empty() {
                let map = clone.map(0..model.len() as u64, &MapOptions::shared()).unwrap();
                for _ in 0..5 {
                    let at = self.rng.random_range(0..model.len() / 8) * 8;
                    let value = CLONED << 56 | at as u64;
                    map.store(at as u64, value).unwrap();
                    model[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
            self.clone = Some((clone, model));
            return;
        };
        let mut now = vec![0; model.len()];
        assert_eq!(clone.read_at(&mut now, 0).unwrap(), now.len());
        assert!(now == model, "a clone has changed");
        self.place.pool.root().unlink(name.as_bytes()).unwrap();
    }

    fn at(&self, page: u64) -> u64 {
        page * PAGE + self.me * 8
    }

    /// An error must have a reason; the mapping is refreshed.
    fn excused(&self, map: &Mapping, page: u64, error: &Error) {
        assert!(matches!(error, Error::Revoked(_) | Error::BeyondEnd(_)), "page {page}: {error}");
        assert!(self.cuts.begun[page as usize].load(Ordering::SeqCst) > 0, "page {page} was never cut: {error}");
        map.refresh(0..map.len()).unwrap();
    }

    fn store(&mut self) {
        let page = self.rng.random_range(0..PAGES);
        self.number += 1;
        let value = word(page, self.me, self.number);
        let before = self.cuts.still(page);
        let at = self.at(page);
        let map = &self.maps[self.rng.random_range(0..self.maps.len())];
        let stored = match self.rng.random_range(0..8) {
            0 if !self.child => self.file.write_all_at(&value.to_le_bytes(), at),
            1 => self.kernel_store(map, at, value),
            _ => map.store(at, value),
        };
        match stored {
            Ok(()) => {
                let after = self.cuts.still(page);
                self.expect[page as usize] = before.filter(|_| before == after).map(|cuts| (value, cuts));
            }
            Err(e) => {
                self.expect[page as usize] = None;
                self.excused(map, page, &e);
            }
        }
    }

    fn kernel_store(&self, map: &Mapping, at: u64, value: u64) -> Result<(), Error> {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::FileExt;
        self.source.write_all_at(&value.to_le_bytes(), 0).unwrap();
        // SAFETY: the target is the mapping, to which no reference exists.
        let n =
            unsafe { libc::pread(self.source.as_raw_fd(), map.as_mut_ptr().unwrap().add(at as usize).cast(), 8, 0) };
        if n == 8 { Ok(()) } else { map.load::<u64>(at).map(drop).and(Err(Error::Revoked(at))) }
    }

    fn look(&mut self) {
        let page = self.rng.random_range(0..PAGES);
        let before = self.cuts.still(page);
        let map = &self.maps[self.rng.random_range(0..self.maps.len())];
        let mut line = [0; 8 * SLOTS as usize];
        let seen = match self.rng.random_range(0..4) {
            0 if !self.child => self.file.read_at(&mut line, page * PAGE).map(drop),
            _ => map.load::<u64>(self.at(page)).and_then(|own| {
                map.read(page * PAGE, &mut line)?;
                line[self.me as usize * 8..][..8].copy_from_slice(&own.to_le_bytes());
                Ok(())
            }),
        };
        if let Err(e) = seen {
            return self.excused(map, page, &e);
        }
        let after = self.cuts.still(page);
        for thread in 0..SLOTS {
            let value = u64::from_le_bytes(line[thread as usize * 8..][..8].try_into().unwrap());
            let known = value == 0 || (value & !0xF_FFFF_FFFF) == word(page, thread, 0);
            assert!(known, "page {page}, slot {thread}: {value:#x} was never stored there");
        }
        let own = u64::from_le_bytes(line[self.me as usize * 8..][..8].try_into().unwrap());
        if let Some((value, cuts)) = self.expect[page as usize]
            && before == Some(cuts)
            && after == Some(cuts)
        {
            assert_eq!(own, value, "page {page}: a store of thread {} is lost ({value:#x})", self.me);
        }
    }

    fn run(&mut self, until: Instant, rounds: &AtomicU64) {
        while Instant::now() < until {
            match self.rng.random_range(0..100) {
                0..3 if !self.child => self.change(),
                0..40 => self.store(),
                _ => self.look(),
            }
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn change(&mut self) {
        let first = self.rng.random_range(0..PAGES);
        let end = (first + 1 + self.rng.random_range(0..64)).min(PAGES);
        let start = first / self.granule * self.granule;
        let cut = start..end.next_multiple_of(self.granule).min(PAGES);
        match self.rng.random_range(0..10) {
            0 => self.cuts.cut(start..PAGES, || {
                self.file.set_len(first * PAGE).unwrap();
                self.file.set_len(LEN).unwrap();
            }),
            1..=6 => self
                .cuts
                .cut(cut, || self.file.punch_hole(first * PAGE..first * PAGE + ((end - first) * PAGE)).unwrap()),
            7 => self.file.allocate_keep_size(first * PAGE..first * PAGE + ((end - first) * PAGE)).unwrap(),
            8 => self.change_clone(),
            _ => {
                let i = self.rng.random_range(0..self.maps.len());
                self.maps[i] = self.file.map(0..LEN, &MapOptions::shared()).unwrap();
            }
        }
    }
}

/// A clone that is mapped atomically and committed, whole: more than a record takes, so that a base is merged.
fn committer(place: &Place, file: &File, until: Instant) {
    let mut number = 0u8;
    while Instant::now() < until {
        let attr = match place.pool.root().clone_file(b"committed", file.ino()) {
            Err(e) if is_slow_child(&e) => continue,
            made => made.unwrap(),
        };
        let clone = place.pool.node(attr.ino).unwrap().open().unwrap();
        let pages = attr.size / PAGE;
        if pages > 0 {
            number = number.wrapping_add(1);
            let private = clone.map(0..pages * PAGE, &MapOptions::private()).unwrap();
            let mut atomic = clone.map_atomic(0..pages * PAGE).unwrap();
            (0..pages).for_each(|page| atomic.store(page * PAGE, number).unwrap());
            match atomic.commit() {
                Err(Error::NoSpace) => {}
                Err(e) if is_slow_child(&e) => {}
                done => {
                    done.unwrap();
                    let mut seen = [0];
                    for page in 0..pages {
                        clone.read_at(&mut seen, page * PAGE).unwrap();
                        assert_eq!(seen, [number], "page {page} of a commit");
                        private.load::<u8>(page * PAGE).unwrap();
                    }
                }
            }
        }
        drop(clone);
        place.pool.root().unlink(b"committed").unwrap();
    }
}

/// Somebody else's file, which takes up whatever is freed.
fn neighbour(place: &Place, until: Instant) {
    let file = place.file("neighbour");
    let bytes = vec![0x5A; 1 << 20];
    while Instant::now() < until {
        for i in 0..8 {
            file.write_all_at(&bytes, i << 20).unwrap();
        }
        place.pool.sync().unwrap();
        file.set_len(0).unwrap();
    }
}

fn hammer(place: &Place, seed: u64, time: Duration, with_child: bool) {
    let (file, cuts) = (place.sparse("hammered", LEN), Cuts::new());
    let until = Instant::now() + time;
    let rounds = Arc::new(AtomicU64::new(0));
    let worker = |me: u64, maps: Vec<Mapping>| Worker {
        me,
        child: me == THREADS,
        granule: place.granule,
        file: &file,
        maps,
        cuts: &cuts,
        rng: SmallRng::seed_from_u64(seed.wrapping_add(me)),
        number: 0,
        expect: vec![None; PAGES as usize],
        source: tempfile::tempfile_in("/dev/shm").unwrap(),
        place,
        clone: None,
    };
    let map = || file.map(0..LEN, &MapOptions::shared()).unwrap();
    let child = with_child.then(|| {
        let inherited = vec![map(), map()];
        Child::fork(|_| worker(THREADS, inherited).run(until, &rounds))
    });
    std::thread::scope(|scope| {
        scope.spawn(|| neighbour(place, until));
        scope.spawn(|| committer(place, &file, until));
        for me in 0..THREADS {
            let (worker, rounds) = (worker(me, vec![map(), map()]), rounds.clone());
            scope.spawn(move || { worker }.run(until, &rounds));
        }
    });
    if let Some(child) = child {
        child.join();
    }
    println!("{} rounds", rounds.load(Ordering::Relaxed));
}

/// On every kind of media and every granularity.
fn everywhere(with_child: bool) {
    let seconds: u64 = std::env::var("PAGESTONE_MAP_SECONDS").map_or(2, |s| s.parse().unwrap());
    let seed = std::env::var("PAGESTONE_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("PAGESTONE_SEED={seed}");
    let test = |place: &Place| hammer(place, seed, Duration::from_secs(seconds), with_child);
    alone(|| {
        Place::each(test);
        for huge in [Place::huge_tmpfs(), Place::hugetlbfs()] {
            match huge {
                Ok(place) => Place::with(place, test),
                Err(why) => println!("skipped: {why}"),
            }
        }
    });
}

#[test]
fn threads_and_a_child_that_do_everything_at_once_see_only_what_was_stored_there() {
    everywhere(true);
}

/// While a child has mappings, the fault reader leaves all to its helpers; without one it answers itself.
#[test]
fn threads_that_do_everything_at_once_see_only_what_was_stored_there() {
    everywhere(false);
}
