//! The format as an attacker knows it: where things stand, and how to make checksums right again.
//! Written down a second time on purpose: a mistake in the engine's layout shows.

use crate::stage::PAGE;

pub(crate) const LANES: usize = 256 * PAGE;
pub(crate) const LANE_COUNT: usize = 2;
pub(crate) const LANE_LEN: usize = 64 * PAGE;
pub(crate) const DESCRIPTORS: usize = LANES + LANE_COUNT * LANE_LEN;
pub(crate) const FRAME: usize = 2 << 20;
pub(crate) const MARKS: [usize; 4] = [PAGE, PAGE + 512, PAGE + 1024, PAGE + 1536];
pub(crate) const SUPERBLOCKS: [usize; 2] = [0, 255 * PAGE];
/// Bytes of a superblock.
pub(crate) const SUPERBLOCK: usize = 128;
/// Where the salt of the records stands in it.
pub(crate) const SALT: std::ops::Range<usize> = 96..104;
/// The two copies of the pool's size.
pub(crate) const SIZES: [usize; 2] = [4 * PAGE, 254 * PAGE];
const RECORD_MAGIC: u32 = 0x4345_5250;

/// What a page of metadata is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum What {
    Superblock,
    Header,
    Counters,
    Size,
    Inodes,
    Lane,
    Descriptors,
    Table,
    Node,
    /// A forwarding table of inode pages.
    Forward,
}

impl What {
    pub(crate) const ALL: [What; 10] = [
        What::Superblock,
        What::Header,
        What::Counters,
        What::Size,
        What::Inodes,
        What::Lane,
        What::Descriptors,
        What::Table,
        What::Node,
        What::Forward,
    ];
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &b in bytes {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Every page of metadata in use.
pub(crate) fn metadata(image: &[u8]) -> Vec<(usize, What)> {
    let mut found = vec![
        (0, What::Superblock),
        (255, What::Superblock),
        (1, What::Header),
        (2, What::Counters),
        (3, What::Inodes),
        (SIZES[0] / PAGE, What::Size),
        (SIZES[1] / PAGE, What::Size),
        (DESCRIPTORS / PAGE, What::Descriptors),
    ];
    for page in LANES / PAGE..DESCRIPTORS / PAGE {
        if image[page * PAGE..][..PAGE].iter().any(|&b| b != 0) {
            found.push((page, What::Lane));
        }
    }
    for frame in 1..image.len() / FRAME {
        let desc = &image[DESCRIPTORS + frame * 64..][..64];
        if desc[4] != 2 {
            continue;
        }
        let table = u64_at(desc, 24) as usize;
        found.push((table, What::Table));
        for i in 0..512 {
            match image[table * PAGE + i * 8] & 15 {
                2 => found.push((frame * 512 + i, What::Inodes)),
                3 => found.push((frame * 512 + i, What::Node)),
                6 => found.push((frame * 512 + i, What::Forward)),
                _ => {}
            }
        }
    }
    found
}

/// A record of a lane: `(first byte, bytes)`.
pub(crate) fn records(image: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for lane in 0..LANE_COUNT {
        let (mut at, end) = (LANES + lane * LANE_LEN, LANES + (lane + 1) * LANE_LEN);
        let mut last = 0;
        while at + 64 <= end && image[at..at + 4] == RECORD_MAGIC.to_le_bytes() {
            let (len, sequence) = (u64_at(image, at + 16) as u32 as usize, u64_at(image, at + 8));
            // Behind the last record stand older ones, from before the last checkpoint.
            if len < 64 || at + len > end || sequence <= last {
                break;
            }
            last = sequence;
            found.push((at, len));
            at += len;
        }
    }
    found
}

/// Whether a byte counts in a closed pool: a checksum or a check of owners has to notice it.
pub(crate) fn covered(image: &[u8], at: usize, what: What) -> bool {
    let (page, within) = (at / PAGE, at % PAGE);
    match what {
        What::Table | What::Forward => true,
        What::Superblock => within < SUPERBLOCK,
        What::Size => within < 64,
        What::Descriptors => (64..image.len() / FRAME * 64).contains(&within),
        What::Inodes => image[at / 256 * 256 + 4] != 0,
        What::Node => {
            let node = &image[page * PAGE..][..PAGE];
            within < 64 + u16_at(node, 24) * 4 || within >= u16_at(node, 26)
        }
        What::Header | What::Counters | What::Lane => false,
    }
}

/// Whether a byte lies in the last record of its lane: damaged, it looks like one that a crash has
/// torn, and what it said is lost like that.
pub(crate) fn in_last_record(image: &[u8], at: usize) -> bool {
    let lane = |byte: usize| byte.wrapping_sub(LANES) / LANE_LEN;
    records(image).iter().rfind(|r| lane(r.0) == lane(at)).is_some_and(|r| (r.0..r.0 + r.1).contains(&at))
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn seal_superblock(sb: &mut [u8]) {
    let crc = crc32c(&sb[..124]);
    put_u32(sb, 124, crc);
}

/// A mark, a line of counters or an inode record.
pub(crate) fn seal_front(bytes: &mut [u8]) {
    let crc = crc32c(&bytes[4..]);
    put_u32(bytes, 0, crc);
}

pub(crate) fn seal_descriptor(desc: &mut [u8], frame: usize) {
    let crc = crc32c(&desc[4..64]) ^ (frame as u32).wrapping_mul(0x9E37_79B1);
    put_u32(desc, 0, crc);
}

pub(crate) fn sealed_entry(word: u64, page: usize) -> u64 {
    let word = word & ((1 << 56) - 1);
    let check = (word ^ (page as u64).rotate_left(32)).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    word | check << 56
}

/// The word at `index` of the forwarding table on page `table` that leads to page `to`.
pub(crate) fn sealed_forward(to: u64, table: usize, index: usize) -> u64 {
    let place = ((table * 512 + index) as u64).rotate_left(24);
    let word = to & ((1 << 56) - 1);
    word | (word ^ place).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56 << 56
}

/// Only where the counts allow a checksum at all.
pub(crate) fn seal_node(node: &mut [u8]) {
    let (slots_end, heap) = (64 + u16_at(node, 24) * 4, u16_at(node, 26));
    if slots_end <= heap && heap <= PAGE {
        let crc = crc32c(&node[4..slots_end]) ^ crc32c(&node[heap..PAGE]).rotate_left(1);
        put_u32(node, 0, crc);
    }
}

pub(crate) fn seal_record(record: &mut [u8]) {
    let crc = crc32c(&record[8..]) ^ RECORD_MAGIC;
    put_u32(record, 4, crc);
}

/// A record with these runs of lines, as the pool of `image` would write it.
pub(crate) fn forged_record(image: &[u8], sequence: u64, runs: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut record = vec![0; 32];
    for (line, bytes) in runs {
        record.extend_from_slice(&((line << 16) | (bytes.len() as u64 / 64)).to_le_bytes());
        record.extend_from_slice(bytes);
    }
    record.resize(record.len().next_multiple_of(64), 0);
    put_u32(&mut record, 0, RECORD_MAGIC);
    record[8..16].copy_from_slice(&sequence.to_le_bytes());
    let len = record.len() as u32;
    put_u32(&mut record, 16, len);
    record[24..32].copy_from_slice(&image[SALT]);
    seal_record(&mut record);
    record
}
