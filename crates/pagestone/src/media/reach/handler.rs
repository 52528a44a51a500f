//! The handler that turns a fault into an answer.
//!
//! ```text
//!   SIGBUS, SIGSEGV
//!      |-- in a routine of routines.rs              result = address, continue at its end
//!      |-- at an instruction in the table        note the address, continue behind it
//!      `-- anywhere else                         whoever had the signal before us
//! ```
//!
//! It only looks at the interrupted registers: nothing in it allocates, locks or calls back.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

use super::{note, routines, table};

/// What was installed before, for SIGBUS and SIGSEGV.
static BEFORE: OnceLock<Result<[Before; 2], i32>> = OnceLock::new();

struct Before(sigaction);

// SAFETY: plain data that is only read once it is set.
unsafe impl Send for Before {}
// SAFETY: as above.
unsafe impl Sync for Before {}

/// Installs the handler, once for the process.
pub(crate) fn install() -> io::Result<()> {
    let installed = BEFORE.get_or_init(|| {
        // What is there is read first: a fault may come as soon as the handler stands.
        Ok([current(libc::SIGBUS)?, current(libc::SIGSEGV)?])
    });
    if let Err(code) = installed {
        return Err(io::Error::from_raw_os_error(*code));
    }
    static SET: OnceLock<()> = OnceLock::new();
    SET.get_or_init(|| [libc::SIGBUS, libc::SIGSEGV].into_iter().for_each(set));
    Ok(())
}

fn current(signal: c_int) -> Result<Before, i32> {
    let mut before = MaybeUninit::<sigaction>::zeroed();
    // SAFETY: only reads the present action into a structure of ours.
    match unsafe { libc::sigaction(signal, std::ptr::null(), before.as_mut_ptr()) } {
        // SAFETY: zeroed is a valid sigaction, and the kernel filled it.
        0 => Ok(Before(unsafe { before.assume_init() })),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
    }
}

fn set(signal: c_int) {
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
    // SAFETY: all zeros is a valid sigaction.
    let mut action: sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the handler is a function of the right type and keeps to what a handler may do.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a valid siginfo and context to a SA_SIGINFO handler; nobody else
    // looks at them meanwhile.
    let (addr, registers) = unsafe { ((*info).si_addr() as usize, &mut *context.cast::<ucontext_t>()) };
    let at = program_counter(registers);
    if let Some(target) = routines::fixup(at) {
        answer(registers, addr.max(1));
        continue_at(registers, target);
        return;
    }
    if let Some(target) = table::behind(at) {
        note(addr);
        continue_at(registers, target);
        return;
    }
    // SAFETY: as above.
    if signal == libc::SIGBUS && unsafe { (*info).si_code } == libc::BUS_MCEERR_AO && nobody_else(signal) {
        // Told of a page that nobody touches at the moment. Whoever does is told again.
        note(addr);
        return;
    }
    hand_on(signal, info, context);
}

/// Whether nobody had the signal before us.
fn nobody_else(signal: c_int) -> bool {
    let before = BEFORE.get().and_then(|before| before.as_ref().ok());
    before
        .is_none_or(|b| matches!(b[usize::from(signal == libc::SIGSEGV)].0.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN))
}

#[cfg(target_arch = "x86_64")]
fn program_counter(context: &ucontext_t) -> usize {
    context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize
}

#[cfg(target_arch = "x86_64")]
fn continue_at(context: &mut ucontext_t, target: usize) {
    context.uc_mcontext.gregs[libc::REG_RIP as usize] = target as i64;
}

#[cfg(target_arch = "x86_64")]
fn answer(context: &mut ucontext_t, result: usize) {
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = result as i64;
}

#[cfg(target_arch = "aarch64")]
fn program_counter(context: &ucontext_t) -> usize {
    context.uc_mcontext.pc as usize
}

#[cfg(target_arch = "aarch64")]
fn continue_at(context: &mut ucontext_t, target: usize) {
    context.uc_mcontext.pc = target as u64;
}

#[cfg(target_arch = "aarch64")]
fn answer(context: &mut ucontext_t, result: usize) {
    context.uc_mcontext.regs[0] = result as u64;
}

/// Does what would have happened without us.
fn hand_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(Ok(before)) = BEFORE.get() else { return };
    let before = &before[usize::from(signal == libc::SIGSEGV)].0;
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The same instruction faults again, and the kernel does the rest.
            // SAFETY: all zeros with the default handler is a valid sigaction.
            let mut action: sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = libc::SIG_DFL;
            // SAFETY: as above.
            unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler of this type.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was installed as a handler of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
