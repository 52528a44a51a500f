//! The transport by itself, with the filesystem that does nothing behind it.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use pagestone_mount::{FuseTransport, NullFs, Options, Transport, can_mount, prepare, unmount};

#[test]
fn reads_and_writes_reach_the_filesystem_and_it_unmounts() {
    if let Err(e) = can_mount() {
        println!("skipped: {e}");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = prepare(&dir.path().join("null")).expect("a mount point");
    assert!(at.made && !at.not_empty && !at.was_dead);
    // Dropping it unmounts, so a failed assertion leaves nothing behind.
    let mounted =
        FuseTransport.serve(Arc::new(NullFs::new(1 << 20)), &at.dir, &Options::default(), None).expect("mounted");
    assert!(prepare(&at.dir).is_err(), "a second mount on the same directory is refused");

    let path = at.dir.join("file");
    let mut bytes = vec![0; 5000];
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("the one file");
    file.read_exact_at(&mut bytes, 100).expect("bytes in the middle");
    assert!(bytes.iter().all(|b| *b == 0x5a));
    assert_eq!(file.read_at(&mut bytes, (1 << 20) - 10).expect("the end"), 10);
    file.write_all_at(&bytes, 0).expect("a write that goes nowhere");
    assert_eq!(fs::metadata(&path).expect("attributes").len(), 1 << 20);
    assert_eq!(fs::metadata(at.dir.join("none")).expect_err("no such name").kind(), ErrorKind::NotFound);
    let names: Vec<_> = fs::read_dir(&at.dir).expect("a listing").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(names, ["file"]);

    assert!(unmount(&at.dir).is_err(), "busy while a file is open");
    drop(file);
    drop(File::open(&at.dir));
    unmount(&at.dir).expect("unmounted");
    mounted.wait().expect("a clean end");
    assert_eq!(fs::read_dir(&at.dir).expect("the directory below").count(), 0);
}
