//! Memory that fails while a reply is put together from several pieces. A program of its own, which mounts nothing: one
//! that fails here ends by a signal.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagestone::inode::NewNode;
use pagestone::{CreateOptions, FileType, Pool};
use pagestone_mount::{FileSystem, NodeId, OpenHow, PoolFs};
use pmem::{Description, Media, Memory, Part, Views};

const PAGE: u64 = 4096;

/// Memory of which a page fails as soon as the engine turns to its windows a number of times.
#[derive(Debug)]
struct Failing {
    below: Memory,
    /// How often until then; 0: never.
    turns: AtomicU64,
    page: AtomicU64,
}

impl Media for Failing {
    fn describe(&self) -> &Description {
        self.below.describe()
    }
    fn views(&self) -> Views<'_> {
        if self.turns.load(Ordering::Relaxed) > 0 && self.turns.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.below.bytes().forbid(self.page.load(Ordering::Relaxed), PAGE);
        }
        self.below.views()
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        self.below.persist(parts)
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        self.below.store(at, bytes);
    }
    fn flush(&self, at: u64, len: u64) -> io::Result<()> {
        self.below.flush(at, len)
    }
    fn fence(&self) {
        self.below.fence();
    }
    fn sync(&self) -> io::Result<()> {
        self.below.sync()
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.below.reserve(at, len)
    }
}

/// A line that fails between two that are well is not seen by a look at each page. Memory that fails just after the
/// look is the same to whoever copies. Fails by the end of this process if the copy cannot cope.
#[test]
fn a_reply_of_several_pieces_ends_in_front_of_memory_that_fails_while_it_is_copied() {
    for turn in 1..12 {
        let memory = Memory::new(16 << 20).expect("memory");
        let media = Arc::new(Failing { below: memory, turns: AtomicU64::new(0), page: AtomicU64::new(0) });
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).expect("a pool");
        let ino = pool.root().create(b"f", &NewNode::new(FileType::File, 0o644)).expect("a file").ino;
        let file = pool.node(ino).and_then(|node| node.open()).expect("open");
        // Four pages, a hole, four pages.
        file.write_all_at(&[7; 4 * PAGE as usize], 0).expect("written");
        file.write_all_at(&[8; 4 * PAGE as usize], 5 * PAGE).expect("written");
        let lost = file.extents(2 * PAGE..2 * PAGE + 1).expect("extents")[0].pool;
        let fs = PoolFs::new(pool.clone());
        let handle = fs.open(NodeId(ino.0), OpenHow::default()).expect("open");
        media.page.store(lost, Ordering::Relaxed);
        media.turns.store(turn, Ordering::Relaxed);
        let mut sent = None;
        let read = fs.read(handle, 0, 9 * PAGE as u32, &mut |bytes: &[u8]| {
            assert!(sent.replace(bytes.to_vec()).is_none(), "one answer");
        });
        let failed = media.turns.swap(0, Ordering::Relaxed) == 0;
        read.expect("what lies in front of the lost page");
        let sent = sent.expect("an answer");
        match sent.len() as u64 / PAGE {
            2 => assert!(failed && sent == [7; 2 * PAGE as usize], "turn {turn}"),
            9 => assert!(sent[..4 * PAGE as usize] == [7; 4 * PAGE as usize], "turn {turn}"),
            pages => panic!("turn {turn}: {pages} pages"),
        }
        fs.release(handle);
    }
}
