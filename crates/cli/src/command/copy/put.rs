//! `pagestone put`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use pagestone::inode::{SetAttr, Time};
use pagestone::{Error, FileType, Ino};
use pagestone_server::Store;
use pagestone_server::api::{NewEntry, Xattr};

use super::{Copied, How, STEP, local, report};
use crate::command::files::{into_directory, make_all, make_or_keep, owned, umask};
use crate::command::pool;
use crate::exit::Exit;
use crate::options::Common;
use crate::progress::Progress;
use crate::target::{self, Target};

#[derive(Args, Debug)]
pub(crate) struct Put {
    /// The file or directory to copy; - is standard input
    from: PathBuf,
    /// Where to; into it if it is a directory
    #[arg(value_name = "POOL:/PATH", value_parser = target::parser())]
    to: Target,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn put(args: &Put) -> Result<Exit> {
    let copied = pool::with(&args.to.pool, false, &args.common, |store| {
        let own = fs::metadata(&args.to.pool).map(|meta| (meta.dev(), meta.ino())).ok();
        let archive = args.how.archive;
        let (linked, directories) = (HashMap::new(), Vec::new());
        let mut copier = Copier { store, own, archive, copied: Copied::default(), linked, directories };
        copier.all(args)?;
        Ok(copier.copied)
    })?;
    report(args.common.json, args.how.archive, &copied)
}

struct Copier<'p> {
    store: &'p dyn Store,
    /// Device and number of the pool's own file.
    own: Option<(u64, u64)>,
    archive: bool,
    copied: Copied,
    /// Files with several names, by device and number, and what they have become.
    linked: HashMap<(u64, u64), Ino>,
    /// Directories whose attributes are set when nothing is made in them any more.
    directories: Vec<(Ino, SetAttr)>,
}

