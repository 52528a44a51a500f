//! The signal handler that turns a fault into an error.
//!
//! ```text
//!   SIGBUS, SIGSEGV
//!      |-- sent by a process, not a fault            call the previous handler
//!      |-- in a routine of copy.rs                   result = address, continue at its end
//!      |-- at an instruction in table.rs             note the address, continue after it
//!      |-- memory failed, no access to it            note the address; call the previous handler if it is
//!      |                                             for SIGBUS alone
//!      `-- anywhere else                             call the previous handler
//! ```
//!
//! It only accesses the interrupted registers. It neither allocates nor locks.
//!
//! The standard library has a handler for both signals, to report stack overflows. For any other fault it installs
//! the default action and returns, so that the fault repeats and ends the process. A signal that was sent does not
//! repeat: the process continues, and needs this handler. So if a previous handler installs the default action,
//! that becomes the *previous* action, and this handler is installed again. A report of failed memory is no crash
//! and is not passed to such a handler.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

use super::{copy, note, note_elsewhere, table};

/// The actions that were installed before, for SIGBUS and SIGSEGV.
static PREVIOUS: OnceLock<Result<[PreviousAction; 2], i32>> = OnceLock::new();
/// Whether the previous handler has installed the default action since.
static DEFAULT_INSTALLED: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

struct PreviousAction(sigaction);

// SAFETY: plain data that is only read once it is set.
unsafe impl Send for PreviousAction {}
// SAFETY: as above.
unsafe impl Sync for PreviousAction {}

/// Installs the handler, once for the process.
pub fn install() -> io::Result<()> {
    let installed = PREVIOUS.get_or_init(|| {
        // Read the previous actions first: a fault may occur as soon as the handler is installed.
        Ok([current(libc::SIGBUS)?, current(libc::SIGSEGV)?])
    });
    if let Err(code) = installed {
        return Err(io::Error::from_raw_os_error(*code));
    }
    static SET: OnceLock<()> = OnceLock::new();
    SET.get_or_init(|| [libc::SIGBUS, libc::SIGSEGV].into_iter().for_each(set));
    Ok(())
}

fn current(signal: c_int) -> Result<PreviousAction, i32> {
    let mut before = MaybeUninit::<sigaction>::zeroed();
    // SAFETY: only reads the present action into a local structure.
    match unsafe { libc::sigaction(signal, std::ptr::null(), before.as_mut_ptr()) } {
        // SAFETY: zeroed is a valid sigaction, and the kernel filled it.
        0 => Ok(PreviousAction(unsafe { before.assume_init() })),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
    }
}

fn index(signal: c_int) -> usize {
    usize::from(signal == libc::SIGSEGV)
}

/// The address of this handler, as the kernel reports it.
fn ours() -> usize {
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
    handler as usize
}

fn set(signal: c_int) {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ours();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the handler is a function of the right type and is async-signal-safe.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo and context to a SA_SIGINFO handler, and nothing else accesses
    // them.
    let (code, addr, registers) =
        unsafe { ((*info).si_code, (*info).si_addr() as usize, &mut *context.cast::<ucontext_t>()) };
    if code <= 0 {
        // There is no address, and the interrupted instruction is not the cause.
        return match before(signal) {
            Previous::Default => end_by(signal),
            Previous::Ignored => {}
            Previous::Handler(before) => call(before, signal, info, context),
        };
    }
    // The memory is not being accessed: the interrupted instruction is not the cause. A later access is a signal of
    // its own.
    let elsewhere = signal == libc::SIGBUS && code == libc::BUS_MCEERR_AO;
    if elsewhere {
        note_elsewhere(addr);
    } else {
        let at = program_counter(registers);
        if let Some(target) = copy::fixup(at) {
            set_result(registers, addr.max(1));
            continue_at(registers, target);
            return;
        }
        if let Some(target) = table::behind(at) {
            note(addr);
            continue_at(registers, target);
            return;
        }
    }
    match before(signal) {
        Previous::Handler(before) if !(elsewhere && handles_both_signals(before)) => {
            call(before, signal, info, context)
        }
        // No access has failed yet: no reason to end the process.
        _ if elsewhere => {}
        // The same instruction faults again, and the kernel ends the process.
        _ => set_default(signal),
    }
}

