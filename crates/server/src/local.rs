//! A pool that is open in this process.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use pagestone::check::{Report, check_in_use};
use pagestone::inode::{Dir, DirEntry, NewNode, Node, RenameMode, SetAttr, XattrMode};
use pagestone::snapshot::{Change, Copied, Snapshot};
use pagestone::{Error, FileType, Info, Ino, PAGE_SIZE, Pool};
use parking_lot::Mutex;

use crate::StoreError;
use crate::api::{self, Entry, Event, Listing, Moved, Name, NewEntry, Scrubbed, TransferHow, Usage, Xattr};
use crate::history;
use crate::observer::Observer;
use crate::scrub::scrub;
use crate::store::{Progress, READ_LIMIT, Result, Store};
use crate::transfer;

/// The directory in the root that holds the snapshots.
const SNAPSHOTS: &[u8] = b".snapshots";
/// Entries of one [`Store::entries`].
const BATCH: usize = 1000;

/// [`Store`] on a pool of this process.
#[derive(Clone)]
pub struct LocalStore {
    pool: Pool,
    observers: Arc<Mutex<Vec<Arc<dyn Observer>>>>,
    /// The number of the filesystem as which this process has it mounted.
    mounted_as: Arc<Mutex<Option<String>>>,
    /// Who uses it, for the history.
    user: u32,
    /// Its path, for messages.
    path: Arc<Path>,
}

impl LocalStore {
    /// Operations on this pool.
    pub fn new(pool: Pool) -> LocalStore {
        LocalStore {
            pool,
            observers: Arc::default(),
            mounted_as: Arc::default(),
            user: rustix::process::geteuid().as_raw(),
            path: Path::new("").into(),
        }
    }

    /// The same, with the path of the pool for messages.
    pub(crate) fn at(self, path: &Path) -> LocalStore {
        LocalStore { path: path.into(), ..self }
    }

    /// The same, in use by this user.
    pub(crate) fn by(&self, user: u32) -> LocalStore {
        LocalStore { user, ..self.clone() }
    }

    /// Notes what was done, if it was.
    fn noted<T>(&self, done: Result<T>, what: impl FnOnce() -> String) -> Result<T> {
        if done.is_ok() {
            let what = what();
            tracing::info!(pool = %self.path.display(), user = self.user, "{what}");
            history::note(&self.pool, self.user, &what);
        }
        done
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Tells `observer` of all changes from now on.
    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.lock().push(observer);
    }

    /// This process has the pool mounted.
    pub(crate) fn is_mounted_as(&self, device: &str) {
        *self.mounted_as.lock() = Some(device.to_owned());
    }

    /// The mount has ended: tells nobody from now on.
    pub(crate) fn observe_no_more(&self) {
        self.mounted_as.lock().take();
        self.observers.lock().clear();
    }

    fn tell(&self, what: impl Fn(&dyn Observer)) {
        // Called without the lock: an observer may wait.
        let observers = self.observers.lock().clone();
        observers.iter().for_each(|observer| what(&**observer));
    }

    fn node_changed(&self, ino: Ino) {
        self.tell(|observer| observer.node_changed(ino));
    }

    /// Runs `work`, and notifies the observers of those names that lead elsewhere afterwards, or nowhere. Also after an error: a
    /// part of the work may have happened. A name that leads where it did is not invalidated: the kernel would unmount what is
    /// mounted below it.
    fn changing<T>(&self, names: &[(&Dir, &[u8])], work: impl FnOnce() -> pagestone::Result<T>) -> Result<T> {
        if self.observers.lock().is_empty() {
            return Ok(work()?);
        }
        let look = || names.iter().map(|(dir, name)| dir.lookup(name).ok().map(|attr| attr.ino)).collect::<Vec<_>>();
        let before = look();
        let done = work();
        for ((&(dir, name), before), after) in names.iter().zip(before).zip(look()) {
            if before != after {
                self.tell(|observer| observer.name_changed(dir.ino(), name));
            }
            // It may have lost a name, or be in another directory.
            before.into_iter().for_each(|ino| self.node_changed(ino));
        }
        Ok(done?)
    }

