//! `pagestone cat`, `put` and `get`: bytes in and out of a pool that is not mounted.
//!
//! ```text
//!   put   file, directory (-r) or standard input  ->  POOL:/path      holes stay holes
//!   get   POOL:/path  ->  file, directory (-r) or standard output
//! ```

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};
use pagestone::{Error, File, Kind, NewNode, Node, Pool, SetAttr};
use serde::Serialize;

use crate::args::{Cat, Common, Get, Put};
use crate::command::files::{into_directory, make_all, owned, umask};
use crate::command::{list, pool};
use crate::exit::{Exit, WrongUsage};
use crate::output;
use crate::progress::Progress;
use crate::target::{Target, to_os};

/// Bytes moved at a time.
const STEP: usize = 1 << 20;

/// What was copied.
#[derive(Default, Serialize)]
struct Copied {
    files: u64,
    bytes: u64,
}

pub(crate) fn cat(args: &Cat) -> Result<Exit> {
    let common = Common { media: args.media, json: false };
    for target in &args.targets {
        pool::with(&target.pool, true, &common, |pool| {
            let file = target.resolve(pool)?.open().with_context(|| target.show())?;
            copy_out(&file, &mut io::stdout().lock(), target, &mut None).map(|_| ())
        })?;
    }
    Ok(Exit::Ok)
}

/// Everything in `file` to a stream.
fn copy_out(file: &File, out: &mut dyn Write, from: &Target, bar: &mut Option<Progress>) -> Result<u64> {
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    loop {
        let got = file.read_at(at, &mut buffer).with_context(|| from.show())?;
        if got == 0 {
            out.flush().context("standard output")?;
            return Ok(at);
        }
        out.write_all(&buffer[..got]).context("standard output")?;
        at += got as u64;
        if let Some(bar) = bar {
            bar.add(got as u64);
        }
    }
}

fn report(json: bool, copied: &Copied) -> Result<Exit> {
    if json {
        output::json(copied)?;
    }
    Ok(Exit::Ok)
}

pub(crate) fn put(args: &Put) -> Result<Exit> {
    let mut copied = Copied::default();
    pool::with(&args.to.pool, false, &args.common, |pool| {
        if args.from.as_os_str() == "-" {
            return put_stream(pool, &mut io::stdin().lock(), &args.to, &mut copied);
        }
        let meta = fs::metadata(&args.from).with_context(|| args.from.display().to_string())?;
        let name = args.from.file_name().map(|name| name.as_bytes().to_vec());
        let to = match name {
            Some(name) => into_directory(pool, &args.to, &name),
            None => args.to.clone(),
        };
        if !meta.is_dir() {
            return put_file(pool, &args.from, &to, &mut copied);
        }
        if !args.recursive {
            bail!("{}: is a directory (copy it with -r)", args.from.display());
        }
        put_tree(pool, &args.from, &to, &mut copied)
    })?;
    report(args.common.json, &copied)
}

/// Opens `to` for being written anew: made if it is missing, emptied if it is there.
fn replace(pool: &Pool, to: &Target, perm: u32) -> Result<File> {
    let (dir, name) = to.place(pool)?;
    let node = match dir.create(name, &owned(Kind::File, perm)) {
        Ok(attr) => pool.node(attr.ino).with_context(|| to.show())?,
        Err(Error::Exists) => to.resolve(pool)?,
        Err(e) => return Err(e).with_context(|| to.show()),
    };
    let file = node.open().with_context(|| to.show())?;
    file.set_len(0).with_context(|| to.show())?;
    Ok(file)
}

fn put_stream(pool: &Pool, from: &mut dyn Read, to: &Target, copied: &mut Copied) -> Result<()> {
    let file = replace(pool, to, 0o666 & !umask())?;
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    loop {
        let got = match from.read(&mut buffer) {
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).context("standard input"),
        };
        if got == 0 {
            copied.files += 1;
            copied.bytes += at;
            return Ok(());
        }
        file.write_at(at, &buffer[..got]).with_context(|| to.show())?;
        at += got as u64;
    }
}

fn put_file(pool: &Pool, from: &Path, to: &Target, copied: &mut Copied) -> Result<()> {
    let shown = || from.display().to_string();
    let source = fs::File::open(from).with_context(shown)?;
    let meta = source.metadata().with_context(shown)?;
    let file = replace(pool, to, meta.permissions().mode() & 0o777)?;
    let mut bar = Progress::bytes(&shown(), meta.len());
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    loop {
        let got = source.read_at(&mut buffer, at).with_context(shown)?;
        if got == 0 {
            break;
        }
        // What is all zeros stays a hole.
        if buffer[..got].iter().any(|byte| *byte != 0) {
            file.write_at(at, &buffer[..got]).with_context(|| to.show())?;
        }
        at += got as u64;
        bar.add(got as u64);
    }
    file.set_len(at).with_context(|| to.show())?;
    let modified = pagestone::Time { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 };
    let times = SetAttr { mtime: Some(modified), ..SetAttr::default() };
    pool.node(file.ino()).and_then(|node| node.set_attr(&times)).with_context(|| to.show())?;
    copied.files += 1;
    copied.bytes += at;
    Ok(())
}

