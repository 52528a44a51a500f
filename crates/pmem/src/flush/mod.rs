//! Stores that leave the processor's caches, with the instructions that were measured to be the fastest.
//!
//! ```text
//!   a store of any start and length, with streaming stores:
//!
//!        |  line 0   |  line 1   |  line 2   |  line 3   |
//!              [#####|===========|===========|###]
//!               head        body (whole lines) tail
//!         ordinary stores,   streamed,          ordinary stores,
//!         line flushed       bypassing caches   line flushed
//!
//!   ... and then one fence, in the same function.
//! ```
//!
//! Which method is fastest differs between machines by a factor of three in both directions, so
//! [`Persister::durable`] and [`Persister::volatile`] measure the processor's methods once per process (under 2
//! ms).

mod cpu;

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use self::cpu::{BLOCK, LineOp, Width};
use crate::{MappedRange, PAGE_SIZE, Part, PersistMethod, fault_tolerant};

/// The chosen method of storing bytes so that they leave the caches.
#[derive(Clone, Copy, Debug)]
pub struct Persister {
    method: PersistMethod,
    /// Streaming stores for whole blocks, if the method uses them.
    width: Option<Width>,
    /// The instruction for each line that was stored to with ordinary stores.
    line_op: LineOp,
    /// Bytes in a cache line.
    line: usize,
}

/// The source of a store.
#[derive(Clone, Copy)]
enum Source {
    Bytes(*const u8),
    Zero,
}

impl Source {
    /// The source `n` bytes further on.
    fn skip(self, n: usize) -> Source {
        match self {
            Source::Bytes(from) => Source::Bytes(from.wrapping_add(n)),
            Source::Zero => Source::Zero,
        }
    }
}

/// The addresses of the cache lines that contain the bytes `at .. at + len`; `line` (a power of two) is the size of
/// one. The first is rounded *down*, the last is that of the last byte.
pub fn lines(at: usize, len: usize, line: usize) -> impl Iterator<Item = usize> {
    let mask = !(line - 1);
    let first = at & mask;
    let count = if len == 0 { 0 } else { (((at + (len - 1)) & mask) - first) / line + 1 };
    (0..count).map(move |i| first + i * line)
}

impl Persister {
    /// The fastest method for memory that outlives the machine beneath volatile caches; `None` on a processor
    /// without an instruction that writes a line back.
    pub fn durable() -> Option<Persister> {
        static BEST: OnceLock<Option<Persister>> = OnceLock::new();
        *BEST.get_or_init(|| Self::fastest(&Self::candidates(true)))
    }

    /// The fastest method for memory that needs no flushing: tmpfs, hugetlbfs, or with caches inside the power-fail
    /// domain.
    pub fn volatile() -> Persister {
        static BEST: OnceLock<Persister> = OnceLock::new();
        *BEST.get_or_init(|| Self::fastest(&Self::candidates(false)).unwrap_or(Self::plain()))
    }

    /// Ordinary stores only.
    fn plain() -> Persister {
        Persister { method: PersistMethod::None, width: None, line_op: LineOp::Nothing, line: cpu::line_size() }
    }

    /// Every method that this processor has. `flushing`: bytes have to leave the caches.
    pub fn candidates(flushing: bool) -> Vec<Persister> {
        let line = cpu::line_size();
        let ops = if flushing { cpu::line_ops() } else { vec![LineOp::Nothing] };
        let mut all = Vec::new();
        // Streaming also needs a line instruction, for bytes that are not a whole block.
        if let (Some(&width), Some(&line_op)) = (cpu::widths().first(), ops.first()) {
            all.push(Persister { method: PersistMethod::NonTemporal, width: Some(width), line_op, line });
        }
        for line_op in ops {
            let method = match line_op {
                LineOp::Nothing => PersistMethod::None,
                LineOp::Clwb => PersistMethod::Clwb,
                LineOp::Clflushopt => PersistMethod::Clflushopt,
                LineOp::Clflush => PersistMethod::Clflush,
                LineOp::DcCvap => PersistMethod::DcCvap,
            };
            // Ordered flushes are never faster than unordered ones, so they are not measured beside them.
            if line_op != LineOp::Clflush || all.len() < 2 {
                all.push(Persister { method, width: None, line_op, line });
            }
        }
        all
    }

