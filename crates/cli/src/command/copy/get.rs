//! `pagestone get`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use pagestone::inode::{Attr, Node};
use pagestone::{Error, FileType, Ino, Pool};

use super::local::{self, Way};
use super::{Copied, How, STEP, copy_out, report};
use crate::command::{list, pool};
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
    let copied = pool::with(&args.from.pool, true, &args.common, |pool| {
        let mut copier = Copier {
            pool,
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
    pool: &'p Pool,
    archive: bool,
    copied: Copied,
    /// Files with several names, and the first path that one of them got.
    linked: HashMap<Ino, PathBuf>,
    /// Directories whose attributes are set when nothing is made in them any more.
    directories: Vec<(PathBuf, Ino, Attr)>,
}

impl Copier<'_> {
    fn all(&mut self, args: &Get) -> Result<()> {
        let node = args.from.resolve(self.pool)?;
        let kind = node.attr().with_context(|| args.from.show())?.kind;
        if args.to.as_os_str() == "-" {
            let file = node.open().with_context(|| args.from.show())?;
            self.copied.bytes = copy_out(&file, &mut io::stdout().lock(), &args.from, "standard output")?;
            self.copied.files = 1;
            return Ok(());
        }
        let to = match args.from.name() {
            Some(name) if args.to.is_dir() => local::below(&args.to, name),
            _ => args.to.clone(),
        };
        if kind == FileType::Dir && !args.how.recursive && !args.how.archive {
            bail!("{}: is a directory (copy it with -r or -a)", args.from.show());
        }
        // The root has no name of its own: its contents go into a directory that may be there.
        self.tree(&args.from, &to, args.from.name().is_none())?;
        for (path, ino, attr) in std::mem::take(&mut self.directories).iter().rev() {
            let node = self.pool.node(*ino).with_context(|| path.display().to_string())?;
            self.attributes(&node, attr, path)?;
        }
        Ok(())
    }

    fn tree(&mut self, from: &Target, to: &Path, follow: bool) -> Result<()> {
        let mut stack = vec![(from.clone(), to.to_path_buf())];
        while let Some((from, to_path)) = stack.pop() {
            let node = from.resolve(self.pool)?;
            let attr = node.attr().with_context(|| from.show())?;
            if attr.kind != FileType::Dir {
                // Only what the user has named is written to as it stands.
                if local::way(&to_path)? == Way::Direct && to_path == to && attr.kind == FileType::File {
                    self.stream(&node, &from, to)?;
                } else {
                    self.one(&node, &attr, &from, &to_path)?;
                }
                continue;
            }
            make_directory(&to_path, follow && to_path == to)?;
            if self.archive {
                self.directories.push((to_path.clone(), node.ino(), attr));
            } else {
                self.note(&node, &attr)?;
            }
            for entry in list::entries(&node).with_context(|| from.show())? {
                stack.push((from.join(&entry.name), local::below(&to_path, &entry.name)));
            }
        }
        Ok(())
    }

    /// Anything but a directory.
    fn one(&mut self, node: &Node, attr: &Attr, from: &Target, to: &Path) -> Result<()> {
        let shown = || to.display().to_string();
        let special = !matches!(attr.kind, FileType::File | FileType::Symlink);
        if special && !self.archive {
            eprintln!("pagestone: {}: not a file, directory or symbolic link, left out (-a copies it)", from.show());
            self.copied.left_out.whole += 1;
            return Ok(());
        }
        match self.linked.get(&node.ino()) {
            Some(first) if self.archive => {
                self.copied.files += 1;
                return local::replace(to, |path| fs::hard_link(first, path).with_context(shown));
            }
            Some(_) => self.copied.left_out.links += 1,
            None => {}
        }
        let made = local::replace(to, |path| {
            match attr.kind {
                FileType::File => self.file(node, attr, from, path)?,
                FileType::Symlink => {
                    let target = node.read_link().with_context(|| from.show())?;
                    symlink(to_os(&target), path).with_context(shown)?;
                }
                _ => local::make_special(path, attr).with_context(shown)?,
            }
            self.attributes(node, attr, path)
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
            self.linked.insert(node.ino(), to.to_path_buf());
        }
        Ok(())
    }

    fn stream(&mut self, node: &Node, from: &Target, to: &Path) -> Result<()> {
        let file = node.open().with_context(|| from.show())?;
        let mut out = local::open_stream(to)?;
        self.copied.bytes += copy_out(&file, &mut out, from, &to.display().to_string())?;
        self.copied.files += 1;
        Ok(())
    }

    /// Runs with storage are copied, holes stay holes.
    fn file(&mut self, node: &Node, attr: &Attr, from: &Target, to: &Path) -> Result<()> {
        let shown = || to.display().to_string();
        let file = node.open().with_context(|| from.show())?;
        let mode = if self.archive { 0o600 } else { attr.perm & 0o777 };
        let out = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(to).with_context(shown)?;
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
            let got = file.read_at(&mut buffer, at).with_context(|| from.show())?;
            if got == 0 {
                break;
            }
            out.write_all_at(&buffer[..got], at).with_context(shown)?;
            at += got as u64;
            bar.add(got as u64);
        }
        self.copied.bytes += attr.size;
        Ok(())
    }

    /// Counts what is left out without `-a`.
    fn note(&mut self, node: &Node, attr: &Attr) -> Result<()> {
        let left = &mut self.copied.left_out;
        left.xattrs += u64::from(!node.xattrs()?.is_empty());
        left.owners += u64::from((attr.uid, attr.gid) != local::us());
        left.set_id += u64::from(attr.kind == FileType::File && attr.perm & 0o6000 != 0);
        Ok(())
    }

    /// Everything that is neither name nor contents, or a note that it was left out.
    fn attributes(&mut self, node: &Node, attr: &Attr, to: &Path) -> Result<()> {
        let shown = || to.display().to_string();
        if !self.archive {
            self.note(node, attr)?;
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
        for name in node.xattrs()? {
            refused |= made.set_xattr(&name, &node.xattr(&name)?).is_err();
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
