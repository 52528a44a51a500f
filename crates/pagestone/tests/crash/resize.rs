//! A crash while a pool grows or shrinks leaves the old size or the new one, and everything that was there.
//!
//! ```text
//!   |ballast, gone|  files, clones, attributes, inodes  |  -> shrink -> |  all of it  | -> grow -> | ... |
//! ```

use crashlab::{Budget, Flavour};

use crate::ops::{At, Op, Parts};
use crate::run::{self, Care, Effort, Template};

const SMALL: u64 = 10 << 20;
const LARGE: u64 = run::LEN;

/// Something of every kind of structure, behind the first four frames.
fn populated() -> Vec<Op> {
    // Atomic writes take their pages one run at a time out of split frames: what is made behind them lies behind.
    let ballast = |i: u64| Parts { from: i << 22, every: 1 << 20, len: 1 << 20, count: 4 };
    let mut ops = vec![Op::Create("ballast"), Op::Create("between")];
    ops.extend((0..2).map(|i| Op::WriteAtomic("ballast", ballast(i), 1)));
    let many = Parts { from: 0, every: 8192, len: 100, count: 20 };
    ops.extend([
        Op::Mkdir("d"),
        Op::Create("f"),
        Op::WriteAtomic("f", many, 2),
        Op::Write("between", At::End, 9000, 3),
        Op::Clone("f", "g"),
        Op::Write("f", At::Offset(5000), 6000, 4),
        Op::Symlink("d/s", 900),
        Op::SetXattr("d", "user.a", 3000, 5),
        Op::Link("f", "d/f"),
    ]);
    for path in ["d/1", "d/2", "d/3", "d/4", "d/5", "d/6", "d/7", "d/8", "d/9", "d/10", "d/11", "d/12", "d/13"] {
        ops.extend([
            Op::Create(path),
            Op::Write(path, At::Offset(100), 3000, 6),
            Op::Write("between", At::End, 4096, 7),
        ]);
    }
    ops.extend([Op::Unlink("ballast"), Op::Unlink("between"), Op::Unlink("d/7"), Op::Reopen]);
    ops
}

fn survive(ops: &[Op]) {
    let quick = Budget { exhaustive_up_to: 16, sampled: 8, points: 80, ..Budget::default() };
    let more = Budget { exhaustive_up_to: 32, sampled: 20, points: 200, ..Budget::default() };
    let full = Budget { exhaustive_up_to: 64, sampled: 40, ..Budget::default() };
    let (budget, nested, emptied) = Effort::of((quick, 97, 5), (more, 61, 5), (full, 29, 3));
    for flavour in [Flavour::Lines, Flavour::Pages] {
        let template = Template::new(flavour, 0x512E, &populated());
        let run = run::record(&template, ops).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
        let care = Care { budget, from: 0, nested, emptied };
        let states = run::check(&template, &run, &care).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
        assert!(states > 50, "{states} states");
    }
}

#[test]
fn a_crash_in_a_shrink_leaves_everything() {
    survive(&[Op::Resize(SMALL)]);
}

#[test]
fn a_crash_in_a_growth_leaves_everything() {
    survive(&[
        Op::Resize(SMALL),
        Op::Sync,
        Op::Resize(LARGE),
        Op::Create("grown"),
        Op::Write("grown", At::End, 5 << 20, 9),
    ]);
}

/// Fails if an inode that lies elsewhere is looked for where its number says, or the other way round.
#[test]
fn what_was_moved_can_be_changed_and_removed_whenever_the_power_goes() {
    survive(&[
        Op::Resize(SMALL),
        Op::Create("d/new"),
        Op::SetAttr("d/3", 0o600, 7),
        Op::Unlink("d/1"),
        Op::Write("g", At::Offset(0), 5000, 8),
        Op::Resize(LARGE),
        Op::Create("d/newer"),
        Op::Unlink("f"),
        Op::Resize(SMALL),
    ]);
}
