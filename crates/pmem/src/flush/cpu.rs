//! The processor's persistence instructions, one wrapper each; nothing here knows about media.
//!
//! ```text
//!   stream_copy, stream_zero   whole 64-byte blocks around the caches   (x86-64)
//!   flush_line                 one cache line towards the memory
//!   fence                      both of the above have happened before what follows
//! ```
//!
//! All of them go on where memory cannot be reached (`fault_tolerant`); the caller asks whether that happened.
//!
//! Streaming stores lie outside Rust's memory model until [`fence`] has run on the same thread.
//! They are therefore private to the module `flush`, whose only caller of them fences before it
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
    use super::super::fault_tolerant::table::entry;
    use super::{LineOp, Width};
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

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

    /// Two loops over blocks, which end early where memory cannot be reached. `$leave` is what the processor needs
    /// before others use its vector registers: after AVX, `vzeroupper`, or each SSE instruction that follows is slowed
    /// down by the upper halves.
    macro_rules! stream {
        (
            $(#[$feature:meta])*
            $copy:ident($($move:literal),*), $zero:ident($clear:literal, $($store:literal),*), $leave:literal
        ) => {
            $(#[$feature])*
            unsafe fn $copy(to: *mut u8, from: *const u8, blocks: usize) {
                // SAFETY: the blocks lie inside what the caller promised; the target is aligned.
                unsafe {
                    asm!(
                        "test {n}, {n}", "jz 3f",
                        "2:", $($move,)* "add {from}, 64", "add {to}, 64", "dec {n}", "jnz 2b", "3:", $leave,
                        entry!(),
                        n = inout(reg) blocks => _, to = inout(reg) to => _, from = inout(reg) from => _,
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                        out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                        out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                        out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, options(nostack)
                    );
                }
            }

            $(#[$feature])*
            unsafe fn $zero(to: *mut u8, blocks: usize) {
                // SAFETY: as above.
                unsafe {
                    asm!(
                        "test {n}, {n}", "jz 3f", $clear,
                        "2:", $($store,)* "add {to}, 64", "dec {n}", "jnz 2b", "3:", $leave,
                        entry!(),
                        n = inout(reg) blocks => _, to = inout(reg) to => _,
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                        out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                        out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                        out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, options(nostack)
                    );
                }
            }
        };
    }
    stream!(
        #[target_feature(enable = "avx512f")]
        copy512("vmovdqu64 zmm0, [{from}]", "vmovntdq [{to}], zmm0"),
        zero512("vpxord zmm0, zmm0, zmm0", "vmovntdq [{to}], zmm0"),
        "vzeroupper"
    );
    stream!(
        #[target_feature(enable = "avx")]
        copy256(
            "vmovdqu ymm0, [{from}]",
            "vmovdqu ymm1, [{from} + 32]",
            "vmovntdq [{to}], ymm0",
            "vmovntdq [{to} + 32], ymm1"
        ),
        zero256("vpxor ymm0, ymm0, ymm0", "vmovntdq [{to}], ymm0", "vmovntdq [{to} + 32], ymm0"),
        "vzeroupper"
    );
    stream!(
        copy128(
            "movdqu xmm0, [{from}]",
            "movdqu xmm1, [{from} + 16]",
            "movdqu xmm2, [{from} + 32]",
            "movdqu xmm3, [{from} + 48]",
            "movntdq [{to}], xmm0",
            "movntdq [{to} + 16], xmm1",
            "movntdq [{to} + 32], xmm2",
            "movntdq [{to} + 48], xmm3"
        ),
        zero128(
            "pxor xmm0, xmm0",
            "movntdq [{to}], xmm0",
            "movntdq [{to} + 16], xmm0",
            "movntdq [{to} + 32], xmm0",
            "movntdq [{to} + 48], xmm0"
        ),
        ""
    );

    macro_rules! flush {
        ($line:literal, $at:ident) => {
            asm!(concat!("2: ", $line), "3:", entry!(), in(reg) $at, options(nostack, preserves_flags))
        };
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
                LineOp::Clwb => flush!("clwb [{}]", at),
                LineOp::Clflushopt => flush!("clflushopt [{}]", at),
                LineOp::Clflush => flush!("clflush [{}]", at),
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
    use super::super::fault_tolerant::table::entry;
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
            unsafe {
                asm!("2: sys #3, c7, c12, #1, {}", "3:", entry!(), in(reg) at, options(nostack, preserves_flags));
            }
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
