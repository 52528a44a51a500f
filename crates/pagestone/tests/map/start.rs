//! The first mapping of a process starts the threads that answer faults.
//!
//! A program of its own, since a process starts them once: this one again, with [`CHILD`] set.

use std::io;
use std::process::Command;

use pagestone::mmap::{MapMechanism, MapOptions};

use crate::place::{PAGE, Place};

const CHILD: &str = "PAGESTONE_TEST_NO_THREADS";
const TEST: &str = "start::a_mapping_that_could_not_start_its_threads_is_tried_again";

/// Fails if a service without threads is used by the next mapping: its first hole would never be answered.
#[test]
fn a_mapping_that_could_not_start_its_threads_is_tried_again() {
    if std::env::var_os(CHILD).is_some() {
        return without_threads();
    }
    let mut child = Command::new("timeout");
    child.arg("20").arg(std::env::current_exe().unwrap()).args(["--exact", TEST, "--nocapture"]).env(CHILD, "1");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}{errors}", output.status);
    print!("{text}");
}

fn without_threads() {
    let place = Place::memory();
    let file = place.file("f");
    file.set_len(16 * PAGE).unwrap();
    if let Err(e) = drop_rights() {
        return println!("skipped: the limit of threads would not hold for this user: {e}");
    }
    if MapMechanism::here() != MapMechanism::Userfaultfd {
        return println!("skipped: without userfaultfd there are no threads");
    }
    for _ in 0..2 {
        limit_threads(Some(0));
        let refused = file.map(0..16 * PAGE, &MapOptions::shared()).map(drop);
        assert!(refused.is_err(), "there is no thread to be had");
        limit_threads(None);
    }
    let map = file.map(0..16 * PAGE, &MapOptions::shared()).unwrap();
    // A raw store: the kernel asks the threads.
    // SAFETY: inside the mapping, which nobody else has.
    unsafe { map.as_mut_ptr().unwrap().add(PAGE as usize).write_volatile(7) };
    assert_eq!(map.load::<u8>(PAGE).unwrap(), 7);
    println!("answered");
}

fn limit_threads(most: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads and writes a structure of ours.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit), 0);
        limit.rlim_cur = most.unwrap_or(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit), 0);
    }
}

/// The limit holds for everybody but root, and who has its rights: becomes nobody, who may still use userfaultfd.
fn drop_rights() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    const SYS_PTRACE: u32 = 1 << 19;
    // SAFETY: a number.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(());
    }
    let done = |result: libc::c_long| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let header = [VERSION_3, 0];
    // Effective, permitted, inheritable; the lower half, then the upper one.
    let data = [SYS_PTRACE, SYS_PTRACE, 0, 0, 0, 0];
    // SAFETY: the calls take numbers, and structures of the kernel's shape.
    unsafe {
        done(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        done(libc::setresuid(65_534, 65_534, 65_534).into())?;
        done(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()))
    }
}
