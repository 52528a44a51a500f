//! What the placement of server threads costs: small reads from the filesystem that does nothing.
//!
//! `cargo run --release -p pagestone-mount --example placement`

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagestone_mount::{FuseTransport, NullFs, Options, Transport, unmount};
use rustix::thread::{CpuSet, sched_setaffinity};

fn reads_per_second(path: &Path, clients: &[Option<usize>]) -> Vec<u64> {
    let stop = AtomicBool::new(false);
    let run = Duration::from_millis(700);
    std::thread::scope(|scope| {
        let start = Instant::now();
        let threads: Vec<_> = clients
            .iter()
            .map(|cpu| {
                let stop = &stop;
                scope.spawn(move || {
                    if let Some(cpu) = cpu {
                        let mut set = CpuSet::new();
                        set.set(*cpu);
                        sched_setaffinity(None, &set).expect("a processor of ours");
                    }
                    let file = File::open(path).expect("the file");
                    let done = AtomicU64::new(0);
                    let mut bytes = [0; 4096];
                    while !stop.load(Ordering::Relaxed) {
                        file.read_exact_at(&mut bytes, 0).expect("4 KiB");
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    done.load(Ordering::Relaxed)
                })
            })
            .collect();
        std::thread::sleep(run);
        stop.store(true, Ordering::Relaxed);
        let spent = start.elapsed().as_secs_f64();
        threads.into_iter().map(|t| (t.join().expect("a client") as f64 / spent) as u64).collect()
    })
}

fn main() {
    let dir = std::env::temp_dir().join(format!("pagestone-placement-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("a directory");
    for (threads, pin) in [(1, false), (1, true), (2, false), (2, true)] {
        let options = Options { threads: Some(threads), pin: Some(pin), ..Options::default() };
        let fs = Arc::new(NullFs::new(1 << 20));
        let mounted = FuseTransport.serve(fs, &dir, &options, None).expect("mounted");
        let path = dir.join("file");
        for clients in [vec![None], vec![Some(0)], vec![Some(1)], vec![None, None], vec![Some(0), Some(1)]] {
            let rates = reads_per_second(&path, &clients);
            println!("{threads} threads, pinned {pin:5}, clients {clients:?}: {rates:?} reads/s");
        }
        unmount(&dir).expect("unmounted");
        mounted.wait().expect("a clean end");
    }
    std::fs::remove_dir(&dir).expect("an empty directory");
}
