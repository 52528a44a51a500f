//! A child process that inherited mappings.
//!
//! How it can fail: a store of the child to a hole stays in memory of the child alone; the child
//! goes on showing zeros, or a page that was given back; a child that is stopped holds up the
//! parent; an operation of the child waits for a lock whose holder it does not have.

use std::fs::File as OsFile;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use pagestone::Error;
use pagestone::mmap::{MapOptions, Mapping};

use crate::place::{PAGE, Place, alone};

/// A child, and a step-by-step conversation with it.
pub(crate) struct Child {
    pid: i32,
    to: std::io::PipeWriter,
    from: std::io::PipeReader,
}

/// The child's side.
pub(crate) struct Parent {
    to: std::io::PipeWriter,
    from: std::io::PipeReader,
}

impl Parent {
    /// Says that a step is done, and waits for the next.
    fn step(&mut self) {
        self.to.write_all(b"x").unwrap();
        self.from.read_exact(&mut [0]).unwrap();
    }
}

impl Child {
    pub(crate) fn fork(life: impl FnOnce(&mut Parent)) -> Child {
        let (from, child_to) = std::io::pipe().unwrap();
        let (child_from, to) = std::io::pipe().unwrap();
        // SAFETY: the child runs the closure and ends without returning.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            drop((from, to));
            let mut parent = Parent { to: child_to, from: child_from };
            // What the harness keeps of the output ends with this process.
            std::panic::set_hook(Box::new(|why| {
                let line = format!("in a child: {why}\n");
                // SAFETY: the bytes live until the call is over.
                unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
            }));
            let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life(&mut parent)));
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(i32::from(lived.is_err())) };
        }
        Child { pid, to, from }
    }

    /// Waits until the child has done its step.
    fn done(&mut self) {
        self.from.read_exact(&mut [0]).expect("the child is there");
    }

    fn go_on(&mut self) {
        self.to.write_all(b"x").unwrap();
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a child of ours that was not waited for yet.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    /// As `join`, of a child that may hang.
    fn join_within(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut status = 0;
        // SAFETY: as above.
        while unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } == 0 {
            if Instant::now() > deadline {
                self.signal(libc::SIGKILL);
                panic!("the child hangs");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(status, 0, "the child failed");
    }

    pub(crate) fn join(self) {
        let mut status = 0;
        // SAFETY: as above.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, 0) }, self.pid);
        assert_eq!(status, 0, "the child failed");
    }
}

#[test]
fn stores_of_parent_and_child_are_seen_by_both_holes_included() {
    Place::each_alone(|place| {
        let file = place.sparse("a", 64 << 20);
        file.write_all_at(&[1; 8192], 0).unwrap();
        let map = file.map(0..64 << 20, &MapOptions::shared()).unwrap();
        let reader = file.map(0..64 << 20, &MapOptions::read_only()).unwrap();
        // One hole that is mapped already, and one that nobody has touched.
        assert_eq!(map.load::<u8>(4 << 20).unwrap(), 0);
        let mut child = Child::fork(|parent| {
            assert_eq!(map.load::<u8>(5000).unwrap(), 1);
            map.store::<u8>(5000, 2).unwrap();
            map.store::<u64>(4 << 20, 44).unwrap();
            map.store::<u64>(40 << 20, 55).unwrap();
            assert_eq!((map.load::<u64>(4 << 20).unwrap(), reader.load::<u64>(40 << 20).unwrap()), (44, 55));
            // Holes seen as such by the child, stored to by the parent afterwards.
            assert_eq!((map.load::<u64>(20 << 20).unwrap(), reader.load::<u64>(21 << 20).unwrap()), (0, 0));
            parent.step();
            assert_eq!((map.load::<u64>(20 << 20).unwrap(), reader.load::<u64>(21 << 20).unwrap()), (66, 77));
            // The kernel stores to a hole of the child.
            let version = OsFile::open("/proc/version").unwrap();
            // SAFETY: the target is the mapping, to which no reference exists.
            let n = unsafe { libc::read(version.as_raw_fd(), map.as_mut_ptr().unwrap().add(50 << 20).cast(), 5) };
            assert_eq!(n, 5);
            assert!(matches!(file.read_at(&mut [0; 8], 0), Err(Error::Forked)));
            assert!(matches!(file.write_all_at(&[0; 8], 0), Err(Error::Forked)));
            assert!(matches!(place.pool.root().lookup(b"a"), Err(Error::Forked)));
        });
        child.done();
        assert_eq!(map.load::<u8>(5000).unwrap(), 2);
        assert_eq!((map.load::<u64>(4 << 20).unwrap(), reader.load::<u64>(40 << 20).unwrap()), (44, 55));
        map.store::<u64>(20 << 20, 66).unwrap();
        file.write_all_at(&77u64.to_le_bytes(), 21 << 20).unwrap();
        child.go_on();
        child.join();
        assert_eq!(map.slice(50 << 20..(50 << 20) + 5).unwrap().to_vec().unwrap(), b"Linux");
        let mut word = [0; 8];
        file.read_at(&mut word, 40 << 20).unwrap();
        assert_eq!(u64::from_le_bytes(word), 55);
    });
}

/// Counts in every page, from both processes.
fn count(map: &Mapping, pages: u64) {
    for page in 0..pages {
        let mut seen = map.load::<u64>(page * PAGE).unwrap();
        while let Err(other) = map.compare_exchange(page * PAGE, seen, seen + 1).unwrap() {
            seen = other;
        }
    }
}

#[test]
fn nothing_that_parent_and_children_count_in_holes_is_lost() {
    Place::each_alone(|place| {
        let file = place.sparse("a", 4 << 20);
        let map = file.map(0..4 << 20, &MapOptions::shared()).unwrap();
        let children: Vec<_> = (0..3).map(|_| Child::fork(|_| count(&map, 1024))).collect();
        count(&map, 1024);
        children.into_iter().for_each(Child::join);
        let wrong: Vec<u64> = (0..1024).filter(|page| map.load::<u64>(page * PAGE).unwrap() != 4).collect();
        assert!(wrong.is_empty(), "pages {wrong:?}");
    });
}

/// Fails if a child needs a lock that a thread of the parent, on its way in or out, held at the fork.
#[test]
fn a_child_that_is_forked_while_threads_come_and_go_has_its_mappings() {
    let test = |place: &Place| {
        let file = place.sparse("a", 1 << 20);
        let map = file.map(0..1 << 20, &MapOptions::shared()).unwrap();
        let enough = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !enough.load(std::sync::atomic::Ordering::Relaxed) {
                        let some = [(); 8].map(|()| std::thread::spawn(|| ()));
                        some.into_iter().for_each(|thread| thread.join().unwrap());
                    }
                });
            }
            let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for round in 0..200u64 {
                    let child = Child::fork(|_| map.store(round * 8, round + 1).unwrap());
                    child.join_within(Duration::from_secs(30));
                    assert_eq!(map.load::<u64>(round * 8).unwrap(), round + 1);
                }
            }));
            enough.store(true, std::sync::atomic::Ordering::Relaxed);
            all.unwrap();
        });
    };
    alone(|| Place::with(Place::tmpfs(), test));
}

