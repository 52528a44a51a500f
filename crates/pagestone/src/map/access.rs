//! Loads and stores to memory that may be taken away at any moment, which answer with an error
//! instead of a signal.
//!
//! ```text
//!   begin --+
//!           |  copy, load, store, swap, compare ...   a fault in here: the handler (signal.rs)
//!   end ----+                                         sets the result to the address and
//!   fixup:  ret   <--------------------------------- continues here
//! ```
//!
//! Each routine is a leaf without a stack frame and returns 0, or the address that it could not
//! reach. Rust never sees a reference to the memory: only addresses go in, and copies come out.
//! All word operations are sequentially consistent.

use std::arch::global_asm;

/// What a routine answers: nothing wrong, or the address of the fault.
pub(super) type Reached = Result<(), usize>;

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.pagestone_map,\"ax\",@progbits",
    ".p2align 4",
    "pagestone_map_begin_0_1:",
    // rdi: to, rsi: from, rdx: bytes
    "pagestone_map_copy_0_1:",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    // rdi: to, rsi: byte, rdx: bytes
    "pagestone_map_fill_0_1:",
    "mov rcx, rdx",
    "mov eax, esi",
    "rep stosb",
    "xor eax, eax",
    "ret",
    // rdi: address, rsi: out
    "pagestone_map_load8_0_1:",
    "movzx edx, byte ptr [rdi]",
    "jmp 2f",
    "pagestone_map_load16_0_1:",
    "movzx edx, word ptr [rdi]",
    "jmp 2f",
    "pagestone_map_load32_0_1:",
    "mov edx, dword ptr [rdi]",
    "jmp 2f",
    "pagestone_map_load64_0_1:",
    "mov rdx, qword ptr [rdi]",
    "2:",
    "mov qword ptr [rsi], rdx",
    "xor eax, eax",
    "ret",
    // rdi: address, rsi: new value in, old value out
    "pagestone_map_swap8_0_1:",
    "mov rdx, qword ptr [rsi]",
    "xchg byte ptr [rdi], dl",
    "movzx edx, dl",
    "jmp 2b",
    "pagestone_map_swap16_0_1:",
    "mov rdx, qword ptr [rsi]",
    "xchg word ptr [rdi], dx",
    "movzx edx, dx",
    "jmp 2b",
    "pagestone_map_swap32_0_1:",
    "mov rdx, qword ptr [rsi]",
    "xchg dword ptr [rdi], edx",
    "jmp 2b",
    "pagestone_map_swap64_0_1:",
    "mov rdx, qword ptr [rsi]",
    "xchg qword ptr [rdi], rdx",
    "jmp 2b",
    // rdi: address, rsi: expected in, seen out, rdx: new
    "pagestone_map_compare32_0_1:",
    "mov rax, qword ptr [rsi]",
    "lock cmpxchg dword ptr [rdi], edx",
    "mov edx, eax",
    "jmp 2b",
    "pagestone_map_compare64_0_1:",
    "mov rax, qword ptr [rsi]",
    "lock cmpxchg qword ptr [rdi], rdx",
    "mov rdx, rax",
    "jmp 2b",
    "pagestone_map_end_0_1:",
    "pagestone_map_fixup_0_1:",
    "ret",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.pagestone_map,\"ax\",%progbits",
    ".p2align 4",
    "pagestone_map_begin_0_1:",
    "pagestone_map_copy_0_1:",
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
    "pagestone_map_fill_0_1:",
    "cbz x2, 3b",
    "4:",
    "strb w1, [x0], #1",
    "subs x2, x2, #1",
    "b.ne 4b",
    "b 3b",
    "pagestone_map_load8_0_1:",
    "ldarb w3, [x0]",
    "b 5f",
    "pagestone_map_load16_0_1:",
    "ldarh w3, [x0]",
    "b 5f",
    "pagestone_map_load32_0_1:",
    "ldar w3, [x0]",
    "b 5f",
    "pagestone_map_load64_0_1:",
    "ldar x3, [x0]",
    "5:",
    "str x3, [x1]",
    "mov x0, #0",
    "ret",
    "pagestone_map_swap8_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxrb w3, [x0]",
    "stlxrb w5, w4, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_map_swap16_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxrh w3, [x0]",
    "stlxrh w5, w4, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_map_swap32_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxr w3, [x0]",
    "stlxr w5, w4, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_map_swap64_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxr x3, [x0]",
    "stlxr w5, x4, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_map_compare32_0_1:",
    "ldr x4, [x1]",
    "6:",
    "ldaxr w3, [x0]",
    "cmp w3, w4",
    "b.ne 7f",
    "stlxr w5, w2, [x0]",
    "cbnz w5, 6b",
    "b 5b",
    "pagestone_map_compare64_0_1:",
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
    "pagestone_map_end_0_1:",
    "pagestone_map_fixup_0_1:",
    "ret",
    ".popsection",
);

