//! How many operations a mount has done, how long they took, and what they moved.
//!
//! ```text
//!   server thread --> its own counters     read by whoever asks: the sum over the threads
//!
//!   a time falls into one of 160 buckets; each is at most a quarter wider than the one before:
//!   | 0 | 1 | 2 | 3 | 4 .. 4 | 5 | 6 | 7 | 8..9 | 10..11 | 12..13 | 14..15 | 16..19 | ...   nanoseconds
//! ```
//!
//! A time begins when the server has a request and ends when the filesystem has answered. Memory does not grow with the
//! number of operations. The buckets are those of HdrHistogram with two bits.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Operation {
    /// A name is looked up.
    Lookup,
    /// Attributes.
    GetAttr,
    /// Attributes or the length are changed.
    SetAttr,
    /// The target of a symbolic link.
    ReadLink,
    /// A file is made and opened.
    Create,
    /// A directory, symbolic link or device is made.
    Make,
    /// Another name for a file.
    Link,
    /// A name is removed.
    Remove,
    /// A name is changed.
    Rename,
    /// A file is opened.
    Open,
    /// A file is closed.
    Release,
    /// Bytes are read.
    Read,
    /// Bytes are written.
    Write,
    /// A file or directory is made durable.
    Sync,
    /// A directory is listed.
    List,
    /// Space and inodes.
    StatFs,
    /// Extended attributes.
    Xattr,
    /// Storage is allocated, freed or zeroed.
    Allocate,
    /// The next data or hole.
    Seek,
    /// A range of a file is copied or shared.
    Copy,
}

impl Operation {
    /// All of them, in order.
    pub const ALL: [Operation; 20] = {
        use Operation::*;
        [
            Lookup, GetAttr, SetAttr, ReadLink, Create, Make, Link, Remove, Rename, Open, Release, Read, Write, Sync,
            List, StatFs, Xattr, Allocate, Seek, Copy,
        ]
    };

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        [
            "lookup", "getattr", "setattr", "readlink", "create", "make", "link", "remove", "rename", "open",
            "release", "read", "write", "sync", "list", "statfs", "xattr", "allocate", "seek", "copy",
        ][self as usize]
    }
}

/// Buckets of times. The last one has all that is longer than some minutes.
const BUCKETS: usize = 160;
/// Bits of a time within its power of two.
const BITS: u32 = 2;

fn bucket(nanoseconds: u64) -> usize {
    let top = 63 - (nanoseconds | 1).leading_zeros();
    if top < BITS {
        return nanoseconds as usize;
    }
    let within = (nanoseconds >> (top - BITS)) & ((1 << BITS) - 1);
    ((((top - BITS + 1) << BITS) as u64 + within) as usize).min(BUCKETS - 1)
}

/// The shortest time that is too long for the bucket, in nanoseconds.
fn end_of(bucket: usize) -> u64 {
    let (power, within) = ((bucket >> BITS) as u32, (bucket & ((1 << BITS) - 1)) as u64);
    if power == 0 { within + 1 } else { ((1 << BITS) + within + 1) << (power - 1) }
}

#[derive(Debug)]
struct Counters {
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// What one thread has done. Only that thread writes here.
#[repr(align(128))]
struct Shard {
    operations: [Counters; Operation::ALL.len()],
    read: AtomicU64,
    written: AtomicU64,
}

impl Shard {
    fn new() -> Shard {
        let counters = |_| Counters {
            errors: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        };
        Shard { operations: std::array::from_fn(counters), read: AtomicU64::new(0), written: AtomicU64::new(0) }
    }
}

/// The counters of a mount.
pub struct Statistics {
    shards: Box<[Shard]>,
    /// Threads that have a shard.
    threads: AtomicUsize,
}

impl fmt::Debug for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Statistics of {} threads", self.shards.len())
    }
}

/// What has been counted of one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OperationCount {
    /// Which.
    pub operation: Operation,
    /// How often.
    pub count: u64,
    /// How many of these have failed. That a name is not there is no failure of a lookup.
    pub errors: u64,
    /// Time in all.
    pub time: Duration,
    /// Operations that took less than so many nanoseconds, and at least as many as the bucket before says. Buckets without
    /// any are left out.
    pub buckets: Vec<(u64, u64)>,
}

