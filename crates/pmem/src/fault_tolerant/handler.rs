//! The handler that turns a fault into an answer.
//!
//! ```text
//!   SIGBUS, SIGSEGV
//!      |-- sent by a process, not a fault        whoever had the signal before us
//!      |-- in a routine of copy.rs           result = address, continue at its end
//!      |-- at an instruction in the table        note the address, continue behind it
//!      |-- memory failed that nobody touches     note the address; whoever had SIGBUS alone before us
//!      `-- anywhere else                         whoever had the signal before us
//! ```
//!
//! It only looks at the interrupted registers: nothing in it allocates or locks.
//!
//! The standard library has a handler for both signals, to tell of stack overflows. For all else it puts the default
//! action in its own place and returns, so that a fault comes again and ends the process. Nothing comes again after a
//! signal that was sent: the process goes on, and must go on with this handler. So the default action that a handler
//! before us installs becomes *its* successor, and ours stays. Reports of failed memory are no crash, and are not passed to
//! such a handler at all.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

use super::{copy, note, note_elsewhere, table};

/// What was installed before, for SIGBUS and SIGSEGV.
static BEFORE: OnceLock<Result<[Before; 2], i32>> = OnceLock::new();
/// Whether that has put the default action in its own place since.
static GONE: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

struct Before(sigaction);

// SAFETY: plain data that is only read once it is set.
unsafe impl Send for Before {}
// SAFETY: as above.
unsafe impl Sync for Before {}

/// Installs the handler, once for the process.
pub fn install() -> io::Result<()> {
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

fn index(signal: c_int) -> usize {
    usize::from(signal == libc::SIGSEGV)
}

/// Our handler as the kernel knows it.
fn ours() -> usize {
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
    handler as usize
}

fn set(signal: c_int) {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ours();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the handler is a function of the right type and keeps to what a handler may do.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a valid siginfo and context to a SA_SIGINFO handler; nobody else
    // looks at them meanwhile.
    let (code, addr, registers) =
        unsafe { ((*info).si_code, (*info).si_addr() as usize, &mut *context.cast::<ucontext_t>()) };
    if code <= 0 {
        // There is no address, and what was interrupted has nothing to do with it.
        return match before(signal) {
            Previous::Default => end_by(signal),
            Previous::Ignored => {}
            Previous::Handler(before) => call(before, signal, info, context),
        };
    }
    // Of a page that nobody touches at the moment: the instruction that was interrupted is not the cause. Whoever does
    // touch it gets a signal of its own.
    let elsewhere = signal == libc::SIGBUS && code == libc::BUS_MCEERR_AO;
    if elsewhere {
        note_elsewhere(addr);
    } else {
        let at = program_counter(registers);
        if let Some(target) = copy::fixup(at) {
            answer(registers, addr.max(1));
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
        Previous::Handler(before) if !(elsewhere && tells_of_crashes(before)) => call(before, signal, info, context),
        // It takes nobody's data yet: not a reason to end.
        _ if elsewhere => {}
        // The same instruction faults again, and the kernel does the rest.
        _ => set_default(signal),
    }
}

/// Who had a signal before us.
enum Previous {
    Default,
    Ignored,
    Handler(&'static sigaction),
}

/// Whether a handler of SIGBUS is that of SIGSEGV, too: then it does not tell failed memory from a crash.
fn tells_of_crashes(bus: &sigaction) -> bool {
    matches!(BEFORE.get(), Some(Ok([_, Before(segv)])) if segv.sa_sigaction == bus.sa_sigaction)
}

fn before(signal: c_int) -> Previous {
    let Some(Ok(before)) = BEFORE.get() else { return Previous::Default };
    let action = &before[index(signal)].0;
    match action.sa_sigaction {
        _ if GONE[index(signal)].load(Ordering::Relaxed) => Previous::Default,
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

/// Calls the handler that was there before us. If it puts the default action in place, that is what it leaves behind
/// for the next time, and our handler stays.
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
        GONE[index(signal)].store(true, Ordering::Relaxed);
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

/// The default action of a signal that was sent: nothing sends it again by itself.
fn end_by(signal: c_int) {
    set_default(signal);
    // SAFETY: sends a signal to this thread, where our handler does not block it.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MappedRange;
    use crate::PAGE_SIZE;

    /// A mapping whose first page is gone, in a child of this process; the result of `run` there. The child runs
    /// system calls and loads, and nothing that could wait for a thread it does not have.
    fn in_child(run: impl FnOnce(&MappedRange) -> bool) -> c_int {
        install().expect("handlers");
        let window = MappedRange::anonymous(PAGE_SIZE).expect("memory");
        window.forbid(0, PAGE_SIZE);
        // SAFETY: see above.
        match unsafe { libc::fork() } {
            0 => {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: system calls with structures and numbers of ours.
                unsafe {
                    libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                    libc::alarm(10);
                    libc::_exit(if run(&window) { 7 } else { 8 });
                }
            }
            child => {
                let mut status = 0;
                // SAFETY: waits for a child of ours.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                status
            }
        }
    }

    /// Whether lost memory is an error and not a signal.
    fn survives(window: &MappedRange) -> bool {
        !window.read(0, &mut [0; 8]) && current(libc::SIGBUS).is_ok_and(|action| action.0.sa_sigaction == ours())
    }

    /// Sends this process a signal of the kernel's kind.
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

    /// Fails if the handler of the standard library, which is there in every program, ends ours.
    #[test]
    fn news_of_failed_memory_is_noted_and_leaves_the_handler_in_place() {
        let status = in_child(|window| {
            let addr = window.addresses().start;
            (0..3).all(|_| {
                let (first, mine) = (super::super::next(), super::super::mine());
                send(libc::SIGBUS, libc::BUS_MCEERR_AO, addr);
                let mut noted = 0;
                super::super::since(first, |at| noted += u32::from(at == addr));
                noted == 1 && super::super::well_since(mine) && survives(window)
            })
        });
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
    }

    /// As without us: the first one has the standard library's handler put the default action in place, the second
    /// one ends the process. Between them lost memory is an error.
    #[test]
    fn a_signal_that_was_sent_does_what_it_would_do_without_us() {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: a signal to this process alone.
            let kill = || unsafe { libc::kill(libc::getpid(), signal) };
            let status = in_child(|window| {
                kill();
                survives(window)
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
        let status = in_child(|window| {
            let gone = window.addr(0, 1).map_or(std::ptr::null(), |at| at.cast_const());
            // SAFETY: it is a page of ours that cannot be read: the process ends here.
            unsafe { gone.read_volatile() == 0 }
        });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
    }
}
