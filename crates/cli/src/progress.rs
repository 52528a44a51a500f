//! Progress bars for what takes long: on standard error, and only where somebody is watching.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Nothing is shown for what is done sooner than this.
const PATIENCE: Duration = Duration::from_millis(300);

/// A bar that is hidden unless standard error is a terminal, and until it is worth showing.
pub(crate) struct Progress {
    bar: ProgressBar,
    style: ProgressStyle,
    shown: bool,
}

impl Progress {
    /// Counts bytes.
    pub(crate) fn bytes(what: &str, total: u64) -> Progress {
        Progress::new(what, total, "{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
    }

    /// Counts pages.
    pub(crate) fn pages(what: &str) -> Progress {
        Progress::new(what, 0, "{msg} {bar:30} {pos} of {len} pages, {eta} left")
    }

    fn new(what: &str, total: u64, template: &str) -> Progress {
        let bar = ProgressBar::hidden();
        bar.set_length(total);
        bar.set_message(what.to_owned());
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Progress { bar, style, shown: !std::io::stderr().is_terminal() }
    }

    fn show_when_due(&mut self) {
        if !self.shown && self.bar.elapsed() >= PATIENCE {
            self.shown = true;
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            self.bar.set_style(self.style.clone());
        }
    }

    /// `more` is done.
    pub(crate) fn add(&mut self, more: u64) {
        self.bar.inc(more);
        self.show_when_due();
    }

    /// `done` of `total` is done.
    pub(crate) fn set(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.show_when_due();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
