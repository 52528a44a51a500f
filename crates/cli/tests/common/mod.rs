//! What the command's tests share: running it, and mounts that end with the test, also when it
//! fails.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn pagestone() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pagestone"))
}

/// Runs the command and gives back what it said.
pub(crate) fn run(args: &[&str]) -> Output {
    pagestone().args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs it, and insists that it succeeds; what it printed.
pub(crate) fn ok(args: &[&str]) -> String {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "pagestone {args:?} said: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether each new pool is in use by a server, through which all commands work then. A suite that passes without this
/// passes with it: `PAGESTONE_TEST_SERVED=1`.
fn served() -> bool {
    std::env::var_os("PAGESTONE_TEST_SERVED").is_some()
}

/// Insists that the pool is whole.
pub(crate) fn check(pool: &str) {
    let output = if served() { run(&["check", "--online", pool]) } else { run(&["check", pool]) };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "check of {pool}: {found}{said}");
}

/// Runs it with `input` on its standard input.
pub(crate) fn ok_with_input(args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child =
        pagestone().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "pagestone {args:?} said: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs it, and insists that it fails with `code` and one line that contains all of `words`.
pub(crate) fn fails(code: i32, words: &[&str], args: &[&str]) {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "pagestone {args:?} said: {said}");
    assert!(said.starts_with("pagestone: "), "pagestone {args:?} said: {said}");
    for word in words {
        assert!(said.contains(word), "pagestone {args:?} should have said '{word}', but said: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// A temporary directory with room for a pool.
pub(crate) struct Place {
    /// The servers of its pools.
    servers: RefCell<Vec<Served>>,
    pub(crate) tmp: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place { servers: RefCell::default(), tmp: tempfile::tempdir().unwrap() }
    }
    /// In memory that outlives the process.
    pub(crate) fn in_shm() -> Place {
        Place { servers: RefCell::default(), tmp: tempfile::tempdir_in("/dev/shm").unwrap() }
    }
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }
    pub(crate) fn str(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
    /// A new pool of `size` here.
    pub(crate) fn pool(&self, size: &str) -> String {
        let pool = self.str("test.pool");
        ok(&["create", &pool, "--size", size]);
        if served() {
            self.servers.borrow_mut().push(Served::start(&pool));
        }
        pool
    }
}

/// Whether mounts work here; says why not.
pub(crate) fn can_mount() -> bool {
    match pagestone_mount::can_mount() {
        Ok(()) => true,
        Err(e) => {
            println!("skipped: {e}");
            false
        }
    }
}

/// A pool that is mounted. Ends with the test, whatever happens.
pub(crate) struct Mount {
    child: Option<Child>,
    pub(crate) dir: PathBuf,
    pub(crate) pool: String,
}

impl Mount {
    /// Mounts `place`'s pool (made if it is missing) with more options.
    pub(crate) fn start(place: &Place, options: &[&str]) -> Mount {
        let (dir, pool) = (place.path("mnt"), place.str("test.pool"));
        let mut command = pagestone();
        command.args(["mount", &pool, dir.to_str().unwrap(), "--json"]).args(options);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mount = Mount { child: Some(child), dir, pool };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.contains("\"mounted\""), "no mount: {line}");
        mount
    }

    /// A new pool, mounted with all users let in.
    pub(crate) fn fresh(place: &Place) -> Mount {
        Mount::start(place, &["--create", "256M", "--allow-other"])
    }

    /// Unmounts. Busy is no reason to give up at once: a child that another test starts holds
    /// copies of this test's open files for the moment until it runs its program.
    fn unmount(&self) {
        let start = Instant::now();
        while let Err(e) = pagestone_mount::unmount(&self.dir) {
            let busy = e.raw_os_error() == Some(libc::EBUSY);
            assert!(busy && start.elapsed() < PATIENCE, "unmounting {}: {e}", self.dir.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits until the process has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "the mount's process does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        self.child = None;
        status
    }

    /// Unmounts, waits for the clean end, and checks the pool.
    pub(crate) fn finish(mut self) {
        self.unmount();
        assert!(self.ended().success());
        check(&self.pool);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = pagestone_mount::unmount_lazily(&self.dir);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Bytes that do not repeat at any distance that a filesystem cares about.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// A pool that a server has in use, without a mount. The server ends with this.
pub(crate) struct Served(Child);

impl Served {
    pub(crate) fn start(pool: &str) -> Served {
        let mut child = pagestone().args(["serve", pool]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("served"), "{line}");
        Served(child)
    }
    /// Another program in its place.
    pub(crate) fn of(child: Child) -> Served {
        Served(child)
    }
    /// Ends it as Ctrl-C does.
    pub(crate) fn finish(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
