//! Files whose absent pages a backing answers, through the mount's file system: nothing is mounted here.

use std::sync::Arc;

use pagestone::inode::NewNode;
use pagestone::{CreateOptions, File, FileType, Pool};
use pagestone_mount::{Caller, FileSystem, Handle, NodeId, OpenHow, PoolFs, Seek};
use pmem::Memory;

const PAGE: u64 = 4096;
const LEN: u64 = 40 * PAGE + 100;

/// What the backing has at `offset`: written down a second time, not asked of the library.
fn pattern(offset: u64) -> u8 {
    ((offset / PAGE * 7 + offset % PAGE) % 255) as u8 + 1
}

fn read(fs: &PoolFs, handle: Handle, offset: u64, len: u64) -> Vec<u8> {
    let mut sent = None;
    let done = fs.read(handle, offset, len as u32, &mut |bytes: &[u8]| {
        assert!(sent.replace(bytes.to_vec()).is_none(), "one answer");
    });
    done.expect("read");
    sent.expect("an answer")
}

fn new_file(pool: &Pool, name: &[u8]) -> File {
    let ino = pool.root().create(name, &NewNode::new(FileType::File, 0o644)).expect("a file").ino;
    pool.node(ino).and_then(|node| node.open()).expect("open")
}

/// Fails if a reply, whether it is sent as it lies or put together, has zeros where the backing has other bytes.
#[test]
fn reads_seeks_and_copies_have_the_bytes_of_the_backing() {
    let pool = Pool::create_on(Arc::new(Memory::new(16 << 20).expect("memory")), &CreateOptions::default());
    let pool = pool.expect("a pool");
    let (file, copy) = (new_file(&pool, b"f"), new_file(&pool, b"copy"));
    file.set_len(LEN).expect("longer");
    file.set_backing(2).expect("a backing");
    let mut want: Vec<u8> = (0..LEN).map(pattern).collect();
    let fs = PoolFs::new(pool.clone());
    let open = |file: &File| fs.open(NodeId(file.ino().0), OpenHow::default()).expect("open");
    let (handle, target) = (open(&file), open(&copy));
    let same = |handle| {
        for (offset, len) in [(0, LEN), (PAGE - 1, 2), (3 * PAGE + 5, 9 * PAGE), (LEN - 10, 100)] {
            let end = (offset + len).min(LEN);
            assert!(read(&fs, handle, offset, len) == want[offset as usize..end as usize], "{len} at {offset}");
        }
    };
    same(handle);
    assert_eq!(fs.seek(handle, 0, Seek::Hole).expect("the end"), LEN);
    // Into the middle of the copy, so that nothing can be shared.
    let caller = Caller::default();
    let (copied, _) = fs.copy((handle, 0), (target, PAGE), LEN, caller).expect("copied");
    assert_eq!(u64::from(copied), LEN);
    assert!(read(&fs, target, PAGE, LEN) == want);
    // Storage, a hole and answers in one reply.
    file.write_all_at(&[0xEE; 50], 4 * PAGE + 100).expect("written");
    file.punch_hole(6 * PAGE..6 * PAGE + PAGE).expect("punched");
    want[4 * PAGE as usize + 100..][..50].fill(0xEE);
    want[6 * PAGE as usize..][..PAGE as usize].fill(0);
    for (offset, len) in [(0, LEN), (5 * PAGE, 3 * PAGE), (4 * PAGE, PAGE)] {
        assert!(read(&fs, handle, offset, len) == want[offset as usize..(offset + len) as usize], "{len} at {offset}");
    }
    let (hole, data) = (fs.seek(handle, 0, Seek::Hole), fs.seek(handle, 6 * PAGE, Seek::Data));
    assert_eq!((hole.expect("a hole"), data.expect("data")), (6 * PAGE, 7 * PAGE));
    [handle, target].into_iter().for_each(|handle| fs.release(handle));
}
