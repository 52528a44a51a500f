//! What is printed on standard output: tables for people, JSON for programs.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use pagestone::FileType;
use pagestone::inode::{Attr, Time};
use serde::Serialize;

use crate::exit::Exit;

/// The version of what `--json` prints. It rises when a member goes or means something else. New ones may come at any time.
pub(crate) const VERSION: u32 = 1;

/// A JSON object, with the version of the output.
#[derive(Serialize)]
struct Versioned<'a, T> {
    output_version: u32,
    #[serde(flatten)]
    value: &'a T,
}

/// Prints one JSON object on one line, with the version of the output.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(&Versioned { output_version: VERSION, value }).context("JSON")?;
    line(&text)
}

/// Prints a list as one JSON object on one line, with the version of the output. `name` is the member that has the list.
pub(crate) fn json_list<T: Serialize>(name: &str, values: &[T]) -> Result<()> {
    let (name, values) = (serde_json::to_string(name), serde_json::to_string(values));
    line(&format!("{{\"output_version\":{VERSION},{}:{}}}", name.context("JSON")?, values.context("JSON")?))
}

/// Prints one line, and makes sure it has arrived.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() { printable(text) } else { text.into() };
    writeln!(out, "{text}").and_then(|()| out.flush()).context("standard output")
}

/// Says on standard error what went wrong: a line for people, or an object for programs.
pub(crate) fn failure(message: &str, exit: Exit, json: bool) {
    if json {
        eprintln!("{}", serde_json::json!({ "output_version": VERSION, "error": message, "exit": exit.code() }));
    } else if io::stderr().is_terminal() {
        eprintln!("pagestone: {}", printable(message));
    } else {
        eprintln!("pagestone: {message}");
    }
}

/// Says something on standard error, if anybody still listens there. For servers, which must not end because a terminal has.
pub(crate) fn note(text: &str) {
    let mut err = io::stderr().lock();
    let text = if err.is_terminal() { printable(text) } else { text.into() };
    let _ = writeln!(err, "pagestone: {text}");
}

/// Prints names and values in two columns.
pub(crate) fn table(rows: &[(&str, String)]) -> Result<()> {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = io::stdout().lock();
    let terminal = out.is_terminal();
    for (name, value) in rows {
        let value = if terminal { printable(value) } else { value.into() };
        writeln!(out, "{name:width$}  {value}").context("standard output")?;
    }
    out.flush().context("standard output")
}

/// For a terminal: names in a pool may hold what it would obey.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    text.chars().map(|c| if c.is_control() { octal(c.encode_utf8(&mut [0; 4]).as_bytes()) } else { c.into() }).collect()
}

/// As [`printable`], of a name that may be anything; what is no UTF-8 is written in octal as well, as
/// `ls -b` writes it.
pub(crate) fn printable_name(name: &[u8]) -> String {
    let part = |chunk: std::str::Utf8Chunk<'_>| printable(chunk.valid()).into_owned() + &octal(chunk.invalid());
    name.utf8_chunks().map(part).collect()
}

fn octal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

/// `drwxr-xr-x`, as `ls -l` writes it.
pub(crate) fn mode(kind: FileType, perm: u32) -> String {
    let kind = match kind {
        FileType::File => '-',
        FileType::Dir => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharDevice => 'c',
        FileType::BlockDevice => 'b',
        _ => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, libc::S_ISUID, 's'), (3, libc::S_ISGID, 's'), (0, libc::S_ISVTX, 't')] {
        let bits = perm >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (perm & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// `2026-03-21 14:05:09`, in universal time; who prints it says so.
pub(crate) fn time(time: Time) -> String {
    let days = time.sec.div_euclid(86_400);
    let second = time.sec.rem_euclid(86_400);
    // Civil calendar from days since 1970-01-01, in years that start in March (Howard Hinnant).
    let shifted = i128::from(days) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// The word for a kind of file.
pub(crate) fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::File => "file",
        FileType::Dir => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "named pipe",
        FileType::Socket => "socket",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "unknown",
    }
}

/// Attributes as JSON, with the name they were found under.
#[derive(Serialize)]
pub(crate) struct Named<'a> {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) attr: &'a Attr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_ls_writes_them() {
        assert_eq!(mode(FileType::Dir, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(FileType::File, 0o4754), "-rwsr-xr--");
        assert_eq!(mode(FileType::File, 0o2644), "-rw-r-Sr--");
    }

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(printable_name(b"plain \xc3\xa4 \\x"), "plain \u{e4} \\x");
        assert_eq!(printable_name(b"a\x1b[2Jb\n\x7f"), "a\\033[2Jb\\012\\177");
        assert_eq!(printable_name(b"\xc2\x9b1m \xff"), "\\302\\2331m \\377");
    }

    #[test]
    fn times_read_as_dates() {
        for (sec, text) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(time(Time { sec, nsec: 0 }), text);
        }
        // The ends of the scale are no reason to panic.
        time(Time { sec: i64::MAX, nsec: 0 });
        time(Time { sec: i64::MIN, nsec: 0 });
    }
}
