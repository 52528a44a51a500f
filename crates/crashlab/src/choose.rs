//! Selection of the pending stores that survive a crash: all combinations if there are few, selected and random
//! ones if there are many.
//!
//! ```text
//!   unit 0x40  versions v1 v2      take 0 = the durable value, 1 = v1, 2 = v2
//!   unit 0x48  versions v1         take 0 or 1
//!   unit 0x80  versions v1         ...
//!   `-- group (one cache line, one page): units that share 8 x unit bytes --'
//!
//!   plan:  none  all  | every combination, if few |  up to each event, each group alone, all but
//!                                                    each group, each unit alone, random ...
//! ```
//! A plan is a list of picks, and a pick takes a few bytes. So a state is identified by its number in the plan and
//! can be rebuilt without the others.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::config::Budget;
use crate::pages::{Dice, PageMap, share};
use crate::replay::{Replay, Versions};

/// The stores that a power cut at one moment may lose.
pub(crate) struct Frontier {
    pub(crate) base: Arc<PageMap>,
    base_hash: u64,
    unit: usize,
    units: Vec<Unit>,
    groups: Vec<Group>,
    /// Events with pending stores.
    events: Vec<u32>,
    arena: Arc<Vec<u8>>,
}

/// A cache line or a page: a run of `units`.
struct Group {
    units: Range<usize>,
    /// The events that changed it, in order.
    moments: SmallVec<[u32; 2]>,
}

struct Unit {
    at: u64,
    versions: Versions,
    /// How each version changes the hash of the image.
    shares: SmallVec<[u64; 2]>,
}

/// One combination, by a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pick {
    None,
    All,
    /// The n-th combination of all versions of all units.
    EveryUnit(u64),
    /// The n-th combination of moments at which each group was written out last.
    EveryGroup(u64),
    /// Everything stored up to an event.
    UpTo(u32),
    OnlyGroup(usize),
    AllButGroup(usize),
    OnlyUnit(usize),
    AllButUnit(usize),
    /// A random combination for this seed.
    Random(u64),
}

impl Frontier {
    pub(crate) fn at(replay: &Replay<'_>) -> Frontier {
        let unit = replay.unit;
        let mut units: Vec<Unit> = Vec::with_capacity(replay.pending.len());
        let mut groups: Vec<Group> = Vec::new();
        let mut events = BTreeSet::new();
        for (number, versions) in &replay.pending {
            let at = number * unit as u64;
            let before = share(at, replay.durable.slice(at, unit));
            let change = |data: usize| share(at, &replay.arena[data..data + unit]).wrapping_sub(before);
            events.extend(versions.iter().map(|version| version.event));
            let same_group = units.last().is_some_and(|last| last.at / (8 * unit as u64) == number / 8);
            if !same_group {
                groups.push(Group { units: units.len()..units.len(), moments: SmallVec::new() });
            }
            if let Some(group) = groups.last_mut() {
                group.units.end += 1;
                group.moments.extend(versions.iter().map(|version| version.event));
            }
            let shares = versions.iter().map(|version| change(version.data)).collect();
            units.push(Unit { at, versions: versions.clone(), shares });
        }
        for group in &mut groups {
            group.moments.sort_unstable();
            group.moments.dedup();
        }
        Frontier {
            base: replay.durable.clone(),
            base_hash: replay.durable_hash,
            unit,
            units,
            groups,
            events: events.into_iter().collect(),
            arena: Arc::new(replay.arena.clone()),
        }
    }

    /// The picks for this moment, without duplicates by rule (equal images are possible).
    pub(crate) fn plan(&self, budget: &Budget, tear: bool, seed: u64) -> Vec<Pick> {
        if self.units.is_empty() {
            return vec![Pick::None];
        }
        let limit = budget.exhaustive_up_to as u64;
        let mut plan = vec![Pick::None, Pick::All];
        if tear && let Some(count) = self.combinations().filter(|count| *count <= limit) {
            plan.extend((0..count).map(Pick::EveryUnit));
            return plan;
        }
        let count = self.group_combinations();
        if let Some(count) = count.filter(|count| *count <= limit) {
            plan.extend((0..count).map(Pick::EveryGroup));
            if !tear {
                return plan;
            }
        }
        let sampled = budget.sampled;
        let mut dice = Dice::new(seed);
        let units = if tear { self.units.len() } else { 0 };
        let groups = self.groups.len();
        let share = sampled / 6;
        plan.extend(spread(self.events.len(), share, &mut dice).map(|i| Pick::UpTo(self.events[i])));
        plan.extend(spread(groups, share, &mut dice).map(Pick::OnlyGroup));
        plan.extend(spread(groups, share, &mut dice).map(Pick::AllButGroup));
        plan.extend(spread(units, share / 2, &mut dice).map(Pick::OnlyUnit));
        plan.extend(spread(units, share / 2, &mut dice).map(Pick::AllButUnit));
        let chosen = plan.iter().filter(|pick| !matches!(pick, Pick::EveryGroup(_))).count();
        plan.extend((chosen..sampled).map(|_| Pick::Random(dice.next())));
        plan
    }

    fn combinations(&self) -> Option<u64> {
        self.units.iter().try_fold(1u64, |n, unit| n.checked_mul(unit.versions.len() as u64 + 1))
    }

    fn group_combinations(&self) -> Option<u64> {
        self.groups.iter().try_fold(1u64, |n, group| n.checked_mul(group.moments.len() as u64 + 1))
    }

