//! `pagestone bench`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use pagestone_bench::{Config, Figure, Job, Verdict};

use crate::exit::Exit;
use crate::output;

#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// A pool to measure the library in; everything is removed from it again (temporary pools on
    /// tmpfs if this is left out)
    pub(crate) pool: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Fewer rounds and fewer files
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure this alone
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(pagestone_bench::item_names()))]
    pub(crate) only: Option<String>,
    /// What a child process of the benchmark does
    #[arg(long, hide = true, requires = "pool")]
    pub(crate) job: Option<Job>,
}

pub(crate) fn run(args: &Bench) -> Result<Exit> {
    if let (Some(job), Some(pool)) = (args.job, &args.pool) {
        pagestone_bench::run_job(job, pool)?;
        return Ok(Exit::Ok);
    }
    let program = std::env::current_exe().context("the path of this program")?;
    let child = vec![program.into_os_string(), OsString::from("bench"), OsString::from("--job")];
    let config = Config { pool: args.pool.clone(), quick: args.quick, only: args.only.clone(), child };
    let mut broken = None;
    let figures = pagestone_bench::run(&config, &mut |figure| {
        if !args.json && broken.is_none() {
            broken = show(figure).err();
        }
    })?;
    if let Some(e) = broken {
        return Err(e);
    }
    if args.json {
        output::json_list("figures", &figures)?;
    } else {
        summary(&figures)?;
    }
    Ok(Exit::Ok)
}

fn show(figure: &Figure) -> Result<()> {
    let [what, ours, peer, ratio, target, verdict] = figure.columns();
    let line = format!("{verdict:7} {what:58} {ours:>9}  {ratio:>15}  {target:18} {peer}");
    output::line(line.trim_end())?;
    if figure.note.is_empty() { Ok(()) } else { output::line(&format!("{:8}  ({})", "", figure.note)) }
}

fn summary(figures: &[Figure]) -> Result<()> {
    let count = |verdict| figures.iter().filter(|f| f.verdict == verdict).count();
    let (pass, miss) = (count(Verdict::Pass), count(Verdict::Miss));
    output::line(&format!("{pass} of {} targets reached", pass + miss))
}
