//! One figure: the measurement, that of its peer, and the target for the two.

use serde::Serialize;

/// The unit of a figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Nanoseconds per operation.
    Nanoseconds,
    /// Bytes.
    Bytes,
    /// The rate of two threads relative to one thread.
    Times,
}

/// The target of a figure.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The library takes at most this many times the peer's value.
    RatioAtMost(f64),
    /// The peer takes at least this many times as long as the library.
    FasterAtLeast(f64),
    /// The library's value is at most this.
    AtMost(f64),
    /// The library's value is at least this.
    AtLeast(f64),
    /// No target: for information.
    None,
}

/// The result of comparing a figure with its target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Reached.
    Pass,
    /// Missed.
    Miss,
    /// No target.
    Info,
    /// Could not be measured on this machine; the note has the reason.
    Skipped,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The item it belongs to.
    pub item: &'static str,
    /// What was measured.
    pub what: String,
    /// The library's value.
    pub ours: f64,
    /// The peer.
    pub peer_name: String,
    /// The peer's value; NaN without a peer.
    pub peer: f64,
    /// The unit of both.
    pub unit: Unit,
    /// For [`Target::FasterAtLeast`] the peer's value divided by the library's, else the library's divided by the
    /// peer's: the median over rounds.
    pub ratio: f64,
    /// The target.
    pub target: Target,
    /// Whether the target was reached.
    pub verdict: Verdict,
    /// A remark for the reader.
    pub note: String,
}

impl Figure {
    /// Compares a measurement with its target. `cost` is the library's value divided by the peer's.
    pub(crate) fn new(
        item: &'static str,
        what: impl Into<String>,
        unit: Unit,
        ours: f64,
        (peer_name, peer): (&str, f64),
        cost: f64,
        target: Target,
    ) -> Figure {
        let ratio = if matches!(target, Target::FasterAtLeast(_)) { 1.0 / cost } else { cost };
        let reached = match target {
            Target::RatioAtMost(most) => ratio <= most,
            Target::FasterAtLeast(least) => ratio >= least,
            Target::AtMost(most) => ours <= most,
            Target::AtLeast(least) => ours >= least,
            Target::None => true,
        };
        let verdict = match (target, reached) {
            (Target::None, _) => Verdict::Info,
            (_, true) => Verdict::Pass,
            (_, false) => Verdict::Miss,
        };
        let (what, peer_name) = (what.into(), peer_name.to_owned());
        Figure { item, what, ours, peer_name, peer, unit, ratio, target, verdict, note: String::new() }
    }

    /// A figure that cannot be measured on this machine.
    pub(crate) fn skipped(item: &'static str, what: &str, why: String) -> Figure {
        let mut figure = Figure::new(item, what, Unit::Nanoseconds, f64::NAN, ("", f64::NAN), f64::NAN, Target::None);
        figure.verdict = Verdict::Skipped;
        figure.note = why;
        figure
    }

    /// With a remark.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Figure {
        self.note = note.into();
        self
    }

    /// The columns of the report: what, ours, peer, ratio, target, verdict.
    pub fn columns(&self) -> [String; 6] {
        let show = |value: f64| show(self.unit, value);
        let peer = if self.peer.is_nan() { String::new() } else { format!("{} {}", show(self.peer), self.peer_name) };
        let ratio = match self.target {
            _ if self.ratio.is_nan() => String::new(),
            Target::FasterAtLeast(_) => format!("{:.2}x as fast", self.ratio),
            _ => format!("{:.2}x", self.ratio),
        };
        let target = match self.target {
            Target::RatioAtMost(most) => format!("<= {most}x"),
            Target::FasterAtLeast(least) => format!(">= {least}x as fast"),
            Target::AtMost(most) => format!("<= {}", show(most)),
            Target::AtLeast(least) => format!(">= {}", show(least)),
            Target::None => String::new(),
        };
        let verdict = match self.verdict {
            Verdict::Pass => "pass",
            Verdict::Miss => "MISS",
            Verdict::Info => "",
            Verdict::Skipped => "skipped",
        };
        let ours = if self.ours.is_nan() { String::new() } else { show(self.ours) };
        [format!("{}: {}", self.item, self.what), ours, peer, ratio, target, verdict.to_owned()]
    }
}

fn show(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Nanoseconds if value < 9_999.5 => format!("{value:.0} ns"),
        Unit::Nanoseconds if value < 9_999_500.0 => format!("{:.1} us", value / 1e3),
        Unit::Nanoseconds => format!("{:.1} ms", value / 1e6),
        Unit::Bytes if value < 1_048_576.0 => format!("{:.1} KiB", value / 1024.0),
        Unit::Bytes => format!("{:.1} MiB", value / 1_048_576.0),
        Unit::Times => format!("{value:.2}x"),
    }
}
