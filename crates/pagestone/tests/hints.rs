//! What an open file remembers of its map never outlives a change of the map.
//!
//! ```text
//!   write   the run is remembered
//!   change  (truncate, punch, ... by this handle or another)     the run may be somebody else's now
//!   write   must look again
//! ```

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pagestone::inode::{NewNode, SetAttr};
use pagestone::{CreateOptions, File, FileType, Pool};
use pmem::Memory;

const PAGE: u64 = 4096;
const LEN: u64 = 8 * PAGE;

fn pool(len: u64) -> Pool {
    Pool::create_on(Arc::new(Memory::new(len).unwrap()), &CreateOptions::default()).unwrap()
}

fn new_file(pool: &Pool, name: &str) -> File {
    let ino = pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino;
    pool.node(ino).unwrap().open().unwrap()
}

fn bytes(file: &File) -> Vec<u8> {
    let mut buf = vec![0xEE; 2 * LEN as usize];
    let len = file.read_at(&mut buf, 0).unwrap();
    buf.truncate(len);
    buf
}

/// A change and what it is called.
type Change = (&'static str, fn(&Pool, &File));

/// Everything that takes pages away from a file or moves its end; each leaves zeros up to `LEN`.
fn changes() -> Vec<Change> {
    fn resize(pool: &Pool, file: &File, size: u64) {
        let change = SetAttr::new().size(size);
        pool.node(file.ino()).unwrap().set_attr(&change).unwrap();
    }
    vec![
        ("truncate and grow", |_, f| {
            f.set_len(0).unwrap();
            f.set_len(LEN).unwrap();
        }),
        ("the same by the node", |pool, f| {
            resize(pool, f, 0);
            resize(pool, f, LEN);
        }),
        ("the same by another handle", |pool, f| {
            let other = pool.node(f.ino()).unwrap().open().unwrap();
            other.set_len(0).unwrap();
            other.set_len(LEN).unwrap();
        }),
        ("punch", |_, f| f.punch_hole(0..LEN).unwrap()),
        ("punch and allocate", |_, f| {
            f.punch_hole(0..LEN).unwrap();
            f.allocate(0..LEN).unwrap();
        }),
        ("truncate to nothing and write behind", |_, f| {
            f.set_len(0).unwrap();
            f.write_all_at(&[0], LEN - 1).unwrap();
        }),
    ]
}

/// Takes all free pages of the pool for another file, whose bytes are `fill`: what was freed before
/// is taken too. Returns the file and its length.
fn take_all(pool: &Pool, name: &str, fill: u8) -> (File, u64) {
    let file = new_file(pool, name);
    let mut len = 0;
    while file.write_all_at(&[fill; PAGE as usize], len).is_ok() {
        len += PAGE;
    }
    (file, len)
}

#[test]
fn a_read_after_a_change_sees_the_change() {
    for (what, change) in changes() {
        let pool = pool(16 << 20);
        let file = new_file(&pool, "a");
        file.write_all_at(&[1; LEN as usize], 0).unwrap();
        file.write_all_at(&[2; PAGE as usize], 0).unwrap();
        assert_eq!(bytes(&file).len() as u64, LEN);
        change(&pool, &file);
        assert!(bytes(&file).iter().all(|&b| b == 0), "{what}");
        assert_eq!(bytes(&file).len() as u64, LEN, "{what}");
        file.set_len(PAGE + 5).unwrap();
        assert_eq!(bytes(&file).len() as u64, PAGE + 5, "{what}");
    }
}

#[test]
fn an_overwrite_after_a_change_does_not_land_in_pages_that_were_freed() {
    for (what, change) in changes() {
        let pool = pool(8 << 20);
        let file = new_file(&pool, "a");
        let room = new_file(&pool, "room");
        room.write_all_at(&[3; 4 * LEN as usize], 0).unwrap();
        file.write_all_at(&[1; LEN as usize], 0).unwrap();
        file.write_all_at(&[2; PAGE as usize], 0).unwrap();
        change(&pool, &file);
        let (other, len) = take_all(&pool, "other", 7);
        room.set_len(0).unwrap();
        for page in 0..LEN / PAGE {
            file.write_all_at(&[9; 100], page * PAGE + 9).unwrap();
        }
        let mut got = vec![0; len as usize];
        assert_eq!(other.read_at(&mut got, 0).unwrap() as u64, len);
        assert!(got.iter().all(|&b| b == 7), "{what}: another file was written to");
        for (i, &b) in bytes(&file).iter().enumerate() {
            let want = if (9..109).contains(&(i % PAGE as usize)) { 9 } else { 0 };
            assert_eq!(b, want, "{what}: byte {i}");
        }
    }
}

#[test]
fn a_file_that_was_given_back_takes_its_hint_along() {
    let pool = pool(16 << 20);
    let mut last = None;
    for round in 1..50u8 {
        let file = new_file(&pool, "a");
        assert_ne!(last.replace(file.ino()), Some(file.ino()));
        assert!(bytes(&file).is_empty());
        file.write_all_at(&[round; LEN as usize], 0).unwrap();
        file.write_all_at(&[round; LEN as usize], 0).unwrap();
        assert!(bytes(&file).iter().all(|&b| b == round));
        drop(file);
        pool.root().unlink(b"a").unwrap();
    }
}

#[test]
fn writers_readers_and_changes_at_once_never_touch_another_file() {
    const ROUNDS: u64 = 4000;
    let pool = pool(8 << 20);
    let shared = new_file(&pool, "shared");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Overwrites, and reads back: only what is written to this file may be seen in it.
        for writer in 1..=2u8 {
            let (shared, over) = (shared.clone(), &over);
            scope.spawn(move || {
                let mut page = 0;
                while !over.load(Ordering::Relaxed) {
                    page = (page + 3) % (LEN / PAGE);
                    shared.write_all_at(&[writer; PAGE as usize], page * PAGE).unwrap();
                    assert!(bytes(&shared).iter().all(|&b| b <= 2), "bytes of another file");
                }
            });
        }
        // Takes what was freed, and looks whether it stays as it was.
        let mut others = Vec::new();
        for round in 0..ROUNDS {
            let (_, change) = changes()[round as usize % changes().len()];
            // What the change leaves is not known here: others are writing.
            change(&pool, &shared);
            let fill = 100 + (round % 100) as u8;
            let other = new_file(&pool, &format!("other-{round}"));
            other.write_all_at(&[fill; LEN as usize], 0).unwrap();
            pool.checkpoint().unwrap(); // a checkpoint: what was freed can be taken
            others.push((other, fill));
            if others.len() > 16 {
                let (other, fill) = others.remove(0);
                assert!(bytes(&other).iter().all(|&b| b == fill), "another file was written to");
                other.set_len(0).unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
        for (other, fill) in others {
            assert!(bytes(&other).iter().all(|&b| b == fill), "another file was written to");
        }
    });
}
