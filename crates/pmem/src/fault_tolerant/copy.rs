//! Loads and stores to memory that may be taken away at any moment, which answer with an error
//! instead of a signal.
//!
//! ```text
//!   begin --+
//!           |  copy, load, store, swap, compare ...   a fault in here: the handler (handler.rs)
//!   end ----+                                         sets the result to the address and
//!   fixup:  ret   <--------------------------------- continues here
//! ```
//!
//! Each routine is a leaf without a stack frame and returns 0, or the address that it could not
//! reach. Rust never sees a reference to the memory: only pointers go in, and copies come out. They are pointers, and
//! not numbers, so that the compiler knows that the routines read and write the caller's buffers.
//! All word operations are sequentially consistent.

use std::arch::global_asm;

/// What a routine answers: nothing wrong, or the address of the fault.
pub type Reached = Result<(), usize>;

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.pagestone_reach,\"ax\",@progbits",
    ".p2align 4",
    "pagestone_reach_begin_0_1:",
    // rdi: to, rsi: from, rdx: bytes
    // Long ones by the processor's own loop, which starts slowly; of the rest a block at a time, a word, a byte.
    "pagestone_reach_copy_0_1:",
    "mov rcx, rdx",
    "cmp rdx, 2048",
    "jae 5f",
    "sub rcx, 64",
    "jb 3f",
    "2:",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + 16]",
    "movups xmm2, [rsi + 32]",
    "movups xmm3, [rsi + 48]",
    "movups [rdi], xmm0",
    "movups [rdi + 16], xmm1",
    "movups [rdi + 32], xmm2",
    "movups [rdi + 48], xmm3",
    "add rsi, 64",
    "add rdi, 64",
    "sub rcx, 64",
    "jae 2b",
    "3:",
    "add rcx, 64 - 8",
    "jnc 4f",
    "2:",
    "mov rax, [rsi]",
    "mov [rdi], rax",
    "add rsi, 8",
    "add rdi, 8",
    "sub rcx, 8",
    "jae 2b",
    "4:",
    "add rcx, 8",
    "je 6f",
    "7:",
    "mov al, [rsi]",
    "mov [rdi], al",
    "inc rsi",
    "inc rdi",
    "dec rcx",
    "jnz 7b",
    "6:",
    "xor eax, eax",
    "ret",
    "5:",
    "shr rcx, 3",
    "rep movsq",
    "mov ecx, edx",
    "and ecx, 7",
    "jnz 7b",
    "xor eax, eax",
    "ret",
    // rdi: to, rsi: byte, rdx: bytes
    "pagestone_reach_fill_0_1:",
    "mov rcx, rdx",
    "mov eax, esi",
    "rep stosb",
    "xor eax, eax",
    "ret",
    // rdi: address, rsi: out
    "pagestone_reach_load8_0_1:",
    "movzx edx, byte ptr [rdi]",
    "jmp 2f",
    "pagestone_reach_load16_0_1:",
    "movzx edx, word ptr [rdi]",
    "jmp 2f",
    "pagestone_reach_load32_0_1:",
    "mov edx, dword ptr [rdi]",
    "jmp 2f",
    "pagestone_reach_load64_0_1:",
    "mov rdx, qword ptr [rdi]",
    "2:",
    "mov qword ptr [rsi], rdx",
    "xor eax, eax",
    "ret",
    // rdi: address, rsi: new value in, old value out
    "pagestone_reach_swap8_0_1:",
    "mov rdx, qword ptr [rsi]",
    "xchg byte ptr [rdi], dl",
    "movzx edx, dl",
    "jmp 2b",
    "pagestone_reach_swap16_0_1:",
    "mov rdx, qword ptr [rsi]",
    "xchg word ptr [rdi], dx",
    "movzx edx, dx",
    "jmp 2b",
    "pagestone_reach_swap32_0_1:",
    "mov rdx, qword ptr [rsi]",
    "xchg dword ptr [rdi], edx",
    "jmp 2b",
    "pagestone_reach_swap64_0_1:",
    "mov rdx, qword ptr [rsi]",
    "xchg qword ptr [rdi], rdx",
    "jmp 2b",
    // rdi: address, rsi: expected in, seen out, rdx: new
    "pagestone_reach_compare32_0_1:",
    "mov rax, qword ptr [rsi]",
    "lock cmpxchg dword ptr [rdi], edx",
    "mov edx, eax",
    "jmp 2b",
    "pagestone_reach_compare64_0_1:",
    "mov rax, qword ptr [rsi]",
    "lock cmpxchg qword ptr [rdi], rdx",
    "mov rdx, rax",
    "jmp 2b",
    "pagestone_reach_end_0_1:",
    "pagestone_reach_fixup_0_1:",
    "ret",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.pagestone_reach,\"ax\",%progbits",
    ".p2align 4",
    "pagestone_reach_begin_0_1:",
    "pagestone_reach_copy_0_1:",
    "cbz x2, 3f",
    "1:",
    "cmp x2, #8",
    "b.lo 2f",
    "ldr x3, [x1], #8",
    "str x3, [x0], #8",
    "subs x2, x2, #8",
    "b.ne 1b",
    "b 3f",
    "2:",
    "ldrb w3, [x1], #1",
    "strb w3, [x0], #1",
    "subs x2, x2, #1",
    "b.ne 2b",
    "3:",
    "mov x0, #0",
    "ret",
    "pagestone_reach_fill_0_1:",
    "cbz x2, 3b",
    "4:",
    "strb w1, [x0], #1",
    "subs x2, x2, #1",
    "b.ne 4b",
    "b 3b",
    "pagestone_reach_load8_0_1:",
    "ldarb w3, [x0]",
    "b 5f",
    "pagestone_reach_load16_0_1:",
    "ldarh w3, [x0]",
    "b 5f",
    "pagestone_reach_load32_0_1:",
    "ldar w3, [x0]",
    "b 5f",
    "pagestone_reach_load64_0_1:",
    "ldar x3, [x0]",
    "5:",
    "str x3, [x1]",
    "mov x0, #0",
    "ret",
    "pagestone_reach_swap8_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxrb w3, [x0]",
    "stlxrb w5, w4, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_reach_swap16_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxrh w3, [x0]",
    "stlxrh w5, w4, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_reach_swap32_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxr w3, [x0]",
    "stlxr w5, w4, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_reach_swap64_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxr x3, [x0]",
    "stlxr w5, x4, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_reach_compare32_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxr w3, [x0]",
    "cmp w3, w4",
    "b.ne 7f",
    "stlxr w5, w2, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_reach_compare64_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxr x3, [x0]",
    "cmp x3, x4",
    "b.ne 7f",
    "stlxr w5, x2, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "7:",
    "clrex",
    "b 5b",
    "pagestone_reach_end_0_1:",
    "pagestone_reach_fixup_0_1:",
    "ret",
    ".popsection",
);

