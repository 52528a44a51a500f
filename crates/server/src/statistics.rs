//! What a server has counted: records for clients, and the text that Prometheus reads.
//!
//! ```text
//!   faces (pagestone_mount::Statistics), pool (Info) --> api::Statistics --> JSON, /v1/statistics
//!                                                              `-----------> text, /metrics
//! ```

use std::fmt::{self, Write};

use pagestone::{Info, PAGE_SIZE};
use pagestone_mount::OperationCount;

use crate::api::{Bucket, OperationStatistics, Statistics, Status};

impl From<OperationCount> for OperationStatistics {
    fn from(counted: OperationCount) -> OperationStatistics {
        let OperationCount { operation, count, errors, time, buckets } = counted;
        OperationStatistics {
            operation: operation.name().into(),
            count,
            errors,
            nanoseconds: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            times: buckets.into_iter().map(|(below, count)| Bucket { below, count }).collect(),
        }
    }
}

impl OperationStatistics {
    /// What was counted since `before`, of the same server. After a restart of its worker all of it is new.
    pub fn since(&self, before: &OperationStatistics) -> OperationStatistics {
        if before.count > self.count {
            return self.clone();
        }
        let earlier = |below: u64| before.times.iter().find(|b| b.below == below).map_or(0, |b| b.count);
        let times =
            self.times.iter().map(|b| Bucket { below: b.below, count: b.count.saturating_sub(earlier(b.below)) });
        OperationStatistics {
            operation: self.operation.clone(),
            count: self.count - before.count,
            errors: self.errors.saturating_sub(before.errors),
            nanoseconds: self.nanoseconds.saturating_sub(before.nanoseconds),
            times: times.filter(|b| b.count > 0).collect(),
        }
    }

    /// The time that this part of the operations took at most, in nanoseconds, to a quarter; 0 for none.
    pub fn quantile(&self, part: f64) -> u64 {
        let all: u64 = self.times.iter().map(|b| b.count).sum();
        let wanted = (all as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for bucket in &self.times {
            seen += bucket.count;
            if seen >= wanted {
                return bucket.below;
            }
        }
        0
    }
}

/// A label's value, as the format wants it.
struct Label<'a>(&'a str);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

/// The upper ends of the times that are told, in powers of two of nanoseconds: 1 us to 8.6 s.
const ENDS: std::ops::RangeInclusive<u32> = 10..=33;

/// The text exposition format of Prometheus, version 0.0.4.
pub(crate) fn prometheus(statistics: &Statistics, status: &Status, info: &Info) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_pool(&mut text, status, info).and_then(|()| write_faces(&mut text, statistics));
    text
}

fn write_pool(text: &mut String, status: &Status, info: &Info) -> fmt::Result {
    let gauges = [
        ("pool_size_bytes", "Bytes of the pool.", status.size),
        ("pool_used_bytes", "Bytes in use.", status.used),
        ("pool_available_bytes", "Bytes free to programs.", status.available),
        ("pool_shared_bytes", "Bytes that clones have in common.", info.shared * PAGE_SIZE),
        ("pool_inodes", "Files, directories and other inodes.", status.inodes),
        ("pool_lost_pages", "Pages that the media have lost, as far as is known.", info.lost),
        ("pool_read_only", "1 if the pool takes no changes.", u64::from(status.read_only)),
        ("troubles", "Things that need attention; see pagestone status.", status.troubles.len() as u64),
        ("uptime_seconds", "Since the process that does the work has the pool open.", status.uptime),
    ];
    for (name, help, value) in gauges {
        writeln!(text, "# HELP pagestone_{name} {help}\n# TYPE pagestone_{name} gauge\npagestone_{name} {value}")?;
    }
    let counters = [
        ("background_errors_total", "Errors of work that no caller waits for.", info.background_errors),
        ("takeovers_total", "Processes that have served the mount before this one.", status.takeovers.into()),
        ("journal_records_total", "Records written since the pool was made.", info.records),
    ];
    for (name, help, value) in counters {
        writeln!(text, "# HELP pagestone_{name} {help}\n# TYPE pagestone_{name} counter\npagestone_{name} {value}")?;
    }
    Ok(())
}

