//! What the scheduler can be asked: where a thread runs, and how often this one has slept.

use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;

/// The processor on which a thread (by its number in this process's namespace) last ran; `None`
/// if it cannot be seen from here.
pub(crate) fn processor_of(thread: u32) -> Option<usize> {
    if thread == 0 {
        return None; // the kernel itself, or somebody in a namespace outside
    }
    let mut text = [0; 1024];
    let len = File::open(format!("/proc/{thread}/stat")).ok()?.read(&mut text).ok()?;
    field(text.get(..len)?)
}

/// The 39th field. The second is the program's name in parentheses, which may hold anything.
fn field(stat: &[u8]) -> Option<usize> {
    let named = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat[named + 1..].split(|byte| byte.is_ascii_whitespace()).filter(|field| !field.is_empty());
    std::str::from_utf8(fields.nth(39 - 3)?).ok()?.parse().ok()
}

/// How often this thread has given its processor away, by itself or not.
pub(crate) fn switches() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the record that it is given, and all zeros are a valid one as well.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    (usage.ru_nvcsw + usage.ru_nivcsw).try_into().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_odd_name_is_found_on_its_processor() {
        let mut stat = b"17 (a) 1 (b) S".to_vec();
        (4..=38).for_each(|n| stat.extend(format!(" {n}").bytes()));
        stat.extend(b" 5 0 0\n");
        assert_eq!(field(&stat), Some(5));
        assert_eq!(field(b"17 (a"), None);
        assert_eq!(field(b"17 (a) S 1 2"), None);
        assert_eq!(processor_of(0), None);
        assert!(processor_of(std::process::id()).is_some_and(|cpu| cpu < 1 << 16));
    }

    #[test]
    fn sleeping_is_counted() {
        let before = switches();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(switches() > before);
    }
}
