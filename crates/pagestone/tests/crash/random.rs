//! Long random sequences of operations, each made from a seed that is printed when it fails.
//!
//! ```text
//!   names   a few, in three directories: links, renames, exchanges, everything meets everything
//!   wide    many long names in one directory: nodes split and merge
//!   bytes   two files full of holes: maps become trees; now and then a whole frame
//! ```

use std::time::Instant;

use crashlab::{Budget, Flavour};
use pagestone::inode::RenameMode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::ops::{At, Op, Parts, Path};
use crate::pairs::BEFORE;
use crate::run::{self, Care, Effort, Template};

/// The longer part of a long name, 17 times.
const LONG: &str = "nnnnnnnnnn";

/// What a sequence is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Theme {
    Names,
    Wide,
    Bytes,
}

struct Maker {
    rng: StdRng,
    theme: Theme,
    /// Frames that may still be written whole: they make crash states large.
    large: usize,
    wide: Vec<Path>,
}

impl Maker {
    fn new(seed: u64) -> Maker {
        let mut rng = StdRng::seed_from_u64(seed);
        let theme = [Theme::Names, Theme::Wide, Theme::Bytes, Theme::Names][rng.random_range(0..4)];
        let large = usize::from(theme == Theme::Bytes && rng.random_range(0..8) == 0);
        let long = |i: usize| -> Path { Box::leak(format!("d/{i:03}{}", LONG.repeat(17)).into_boxed_str()) };
        let wide = if theme == Theme::Wide { (0..60).map(long).collect() } else { Vec::new() };
        Maker { rng, theme, large, wide }
    }

    fn path(&mut self) -> Path {
        const NAMES: [Path; 10] = ["a", "f", "d", "e", "d/x", "d/y", "e/z", "e/w", "d/e", "d/e/v"];
        match self.theme {
            Theme::Wide => self.wide[self.rng.random_range(0..self.wide.len())],
            Theme::Names => NAMES[self.rng.random_range(0..NAMES.len())],
            Theme::Bytes => ["f", "d/x", "g", "f"][self.rng.random_range(0..4)],
        }
    }

    fn mode(&mut self) -> RenameMode {
        [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][self.rng.random_range(0..3)]
    }

    /// An offset and a length, near page boundaries more often than not.
    fn range(&mut self) -> (u64, u64) {
        let edge = |rng: &mut StdRng, pages: u64| {
            let page = rng.random_range(0..pages) * 4096;
            page + [0, 0, 1, 100, 4095][rng.random_range(0..5)]
        };
        let from = edge(&mut self.rng, 24);
        (from, edge(&mut self.rng, 4).max(1))
    }

    fn op(&mut self) -> Op {
        let kind = match self.theme {
            Theme::Names => self.rng.random_range(0..100),
            Theme::Wide => [0, 0, 0, 0, 20, 20, 28, 12, 91, 97][self.rng.random_range(0..10)],
            Theme::Bytes => self.rng.random_range(44..100),
        };
        match kind {
            0..8 => Op::Create(self.path()),
            8..12 => Op::Mkdir(self.path()),
            12..15 => Op::Symlink(self.path(), [5, 120, 121, 3000][self.rng.random_range(0..4)]),
            15..18 => Op::Link(self.path(), self.path()),
            18..20 => Op::Clone(self.path(), self.path()),
            20..25 => Op::Unlink(self.path()),
            25..28 => Op::UnlinkOpen(self.path()),
            28..40 => Op::Rename(self.path(), self.path(), self.mode()),
            40..44 => Op::Rmdir(self.path()),
            44..85 => self.bytes_op(),
            85..89 => Op::SetXattr(self.path(), "user.a", [0, 10, 900, 9000][self.rng.random_range(0..4)], 1),
            89..91 => Op::RemoveXattr(self.path(), "user.a"),
            91..94 => Op::SetAttr(self.path(), self.rng.random_range(0..0o1000), 9),
            94..97 => Op::Sync,
            97 => Op::Drop,
            _ => Op::Reopen,
        }
    }

