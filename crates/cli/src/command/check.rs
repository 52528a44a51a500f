//! `pagestone check`: every finding with its place and what it means.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use pagestone::check::{CheckOptions, Report};
use pagestone_server::Store;
use serde::Serialize;

use crate::command::holder::patiently;
use crate::command::pool::{self, explain};
use crate::exit::Exit;
use crate::named;
use crate::options::Common;
use crate::output;
use crate::progress::Progress;

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The pool
    pool: PathBuf,
    /// Repair what can be repaired
    #[arg(long)]
    repair: bool,
    /// Read all data, too, and name what the media have lost of each file
    #[arg(long)]
    data: bool,
    /// Check a pool in use; all other operations on it wait meanwhile, some microseconds for each file
    #[arg(long, conflicts_with_all = ["repair", "data"])]
    online: bool,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints: the report, and the verdict in one word.
#[derive(Serialize)]
struct Verdict<'a> {
    verdict: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

pub(crate) fn check(args: &Check) -> Result<Exit> {
    let report = if args.online { in_use(args)? } else { alone(args)? };
    let (exit, verdict) = if report.is_clean() {
        (Exit::Ok, "clean")
    } else if report.is_repaired() {
        (Exit::Repaired, "repaired")
    } else {
        (Exit::Damaged, "damaged")
    };
    if args.common.json {
        output::json(&Verdict { verdict, report: &report })?;
    } else {
        show(args, &report, verdict)?;
    }
    Ok(exit)
}

/// A check of a pool that nobody else has open.
fn alone(args: &Check) -> Result<Report> {
    let mut bar = Progress::pages("checking");
    let options = CheckOptions::new().repair(args.repair).data(args.data).media(args.common.media.map(Into::into));
    let path = &*named::pool(&args.pool);
    let report = patiently(path, || pagestone::check::check(path, &options, &mut |done, total| bar.set(done, total)));
    drop(bar);
    report.map_err(|e| explain(path, e))
}

/// A check by the server of the pool; here if it has none.
fn in_use(args: &Check) -> Result<Report> {
    let shown = || args.pool.display().to_string();
    match pool::server(&args.pool).with_context(shown)? {
        Some(client) => match client.check().with_context(shown) {
            Err(e) if pool::has_ended(&client, &e) => alone(args),
            report => report,
        },
        None => alone(args),
    }
}

fn show(args: &Check, report: &Report, verdict: &str) -> Result<()> {
    for finding in &report.findings {
        let repaired = if finding.repaired { " [repaired]" } else { "" };
        output::line(&format!("{}: {}; {}{repaired}", finding.place, finding.what, finding.consequence))?;
    }
    let pool = args.pool.display();
    let hint = if verdict == "damaged" && !args.repair { " (repair with --repair)" } else { "" };
    let retired = if report.retired > 0 { format!(", {} of them retired", report.retired) } else { String::new() };
    let pause = match report.pause_ns {
        0 => String::new(),
        ns => format!("; others waited {:.1} ms", ns as f64 / 1e6),
    };
    let (inodes, pages) = (report.inodes, report.pages);
    output::line(&format!("{pool}: {verdict}, {inodes} inodes, {pages} pages checked{retired}{pause}{hint}"))
}
