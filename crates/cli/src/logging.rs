//! What a server says of itself: lines for people, JSON for programs, or entries of the journal of systemd.
//!
//! ```text
//!   tracing::warn!(pool = %path, "...")  -->  level: warnings; -v what is done; -vv every request on the control socket
//!                                        -->  text on standard error | --log-format json | journald
//! ```
//!
//! Commands that are no servers print what went wrong, and nothing else: there, nobody listens to these events.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;

use clap::{ArgAction, Args, ValueEnum};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::output;

/// How much a server says, and how.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Logging {
    /// Say what is done, too; -vv: also every request of other commands
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// How messages are written (journal under systemd and in the background, text elsewhere)
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for people, on standard error
    Text,
    /// One object a line, on standard error
    Json,
    /// Entries of systemd's journal, with fields
    Journal,
}

impl Logging {
    /// From now on messages are written. Does nothing if they are already. `detached`: nobody reads standard error.
    pub(crate) fn start(&self, detached: bool) {
        let level = match self.verbose {
            0 => LevelFilter::WARN,
            1 => LevelFilter::INFO,
            _ => LevelFilter::DEBUG,
        };
        let format =
            self.log_format.unwrap_or(if detached || under_systemd() { LogFormat::Journal } else { LogFormat::Text });
        let registry = tracing_subscriber::registry().with(level);
        // A server must not end because a terminal has: errors of writing are nobody's.
        let lines = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
        let started = match format {
            LogFormat::Json => registry.with(lines().json().flatten_event(true).with_target(false)).try_init(),
            LogFormat::Journal => match tracing_journald::layer() {
                Ok(journal) => registry.with(journal.with_syslog_identifier("pagestone".into())).try_init(),
                Err(_) => registry.with(lines().event_format(Text)).try_init(),
            },
            LogFormat::Text => registry.with(lines().event_format(Text)).try_init(),
        };
        // Somebody has done it before.
        let _ = started;
    }

    /// The same as words of a command line.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let mut words = vec![OsString::from("--verbose"); self.verbose.into()];
        let format = self.log_format.and_then(|format| format.to_possible_value());
        words.extend(format.map(|format| format!("--log-format={}", format.get_name()).into()));
        words
    }
}

/// Whether standard error goes to the journal: the service manager says which file that is.
fn under_systemd() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let ours = std::fs::metadata("/proc/self/fd/2").map(|meta| format!("{}:{}", meta.dev(), meta.ino()));
    ours.is_ok_and(|ours| stream == *ours)
}

/// `pagestone: POOL: message (name=value ...)`
struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { place, message, others } = fields;
        let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join(" ")) };
        writeln!(to, "pagestone: {}", output::printable(&format!("{place}{message}{others}")))
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields {
    /// What the message is about, and a colon.
    place: String,
    message: String,
    others: Vec<String>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "pool" | "mount" => self.place = format!("{value:?}: "),
            name => self.others.push(format!("{name}={value:?}")),
        }
    }
}
