//! Memory that fails after it was looked at: while the kernel copies a reply from it, where no library can step in.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use pagestone_mount::{FuseTransport, NullFs, Options, Transport, can_mount, prepare, unmount};
use pmem::Memory;

mod common;

use common::{Reads, Sink};

const PAGE: u64 = 4096;
const SIZE: u64 = 1 << 20;

/// Fails if such a request is never answered, or if another one pays for it.
#[test]
fn a_reply_that_the_kernel_cannot_copy_is_an_error_of_that_request_alone() {
    if let Err(e) = can_mount() {
        println!("skipped: {e}");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = prepare(&dir.path().join("mnt")).expect("a mount point");
    let memory = Arc::new(Memory::new(SIZE).expect("memory"));
    assert!(memory.bytes().write(0, &[7; SIZE as usize]));
    memory.bytes().forbid(5 * PAGE, PAGE);
    // Answered straight from the memory, as the reads of a pool are.
    let from = memory.clone();
    let fs = Reads(NullFs::new(SIZE), move |_: &NullFs, _, offset, len, send: Sink<'_>| {
        let at = from.bytes().addr(offset, u64::from(len)).expect("inside");
        // SAFETY: inside the mapping, which lives as long as this; the bytes are looked at by the kernel alone.
        send(unsafe { std::slice::from_raw_parts(at, len as usize) });
        Ok(())
    });
    let mounted = FuseTransport.serve(Arc::new(fs), &at.dir, &Options::default(), None).expect("mounted");
    let file = File::open(at.dir.join("file")).expect("the one file");
    for round in 0..20 {
        for page in 0..10u64 {
            let mut bytes = [0; PAGE as usize];
            match file.read_at(&mut bytes, page * PAGE) {
                Ok(n) => assert!(page != 5 && n == 4096 && bytes == [7; PAGE as usize], "round {round}, page {page}"),
                Err(e) => assert_eq!((page, e.raw_os_error()), (5, Some(libc::EIO)), "round {round}"),
            }
        }
        let error = file.read_at(&mut [0; 8 * PAGE as usize], 0).expect_err("a part of it cannot be had");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    memory.bytes().allow(5 * PAGE, PAGE);
    assert_eq!(file.read_at(&mut [0; 8 * PAGE as usize], 0).expect("well again"), 8 * PAGE as usize);
    drop(file);
    unmount(&at.dir).expect("unmounted");
    mounted.wait().expect("a clean end");
}
