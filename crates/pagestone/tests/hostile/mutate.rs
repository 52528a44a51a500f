//! Damage: random, and as somebody would do it who knows the format and makes the checksums right
//! again, so that hostile values reach the code behind them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::format::{self, What, u16_at, u64_at};
use crate::stage::{PAGE, Stage};

/// What is known of a sound image.
pub(crate) struct Anatomy {
    pub(crate) pages: Vec<(usize, What)>,
    records: Vec<(usize, usize)>,
    /// Page numbers, inode numbers and places that mean something in this image.
    words: Vec<u64>,
}

impl Anatomy {
    pub(crate) fn of(image: &[u8]) -> Anatomy {
        let pages = format::metadata(image);
        let mut words: Vec<u64> = pages.iter().map(|&(p, _)| p as u64).collect();
        for &(page, what) in &pages {
            let step = if what == What::Inodes { 256 } else { continue };
            for at in (page * PAGE..(page + 1) * PAGE).step_by(step).filter(|&at| image[at + 4] != 0) {
                let place = u64_at(image, at + 8);
                words.extend([place, place | u64_at(image, at + 16) << 40, u64_at(image, at + 120)]);
            }
        }
        Anatomy { records: format::records(image), pages, words }
    }

    fn page(&self, what: What, rng: &mut StdRng) -> Option<usize> {
        let all: Vec<usize> = self.pages.iter().filter(|p| p.1 == what).map(|p| p.0).collect();
        all.choose(rng).copied()
    }

    /// A number that may do harm.
    fn word(&self, rng: &mut StdRng) -> u64 {
        match rng.random_range(0..10) {
            0..4 => self.words.choose(rng).copied().unwrap_or(1),
            4 => rng.random_range(0..600),
            5 => 1u64 << rng.random_range(0..64),
            6 => (1u64 << rng.random_range(0..64)).wrapping_sub(1),
            7 => u64::MAX - rng.random_range(0..3),
            8 => i64::MAX as u64 - rng.random_range(0..9000),
            _ => rng.random(),
        }
    }
}

/// One to four pieces of damage.
pub(crate) fn damage(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=4) {
        match rng.random_range(0..23) {
            0 => random_bytes(stage, anatomy, rng),
            1 => fill_page(stage, anatomy, rng),
            2 => swap_pages(stage, anatomy, rng),
            3 => superblock(stage, anatomy, rng),
            4 => mark(stage, anatomy, rng),
            5 if rng.random_bool(0.3) => size(stage, anatomy, rng),
            5 => counters(stage, anatomy, rng),
            6 | 7 => descriptor(stage, anatomy, rng),
            8 | 9 => table(stage, anatomy, rng),
            10..13 => inode(stage, anatomy, rng),
            13..17 => node(stage, anatomy, rng),
            17 => record(stage, anatomy, rng),
            18 => forged_record(stage, anatomy, rng),
            19 | 20 => forward(stage, anatomy, rng),
            21 => later_version(stage, anatomy, rng),
            _ => moved_node(stage, anatomy, rng),
        }
    }
}

fn random_bytes(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..20) {
        let at = match anatomy.pages.choose(rng) {
            Some(&(page, _)) if rng.random_bool(0.9) => page * PAGE + rng.random_range(0..PAGE),
            _ => rng.random_range(0..stage.work.len()),
        };
        stage.write(at, &[rng.random()]);
    }
}

fn fill_page(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let Some(&(page, _)) = anatomy.pages.choose(rng) else { return };
    let byte = *[0, 0xFF, rng.random()].choose(rng).unwrap_or(&0);
    stage.write(page * PAGE, &[byte; PAGE]);
}

fn swap_pages(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let (Some(&(a, _)), Some(&(b, _))) = (anatomy.pages.choose(rng), anatomy.pages.choose(rng)) else { return };
    let (old_a, old_b) = (stage.work[a * PAGE..][..PAGE].to_vec(), stage.work[b * PAGE..][..PAGE].to_vec());
    stage.write(b * PAGE, &old_a);
    if rng.random_bool(0.5) {
        stage.write(a * PAGE, &old_b);
    }
}

/// Changes `len` bytes at `at` in a copy, lets `seal` make the checksum right, writes it back.
fn sealed(stage: &mut Stage, at: usize, len: usize, change: impl FnOnce(&mut [u8]), seal: impl FnOnce(&mut [u8])) {
    let mut bytes = stage.work[at..at + len].to_vec();
    change(&mut bytes);
    seal(&mut bytes);
    stage.write(at, &bytes);
}

