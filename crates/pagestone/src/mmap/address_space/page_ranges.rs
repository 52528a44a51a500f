//! A set of page numbers, kept as ranges that neither overlap nor touch.
//!
//! ```text
//!   insert 3..5       |..##......|
//!   insert 5..7       |..####....|    one range
//!   remove 4..6       |..#..#....|    two
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

/// The set.
#[derive(Debug, Default)]
pub(in crate::mmap) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Whether `page` is in it.
    pub(in crate::mmap) fn contains(&self, page: u64) -> bool {
        self.0.range(..=page).next_back().is_some_and(|(_, &end)| end > page)
    }

    /// The parts of `range` that are in it.
    pub(in crate::mmap) fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let first = self.0.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        self.0
            .range(first..range.end.max(first))
            .map(|(&start, &end)| start.max(range.start)..end.min(range.end))
            .filter(|part| !part.is_empty())
            .collect()
    }

    /// The parts of `range` that are not in it.
    pub(in crate::mmap) fn without(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut at = range.start;
        let mut out = Vec::new();
        for part in self.within(range.clone()) {
            out.extend((at < part.start).then_some(at..part.start));
            at = part.end;
        }
        out.extend((at < range.end).then_some(at..range.end));
        out
    }

    /// Adds `range`.
    pub(in crate::mmap) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&s, &e)) = self.0.range(..=end).next_back().filter(|&(_, &e)| e >= start) {
            (start, end) = (start.min(s), end.max(e));
            self.0.remove(&s);
        }
        self.0.insert(start, end);
    }

    /// Removes `range`.
    pub(in crate::mmap) fn remove(&mut self, range: Range<u64>) {
        for part in self.within(range.clone()) {
            let Some((&start, &end)) = self.0.range(..=part.start).next_back() else { continue };
            self.0.remove(&start);
            if start < part.start {
                self.0.insert(start, part.start);
            }
            if part.end < end {
                self.0.insert(part.end, end);
            }
        }
    }

    /// The number of pages in it.
    pub(in crate::mmap) fn pages(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_set_that_a_list_of_bits_is() {
        let mut seed = 1u64;
        let mut next = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let (mut ranges, mut bits) = (Ranges::default(), [false; 64]);
        for _ in 0..20_000 {
            let start = next(64);
            let range = start..start + next(65 - start);
            let add = next(2) == 0;
            if add {
                ranges.insert(range.clone())
            } else {
                ranges.remove(range.clone())
            }
            range.for_each(|i| bits[i as usize] = add);
            let all: Vec<u64> = ranges.within(0..64).into_iter().flatten().collect();
            let want: Vec<u64> = (0..64).filter(|&i| bits[i as usize]).collect();
            assert_eq!(all, want);
            assert_eq!(ranges.pages(), want.len() as u64);
            assert!((0..64).all(|i| ranges.contains(i) == bits[i as usize]));
            let none: Vec<u64> = ranges.without(0..64).into_iter().flatten().collect();
            assert_eq!(none, (0..64).filter(|&i| !bits[i as usize]).collect::<Vec<_>>());
        }
    }
}