#[test]
fn what_is_cut_is_an_error_in_the_child_too_and_growth_and_refresh_bring_it_back() {
    Place::each_alone(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let map = file.map(0..1 << 20, &MapOptions::shared()).unwrap();
        let private = file.map(0..1 << 20, &MapOptions::private()).unwrap();
        private.store::<u8>(0, 9).unwrap();
        let mut child = Child::fork(|parent| {
            assert_eq!((map.load::<u8>(500_000).unwrap(), private.load::<u8>(0).unwrap()), (7, 9));
            private.store::<u8>(0, 8).unwrap();
            parent.step();
            assert!(matches!(map.load::<u8>(500_000), Err(Error::Revoked(_))));
            assert!(matches!(private.load::<u8>(500_000), Err(Error::Revoked(_))));
            assert!(matches!(map.load::<u8>(900_000), Err(Error::Revoked(_))));
            parent.step();
            map.refresh(0..1 << 20).unwrap();
            assert_eq!(map.load::<u8>(500_000).unwrap(), 0);
            assert_eq!(map.load::<u8>(900_000).unwrap(), 0);
            map.store::<u8>(900_000, 5).unwrap();
        });
        child.done();
        assert_eq!(private.load::<u8>(0).unwrap(), 9);
        file.punch_hole(400_000..400_000 + 200_000).unwrap();
        file.set_len(800_000).unwrap();
        place.file("b").write_all_at(&[9; 4 << 20], 0).unwrap();
        child.go_on();
        child.done();
        file.set_len(1 << 20).unwrap();
        // The child's faults are answered though the mapping is gone here.
        drop(map);
        child.go_on();
        child.join();
        let mut byte = [0];
        file.read_at(&mut byte, 900_000).unwrap();
        assert_eq!(byte, [5]);
    });
}

