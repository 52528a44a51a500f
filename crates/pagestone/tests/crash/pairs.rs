//! All sequences of two operations over a handful of names, each crashed wherever it can be.

use std::time::Instant;

use crashlab::{Budget, Flavour};
use pagestone::inode::RenameMode::{Exchange, NoReplace, Replace};

use crate::ops::{At, Op, Parts};
use crate::run::{self, Care, Effort, Template};

/// What is there before: a file of two pages, one below a directory, an empty directory.
pub(crate) const BEFORE: [Op; 6] = [
    Op::Create("f"),
    Op::Write("f", At::Offset(0), 5000, 1),
    Op::Mkdir("d"),
    Op::Create("d/x"),
    Op::SetXattr("d/x", "user.x", 40, 2),
    Op::Mkdir("e"),
];

/// The operations.
pub(crate) const OPS: [Op; 37] = [
    Op::Create("a"),
    Op::Create("d/a"),
    Op::Mkdir("a"),
    Op::Symlink("a", 20),
    Op::Symlink("a", 1000),
    Op::Link("f", "a"),
    Op::Link("f", "d/a"),
    Op::Unlink("f"),
    Op::Unlink("a"),
    Op::Unlink("d/x"),
    Op::UnlinkOpen("f"),
    Op::Rmdir("e"),
    Op::Rmdir("d"),
    Op::Rename("f", "a", Replace),
    Op::Rename("f", "d/x", Replace),
    Op::Rename("a", "f", NoReplace),
    Op::Rename("f", "d/a", NoReplace),
    Op::Rename("f", "d/x", Exchange),
    Op::Rename("e", "f", Exchange),
    Op::Rename("e", "d/a", Replace),
    Op::Rename("d", "e", Replace),
    Op::Rename("d", "e", Exchange),
    Op::Write("f", At::End, 300, 3),
    Op::Write("f", At::Offset(100), 200, 4),
    Op::Write("f", At::Offset(20_000), 100, 5),
    Op::Write("f", At::Offset(4000), 5000, 6),
    Op::Write("d/x", At::Offset(0), 100, 7),
    Op::Truncate("f", 100),
    Op::Truncate("f", 10_000),
    Op::Allocate("f", 0, 16_384),
    Op::Punch("f", 0, 4196),
    Op::Zero("f", 1000, 8000),
    Op::SetXattr("f", "user.y", 30, 8),
    Op::SetXattr("f", "user.y", 3000, 9),
    Op::RemoveXattr("d/x", "user.x"),
    Op::SetAttr("f", 0o600, 7),
    Op::Sync,
];

/// Three files that share: `f` and `g` have pages of their own besides, `h` stands lower.
const SHARED: [Op; 8] = [
    Op::Create("f"),
    Op::Write("f", At::Offset(0), 14_000, 1),
    Op::Mkdir("d"),
    Op::Clone("f", "h"),
    Op::Write("f", At::Offset(5000), 100, 2),
    Op::Clone("f", "g"),
    Op::Write("g", At::Offset(9000), 3000, 3),
    Op::Write("f", At::Offset(0), 10, 4),
];

/// What is done to them.
const SHARED_OPS: [Op; 26] = [
    Op::Clone("f", "a"),
    Op::Clone("g", "d/a"),
    Op::Clone("h", "a"),
    Op::Write("f", At::Offset(4000), 200, 5),
    Op::Write("f", At::Offset(0), 16_384, 6),
    Op::Write("f", At::End, 3000, 7),
    Op::Write("g", At::Offset(20_000), 100, 8),
    Op::Write("h", At::Offset(13_000), 100, 9),
    Op::Write("a", At::Offset(50), 5000, 10),
    Op::WriteAtomic("f", Parts { from: 3000, every: 5000, len: 2000, count: 3 }, 11),
    Op::WriteAtomic("g", Parts { from: 0, every: 8192, len: 4096, count: 12 }, 12),
    Op::WriteAtomic("h", Parts { from: 100, every: 9000, len: 10, count: 9 }, 13),
    Op::Truncate("f", 0),
    Op::Truncate("f", 6000),
    Op::Truncate("g", 20_000),
    Op::Truncate("h", 4096),
    Op::Punch("f", 4096, 4096),
    Op::Punch("g", 100, 9000),
    Op::Zero("h", 1000, 8000),
    Op::Allocate("f", 0, 24_576),
    Op::Unlink("f"),
    Op::Unlink("g"),
    Op::Unlink("h"),
    Op::UnlinkOpen("g"),
    Op::Rename("g", "f", Replace),
    Op::Sync,
];

fn try_all(flavour: Flavour, name: &str, before: &[Op], ops: &[Op]) {
    let template = Template::new(flavour, 0xF00D, before);
    let started = Instant::now();
    let quick = Budget { exhaustive_up_to: 64, sampled: 32, ..Budget::default() };
    let more = Budget { exhaustive_up_to: 80, sampled: 40, ..Budget::default() };
    let (budget, emptied) = Effort::of((quick, 7), (more, 6), (Budget::default(), 3));
    let care = Care { budget, from: 0, nested: 0, emptied };
    let singles = run::in_parallel(ops, |op| run::check(&template, &run::record(&template, &[*op])?, &care));
    let mut pairs: Vec<[Op; 2]> = ops.iter().flat_map(|a| ops.iter().map(|b| [*a, *b])).collect();
    pairs.push([Op::Reopen, Op::Create("a")]);
    pairs.extend(ops.iter().flat_map(|a| [[*a, Op::Reopen], [*a, Op::Drop]]));
    let care = Care { from: 1, ..care };
    let states = run::in_parallel(&pairs, |ops| run::check(&template, &run::record(&template, ops)?, &care));
    let (states, seconds) = (states + singles, started.elapsed().as_secs_f64());
    println!(
        "{name}: {} sequences, {states} states in {seconds:.1} s, {:.0}/s",
        ops.len() + pairs.len(),
        states as f64 / seconds
    );
}

#[test]
fn every_pair_of_operations_survives_on_memory() {
    try_all(Flavour::Lines, "pairs on memory", &BEFORE, &OPS);
}

#[test]
fn every_pair_of_operations_survives_on_an_ordinary_file() {
    try_all(Flavour::Pages, "pairs on an ordinary file", &BEFORE, &OPS);
}

#[test]
fn every_pair_of_operations_on_clones_survives_on_memory() {
    try_all(Flavour::Lines, "pairs on clones on memory", &SHARED, &SHARED_OPS);
}

#[test]
fn every_pair_of_operations_on_clones_survives_on_an_ordinary_file() {
    try_all(Flavour::Pages, "pairs on clones on an ordinary file", &SHARED, &SHARED_OPS);
}
