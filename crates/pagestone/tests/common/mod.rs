//! What tests take of the machine, and give back however they end: a mount, and huge pages.

#![allow(dead_code, reason = "each suite takes a part of it")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use rustix::fs::FlockOperation;
use rustix::mount::{MountFlags, UnmountFlags};

/// A filesystem mounted for one test.
pub(crate) struct Mounted(pub(crate) tempfile::TempDir);

impl Mounted {
    pub(crate) fn new(kind: &str, options: &str) -> Result<Mounted, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting takes root".into());
        }
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let options = std::ffi::CString::new(options).map_err(|e| e.to_string())?;
        rustix::mount::mount(kind, dir.path(), kind, MountFlags::empty(), options.as_c_str())
            .map_err(|e| format!("cannot mount {kind}: {e}"))?;
        Ok(Mounted(dir))
    }

    /// A small ext4 in a file, on a loop device that goes with the mount.
    pub(crate) fn small_ext4(image: &Path, len: u64) -> Result<Mounted, String> {
        File::create(image).and_then(|f| f.set_len(len)).map_err(|e| e.to_string())?;
        run("mkfs.ext4", &["-qF".as_ref(), image.as_os_str()])?;
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        run("mount", &["-oloop".as_ref(), image.as_os_str(), dir.path().as_os_str()])?;
        Ok(Mounted(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// Runs a program: what it said.
pub(crate) fn run(program: &str, args: &[&OsStr]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Huge pages set aside for one test.
///
/// The kernel keeps one number for the whole machine, and each test adds its own to it. Two that read and wrote it
/// at the same time would have fewer than they believe, which a private copy finds out much later; so one at a time.
pub(crate) struct HugePages(u64);

impl HugePages {
    const KNOB: &str = "/proc/sys/vm/nr_hugepages";

    /// Changes the number; nobody else does meanwhile, in this process or another.
    fn change(by: impl FnOnce(u64) -> u64) -> Result<(u64, u64), String> {
        let lock = File::open("/dev/shm").map_err(|e| e.to_string())?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))
            .map_err(|e| format!("cannot lock /dev/shm: {e}"))?;
        let now = || {
            let text = fs::read_to_string(Self::KNOB).map_err(|e| e.to_string())?;
            text.trim().parse::<u64>().map_err(|e| e.to_string())
        };
        let before = now()?;
        fs::write(Self::KNOB, by(before).to_string()).map_err(|e| format!("cannot set huge pages aside: {e}"))?;
        Ok((before, now()?))
    }

    pub(crate) fn take(n: u64) -> Result<HugePages, String> {
        let (before, after) = Self::change(|before| before + n)?;
        let taken = HugePages(after.saturating_sub(before));
        if taken.0 >= n { Ok(taken) } else { Err("not enough contiguous memory for huge pages".into()) }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = Self::change(|before| before.saturating_sub(self.0));
    }
}