/// The previous action for a signal.
enum Previous {
    Default,
    Ignored,
    Handler(&'static sigaction),
}

/// Whether one handler was installed for both SIGBUS and SIGSEGV: then it treats failed memory as a crash.
fn handles_both_signals(bus: &sigaction) -> bool {
    matches!(PREVIOUS.get(), Some(Ok([_, PreviousAction(segv)])) if segv.sa_sigaction == bus.sa_sigaction)
}

fn before(signal: c_int) -> Previous {
    let Some(Ok(before)) = PREVIOUS.get() else { return Previous::Default };
    let action = &before[index(signal)].0;
    match action.sa_sigaction {
        _ if DEFAULT_INSTALLED[index(signal)].load(Ordering::Relaxed) => Previous::Default,
        libc::SIG_DFL => Previous::Default,
        libc::SIG_IGN => Previous::Ignored,
        _ => Previous::Handler(action),
    }
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
fn set_result(context: &mut ucontext_t, result: usize) {
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
fn set_result(context: &mut ucontext_t, result: usize) {
    context.uc_mcontext.regs[0] = result as u64;
}

/// Calls the previous handler. If that installs the default action, records it as the previous action and installs
/// this handler again.
fn call(before: &sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if before.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: it was installed as a handler of this type.
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
            unsafe { std::mem::transmute(before.sa_sigaction) };
        handler(signal, info, context);
    } else {
        // SAFETY: it was installed as a handler of this type.
        let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(before.sa_sigaction) };
        handler(signal);
    }
    if current(signal).is_ok_and(|action| action.0.sa_sigaction == libc::SIG_DFL) {
        DEFAULT_INSTALLED[index(signal)].store(true, Ordering::Relaxed);
        set(signal);
    }
}

fn set_default(signal: c_int) {
    // SAFETY: all zeros with the default handler is a valid sigaction.
    let mut action: sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = libc::SIG_DFL;
    // SAFETY: as above.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

/// Performs the default action for a signal that was sent: it does not repeat by itself.
fn end_by(signal: c_int) {
    set_default(signal);
    // SAFETY: sends a signal to this thread, in which this handler does not block it.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MappedRange;
    use crate::PAGE_SIZE;

    /// Runs `run` in a child process, with a mapping whose first page is inaccessible, and returns the result. The
    /// child uses only system calls and loads, and waits for no thread that does not exist in it.
    fn in_child(run: impl FnOnce(&MappedRange) -> bool) -> c_int {
        install().expect("handlers");
        let view = MappedRange::anonymous(PAGE_SIZE).expect("memory");
        view.forbid(0, PAGE_SIZE);
        // SAFETY: see above.
        match unsafe { libc::fork() } {
            0 => {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: system calls with local structures and numbers.
                unsafe {
                    libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                    libc::alarm(10);
                    libc::_exit(if run(&view) { 7 } else { 8 });
                }
            }
            child => {
                let mut status = 0;
                // SAFETY: waits for a child of this process.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                status
            }
        }
    }

    /// Whether an access to lost memory is an error and not a signal.
    fn survives(view: &MappedRange) -> bool {
        !view.read(0, &mut [0; 8]) && current(libc::SIGBUS).is_ok_and(|action| action.0.sa_sigaction == ours())
    }

    /// Sends this process a signal as the kernel does.
    fn send(signal: c_int, code: c_int, addr: usize) {
        // SAFETY: zeros are a valid siginfo, whose address lies at byte 16.
        unsafe {
            let mut info: siginfo_t = std::mem::zeroed();
            (info.si_signo, info.si_code) = (signal, code);
            (&raw mut info).cast::<usize>().add(2).write(addr);
            let (pid, thread) = (libc::getpid(), libc::gettid());
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, thread, signal, &raw const info);
        }
    }

    /// Fails if the standard library's handler, which every program has, replaces this one.
    #[test]
    fn news_of_failed_memory_is_noted_and_leaves_the_handler_in_place() {
        let status = in_child(|view| {
            let addr = view.addresses().start;
            (0..3).all(|_| {
                let (first, mine) = (super::super::next(), super::super::mine());
                send(libc::SIGBUS, libc::BUS_MCEERR_AO, addr);
                let mut noted = 0;
                super::super::since(first, |at| noted += u32::from(at == addr));
                noted == 1 && super::super::well_since(mine) && survives(view)
            })
        });
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
    }

    /// As in a program without this handler: at the first signal the standard library's handler installs the
    /// default action, the second one ends the process. Between them, lost memory is an error.
    #[test]
    fn a_signal_that_was_sent_does_what_it_would_do_without_us() {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: a signal to this process alone.
            let kill = || unsafe { libc::kill(libc::getpid(), signal) };
            let status = in_child(|view| {
                kill();
                survives(view)
            });
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{signal}: {status:#x}");
            let status = in_child(|_| {
                kill();
                kill();
                true
            });
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal, "{signal}: {status:#x}");
        }
    }

    #[test]
    fn a_fault_of_somebody_else_ends_the_process() {
        let status = in_child(|view| {
            let gone = view.addr(0, 1).map_or(std::ptr::null(), |at| at.cast_const());
            // SAFETY: the page is unreadable, so the process ends here.
            unsafe { gone.read_volatile() == 0 }
        });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
    }
}