thread_local! {
    /// The shard of this thread, which serves one mount.
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

fn add(counter: &AtomicU64, n: u64) {
    // Nobody else writes here.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Statistics {
    /// For so many server threads.
    pub fn new(threads: usize) -> Statistics {
        Statistics { shards: (0..threads.max(1)).map(|_| Shard::new()).collect(), threads: AtomicUsize::new(0) }
    }

    fn shard(&self) -> &Shard {
        let index = SHARD.get().unwrap_or_else(|| {
            let index = self.threads.fetch_add(1, Ordering::Relaxed);
            SHARD.set(Some(index));
            index
        });
        &self.shards[index % self.shards.len()]
    }

    /// The calling thread has done an operation.
    pub(crate) fn count(&self, operation: Operation, time: Duration, failed: bool) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let counters = &self.shard().operations[operation as usize];
        add(&counters.nanoseconds, nanoseconds);
        add(&counters.buckets[bucket(nanoseconds)], 1);
        if failed {
            add(&counters.errors, 1);
        }
    }

    /// The calling thread has read so many bytes.
    pub(crate) fn count_read(&self, bytes: u64) {
        add(&self.shard().read, bytes);
    }

    /// The calling thread has written so many bytes.
    pub(crate) fn count_written(&self, bytes: u64) {
        add(&self.shard().written, bytes);
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |part: fn(&Shard) -> &AtomicU64| {
            self.shards.iter().map(|shard| part(shard).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
        };
        (sum(|shard| &shard.read), sum(|shard| &shard.written))
    }

    /// All operations.
    pub fn operations(&self) -> Vec<OperationCount> {
        Operation::ALL.into_iter().map(|operation| self.operation(operation)).collect()
    }

    fn operation(&self, operation: Operation) -> OperationCount {
        let mut found = [0u64; BUCKETS];
        let (mut errors, mut nanoseconds) = (0u64, 0u64);
        for shard in &self.shards {
            let counters = &shard.operations[operation as usize];
            errors = errors.wrapping_add(counters.errors.load(Ordering::Relaxed));
            nanoseconds = nanoseconds.wrapping_add(counters.nanoseconds.load(Ordering::Relaxed));
            for (sum, bucket) in found.iter_mut().zip(&counters.buckets) {
                *sum = sum.wrapping_add(bucket.load(Ordering::Relaxed));
            }
        }
        let buckets = found.iter().enumerate().filter(|(_, n)| **n > 0).map(|(bucket, n)| (end_of(bucket), *n));
        let time = Duration::from_nanos(nanoseconds);
        OperationCount { operation, count: found.iter().sum(), errors, time, buckets: buckets.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_its_bucket_and_a_bucket_is_a_quarter_wide_at_most() {
        let mut last = 0;
        for time in (0..5000).chain((13..37).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1])) {
            let found = bucket(time);
            assert!(time < end_of(found), "{time}");
            assert!(found == 0 || time >= end_of(found - 1), "{time}");
            assert!(found >= last);
            last = found;
            assert!(end_of(found) - time <= time / 4 + 1, "{time}: {}", end_of(found));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_all_threads_have_counted_is_added_up() {
        let statistics = Statistics::new(3);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let statistics = &statistics;
                scope.spawn(move || {
                    for n in 0..100 {
                        statistics.count(Operation::Read, Duration::from_nanos(1000 * (thread + 1)), n % 10 == 0);
                        statistics.count_read(4096);
                    }
                    statistics.count_written(7);
                });
            }
        });
        assert_eq!(statistics.bytes(), (300 * 4096, 21));
        let all = statistics.operations();
        let read = &all[Operation::Read as usize];
        assert_eq!((read.operation, read.count, read.errors), (Operation::Read, 300, 30));
        assert_eq!(read.time, Duration::from_nanos(600_000));
        assert_eq!(read.buckets.iter().map(|(_, n)| n).sum::<u64>(), 300);
        assert_eq!(read.buckets.len(), 3);
        assert!(all.iter().filter(|other| other.operation != Operation::Read).all(|other| other.count == 0));
        assert!(Operation::ALL.iter().enumerate().all(|(i, operation)| *operation as usize == i));
    }
}