// SAFETY: the routines above, with these arguments; all else about them is said at each use.
unsafe extern "C" {
    static pagestone_map_begin_0_1: u8;
    static pagestone_map_end_0_1: u8;
    static pagestone_map_fixup_0_1: u8;
    fn pagestone_map_copy_0_1(to: usize, from: usize, len: usize) -> usize;
    fn pagestone_map_fill_0_1(to: usize, byte: usize, len: usize) -> usize;
    fn pagestone_map_load8_0_1(addr: usize, out: &mut u64) -> usize;
    fn pagestone_map_load16_0_1(addr: usize, out: &mut u64) -> usize;
    fn pagestone_map_load32_0_1(addr: usize, out: &mut u64) -> usize;
    fn pagestone_map_load64_0_1(addr: usize, out: &mut u64) -> usize;
    fn pagestone_map_swap8_0_1(addr: usize, value: &mut u64) -> usize;
    fn pagestone_map_swap16_0_1(addr: usize, value: &mut u64) -> usize;
    fn pagestone_map_swap32_0_1(addr: usize, value: &mut u64) -> usize;
    fn pagestone_map_swap64_0_1(addr: usize, value: &mut u64) -> usize;
    fn pagestone_map_compare32_0_1(addr: usize, expected: &mut u64, new: u64) -> usize;
    fn pagestone_map_compare64_0_1(addr: usize, expected: &mut u64, new: u64) -> usize;
}

/// If `pc` stands in one of the routines: where to continue.
pub(super) fn fixup(pc: usize) -> Option<usize> {
    let (begin, end) = (&raw const pagestone_map_begin_0_1 as usize, &raw const pagestone_map_end_0_1 as usize);
    (begin..end).contains(&pc).then_some(&raw const pagestone_map_fixup_0_1 as usize)
}

fn reached(fault: usize) -> Reached {
    if fault == 0 { Ok(()) } else { Err(fault) }
}

/// Copies `len` bytes between memory of a mapping and memory of the caller, either way.
///
/// # Safety
/// The caller's side is valid for `len` bytes; the other lies in a mapping.
pub(super) unsafe fn copy(to: usize, from: usize, len: usize) -> Reached {
    // SAFETY: the caller's side is valid; a fault on the other is answered, not fatal.
    reached(unsafe { pagestone_map_copy_0_1(to, from, len) })
}

/// Stores the same byte `len` times.
///
/// # Safety
/// The range lies in a mapping.
pub(super) unsafe fn fill(to: usize, byte: u8, len: usize) -> Reached {
    // SAFETY: as in `copy`.
    reached(unsafe { pagestone_map_fill_0_1(to, usize::from(byte), len) })
}

/// Loads an aligned word of 1, 2, 4 or 8 bytes.
///
/// # Safety
/// The word lies in a mapping.
pub(super) unsafe fn load(addr: usize, size: usize, out: &mut u64) -> Reached {
    // SAFETY: as in `copy`; `out` is the caller's.
    reached(unsafe {
        match size {
            1 => pagestone_map_load8_0_1(addr, out),
            2 => pagestone_map_load16_0_1(addr, out),
            4 => pagestone_map_load32_0_1(addr, out),
            _ => pagestone_map_load64_0_1(addr, out),
        }
    })
}

/// Exchanges an aligned word of 1, 2, 4 or 8 bytes for `value`, which becomes the old one.
///
/// # Safety
/// The word lies in a mapping.
pub(super) unsafe fn swap(addr: usize, size: usize, value: &mut u64) -> Reached {
    // SAFETY: as in `load`.
    reached(unsafe {
        match size {
            1 => pagestone_map_swap8_0_1(addr, value),
            2 => pagestone_map_swap16_0_1(addr, value),
            4 => pagestone_map_swap32_0_1(addr, value),
            _ => pagestone_map_swap64_0_1(addr, value),
        }
    })
}

/// Stores `new` in an aligned word of 4 or 8 bytes if it is `expected`, which becomes what was seen.
///
/// # Safety
/// The word lies in a mapping.
pub(super) unsafe fn compare(addr: usize, size: usize, expected: &mut u64, new: u64) -> Reached {
    // SAFETY: as in `load`.
    reached(unsafe {
        match size {
            4 => pagestone_map_compare32_0_1(addr, expected, new),
            _ => pagestone_map_compare64_0_1(addr, expected, new),
        }
    })
}