impl Copier<'_> {
    fn all(&mut self, args: &Put) -> Result<()> {
        if args.from.as_os_str() == "-" {
            return self.stream(&mut io::stdin().lock(), &args.to);
        }
        let shown = || args.from.display().to_string();
        let meta = if args.how.archive { fs::symlink_metadata(&args.from) } else { fs::metadata(&args.from) };
        let meta = meta.with_context(shown)?;
        let to = match args.from.file_name() {
            Some(name) => into_directory(self.store, &args.to, name.as_bytes()),
            None => args.to.clone(),
        };
        if self.is_own(&meta) {
            bail!("{}: is the pool itself", args.from.display());
        }
        if !meta.is_dir() {
            return self.one(&args.from, &meta, &to);
        }
        if !args.how.recursive && !args.how.archive {
            bail!("{}: is a directory (copy it with -r or -a)", args.from.display());
        }
        self.tree(&args.from, &to)?;
        for (ino, change) in self.directories.iter().rev() {
            self.store.set_attributes(*ino, change).with_context(|| to.show())?;
        }
        Ok(())
    }

    fn is_own(&self, meta: &Metadata) -> bool {
        self.own == Some((meta.dev(), meta.ino()))
    }

    fn tree(&mut self, top: &Path, to: &Target) -> Result<()> {
        let mut stack = vec![(top.to_path_buf(), to.clone())];
        while let Some((from, to)) = stack.pop() {
            let shown = || from.display().to_string();
            let meta = fs::symlink_metadata(&from).with_context(shown)?;
            if !meta.is_dir() && from.as_path() != Path::new(".") {
                self.one(&from, &meta, &to)?;
                continue;
            }
            let new = owned(FileType::Dir, meta.permissions().mode() & 0o777);
            // Those above the first one have to be made, too.
            if from == top { make_all(self.store, &to, &new) } else { make_or_keep(self.store, &to, &new) }?;
            let ino = self.store.entry(&to.path).with_context(|| to.show())?.attr.ino;
            self.attributes(&from, &meta, ino, &to)?;
            for entry in fs::read_dir(&from).with_context(shown)? {
                let entry = entry.with_context(shown)?;
                stack.push((entry.path(), to.join(entry.file_name().as_bytes())));
            }
        }
        Ok(())
    }

    /// Anything but a directory.
    fn one(&mut self, from: &Path, meta: &Metadata, to: &Target) -> Result<()> {
        if self.is_own(meta) {
            eprintln!("pagestone: {}: is the pool itself, left out", from.display());
            self.copied.left_out.whole += 1;
            return Ok(());
        }
        if meta.nlink() > 1 {
            match self.linked.entry((meta.dev(), meta.ino())) {
                Entry::Occupied(entry) if self.archive => {
                    self.copied.files += 1;
                    let ino = *entry.get();
                    return self
                        .replace(to, |temporary| Ok(self.store.link(ino, &temporary.path).map(|()| ino)?))
                        .map(drop);
                }
                Entry::Occupied(_) => self.copied.left_out.links += 1,
                Entry::Vacant(_) => {}
            }
        }
        let Some(ino) = self.make(from, meta, to)? else { return Ok(()) };
        if meta.nlink() > 1 {
            self.linked.insert((meta.dev(), meta.ino()), ino);
        }
        self.copied.files += 1;
        Ok(())
    }

    /// `None` if it was left out.
    fn make(&mut self, from: &Path, meta: &Metadata, to: &Target) -> Result<Option<Ino>> {
        let kind = FileType::from_mode(meta.mode()).with_context(|| format!("{}: of unknown kind", from.display()))?;
        let new = match kind {
            FileType::File => return self.file(from, to).map(Some),
            FileType::Symlink => {
                let target = fs::read_link(from).with_context(|| from.display().to_string())?;
                NewEntry { target: target.as_os_str().as_bytes().into(), ..owned(kind, 0o777) }
            }
            _ if self.archive => NewEntry { rdev: meta.rdev(), ..owned(kind, meta.mode() & 0o777) },
            _ => {
                eprintln!(
                    "pagestone: {}: not a file, directory or symbolic link, left out (-a copies it)",
                    from.display()
                );
                self.copied.left_out.whole += 1;
                return Ok(None);
            }
        };
        let ino = self.replace(to, |temporary| Ok(self.store.create(&temporary.path, &new)?.attr.ino))?;
        self.attributes(from, meta, ino, to)?;
        Ok(Some(ino))
    }

    /// Lets `make` make something under a name beside `to`, which then takes its place.
    fn replace(&self, to: &Target, make: impl FnOnce(&Target) -> Result<Ino>) -> Result<Ino> {
        let name = to.last_name()?;
        if self.store.entry(&to.path).is_ok_and(|entry| entry.attr.kind == FileType::Dir) {
            return Err(Error::IsDirectory).with_context(|| to.show());
        }
        let temporary = to.beside(name, &format!(".pagestone-put-{}", std::process::id()));
        // Left over from a process that had our number.
        let _ = self.store.remove(&temporary.path, false);
        let made = make(&temporary).and_then(|ino| {
            self.store.rename(&temporary.path, &to.path, true)?;
            Ok(ino)
        });
        // Gone if all is well, and if the two were names of one file still there.
        let _ = self.store.remove(&temporary.path, false);
        made.with_context(|| to.show())
    }

    /// A new regular file, filled by `fill`. Mode and owner are those of a file that it replaces, unless all
    /// is to be as at the source.
    fn fill(&self, to: &Target, perm: u32, fill: impl FnOnce(Ino) -> Result<()>) -> Result<Ino> {
        let old = self.store.entry(&to.path).ok().map(|entry| entry.attr);
        let old = old.filter(|attr| attr.kind == FileType::File && !self.archive);
        let new = match old {
            Some(old) => NewEntry { uid: old.uid, gid: old.gid, ..owned(FileType::File, old.perm & 0o777) },
            None => owned(FileType::File, perm),
        };
        self.replace(to, |temporary| {
            let ino = self.store.create(&temporary.path, &new)?.attr.ino;
            fill(ino)?;
            Ok(ino)
        })
    }

    fn stream(&mut self, from: &mut dyn Read, to: &Target) -> Result<()> {
        let mut at = 0;
        self.fill(to, 0o666 & !umask(), |ino| {
            let mut buffer = vec![0; STEP];
            loop {
                let got = match from.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(got) => got,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(e).context("standard input"),
                };
                self.store.write(ino, at, &buffer[..got])?;
                at += got as u64;
            }
        })?;
        self.copied.files += 1;
        self.copied.bytes += at;
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Target) -> Result<Ino> {
        let shown = || from.display().to_string();
        let source = fs::File::open(from).with_context(shown)?;
        let meta = source.metadata().with_context(shown)?;
        let mut bar = Progress::bytes(&shown(), meta.len());
        let mut at = 0;
        let ino = self.fill(to, meta.permissions().mode() & 0o777, |ino| {
            let mut buffer = vec![0; STEP];
            loop {
                let got = source.read_at(&mut buffer, at).with_context(shown)?;
                if got == 0 {
                    return Ok(self.store.set_attributes(ino, &SetAttr::new().size(at))?);
                }
                // What is all zeros stays a hole.
                if buffer[..got].iter().any(|byte| *byte != 0) {
                    self.store.write(ino, at, &buffer[..got])?;
                }
                at += got as u64;
                bar.add(got as u64);
            }
        })?;
        self.attributes(from, &meta, ino, to)?;
        self.copied.bytes += at;
        Ok(ino)
    }

    /// Everything that is neither name nor contents, or a note that it was left out.
    fn attributes(&mut self, from: &Path, meta: &Metadata, ino: Ino, to: &Target) -> Result<()> {
        let names = local::xattr_names(from).with_context(|| from.display().to_string())?;
        let modified = Time { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 };
        if !self.archive {
            let left = &mut self.copied.left_out;
            left.xattrs += u64::from(!names.is_empty());
            left.owners += u64::from((meta.uid(), meta.gid()) != local::us());
            left.set_id += u64::from(meta.is_file() && meta.mode() & 0o6000 != 0);
            if meta.is_file() {
                let change = SetAttr::new().mtime(modified);
                self.store.set_attributes(ino, &change).with_context(|| to.show())?;
            }
            return Ok(());
        }
        let mut refused = false;
        for name in &names {
            let value = local::xattr(from, name).with_context(|| from.display().to_string())?;
            // Access control lists and the like mean nothing in a pool.
            let attribute = Xattr { name: name.into(), value: value.into() };
            refused |= name.starts_with(b"system.") || self.store.set_xattr(ino, &attribute).is_err();
        }
        self.copied.left_out.xattrs += u64::from(refused);
        let change = SetAttr::new()
            .perm(meta.mode() & 0o7777)
            .uid(meta.uid())
            .gid(meta.gid())
            .atime(Time { sec: meta.atime(), nsec: meta.atime_nsec() as u32 })
            .mtime(modified);
        if meta.is_dir() {
            self.directories.push((ino, change));
            return Ok(());
        }
        self.store.set_attributes(ino, &change).with_context(|| to.show())
    }
}
