//! Transactions: whatever moment the power goes, all of one is there or nothing.
//!
//! ```text
//!   ops.rs   Op::Transaction(&[..])   committed through the library; in the model one step of the world
//!   guards   data in fresh pages, also where a file is cut and grown again (`data/write_aside.rs`);
//!            one record (`transaction/commit.rs`)
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};

use crashlab::{Budget, Flavour};
use pagestone::inode::RenameMode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::ops::{At, Op};
use crate::run::{self, Care, Effort, Template};

const BOTH: [Flavour; 2] = [Flavour::Lines, Flavour::Pages];

const BEFORE: [Op; 8] = [
    Op::Mkdir("d"),
    Op::Create("a"),
    Op::Write("a", At::Offset(0), 14_000, 1),
    Op::Create("b"),
    Op::Write("b", At::Offset(0), 5000, 2),
    Op::Create("d/x"),
    Op::Write("d/x", At::Offset(0), 3000, 3),
    Op::Create("empty"),
];

fn survive(flavour: Flavour, before: &[Op], ops: &[Op]) -> usize {
    let (exhaustive_up_to, sampled, nested) = Effort::of((48, 30, 37), (64, 40, 31), (128, 80, 17));
    let budget = Budget { exhaustive_up_to, sampled, ..Budget::default() };
    let care = Care { budget, from: 0, nested, emptied: 7 };
    let template = Template::new(flavour, 0x7A5C, before);
    let run = run::record(&template, ops).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
    run::check(&template, &run, &care).unwrap_or_else(|e| panic!("{flavour:?}: {e}"))
}

/// Guard: a write replaces pages, and never stores to those that the file has (`write_aside`).
#[test]
fn a_transaction_of_several_files_is_there_wholly_or_not_at_all() {
    const ALL: &[Op] = &[
        Op::Write("a", At::Offset(100), 6000, 4),
        Op::Write("b", At::Offset(4000), 9000, 5),
        Op::Create("d/new"),
        Op::Write("d/new", At::Offset(0), 5000, 6),
        Op::Write("a", At::Offset(5000), 3000, 7),
        Op::Rename("d/new", "empty", RenameMode::Replace),
        Op::Unlink("d/x"),
        Op::Rmdir("d"),
    ];
    for flavour in BOTH {
        let tried = survive(flavour, &BEFORE, &[Op::Transaction(ALL), Op::Write("b", At::Offset(0), 10, 8)]);
        assert!(tried > 100, "{tried}");
        assert!(survive(flavour, &BEFORE, &[Op::Transaction(ALL), Op::Sync, Op::Create("after")]) > 100);
    }
}

/// Guard: the last page of a file that is cut is made anew before the file grows over it (`write_aside.rs`, `lengthen`).
#[test]
fn a_transaction_that_cuts_a_file_and_grows_it_again_keeps_the_old_bytes_until_its_record() {
    const CUT: &[Op] =
        &[Op::Truncate("a", 6000), Op::Truncate("a", 13_000), Op::Write("a", At::Offset(20_000), 100, 4)];
    const EMPTIED: &[Op] = &[
        Op::Truncate("b", 0),
        Op::Write("b", At::Offset(10), 300, 5),
        Op::Truncate("b", 100),
        Op::Truncate("b", 9000),
    ];
    for flavour in BOTH {
        assert!(survive(flavour, &BEFORE, &[Op::Transaction(CUT), Op::Transaction(EMPTIED)]) > 100);
    }
}

/// Guard: the record is one: an error after the first operations undoes all of them (`transaction/commit.rs`).
#[test]
fn a_transaction_that_fails_leaves_no_trace_at_any_moment() {
    const FAILS: &[Op] = &[
        Op::Write("a", At::Offset(0), 9000, 4),
        Op::Create("c"),
        Op::Write("c", At::Offset(0), 9000, 5),
        Op::Unlink("b"),
        Op::Unlink("b"),
    ];
    for flavour in BOTH {
        assert!(survive(flavour, &BEFORE, &[Op::Transaction(FAILS), Op::Create("c")]) > 10);
    }
}

