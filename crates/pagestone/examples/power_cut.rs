//! A load to pull the plug on, and the look at what is left.
//!
//! ```text
//!   power_cut work POOL SEED              two threads change files until the end; each prints
//!          X  the machine ends            "SEED THREAD STEP" when the step is durable
//!   power_cut look POOL SEED DONE DONE    every step that was printed is there, and of those after it as many
//!                                         as there were, in order; the last wholly or not at all (an overwrite
//!                                         in place: any mix); nothing else; and check
//! ```
//!
//! The steps follow from the seed, so the numbers are all that has to be kept outside the machine.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use pagestone::check::check;
use pagestone::inode::{Dir, NewNode, RenameMode};
use pagestone::mmap::MapOptions;
use pagestone::{Error, File, FileType, OpenOptions, Pool, Result};
use pmem::Durability;

const THREADS: u64 = 2;
const FILES: u64 = 8;
const MOST: u64 = 300_000;
/// Steps that may be done and whose line is still in the machine when it ends: a serial line keeps 4 KiB.
const ON_THE_WAY: u64 = 400;

/// What a thread's directory should have.
type Model = BTreeMap<u64, Vec<u8>>;

/// One change of one thread's directory; files go by number.
#[derive(Clone, Debug)]
enum Step {
    Create(u64),
    Append(u64, Vec<u8>),
    Overwrite(u64, usize, Vec<u8>),
    Atomic(u64, usize, Vec<u8>),
    Length(u64, u64),
    Store(u64, usize, u64),
    Rename(u64, u64),
    Clone(u64, u64),
    Unlink(u64),
}

/// Numbers that follow from a seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let len = 1 + self.below(most);
        let salt = self.below(u64::MAX);
        (0..len).map(|i| (salt.wrapping_add(i * 0x9e37) >> (i % 8)) as u8 | 1).collect()
    }

    fn step(&mut self, model: &Model) -> Step {
        let (what, one, two) = (self.below(12), self.below(FILES), self.below(FILES));
        let Some(now) = model.get(&one) else { return Step::Create(one) };
        let len = now.len() as u64;
        let inside = |chance: &mut Chance, most: u64| {
            let bytes = chance.bytes(most.min(len));
            (chance.below(len - bytes.len() as u64 + 1) as usize, bytes)
        };
        match what {
            0 => Step::Unlink(one),
            1 if one != two => Step::Rename(one, two),
            2 if one != two && !model.contains_key(&two) => Step::Clone(one, two),
            3 => Step::Length(one, self.below(MOST)),
            4..=5 if len > 0 => {
                let (at, bytes) = inside(self, 9000);
                Step::Overwrite(one, at, bytes)
            }
            6..=7 if len > 0 => {
                let (at, bytes) = inside(self, 20_000);
                Step::Atomic(one, at, bytes)
            }
            8 if len >= 8 => Step::Store(one, self.below(len / 8) as usize * 8, self.below(u64::MAX)),
            _ if len < MOST => Step::Append(one, self.bytes(20_000)),
            _ => Step::Unlink(one),
        }
    }
}

fn apply(step: &Step, model: &mut Model) {
    let mut put = |file: &u64, at: usize, bytes: &[u8]| {
        if let Some(now) = model.get_mut(file) {
            now[at..at + bytes.len()].copy_from_slice(bytes);
        }
    };
    match step {
        Step::Create(file) => drop(model.insert(*file, Vec::new())),
        Step::Append(file, bytes) => model.entry(*file).or_default().extend(bytes),
        Step::Overwrite(file, at, bytes) | Step::Atomic(file, at, bytes) => put(file, *at, bytes),
        Step::Store(file, at, value) => put(file, *at, &value.to_le_bytes()),
        Step::Length(file, len) => model.entry(*file).or_default().resize(*len as usize, 0),
        Step::Rename(from, to) => {
            let bytes = model.remove(from).unwrap_or_default();
            model.insert(*to, bytes);
        }
        Step::Clone(from, to) => {
            let bytes = model.get(from).cloned().unwrap_or_default();
            model.insert(*to, bytes);
        }
        Step::Unlink(file) => drop(model.remove(file)),
    }
}

fn name(file: u64) -> Vec<u8> {
    format!("f{file}").into_bytes()
}

fn perform(step: &Step, pool: &Pool, dir: &Dir) -> Result<()> {
    let open = |file: u64| -> Result<File> { pool.node(dir.lookup(&name(file))?.ino)?.open() };
    match step {
        Step::Create(file) => dir.create(&name(*file), &NewNode::new(FileType::File, 0o600)).map(drop),
        Step::Append(file, bytes) => open(*file)?.append(bytes).map(drop),
        Step::Overwrite(file, at, bytes) => open(*file)?.write_all_at(bytes, *at as u64),
        Step::Atomic(file, at, bytes) => open(*file)?.write_atomic(&[(*at as u64, bytes)]),
        Step::Length(file, len) => open(*file)?.set_len(*len),
        Step::Store(file, at, value) => {
            let at = *at as u64;
            let map = open(*file)?.map(at..at + 8, &MapOptions::shared())?;
            map.put(0, value)?;
            map.flush(0..8)?;
            map.drain()
        }
        Step::Rename(from, to) => dir.rename(&name(*from), dir.ino(), &name(*to), RenameMode::Replace),
        Step::Clone(from, to) => dir.clone_file(&name(*to), open(*from)?.ino()).map(drop),
        Step::Unlink(file) => dir.unlink(&name(*file)),
    }
}

