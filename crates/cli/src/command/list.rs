//! `pagestone ls` and `pagestone stat`.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use clap::Args;
use pagestone::inode::{Attr, DirEntry, Node};
use pagestone::{FileType, PAGE_SIZE, Pool};

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
    common: Common,
}

/// The entries of a directory by name.
pub(crate) fn entries(node: &Node) -> pagestone::Result<Vec<DirEntry>> {
    let mut entries = node.dir()?.entries().collect::<pagestone::Result<Vec<_>>>()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

pub(crate) fn ls(args: &Ls) -> Result<Exit> {
    let target = &args.target;
    pool::with(&target.pool, true, &args.common, |pool| {
        let node = target.resolve(pool)?;
        let attr = node.attr().with_context(|| target.show())?;
        let lines = if attr.kind == FileType::Dir {
            let found = entries(&node).with_context(|| target.show())?;
            found
                .into_iter()
                .map(|entry| line(pool, &target.join(&entry.name), entry.name))
                .collect::<Result<Vec<_>>>()?
        } else {
            vec![line(pool, target, target.path.clone())?]
        };
        if args.common.json { print_json(&lines) } else { print(&lines, args.long) }
    })?;
    Ok(Exit::Ok)
}

struct Line {
    name: Vec<u8>,
    attr: Attr,
    target: Option<Vec<u8>>,
}

impl Line {
    fn named(&self) -> Named<'_> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Named { name: text(&self.name), attr: &self.attr, target: self.target.as_deref().map(text) }
    }
}

fn line(pool: &Pool, target: &Target, name: Vec<u8>) -> Result<Line> {
    let node = target.resolve(pool)?;
    let attr = node.attr().with_context(|| target.show())?;
    let link = (attr.kind == FileType::Symlink).then(|| node.read_link()).transpose().with_context(|| target.show())?;
    Ok(Line { name, attr, target: link })
}

fn print_json(lines: &[Line]) -> Result<()> {
    output::json(&lines.iter().map(Line::named).collect::<Vec<_>>())
}

fn print(lines: &[Line], long: bool) -> Result<()> {
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
        out.write_all(&shown(&l.name))?;
        if let (true, Some(target)) = (long, &l.target) {
            out.write_all(b" -> ")?;
            out.write_all(&shown(target))?;
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
        match pool::with(&target.pool, true, &args.common, |pool| line(pool, target, target.path.clone())) {
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
        output::json(&found.iter().map(|(_, line)| line.named()).collect::<Vec<_>>())?;
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

fn show_one(target: &Target, line: &Line) -> Result<()> {
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
        rows.push(("target", String::from_utf8_lossy(link).into_owned()));
    }
    for (name, time) in [("read", a.atime), ("modified", a.mtime), ("changed", a.ctime), ("made", a.btime)] {
        rows.push((name, format!("{}.{:09} UTC", output::time(time), time.nsec)));
    }
    output::table(&rows)
}