#[test]
fn a_stopped_child_neither_holds_up_the_parent_nor_sees_another_files_bytes() {
    Place::each_alone(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; 4 << 20], 0).unwrap();
        let map = file.map(0..4 << 20, &MapOptions::shared()).unwrap();
        let mut child = Child::fork(|parent| {
            parent.step();
            parent.step();
            for page in 0..768 {
                match map.load::<u8>(page * PAGE) {
                    Ok(byte) => assert!(byte == 7, "page {page} holds {byte}"),
                    Err(e) => assert!(matches!(e, Error::Revoked(_)), "{e}"),
                }
            }
        });
        child.done();
        child.signal(libc::SIGSTOP);
        // SAFETY: waits for a child of ours to have stopped.
        assert_eq!(unsafe { libc::waitpid(child.pid, std::ptr::null_mut(), libc::WUNTRACED) }, child.pid);
        let begun = Instant::now();
        file.punch_hole(0..2 << 20).unwrap();
        file.punch_hole(2 << 20..(2 << 20) + (1 << 20)).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        let other = place.file("b");
        while other.append(&[9; 1 << 20]).is_ok() {}
        child.go_on();
        child.signal(libc::SIGCONT);
        child.done();
        child.go_on();
        child.join();
        other.set_len(0).unwrap();
    });
}

#[test]
fn a_change_that_a_stopped_child_had_no_room_for_is_told_later_and_pinned_until_then() {
    const PAGES: u64 = 4000;
    Place::each_alone(|place| {
        let file = place.file("a");
        file.write_all_at(&[7; (PAGES * PAGE) as usize], 0).unwrap();
        // Whole frames would need a page for a table.
        (1..PAGES).step_by(512).for_each(|page| file.punch_hole(page * PAGE..page * PAGE + PAGE).unwrap());
        let map = file.map(0..PAGES * PAGE, &MapOptions::shared()).unwrap();
        let mut child = Child::fork(|parent| {
            parent.step();
            parent.step();
            for page in 0..PAGES {
                match map.load::<u8>(page * PAGE) {
                    Ok(0) => assert_eq!(page % 512, 1),
                    Ok(byte) => assert!(byte == 7, "page {page} holds {byte}"),
                    Err(e) => assert!(matches!(e, Error::Revoked(_)), "{e}"),
                }
            }
            // All that it had no room for has come in the end.
            assert!(matches!(map.load::<u8>(2 * (PAGES / 2 - 2) * PAGE), Err(Error::Revoked(_))));
        });
        child.done();
        child.signal(libc::SIGSTOP);
        // SAFETY: waits for a child of ours to have stopped.
        assert_eq!(unsafe { libc::waitpid(child.pid, std::ptr::null_mut(), libc::WUNTRACED) }, child.pid);
        // More messages than a socket holds.
        (0..PAGES / 2 - 1).for_each(|i| file.punch_hole(2 * i * PAGE..2 * i * PAGE + PAGE).unwrap());
        child.signal(libc::SIGCONT);
        // One that is answered, as far as the child has room for it now.
        file.punch_hole((PAGES - 1) * PAGE..(PAGES - 1) * PAGE + PAGE).unwrap();
        let other = place.file("b");
        while other.append(&[9; 1 << 20]).is_ok() {}
        child.go_on();
        child.done();
        child.go_on();
        child.join();
        other.set_len(0).unwrap();
    });
}

