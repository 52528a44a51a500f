//! Clones, the merging of their bases, and atomic writes of every size. The bugs that the crash tests found there are
//! named tests: each fails when the guard it names is taken out.

use crashlab::{Budget, Flavour};

use crate::ops::{At, Op, Parts};
use crate::run::{self, Care, Template};

const BOTH: [Flavour; 2] = [Flavour::Lines, Flavour::Pages];

fn survive(flavour: Flavour, before: &[Op], ops: &[Op], care: &Care) -> usize {
    let template = Template::new(flavour, 0xC10E, before);
    let run = run::record(&template, ops).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
    run::check(&template, &run, care).unwrap_or_else(|e| panic!("{flavour:?}: {e}"))
}

fn thorough() -> Care {
    let budget = Budget { exhaustive_up_to: 64, sampled: 40, ..Budget::default() };
    Care { budget, from: 0, nested: 29, emptied: 5 }
}

/// Guard: where commits are durable at sync, a merge waits for it (`Engine::merge_when_durable`).
#[test]
fn what_comes_back_after_a_power_cut_has_not_been_overwritten_by_its_clone() {
    let before = [Op::Create("f"), Op::Write("f", At::Offset(0), 20_000, 1)];
    let ops = [
        Op::Clone("f", "g"),
        Op::Write("f", At::Offset(0), 100, 2),
        Op::Sync,
        Op::Unlink("g"),
        Op::Write("f", At::Offset(8192), 8192, 3),
    ];
    for flavour in BOTH {
        assert!(survive(flavour, &before, &ops, &thorough()) > 0);
    }
}

/// Guard: what a base takes in behind its old end stays (`merge.rs`, `fits`).
#[test]
fn a_base_that_is_being_merged_can_itself_take_a_base_in() {
    let before = [
        Op::Create("f"),
        Op::Write("f", At::Offset(0), 14_000, 1),
        Op::Clone("f", "g"),
        Op::Write("g", At::Offset(9000), 3000, 3),
    ];
    let many = Parts { from: 0, every: 8192, len: 4096, count: 12 };
    for flavour in BOTH {
        assert!(survive(flavour, &before, &[Op::Unlink("f"), Op::WriteAtomic("g", many, 4)], &thorough()) > 0);
    }
}

#[test]
fn a_chain_whose_members_go_in_any_order_survives() {
    let mut before = vec![Op::Create("f"), Op::Write("f", At::Offset(0), 60_000, 1)];
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        before.extend([Op::Clone("f", name), Op::Write("f", At::Offset(i as u64 * 9000), 5000, i as u8 + 2)]);
        before.push(Op::Punch("f", 40_000 + i as u64 * 4096, 4096));
    }
    let orders = [["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"], ["f", "b", "a"], ["a", "f", "c"]];
    for flavour in BOTH {
        for order in orders {
            let ops = order.map(Op::Unlink);
            assert!(survive(flavour, &before, &ops, &thorough()) > 0);
        }
    }
}

/// What is allocated behind the end stays with the file, below which its map goes and comes back, and in no base.
#[test]
fn what_is_allocated_behind_the_end_survives_clones_and_merges() {
    let before = [
        Op::Create("f"),
        Op::Write("f", At::Offset(0), 10_000, 1),
        Op::AllocateBehind("f", 8192, 40_960),
        Op::AllocateBehind("f", 2 << 20, 3 << 20),
    ];
    let ops = [
        Op::Clone("f", "g"),
        Op::AllocateBehind("g", 16_384, 8192),
        Op::Write("f", At::Offset(0), 5000, 2),
        Op::Clone("f", "h"),
        Op::Write("f", At::Offset(4096), 100, 3),
        Op::Unlink("h"),
        Op::Unlink("g"),
        Op::Sync,
        Op::Truncate("f", 60_000),
    ];
    let budget = Budget { exhaustive_up_to: 8, sampled: 6, points: 60, ..Budget::default() };
    for flavour in BOTH {
        assert!(survive(flavour, &before, &ops, &Care { budget, ..thorough() }) > 0);
        let stays = [ops[0], ops[1], ops[2], Op::Unlink("f"), Op::Sync, Op::Truncate("g", 60_000)];
        assert!(survive(flavour, &before, &stays, &Care { budget, ..thorough() }) > 0);
    }
}

/// A whole frame changes its owner in one piece, and keeps its contents.
#[test]
fn whole_frames_survive_a_merge_into_another_files_base() {
    let before = [
        Op::Create("f"),
        Op::Write("f", At::Offset(0), 5000, 1),
        Op::Clone("f", "g"),
        Op::Write("g", At::Offset(2 << 20), 2 << 20, 2),
        Op::Write("g", At::Offset(0), 100, 3),
    ];
    let budget = Budget { exhaustive_up_to: 8, sampled: 6, points: 30, ..Budget::default() };
    for flavour in BOTH {
        assert!(survive(flavour, &before, &[Op::Unlink("f"), Op::Sync], &Care { budget, ..thorough() }) > 0);
    }
}

#[test]
fn atomic_writes_of_1_to_10_000_pages_are_there_wholly_or_not_at_all() {
    let mut total = 0;
    for flavour in BOTH {
        for (count, points) in [(1, 40), (2, 40), (6, 40), (7, 60), (100, 40), (1000, 16), (10_000, 6)] {
            // Every other page, beyond the old end as well.
            let parts = Parts { from: 0, every: 8192, len: 4096, count };
            let before = [Op::Create("f"), Op::Write("f", At::Offset(0), (4096 * count) as usize, 1)];
            let len = (count * 4096 * 3 + (24 << 20)).next_multiple_of(2 << 20);
            let template = Template::of_size(len, flavour, 0xA70, &before);
            let ops = [Op::WriteAtomic("f", parts, 9)];
            let run = run::record(&template, &ops).unwrap_or_else(|e| panic!("{count} pages: {e}"));
            let budget = Budget { exhaustive_up_to: 4, sampled: 4, points, ..Budget::default() };
            let care = Care { budget, from: 0, nested: 0, emptied: if count > 1000 { 0 } else { 7 } };
            total += run::check(&template, &run, &care).unwrap_or_else(|e| panic!("{count} pages: {e}"));
        }
    }
    println!("atomic writes: {total} states");
}
