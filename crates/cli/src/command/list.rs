//! `pagestone ls` and `pagestone stat`.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use clap::Args;
use pagestone::inode::Attr;
use pagestone::{FileType, PAGE_SIZE};
use pagestone_server::api::Entry;
use pagestone_server::{Store, StoreError};

use crate::columns::{Cell, Columns};
use crate::command::pool;
use crate::exit::{self, Exit};
use crate::options::Common;
use crate::output::{self, Named};
use crate::size::show;
use crate::target::{self, Target};

#[derive(Args, Debug)]
pub(crate) struct Ls {
    /// What to list
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    target: Target,
    /// With mode, owner, size and time
    #[arg(short)]
    long: bool,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    common: Common,
}

/// Stable: scripts name them.
const COLUMNS: [&str; 9] = ["mode", "links", "user", "group", "size", "modified", "name", "inode", "target"];

pub(crate) fn ls(args: &Ls) -> Result<Exit> {
    let target = &args.target;
    args.columns.check(&COLUMNS)?;
    pool::with(&target.pool, true, &args.common, |store| {
        let top = store.entry(&target.path).with_context(|| target.show())?;
        let lines = if top.attr.kind == FileType::Dir {
            let mut found = all_entries(store, &target.path).with_context(|| target.show())?;
            found.sort_by(|a, b| a.name.cmp(&b.name));
            found
        } else {
            vec![top]
        };
        match (args.common.json, args.columns.are_asked_for()) {
            (true, _) => print_json(&lines),
            (false, true) => args.columns.print(&COLUMNS, lines.iter().map(row).collect()),
            (false, false) => print(&lines, args.long),
        }
    })?;
    Ok(Exit::Ok)
}

/// A whole directory.
fn all_entries(store: &dyn Store, path: &[u8]) -> Result<Vec<Entry>, StoreError> {
    let mut listing = store.entries(path, None)?;
    let mut all = listing.entries;
    while let Some(from) = listing.next.take() {
        listing = store.entries(path, Some(&from))?;
        all.append(&mut listing.entries);
    }
    Ok(all)
}

fn named(entry: &Entry) -> Named<'_> {
    Named { name: entry.name.to_string(), attr: &entry.attr, target: entry.target.as_ref().map(ToString::to_string) }
}

fn row(entry: &Entry) -> Vec<Cell> {
    let attr = &entry.attr;
    vec![
        Cell::Text(output::mode(attr.kind, attr.perm)),
        Cell::Count(attr.nlink.into()),
        Cell::Text(attr.uid.to_string()),
        Cell::Text(attr.gid.to_string()),
        Cell::Bytes(attr.size),
        Cell::Date(attr.mtime),
        Cell::Text(entry.name.to_string()),
        Cell::Text(attr.ino.0.to_string()),
        Cell::Text(entry.target.as_ref().map_or_else(|| "-".into(), ToString::to_string)),
    ]
}

fn print_json(lines: &[Entry]) -> Result<()> {
    output::json_list("entries", &lines.iter().map(named).collect::<Vec<_>>())
}

fn print(lines: &[Entry], long: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    let terminal = out.is_terminal();
    let shown = |name: &[u8]| if terminal { output::printable_name(name).into_bytes() } else { name.to_vec() };
    let width = lines.iter().map(|l| l.attr.size.to_string().len()).max().unwrap_or(0);
    for l in lines {
        let a = &l.attr;
        if long {
            let mode = output::mode(a.kind, a.perm);
            let time = output::time(a.mtime);
            write!(out, "{mode} {:>3} {:>5} {:>5} {:>width$} {time} UTC ", a.nlink, a.uid, a.gid, a.size)?;
        }
        out.write_all(&shown(&l.name.0))?;
        if let (true, Some(target)) = (long, &l.target) {
            out.write_all(b" -> ")?;
            out.write_all(&shown(&target.0))?;
        }
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

#[derive(Args, Debug)]
pub(crate) struct Stat {
    /// The files
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser(), required = true)]
    targets: Vec<Target>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn stat(args: &Stat) -> Result<Exit> {
    let mut found = Vec::new();
    let mut failure: Option<anyhow::Error> = None;
    for target in &args.targets {
        match pool::with(&target.pool, true, &args.common, |store| {
            store.entry(&target.path).with_context(|| target.show())
        }) {
            Ok(line) => found.push((target, line)),
            // The last one ends the command; those before it are said here.
            Err(e) => {
                if let Some(before) = failure.replace(e) {
                    output::failure(&exit::message(&before), exit::of(&before), args.common.json);
                }
            }
        }
    }
    if args.common.json {
        output::json_list("entries", &found.iter().map(|(_, line)| named(line)).collect::<Vec<_>>())?;
    } else {
        for (target, line) in &found {
            show_one(target, line)?;
        }
    }
    failure.map_or(Ok(Exit::Ok), Err)
}

/// How much of what is allocated clones have in common.
fn shared(attr: &Attr) -> String {
    match attr.shared {
        0 => String::new(),
        pages => format!(", {} of it shared", show(pages.saturating_mul(PAGE_SIZE))),
    }
}

fn show_one(target: &Target, line: &Entry) -> Result<()> {
    let a = &line.attr;
    let mut rows = vec![
        ("file", target.show()),
        ("kind", output::kind(a.kind).into()),
        ("size", format!("{} bytes, {} allocated{}", a.size, show(a.pages.saturating_mul(PAGE_SIZE)), shared(a))),
        ("inode", format!("{:#x}, {} links", a.ino.0, a.nlink)),
        ("access", format!("{} ({:04o}), user {}, group {}", output::mode(a.kind, a.perm), a.perm, a.uid, a.gid)),
    ];
    if matches!(a.kind, FileType::CharDevice | FileType::BlockDevice) {
        rows.push(("device", format!("{}, {}", libc::major(a.rdev), libc::minor(a.rdev))));
    }
    if let Some(link) = &line.target {
        rows.push(("target", link.to_string()));
    }
    for (name, time) in [("read", a.atime), ("modified", a.mtime), ("changed", a.ctime), ("made", a.btime)] {
        rows.push((name, format!("{}.{:09} UTC", output::time(time), time.nsec)));
    }
    output::table(&rows)
}