    /// Measures 4 KiB persists to scratch memory, in turn for each candidate, for a few rounds.
    fn fastest(candidates: &[Persister]) -> Option<Persister> {
        const PAGES: u64 = 48;
        const ROUNDS: usize = 4;
        const BUDGET: Duration = Duration::from_millis(1);
        let Ok(scratch) = MappedRange::anonymous(PAGES * PAGE_SIZE) else { return candidates.first().copied() };
        let page = [0x5a; PAGE_SIZE as usize];
        let begun = Instant::now();
        // Touch every page first, so that no measurement includes the page faults.
        (0..PAGES).all(|i| scratch.write(i * PAGE_SIZE, &page));
        let mut best = vec![Duration::MAX; candidates.len()];
        for _ in 0..ROUNDS {
            for (candidate, best) in candidates.iter().zip(&mut best) {
                let start = Instant::now();
                for i in 0..PAGES {
                    let _ = candidate.persist(&scratch, &[Part::Bytes { at: i * PAGE_SIZE, bytes: &page }]);
                }
                *best = start.elapsed().min(*best);
            }
            if begun.elapsed() > BUDGET {
                break;
            }
        }
        candidates.iter().zip(best).min_by_key(|&(_, time)| time).map(|(candidate, _)| *candidate)
    }

    /// The method.
    pub fn method(&self) -> PersistMethod {
        self.method
    }

