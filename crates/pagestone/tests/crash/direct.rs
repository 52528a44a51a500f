//! Bytes of another file behind the end of one: all of them are there after a crash, or none.
//!
//! How it can fail: the record is durable before the bytes; storage that was taken behind the end shows what it held before;
//! storage that a crash leaves behind the end is lost, or is given out twice.

use crashlab::{Budget, Flavour};

use crate::ops::{At, Op};
use crate::run::{self, Care, Effort, Template};

fn survive(flavour: Flavour, before: &[Op], ops: &[Op]) -> usize {
    let (exhaustive_up_to, sampled, nested) = Effort::of((48, 30, 37), (64, 40, 31), (128, 80, 17));
    let budget = Budget { exhaustive_up_to, sampled, ..Budget::default() };
    let care = Care { budget, from: 0, nested, emptied: 7 };
    let template = Template::new(flavour, 0xD1EC, before);
    let run = run::record(&template, ops).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
    run::check(&template, &run, &care).unwrap_or_else(|e| panic!("{flavour:?}: {e}"))
}

#[test]
fn bytes_from_outside_are_there_wholly_or_not_at_all() {
    const BEFORE: [Op; 7] = [
        Op::Create("f"),
        Op::Write("f", At::Offset(0), 8192, 1),
        Op::Create("old"),
        // What is freed here lies in the pages that are taken below.
        Op::Write("old", At::Offset(0), 60_000, 2),
        Op::Unlink("old"),
        Op::Create("e"),
        Op::Sync,
    ];
    for flavour in [Flavour::Lines, Flavour::Pages] {
        let ops = [Op::Extend("f", 20_480, 3), Op::Extend("f", 5000, 4), Op::Write("f", At::End, 300, 5), Op::Sync];
        assert!(survive(flavour, &BEFORE, &ops) > 100);
        let ops = [
            Op::AllocateBehind("e", 0, 30_000),
            Op::Extend("e", 12_288, 6),
            Op::Truncate("e", 0),
            Op::Extend("e", 9000, 7),
        ];
        assert!(survive(flavour, &BEFORE, &ops) > 100);
        let ops = [Op::Clone("f", "g"), Op::Extend("g", 8192, 8), Op::Extend("f", 100, 9), Op::Unlink("f"), Op::Sync];
        assert!(survive(flavour, &BEFORE, &ops) > 100);
    }
}