    fn bytes_op(&mut self) -> Op {
        let path = self.path();
        let (from, len) = self.range();
        let fill = self.rng.random();
        if self.large > 0 && self.rng.random_range(0..8) == 0 {
            self.large -= 1;
            return Op::Write(path, At::Offset([0, 0, 4096][self.rng.random_range(0..3)]), 2 << 20, fill);
        }
        match self.rng.random_range(0..17) {
            15 | 16 => {
                let count = [1, 3, 6, 7, 20][self.rng.random_range(0..5)];
                let every = [4096, 5000, 8192][self.rng.random_range(0..3)];
                let parts = Parts { from, every, len: (len as usize).min(every as usize), count };
                Op::WriteAtomic(path, parts, fill)
            }
            12 | 13 => Op::Clone(path, ["g", "h", "f"][self.rng.random_range(0..3)]),
            14 => Op::Unlink(["g", "h", "d/x"][self.rng.random_range(0..3)]),
            0..5 => Op::Write(path, At::Offset(from), len as usize, fill),
            5 | 6 => Op::Write(path, At::End, len as usize, fill),
            7 | 8 => Op::Truncate(path, if self.rng.random_bool(0.2) { 0 } else { from }),
            9 => Op::Allocate(path, from, len),
            10 => Op::Punch(path, from, len),
            _ => Op::Zero(path, from, len),
        }
    }
}

/// The operations of a seed.
fn sequence(seed: u64) -> Vec<Op> {
    let mut maker = Maker::new(seed);
    let count =
        if maker.theme == Theme::Wide { maker.rng.random_range(30..60) } else { maker.rng.random_range(10..40) };
    (0..count).map(|_| maker.op()).collect()
}

/// Operations of a thread that has a directory to itself, without those that concern the pool.
pub(crate) fn sequence_of_thread(seed: u64) -> Vec<Op> {
    let start = [Op::Create("f"), Op::Mkdir("d"), Op::Mkdir("e"), Op::Create("d/x")];
    let mut maker = Maker { large: 0, ..Maker::new(seed) };
    let rest = (0..60).map(|_| maker.op()).filter(|op| !matches!(op, Op::Sync | Op::Reopen | Op::Drop));
    start.into_iter().chain(rest.take(10)).collect()
}

fn try_one(templates: &[Template; 2], seed: u64) -> Result<usize, String> {
    let template = &templates[seed as usize % 2];
    let ops = sequence(seed);
    let large = ops.iter().map(|op| op.bytes()).sum::<u64>() > 1 << 20;
    let budget = match large {
        true => Budget { exhaustive_up_to: 8, sampled: 6, points: 10, ..Budget::default() },
        false => Budget { exhaustive_up_to: 32, sampled: 24, points: 24, ..Budget::default() },
    };
    let care = Care { budget, from: 0, nested: if large { 0 } else { 97 }, emptied: 11 };
    let tried = run::record(template, &ops).and_then(|run| run::check(template, &run, &care));
    tried.map_err(|e| format!("PAGESTONE_SEED={seed}: {e}").replace(&LONG.repeat(17), "..."))
}

#[test]
fn random_sequences_survive() {
    let templates = [Flavour::Lines, Flavour::Pages].map(|flavour| Template::new(flavour, 0xCAFE, &BEFORE));
    let started = Instant::now();
    let seeds: Vec<u64> = match run::seed() {
        Some(seed) => vec![seed],
        None => (0..Effort::of(300, 2000, 10_000)).collect(),
    };
    let states = run::in_parallel(&seeds, |seed| try_one(&templates, *seed));
    let seconds = started.elapsed().as_secs_f64();
    println!("random: {} sequences, {states} states in {seconds:.1} s, {:.0}/s", seeds.len(), states as f64 / seconds);
}