#[test]
fn a_transaction_that_changes_clones_leaves_the_others_alone() {
    const ALL: &[Op] = &[
        Op::Write("a", At::Offset(3000), 3000, 4),
        Op::Write("k", At::Offset(9000), 100, 5),
        Op::Truncate("k", 9050),
        Op::Unlink("l"),
    ];
    let mut before = BEFORE.to_vec();
    before.extend([Op::Clone("a", "k"), Op::Clone("a", "l")]);
    for flavour in BOTH {
        assert!(survive(flavour, &before, &[Op::Transaction(ALL), Op::Unlink("a")]) > 100);
    }
}

/// Guard: an append goes behind what the transaction wrote before it; both names of an exchange are in the record, and the
/// long target of a link is in a page that is filled before the record (`transaction/run.rs`).
#[test]
fn a_transaction_that_appends_links_and_exchanges_is_there_wholly_or_not_at_all() {
    const LOG: &[Op] = &[
        Op::Write("a", At::End, 700, 4),
        Op::Write("a", At::End, 6000, 5),
        Op::Symlink("d/short", 20),
        Op::Symlink("long", 3000),
        Op::Rename("a", "d/x", RenameMode::Exchange),
        Op::Write("a", At::End, 100, 6),
    ];
    const AGAIN: &[Op] = &[
        Op::Rename("long", "b", RenameMode::Exchange),
        Op::Rename("d", "empty", RenameMode::Exchange),
        Op::Unlink("b"),
        Op::Write("d", At::End, 5000, 7),
    ];
    for flavour in BOTH {
        assert!(survive(flavour, &BEFORE, &[Op::Transaction(LOG), Op::Transaction(AGAIN)]) > 100);
    }
}

/// Operations of a transaction. Some fail, and with them all of it.
fn random(rng: &mut StdRng) -> Op {
    const NAMES: [&str; 6] = ["a", "b", "d/x", "empty", "c", "d/y"];
    let mut name = || NAMES[rng.random_range(0..NAMES.len())];
    let (path, other) = (name(), name());
    match rng.random_range(0..14) {
        0..=3 => {
            let (at, len) = (rng.random_range(0..20_000), rng.random_range(1..9000));
            Op::Write(path, At::Offset(at), len, rng.random_range(10..30))
        }
        4 => Op::Truncate(path, rng.random_range(0..20_000)),
        5 | 6 => Op::Create(path),
        7 => Op::Rename(path, other, RenameMode::Replace),
        8 => Op::Link(path, other),
        9 | 10 => Op::Write(path, At::End, rng.random_range(1..9000), rng.random_range(10..30)),
        11 => Op::Symlink(path, [5, 120, 121, 3000][rng.random_range(0..4)]),
        12 => Op::Rename(path, other, RenameMode::Exchange),
        _ => Op::Unlink(path),
    }
}

#[test]
fn random_transactions_survive_a_crash_at_any_moment() {
    let given = run::seed();
    let seeds: Vec<u64> = match given {
        Some(seed) => vec![seed],
        None => (0..Effort::of(12, 40, 200)).map(|_| rand::random()).collect(),
    };
    let committed = AtomicUsize::new(0);
    let tried = run::in_parallel(&seeds, |&seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut ops = Vec::new();
        for _ in 0..4 {
            let len = rng.random_range(1..6);
            // The test lives as long as the process.
            let all: &'static [Op] = (0..len).map(|_| random(&mut rng)).collect::<Vec<_>>().leak();
            ops.push(Op::Transaction(all));
            ops.extend(rng.random_bool(0.3).then_some(Op::Sync));
        }
        let flavour = BOTH[rng.random_range(0..2)];
        let template = Template::new(flavour, seed, &BEFORE);
        let budget = Budget { exhaustive_up_to: 16, sampled: 10, ..Budget::default() };
        let care = Care { budget, from: 0, nested: 0, emptied: 9 };
        let checked = run::record(&template, &ops).and_then(|run| {
            committed.fetch_add(run.committed, Ordering::Relaxed);
            run::check(&template, &run, &care)
        });
        checked.map_err(|e| format!("PAGESTONE_SEED={seed} {flavour:?}: {e}"))
    });
    assert!(tried > 0);
    let committed = committed.into_inner();
    println!("random transactions: {committed} committed, {tried} states");
    assert!(given.is_some() || committed > 3, "{committed} of {} transactions were committed", 4 * seeds.len());
}
