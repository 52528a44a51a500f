//! A model of the locks that faults, merges and moves of storage take, run under every kind of schedule.
//!
//! ```text
//!   program    touches a page      --fault-->  reader: tries the inode; reads the chain; wakes
//!                                                 `- the inode is busy --> helper: waits for it
//!   merger     inode, remap, chain (write)     `mremap` ends when the reader has read of it
//!   mover      inode, look (chain), remap, chain (read)
//! ```
//!
//! How it can fail: the reader waits for a lock whose holder waits for the reader. The two orders that were found to do
//! that, and that the ranks of the locks now forbid, are kept here as the things that the model has to find: with
//! them it deadlocks, with the order of today it does not.

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::collections::VecDeque;

use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;

/// When `mremap` is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// Before the chain is locked.
    Today,
    /// A merge has the chain, exclusively.
    MergeHoldsChain,
    /// A move has the chain, shared.
    MoveHoldsChain,
}

/// A reader-writer lock as fair as the engine's: who comes to read waits behind a writer who waits.
#[derive(Default)]
struct Fair {
    /// Readers inside, whether a writer is, writers waiting.
    state: Mutex<(usize, bool, usize)>,
    changed: Condvar,
}

impl Fair {
    fn read<R>(&self, run: impl FnOnce() -> R) -> R {
        let mut state = self.state.lock().unwrap();
        while state.1 || state.2 > 0 {
            state = self.changed.wait(state).unwrap();
        }
        state.0 += 1;
        drop(state);
        let result = run();
        self.state.lock().unwrap().0 -= 1;
        self.changed.notify_all();
        result
    }

    fn write<R>(&self, run: impl FnOnce() -> R) -> R {
        let mut state = self.state.lock().unwrap();
        state.2 += 1;
        while state.1 || state.0 > 0 {
            state = self.changed.wait(state).unwrap();
        }
        state.2 -= 1;
        state.1 = true;
        drop(state);
        let result = run();
        self.state.lock().unwrap().1 = false;
        self.changed.notify_all();
        result
    }
}

/// Something that happens once.
#[derive(Default)]
struct Once {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Once {
    fn set(&self) {
        *self.done.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut done = self.done.lock().unwrap();
        while !*done {
            done = self.changed.wait(done).unwrap();
        }
    }
}

/// What waits to be read, in order.
struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    changed: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { items: Mutex::new(VecDeque::new()), changed: Condvar::new() }
    }
}

impl<T> Queue<T> {
    fn push(&self, item: T) {
        self.items.lock().unwrap().push_back(item);
        self.changed.notify_one();
    }

    fn pop(&self) -> T {
        let mut items = self.items.lock().unwrap();
        loop {
            match items.pop_front() {
                Some(item) => return item,
                None => items = self.changed.wait(items).unwrap(),
            }
        }
    }
}

/// What the kernel tells the reader.
enum Event {
    /// A program waits for a page of this file.
    Fault(usize, Arc<Once>),
    /// Somebody waits in `mremap`.
    Remap(Arc<Once>),
    Stop,
}

#[derive(Default)]
struct Process {
    /// File 0 has faults; 1 is the file that is merged into, or moved; 2 is another one of those.
    inodes: [Mutex<()>; 3],
    chain: Fair,
    events: Queue<Event>,
    helped: Queue<Event>,
}

impl Process {
    fn remap(&self) {
        let read = Arc::new(Once::default());
        self.events.push(Event::Remap(read.clone()));
        read.wait();
    }

    fn touch(&self, file: usize) {
        let answered = Arc::new(Once::default());
        self.events.push(Event::Fault(file, answered.clone()));
        answered.wait();
    }

    fn read_events(&self) {
        loop {
            match self.events.pop() {
                Event::Stop => return self.helped.push(Event::Stop),
                Event::Remap(read) => read.set(),
                Event::Fault(file, answered) => match self.inodes[file].try_lock() {
                    Ok(_inode) => {
                        self.chain.read(|| ());
                        answered.set();
                    }
                    Err(_) => self.helped.push(Event::Fault(file, answered)),
                },
            }
        }
    }

    fn help(&self) {
        while let Event::Fault(file, answered) = self.helped.pop() {
            let _inode = self.inodes[file].lock().unwrap();
            self.chain.read(|| ());
            self.remap();
            answered.set();
        }
    }

    fn merge(&self, file: usize, order: Order) {
        let _inode = self.inodes[file].lock().unwrap();
        if order == Order::MergeHoldsChain {
            self.chain.write(|| self.remap());
        } else {
            self.remap();
            self.chain.write(|| ());
        }
    }

    fn move_storage(&self, file: usize, order: Order) {
        let _inode = self.inodes[file].lock().unwrap();
        if order == Order::MoveHoldsChain {
            self.chain.read(|| self.remap());
        } else {
            self.chain.read(|| ());
            self.remap();
            self.chain.read(|| ());
        }
    }
}

fn life(order: Order) {
    let process = Arc::new(Process::default());
    let start = |run: fn(&Process, Order)| {
        let process = process.clone();
        thread::spawn(move || run(&process, order))
    };
    let reader = start(|p, _| p.read_events());
    let helper = start(|p, _| p.help());
    let others = [
        start(|p, _| p.touch(0)),
        start(|p, _| p.touch(1)),
        start(|p, order| p.merge(1, order)),
        start(|p, order| p.move_storage(2, order)),
    ];
    others.into_iter().for_each(|thread| thread.join().unwrap());
    process.events.push(Event::Stop);
    reader.join().unwrap();
    helper.join().unwrap();
}

/// Schedules tried.
const SCHEDULES: usize = 5000;

#[test]
fn nobody_waits_for_the_fault_reader_with_what_it_waits_for() {
    shuttle::check_random(|| life(Order::Today), SCHEDULES);
    shuttle::check_pct(|| life(Order::Today), SCHEDULES, 3);
}

#[test]
fn the_model_finds_the_orders_that_deadlocked() {
    for order in [Order::MergeHoldsChain, Order::MoveHoldsChain] {
        let tried = std::panic::catch_unwind(|| shuttle::check_random(move || life(order), SCHEDULES));
        let panic = tried.expect_err("a deadlock that the model does not find");
        let said = panic.downcast_ref::<String>().map_or("", String::as_str);
        assert!(said.contains("deadlock"), "{order:?}: {said}");
    }
}