fn put_tree(pool: &Pool, from: &Path, to: &Target, copied: &mut Copied) -> Result<()> {
    let mut stack = vec![(from.to_path_buf(), to.clone())];
    while let Some((from, to)) = stack.pop() {
        let shown = || from.display().to_string();
        let meta = fs::symlink_metadata(&from).with_context(shown)?;
        if meta.is_dir() || (meta.is_symlink() && from.as_path() == Path::new(".")) {
            make_all(pool, &to, &owned(Kind::Dir, meta.permissions().mode() & 0o777))?;
            for entry in fs::read_dir(&from).with_context(shown)? {
                let entry = entry.with_context(shown)?;
                stack.push((entry.path(), to.join(entry.file_name().as_bytes())));
            }
        } else if meta.is_symlink() {
            let target = fs::read_link(&from).with_context(shown)?;
            let (dir, name) = to.place(pool)?;
            let new = NewNode { target: target.as_os_str().as_bytes(), ..owned(Kind::Symlink, 0o777) };
            dir.create(name, &new).with_context(|| to.show())?;
            copied.files += 1;
        } else if meta.is_file() {
            put_file(pool, &from, &to, copied)?;
        } else {
            eprintln!("pagestone: {}: not a file, directory or symbolic link, left out", from.display());
        }
    }
    Ok(())
}

pub(crate) fn get(args: &Get) -> Result<Exit> {
    if args.common.json && args.to.as_os_str() == "-" {
        return Err(WrongUsage("--json and - would both write to standard output".into()).into());
    }
    let mut copied = Copied::default();
    pool::with(&args.from.pool, true, &args.common, |pool| {
        let node = args.from.resolve(pool)?;
        let kind = node.attr().with_context(|| args.from.show())?.kind;
        if args.to.as_os_str() == "-" {
            let file = node.open().with_context(|| args.from.show())?;
            copied.bytes = copy_out(&file, &mut io::stdout().lock(), &args.from, &mut None)?;
            copied.files = 1;
            return Ok(());
        }
        let to = match args.from.name() {
            Some(name) if args.to.is_dir() => args.to.join(to_os(name)),
            _ => args.to.clone(),
        };
        if kind == Kind::Dir && !args.recursive {
            bail!("{}: is a directory (copy it with -r)", args.from.show());
        }
        get_tree(pool, &args.from, &to, &mut copied)
    })?;
    report(args.common.json, &copied)
}

fn get_tree(pool: &Pool, from: &Target, to: &Path, copied: &mut Copied) -> Result<()> {
    let mut stack = vec![(from.clone(), to.to_path_buf())];
    while let Some((from, to)) = stack.pop() {
        let node = from.resolve(pool)?;
        let attr = node.attr().with_context(|| from.show())?;
        match attr.kind {
            Kind::Dir => {
                match fs::create_dir(&to) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists && to.is_dir() => {}
                    made => made.with_context(|| to.display().to_string())?,
                }
                for entry in list::entries(&node).with_context(|| from.show())? {
                    stack.push((from.join(&entry.name), to.join(to_os(&entry.name))));
                }
            }
            Kind::File => get_file(&node, &from, &to, copied)?,
            Kind::Symlink => {
                let target = node.read_link().with_context(|| from.show())?;
                symlink(to_os(&target), &to).with_context(|| to.display().to_string())?;
                copied.files += 1;
            }
            _ => eprintln!("pagestone: {}: not a file, directory or symbolic link, left out", from.show()),
        }
    }
    Ok(())
}

/// Runs with storage are copied, holes stay holes.
fn get_file(node: &Node<'_>, from: &Target, to: &Path, copied: &mut Copied) -> Result<()> {
    let shown = || to.display().to_string();
    let file = node.open().with_context(|| from.show())?;
    let attr = file.attr().with_context(|| from.show())?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(attr.perm & 0o777);
    let out = options.open(to).with_context(shown)?;
    out.set_len(attr.size).with_context(shown)?;
    let mut bar = Progress::bytes(&from.show(), attr.size);
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < attr.size {
        let data = match file.seek_data(at) {
            Ok(data) => data,
            Err(Error::NoData) => break,
            Err(e) => return Err(e).with_context(|| from.show()),
        };
        bar.add(data - at);
        at = data;
        let got = file.read_at(at, &mut buffer).with_context(|| from.show())?;
        if got == 0 {
            break;
        }
        out.write_all_at(&buffer[..got], at).with_context(shown)?;
        at += got as u64;
        bar.add(got as u64);
    }
    let modified = std::time::UNIX_EPOCH + std::time::Duration::new(attr.mtime.sec.max(0) as u64, attr.mtime.nsec);
    out.set_modified(modified).with_context(shown)?;
    copied.files += 1;
    copied.bytes += attr.size;
    Ok(())
}