/// Puts a number of some width somewhere into `bytes[from..]`.
fn poke(bytes: &mut [u8], from: usize, value: u64, rng: &mut StdRng) {
    let width = *[1, 2, 4, 8, 8, 8].choose(rng).unwrap_or(&8);
    let at = (from + rng.random_range(0..bytes.len() - from)) / width * width;
    if at >= from && at + width <= bytes.len() {
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

fn superblock(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let (value, both) = (anatomy.word(rng), rng.random_bool(0.7));
    let copies = if both { 2 } else { 1 };
    let at = *[8, 12, 16, 20, 24, 40, 48, 56, 64, 72, 76, 80, 88, 96, 104].choose(rng).unwrap_or(&8);
    for copy in format::SUPERBLOCKS.iter().take(copies) {
        let change = |sb: &mut [u8]| sb[at..at + 4].copy_from_slice(&value.to_le_bytes()[..4]);
        sealed(stage, *copy, format::SUPERBLOCK, change, format::seal_superblock);
    }
}

/// A size, a forwarding table, or a count of what it forwards, that the pool does not have, in one copy or in both.
fn size(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let (value, both) = (anatomy.word(rng), rng.random_bool(0.7));
    let number = if rng.random_bool(0.5) { value } else { rng.random_range(0..20) };
    let field = *[8, 8, 16, 24].choose(rng).unwrap_or(&8);
    for at in format::SIZES.iter().take(if both { 2 } else { 1 }) {
        sealed(
            stage,
            *at,
            64,
            |line| line[field..field + 8].copy_from_slice(&number.to_le_bytes()),
            format::seal_front,
        );
    }
}

fn mark(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let (at, value) = (*format::MARKS.choose(rng).unwrap_or(&PAGE), anatomy.word(rng));
    sealed(stage, at, 64, |m| poke(m, 4, value, rng), format::seal_front);
}

fn counters(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let (at, value) = (2 * PAGE + 64 * rng.random_range(0..format::LANE_COUNT), anatomy.word(rng));
    let field = *[8, 16, 24, 48, 56].choose(rng).unwrap_or(&8);
    sealed(stage, at, 64, |c| c[field..field + 8].copy_from_slice(&value.to_le_bytes()), format::seal_front);
}

fn descriptor(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let frame = rng.random_range(1..stage.work.len() / format::FRAME);
    let value = anatomy.word(rng);
    let state = rng.random_bool(0.3).then(|| rng.random_range(0..6));
    let change = |d: &mut [u8]| {
        poke(d, 4, value, rng);
        d[4] = state.unwrap_or(d[4]);
    };
    sealed(stage, format::DESCRIPTORS + frame * 64, 64, change, |d| format::seal_descriptor(d, frame));
}

fn table(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let Some(table) = anatomy.page(What::Table, rng) else { return };
    for _ in 0..rng.random_range(1..8) {
        let i = rng.random_range(0..512);
        let word = rng.random_range(0..6) | (anatomy.word(rng) & ((1 << 40) - 1)) << 4;
        let entry = if rng.random_bool(0.3) { 0 } else { format::sealed_entry(word, table / 512 * 512 + i) };
        stage.write(table * PAGE + i * 8, &entry.to_le_bytes());
    }
}

/// Words of a forwarding table that lead elsewhere: to another table, in a circle, out of the pool.
fn forward(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let Some(table) = anatomy.page(What::Forward, rng) else { return };
    let used: Vec<usize> = (0..512).filter(|i| u64_at(&stage.work, table * PAGE + i * 8) != 0).collect();
    for _ in 0..rng.random_range(1..4) {
        let index = used.choose(rng).copied().filter(|_| rng.random_bool(0.7)).unwrap_or(rng.random_range(0..512));
        let to = match rng.random_range(0..4) {
            0 => anatomy.page(What::Forward, rng).unwrap_or(0) as u64,
            1 => anatomy.page(What::Inodes, rng).unwrap_or(0) as u64,
            _ => anatomy.word(rng),
        };
        let word = if rng.random_bool(0.1) { 0 } else { format::sealed_forward(to, table, index) };
        stage.write(table * PAGE + index * 8, &word.to_le_bytes());
    }
}

/// What no pool of this version has, or not there: the state of an extent, another backing, flags, an epoch.
fn later_version(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let state = (1u16 << rng.random_range(0..16)).to_le_bytes();
    if rng.random_bool(0.4) {
        let Some(page) = anatomy.page(What::Node, rng) else { return };
        let pick: usize = rng.random_range(0..900);
        let change = |node: &mut [u8]| {
            let slot = 64 + 4 * (pick % u16_at(node, 24).clamp(1, 900));
            let entry = u16_at(node, slot).min(PAGE - 16);
            node[entry + 14..entry + 16].copy_from_slice(&state);
        };
        return sealed(stage, page * PAGE, PAGE, change, format::seal_node);
    }
    let Some(page) = anatomy.page(What::Inodes, rng) else { return };
    let live: Vec<usize> = (0..16).filter(|s| stage.work[page * PAGE + s * 256 + 4] != 0).collect();
    let Some(slot) = live.choose(rng) else { return };
    let (what, value, backing) = (rng.random_range(0..4), anatomy.word(rng), rng.random_range(0..4u32));
    let change = |rec: &mut [u8]| match what {
        0 => rec[184 + 14..184 + 16].copy_from_slice(&state),
        1 => rec[184 + 24 + 14..184 + 24 + 16].copy_from_slice(&state),
        2 => rec[160..164].copy_from_slice(&backing.to_le_bytes()),
        _ => rec[164..172].copy_from_slice(&value.to_le_bytes()),
    };
    sealed(stage, page * PAGE + slot * 256, 256, change, format::seal_front);
}

fn inode(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let Some(page) = anatomy.page(What::Inodes, rng) else { return };
    let live: Vec<usize> = (0..16).filter(|s| stage.work[page * PAGE + s * 256 + 4] != 0).collect();
    let Some(slot) = live.choose(rng) else { return };
    let changes = rng.random_range(1..4);
    let change = |rec: &mut [u8]| {
        for _ in 0..changes {
            let value = anatomy.word(rng);
            match rng.random_range(0..8) {
                0 => rec[4] = rng.random_range(0..9),
                1 => rec[5..8][rng.random_range(0..3)] = rng.random_range(0..14),
                2 => rec[32..36].copy_from_slice(&value.to_le_bytes()[..4]),
                _ => {
                    let at = *[40, 48, 56, 112, 120, 128, 136, 144, 152, 160, 168, 176, 184, 192, 200]
                        .choose(rng)
                        .unwrap_or(&40);
                    rec[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    };
    sealed(stage, page * PAGE + slot * 256, 256, change, format::seal_front);
}

fn node(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let Some(page) = anatomy.page(What::Node, rng) else { return };
    let changes = rng.random_range(1..4);
    let change = |node: &mut [u8]| {
        for _ in 0..changes {
            poke_node(node, anatomy, rng);
        }
    };
    sealed(stage, page * PAGE, PAGE, change, format::seal_node);
}

fn poke_node(node: &mut [u8], anatomy: &Anatomy, rng: &mut StdRng) {
    let value = anatomy.word(rng);
    let count = u16_at(node, 24).clamp(1, 900);
    let slot = 64 + 4 * rng.random_range(0..count);
    let entry = u16_at(node, slot).min(PAGE - 32);
    match rng.random_range(0..12) {
        0 => {
            let field = *[6, 24, 26, 28, 30].choose(rng).unwrap_or(&24);
            let near = u16_at(node, field) as i64 + rng.random_range(-9..10);
            let value = if rng.random_bool(0.6) { near as u64 } else { value };
            node[field..field + 2].copy_from_slice(&value.to_le_bytes()[..2]);
        }
        1 => node[16..24].copy_from_slice(&value.to_le_bytes()),
        2 => node[slot..slot + 2].copy_from_slice(&value.to_le_bytes()[..2]),
        3 => node[slot + 2..slot + 4].copy_from_slice(&value.to_le_bytes()[..2]),
        // Another entry's slot: two slots for one entry.
        4 => node.copy_within(64..68, slot),
        5 => node[entry..entry + 8].copy_from_slice(&value.to_le_bytes()),
        6..10 => node[entry + 8..entry + 16].copy_from_slice(&value.to_le_bytes()),
        10 => node[entry + 16..entry + 24].copy_from_slice(&value.to_le_bytes()),
        _ => poke(node, 4, value, rng),
    }
}

/// A node in another's place, saying that it belongs there.
fn moved_node(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let (Some(from), Some(to)) = (anatomy.page(What::Node, rng), anatomy.page(What::Node, rng)) else { return };
    let mut bytes = stage.work[from * PAGE..][..PAGE].to_vec();
    bytes[8..16].copy_from_slice(&(to as u64).to_le_bytes());
    if rng.random_bool(0.7) {
        bytes[16..24].copy_from_slice(&stage.work[to * PAGE + 16..][..8]);
        bytes[30..32].copy_from_slice(&stage.work[to * PAGE + 30..][..2]);
    }
    format::seal_node(&mut bytes);
    stage.write(to * PAGE, &bytes);
}

fn record(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let Some(&(at, len)) = anatomy.records.choose(rng) else { return };
    let value = anatomy.word(rng);
    sealed(stage, at, len, |r| poke(r, 8, value, rng), format::seal_record);
}

/// A record behind the last one, with runs of the attacker's choice.
fn forged_record(stage: &mut Stage, anatomy: &Anatomy, rng: &mut StdRng) {
    let lane = format::LANES + format::LANE_LEN * rng.random_range(0..format::LANE_COUNT);
    let inside = |r: &&(usize, usize)| (lane..lane + format::LANE_LEN).contains(&r.0);
    let at = anatomy.records.iter().rfind(inside).map_or(lane, |r| r.0 + r.1);
    let last = anatomy.records.iter().map(|r| u64_at(&stage.work, r.0 + 8)).max().unwrap_or(1000);
    let mut runs = Vec::new();
    for _ in 0..rng.random_range(1..6) {
        let line = match anatomy.pages.choose(rng) {
            Some(&(page, _)) if rng.random_bool(0.8) => (page * PAGE / 64) as u64 + rng.random_range(0..64),
            _ => anatomy.word(rng) & ((1 << 48) - 1),
        };
        let source = rng.random_range(0..stage.work.len() / 64 - 8) * 64;
        runs.push((line, stage.work[source..source + 64 * rng.random_range(1..8)].to_vec()));
    }
    let record = format::forged_record(&stage.work, last.wrapping_add(rng.random_range(1..3)), &runs);
    if at + record.len() <= lane + format::LANE_LEN {
        stage.write(at, &record);
    }
}
