//! Where a damaged image is opened: media that remember which pages were stored to, so that only
//! those have to be put back for the next case.
//!
//! ```text
//!   image  the sound bytes         work  the same with this case's damage
//!   writable  one window: work     read-only  two windows: work, and a private copy for replay
//! ```

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use pmem::{Description, Durability, Granularity, MappedRange, Media, MediaKind, Part, PersistMethod, Views};

pub(crate) const PAGE: usize = 4096;

#[derive(Debug)]
pub(crate) struct Tracked {
    meta: MappedRange,
    /// The data window, if it is another one.
    data: Option<MappedRange>,
    description: Description,
    stored: Mutex<BTreeSet<usize>>,
    violated: AtomicBool,
}

impl Tracked {
    fn new(len: usize, read_only: bool) -> Tracked {
        Tracked {
            meta: MappedRange::anonymous(len as u64).expect("memory"),
            data: read_only.then(|| MappedRange::anonymous(len as u64).expect("memory")),
            description: Description {
                kind: MediaKind::Memory,
                granularity: Granularity::Byte,
                method: PersistMethod::None,
                durability: Durability::AtFence,
                promise: String::new(),
                cache_id: [0; 16],
                read_only,
            },
            stored: Mutex::default(),
            violated: AtomicBool::new(false),
        }
    }

    fn data(&self) -> &MappedRange {
        self.data.as_ref().unwrap_or(&self.meta)
    }

    fn load(&self, work: &[u8], pages: impl Iterator<Item = usize>) {
        for page in pages {
            let bytes = &work[page * PAGE..][..PAGE];
            assert!(self.meta.write((page * PAGE) as u64, bytes) && self.data().write((page * PAGE) as u64, bytes));
        }
    }

    fn note(&self, at: u64, len: u64) {
        let mut stored = self.stored.lock().expect("no panic under this lock");
        stored.extend(at as usize / PAGE..(at + len).div_ceil(PAGE as u64) as usize);
    }

    /// Whether an address lies in the data window.
    pub(crate) fn holds(&self, addr: *const u8, len: usize) -> bool {
        let first = self.data().addr(0, 0).expect("the start") as usize;
        let end = first + self.data().len() as usize;
        (first..=end).contains(&(addr as usize)) && addr as usize + len <= end
    }

    /// The data window's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.data().len() as usize];
        assert!(self.data().read(0, &mut bytes));
        bytes
    }

    /// Whether something that must not change was changed.
    pub(crate) fn violated(&self) -> bool {
        self.violated.load(Ordering::SeqCst)
    }
}

impl Media for Tracked {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn views(&self) -> Views<'_> {
        Views { meta: &self.meta, data: self.data() }
    }
    fn persist(&self, parts: &[Part<'_>]) -> io::Result<()> {
        if self.description.read_only {
            self.violated.store(true, Ordering::SeqCst);
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        for part in parts {
            self.note(part.at(), part.len());
            let inside = match *part {
                Part::Bytes { at, bytes } => self.data().write(at, bytes),
                Part::Zero { at, len } => self.data().zero(at, len),
            };
            assert!(inside, "a part lies inside: the floor above checks");
        }
        Ok(())
    }
    fn store(&self, at: u64, bytes: &[u8]) {
        self.note(at, bytes.len() as u64);
        assert!(self.meta.write(at, bytes), "a store lies inside: the floor above checks");
    }
    fn flush(&self, _at: u64, _len: u64) -> io::Result<()> {
        self.violated.fetch_or(self.description.read_only, Ordering::SeqCst);
        Ok(())
    }
    fn fence(&self) {}
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn reserve(&self, _at: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// One image and its two media.
pub(crate) struct Stage {
    pub(crate) image: Arc<Vec<u8>>,
    pub(crate) work: Vec<u8>,
    pub(crate) damaged: BTreeSet<usize>,
    pub(crate) writable: Arc<Tracked>,
    pub(crate) read_only: Arc<Tracked>,
}

impl Stage {
    pub(crate) fn new(image: Arc<Vec<u8>>) -> Stage {
        let (len, pages) = (image.len(), image.len() / PAGE);
        let (writable, read_only) = (Arc::new(Tracked::new(len, false)), Arc::new(Tracked::new(len, true)));
        writable.load(&image, 0..pages);
        read_only.load(&image, 0..pages);
        Stage { work: image.to_vec(), image, damaged: BTreeSet::new(), writable, read_only }
    }

    /// Damages bytes of this case's image.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        let len = bytes.len().min(self.work.len().saturating_sub(at));
        if len > 0 {
            self.work[at..at + len].copy_from_slice(&bytes[..len]);
            self.damaged.extend(at / PAGE..(at + len).div_ceil(PAGE));
        }
    }

    /// Puts the damage on both media.
    pub(crate) fn set(&self) {
        self.writable.load(&self.work, self.damaged.iter().copied());
        self.read_only.load(&self.work, self.damaged.iter().copied());
    }

    /// Whether the read-only media still holds what it was given.
    pub(crate) fn untouched(&self) -> bool {
        !self.read_only.violated() && self.read_only.bytes() == self.work
    }

    /// Puts the sound image back.
    pub(crate) fn restore(&mut self) {
        for &page in &self.damaged {
            self.work[page * PAGE..][..PAGE].copy_from_slice(&self.image[page * PAGE..][..PAGE]);
        }
        for media in [&self.writable, &self.read_only] {
            let mut stored = media.stored.lock().expect("no panic under this lock");
            media.load(&self.image, self.damaged.iter().chain(stored.iter()).copied());
            stored.clear();
        }
        self.damaged.clear();
    }
}