    /// As [`LocalStore::changing`], for the snapshot of this name and the directory that it lies in.
    fn changing_snapshot<T>(&self, name: &[u8], work: impl FnOnce() -> pagestone::Result<T>) -> Result<T> {
        let root = self.pool.root();
        let dir = root.lookup(SNAPSHOTS).and_then(|attr| self.pool.node(attr.ino)?.dir()).ok();
        let names: Vec<_> = dir.iter().map(|dir| (dir, name)).chain([(&root, SNAPSHOTS)]).collect();
        self.changing(&names, work)
    }

    /// The files at `path` and below it: they lose a name. Without an observer nobody wants to know.
    fn files_below(&self, path: &[u8]) -> Result<Vec<Ino>> {
        let mut files = Vec::new();
        if self.observers.lock().is_empty() {
            return Ok(files);
        }
        for entry in self.pool.resolve(path)?.walk()? {
            match entry.and_then(|entry| entry.attr()) {
                Ok(attr) if attr.kind != FileType::Dir => files.push(attr.ino),
                // What is damaged does not keep the rest from being removed.
                _ => {}
            }
        }
        Ok(files)
    }

    /// What the root holds.
    fn root_names(&self) -> Result<HashMap<Vec<u8>, Ino>> {
        Ok(self
            .pool
            .root()
            .entries()
            .map(|entry| entry.map(|entry| (entry.name, entry.ino)))
            .collect::<pagestone::Result<_>>()?)
    }

    /// Names in the root may lead elsewhere than they did.
    fn root_changed(&self, before: &HashMap<Vec<u8>, Ino>) -> Result<()> {
        let (root, after) = (self.pool.root().ino(), self.root_names()?);
        for name in before.keys().chain(after.keys()).filter(|&name| before.get(name) != after.get(name)) {
            self.tell(|observer| observer.name_changed(root, name));
        }
        Ok(())
    }

    /// The pool, for its end.
    pub fn into_pool(self) -> Pool {
        self.pool
    }

    /// What a listing of the directory has found.
    fn entry_in(&self, dir: &Dir, found: &DirEntry) -> Result<Entry> {
        let node = self.pool.node(found.ino)?;
        let elsewhere = found.kind == FileType::Dir && node.dir()?.parent()? != dir.ino();
        Ok(Entry { elsewhere, ..entry_of(&node, &found.name)? })
    }

    /// The directory that holds the last part of a path, and that part.
    fn place<'p>(&self, path: &'p [u8]) -> Result<(Dir, &'p [u8])> {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (&path[..at.max(1)], &path[at + 1..]),
            None => return Err(Error::Invalid("a path has to begin with /").into()),
        };
        if name.is_empty() {
            return Err(Error::Invalid("the path names the root directory, or ends with /").into());
        }
        Ok((self.pool.resolve(parent)?.dir()?, name))
    }
}

/// The attributes of a node under a name.
fn entry_of(node: &Node, name: &[u8]) -> Result<Entry> {
    let attr = node.attr()?;
    let target = (attr.kind == FileType::Symlink).then(|| node.read_link()).transpose()?.map(Name);
    Ok(Entry { name: name.into(), attr, target, elsewhere: false })
}

impl Store for LocalStore {
    fn info(&self) -> Result<Info> {
        Ok(self.pool.info()?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.pool.sync()?)
    }

    fn entry(&self, path: &[u8]) -> Result<Entry> {
        entry_of(&self.pool.resolve(path)?, path)
    }

