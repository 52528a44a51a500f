//! Where a file has data and holes, and where its extents lie.

use crate::attr::Extent;
use crate::data::read::{Source, stretches};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::extent::extent_map::Map;
use crate::units::{Ino, PAGE_SIZE};

impl Engine {
    /// First offset from `offset` on that is data, or (`data` false) a hole.
    pub(crate) fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        let _lock = self.locks.read(ino);
        let rec = self.alloc.inode(ino)?;
        if offset >= rec.size {
            return Err(Error::NoData);
        }
        let _chain = self.chain(&rec);
        let map = Map { nodes: &self.alloc, alloc: &self.alloc, rec: &rec };
        let mut at = offset;
        while at < rec.size {
            let page = at / PAGE_SIZE;
            let span = map.span(page)?;
            if data != span.is_hole() {
                return Ok(at);
            }
            at = page.saturating_add(span.pages()).saturating_mul(PAGE_SIZE);
        }
        if data { Err(Error::NoData) } else { Ok(rec.size) }
    }

    /// The runs with storage in a range, up to the end of the file.
    pub(crate) fn extents(&self, ino: Ino, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let _lock = self.locks.read(ino);
        let rec = self.alloc.inode(ino)?;
        let chain = self.chain(&rec);
        let end = offset.saturating_add(len).min(rec.size);
        let mut out = Vec::new();
        stretches(&self.alloc, &chain, &rec, offset, end, |s| {
            let shared = matches!(s.source, Source::Shared(_));
            out.extend(s.pool().map(|pool| Extent { offset: s.offset, pool, len: s.len, shared }));
            Ok(())
        })?;
        Ok(out)
    }
}
