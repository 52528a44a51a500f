//! Comparing two files; what they share is not read, nor what the same backing answers.

use std::ops::Range;

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
                (Span::Absent { answer: x, .. }, Span::Absent { answer: y, .. }) if x == y => 0,
                (Span::Own(x) | Span::Shared(x), Span::Own(y) | Span::Shared(y)) if x.page == y.page => 0,
                _ => self.pages_unlike([x, y], page..page + pages, end)?,
            };
            page += pages;
        }
        Ok(unlike)
    }

    fn span_of(&self, chain: &ChainRead<'_>, rec: &InodeRec, page: u64) -> Result<Span> {
        debug_assert!(chain.covers(rec));
        Map { nodes: &self.alloc, alloc: &self.alloc, rec }.span(page)
    }

    /// Compares what two spans have in these pages, with which both begin; bytes from `end` on do not count.
    fn pages_unlike(&self, spans: [Span; 2], pages: Range<u64>, end: u64) -> Result<u64> {
        let mut bytes = [[0u8; PAGE_SIZE as usize]; 2];
        let mut unlike = 0;
        for page in pages.clone() {
            let count = (end - page * PAGE_SIZE).min(PAGE_SIZE);
            for (span, buf) in spans.iter().zip(&mut bytes) {
                span.without_first(page - pages.start).read(&self.alloc, page, buf)?;
            }
            let [a, b] = &bytes;
            unlike += if a[..count as usize] == b[..count as usize] { 0 } else { count };
        }
        Ok(unlike)
    }
}
