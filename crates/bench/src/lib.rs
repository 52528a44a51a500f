//! Measures Pagestone and, beside it in the same run, what it is compared with.
//!
//! ```text
//!   item     sets up both sides alike, then   race: ours | peer | ours | peer | ...   (rounds)
//!                                                        |
//!   Figure   median of ours, of the peer, and of the ratios of neighbouring rounds
//!                                                        |
//!   Verdict  against the target that the design names
//! ```
//!
//! Everything happens in directories of its own, on tmpfs and on the ordinary filesystem, which
//! are removed afterwards, also when something fails.

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

/// Runs the items; `each` gets every figure as soon as it is known.
///
/// # Errors
/// An unknown name in `only`; whatever makes measuring impossible. What the machine cannot do (no
/// FUSE) is a figure that says so, not an error.
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