fn write_faces(text: &mut String, statistics: &Statistics) -> fmt::Result {
    writeln!(text, "# HELP pagestone_bytes_total Bytes moved.\n# TYPE pagestone_bytes_total counter")?;
    for face in &statistics.faces {
        let (kind, at) = (Label(&face.kind), face.at.to_string());
        for (direction, bytes) in [("read", face.read), ("written", face.written)] {
            let at = Label(&at);
            writeln!(text, "pagestone_bytes_total{{face=\"{kind}\",at=\"{at}\",direction=\"{direction}\"}} {bytes}")?;
        }
    }
    let errors = "pagestone_operation_errors_total";
    writeln!(text, "# HELP {errors} Operations that failed.\n# TYPE {errors} counter")?;
    for_each_operation(statistics, |labels, operation| writeln!(text, "{errors}{{{labels}}} {}", operation.errors))?;
    let seconds = "pagestone_operation_seconds";
    writeln!(text, "# HELP {seconds} Time from a request to its answer.\n# TYPE {seconds} histogram")?;
    for_each_operation(statistics, |labels, operation| {
        for power in ENDS {
            let end = 1u64 << power;
            let below: u64 = operation.times.iter().filter(|b| b.below <= end).map(|b| b.count).sum();
            writeln!(text, "{seconds}_bucket{{{labels},le=\"{}\"}} {below}", end as f64 / 1e9)?;
        }
        writeln!(text, "{seconds}_bucket{{{labels},le=\"+Inf\"}} {}", operation.count)?;
        writeln!(text, "{seconds}_sum{{{labels}}} {}", operation.nanoseconds as f64 / 1e9)?;
        writeln!(text, "{seconds}_count{{{labels}}} {}", operation.count)
    })
}

fn for_each_operation(
    statistics: &Statistics,
    mut each: impl FnMut(&str, &OperationStatistics) -> fmt::Result,
) -> fmt::Result {
    for face in &statistics.faces {
        let at = face.at.to_string();
        for operation in &face.operations {
            let (kind, at, name) = (Label(&face.kind), Label(&at), Label(&operation.operation));
            each(&format!("face=\"{kind}\",at=\"{at}\",operation=\"{name}\""), operation)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(times: &[(u64, u64)]) -> OperationStatistics {
        let times: Vec<Bucket> = times.iter().map(|&(below, count)| Bucket { below, count }).collect();
        let count = times.iter().map(|b| b.count).sum();
        OperationStatistics { operation: "read".into(), count, errors: 1, nanoseconds: 100, times }
    }

    #[test]
    fn quantiles_are_the_ends_of_buckets() {
        let read = counted(&[(1000, 50), (2000, 40), (8000, 10)]);
        let quantiles = [0.0, 0.5, 0.51, 0.9, 0.99, 1.0].map(|part| read.quantile(part));
        assert_eq!(quantiles, [1000, 1000, 2000, 2000, 8000, 8000]);
        assert_eq!(counted(&[]).quantile(0.5), 0);
    }

    #[test]
    fn what_is_counted_between_two_looks_is_the_difference_and_after_a_restart_all() {
        let (before, after) = (counted(&[(1000, 5), (2000, 5)]), counted(&[(1000, 5), (2000, 8), (4000, 1)]));
        let since = after.since(&before);
        assert_eq!((since.count, since.errors), (4, 0));
        assert_eq!(since.times, [Bucket { below: 2000, count: 3 }, Bucket { below: 4000, count: 1 }]);
        assert_eq!(before.since(&after), before);
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(Label("a\"b\\c\nd").to_string(), "a\\\"b\\\\c\\nd");
    }
}
