//! Server threads that step back for one client are there again when others need them.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pagestone::{Attr, StatFs};
use pagestone_mount::{
    FileSystem, FuseTransport, Handle, Mounted, NodeId, NullFs, OpenHow, Options, Reply, Transport, WriteHow, Written,
    can_mount, unmount,
};

/// Reading here waits until the test lets it go on, or for [`LONG`].
const SLOW_PLACE: u64 = 8 << 20;
const LONG: Duration = Duration::from_secs(30);

/// Does nothing, in one place slowly.
struct Slow(NullFs, Gate);

/// Whether the slow request is there, and may go on.
#[derive(Default)]
struct Gate(Mutex<(bool, bool)>, Condvar);

impl Gate {
    fn pass(&self) {
        self.0.lock().unwrap().0 = true;
        self.1.notify_all();
        drop(self.1.wait_timeout_while(self.0.lock().unwrap(), LONG, |(_, open)| !*open).unwrap());
    }

    fn wait_for_somebody(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |(there, _)| !*there).unwrap());
    }

    fn open(&self) {
        self.0.lock().unwrap().1 = true;
        self.1.notify_all();
    }
}

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
            self.1.pass();
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

struct Mount {
    fs: Arc<Slow>,
    mounted: Mounted,
    dir: PathBuf,
}

/// A mount with two bound threads; `None`, with the reason printed, where there can be none.
fn mounted(name: &str) -> Option<Mount> {
    if let Err(e) = can_mount() {
        println!("skipped: {e}");
        return None;
    }
    let dir = std::env::temp_dir().join(format!("pagestone-{name}-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let options = Options { threads: Some(2), pin: Some(true), ..Options::default() };
    let fs = Arc::new(Slow(NullFs::new(16 << 20), Gate::default()));
    let mounted = FuseTransport.serve(fs.clone(), &dir, &options).unwrap();
    Some(Mount { fs, mounted, dir })
}

fn ended(Mount { mounted, dir, .. }: Mount) {
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
    let file = File::open(mount.dir.join("file")).unwrap();
    read_alone(&file);
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            read_alone(&file);
            file.read_exact_at(&mut [0; 512], SLOW_PLACE).unwrap();
        });
        let other = File::open(mount.dir.join("file")).unwrap();
        mount.fs.1.wait_for_somebody();
        for _ in 0..100 {
            other.read_exact_at(&mut [0; 512], 0).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!slow.is_finished(), "others waited for the slow request");
        mount.fs.1.open();
    });
    drop(file);
    ended(mount);
}

#[test]
fn a_mount_ends_at_once_while_threads_have_stepped_back() {
    let Some(mount) = mounted("ends") else { return };
    let file = File::open(mount.dir.join("file")).unwrap();
    read_alone(&file);
    drop(file);
    ended(mount);
}

#[test]
fn clients_that_come_and_go_are_all_answered() {
    let Some(mount) = mounted("many") else { return };
    let path = mount.dir.join("file");
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