// SAFETY: the copy above, with these arguments; all else about them is said at each use.
unsafe extern "C" {
    static pagestone_reach_begin_0_1: u8;
    static pagestone_reach_end_0_1: u8;
    static pagestone_reach_fixup_0_1: u8;
    fn pagestone_reach_copy_0_1(to: *mut u8, from: *const u8, len: usize) -> usize;
    fn pagestone_reach_fill_0_1(to: *mut u8, byte: usize, len: usize) -> usize;
    fn pagestone_reach_load8_0_1(addr: *const u8, out: &mut u64) -> usize;
    fn pagestone_reach_load16_0_1(addr: *const u8, out: &mut u64) -> usize;
    fn pagestone_reach_load32_0_1(addr: *const u8, out: &mut u64) -> usize;
    fn pagestone_reach_load64_0_1(addr: *const u8, out: &mut u64) -> usize;
    fn pagestone_reach_swap8_0_1(addr: *mut u8, value: &mut u64) -> usize;
    fn pagestone_reach_swap16_0_1(addr: *mut u8, value: &mut u64) -> usize;
    fn pagestone_reach_swap32_0_1(addr: *mut u8, value: &mut u64) -> usize;
    fn pagestone_reach_swap64_0_1(addr: *mut u8, value: &mut u64) -> usize;
    fn pagestone_reach_compare32_0_1(addr: *mut u8, expected: &mut u64, new: u64) -> usize;
    fn pagestone_reach_compare64_0_1(addr: *mut u8, expected: &mut u64, new: u64) -> usize;
}

/// If `pc` stands in one of the copy: where to continue.
pub(super) fn fixup(pc: usize) -> Option<usize> {
    let (begin, end) = (&raw const pagestone_reach_begin_0_1 as usize, &raw const pagestone_reach_end_0_1 as usize);
    (begin..end).contains(&pc).then_some(&raw const pagestone_reach_fixup_0_1 as usize)
}

fn reached(fault: usize) -> Reached {
    if fault == 0 { Ok(()) } else { Err(fault) }
}

/// Copies `len` bytes between memory that may fail and memory of the caller, either way.
///
/// # Safety
/// The caller's side is valid for `len` bytes; the other lies in a mapping of ours.
pub unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> Reached {
    // SAFETY: the caller's side is valid; a fault on the other is answered, not fatal.
    reached(unsafe { pagestone_reach_copy_0_1(to, from, len) })
}

/// Stores the same byte `len` times.
///
/// # Safety
/// The range lies in a mapping.
pub unsafe fn fill(to: *mut u8, byte: u8, len: usize) -> Reached {
    // SAFETY: as in `copy`.
    reached(unsafe { pagestone_reach_fill_0_1(to, usize::from(byte), len) })
}

/// Loads an aligned word of 1, 2, 4 or 8 bytes.
///
/// # Safety
/// The word lies in a mapping.
pub unsafe fn load(addr: *const u8, size: usize, out: &mut u64) -> Reached {
    // SAFETY: as in `copy`; `out` is the caller's.
    reached(unsafe {
        match size {
            1 => pagestone_reach_load8_0_1(addr, out),
            2 => pagestone_reach_load16_0_1(addr, out),
            4 => pagestone_reach_load32_0_1(addr, out),
            _ => pagestone_reach_load64_0_1(addr, out),
        }
    })
}

/// Exchanges an aligned word of 1, 2, 4 or 8 bytes for `value`, which becomes the old one.
///
/// # Safety
/// The word lies in a mapping.
pub unsafe fn swap(addr: *mut u8, size: usize, value: &mut u64) -> Reached {
    // SAFETY: as in `load`.
    reached(unsafe {
        match size {
            1 => pagestone_reach_swap8_0_1(addr, value),
            2 => pagestone_reach_swap16_0_1(addr, value),
            4 => pagestone_reach_swap32_0_1(addr, value),
            _ => pagestone_reach_swap64_0_1(addr, value),
        }
    })
}

/// Stores `new` in an aligned word of 4 or 8 bytes if it is `expected`, which becomes what was seen.
///
/// # Safety
/// The word lies in a mapping.
pub unsafe fn compare(addr: *mut u8, size: usize, expected: &mut u64, new: u64) -> Reached {
    // SAFETY: as in `load`.
    reached(unsafe {
        match size {
            4 => pagestone_reach_compare32_0_1(addr, expected, new),
            _ => pagestone_reach_compare64_0_1(addr, expected, new),
        }
    })
}
