//! What a modelled pool lies on, and how it is closed, crashed and opened again there.

use std::path::PathBuf;
use std::sync::Arc;

use pagestone::check::Report;
use pagestone::{CreateOptions, OpenOptions, Pool};
use pmem::{MediaKind, Memory};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum On {
    Memory,
    File,
    Shm,
}

pub(crate) enum Place {
    Memory(Arc<Memory>),
    Path { dir: tempfile::TempDir, kind: Option<MediaKind> },
}

impl Place {
    pub(crate) fn create(on: On, size: u64) -> (Place, Pool) {
        let options = |media| CreateOptions::new().size(size).media(media);
        match on {
            On::Memory => {
                let media = Arc::new(Memory::new(size).expect("memory"));
                let pool = Pool::create_on(media.clone(), &options(None)).expect("create");
                (Place::Memory(media), pool)
            }
            On::File | On::Shm => {
                let dir = match on {
                    On::Shm => tempfile::tempdir_in("/dev/shm"),
                    _ => tempfile::tempdir(),
                };
                let kind = (on == On::File).then_some(MediaKind::File);
                let place = Place::Path { dir: dir.expect("a directory"), kind };
                let pool = Pool::create(place.path(), &options(kind)).expect("create");
                (place, pool)
            }
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Place::Memory(_) => PathBuf::new(),
            Place::Path { dir, .. } => dir.path().join("pool"),
        }
    }

    pub(crate) fn open(&self) -> Pool {
        match self {
            Place::Memory(media) => Pool::open_on(media.clone(), &OpenOptions::default()),
            Place::Path { kind, .. } => Pool::open(self.path(), &OpenOptions::new().media(*kind)),
        }
        .expect("the pool opens again")
    }

    /// Keeps what a killed process would leave now, for [`Place::restore`] once the old pool is gone: what it still
    /// writes is lost.
    pub(crate) fn crash(&mut self) {
        let (path, kept) = (self.path(), self.kept());
        match self {
            Place::Memory(media) => {
                let mut bytes = vec![0; media.bytes().len() as usize];
                let copy = Memory::new(media.bytes().len()).expect("memory");
                assert!(media.bytes().read(0, &mut bytes));
                for (i, page) in bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|&b| b != 0)) {
                    assert!(copy.bytes().write(i as u64 * 4096, page));
                }
                *media = Arc::new(copy);
            }
            Place::Path { .. } => drop(std::fs::copy(path, kept).expect("copy")),
        }
    }

    /// Puts back what [`Place::crash`] kept. Into the same file: in another one, nobody would believe that the page
    /// cache has survived.
    pub(crate) fn restore(&self) {
        if let Place::Path { .. } = self {
            std::fs::copy(self.kept(), self.path()).expect("copy back");
        }
    }

    fn kept(&self) -> PathBuf {
        self.path().with_extension("kept")
    }

    /// Proves the closed pool sound.
    pub(crate) fn check(&self) {
        let report: Report = match self {
            Place::Memory(media) => {
                pagestone::check::check_on(media.clone(), &pagestone::check::CheckOptions::default(), &mut |_, _| {})
            }
            Place::Path { kind, .. } => pagestone::check::check(
                self.path(),
                &pagestone::check::CheckOptions::new().media(*kind),
                &mut |_, _| {},
            ),
        }
        .expect("check runs");
        assert!(report.is_clean(), "check: {:#?}", report.findings);
    }
}