    /// Writes into `take` the version of each unit that survives in a pick.
    pub(crate) fn take(&self, pick: Pick, tear: bool, take: &mut Vec<u16>) {
        take.clear();
        take.resize(self.units.len(), 0);
        match pick {
            Pick::None => {}
            Pick::All => self.cut(0..self.units.len(), u32::MAX, take),
            Pick::EveryUnit(mut n) => {
                for (taken, unit) in take.iter_mut().zip(&self.units) {
                    let choices = unit.versions.len() as u64 + 1;
                    *taken = (n % choices) as u16;
                    n /= choices;
                }
            }
            Pick::EveryGroup(mut n) => {
                for group in &self.groups {
                    let choices = group.moments.len() as u64 + 1;
                    let choice = (n % choices) as usize;
                    n /= choices;
                    if choice > 0 {
                        self.cut(group.units.clone(), group.moments[choice - 1], take);
                    }
                }
            }
            Pick::UpTo(event) => self.cut(0..self.units.len(), event, take),
            Pick::OnlyGroup(group) => self.cut(self.groups[group].units.clone(), u32::MAX, take),
            Pick::AllButGroup(group) => {
                self.cut(0..self.units.len(), u32::MAX, take);
                take[self.groups[group].units.clone()].fill(0);
            }
            Pick::OnlyUnit(unit) => self.cut(unit..unit + 1, u32::MAX, take),
            Pick::AllButUnit(unit) => {
                self.cut(0..self.units.len(), u32::MAX, take);
                take[unit] = 0;
            }
            Pick::Random(seed) => self.random(&mut Dice::new(seed), tear, take),
        }
    }

    /// Sets the units of a range to the version that they had after an event.
    fn cut(&self, units: Range<usize>, event: u32, take: &mut [u16]) {
        for i in units {
            let versions = self.units[i].versions.iter().take_while(|version| version.event <= event).count();
            take[i] = versions as u16;
        }
    }

    /// A random choice in one of several modes. Uniform choices alone would almost never lose exactly one line of
    /// many, which is the effect of a missing flush.
    fn random(&self, dice: &mut Dice, tear: bool, take: &mut [u16]) {
        let latest = match dice.below(2) {
            0 => u32::MAX,
            _ => self.events[dice.below(self.events.len() as u64) as usize],
        };
        let survive_of_8 = [1, 4, 7, 8][dice.below(4) as usize];
        let mut tear_of_8 = if tear { [0, 1, 8][dice.below(3) as usize] } else { 0 };
        if tear && survive_of_8 == 8 {
            tear_of_8 = tear_of_8.max(1);
        }
        for group in &self.groups {
            if dice.below(8) < tear_of_8 {
                for i in group.units.clone() {
                    self.cut(i..i + 1, latest, take);
                    take[i] = dice.below(u64::from(take[i]) + 1) as u16;
                }
            } else if dice.below(8) < survive_of_8 {
                let moment = match dice.below(4) {
                    0 => group.moments[dice.below(group.moments.len() as u64) as usize].min(latest),
                    _ => latest,
                };
                self.cut(group.units.clone(), moment, take);
            }
        }
    }

    /// The hash of the image that results from a choice.
    pub(crate) fn hash(&self, take: &[u16]) -> u64 {
        let changes = self.units.iter().zip(take).filter(|(_, taken)| **taken > 0);
        changes.fold(self.base_hash, |hash, (unit, taken)| hash.wrapping_add(unit.shares[usize::from(*taken) - 1]))
    }

    /// The stores that survive in a choice: pool byte and position in the arena.
    pub(crate) fn patches(&self, take: &[u16]) -> Vec<(u64, Range<usize>)> {
        let taken = self.units.iter().zip(take).filter(|(_, taken)| **taken > 0);
        taken
            .map(|(unit, taken)| {
                let data = unit.versions[usize::from(*taken) - 1].data;
                (unit.at, data..data + self.unit)
            })
            .collect()
    }

    pub(crate) fn arena(&self) -> &Arc<Vec<u8>> {
        &self.arena
    }

    /// Text: the units that survived, or those that were lost if these are fewer.
    pub(crate) fn describe(&self, take: &[u16]) -> String {
        let survivors = take.iter().filter(|taken| **taken > 0).count();
        let lost = take.len() - survivors;
        let name_survivors = survivors <= lost;
        let mut text = format!("{survivors} of {} pending {}-byte units survive", take.len(), self.unit);
        let named = self.units.iter().zip(take).filter(|(_, taken)| (**taken > 0) == name_survivors);
        let mut separator = if name_survivors { ": " } else { "; lost: " };
        for (unit, taken) in named.take(12) {
            text += separator;
            text += &format!("{:#x}", unit.at);
            if unit.versions.len() > 1 && *taken > 0 {
                text += &format!(" (version {taken} of {})", unit.versions.len());
            }
            separator = ", ";
        }
        if survivors.min(lost) > 12 {
            text += ", ...";
        }
        text
    }
}

/// At most `limit` of `0..count`: all of them if they fit, otherwise spaced evenly with a random phase.
fn spread(count: usize, limit: usize, dice: &mut Dice) -> impl Iterator<Item = usize> + use<> {
    let shown = count.min(limit);
    let phase = dice.below(count.max(1) as u64) as usize;
    (0..shown).map(move |i| if shown == count { i } else { (i * count / shown + phase) % count })
}
