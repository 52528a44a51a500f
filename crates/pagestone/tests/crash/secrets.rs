//! What must never show: bytes of another file, and storage that a reader is looking at.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crashlab::{Budget, Flavour};
use pagestone::inode::NewNode;
use pagestone::{CreateOptions, File, FileType, Piece, Pool};
use pmem::Memory;

use crate::ops::{At, Op};
use crate::run::{self, Care, Template};

/// A secret that lies in the pages that are taken next.
const SECRET: [Op; 5] = [
    Op::Create("f"),
    Op::Create("secret"),
    Op::Write("secret", At::Offset(0), 40 * 4096, 0xEE),
    Op::Write("f", At::Offset(0), 5000, 1),
    Op::Unlink("secret"),
];

const WRITES: [Op; 6] = [
    Op::Write("f", At::End, 9000, 2),
    Op::Write("f", At::Offset(40_000), 100, 3),
    Op::Allocate("f", 60_000, 9000),
    Op::Create("a"),
    Op::Write("a", At::Offset(5000), 3000, 4),
    Op::Symlink("s", 2000),
];

fn no_secret_shows(flavour: Flavour, ops: &[Op]) {
    let template = Template::new(flavour, 0x5EC, &SECRET);
    let run = run::record(&template, ops).unwrap();
    let budget = Budget { exhaustive_up_to: 256, sampled: 200, ..Budget::default() };
    let care = Care { budget, from: 0, nested: 40, emptied: 50 };
    let tried = run::check(&template, &run, &care).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
    assert!(tried > 300, "{tried}");
}

/// Guard: new data is fenced before the record that makes it reachable (`Tx::fill`).
#[test]
fn data_is_durable_before_a_record_makes_it_reachable() {
    no_secret_shows(Flavour::Lines, &WRITES);
}

/// Guard: a record that publishes data counts after a power cut only if the data was synced
/// (`replay`, `durable`).
#[test]
fn a_power_cut_shows_no_page_of_a_deleted_file_on_an_ordinary_file() {
    no_secret_shows(Flavour::Pages, &WRITES);
    let synced: Vec<Op> = WRITES.iter().flat_map(|op| [*op, Op::Sync]).collect();
    no_secret_shows(Flavour::Pages, &synced);
}

fn file(pool: &Pool, name: &[u8]) -> File {
    let ino = pool.root().create(name, &NewNode::new(FileType::File, 0o600)).unwrap().ino;
    pool.node(ino).unwrap().open().unwrap()
}

/// All bytes of the pieces, as they lie there now.
fn look(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match *piece {
            // SAFETY: the pieces are used while the call that handed them out runs, and the test
            // expects nobody to change them meanwhile.
            Piece::Storage { addr, len } => (0..len).for_each(|i| bytes.push(unsafe { addr.add(i).read_volatile() })),
            Piece::Hole { len } => bytes.extend(std::iter::repeat_n(0, len)),
        }
    }
    bytes
}

/// Guard: a reader holds the file's lock while it looks (`File::pieces`).
#[test]
fn a_frame_that_a_reader_is_looking_at_is_not_given_to_another_file() {
    let pool = Pool::create_on(Arc::new(Memory::new(16 << 20).unwrap()), &CreateOptions::default()).unwrap();
    let read = file(&pool, b"read");
    read.write_all_at(&vec![1; 2 << 20], 0).unwrap();
    let (done, is_done) = mpsc::channel();
    let other = {
        let (pool, read) = (pool.clone(), read.clone());
        move || {
            read.set_len(0).unwrap();
            pool.checkpoint().unwrap(); // what was freed before is free
            let new = file(&pool, b"new");
            while new.append(&vec![2; 2 << 20]).is_ok() {}
            done.send(()).unwrap();
        }
    };
    let pieces = read.pieces(0..2 << 20).unwrap();
    let worker = std::thread::spawn(other);
    let finished = is_done.recv_timeout(Duration::from_millis(300)).is_ok();
    let seen = (finished, look(&pieces).iter().all(|byte| *byte == 1));
    drop(pieces);
    worker.join().unwrap();
    assert_eq!(seen, (false, true), "(the other finished meanwhile, the bytes are as they were)");
    assert_eq!(read.attr().unwrap().size, 0);
}
