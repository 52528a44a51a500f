//! Checks of the structures that have two copies: the superblock and the layout state.

use pmem::{Part, Region};

use super::repair::Fix;
use super::{Finding, Pass};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layout::{PoolState, SUPERBLOCKS, Superblock};
use crate::units::LINE;

const NONE: &str = "none as long as the other copy is whole";

/// Checks that both copies are whole. With `repair`, a good copy replaces a bad one.
pub(super) fn check_superblocks(region: &Region, repair: bool) -> Result<Vec<Finding>> {
    let mut copies = Vec::new();
    for page in SUPERBLOCKS {
        let mut bytes = [0; size_of::<Superblock>()];
        let read = region.read_data(page.byte(), &mut bytes);
        copies.push(read.map_err(Error::from).and_then(|()| Superblock::parse(&bytes).map(|_| bytes)));
    }
    let Some(good) = copies.iter().find_map(|c| c.as_ref().ok()).copied() else { return Ok(Vec::new()) };
    let mut findings = Vec::new();
    for (i, copy) in copies.into_iter().enumerate() {
        let differs = match &copy {
            Ok(bytes) if *bytes == good => continue,
            Ok(_) => "it differs from the other copy".to_string(),
            Err(e) => e.to_string(),
        };
        if repair {
            region.persist(&[Part::Bytes { at: SUPERBLOCKS[i].byte(), bytes: &good }])?;
            region.sync()?;
        }
        findings.push(Finding {
            place: format!("superblock, copy {}", i + 1),
            what: differs,
            consequence: NONE.into(),
            repaired: repair,
        });
    }
    Ok(findings)
}

/// Checks that both copies of the state equal the one that the pool was opened with.
pub(super) fn compare_states(engine: &Engine, pass: &mut Pass) {
    let state = engine.alloc.state().sealed();
    for (i, page) in PoolState::PAGES.into_iter().enumerate() {
        let mut line = [0; LINE as usize];
        let read = engine.alloc.region.read_meta(page.byte(), &mut line);
        let what = match (read, PoolState::parse(line)) {
            (Err(e), _) => e.to_string(),
            (_, None) => "checksum does not match".into(),
            _ if line != state => "it differs from the other copy".into(),
            _ => continue,
        };
        pass.find(format!("state of the pool, copy {}", i + 1), what, NONE);
        pass.fixes.push(Fix::State);
    }
}
