//! What the exit codes mean. They are part of the interface: scripts depend on them.

use std::fmt;
use std::io;
use std::process::ExitCode;

use pagestone_server::{Code, StoreError};

use crate::pool_error::PoolError;

/// How the command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// Done; for `check`: clean.
    Ok,
    /// `check`: everything that was wrong has been repaired.
    Repaired,
    /// It failed, for a reason that was printed.
    Failed,
    /// The command line was wrong.
    Usage,
    /// The pool is damaged: `check` left something, or a command ran into it.
    Damaged,
    /// This signal interrupted it. The process ends by the signal, as it does where no signal is caught.
    Interrupted(i32),
}

/// For `--help`.
pub(crate) const CODES: &str = "\
Exit codes:
  0  done; for `check`: clean
  1  failed (the reason is printed); for `check`: damage found and repaired
  2  the command line was wrong
  4  the pool is damaged; for `check`: damage left
A command that a signal interrupts ends by that signal; for Ctrl-C a shell shows 130.";

impl Exit {
    /// As the system sees it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Repaired | Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Damaged => 4,
            Exit::Interrupted(signal) => 128 + signal as u8,
        }
    }

    /// How a process of ours that ended with this code has ended.
    pub(crate) fn of_code(code: i32) -> Exit {
        match code {
            0 => Exit::Ok,
            2 => Exit::Usage,
            4 => Exit::Damaged,
            _ => Exit::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error that is the caller's: what was asked for can never work.
#[derive(Debug)]
pub(crate) struct WrongUsage(pub(crate) String);

impl fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

/// A signal ended a long operation after one of its steps.
#[derive(Debug)]
pub(crate) struct Interrupted {
    pub(crate) signal: i32,
    /// What the operation left.
    pub(crate) left: String,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.left)
    }
}

impl std::error::Error for Interrupted {}

/// The code that an error ends the command with.
pub(crate) fn of(error: &anyhow::Error) -> Exit {
    if error.chain().any(|e| e.is::<WrongUsage>()) {
        return Exit::Usage;
    }
    if let Some(interrupted) = error.chain().find_map(|e| e.downcast_ref::<Interrupted>()) {
        return Exit::Interrupted(interrupted.signal);
    }
    let damaged = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref().is_some_and(|e| matches!(e, pagestone::Error::Corrupt { .. }))
            || e.downcast_ref().is_some_and(PoolError::is_damage)
            || e.downcast_ref().is_some_and(|e: &StoreError| e.problem().code == Code::Damaged)
    };
    if error.chain().any(damaged) { Exit::Damaged } else { Exit::Failed }
}

/// The error and its causes in one line. A cause that its effect has named already is left out.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Whether the reader of our output has gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|e| e.downcast_ref()).any(broken)
}
