//! `pagestone get`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use pagestone::inode::Attr;
use pagestone::{FileType, Ino};
use pagestone_server::Store;
use pagestone_server::api::{Entry, Xattr};

use super::local::{self, Way};
use super::tree::Tree;
use super::{Copied, How, STEP, copy_out, report};
use crate::command::pool;
use crate::exit::{self, Exit, WrongUsage};
use crate::options::Common;
use crate::progress::Progress;
use crate::target::{self, Target, to_os};

#[derive(Args, Debug)]
pub(crate) struct Get {
    /// The file or directory to copy
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    from: Target,
    /// Where to; into it if it is a directory; - is standard output
    to: PathBuf,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn get(args: &Get) -> Result<Exit> {
    if args.common.json && args.to.as_os_str() == "-" {
        return Err(WrongUsage("--json and - would both write to standard output".into()).into());
    }
    let copied = pool::with(&args.from.pool, true, &args.common, |store| {
        let mut copier = Copier {
            store,
            archive: args.how.archive,
            copied: Copied::default(),
            linked: HashMap::new(),
            directories: Vec::new(),
        };
        copier.all(args)?;
        Ok(copier.copied)
    })?;
    report(args.common.json, args.how.archive, &copied)
}

struct Copier<'p> {
    store: &'p dyn Store,
    archive: bool,
    copied: Copied,
    /// Files with several names, and the first path that one of them got.
    linked: HashMap<Ino, PathBuf>,
    /// Directories whose attributes are set when nothing is made in them any more.
    directories: Vec<(PathBuf, Target, Attr)>,
}

