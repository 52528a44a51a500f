//! Server threads that step back for one client are there again when others need them.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use pagestone_mount::{FileSystem, FuseTransport, Mounted, NullFs, Options, Transport, can_mount, unmount};

mod common;

use common::{Reads, Sink};

/// A read here is answered when the test says so.
const SLOW_PLACE: u64 = 8 << 20;
/// How long that read waits for the test to say so, if others are held up and the test cannot.
const LONG: Duration = Duration::from_secs(30);
/// No unmount takes as long.
const UNMOUNT: Duration = Duration::from_secs(2);

/// How far the slow read is.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Progress {
    Before,
    Waiting,
    Answered,
    /// The test did not get to say so: somebody waited for this read.
    GivenUp,
}

/// Holds the slow read up.
struct Gate(Mutex<Progress>, Condvar);

impl Gate {
    fn wait(&self) {
        let mut progress = self.0.lock();
        *progress = Progress::Waiting;
        if self.1.wait_while_for(&mut progress, |now| *now == Progress::Waiting, LONG).timed_out() {
            *progress = Progress::GivenUp;
        }
    }

    fn progress(&self) -> Progress {
        *self.0.lock()
    }

    fn open(&self) {
        let mut progress = self.0.lock();
        assert_eq!(*progress, Progress::Waiting, "others were held up until the slow read gave up");
        *progress = Progress::Answered;
        self.1.notify_all();
    }
}

/// A mount with two bound threads.
struct Mount {
    mounted: Mounted,
    dir: PathBuf,
    gate: Arc<Gate>,
}

/// `None`, with the reason printed, where there can be none.
fn mounted(name: &str) -> Option<Mount> {
    if let Err(e) = can_mount() {
        println!("skipped: {e}");
        return None;
    }
    let dir = std::env::temp_dir().join(format!("pagestone-{name}-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let options = Options { threads: Some(2), pin: Some(true), ..Options::default() };
    let gate = Arc::new(Gate(Mutex::new(Progress::Before), Condvar::new()));
    let slow = gate.clone();
    let fs = Reads(NullFs::new(16 << 20), move |fs: &NullFs, handle, offset, len, send: Sink<'_>| {
        if offset == SLOW_PLACE {
            slow.wait();
        }
        fs.read(handle, offset, len, send)
    });
    let mounted = FuseTransport.serve(Arc::new(fs), &dir, &options, None).unwrap();
    Some(Mount { mounted, dir, gate })
}

fn ended(Mount { mounted, dir, .. }: Mount) {
    let start = Instant::now();
    unmount(&dir).unwrap();
    mounted.wait().unwrap();
    assert!(start.elapsed() < UNMOUNT, "an unmount does not wait for threads that stepped back");
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
        // Before the slow read, and for a while beside it.
        let mut beside = 0;
        while beside < 100 {
            assert!(!slow.is_finished(), "the slow read was not held up");
            other.read_exact_at(&mut [0; 512], 0).unwrap();
            beside += u32::from(mount.gate.progress() != Progress::Before);
            thread::sleep(Duration::from_millis(20));
        }
        mount.gate.open();
        slow.join().unwrap();
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
