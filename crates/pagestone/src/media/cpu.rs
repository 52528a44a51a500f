//! The processor's persistence instructions, one wrapper each; nothing here knows about media.
//!
//! ```text
//!   stream_copy, stream_zero   whole 64-byte blocks around the caches   (x86-64)
//!   flush_line                 one cache line towards the memory
//!   fence                      both of the above have happened before what follows
//! ```
//!
//! Streaming stores lie outside Rust's memory model until [`fence`] has run on the same thread.
//! They are therefore private to the `persist` module, whose only caller of them fences before it
//! returns.

/// Bytes that one streaming step moves, and the alignment it needs.
pub(super) const BLOCK: usize = 64;

/// Instruction set of the streaming stores.
#[allow(dead_code)] // Each kind of processor has some of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Width {
    /// `vmovntdq zmm` (AVX-512F).
    W512,
    /// `vmovntdq ymm` (AVX).
    W256,
    /// `movntdq xmm` (SSE2, every x86-64).
    W128,
}

/// Instruction that pushes one cache line out.
#[allow(dead_code)] // Each kind of processor has some of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LineOp {
    /// Nothing needs to be pushed out: volatile memory, or caches inside the power-fail domain.
    Nothing,
    /// Write back, may stay cached.
    Clwb,
    /// Write back and evict, unordered.
    Clflushopt,
    /// Write back and evict, in order.
    Clflush,
    /// aarch64: clean to the point of persistence.
    DcCvap,
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::{BLOCK, LineOp, Width};
    use std::arch::asm;
    use std::arch::x86_64::*;

    /// Streaming widths this processor has, widest first.
    pub(in super::super) fn widths() -> Vec<Width> {
        let mut all = Vec::new();
        if std::is_x86_feature_detected!("avx512f") {
            all.push(Width::W512);
        }
        if std::is_x86_feature_detected!("avx") {
            all.push(Width::W256);
        }
        all.push(Width::W128);
        all
    }

    /// Line instructions this processor has, cheapest first.
    pub(in super::super) fn line_ops() -> Vec<LineOp> {
        // CPUID leaf 7: EBX bit 24 is CLWB, bit 23 CLFLUSHOPT; std has no detection for them.
        let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
        let mut all = Vec::new();
        if features & 1 << 24 != 0 {
            all.push(LineOp::Clwb);
        }
        if features & 1 << 23 != 0 {
            all.push(LineOp::Clflushopt);
        }
        all.push(LineOp::Clflush);
        all
    }

    /// Bytes that one line instruction covers, as the processor reports it.
    pub(in super::super) fn line_size() -> usize {
        // CPUID leaf 1: EBX bits 15 to 8, in units of 8 bytes.
        let size = (__cpuid(1).ebx >> 8 & 0xff) as usize * 8;
        if size.is_power_of_two() && size >= 16 { size } else { 64 }
    }

    /// Copies `blocks` blocks around the caches.
    ///
    /// # Safety
    /// `to` is block-aligned and writable, `from` readable, both for `blocks * BLOCK` bytes and
    /// apart from each other; the processor has `width`; the caller runs `fence` on this thread
    /// before anything else touches the target.
    pub(in super::super) unsafe fn stream_copy(width: Width, to: *mut u8, from: *const u8, blocks: usize) {
        // SAFETY: the caller's promises are those of the three functions.
        unsafe {
            match width {
                Width::W512 => copy512(to, from, blocks),
                Width::W256 => copy256(to, from, blocks),
                Width::W128 => copy128(to, from, blocks),
            }
        }
    }

    /// Stores `blocks` blocks of zeros around the caches.
    ///
    /// # Safety
    /// As for [`stream_copy`].
    pub(in super::super) unsafe fn stream_zero(width: Width, to: *mut u8, blocks: usize) {
        // SAFETY: the caller's promises are those of the three functions.
        unsafe {
            match width {
                Width::W512 => zero512(to, blocks),
                Width::W256 => zero256(to, blocks),
                Width::W128 => zero128(to, blocks),
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn copy512(to: *mut u8, from: *const u8, blocks: usize) {
        for i in 0..blocks {
            // SAFETY: the block lies inside what the caller promised; the target is aligned.
            unsafe {
                let line = _mm512_loadu_si512(from.add(i * BLOCK).cast());
                _mm512_stream_si512(to.add(i * BLOCK).cast(), line);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn zero512(to: *mut u8, blocks: usize) {
        for i in 0..blocks {
            // SAFETY: as in `copy512`.
            unsafe { _mm512_stream_si512(to.add(i * BLOCK).cast(), _mm512_setzero_si512()) };
        }
    }

    #[target_feature(enable = "avx")]
    unsafe fn copy256(to: *mut u8, from: *const u8, blocks: usize) {
        for i in 0..blocks {
            // SAFETY: as in `copy512`.
            unsafe {
                let (to, from) = (to.add(i * BLOCK).cast::<__m256i>(), from.add(i * BLOCK).cast::<__m256i>());
                let (a, b) = (_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1)));
                _mm256_stream_si256(to, a);
                _mm256_stream_si256(to.add(1), b);
            }
        }
    }

    #[target_feature(enable = "avx")]
    unsafe fn zero256(to: *mut u8, blocks: usize) {
        for i in 0..blocks * 2 {
            // SAFETY: as in `copy512`.
            unsafe { _mm256_stream_si256(to.cast::<__m256i>().add(i), _mm256_setzero_si256()) };
        }
    }

    unsafe fn copy128(to: *mut u8, from: *const u8, blocks: usize) {
        for i in 0..blocks * 4 {
            // SAFETY: as in `copy512`; SSE2 is part of x86-64.
            unsafe {
                let value = _mm_loadu_si128(from.cast::<__m128i>().add(i));
                _mm_stream_si128(to.cast::<__m128i>().add(i), value);
            }
        }
    }

    unsafe fn zero128(to: *mut u8, blocks: usize) {
        for i in 0..blocks * 4 {
            // SAFETY: as in `copy128`.
            unsafe { _mm_stream_si128(to.cast::<__m128i>().add(i), _mm_setzero_si128()) };
        }
    }

    /// Pushes out the line that holds `at`.
    ///
    /// # Safety
    /// `at` lies in mapped memory, and the processor has `op`.
    #[inline(always)]
    pub(in super::super) unsafe fn flush_line(op: LineOp, at: *const u8) {
        // SAFETY: the instructions change no register and no byte; the caller checked the rest.
        // Without `nomem`, the compiler keeps earlier stores before them.
        unsafe {
            match op {
                LineOp::Clwb => asm!("clwb [{}]", in(reg) at, options(nostack, preserves_flags)),
                LineOp::Clflushopt => asm!("clflushopt [{}]", in(reg) at, options(nostack, preserves_flags)),
                LineOp::Clflush => asm!("clflush [{}]", in(reg) at, options(nostack, preserves_flags)),
                LineOp::Nothing | LineOp::DcCvap => {}
            }
        }
    }

    /// Everything streamed or flushed before, by this thread, comes before what follows.
    #[inline(always)]
    pub(in super::super) fn fence() {
        // SAFETY: a fence accesses nothing; the compiler moves no memory access across it.
        unsafe { asm!("sfence", options(nostack, preserves_flags)) };
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::{LineOp, Width};
    use std::arch::asm;

    pub(in super::super) fn widths() -> Vec<Width> {
        Vec::new()
    }

    pub(in super::super) fn line_ops() -> Vec<LineOp> {
        // Without FEAT_DPB nothing is known to reach the point of persistence.
        if std::arch::is_aarch64_feature_detected!("dpb") { vec![LineOp::DcCvap] } else { Vec::new() }
    }

    pub(in super::super) fn line_size() -> usize {
        let ctr: u64;
        // SAFETY: Linux lets programs read the cache type register.
        unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
        // DminLine, bits 19 to 16: log2 of the words (4 bytes) in the smallest data cache line.
        4usize << (ctr >> 16 & 0xf)
    }

    pub(in super::super) unsafe fn stream_copy(_: Width, _: *mut u8, _: *const u8, _: usize) {
        unreachable!("no streaming stores here")
    }

    pub(in super::super) unsafe fn stream_zero(_: Width, _: *mut u8, _: usize) {
        unreachable!("no streaming stores here")
    }

    /// Pushes out the line that holds `at`.
    ///
    /// # Safety
    /// `at` lies in mapped memory, and the processor has `op`.
    #[inline(always)]
    pub(in super::super) unsafe fn flush_line(op: LineOp, at: *const u8) {
        if op == LineOp::DcCvap {
            // `dc cvap`, spelled as the system instruction so that any assembler takes it.
            // SAFETY: changes no register and no byte.
            unsafe { asm!("sys #3, c7, c12, #1, {}", in(reg) at, options(nostack, preserves_flags)) };
        }
    }

    #[inline(always)]
    pub(in super::super) fn fence() {
        // SAFETY: a barrier accesses nothing.
        unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch {
    use super::{LineOp, Width};

    pub(in super::super) fn widths() -> Vec<Width> {
        Vec::new()
    }

    pub(in super::super) fn line_ops() -> Vec<LineOp> {
        Vec::new()
    }

    pub(in super::super) fn line_size() -> usize {
        64
    }

    pub(in super::super) unsafe fn stream_copy(_: Width, _: *mut u8, _: *const u8, _: usize) {
        unreachable!("no streaming stores here")
    }

    pub(in super::super) unsafe fn stream_zero(_: Width, _: *mut u8, _: usize) {
        unreachable!("no streaming stores here")
    }

    pub(in super::super) unsafe fn flush_line(_: LineOp, _: *const u8) {}

    pub(in super::super) fn fence() {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

pub(super) use arch::{fence, flush_line, line_ops, line_size, stream_copy, stream_zero, widths};
