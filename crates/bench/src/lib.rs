//! Measures Pagestone and, in the same run, the peers that it is compared with.
//!
//! ```text
//!   item     prepares both sides alike, then   race: ours | peer | ours | peer | ...   (rounds)
//!                                                        |
//!   Figure   medians of ours, of the peer, and of the ratios of adjacent rounds
//!                                                        |
//!   Verdict  comparison with the target
//! ```
//!
//! Everything is measured in temporary directories, on tmpfs and on the ordinary filesystem. They are removed
//! afterwards, even after an error.

mod child;
mod config;
mod figure;
mod items;
pub mod peers;
mod place;
mod race;
mod sys;

pub use child::{Job, run_job};
pub use config::Config;
pub use figure::{Figure, Target, Unit, Verdict};
pub use items::names as item_names;

use anyhow::{Result, bail};

/// Runs the items. `each` gets every figure as soon as it is measured.
///
/// # Errors
/// An unknown name in `only`, or an error that prevents the measurement. What the machine does not support (such as
/// FUSE) is a figure with the reason, not an error.
pub fn run(config: &Config, each: &mut dyn FnMut(&Figure)) -> Result<Vec<Figure>> {
    if let Some(only) = &config.only
        && !item_names().any(|name| name == only)
    {
        bail!("no item is called {only}; there are: {}", item_names().collect::<Vec<_>>().join(", "));
    }
    place::sweep();
    let mut figures = Vec::new();
    for item in items::ALL {
        if config.only.as_ref().is_some_and(|only| only != item.name) {
            continue;
        }
        (item.run)(config, &mut |figure| {
            each(&figure);
            figures.push(figure);
        })
        .map_err(|e| e.context(item.name))?;
    }
    Ok(figures)
}
