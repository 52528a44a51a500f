//! A file mapped into memory: stores to holes, a second mapping, pages that go away, stores that are committed at once.
//!
//! ```text
//!   cargo run --release -p pagestone --example mapping
//! ```

use std::sync::Arc;

use pagestone::mmap::MapOptions;
use pagestone::pmem::Memory;
use pagestone::{CreateOptions, Error, File, Pool, Result};

fn main() -> Result<()> {
    let memory = Memory::new(64 << 20).map_err(Error::Media)?;
    let pool = Pool::create_on(Arc::new(memory), &CreateOptions::new())?;
    let file = pool.create_file("/table")?;
    file.set_len(32 << 20)?;

    // All of it is a hole: it reads as zeros and takes no storage.
    let map = file.map(0..32 << 20, &MapOptions::shared())?;
    assert_eq!(map.load::<u64>(20 << 20)?, 0);
    println!("mapped with {}", map.mechanism());

    // A store gives it storage, which everybody sees.
    map.store::<u64>(20 << 20, 42)?;
    let reader = file.map(20 << 20..21 << 20, &MapOptions::read_only())?;
    println!("another mapping sees {}", reader.load::<u64>(0)?);

    // Durable as the media promise it: no system call on DAX media.
    map.flush(20 << 20..(20 << 20) + 8)?;
    map.drain()?;

    // A page that was punched is an error, until it is asked for again.
    file.punch_hole(20 << 20..(20 << 20) + 4096)?;
    match map.load::<u64>(20 << 20) {
        Err(Error::Revoked(offset)) => println!("the page at {offset} was taken away"),
        other => println!("unexpected: {other:?}"),
    }
    map.refresh(20 << 20..(20 << 20) + 4096)?;
    println!("refreshed, it reads {}", map.load::<u64>(20 << 20)?);

    let report = map.report()?;
    println!("{} bytes mapped, {} of storage, {} kernel mappings", report.bytes, report.data, report.kernel_mappings);
    all_or_none(&file)
}

/// Several changes that a crash leaves wholly or not at all.
fn all_or_none(file: &File) -> Result<()> {
    // Stores stay in private copies until the commit.
    let mut atomic = file.map_atomic(0..32 << 20)?;
    atomic.store::<u64>(0, 1)?;
    atomic.store::<u64>(16 << 20, 2)?;
    let mut first = [0; 8];
    file.read_exact_at(&mut first, 0)?;
    println!("before the commit the file has {}", u64::from_ne_bytes(first));
    let pages = atomic.commit()?;
    file.read_exact_at(&mut first, 0)?;
    println!("{pages} pages committed, the file has {}", u64::from_ne_bytes(first));

    // The same without a mapping.
    file.write_atomic(&[(0, &b"header"[..]), (24 << 20, &b"table"[..])])
}
