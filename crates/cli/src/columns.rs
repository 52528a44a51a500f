//! Lists with columns, for people and for scripts.
//!
//! ```text
//!   people    a heading, columns that line up, sizes and times in units
//!   -H        no heading                      -o NAMES   these columns, in this order
//!   -p        exact numbers, tabs between     -s NAME    sorted by this column (-NAME: largest first)
//! ```
//!
//! Names of columns are an interface; new ones are added behind the others.

use std::cmp::Ordering;
use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::Args;

use crate::exit::WrongUsage;
use crate::output;
use crate::size;

/// How a list is printed.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Columns {
    /// Print no heading
    #[arg(short = 'H')]
    no_heading: bool,
    /// For scripts: exact numbers (bytes, nanoseconds, seconds), and a tab between columns
    #[arg(short = 'p')]
    exact: bool,
    /// Print these columns, separated by commas
    #[arg(short = 'o', value_name = "COLUMNS")]
    only: Option<String>,
    /// Sort by this column; with - before it, the largest first
    #[arg(short = 's', value_name = "COLUMN", allow_hyphen_values = true)]
    sort: Option<String>,
}

/// What stands in a column of a row.
#[derive(Clone, PartialEq, PartialOrd, Debug)]
pub(crate) enum Cell {
    /// A word.
    Text(String),
    /// A number.
    Count(f64),
    /// Bytes.
    Bytes(u64),
    /// Nanoseconds.
    Time(u64),
    /// Seconds since 1970.
    Date(pagestone::inode::Time),
}

impl Cell {
    fn is_text(&self) -> bool {
        matches!(self, Cell::Text(_) | Cell::Date(_))
    }

    fn shown(&self, exact: bool) -> String {
        match self {
            Cell::Text(text) => output::printable(text).into_owned(),
            Cell::Count(n) if exact && n.fract() == 0.0 => format!("{n:.0}"),
            Cell::Count(n) if exact => format!("{n:.1}"),
            Cell::Count(n) => count(*n),
            Cell::Bytes(n) if exact => n.to_string(),
            Cell::Bytes(n) => size::show(*n),
            Cell::Time(n) if exact => n.to_string(),
            Cell::Time(n) => nanoseconds(*n),
            Cell::Date(time) if exact => time.sec.to_string(),
            Cell::Date(time) => format!("{} UTC", output::time(*time)),
        }
    }
}

fn count(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e4 => format!("{:.1}k", n / 1e3),
        n if n >= 100.0 || n.fract() == 0.0 => format!("{n:.0}"),
        n => format!("{n:.1}"),
    }
}

/// `1.5 us`.
pub(crate) fn nanoseconds(n: u64) -> String {
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000)];
    match units.into_iter().find(|(_, unit)| n >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", n as f64 / unit as f64),
        None => format!("{n} ns"),
    }
}

impl Columns {
    /// Whether any of the options is given. A command that prints something else otherwise prints columns then.
    pub(crate) fn are_asked_for(&self) -> bool {
        self.no_heading || self.exact || self.only.is_some() || self.sort.is_some()
    }

    /// Refuses names of columns that are none of `names`.
    pub(crate) fn check(&self, names: &[&str]) -> Result<()> {
        self.chosen(names)?;
        self.order(names).map(drop)
    }

    /// Prints rows, whose cells are called `names`.
    pub(crate) fn print(&self, names: &[&str], mut rows: Vec<Vec<Cell>>) -> Result<()> {
        let chosen = self.chosen(names)?;
        if let Some((column, reverse)) = self.order(names)? {
            rows.sort_by(|a, b| {
                let order = a[column].partial_cmp(&b[column]).unwrap_or(Ordering::Equal);
                if reverse { order.reverse() } else { order }
            });
        }
        let numbers: Vec<bool> = chosen.iter().map(|&c| rows.first().is_some_and(|row| !row[c].is_text())).collect();
        let mut lines: Vec<Vec<String>> = Vec::new();
        if !self.no_heading {
            lines.push(chosen.iter().map(|&c| names[c].to_uppercase()).collect());
        }
        lines.extend(rows.iter().map(|row| chosen.iter().map(|&c| row[c].shown(self.exact)).collect()));
        let text = if self.exact { with_tabs(&lines) } else { aligned(&lines, &numbers) };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
    }

    fn chosen(&self, names: &[&str]) -> Result<Vec<usize>> {
        match &self.only {
            None => Ok((0..names.len()).collect()),
            Some(only) => only.split(',').map(|name| find(names, name.trim())).collect(),
        }
    }

    fn order(&self, names: &[&str]) -> Result<Option<(usize, bool)>> {
        let Some(sort) = &self.sort else { return Ok(None) };
        let (name, reverse) = sort.strip_prefix('-').map_or((sort.as_str(), false), |name| (name, true));
        Ok(Some((find(names, name)?, reverse)))
    }
}

fn find(names: &[&str], name: &str) -> Result<usize> {
    let found = names.iter().position(|known| known.eq_ignore_ascii_case(name));
    Ok(found.ok_or_else(|| WrongUsage(format!("there is no column '{name}'; there are: {}", names.join(", "))))?)
}

fn with_tabs(lines: &[Vec<String>]) -> String {
    lines.iter().map(|line| line.join("\t") + "\n").collect()
}

/// Numbers end at the same place, words begin there; the last column is as wide as it is.
fn aligned(lines: &[Vec<String>], numbers: &[bool]) -> String {
    let width = |c: usize| lines.iter().map(|line| line[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..numbers.len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).zip(numbers).map(|((cell, &width), &number)| {
            if number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_scripts_get_tabs() {
        let lines = [["NAME", "N"], ["a", "100"], ["long", "1"]].map(|line| line.map(str::to_owned).to_vec());
        assert_eq!(aligned(&lines, &[false, true]), "NAME    N\na     100\nlong    1\n");
        assert_eq!(with_tabs(&lines), "NAME\tN\na\t100\nlong\t1\n");
    }

    #[test]
    fn a_column_that_is_not_there_is_named_with_those_that_are() {
        let columns = Columns { only: Some("name, bytes".into()), sort: Some("-N".into()), ..Columns::default() };
        let names = ["name", "n"];
        let wrong = columns.chosen(&names).map_err(|e| e.to_string());
        assert_eq!(wrong, Err("there is no column 'bytes'; there are: name, n".into()));
        assert!(columns.order(&names).is_ok_and(|order| order == Some((1, true))));
    }

    #[test]
    fn numbers_are_short_for_people_and_exact_for_scripts() {
        let shown = |cell: Cell| [cell.shown(false), cell.shown(true)];
        assert_eq!(shown(Cell::Time(1500)), ["1.5 us", "1500"]);
        assert_eq!(shown(Cell::Bytes(3 << 20)), ["3 MiB", "3145728"]);
        assert_eq!(shown(Cell::Count(12_345.6)), ["12.3k", "12345.6"]);
        assert_eq!(shown(Cell::Count(7.0)), ["7", "7"]);
    }
}
