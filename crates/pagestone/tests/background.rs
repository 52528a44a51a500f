//! Work that no caller waits for: what fails there is told, tried again, and keeps nothing else from its turn.

#![allow(clippy::unwrap_used)] // tests end at the first surprise

use std::path::PathBuf;
use std::sync::Arc;

use crashlab::{Call, Faulty};
use pagestone::inode::{NewNode, RenameMode};
use pagestone::mmap::MapOptions;
use pagestone::{CreateOptions, Error, File, FileType, Ino, PAGE_SIZE, Pool};
use pmem::{Media, MediaKind, Memory};

const SIZE: u64 = 64 << 20;

fn pool_on(media: Arc<dyn Media>) -> Pool {
    Pool::create_on(media, &CreateOptions::default()).unwrap()
}

fn create(pool: &Pool, name: &str) -> Ino {
    pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o644)).unwrap().ino
}

fn file(pool: &Pool, name: &str, bytes: &[u8]) -> File {
    let file = pool.node(create(pool, name)).unwrap().open().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn forbid(media: &dyn Media, page: u64) {
    media.views().data.forbid(page * PAGE_SIZE, PAGE_SIZE);
    media.views().meta.forbid(page * PAGE_SIZE, PAGE_SIZE);
}

/// Fails if one file whose record is lost ends a sync before the media are synced.
#[test]
fn a_file_whose_record_is_lost_does_not_keep_the_others_from_being_synced() {
    let number = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("background-{}-{number}", std::process::id()));
    let open = pmem::Open { read_only: false, kind: Some(MediaKind::File), size: Some(SIZE), room: 0, lock: None };
    let media = Arc::new(Faulty::new(pmem::open(&path, &open).unwrap().media, []));
    let pool = pool_on(media.clone());
    let bad = file(&pool, "bad", &[1; 100]);
    // Their records lie on other pages.
    for n in 0..40 {
        create(&pool, &format!("between {n}"));
    }
    let good = file(&pool, "good", &[1; 100]);
    assert_ne!(bad.ino().page(), good.ino().page());
    pool.sync().unwrap();
    bad.write_all_at(&[2; 100], 0).unwrap();
    good.write_all_at(&[2; 100], 0).unwrap();
    forbid(&*media, bad.ino().page().0);
    let syncs: [&dyn Fn() -> pagestone::Result<()>; 3] = [&|| pool.sync(), &|| bad.sync_all(), &|| pool.checkpoint()];
    for sync in syncs {
        let before = media.calls(Call::Sync);
        assert!(matches!(sync(), Err(Error::Lost(_))));
        assert!(media.calls(Call::Sync) > before, "the media were not synced");
    }
    drop((bad, good, pool));
    std::fs::remove_file(path).unwrap();
}

/// A file in many pieces, closed, a node of whose map is lost; and another, `other`.
fn with_a_lost_map() -> Pool {
    let memory = Arc::new(Memory::new(SIZE).unwrap());
    let pool = pool_on(memory.clone());
    drop(file(&pool, "other", b"other"));
    let victim = file(&pool, "victim", &[1; 100]);
    (1..200).for_each(|n| victim.write_all_at(b"piece", n * 3 * PAGE_SIZE).unwrap());
    let extents = victim.extents(..).unwrap();
    let is_data = |page: u64| extents.iter().any(|x| (x.pool..x.pool + x.len).contains(&(page * PAGE_SIZE)));
    let near = extents[0].pool / PAGE_SIZE;
    let nodes = (near..near + 512).filter(|&page| !is_data(page));
    let lost = nodes.filter(|&page| {
        forbid(&*memory, page);
        let gone = victim.extents(..).is_err();
        if !gone {
            memory.bytes().allow(page * PAGE_SIZE, PAGE_SIZE);
        }
        gone
    });
    assert!(lost.count() >= 1);
    drop(victim);
    pool
}

fn assert_told(pool: &Pool) {
    let info = pool.info().unwrap();
    assert_eq!(info.background_errors, 1);
    assert!(info.last_background_error.unwrap().contains("space of a deleted file"));
}

/// Fails if what happens to the space of a file becomes the answer to the loss of its name.
#[test]
fn a_name_that_is_gone_was_unlinked_whatever_becomes_of_the_space() {
    let pool = with_a_lost_map();
    assert_eq!(pool.info().unwrap().background_errors, 0);
    pool.root().unlink(b"victim").unwrap();
    assert!(matches!(pool.root().lookup(b"victim"), Err(Error::NotFound)));
    assert_told(&pool);
}

#[test]
fn a_name_that_is_replaced_was_renamed_whatever_becomes_of_the_space() {
    let pool = with_a_lost_map();
    let other = pool.root().lookup(b"other").unwrap().ino;
    pool.root().rename(b"other", pool.root().ino(), b"victim", RenameMode::Replace).unwrap();
    assert_eq!(pool.root().lookup(b"victim").unwrap().ino, other);
    assert_told(&pool);
}

/// Fails if a base that could not be merged is forgotten until the next open.
#[test]
fn a_merge_that_cannot_be_done_is_done_later() {
    let pool = pool_on(Arc::new(Memory::new(SIZE).unwrap()));
    let src = file(&pool, "src", &vec![1; 4 << 20]);
    let pin = src.map(0..4 * PAGE_SIZE, &MapOptions::read_only()).unwrap().pin(0..4 * PAGE_SIZE).unwrap();
    pool.root().clone_file(b"clone", src.ino()).unwrap();
    src.write_all_at(&[2; 4 * PAGE_SIZE as usize], 0).unwrap();
    pool.root().unlink(b"clone").unwrap();
    assert!(pool.info().unwrap().shared > 0, "what a merge gives back is pinned");
    drop(pin);
    pool.sync().unwrap();
    let info = pool.info().unwrap();
    assert_eq!((info.shared, info.background_errors), (0, 0));
    let mut bytes = [0; 5 * PAGE_SIZE as usize];
    src.read_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4 * PAGE_SIZE as usize].iter().all(|&b| b == 2) && bytes[4 * PAGE_SIZE as usize] == 1);
}
