//! `pagestone check`: every finding with its place and what it means.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use pagestone::check::{CheckOptions, Report};
use serde::Serialize;

use crate::command::holder::patiently;
use crate::command::pool::explain;
use crate::exit::Exit;
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
    let mut bar = Progress::pages("checking");
    let options = CheckOptions::new().repair(args.repair).data(args.data).media(args.common.media.map(Into::into));
    let report = patiently(&args.pool, || {
        pagestone::check::check(&args.pool, &options, &mut |done, total| bar.set(done, total))
    });
    drop(bar);
    let report = report.map_err(|e| explain(&args.pool, e))?;
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

fn show(args: &Check, report: &Report, verdict: &str) -> Result<()> {
    for finding in &report.findings {
        let repaired = if finding.repaired { " [repaired]" } else { "" };
        output::line(&format!("{}: {}; {}{repaired}", finding.place, finding.what, finding.consequence))?;
    }
    let pool = args.pool.display();
    let hint = if verdict == "damaged" && !args.repair { " (repair with --repair)" } else { "" };
    let retired = if report.retired > 0 { format!(", {} of them retired", report.retired) } else { String::new() };
    output::line(&format!("{pool}: {verdict}, {} inodes, {} pages checked{retired}{hint}", report.inodes, report.pages))
}
