//! The library's three hottest operations, each by itself, for profilers and instruction counts.
//!
//! `hot overwrite|create|lookup COUNT [POOL]`
//!
//! `POOL` is made for the purpose and removed; without it, memory of the process is the media, and
//! the figures are the engine's alone.

use pagestone::inode::NewNode;
use pagestone::{CreateOptions, FileType, Pool, Result};
use pmem::Memory;
use std::sync::Arc;

const LEN: u64 = 16 << 20;
const OTHERS: usize = 1000;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (what, count) = (args.next().unwrap_or_default(), args.next().unwrap_or_default());
    let count: usize = count.parse()?;
    let options = CreateOptions::new().size(64 << 20);
    let path = args.next().map(std::path::PathBuf::from);
    let pool = match &path {
        Some(path) => Pool::create(path, &options)?,
        None => Pool::create_on(Arc::new(Memory::new(64 << 20)?), &options)?,
    };
    if let Some(path) = &path {
        // The mapping keeps the bytes.
        std::fs::remove_file(path)?;
    }
    let names: Vec<String> = (0..OTHERS).map(|i| format!("there-{i:05}.txt")).collect();
    for name in &names {
        pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o600))?;
    }
    match what.as_str() {
        "overwrite" => overwrite(&pool, count)?,
        "create" => create(&pool, count)?,
        "lookup" => lookup(&pool, &names, count)?,
        _ => return Err("hot overwrite|create|lookup COUNT [POOL]".into()),
    }
    Ok(())
}

fn overwrite(pool: &Pool, count: usize) -> Result<()> {
    let attr = pool.root().create(b"file", &NewNode::new(FileType::File, 0o600))?;
    let file = pool.node(attr.ino)?.open()?;
    file.write_all_at(&vec![1; LEN as usize], 0)?;
    let bytes = [7; 4096];
    for i in 0..count as u64 {
        file.write_all_at(&bytes, i.wrapping_mul(0x9E37_79B9) * 4096 % LEN)?;
    }
    Ok(())
}

fn create(pool: &Pool, count: usize) -> Result<()> {
    for i in 0..count {
        let name = format!("new-{:05}.txt", i % OTHERS);
        pool.root().create(name.as_bytes(), &NewNode::new(FileType::File, 0o600))?;
        pool.root().unlink(name.as_bytes())?;
    }
    Ok(())
}

fn lookup(pool: &Pool, names: &[String], count: usize) -> Result<()> {
    for i in 0..count {
        pool.root().lookup(names[i * 7 % OTHERS].as_bytes())?;
    }
    Ok(())
}