    fn entries(&self, path: &[u8], from: Option<&str>) -> Result<Listing> {
        let cookie = match from {
            None => 0,
            Some(text) => text.parse().map_err(|_| Error::Invalid("no place in a directory"))?,
        };
        let dir = self.pool.resolve(path)?.dir()?;
        let batch = dir.read_entries(cookie, BATCH)?;
        let next = (batch.len() == BATCH).then(|| batch.last().map(|entry| entry.cookie.to_string())).flatten();
        let found = |found: DirEntry| match self.entry_in(&dir, &found) {
            // It was removed meanwhile.
            Err(StoreError::Library(Error::Stale(_))) => None,
            other => Some(other),
        };
        Ok(Listing { entries: batch.into_iter().filter_map(found).collect::<Result<_>>()?, next })
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>> {
        let file = self.pool.node(ino)?.open()?;
        let left = file.attr()?.size.saturating_sub(offset);
        let mut bytes = vec![0; len.min(READ_LIMIT).min(usize::try_from(left).unwrap_or(usize::MAX))];
        let got = file.read_at(&mut bytes, offset)?;
        bytes.truncate(got);
        Ok(bytes)
    }

    fn usage(&self, path: &[u8]) -> Result<Usage> {
        let mut usage = Usage::default();
        let mut seen = HashSet::new();
        for entry in self.pool.resolve(path)?.walk()? {
            let attr = match entry.and_then(|entry| entry.attr()) {
                // It was removed meanwhile.
                Err(Error::Stale(_)) => continue,
                attr => attr?,
            };
            // A file with several names counts once.
            if attr.nlink > 1 && attr.kind != FileType::Dir && !seen.insert(attr.ino) {
                continue;
            }
            usage.files += u64::from(attr.kind != FileType::Dir);
            usage.bytes = usage.bytes.saturating_add(attr.pages.saturating_mul(PAGE_SIZE));
            usage.shared = usage.shared.saturating_add(attr.shared.saturating_mul(PAGE_SIZE));
        }
        usage.own = usage.bytes.saturating_sub(usage.shared);
        Ok(usage)
    }

    fn create(&self, path: &[u8], new: &NewEntry) -> Result<Entry> {
        let (dir, name) = self.place(path)?;
        let node = NewNode::new(new.kind, new.perm).owner(new.uid, new.gid).rdev(new.rdev).target(&new.target.0);
        let attr = self.changing(&[(&dir, name)], || dir.create(name, &node))?;
        let target = (new.kind == FileType::Symlink).then(|| new.target.clone());
        Ok(Entry { name: path.into(), attr, target, elsewhere: false })
    }

    fn link(&self, ino: Ino, to: &[u8]) -> Result<()> {
        let (dir, name) = self.place(to)?;
        self.changing(&[(&dir, name)], || dir.link(name, ino))?;
        self.node_changed(ino);
        Ok(())
    }

    fn write(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.pool.node(ino)?.open()?;
        let written = file.write_all_at(bytes, offset);
        self.tell(|observer| observer.bytes_changed(file.ino()));
        Ok(written?)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<u64>> {
        match self.pool.node(ino)?.open()?.seek_data(offset) {
            Ok(data) => Ok(Some(data)),
            Err(Error::NoData) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn set_attributes(&self, ino: Ino, change: &SetAttr) -> Result<()> {
        let node = self.pool.node(ino)?;
        let done = node.set_attr(change);
        match change.size {
            Some(_) => self.tell(|observer| observer.bytes_changed(node.ino())),
            None => self.node_changed(node.ino()),
        }
        done?;
        Ok(())
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Xattr>> {
        let node = self.pool.node(ino)?;
        let value = |name: Vec<u8>| Ok(Xattr { value: Name(node.xattr(&name)?), name: Name(name) });
        // Those of our own are not the file's.
        node.xattrs()?.into_iter().filter(|name| !name.starts_with(history::OWN)).map(value).collect()
    }

    fn set_xattr(&self, ino: Ino, attribute: &Xattr) -> Result<()> {
        let node = self.pool.node(ino)?;
        node.set_xattr(&attribute.name.0, &attribute.value.0, XattrMode::Set)?;
        self.node_changed(node.ino());
        Ok(())
    }

    fn remove(&self, path: &[u8], recursive: bool) -> Result<u64> {
        let (dir, name) = self.place(path)?;
        let tree = dir.lookup(name)?.kind == FileType::Dir && recursive;
        let files = self.files_below(path)?;
        let work = || if tree { dir.remove_tree(name) } else { dir.unlink(name).map(|()| 1) };
        let removed = self.changing(&[(&dir, name)], work);
        files.into_iter().for_each(|ino| self.node_changed(ino));
        removed
    }

    fn rename(&self, from: &[u8], to: &[u8], replace: bool) -> Result<()> {
        let (dir, name) = self.place(from)?;
        let (to_dir, to_name) = self.place(to)?;
        let mode = if replace { RenameMode::Replace } else { RenameMode::NoReplace };
        let names: [(&Dir, &[u8]); 2] = [(&dir, name), (&to_dir, to_name)];
        self.changing(&names, || dir.rename(name, to_dir.ino(), to_name, mode))
    }

    fn clone_tree(&self, from: &[u8], to: &[u8]) -> Result<Copied> {
        let from = self.pool.resolve(from)?;
        let (dir, name) = self.place(to)?;
        if from.attr()?.kind == FileType::File && from.xattrs()?.is_empty() {
            // One transaction.
            self.changing(&[(&dir, name)], || dir.clone_file(name, from.ino()))?;
            let mut made = Copied::default();
            made.files = 1;
            return Ok(made);
        }
        // The copy is made among the snapshots.
        let root = self.pool.root();
        let names: [(&Dir, &[u8]); 2] = [(&dir, name), (&root, SNAPSHOTS)];
        self.changing(&names, || self.pool.snapshots().clone_tree(from.ino(), dir.ino(), name))
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        Ok(self.pool.snapshots().list()?)
    }

    fn create_snapshot(&self, name: &[u8]) -> Result<Copied> {
        let done = self.changing_snapshot(name, || self.pool.snapshots().create(name));
        self.noted(done, || format!("snapshot create {}", Name::from(name)))
    }

    fn delete_snapshot(&self, name: &[u8]) -> Result<()> {
        let done = self.changing_snapshot(name, || self.pool.snapshots().delete(name));
        self.noted(done, || format!("snapshot delete {}", Name::from(name)))
    }

    fn diff_snapshot(&self, name: &[u8], other: Option<&[u8]>) -> Result<Vec<Change>> {
        Ok(self.pool.snapshots().diff(name, other)?)
    }

    fn restore_snapshot(&self, name: &[u8]) -> Result<Copied> {
        let before = self.root_names()?;
        let made = self.pool.snapshots().restore(name);
        // Also after an error: a part of the names may have been exchanged.
        let told = self.root_changed(&before);
        let made = self.noted(Ok(made?), || format!("snapshot restore {}", Name::from(name)))?;
        told?;
        Ok(made)
    }

    fn history(&self) -> Result<Vec<Event>> {
        Ok(history::read(&self.pool)?)
    }

    fn check(&self) -> Result<Report> {
        Ok(check_in_use(&self.pool)?)
    }

    fn import(&self, from: &Path, to: &[u8], how: TransferHow, progress: Progress<'_>) -> Result<Moved> {
        transfer::check_elsewhere(self.mounted_as.lock().as_deref(), from)?;
        let (dir, name) = self.place(to)?;
        let partial = transfer::partial_name(name);
        let imported = transfer::import(&self.pool, from, (&dir, name), how, self.user, progress);
        if !how.resume && imported.as_ref().is_err_and(|e| e.errno() != libc::EINTR) {
            // The error does not name it, so it must not stay.
            let _ = dir.unlink(&partial);
        }
        // Also after an error: it may have been made, or removed.
        self.tell(|observer| observer.name_changed(dir.ino(), &partial));
        let moved = imported?;
        let names: [(&Dir, &[u8]); 2] = [(&dir, &partial), (&dir, name)];
        self.changing(&names, || dir.rename(&partial, dir.ino(), name, RenameMode::Replace))?;
        self.pool.sync()?;
        Ok(moved)
    }

    fn export(&self, from: &[u8], to: &Path, how: TransferHow, progress: Progress<'_>) -> Result<Moved> {
        transfer::check_elsewhere(self.mounted_as.lock().as_deref(), to)?;
        let done = transfer::export(&self.pool, (from, to), how, progress);
        // It has made a file there for a moment.
        self.node_changed(self.pool.root().ino());
        done
    }

    fn scrub(&self, progress: Progress<'_>) -> Result<Scrubbed> {
        let done = scrub(&self.pool, progress)?;
        let Scrubbed { files, bytes, lost, .. } = done;
        self.noted(Ok(done), || format!("scrub: {files} files, {bytes} bytes, {lost} places lost"))
    }

    fn resize(&self, change: api::Change, size: u64, progress: Progress<'_>) -> Result<()> {
        let before = self.pool.info()?.size;
        let (done, what) = match change {
            api::Change::Grow => (self.pool.grow(size), "grow"),
            api::Change::Shrink => (self.pool.shrink(size, progress), "shrink"),
        };
        self.noted(done.map_err(StoreError::from), || format!("{what} from {before} to {size} bytes"))
    }
}