impl Copier<'_> {
    fn all(&mut self, args: &Get) -> Result<()> {
        let top = self.store.entry(&args.from.path).with_context(|| args.from.show())?;
        if args.to.as_os_str() == "-" {
            self.copied.bytes = self.copy_out(&args.from, &top.attr, &mut io::stdout().lock(), "standard output")?;
            self.copied.files = 1;
            return Ok(());
        }
        let to = match args.from.name() {
            Some(name) if args.to.is_dir() => local::below(&args.to, name),
            _ => args.to.clone(),
        };
        if top.attr.kind == FileType::Dir && !args.how.recursive && !args.how.archive {
            bail!("{}: is a directory (copy it with -r or -a)", args.from.show());
        }
        // The root has no name of its own: its contents go into a directory that may be there.
        self.tree((&args.from, top), &to, args.from.name().is_none())?;
        for (path, from, attr) in std::mem::take(&mut self.directories).iter().rev() {
            self.attributes(from, attr, path)?;
        }
        Ok(())
    }

    fn copy_out(&self, from: &Target, attr: &Attr, out: &mut dyn io::Write, to: &str) -> Result<u64> {
        copy_out(|offset| self.store.read(attr.ino, offset, STEP), attr.size, out, from, to)
    }

    fn tree(&mut self, (from, top): (&Target, Entry), to: &Path, follow: bool) -> Result<()> {
        for found in Tree::new(self.store, from, top) {
            let (from, way, entry) = found.with_context(|| from.show())?;
            // Joined with an empty path, a name of a file would end with a slash.
            let to_path = if way.as_os_str().is_empty() { to.to_path_buf() } else { to.join(way) };
            let attr = entry.attr;
            if attr.kind != FileType::Dir {
                // Only what the user has named is written to as it stands.
                if local::way(&to_path)? == Way::Direct && to_path == to && attr.kind == FileType::File {
                    self.stream(&from, &attr, to)?;
                } else {
                    self.one(&entry, &from, &to_path)?;
                }
                continue;
            }
            make_directory(&to_path, follow && to_path == to)?;
            if self.archive {
                self.directories.push((to_path, from, attr));
            } else {
                self.note(&from, &attr)?;
            }
        }
        Ok(())
    }

    /// Anything but a directory.
    fn one(&mut self, entry: &Entry, from: &Target, to: &Path) -> Result<()> {
        let (shown, attr) = (|| to.display().to_string(), &entry.attr);
        let special = !matches!(attr.kind, FileType::File | FileType::Symlink);
        if special && !self.archive {
            eprintln!("pagestone: {}: not a file, directory or symbolic link, left out (-a copies it)", from.show());
            self.copied.left_out.whole += 1;
            return Ok(());
        }
        match self.linked.get(&attr.ino) {
            Some(first) if self.archive => {
                self.copied.files += 1;
                return local::replace(to, |path| fs::hard_link(first, path).with_context(shown));
            }
            Some(_) => self.copied.left_out.links += 1,
            None => {}
        }
        let made = local::replace(to, |path| {
            match (attr.kind, &entry.target) {
                (FileType::File, _) => self.file(attr, from, path)?,
                (FileType::Symlink, Some(target)) => symlink(to_os(&target.0), path).with_context(shown)?,
                _ => local::make_special(path, attr).with_context(shown)?,
            }
            self.attributes(from, attr, path)
        });
        match made {
            // Who may not make devices gets the rest.
            Err(e) if special => {
                eprintln!("pagestone: {}: left out: {}", to.display(), exit::message(&e));
                self.copied.left_out.whole += 1;
                return Ok(());
            }
            made => made?,
        }
        self.copied.files += 1;
        if attr.nlink > 1 {
            self.linked.insert(attr.ino, to.to_path_buf());
        }
        Ok(())
    }

    fn stream(&mut self, from: &Target, attr: &Attr, to: &Path) -> Result<()> {
        let mut out = local::open_stream(to)?;
        self.copied.bytes += self.copy_out(from, attr, &mut out, &to.display().to_string())?;
        self.copied.files += 1;
        Ok(())
    }

    /// Runs with storage are copied, holes stay holes.
    fn file(&mut self, attr: &Attr, from: &Target, to: &Path) -> Result<()> {
        let shown = || to.display().to_string();
        let mode = if self.archive { 0o600 } else { attr.perm & 0o777 };
        let out = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(to).with_context(shown)?;
        out.set_len(attr.size).with_context(shown)?;
        let mut bar = Progress::bytes(&from.show(), attr.size);
        let mut at = 0;
        while at < attr.size {
            let Some(data) = self.store.next_data(attr.ino, at).with_context(|| from.show())? else { break };
            bar.add(data - at);
            at = data;
            let bytes = self.store.read(attr.ino, at, STEP).with_context(|| from.show())?;
            if bytes.is_empty() {
                break;
            }
            out.write_all_at(&bytes, at).with_context(shown)?;
            at += bytes.len() as u64;
            bar.add(bytes.len() as u64);
        }
        self.copied.bytes += attr.size;
        Ok(())
    }

    /// Counts what is left out without `-a`.
    fn note(&mut self, from: &Target, attr: &Attr) -> Result<()> {
        let xattrs = self.store.xattrs(attr.ino).with_context(|| from.show())?;
        let left = &mut self.copied.left_out;
        left.xattrs += u64::from(!xattrs.is_empty());
        left.owners += u64::from((attr.uid, attr.gid) != local::us());
        left.set_id += u64::from(attr.kind == FileType::File && attr.perm & 0o6000 != 0);
        Ok(())
    }

    /// Everything that is neither name nor contents, or a note that it was left out.
    fn attributes(&mut self, from: &Target, attr: &Attr, to: &Path) -> Result<()> {
        let shown = || to.display().to_string();
        if !self.archive {
            self.note(from, attr)?;
            if attr.kind == FileType::File {
                local::Made::open(to, attr.kind)?.set_times(None, attr.mtime).with_context(shown)?;
            }
            return Ok(());
        }
        let made = local::Made::open(to, attr.kind)?;
        let owned = made.set_owner(attr.uid, attr.gid).is_ok();
        self.copied.left_out.owners += u64::from(!owned);
        if attr.kind != FileType::Symlink {
            // Set-id bits of a file that now is somebody else's would be a gift.
            let perm = if owned { attr.perm } else { attr.perm & 0o777 };
            made.set_mode(perm).with_context(shown)?;
        }
        let mut refused = false;
        for Xattr { name, value } in self.store.xattrs(attr.ino).with_context(|| from.show())? {
            refused |= made.set_xattr(&name.0, &value.0).is_err();
        }
        self.copied.left_out.xattrs += u64::from(refused);
        made.set_times(Some(attr.atime), attr.mtime).with_context(shown)
    }
}

/// A directory may be there already. A symbolic link to one may not, below what the user has named: it
/// would lead the copy elsewhere.
fn make_directory(path: &Path, follow: bool) -> Result<()> {
    let shown = || path.display().to_string();
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let there = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) }.with_context(shown)?;
            if there.is_symlink() {
                bail!("{}: is a symbolic link, which is not followed", path.display());
            }
            if !there.is_dir() {
                bail!("{}: is not a directory", path.display());
            }
            Ok(())
        }
        made => made.with_context(shown),
    }
}
