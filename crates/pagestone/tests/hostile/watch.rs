//! Every case ends: by itself, or by a watchdog that says which one did not.

use std::cell::Cell;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Far longer than any case takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

type Running = Vec<(std::thread::ThreadId, Instant, String)>;

static RUNNING: Mutex<Running> = Mutex::new(Vec::new());

thread_local! {
    /// Whether this thread's panics are kept instead of printed.
    static IN_CASE: Cell<bool> = const { Cell::new(false) };
    /// The last panic of this thread: where, and what.
    static LAST: Cell<String> = const { Cell::new(String::new()) };
}

fn running() -> std::sync::MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(|e| e.into_inner())
}

/// Runs one case; a panic is an `Err` that says where.
pub(crate) fn case<R>(what: impl Fn() -> String, run: impl FnOnce() -> R) -> Result<R, String> {
    static WATCHDOG: std::sync::Once = std::sync::Once::new();
    WATCHDOG.call_once(|| {
        std::thread::spawn(watch);
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match IN_CASE.get() {
            true => LAST.set(info.to_string()),
            false => usual(info),
        }));
    });
    let me = std::thread::current().id();
    running().push((me, Instant::now(), what()));
    IN_CASE.set(true);
    let result = std::panic::catch_unwind(AssertUnwindSafe(run));
    IN_CASE.set(false);
    running().retain(|r| r.0 != me);
    result.map_err(|_| LAST.take().replace('\n', " "))
}

/// What this thread has used of a processor so far: waiting for one does not count.
pub(crate) fn processor_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if let Some((_, since, what)) = running().iter().find(|r| r.1.elapsed() > DEADLINE) {
            // Not by `eprintln`, which the test harness keeps until a test has ended.
            let _ = writeln!(std::io::stderr(), "no end after {:?}: {what}", since.elapsed());
            std::process::abort();
        }
    }
}
