//! Comparing two files; what they share is not read.

use crate::engine::Engine;
use crate::error::Result;
use crate::extent::extent_map::Map;
use crate::extent::resolve::{ChainRead, Span};
use crate::layout::InodeRec;
use crate::units::{Ino, PAGE_SIZE};

impl Engine {
    /// How many bytes of two files are not alike, by page; what only the longer one has counts.
    pub(crate) fn count_differing_bytes(&self, a: Ino, b: Ino) -> Result<u64> {
        let _locks = self.locks.read_two(a, b);
        let (a, b) = (self.alloc.inode(a)?, self.alloc.inode(b)?);
        let chain = self.chain_of_both(&a, &b);
        let end = a.size.min(b.size);
        let mut unlike = a.size.max(b.size) - end;
        let (mut page, last) = (0, end.div_ceil(PAGE_SIZE));
        while page < last {
            let (x, y) = (self.span_of(&chain, &a, page)?, self.span_of(&chain, &b, page)?);
            let pages = x.pages().min(y.pages()).min(last - page);
            unlike += match (x, y) {
                (Span::Hole(_), Span::Hole(_)) => 0,
                (Span::Own(x) | Span::Shared(x), Span::Own(y) | Span::Shared(y)) if x.page == y.page => 0,
                _ => self.pages_unlike(&x, &y, pages, end - page * PAGE_SIZE)?,
            };
            page += pages;
        }
        Ok(unlike)
    }

    fn span_of(&self, chain: &ChainRead<'_>, rec: &InodeRec, page: u64) -> Result<Span> {
        debug_assert!(chain.covers(rec));
        Map { nodes: &self.alloc, alloc: &self.alloc, rec }.span(page)
    }

    /// Compares two spans, of which `len` bytes count.
    fn pages_unlike(&self, x: &Span, y: &Span, pages: u64, len: u64) -> Result<u64> {
        let mut bytes = [[0u8; PAGE_SIZE as usize]; 2];
        let mut unlike = 0;
        for i in 0..pages {
            let count = (len - i * PAGE_SIZE).min(PAGE_SIZE);
            for (span, buf) in [x, y].into_iter().zip(&mut bytes) {
                match span {
                    Span::Hole(_) => buf.fill(0),
                    Span::Own(run) | Span::Shared(run) => {
                        self.alloc.region.read_data(run.page.plus(i).byte(), buf)?;
                    }
                }
            }
            let [a, b] = &bytes;
            unlike += if a[..count as usize] == b[..count as usize] { 0 } else { count };
        }
        Ok(unlike)
    }
}
