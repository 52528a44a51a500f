//! Measurements that need a separate process: being killed, and memory use.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use pagestone::inode::NewNode;
use pagestone::{CreateOptions, FileType, OpenOptions, Pool};
use procfs::process::Process;
use rustix::process::{Signal, getpid, kill_process};

use crate::config::Config;

/// Files in one directory.
const PER_DIR: u64 = 1000;

/// The job of a child, on the pool whose path it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Create a pool of this many bytes and report the time.
    Make(u64),
    /// Create this many files, then end at once without a clean close.
    FillAndDie(u64),
    /// Open the pool, and report the time and the memory use.
    Open,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Job::Make(size) => write!(f, "make:{size}"),
            Job::FillAndDie(files) => write!(f, "fill-and-die:{files}"),
            Job::Open => f.write_str("open"),
        }
    }
}

impl FromStr for Job {
    type Err = String;
    fn from_str(text: &str) -> Result<Job, String> {
        let number = |n: &str| n.parse().map_err(|e| format!("{n}: {e}"));
        match text.split_once(':') {
            Some(("make", size)) => Ok(Job::Make(number(size)?)),
            Some(("fill-and-die", files)) => Ok(Job::FillAndDie(number(files)?)),
            None if text == "open" => Ok(Job::Open),
            _ => Err(format!("no such job: {text}")),
        }
    }
}

/// Runs a job, in the child.
pub fn run_job(job: Job, path: &Path) -> Result<()> {
    match job {
        Job::Make(size) => {
            let begun = Instant::now();
            let pool = Pool::create(path, &CreateOptions::new().size(size))?;
            let spent = begun.elapsed();
            pool.close()?;
            println!("{}", spent.as_nanos());
        }
        Job::FillAndDie(files) => fill_and_die(&Pool::open(path, &OpenOptions::default())?, files)?,
        Job::Open => {
            let before = weight()?;
            let begun = Instant::now();
            let pool = Pool::open(path, &OpenOptions::default())?;
            let spent = begun.elapsed();
            let after = weight()?;
            let info = pool.info()?;
            let grown = after.saturating_sub(before);
            println!("{} {grown} {} {}", spent.as_nanos(), info.dram_bytes, info.replayed);
            // End without a clean close: the next open is a recovery after a crash too.
            die()?;
        }
    }
    Ok(())
}

fn die() -> Result<()> {
    kill_process(getpid(), Signal::KILL)?;
    bail!("still alive")
}

fn fill_and_die(pool: &Pool, files: u64) -> Result<()> {
    let stamp = std::process::id();
    for dir in 0..files.div_ceil(PER_DIR) {
        let attr = pool.root().create(format!("{stamp}-{dir}").as_bytes(), &NewNode::new(FileType::Dir, 0o700))?;
        let node = pool.node(attr.ino)?.dir()?;
        for i in 0..PER_DIR.min(files - dir * PER_DIR) {
            node.create(format!("file-{i:04}").as_bytes(), &NewNode::new(FileType::File, 0o600))?;
        }
    }
    // An open file without a name, as killed programs leave them.
    let attr = pool.root().create(b"nameless", &NewNode::new(FileType::File, 0o600))?;
    let open = pool.node(attr.ino)?.open()?;
    open.write_all_at(&[1; 4096], 0)?;
    pool.root().unlink(b"nameless")?;
    die()
}

/// Anonymous memory of this process in bytes: its DRAM besides the pool's pages.
fn weight() -> Result<u64> {
    let kib = Process::myself()?.status()?.rssanon.context("RssAnon in /proc/self/status")?;
    Ok(kib << 10)
}

/// Runs a job in a child. Returns the numbers it has printed.
pub(crate) fn delegate(config: &Config, job: Job, pool: &Path) -> Result<Vec<f64>> {
    let Some((program, first)) = config.child.split_first() else { bail!("no command for child processes") };
    let mut command = Command::new(program);
    command.args(first).arg(job.to_string()).arg(pool).stdin(Stdio::null());
    let output = command.output().with_context(|| program.to_string_lossy().into_owned())?;
    let dies = !matches!(job, Job::Make(_));
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() || (dies && output.status.code().is_none()), "{job}: {}", said.trim());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().map(|word| word.parse().context(job.to_string())).collect()
}
