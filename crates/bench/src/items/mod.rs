//! The list of measurements, in the order of the report.

mod access;
mod mappings;
mod mount;
pub(crate) mod names;
mod overwrite;
mod reopen;
mod still;
mod threads;
mod unpack;

use anyhow::Result;

use crate::config::Config;
use crate::figure::Figure;

/// Receives a figure.
pub(crate) type Report<'a> = &'a mut dyn FnMut(Figure);

/// One item.
pub(crate) struct Item {
    /// For `--only`.
    pub(crate) name: &'static str,
    /// Runs the measurement.
    pub(crate) run: fn(&Config, Report<'_>) -> Result<()>,
}

/// All items.
pub(crate) const ALL: [Item; 7] = [
    Item { name: overwrite::NAME, run: overwrite::run },
    Item { name: names::NAME, run: names::run },
    Item { name: threads::NAME, run: threads::run },
    Item { name: mappings::NAME, run: mappings::run },
    Item { name: reopen::NAME, run: reopen::run },
    Item { name: mount::NAME, run: mount::run },
    Item { name: unpack::NAME, run: unpack::run },
];

/// The names that [`Config::only`] takes.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|item| item.name)
}