    /// Stores all parts into `view`, which must be mapped for writing, and fences once. Returns an error, with
    /// nothing stored, for parts outside the range, and an error after a fault.
    pub fn persist(&self, view: &MappedRange, parts: &[Part<'_>]) -> io::Result<()> {
        if !parts.iter().all(|part| view.contains(part.at(), part.len())) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let before = fault_tolerant::mine();
        for part in parts {
            let Some(to) = view.addr(part.at(), part.len()) else { continue };
            let from = match *part {
                Part::Bytes { bytes, .. } => Source::Bytes(bytes.as_ptr()),
                Part::Zero { .. } => Source::Zero,
            };
            // SAFETY: the target lies in the view and the source in the part; the flushed lines contain bytes of
            // the target. The fence below ends the streaming stores.
            unsafe {
                self.put(to, from, part.len() as usize, &mut |line| {
                    cpu::flush_line(self.line_op, line as *const u8);
                });
            }
        }
        cpu::fence();
        if fault_tolerant::well_since(before) { Ok(()) } else { Err(rustix::io::Errno::IO.into()) }
    }

    /// Starts the write-back of every line of the range. Lines outside the view are ignored.
    pub fn flush(&self, view: &MappedRange, at: u64, len: u64) {
        if self.line_op == LineOp::Nothing {
            return;
        }
        let Some(from) = view.addr(at, len) else { return };
        for line in lines(from.addr(), len as usize, self.line) {
            // SAFETY: the line contains a byte of the view, and lines do not straddle mappings.
            unsafe { cpu::flush_line(self.line_op, line as *const u8) };
        }
    }

    /// Orders this thread's earlier stores and flushes before its later stores.
    pub fn fence(&self) {
        cpu::fence();
    }

    /// Stores `len` bytes, without a fence. Calls `flush` for each line stored to with ordinary stores, unless the
    /// method needs no flushing.
    ///
    /// # Safety
    /// `to` is writable and `from` readable for `len` bytes, without overlap; the caller runs [`cpu::fence`] on
    /// this thread before any other access to the target.
    unsafe fn put(&self, to: *mut u8, from: Source, len: usize, flush: &mut impl FnMut(usize)) {
        let Some(width) = self.width else {
            // SAFETY: guaranteed by the caller.
            return unsafe { self.put_ordinary(to, from, len, flush) };
        };
        let head = (to.addr().wrapping_neg() % BLOCK).min(len);
        let blocks = (len - head) / BLOCK;
        let tail = head + blocks * BLOCK;
        // SAFETY: the three parts lie inside the caller's ranges; the body starts at a block.
        unsafe {
            self.put_ordinary(to, from, head, flush);
            match from.skip(head) {
                Source::Bytes(from) => cpu::stream_copy(width, to.add(head), from, blocks),
                Source::Zero => cpu::stream_zero(width, to.add(head), blocks),
            }
            self.put_ordinary(to.add(tail), from.skip(tail), len - tail, flush);
        }
    }

    /// # Safety
    /// As for [`Persister::put`].
    unsafe fn put_ordinary(&self, to: *mut u8, from: Source, len: usize, flush: &mut impl FnMut(usize)) {
        // SAFETY: guaranteed by the caller.
        let stored = unsafe {
            match from {
                Source::Bytes(from) => fault_tolerant::copy(to, from, len),
                Source::Zero => fault_tolerant::fill(to, 0, len),
            }
        };
        if let Err(addr) = stored {
            fault_tolerant::note(addr);
        }
        if self.line_op != LineOp::Nothing {
            lines(to.addr(), len, self.line).for_each(flush);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ROOM: usize = 640;

    /// Every method, with every width.
    fn everything() -> Vec<Persister> {
        let mut all = Vec::new();
        for persister in [Persister::candidates(true), Persister::candidates(false)].concat() {
            if persister.width.is_some() {
                all.extend(cpu::widths().into_iter().map(|w| Persister { width: Some(w), ..persister }));
            } else {
                all.push(persister);
            }
        }
        all.extend(cpu::line_ops().last().map(|&line_op| Persister { line_op, ..Persister::plain() }));
        all
    }

    /// The lines to be flushed: those with a stored byte, except where a whole block was streamed. Computed byte by
    /// byte, unlike the code under test.
    fn expected_lines(p: &Persister, base: usize, start: usize, len: usize) -> BTreeSet<usize> {
        let streamed = |addr: usize| {
            let block = addr / BLOCK * BLOCK;
            p.width.is_some() && block >= base + start && block + BLOCK <= base + start + len
        };
        let ordinary = (base + start..base + start + len).filter(|&addr| !streamed(addr));
        if p.line_op == LineOp::Nothing { BTreeSet::new() } else { ordinary.map(|a| a - a % p.line).collect() }
    }

    #[test]
    fn every_start_and_length() {
        let view = MappedRange::anonymous(4096).expect("memory");
        let base = view.addr(0, 1).expect("inside").addr();
        let source: Vec<u8> = (0..ROOM).map(|i| (i % 251) as u8 + 1).collect();
        for persister in everything() {
            for (start, len) in (0..=130).flat_map(|s| (0..=300).map(move |l| (s, l))) {
                for zero in [false, true] {
                    assert!(view.write(0, &[0xee; ROOM]));
                    let mut flushed = BTreeSet::new();
                    let to = view.addr(start as u64, len as u64).expect("inside");
                    // An odd source address, so that loads are unaligned too.
                    let from = if zero { Source::Zero } else { Source::Bytes(source[start % 7..].as_ptr()) };
                    // SAFETY: `to` has room for `len`, the source is longer; fenced right after.
                    unsafe { persister.put(to, from, len, &mut |line| assert!(flushed.insert(line))) };
                    cpu::fence();
                    let mut want = [0xee; ROOM];
                    for i in 0..len {
                        want[start + i] = if zero { 0 } else { source[start % 7 + i] };
                    }
                    let mut got = [0; ROOM];
                    assert!(view.read(0, &mut got));
                    assert!(got == want, "{persister:?} start {start} len {len} zero {zero}");
                    let lines = expected_lines(&persister, base, start, len);
                    assert_eq!(flushed, lines, "{persister:?} start {start} len {len}");
                }
            }
        }
    }

    #[test]
    fn lines_cover_exactly_the_bytes() {
        for line in [64usize, 128] {
            for (start, len) in (0..=130).flat_map(|s| (0..=300).map(move |l| (s, l))) {
                let want: BTreeSet<usize> = (start..start + len).map(|byte| byte / line * line).collect();
                let got: Vec<usize> = lines(start, len, line).collect();
                assert!(got.iter().copied().eq(want), "start {start} len {len} line {line}: {got:?}");
            }
        }
    }

    #[test]
    fn real_instructions_run_and_bounds_hold() {
        let view = MappedRange::anonymous(8192).expect("memory");
        for persister in everything() {
            let parts = [Part::Bytes { at: 4000, bytes: &[7; 300] }, Part::Zero { at: 4100, len: 3 }];
            persister.persist(&view, &parts).expect("inside");
            persister.flush(&view, 4000, 300);
            persister.flush(&view, 8191, 1);
            persister.fence();
            let outside = [Part::Zero { at: 0, len: 1 }, Part::Zero { at: 8192, len: 1 }];
            assert!(persister.persist(&view, &outside).is_err());
            assert!(persister.persist(&view, &[Part::Zero { at: u64::MAX, len: 2 }]).is_err());
            let mut got = [0; 2];
            assert!(view.read(4000, &mut got) && got == [7, 7]);
        }
    }

    #[test]
    fn measuring_is_quick_and_has_an_answer() {
        let begun = Instant::now();
        let best = Persister::fastest(&Persister::candidates(true));
        assert_eq!(best.is_some(), !cpu::line_ops().is_empty());
        // Ten times the limit: the machine that runs the tests may be busy.
        assert!(begun.elapsed() < Duration::from_millis(20), "{:?}", begun.elapsed());
        println!("durable: {:?}, volatile: {:?}", best.map(|p| p.method), Persister::volatile().method);
    }
}
