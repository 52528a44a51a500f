//! Server threads that step back for one client are there again when others need them.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pagestone::{Attr, StatFs};
use pagestone_mount::{
    FileSystem, FuseTransport, Handle, Mounted, NodeId, NullFs, OpenHow, Options, Reply, Transport, WriteHow, Written,
    can_mount, unmount,
};

/// Reading here takes [`LONG`].
const SLOW_PLACE: u64 = 8 << 20;
const LONG: Duration = Duration::from_secs(2);

/// Does nothing, in one place slowly.
struct Slow(NullFs);

impl FileSystem for Slow {
    fn lookup(&self, parent: NodeId, name: &[u8]) -> Reply<Attr> {
        self.0.lookup(parent, name)
    }
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Reply<Attr> {
        self.0.getattr(node, handle)
    }
    fn open(&self, node: NodeId, how: OpenHow) -> Reply<Handle> {
        self.0.open(node, how)
    }
    fn release(&self, handle: Handle) {
        self.0.release(handle);
    }
    fn read(&self, handle: Handle, offset: u64, len: u32, send: &mut dyn FnMut(&[u8])) -> Reply<()> {
        if offset == SLOW_PLACE {
            thread::sleep(LONG);
        }
        self.0.read(handle, offset, len, send)
    }
    fn write(&self, handle: Handle, offset: u64, bytes: &[u8], how: WriteHow) -> Reply<Written> {
        self.0.write(handle, offset, bytes, how)
    }
    fn statfs(&self) -> Reply<StatFs> {
        self.0.statfs()
    }
}

/// A mount with two bound threads; `None`, with the reason printed, where there can be none.
fn mounted(name: &str) -> Option<(Mounted, PathBuf)> {
    if let Err(e) = can_mount() {
        println!("skipped: {e}");
        return None;
    }
    let dir = std::env::temp_dir().join(format!("pagestone-{name}-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let options = Options { threads: Some(2), pin: Some(true), ..Options::default() };
    let mounted = FuseTransport.serve(Arc::new(Slow(NullFs::new(16 << 20))), &dir, &options).unwrap();
    Some((mounted, dir))
}

fn ended((mounted, dir): (Mounted, PathBuf)) {
    let start = Instant::now();
    unmount(&dir).unwrap();
    mounted.wait().unwrap();
    assert!(start.elapsed() < LONG, "an unmount does not wait for threads that stepped back");
    fs::remove_dir(&dir).unwrap();
}

/// Enough in a row that the others step back.
fn read_alone(file: &File) {
    let mut bytes = [0; 512];
    for _ in 0..4000 {
        file.read_exact_at(&mut bytes, 0).unwrap();
    }
}

#[test]
fn a_slow_request_of_the_only_client_holds_nobody_up() {
    let Some(mount) = mounted("slow") else { return };
    let file = File::open(mount.1.join("file")).unwrap();
    read_alone(&file);
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            read_alone(&file);
            file.read_exact_at(&mut [0; 512], SLOW_PLACE).unwrap();
        });
        let other = File::open(mount.1.join("file")).unwrap();
        while !slow.is_finished() {
            let start = Instant::now();
            other.read_exact_at(&mut [0; 512], 0).unwrap();
            assert!(start.elapsed() < LONG / 2, "waited for somebody else's request");
            thread::sleep(Duration::from_millis(20));
        }
    });
    drop(file);
    ended(mount);
}

#[test]
fn a_mount_ends_at_once_while_threads_have_stepped_back() {
    let Some(mount) = mounted("ends") else { return };
    let file = File::open(mount.1.join("file")).unwrap();
    read_alone(&file);
    drop(file);
    ended(mount);
}

#[test]
fn clients_that_come_and_go_are_all_answered() {
    let Some(mount) = mounted("many") else { return };
    let path = mount.1.join("file");
    for _ in 0..10 {
        read_alone(&File::open(&path).unwrap());
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| read_alone(&File::open(&path).unwrap()));
            }
        });
    }
    ended(mount);
}
