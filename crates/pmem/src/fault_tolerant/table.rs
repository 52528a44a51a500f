//! Instructions that may fault, and an exception table, in a section of its own, with the addresses to continue at.
//!
//! ```text
//!   2:  mov word, [at]      section pagestone_faults:   2b - ., 3b - .
//!   3:  ...                 a fault at 2 .. 3 continues at 3
//! ```
//!
//! This is modelled on the Linux kernel's `__ex_table`. Each entry consists of two 32-bit distances, so the table
//! needs no relocation when the program is loaded.

/// One entry of the table for the instructions between the labels 2 and 3.
macro_rules! entry {
    () => {
        concat!(
            ".pushsection pagestone_faults, \"aR\", %progbits\n",
            ".balign 4\n",
            ".long 2b - .\n",
            ".long 3b - .\n",
            ".popsection"
        )
    };
}
pub(in super::super) use entry;

/// Two distances, each relative to its own position.
#[repr(C)]
struct Entry {
    begin: i32,
    end: i32,
}

// SAFETY: the linker defines both symbols at the ends of the section, to which every load below adds an entry.
unsafe extern "C" {
    #[link_name = "__start_pagestone_faults"]
    static FIRST: Entry;
    #[link_name = "__stop_pagestone_faults"]
    static LAST: Entry;
}

/// If the instruction at `pc` is in the table: the address after it.
pub(super) fn behind(pc: usize) -> Option<usize> {
    let (mut at, last) = (&raw const FIRST, &raw const LAST);
    while at < last {
        // SAFETY: the range between the symbols consists of whole entries that never change.
        let entry = unsafe { &*at };
        let target = |distance: &i32| (&raw const *distance as usize).wrapping_add_signed(*distance as isize);
        if (target(&entry.begin)..target(&entry.end)).contains(&pc) {
            return Some(target(&entry.end));
        }
        at = at.wrapping_add(1);
    }
    None
}

macro_rules! load {
    ($name:ident, $word:ty, $x86:literal, $arm:literal) => {
        /// Loads an aligned word, as a relaxed atomic load does. After a fault the value is all ones, and the fault
        /// is noted.
        ///
        /// # Safety
        /// The word lies in a mapping of this library, or in readable memory.
        #[inline(always)]
        pub(in super::super) unsafe fn $name(at: *const $word) -> $word {
            let word: u64;
            // SAFETY: one load of a word of the caller's; a fault leaves the register unchanged.
            unsafe {
                #[cfg(target_arch = "x86_64")]
                std::arch::asm!(
                    concat!("2: ", $x86),
                    "3:",
                    entry!(),
                    at = in(reg) at,
                    word = inout(reg) u64::MAX => word,
                    options(nostack, preserves_flags, readonly)
                );
                #[cfg(target_arch = "aarch64")]
                std::arch::asm!(
                    concat!("2: ", $arm),
                    "3:",
                    entry!(),
                    at = in(reg) at,
                    word = inout(reg) u64::MAX => word,
                    options(nostack, preserves_flags, readonly)
                );
            }
            word as $word
        }
    };
}
load!(load_u16, u16, "movzx {word:e}, word ptr [{at}]", "ldrh {word:w}, [{at}]");
load!(load_u32, u32, "mov {word:e}, dword ptr [{at}]", "ldr {word:w}, [{at}]");
load!(load_u64, u64, "mov {word}, qword ptr [{at}]", "ldr {word}, [{at}]");