#[test]
fn a_childs_child_and_a_program_that_is_started_get_no_mapping() {
    Place::each_alone(|place| {
        let file = place.sparse("a", 8 << 20);
        file.write_all_at(&[7; 4096], 0).unwrap();
        let map = file.map(0..8 << 20, &MapOptions::shared()).unwrap();
        Child::fork(|_| {
            map.store::<u8>(4 << 20, 1).unwrap();
            Child::fork(|_| {
                assert!(matches!(map.load::<u8>(0), Err(Error::Forked)));
                assert!(matches!(map.store::<u8>(6 << 20, 1), Err(Error::Forked)));
            })
            .join();
            map.store::<u8>(5 << 20, 1).unwrap();
        })
        .join();
        assert!(std::process::Command::new("true").status().unwrap().success());
        map.store::<u8>(7 << 20, 1).unwrap();
        assert_eq!(map.load::<u8>(5 << 20).unwrap(), 1);
    });
}

/// Fails if what lies below a child's private mapping is replaced without the child: it would show what others have
/// put there since, or lose what it stored for itself.
#[test]
fn a_private_mapping_of_a_child_never_shows_another_files_bytes() {
    let hugetlbfs = |test: &dyn Fn(&Place)| match Place::hugetlbfs() {
        Ok(place) => alone(|| Place::with(place, test)),
        Err(why) => println!("skipped: {why}"),
    };
    let test = |place: &Place| {
        const PAGES: u64 = 1024;
        let file = place.file("a");
        file.write_all_at(&vec![7; (PAGES * PAGE) as usize], 0).unwrap();
        let (shared, map) =
            (file.map(0..PAGES * PAGE, &MapOptions::shared()), file.map(0..PAGES * PAGE, &MapOptions::private()));
        let (shared, map) = (shared.unwrap(), map.unwrap());
        let look = |wanted: &dyn Fn(u64, u8) -> bool| {
            for page in 0..PAGES {
                let byte = map.load::<u8>(page * PAGE + 1).unwrap();
                assert!(wanted(page, byte), "{}: page {page} holds {byte}", place.name);
            }
        };
        let mut child = Child::fork(|parent| {
            map.store(3 * PAGE, 8u8).unwrap();
            look(&|_, byte| byte == 7);
            parent.step();
            look(&|page, byte| byte == 7 || byte == 9 && page < 32);
            assert_eq!(map.load::<u8>(3 * PAGE).unwrap(), 8);
        });
        child.done();
        file.write_atomic(&[(0, &[9; 32 * PAGE as usize])]).unwrap();
        assert_eq!(shared.load::<u8>(PAGE).unwrap(), 9);
        place.pool.sync().unwrap();
        let other = place.file("b");
        while other.append(&[5; 1 << 20]).is_ok() {}
        while other.append(&[5; PAGE as usize]).is_ok() {}
        child.go_on();
        child.join();
    };
    Place::each_alone(test);
    hugetlbfs(&test);
}

#[test]
fn a_child_is_answered_or_hears_an_error_while_another_one_is_stopped() {
    let place = match Place::hugetlbfs() {
        Ok(place) => place,
        Err(e) => return println!("skipped: {e}"),
    };
    alone(|| {
        Place::with(place, |place| {
            let file = place.file("a");
            file.write_all_at(&[1; PAGE as usize], 0).unwrap();
            file.write_all_at(&[2; 2 * PAGE as usize], 8 << 20).unwrap();
            let map = file.map(0..16 << 20, &MapOptions::shared()).unwrap();
            place.pool.root().clone_file(b"clone", file.attr().unwrap().ino).unwrap();
            let mut stopped = Child::fork(Parent::step);
            stopped.done();
            stopped.signal(libc::SIGSTOP);
            // Its piece has to be moved, and the stopped one would have to apply an invalidation.
            let other = Child::fork(|_| match map.load::<u8>(8 << 20) {
                Ok(byte) => assert_eq!(byte, 2),
                Err(e) => assert!(e.to_string().contains("could not answer"), "{e}"),
            });
            other.join_within(Duration::from_secs(60));
            stopped.signal(libc::SIGCONT);
            stopped.go_on();
            stopped.join();
        });
    });
}
