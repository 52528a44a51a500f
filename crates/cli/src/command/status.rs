//! `pagestone status`: who has a pool in use, how it does, and what to do about what is wrong.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use pagestone_server::api::Status as Report;
use serde::Serialize;

use crate::command::pool;
use crate::exit::Exit;
use crate::options::Common;
use crate::output;
use crate::size::show;

#[derive(Args, Debug)]
pub(crate) struct Status {
    /// The pool
    pool: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Json<'a> {
    in_use: bool,
    #[serde(flatten)]
    report: Option<&'a Report>,
}

pub(crate) fn status(args: &Status) -> Result<Exit> {
    let shown = || args.pool.display().to_string();
    let report = match pool::server(&args.pool).with_context(shown)? {
        Some(client) => match client.status().with_context(shown) {
            Err(e) if pool::has_ended(&client, &e) => None,
            report => Some(report?),
        },
        None => None,
    };
    let report = match report {
        Some(report) => Some(report),
        None => {
            // Also says what else is wrong with it.
            pool::with(&args.pool, true, &args.common, |_| Ok(()))?;
            None
        }
    };
    if args.common.json {
        output::json(&Json { in_use: report.is_some(), report: report.as_ref() })?;
    } else {
        match report {
            Some(report) => print(&report)?,
            None => output::line(&format!("{}: not in use", args.pool.display()))?,
        }
    }
    Ok(Exit::Ok)
}

fn print(report: &Report) -> Result<()> {
    let mut rows = vec![
        ("pool", report.pool.to_string()),
        ("server", format!("process {}, version {}, for {}", report.pid, report.version, time(report.uptime))),
        ("worker", format!("process {}; taken over {} times", report.worker, report.takeovers)),
        ("access", if report.read_only { "read-only" } else { "read and write" }.into()),
        ("capacity", show(report.size)),
        ("used", format!("{}, {} inodes", show(report.used), report.inodes)),
        ("available", show(report.available)),
    ];
    rows.extend(report.faces.iter().map(|face| (face.kind.as_str(), face.at.to_string())));
    let well = report.troubles.is_empty().then(|| ("health", "nothing is wrong, as far as is known".to_owned()));
    rows.extend(well);
    rows.extend(report.troubles.iter().map(|trouble| ("health", format!("{} ({})", trouble.what, trouble.remedy))));
    output::table(&rows)
}

/// `2d 3h`, `3h 5m`, `5m 7s`, `7s`.
fn time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_two_largest_units() {
        let shown = [(0, "0s"), (61, "1m 1s"), (3_600, "1h 0m"), (90_061, "1d 1h")];
        assert!(shown.iter().all(|&(seconds, text)| time(seconds) == text));
    }
}