fn chance(seed: u64, thread: u64) -> Chance {
    Chance(seed.wrapping_mul(THREADS).wrapping_add(thread))
}

fn dir(pool: &Pool, seed: u64, thread: u64) -> Result<Dir> {
    pool.resolve(format!("/run-{seed}-{thread}").as_bytes())?.dir()
}

/// Takes away what earlier runs left.
fn clear(pool: &Pool, top: &Dir) -> Result<()> {
    for entry in top.entries() {
        let entry = entry?;
        if entry.kind == FileType::Dir {
            clear(pool, &pool.node(entry.ino)?.dir()?)?;
            top.rmdir(&entry.name)?;
        } else {
            top.unlink(&entry.name)?;
        }
    }
    Ok(())
}

fn work(path: &Path, seed: u64) -> Result<()> {
    let pool = Pool::open(path, &OpenOptions::default())?;
    clear(&pool, &pool.root())?;
    let at_sync = pool.info()?.media.durability == Durability::AtSync;
    for thread in 0..THREADS {
        pool.root().create(format!("run-{seed}-{thread}").as_bytes(), &NewNode::new(FileType::Dir, 0o700))?;
    }
    let one = |thread: u64| -> Result<()> {
        let (mut chance, mut model, dir) = (chance(seed, thread), Model::new(), dir(&pool, seed, thread)?);
        for n in 1u64.. {
            let step = chance.step(&model);
            perform(&step, &pool, &dir)?;
            if at_sync {
                pool.sync()?;
            }
            writeln!(std::io::stdout().lock(), "{seed} {thread} {n}").map_err(Error::Media)?;
            apply(&step, &mut model);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || one(thread))).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or(Err(Error::Invalid("a thread panicked"))))
    })
}

/// What a thread's directory has.
fn there(pool: &Pool, dir: &Dir) -> Result<Model> {
    let mut model = Model::new();
    for entry in dir.entries() {
        let (name, ino) = entry.map(|entry| (entry.name, entry.ino))?;
        let number = String::from_utf8_lossy(&name).trim_start_matches('f').parse().unwrap_or(u64::MAX);
        let file = pool.node(ino)?.open()?;
        let mut bytes = vec![0; file.attr()?.size as usize];
        file.read_at(&mut bytes, 0)?;
        model.insert(number, bytes);
    }
    Ok(model)
}

/// Whether each byte is the old or the new one, and all else is as it was.
fn is_mix(is: &Model, old: &Model, new: &Model) -> bool {
    is.keys().eq(old.keys())
        && is.iter().all(|(file, bytes)| {
            let (old, new) = (&old[file], &new[file]);
            bytes.len() == old.len()
                && bytes.len() == new.len()
                && bytes.iter().zip(old).zip(new).all(|((is, old), new)| is == old || is == new)
        })
}

/// Whether what is there is the model, or on the way to the next one; if not, the model takes that step.
fn is_next(is: &Model, model: &mut Model, chance: &mut Chance) -> bool {
    if is == model {
        return true;
    }
    let step = chance.step(model);
    let old = model.clone();
    apply(&step, model);
    matches!(step, Step::Overwrite(..)) && is_mix(is, &old, model)
}

fn look(path: &Path, seed: u64, done: &[u64]) -> Result<bool> {
    let pool = Pool::open(path, &OpenOptions::default())?;
    let mut right = true;
    let mut more = 0;
    for (thread, &done) in (0..THREADS).zip(done) {
        if done == 0 && dir(&pool, seed, thread).is_err() {
            continue;
        }
        let (mut chance, mut old) = (chance(seed, thread), Model::new());
        for _ in 0..done {
            apply(&chance.step(&old), &mut old);
        }
        let is = there(&pool, &dir(&pool, seed, thread)?)?;
        match (0..ON_THE_WAY).find(|_| is_next(&is, &mut old, &mut chance)) {
            Some(n) => more += n,
            None => {
                right = false;
                println!("thread {thread}: no state from step {done} on is what is there");
            }
        }
    }
    let replayed = pool.info()?.replayed;
    pool.close()?;
    let report = check(path, &pagestone::check::CheckOptions::default(), &mut |_, _| ())?;
    report.findings.iter().for_each(|finding| println!("check: {finding:?}"));
    println!("looked: {} steps, {more} under way were there, {replayed} records replayed", done.iter().sum::<u64>());
    Ok(right && report.is_clean())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = args.iter().skip(2).filter_map(|n| n.parse().ok()).collect();
    let done = match (args.first().map(String::as_str), args.get(1), &numbers[..]) {
        (Some("work"), Some(path), &[seed]) => work(Path::new(path), seed).map(|()| true),
        (Some("look"), Some(path), &[seed, ref done @ ..]) if done.len() as u64 == THREADS => {
            look(Path::new(path), seed, done)
        }
        _ => {
            eprintln!("usage: power_cut work POOL SEED | power_cut look POOL SEED DONE DONE");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
