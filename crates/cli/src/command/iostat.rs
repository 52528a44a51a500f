//! `pagestone iostat`: what programs do with a pool in use, and how long it takes.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use pagestone_server::Client;
use pagestone_server::api::{OperationStatistics, Statistics};
use serde::Serialize;

use crate::columns::{Cell, Columns};
use crate::command::pool;
use crate::exit::Exit;
use crate::options::Common;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct Iostat {
    /// The pool, or where it is mounted
    pool: PathBuf,
    /// Seconds between two reports; without it one report of all since the server's start
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400))]
    interval: Option<u32>,
    /// Reports; without it, until Ctrl-C
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Also operations of which there were none
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    common: Common,
}

/// Stable: scripts name them.
const COLUMNS: [&str; 8] = ["face", "operation", "count", "per_s", "errors", "mean", "p50", "p99"];

/// What `--json` prints for each report, on a line.
#[derive(Serialize)]
struct Report {
    seconds: f64,
    faces: Vec<Face>,
}

/// One face between two looks.
#[derive(Serialize)]
pub(crate) struct Face {
    pub(crate) face: String,
    pub(crate) read: u64,
    pub(crate) written: u64,
    pub(crate) operations: Vec<Line>,
}

/// One kind of operation between two looks. Times are nanoseconds.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) operation: String,
    pub(crate) count: u64,
    pub(crate) errors: u64,
    pub(crate) mean: u64,
    pub(crate) p50: u64,
    pub(crate) p99: u64,
}

impl From<OperationStatistics> for Line {
    fn from(counted: OperationStatistics) -> Line {
        let mean = counted.nanoseconds.checked_div(counted.count).unwrap_or(0);
        let (p50, p99) = (counted.quantile(0.5), counted.quantile(0.99));
        Line { operation: counted.operation, count: counted.count, errors: counted.errors, mean, p50, p99 }
    }
}

pub(crate) fn iostat(args: &Iostat) -> Result<Exit> {
    args.columns.check(&COLUMNS)?;
    let shown = || args.pool.display().to_string();
    let client = server(&args.pool)?;
    let uptime = client.status().with_context(shown)?.uptime;
    let mut before = client.statistics().with_context(shown)?;
    let mut since = Instant::now();
    if args.interval.is_none() {
        return report(args, between(&before, None), Duration::from_secs(uptime.max(1)));
    }
    let interval = Duration::from_secs(args.interval.unwrap_or(1).into());
    let mut left = args.count;
    while left != Some(0) {
        thread::sleep((since + interval).saturating_duration_since(Instant::now()));
        let now = client.statistics().with_context(shown)?;
        let seconds = since.elapsed();
        since = Instant::now();
        report(args, between(&now, Some(&before)), seconds)?;
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(Exit::Ok)
}

/// The server of a pool in use.
pub(crate) fn server(pool: &std::path::Path) -> Result<Client> {
    match pool::server(pool).with_context(|| pool.display().to_string())? {
        Some(client) => Ok(client),
        None => bail!("{}: not in use: nothing is counted", pool.display()),
    }
}

/// What happened between two looks; all until now without the first.
pub(crate) fn between(now: &Statistics, before: Option<&Statistics>) -> Vec<Face> {
    let before = before.filter(|before| before.worker == now.worker);
    let faces = now.faces.iter().map(|face| {
        let earlier = before.and_then(|b| b.faces.iter().find(|other| other.kind == face.kind && other.at == face.at));
        let operation = |(i, now): (usize, &OperationStatistics)| match earlier.and_then(|e| e.operations.get(i)) {
            Some(before) => now.since(before).into(),
            None => now.clone().into(),
        };
        Face {
            face: face.kind.clone(),
            read: face.read.saturating_sub(earlier.map_or(0, |e| e.read)),
            written: face.written.saturating_sub(earlier.map_or(0, |e| e.written)),
            operations: face.operations.iter().enumerate().map(operation).collect(),
        }
    });
    faces.collect()
}

fn report(args: &Iostat, mut faces: Vec<Face>, time: Duration) -> Result<Exit> {
    let seconds = time.as_secs_f64();
    if !args.all {
        faces.iter_mut().for_each(|face| face.operations.retain(|line| line.count > 0));
    }
    if args.common.json {
        output::json(&Report { seconds, faces })?;
        return Ok(Exit::Ok);
    }
    let mut rows = Vec::new();
    for face in &faces {
        for line in &face.operations {
            rows.push(vec![
                Cell::Text(face.face.clone()),
                Cell::Text(line.operation.clone()),
                Cell::Count(line.count as f64),
                Cell::Count(line.count as f64 / seconds),
                Cell::Count(line.errors as f64),
                Cell::Time(line.mean),
                Cell::Time(line.p50),
                Cell::Time(line.p99),
            ]);
        }
    }
    args.columns.print(&COLUMNS, rows)?;
    if args.interval.is_some() {
        output::line("")?;
    }
    Ok(Exit::Ok)
}
