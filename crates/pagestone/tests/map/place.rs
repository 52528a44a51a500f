//! Pools to map files of, one for each kind of media.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;

use pagestone::inode::NewNode;
use pagestone::{CreateOptions, File, FileType, Pool};
use pmem::{MediaKind, Memory};

use crate::common::{HugePages, Mounted};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const FRAME: u64 = 2 << 20;
const SIZE: u64 = 128 << 20;

/// A pool, and where it lies.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) pool: Pool,
    pub(crate) path: Option<PathBuf>,
    /// Pages of the smallest piece that can be mapped.
    pub(crate) granule: u64,
    kind: Option<MediaKind>,
    pub(crate) memory: Option<Arc<Memory>>,
    _dir: Option<tempfile::TempDir>,
    _mount: Option<(Mounted, Option<HugePages>)>,
}

static TESTS: RwLock<()> = RwLock::new(());

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `test` while no other test of this process has a place.
pub(crate) fn alone(test: impl FnOnce()) {
    let _all = TESTS.write();
    ALONE.set(true);
    test();
    ALONE.set(false);
}

impl Place {
    pub(crate) fn memory() -> Place {
        let media = Arc::new(Memory::new(SIZE).unwrap());
        let pool = Pool::create_on(media.clone(), &CreateOptions::default()).unwrap();
        Place {
            name: "memory",
            pool,
            path: None,
            granule: 1,
            kind: None,
            memory: Some(media),
            _dir: None,
            _mount: None,
        }
    }

    pub(crate) fn tmpfs() -> Place {
        Place::on("tmpfs", tempfile::tempdir_in("/dev/shm").unwrap(), None)
    }

    pub(crate) fn ordinary() -> Place {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Place::on("ordinary file", dir, Some(MediaKind::File))
    }

    /// A tmpfs that gives huge pages to whoever asks.
    pub(crate) fn huge_tmpfs() -> Result<Place, String> {
        Place::mounted("tmpfs with huge pages", Mounted::new("tmpfs", "huge=always,size=1g")?, None)
    }

    /// Nothing smaller than 2 MiB can be mapped there.
    pub(crate) fn hugetlbfs() -> Result<Place, String> {
        let pages = HugePages::take(SIZE / FRAME + 8)?;
        Place::mounted("hugetlbfs", Mounted::new("hugetlbfs", "pagesize=2M")?, Some(pages))
    }

    fn mounted(name: &'static str, mount: Mounted, pages: Option<HugePages>) -> Result<Place, String> {
        let path = mount.path().join("pool");
        let options = CreateOptions::new().size(SIZE);
        let pool = Pool::create(&path, &options).map_err(|e| e.to_string())?;
        let granule = if pages.is_some() { FRAME / PAGE } else { 1 };
        let mount = Some((mount, pages));
        Ok(Place { name, pool, path: Some(path), granule, kind: None, memory: None, _dir: None, _mount: mount })
    }

    fn on(name: &'static str, dir: tempfile::TempDir, media: Option<MediaKind>) -> Place {
        let path = dir.path().join("pool");
        let options = CreateOptions::new().size(SIZE).media(media);
        let pool = Pool::create(&path, &options).unwrap();
        Place { name, pool, path: Some(path), granule: 1, kind: media, memory: None, _dir: Some(dir), _mount: None }
    }

    /// Runs `test` on every kind that maps single pages.
    pub(crate) fn each(test: impl Fn(&Place)) {
        for make in [Place::memory, Place::tmpfs, Place::ordinary] {
            Place::with(make(), &test);
        }
    }

    /// Runs `test` on every kind of media that can be had here.
    pub(crate) fn every(test: impl Fn(&Place)) {
        Place::each(&test);
        for place in [Place::huge_tmpfs(), Place::hugetlbfs()] {
            match place {
                Ok(place) => Place::with(place, &test),
                Err(e) => println!("skipped: {e}"),
            }
        }
    }

    /// As [`Place::each`], with no other test at the same time: a child has the mappings of all tests of its
    /// process, and what they change waits for it.
    pub(crate) fn each_alone(test: impl Fn(&Place)) {
        alone(|| Place::each(test));
    }

    /// Runs `test`, then `check`.
    pub(crate) fn with(place: Place, test: impl Fn(&Place)) {
        let _one_of_many = (!ALONE.get()).then(|| TESTS.read_recursive());
        println!("on {}", place.name);
        test(&place);
        let Place { name, pool, path, kind, memory, .. } = &place;
        if *name == "hugetlbfs" {
            // It cannot be copied by reading and writing it; what matters was compared.
            return;
        }
        pool.checkpoint().unwrap();
        let report = match (path, memory) {
            (_, Some(memory)) => {
                pagestone::check::check_on(memory.clone(), &pagestone::check::CheckOptions::default(), &mut |_, _| ())
            }
            (Some(path), _) => {
                // The pool is still open here: looked at as it lies on its file.
                let copy = path.with_extension("copy");
                std::fs::copy(path, &copy).unwrap();
                pagestone::check::check(&copy, &pagestone::check::CheckOptions::new().media(*kind), &mut |_, _| ())
            }
            _ => unreachable!("a pool lies somewhere"),
        };
        let report = report.unwrap();
        assert!(report.findings.is_empty(), "check on {name}: {:?}", report.findings);
    }

    pub(crate) fn file(&self, name: &str) -> File {
        let attr = self.pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o600)).unwrap();
        self.pool.node(attr.ino).unwrap().open().unwrap()
    }

    /// A file of `len` bytes that is one hole.
    pub(crate) fn sparse(&self, name: &str, len: u64) -> File {
        let file = self.file(name);
        file.set_len(len).unwrap();
        file
    }
}

/// Pages of storage that a file has.
pub(crate) fn storage(file: &File) -> u64 {
    file.extents(..).unwrap().iter().map(|x| x.len / PAGE).sum()
}
